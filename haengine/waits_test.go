package haengine_test

import (
	"strings"
	"testing"
	"time"

	"hotspare/haengine"
)

// A resource that was restarted in place has failed no longer: its failure is
// not one of the two channels of a failover ten minutes later (S7).
func TestALocalRestartIsNoFailedChannelForEver(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	b.report("database", haengine.ResourceFailed)
	if haengine.PhaseOf(b.s, "orders") != haengine.PhaseSuspect {
		t.Fatal("a failed resource is not suspect")
	}
	b.report("witness", haengine.ResourceOnline) // another resource clears nothing
	if haengine.PhaseOf(b.s, "orders") != haengine.PhaseSuspect {
		t.Fatal("another resource's word cleared the failure")
	}
	b.report("database", haengine.ResourceOnline)
	b.pass(10*time.Minute, b.good)
	if p := haengine.PhaseOf(b.s, "orders"); p != haengine.PhaseRunning {
		t.Errorf("ten good minutes after a local restart it is %s", p)
	}
	for range 20 { // now one channel fails
		b.pass(time.Second, func() {
			b.beat()
			b.event(haengine.Sample{App: "orders", Monitor: "sql", From: haengine.FromAppliance, OK: false, Why: "timeout"})
		})
	}
	if a := b.app(); a.Epoch != 1 {
		t.Errorf("failed over on one channel: epoch %d, %s", a.Epoch, a.Phase)
	}
}

// A node whose BMC is dead at the first start is given up, not awaited for ever
// (S3, L1).
func TestAFirstStartGivesUpANodeWhoseBMCIsDead(t *testing.T) {
	b := newBench(t, 2)
	b.keep["read-power"] = true // nothing is known about the BMCs
	b.fail["power-off n1"] = haengine.Failed{Why: "no answer", Transient: true}
	b.event(haengine.AppApplied{Application: app(nil)})
	b.pass(5*time.Minute, func() {
		if g := b.app().Grant; g != nil && g.Booted && g.BootID == "" {
			b.join()
		}
		b.good()
	})
	a := b.app()
	if a.Phase != haengine.PhaseRunning || a.Grant.Node != "n2" {
		t.Errorf("after 5 minutes: %s %q, grant %+v", a.Phase, a.Reason, a.Grant)
	}
}

// A revocation that keeps failing is told, also when the node is proven off (S3,
// L1): the volumes are the promise that nobody else writes.
func TestARevocationThatKeepsFailingIsTold(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	b.fail["revoke"] = haengine.Failed{Why: "no space left on device"}
	b.pow["n1"] = haengine.PowerIsOff
	b.pass(5*time.Minute, nil)
	a := b.app()
	if a.Phase != haengine.PhaseBlocked || !strings.Contains(a.Reason, "storage") || a.Fix == "" {
		t.Errorf("after 5 minutes: %s, reason %q, fix %q", a.Phase, a.Reason, a.Fix)
	}
	if !b.incident("app/orders/blocked") {
		t.Errorf("nobody was told: %v", b.s.Durable.Incidents)
	}
	delete(b.fail, "revoke")
	b.pass(time.Minute, nil)
	if a := b.app(); a.Phase != haengine.PhaseStarting {
		t.Errorf("after the storage was mended: %s %q", a.Phase, a.Reason)
	}
}

// An application without monitors runs when the agent brought its whole group
// online and is heard; it has no other check (S13).
func TestAnApplicationWithoutMonitorsRuns(t *testing.T) {
	b := newBench(t, 1)
	b.perform()
	b.event(haengine.AppApplied{Application: app(func(a *haengine.Application) { a.Monitors = nil })})
	b.keep["claim"] = true
	b.pass(2*time.Second, nil)
	b.join()
	b.pass(10*time.Second, b.beat)
	if p := b.app().Phase; p != haengine.PhaseOnlining {
		t.Fatalf("before its group is online it is %s", p)
	}
	for _, a := range b.all {
		if a.Kind() == "claim" {
			b.event(haengine.Done{ID: a.Head().ID})
		}
	}
	b.pass(2*time.Second, b.beat)
	if p := b.app().Phase; p != haengine.PhaseRunning {
		t.Errorf("after the whole group came online it is %s", p)
	}
}

// A target whose power fence fails while the old node still releases is given
// back, its BMC's queue too, and the next one is taken: the release goes on (S4,
// S12, L1).
func TestATargetThatFailsDuringTheReleaseIsGivenBack(t *testing.T) {
	for _, released := range []bool{true, false} {
		b := newBench(t, 3)
		b.up(app(nil))
		b.pow["n2"] = haengine.PowerIsOn
		b.pass(2*time.Minute, b.good)
		b.keep["release"] = !released
		b.fail["power-off n2"] = haengine.Failed{Why: "the user may not switch power"}
		b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann"})
		b.pass(4*time.Minute, func() {
			if g := b.app().Grant; g != nil && g.Booted && g.BootID == "" {
				b.join()
			}
			if g := b.app().Grant; g != nil && g.Claimed {
				b.good()
			}
		})
		if b.count("power-off", "n2") == 0 || b.count("return-node", "n2") == 0 {
			t.Errorf("released %v: %d power-offs, n2 was returned %d times", released, b.count("power-off", "n2"), b.count("return-node", "n2"))
		}
		if n := b.s.Durable.Nodes["n1"]; n.Owner == "orders" {
			t.Errorf("released %v: n1 is still %s for orders", released, n.Phase)
		}
		if a := b.app(); a.Phase != haengine.PhaseRunning || a.Grant.Node != "n3" {
			t.Errorf("released %v: orders is %s %q on %+v", released, a.Phase, a.Reason, a.Grant)
		}
	}
}
