// Package witness judges the record of the writes to a witness volume. The agent
// that holds a grant writes its node, epoch and a counter to that volume every
// 100 ms with O_DIRECT; the target notes each write that lands
// (storage.TraceEntry). Two nodes that wrote at the same time, or one that wrote
// after its epoch was over, show here whatever the engine believes (SAFETY S1).
package witness

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"hotspare/storage"
)

// Holder is one grant as the target saw it write.
type Holder struct {
	Epoch  uint64    `json:"epoch"`
	Node   string    `json:"node"`
	BootID string    `json:"boot_id"`
	Writes int       `json:"writes"`
	First  time.Time `json:"first"`
	Last   time.Time `json:"last"`
}

// Report is what a trace shows.
type Report struct {
	Writes  int      `json:"writes"`
	Holders []Holder `json:"holders"` // in the order of their writes
	Faults  []string `json:"faults,omitempty"`
}

// OK says that no fault was seen.
func (r Report) OK() bool { return len(r.Faults) == 0 }

// maxFaults bounds the report of a trace that is broken everywhere.
const maxFaults = 20

// ReadFile judges a trace file while the target may still append to it: an
// unfinished last line is passed over.
func ReadFile(path string) (Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return Report{}, fmt.Errorf("witness: %w", err)
	}
	defer f.Close()
	return Read(f)
}

// Read judges a trace.
func Read(r io.Reader) (Report, error) {
	var j judge
	in := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return j.report, nil
		}
		if err != nil {
			return j.report, fmt.Errorf("witness: %w", err)
		}
		var e storage.TraceEntry
		if err := json.Unmarshal(line, &e); err != nil {
			return j.report, fmt.Errorf("witness: line %d: %w", n, err)
		}
		j.entry(e)
	}
}

// judge holds what was seen so far.
type judge struct {
	report  Report
	seq     uint64
	counter uint64
	counted bool
}

func (j *judge) fault(e storage.TraceEntry, format string, args ...any) {
	if len(j.report.Faults) < maxFaults {
		j.report.Faults = append(j.report.Faults, fmt.Sprintf("write %d: ", e.Seq)+fmt.Sprintf(format, args...))
	}
}

func (j *judge) entry(e storage.TraceEntry) {
	if j.seq != 0 && e.Seq != j.seq+1 {
		j.fault(e, "follows write %d: the record has a gap", j.seq)
	}
	j.seq = e.Seq
	j.report.Writes++
	at := time.Unix(0, e.UnixNano)

	hs := j.report.Holders
	if len(hs) == 0 || hs[len(hs)-1].Epoch != e.Epoch || hs[len(hs)-1].Node != e.Node || hs[len(hs)-1].BootID != e.BootID {
		if len(hs) > 0 {
			last := hs[len(hs)-1]
			switch {
			case e.Epoch < last.Epoch:
				j.fault(e, "%s wrote under epoch %d after %s wrote under epoch %d", e.Node, e.Epoch, last.Node, last.Epoch)
			case e.Epoch == last.Epoch:
				j.fault(e, "%s (boot %s) and %s (boot %s) wrote under the same epoch %d", e.Node, e.BootID, last.Node, last.BootID, e.Epoch)
			}
		}
		j.report.Holders = append(hs, Holder{Epoch: e.Epoch, Node: e.Node, BootID: e.BootID, First: at})
	}
	h := &j.report.Holders[len(j.report.Holders)-1]
	h.Writes++
	h.Last = at
	j.contents(e)
}

// contents compares what the writer said with the session that it wrote through
// (agentlink.Witness: magic 8, version 4, sum 4, epoch 8, counter 8, time 8, node).
func (j *judge) contents(e storage.TraceEntry) {
	if e.Op != "write" {
		j.fault(e, "is a %s", e.Op)
		return
	}
	b, err := hex.DecodeString(e.Data)
	if err != nil || len(b) < 64 || !bytes.Equal(b[:8], []byte("HSWITNES")) {
		j.fault(e, "is no witness record: %.16s…", e.Data)
		return
	}
	if epoch := binary.BigEndian.Uint64(b[16:]); epoch != e.Epoch {
		j.fault(e, "says epoch %d, its session is of epoch %d", epoch, e.Epoch)
	}
	node := string(bytes.TrimRight(b[40:64], "\x00"))
	if want := e.Node[:min(len(e.Node), 24)]; node != want {
		j.fault(e, "says node %q, its session is of node %q", node, want)
	}
	counter := binary.BigEndian.Uint64(b[24:])
	if j.counted && counter <= j.counter {
		j.fault(e, "counts %d after %d: its writer did not know of the one before", counter, j.counter)
	}
	j.counter, j.counted = counter, true
}
