package haengine_test

import (
	"testing"
	"time"

	"hotspare/haengine"
)

// claimed is what the last claim told its agent.
func (b *bench) claimed() haengine.Claim {
	b.t.Helper()
	for i := len(b.all) - 1; i >= 0; i-- {
		if c, is := b.all[i].(haengine.Claim); is {
			return c
		}
	}
	b.t.Fatal("nothing was claimed")
	return haengine.Claim{}
}

// An agent fences itself by its lease only where the policy accepts the evidence
// that rests on it (S2.4).
func TestOnlyWhoAsksForItFencesItself(t *testing.T) {
	for _, c := range []struct {
		evidence []haengine.EvidenceKind
		want     haengine.Duration
	}{
		{nil, haengine.DefaultLease},
		{[]haengine.EvidenceKind{haengine.EvidenceStorage}, haengine.DefaultLease},
		{[]haengine.EvidenceKind{haengine.EvidencePower}, haengine.NoLease},
	} {
		b := newBench(t, 2)
		b.up(app(func(a *haengine.Application) { a.Policy.Evidence = c.evidence }))
		g := b.app().Grant
		if got := haengine.LeaseOf(b.app(), g.Epoch); got != c.want || b.claimed().Lease != c.want {
			t.Errorf("%v: heartbeats are answered with %s, the claim with %s, want %s", c.evidence, got, b.claimed().Lease, c.want)
		}
	}
}

// An announced restart gives longer leases from the next heartbeat on, and storage
// evidence waits for the longest that was given: also after the restart, and after
// leases are as usual again.
func TestAnAnnouncedRestartLengthensLeases(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	outage := 2 * time.Minute
	b.event(haengine.PlannedRestart{For: haengine.Duration(outage), By: "ann"})
	if w := haengine.RestartReady(b.s); len(w) != 1 {
		t.Errorf("ready before the agent was answered: %v", w)
	}
	b.pass(2*time.Second, b.good)
	if w := haengine.RestartReady(b.s); len(w) != 0 {
		t.Errorf("waits for %v", w)
	}
	long := haengine.LeaseOf(b.app(), 1)
	if long.D() <= outage {
		t.Fatalf("the lease is %s", long)
	}
	answered := b.now.At
	b.now.At, b.now.Wall = b.now.At.Add(outage), b.now.Wall.Add(outage)
	b.event(haengine.Restarted{})
	b.pass(20*time.Second, b.good)
	if got := haengine.LeaseOf(b.app(), 1); got != haengine.DefaultLease {
		t.Errorf("after the restart the lease is %s", got)
	}
	if b.s.Durable.Planned != nil {
		t.Error("the announcement is not over")
	}
	// The node falls silent now, and its BMC is dead: a lease of the time before may
	// still run.
	b.fail["power-off n1"] = haengine.Failed{Why: "no answer"}
	b.fail["read-power"] = haengine.Failed{Why: "no answer"}
	silent := b.now.At
	for range 600 {
		b.pass(time.Second, func() {
			b.event(haengine.Sample{App: "orders", Monitor: "sql", From: haengine.FromAppliance, OK: false, Why: "timeout"})
		})
		a := b.app()
		if len(a.Old) == 0 || a.Old[0].Exclusion.Proof == nil {
			continue
		}
		if p := a.Old[0].Exclusion.Proof; p.Kind != haengine.EvidenceStorage {
			t.Fatalf("evidence %+v", p)
		}
		if b.now.At.Sub(silent) < long.D()-20*time.Second || b.now.At.Sub(answered) < long.D() {
			t.Errorf("excluded %s after it fell silent, a lease of %s may have run", b.now.At.Sub(silent), long)
		}
		return
	}
	t.Fatal("never excluded")
}

// A restart that does not come ends by itself; one that is too long is refused.
func TestAnAnnouncementEnds(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	if err := haengine.Refuse(b.s, haengine.PlannedRestart{For: haengine.Duration(2 * time.Hour), By: "ann"}); err == nil {
		t.Error("two hours were taken")
	}
	b.event(haengine.PlannedRestart{For: haengine.Duration(time.Minute), By: "ann"})
	b.pass(5*time.Minute, b.good)
	if b.s.Durable.Planned != nil || b.app().Grant.Longest != 0 || haengine.LeaseOf(b.app(), 1) != haengine.DefaultLease {
		t.Errorf("after 5 minutes: %+v, %+v", b.s.Durable.Planned, b.app().Grant)
	}
	if a := b.app(); a.Phase != haengine.PhaseRunning || a.Epoch != 1 {
		t.Errorf("orders is %s", a.Phase)
	}
}
