package boot

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Entry is one step of a machine's boot, as API and console show it. Answer and
// Detail never carry a whole token.
type Entry struct {
	At       time.Time `json:"at"`
	MAC      MAC       `json:"mac"`
	Protocol Protocol  `json:"protocol"`
	Request  string    `json:"request"` // what it asked, e.g. "DISCOVER, x86 BIOS (0), iPXE"
	Answer   string    `json:"answer"`  // what it got, e.g. "OFFER 10.77.0.100, undionly.kpxe"
	Reason   Reason    `json:"reason"`
	Node     string    `json:"node,omitempty"` // name of the node, "" for an unknown machine
}

// Trace is what one machine asked lately, oldest first.
type Trace struct {
	MAC     MAC     `json:"mac"`
	Node    string  `json:"node,omitempty"`
	Dropped uint64  `json:"dropped,omitempty"` // older entries that are gone
	Entries []Entry `json:"entries"`
}

// Recorder keeps the last entries of each machine, in bounded memory: a flood of
// invented MAC addresses pushes out other unknown machines first. It is safe for
// concurrent use; a nil Recorder drops everything.
type Recorder struct {
	perMachine, machines int

	mu  sync.Mutex
	all map[MAC]*ring
	seq uint64
}

type ring struct {
	node    string
	seen    uint64 // of Recorder.seq, at the last entry
	dropped uint64
	entries []Entry
}

// NewRecorder keeps perMachine entries (0: 64) of at most machines machines
// (0: 1024).
func NewRecorder(perMachine, machines int) *Recorder {
	if perMachine <= 0 {
		perMachine = 64
	}
	if machines <= 0 {
		machines = 1024
	}
	return &Recorder{perMachine: perMachine, machines: machines, all: map[MAC]*ring{}}
}

// Record adds one entry. Entries without a MAC address are dropped.
func (c *Recorder) Record(e Entry) {
	if c == nil || e.MAC.IsZero() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.all[e.MAC]
	if r == nil {
		if len(c.all) >= c.machines {
			c.evict()
		}
		r = &ring{}
		c.all[e.MAC] = r
	}
	c.seq++
	r.seen = c.seq
	if e.Node != "" {
		r.node = e.Node
	}
	if len(r.entries) >= c.perMachine {
		n := len(r.entries) - c.perMachine + 1
		r.entries = slices.Delete(r.entries, 0, n)
		r.dropped += uint64(n)
	}
	r.entries = append(r.entries, e)
}

// evict drops the machine that is unknown and silent for longest, or if all are
// known, the one that is silent for longest.
func (c *Recorder) evict() {
	var victim MAC
	var found *ring
	for m, r := range c.all {
		if found == nil || better(r, found) {
			victim, found = m, r
		}
	}
	delete(c.all, victim)
}

func better(r, than *ring) bool {
	if (r.node == "") != (than.node == "") {
		return r.node == ""
	}
	return r.seen < than.seen
}

// Trace gives what is kept of one machine; ok is false when there is nothing.
func (c *Recorder) Trace(m MAC) (t Trace, ok bool) {
	if c == nil {
		return Trace{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.all[m]
	if r == nil {
		return Trace{}, false
	}
	return Trace{MAC: m, Node: r.node, Dropped: r.dropped, Entries: slices.Clone(r.entries)}, true
}

// Machines gives the last entry of every machine that is kept, the latest first:
// the list of who asked to boot.
func (c *Recorder) Machines() []Entry {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	rings := make([]*ring, 0, len(c.all))
	for _, r := range c.all {
		rings = append(rings, r)
	}
	slices.SortFunc(rings, func(a, b *ring) int { return cmp.Compare(b.seen, a.seen) })
	out := make([]Entry, 0, len(rings))
	for _, r := range rings {
		last := r.entries[len(r.entries)-1]
		last.Node = r.node
		out = append(out, last)
	}
	return out
}
