package haengine_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare/haengine"
)

// A node that waits or is in use stays the machine that it is, whatever document
// comes: readings of another machine's BMC would be proofs about it (S2).
func TestANodeInUseOrInStandbyKeepsItsIdentity(t *testing.T) {
	b := ready(t, "6.1-orders", plain, nil)
	for _, name := range []string{"n1", "n2"} { // one runs orders, one waits
		before := b.s.Durable.Nodes[name].Spec
		changed := before
		changed.UUID, changed.MACs, changed.MemoryMiB = "11111111-0000-4000-8000-000000000001", []string{"52:54:00:99:00:01"}, before.MemoryMiB+1
		changed.BMC.User = "another"
		b.event(haengine.NodeApplied{Node: changed})
		after := b.s.Durable.Nodes[name].Spec
		if after.UUID != before.UUID || after.BMC != before.BMC || !slices.Equal(after.MACs, before.MACs) {
			t.Errorf("%s became another machine: %+v", name, after)
		}
		if after.MemoryMiB != changed.MemoryMiB {
			t.Errorf("%s: what does not identify it was not taken", name)
		}
	}
	b.event(haengine.PoolApplied{Pool: haengine.Pool{Name: "rack1"}}) // n2 leaves standby
	b.pass(2*time.Minute, b.hears("n2"))
	n := b.s.Durable.Nodes["n2"]
	if n.Phase != haengine.NodeIdle || n.Park != nil {
		t.Fatalf("n2 did not become free: %+v", n)
	}
	free := n.Spec
	free.UUID = "11111111-0000-4000-8000-000000000002"
	b.event(haengine.NodeApplied{Node: free})
	if got := b.s.Durable.Nodes["n2"].Spec.UUID; got != free.UUID {
		t.Errorf("a free node keeps %s", got)
	}
}

// Where only the BMC could exclude a way, one that loses its power with the node is
// no fence: the way is not possible there (S2).
func TestAWayThatOnlyPowerExcludesNeedsABMCOfItsOwnPower(t *testing.T) {
	b := newBench(t, 2)
	b.event(image(nil))
	n1 := node("n1", nil)
	n1.BMC.SharedPower = true
	b.event(haengine.NodeApplied{Node: n1})
	b.up(app(func(a *haengine.Application) {
		a.Policy.Ways = []haengine.Way{haengine.WayColdISCSI, haengine.WayColdSAN, haengine.WayRAM}
	}))
	for _, way := range []haengine.Way{haengine.WayColdSAN, haengine.WayRAM} {
		if c := choice(b, "n1", way); c.OK || !strings.Contains(c.Text, "loses power with it") {
			t.Errorf("%s on n1: possible %v: %s", way, c.OK, c.Text)
		}
	}
	if c := choice(b, "n1", haengine.WayColdISCSI); !c.OK {
		t.Errorf("cold-iscsi, which the storage excludes too: %s", c.Text)
	}
	if c := choice(b, "n2", haengine.WayRAM); !c.OK {
		t.Errorf("ram on a node whose BMC has power of its own: %s", c.Text)
	}
}

// A grant whose lease never ends is not excluded by the storage, also when the
// policy asks for that later: somebody is told.
func TestFencingThatCannotEndIsBlocked(t *testing.T) {
	b := newBench(t, 2)
	a := app(func(a *haengine.Application) { a.Policy.Evidence = []haengine.EvidenceKind{haengine.EvidencePower} })
	b.up(a)
	a.Policy.Evidence = []haengine.EvidenceKind{haengine.EvidencePower, haengine.EvidenceStorage}
	b.event(haengine.AppApplied{Application: a})
	b.keep["read-power"], b.keep["power-off n1"] = true, true // node and BMC are dead
	b.pass(5*time.Minute, func() {
		if g := b.app().Grant; g != nil {
			b.event(haengine.Sample{App: "orders", Monitor: "sql", From: haengine.FromAppliance, Epoch: g.Epoch, Why: "no answer"})
		}
	})
	if p := b.app().Phase; p != haengine.PhaseBlocked {
		t.Fatalf("it is %s: %s", p, b.app().Reason)
	}
	if b.app().Fix == "" {
		t.Error("nobody is told what to do")
	}
}

// Silence at the service address that was heard before a wait says nothing about
// now: it is asked for anew before the claim (S1).
func TestAnOldSilenceIsAskedForAnew(t *testing.T) {
	b := ready(t, "6.1-orders", plain, nil)
	b.pow["n1"] = haengine.PowerIsOff
	b.keep["attach"] = true // the storage takes its time
	speaks := func() { b.event(haengine.Heartbeat{Node: "n2", BootID: "n2-parked"}) }
	b.pass(10*time.Second, speaks)
	probes := b.count("probe-address", "n2")
	if probes == 0 {
		t.Fatal("the address was not asked while the volumes were attached")
	}
	b.pass(60*time.Second, speaks)
	b.keep["attach"] = false
	for _, p := range b.s.Durable.Pending {
		if x, ok := p.Action.(haengine.Attach); ok {
			b.answer(x)
		}
	}
	b.pass(3*time.Second, speaks)
	if g := b.app().Grant; g == nil || !g.Claimed {
		t.Fatalf("not claimed: %s %s", b.app().Phase, b.app().Reason)
	}
	if n := b.count("probe-address", "n2"); n <= probes {
		t.Errorf("claimed on a silence of a minute ago: asked %d times, as before", n)
	}
}
