package boot

import (
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Protocols that a trace shows beside those that machines boot by.
const (
	ISCSI Protocol = "iscsi"
	Agent Protocol = "agent"
	BMC   Protocol = "bmc"
	Check Protocol = "check" // the application's own check
)

// Entry is one step of a machine's boot, as API and console show it. Answer and
// Detail never carry a whole token. The texts are for people; what a diagnosis
// compares stands in Step and Detail.
type Entry struct {
	At       time.Time `json:"at"`
	MAC      MAC       `json:"mac"`
	Protocol Protocol  `json:"protocol"`
	Step     Step      `json:"step,omitempty"`
	Request  string    `json:"request"` // what it asked, e.g. "DISCOVER, x86 BIOS (0), iPXE"
	Answer   string    `json:"answer"`  // what it got, e.g. "OFFER 10.77.0.100, undionly.kpxe"
	Reason   Reason    `json:"reason"`
	Detail   Detail    `json:"detail,omitzero"`
	Node     string    `json:"node,omitempty"` // name of the node, "" for an unknown machine

	// The same thing again, with the same answer, is counted here and not kept
	// once more.
	Again uint64    `json:"again,omitempty"`
	Until time.Time `json:"until,omitzero"` // of the last one; zero when there was one only
}

// Last gives the time of the last one of an entry that was repeated.
func (e Entry) Last() time.Time {
	if e.Until.IsZero() {
		return e.At
	}
	return e.Until
}

// Detail holds the figures of an entry. Each field belongs to some steps only.
type Detail struct {
	Stage   Stage         `json:"stage,omitempty"`   // DHCP: who asks
	Arch    Arch          `json:"arch,omitempty"`    // DHCP
	Seconds uint16        `json:"seconds,omitempty"` // DHCP: how long it has been asking, as it says
	Address netip.Addr    `json:"address,omitzero"`  // DHCP: offered or acknowledged
	Server  netip.Addr    `json:"server,omitzero"`   // DHCP: another server, whose offer it took
	Silent  bool          `json:"silent,omitempty"`  // nothing was sent to it
	Probe   bool          `json:"probe,omitempty"`   // TFTP: only the size was asked for
	Bytes   int64         `json:"bytes,omitempty"`   // sent
	Size    int64         `json:"size,omitempty"`    // of the whole file
	Took    time.Duration `json:"took,omitempty"`
	Resent  int           `json:"resent,omitempty"` // TFTP: blocks that had to be sent again
	Mark    string        `json:"mark,omitempty"`   // of the agent
	BootID  string        `json:"bootId,omitempty"` // of the kernel that runs
	Failed  bool          `json:"failed,omitempty"`
	Epoch   uint64        `json:"epoch,omitempty"`
}

// Boot is what was seen of one boot of a machine, oldest first.
type Boot struct {
	Number  uint64  `json:"number"`            // counts a machine's boots up
	Dropped uint64  `json:"dropped,omitempty"` // entries from its middle that are gone
	Entries []Entry `json:"entries"`
}

// Trace is what one machine asked lately: its boots, oldest first, and the
// entries of all of them in one list.
type Trace struct {
	MAC     MAC     `json:"mac"`
	Node    string  `json:"node,omitempty"`
	Dropped uint64  `json:"dropped,omitempty"` // older entries that are gone
	Boots   []Boot  `json:"boots"`
	Entries []Entry `json:"-"`
}

// How much is kept: boots of a machine that is a node and of one that is not,
// boots of a node in a file, and of a text. Of a stranger's boot half as many
// entries are kept.
const (
	bootsOfNode     = 6
	bootsOfStranger = 2
	bootsInFile     = 2
	maxText         = 400
)

// Recorder keeps the last boots of each machine, in bounded memory: a flood of
// invented MAC addresses pushes out other unknown machines first. It is safe for
// concurrent use; a nil Recorder drops everything.
type Recorder struct {
	perBoot, machines int

	mu  sync.Mutex
	all map[MAC]*record
	// MAC addresses of nodes and of others, the one that is silent for longest
	// first.
	nodes, strangers list.List

	seq     uint64
	changed uint64 // counts what was recorded of nodes
}

type record struct {
	node    string
	seen    uint64 // of Recorder.seq, at the last entry
	number  uint64 // of the last boot
	dropped uint64
	boots   []Boot
	place   *list.Element // in Recorder.nodes or strangers
}

// NewRecorder keeps perBoot entries of each boot (0: 48) of at most machines
// machines (0: 1024).
func NewRecorder(perBoot, machines int) *Recorder {
	if perBoot <= 0 {
		perBoot = 48
	}
	if machines <= 0 {
		machines = 1024
	}
	return &Recorder{perBoot: perBoot, machines: machines, all: map[MAC]*record{}}
}

// Record adds one entry. Entries without a MAC address are dropped. Texts are
// cut, and what could steer a terminal is taken out of them: they quote what
// machines sent.
func (c *Recorder) Record(e Entry) {
	if c == nil || e.MAC.IsZero() {
		return
	}
	e = cleaned(e)
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.of(e.MAC)
	c.seq++
	r.seen = c.seq
	if e.Node != "" {
		r.node = e.Node
	}
	c.touch(e.MAC, r)
	if r.node != "" {
		c.changed++
	}
	c.add(r, e)
}

// of gives the record of a machine, a new one if there is none; mu is held.
func (c *Recorder) of(m MAC) *record {
	r := c.all[m]
	if r == nil {
		if len(c.all) >= c.machines {
			c.evict()
		}
		r = &record{}
		c.all[m] = r
	}
	return r
}

func (c *Recorder) add(r *record, e Entry) {
	if len(r.boots) == 0 || begins(r.boots[len(r.boots)-1].Entries, e) {
		r.number++
		r.boots = append(r.boots, Boot{Number: r.number})
		keep := bootsOfStranger
		if r.node != "" {
			keep = bootsOfNode
		}
		for len(r.boots) > keep {
			r.dropped += uint64(len(r.boots[0].Entries)) + r.boots[0].Dropped
			r.boots = slices.Delete(r.boots, 0, 1)
		}
	}
	b := &r.boots[len(r.boots)-1]
	if again(b.Entries, e) {
		return
	}
	room := c.perBoot
	if r.node == "" {
		room = (room + 1) / 2
	}
	if len(b.Entries) >= room {
		// The middle goes: how a boot began and what came last say most.
		mid := len(b.Entries) / 2
		b.Entries = slices.Delete(b.Entries, mid, mid+1)
		b.Dropped++
	}
	b.Entries = append(b.Entries, e)
}

// silence is how long a machine that only asked for an address may be silent and
// still go on with the same boot.
const silence = 3 * time.Minute

// begins says whether e is the first of a new boot, after what was seen of the
// current one.
func begins(now []Entry, e Entry) bool {
	if len(now) == 0 {
		return false
	}
	last := now[len(now)-1]
	has := func(is func(Entry) bool) bool { return slices.ContainsFunc(now, is) }
	started := has(func(x Entry) bool { return x.Step.started() })
	switch {
	case e.Step == StepPower:
		return last.Step != StepPower
	case e.Detail.BootID != "":
		// A kernel that was started by another kernel asks no firmware.
		return has(func(x Entry) bool { return x.Detail.BootID != "" && x.Detail.BootID != e.Detail.BootID })
	case e.Step == StepDiscover && e.Detail.Stage == StageFirmware:
		return started || has(func(x Entry) bool {
			return x.Step == StepLoader && !x.Detail.Probe || x.Step == StepScript || x.Step == StepWait || x.Detail.Stage == StageSystem
		}) || e.At.Sub(last.Last()) > silence && last.Step != StepPower
	case e.Step == StepDiscover && e.Detail.Stage == StageIPXE:
		return started
	}
	return false
}

// lookBack is how many entries back a repetition is looked for: a machine that
// waits repeats a round of three.
const lookBack = 5

// again counts e into an entry that says the same.
func again(now []Entry, e Entry) bool {
	for i := len(now) - 1; i >= max(0, len(now)-lookBack); i-- {
		x := &now[i]
		if x.Protocol == e.Protocol && x.Step == e.Step && x.Request == e.Request && x.Reason == e.Reason &&
			x.Detail.Silent == e.Detail.Silent && x.Detail.Mark == e.Detail.Mark && x.Detail.Failed == e.Detail.Failed && x.Detail.Probe == e.Detail.Probe {
			x.Again++
			x.Until, x.Answer = e.At, e.Answer
			x.Detail.Resent = max(x.Detail.Resent, e.Detail.Resent)
			return true
		}
	}
	return false
}

// evict drops the machine that is unknown and silent for longest, or if all are
// known, the one that is silent for longest.
func (c *Recorder) evict() {
	kind := &c.strangers
	if kind.Len() == 0 {
		kind = &c.nodes
	}
	if oldest := kind.Front(); oldest != nil {
		if m, ok := kind.Remove(oldest).(MAC); ok {
			delete(c.all, m)
		}
	}
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
	return r.trace(m), true
}

func (r *record) trace(m MAC) Trace {
	t := Trace{MAC: m, Node: r.node, Dropped: r.dropped}
	for _, b := range r.boots {
		b.Entries = slices.Clone(b.Entries)
		t.Boots = append(t.Boots, b)
		t.Entries = append(t.Entries, b.Entries...)
		t.Dropped += b.Dropped
	}
	return t
}

// Machines gives the last entry of every machine that is kept, the latest first:
// the list of who asked to boot.
func (c *Recorder) Machines() []Entry {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	type seen struct {
		last Entry
		seq  uint64
	}
	all := make([]seen, 0, len(c.all))
	for _, r := range c.all {
		if len(r.boots) == 0 {
			continue
		}
		b := r.boots[len(r.boots)-1]
		last := b.Entries[len(b.Entries)-1]
		last.Node = r.node
		all = append(all, seen{last, r.seen})
	}
	slices.SortFunc(all, func(a, b seen) int { return cmp.Compare(b.seq, a.seq) })
	out := make([]Entry, 0, len(all))
	for _, s := range all {
		out = append(out, s.last)
	}
	return out
}
