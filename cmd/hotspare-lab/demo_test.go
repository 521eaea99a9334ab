package main

import (
	"strings"
	"testing"
	"time"

	"hotspare/testenv/lab/load"
	"hotspare/testenv/lab/witness"
	"hotspare/ui/api"
)

func TestOutageIsTheGapThatTheClientSees(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(1000, 0).Add(time.Duration(s * float64(time.Second))) }
	acks := []load.Ack{
		{Seq: 1, Sent: at(-1), At: at(-0.9)}, {Seq: 2, Sent: at(-0.1), At: at(0.2)}, // was on its way at the fault
		{Seq: 9, Sent: at(30), At: at(30.2)}, {Seq: 10, Sent: at(31), At: at(31.1)},
	}
	if got := outage(acks, at(0), acks[2]); got != 30*time.Second {
		t.Errorf("outage %s, want 30s: from the last answer of the old node to the first of the new one", got)
	}
	if got := outage(acks[2:], at(0), acks[2]); got != 30200*time.Millisecond {
		t.Errorf("outage %s, want 30.2s: from the fault", got)
	}
}

// The demo fails unless every promise was seen to be kept.
func TestDemoBelievesNothing(t *testing.T) {
	good := func() *demoResult {
		r := newDemoResult(time.Unix(1000, 0), 30*time.Second,
			api.Application{Status: api.ApplicationStatus{Node: "n2", Epoch: 2}},
			api.Failover{Way: "cold-iscsi", Seconds: map[string]float64{"detect": 1.9, "fence": 0.9, "provision": 0.1, "boot": 12, "online": 15}},
			load.Result{Acked: 100, Rows: 101},
			witness.Report{Writes: 80, Holders: []witness.Holder{{Epoch: 1, Node: "n1", Writes: 40}, {Epoch: 2, Node: "n2", Writes: 40}}})
		r.From = "n1"
		return r
	}
	if err := good().err(); err != nil {
		t.Fatalf("a good run: %v", err)
	}
	want := "RESULT outage_s=30.0 detect_s=1.9 fence_s=0.9 provision_s=0.1 boot_s=12.0 online_s=15.0 way=cold-iscsi acked=100 lost=0 witness=ok"
	if got := good().line(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for _, c := range []struct {
		name  string
		spoil func(*demoResult)
		why   string
	}{
		{"a lost row", func(r *demoResult) { r.Rows.Lost = []int64{7} }, "lost [7]"},
		{"a changed row", func(r *demoResult) { r.Rows.Changed = []int64{8} }, "changed [8]"},
		{"too few rows", func(r *demoResult) { r.Acked = 3 }, "3 rows"},
		{"no hand-over", func(r *demoResult) { r.To = "n1" }, "it runs on n1"},
		{"two writers", func(r *demoResult) { r.Witness.Faults = []string{"write 5: n1 after n2"} }, "n1 after n2"},
		{"only one writer seen", func(r *demoResult) { r.Witness.Holders = r.Witness.Holders[1:] }, "only 1 node"},
		{"another writer than the grant's", func(r *demoResult) { r.Witness.Holders[1].Node = "n3" }, "written by n3"},
		{"the last writer is an old one", func(r *demoResult) { r.Witness.Holders[1].Epoch = 1 }, "the last write is of epoch 1"},
	} {
		r := good()
		c.spoil(r)
		if err := r.err(); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", c.name, err, c.why)
		}
	}
}
