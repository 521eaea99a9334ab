package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"hotspare"
	"hotspare/testenv/lab/load"
	"hotspare/testenv/lab/witness"
	"hotspare/ui/api"
)

// afterCut is how long after the fault an insert must have been sent to count as
// one of the new node: one that was on its way at the fault does not.
const afterCut = 300 * time.Millisecond

// demoResult is out/demo.json.
type demoResult struct {
	Version  int            `json:"version"` // 1
	At       time.Time      `json:"at"`      // of the fault
	Fault    string         `json:"fault"`
	From     string         `json:"from"`
	To       string         `json:"to"`
	Epoch    uint64         `json:"epoch"`
	Outage   float64        `json:"outage_s"` // from the fault to the first acknowledged insert
	Detect   float64        `json:"detect_s"`
	Fence    float64        `json:"fence_s"`
	Prov     float64        `json:"provision_s"`
	Boot     float64        `json:"boot_s"`
	Online   float64        `json:"online_s"`
	Way      string         `json:"way"`
	Evidence string         `json:"evidence"`
	Acked    int            `json:"acked"`
	Lost     int            `json:"lost"`
	Rows     load.Result    `json:"rows"`
	Witness  witness.Report `json:"witness"`
	Failover api.Failover   `json:"failover"`
}

// outage is from the fault to the first acknowledged insert after it. The last
// acknowledged one before the hand-over may have come after the fault's moment:
// the gap that a client sees is what counts.
func outage(acks []load.Ack, cut time.Time, back load.Ack) time.Duration {
	begin := cut
	for _, a := range acks {
		if a.Seq < back.Seq && a.At.After(begin) {
			begin = a.At
		}
	}
	return back.At.Sub(begin)
}

func newDemoResult(cut time.Time, gap time.Duration, after api.Application, f api.Failover, rows load.Result, seen witness.Report) *demoResult {
	return &demoResult{
		Version: 1, At: cut, To: after.Status.Node, Epoch: after.Status.Epoch,
		Outage: gap.Seconds(), Detect: f.Seconds["detect"], Fence: f.Seconds["fence"], Prov: f.Seconds["provision"],
		Boot: f.Seconds["boot"], Online: f.Seconds["online"], Way: f.Way, Evidence: f.Evidence,
		Acked: rows.Acked, Lost: len(rows.Lost), Rows: rows, Witness: seen, Failover: f,
	}
}

// line is the last line of the demo.
func (r *demoResult) line() string {
	ok := "ok"
	if r.witnessErr() != nil {
		ok = "FAILED"
	}
	return fmt.Sprintf("RESULT outage_s=%.1f detect_s=%.1f fence_s=%.1f provision_s=%.1f boot_s=%.1f online_s=%.1f way=%s acked=%d lost=%d witness=%s",
		r.Outage, r.Detect, r.Fence, r.Prov, r.Boot, r.Online, r.Way, r.Acked, r.Lost, ok)
}

// witnessErr says why the witness does not prove the hand-over: a run that shows
// too little counts as failed.
func (r *demoResult) witnessErr() error {
	switch {
	case !r.Witness.OK():
		return errors.New(r.Witness.Faults[0])
	case len(r.Witness.Holders) < 2:
		return fmt.Errorf("only %d node was seen to write", len(r.Witness.Holders))
	}
	for _, h := range r.Witness.Holders {
		if h.Epoch == r.Epoch && h.Node != r.To {
			return fmt.Errorf("epoch %d was written by %s, the appliance says %s", h.Epoch, h.Node, r.To)
		}
	}
	if last := r.Witness.Holders[len(r.Witness.Holders)-1]; last.Epoch != r.Epoch {
		return fmt.Errorf("the last write is of epoch %d, the grant is of epoch %d", last.Epoch, r.Epoch)
	}
	return nil
}

// minAcked is the least number of acknowledged rows that a run must have had.
const minAcked = 50

// err is nil only when the hand-over kept every promise.
func (r *demoResult) err() error {
	fail := func(what, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInternal, What: what, Why: why, Fix: "keep out/demo.json and the logs of the lab, and report it"}
	}
	switch {
	case !r.Rows.OK():
		return fail("rows are not as they were acknowledged", fmt.Sprintf("lost %v, changed %v, strange %v", r.Rows.Lost, r.Rows.Changed, r.Rows.Strange))
	case r.Acked < minAcked:
		return fail("the client inserted too little to prove anything", fmt.Sprintf("%d rows", r.Acked))
	case r.To == r.From:
		return fail("orders did not move", "it runs on "+r.To)
	}
	if err := r.witnessErr(); err != nil {
		return fail("the witness volume shows a fault", err.Error())
	}
	return nil
}

func (r *demoResult) write(file string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

func isPortTaken(err error) bool { return hotspare.CodeOf(err) == hotspare.CodePortTaken }

// story prints lines with the seconds since the beginning in front.
type story struct {
	mu    sync.Mutex
	w     io.Writer
	begun time.Time
}

func newStory(w io.Writer) *story { return &story{w: w, begun: time.Now()} }

func (s *story) line(format string, args ...any) { s.at(time.Now(), format, args...) }

func (s *story) at(at time.Time, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.w, "%7.1f  %s\n", at.Sub(s.begun).Seconds(), fmt.Sprintf(format, args...))
}
