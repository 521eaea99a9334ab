package haengine_test

import (
	"testing"
	"time"

	"hotspare/haengine"
)

var plain = haengine.NodeFacts{Model: "r640", Kexec: true}

// The pool's policy says how many nodes wait in standby; no more are ordered at
// once than it allows, and never more are on than the power budget.
func TestThePolicyDecidesHowManyArePark(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy haengine.Standby
		want   int // ordered within 20 s, when no agent comes
	}{
		{"none", haengine.Standby{}, 0},
		{"one", haengine.Standby{Nodes: 1}, 1},
		{"two at once", haengine.Standby{Nodes: 3}, 2},
		{"three at once", haengine.Standby{Nodes: 3, AtOnce: 3}, 3},
		{"within the budget", haengine.Standby{Nodes: 3, AtOnce: 3, PowerBudget: 3}, 2}, // one runs orders
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, 4)
			b.up(app(nil))
			p := c.policy
			b.event(haengine.PoolApplied{Pool: haengine.Pool{Name: "rack1", Standby: &p}})
			b.pass(20*time.Second, b.good)
			if n := b.count("park", ""); n != c.want {
				t.Errorf("%d nodes were ordered into standby, want %d", n, c.want)
			}
		})
	}
}

// Parking is an effect: a cut-off appliance and a freeze hold it (S5, S9).
func TestNothingIsParkedWhileGuardsHold(t *testing.T) {
	for name, guard := range map[string]haengine.Event{
		"isolated": haengine.SelfHealth{Isolated: true, Why: "no carrier"},
		"site":     haengine.FreezeSet{By: "ann", Reason: "x"},
		"pool":     haengine.FreezeSet{Scope: haengine.Scope{Pool: "rack1"}, By: "ann", Reason: "x"},
	} {
		b := newBench(t, 2)
		b.perform()
		b.event(guard)
		b.event(standby(1))
		b.pass(time.Minute, nil)
		if n := b.count("park", ""); n != 0 {
			t.Errorf("%s: %d nodes were ordered into standby", name, n)
		}
	}
}

// Only the boot that was ordered is parked: one of another turn, and a second one,
// are refused (S12).
func TestAStaleBootIsNotParked(t *testing.T) {
	b := newBench(t, 1)
	b.perform()
	b.event(standby(1))
	b.pass(10*time.Second, nil)
	n := b.s.Durable.Nodes["n1"]
	b.event(haengine.Parked{Node: "n1", BootID: "old", Turn: n.Park.Turn - 1, Kernel: "k"})
	if p := b.s.Durable.Nodes["n1"].Park; p.BootID != "" {
		t.Fatalf("a boot of an earlier turn is parked: %+v", p)
	}
	b.event(haengine.Parked{Node: "n1", BootID: "new", Turn: n.Park.Turn, Kernel: "k"})
	b.event(haengine.Parked{Node: "n1", BootID: "other", Turn: n.Park.Turn, Kernel: "k"})
	if p := b.s.Durable.Nodes["n1"].Park; p == nil || p.BootID != "new" {
		t.Fatalf("after a second boot: %+v", p)
	}
	b.event(haengine.AppApplied{Application: app(nil)})
	if g := b.app().Grant; g == nil || g.From != "" {
		t.Errorf("a boot that another one followed was granted: %+v", g)
	}
}

// A parked boot that is not heard is not claimed; after a while the node is
// switched off and parked anew, longer apart with each failure.
func TestASilentParkedNodeIsNotParked(t *testing.T) {
	b := ready(t, "6.1-orders", plain, nil)
	b.pass(5*time.Second, b.good)
	if c := choice(b, "n2", haengine.WayStandbySwitch); c.OK {
		t.Errorf("silent for 5 s and claimable: %s", c.Text)
	}
	b.pass(30*time.Second, b.good)
	if n := b.s.Durable.Nodes["n2"]; n.Park != nil || n.ParkFails != 1 || n.ParkWhy == "" {
		t.Fatalf("after 35 s: %+v", n)
	}
	if b.count("power-off", "n2") == 0 {
		t.Error("it was not switched off")
	}
	b.pass(60*time.Second, b.good)
	if n := b.count("park", "n2"); n != 2 {
		t.Fatalf("ordered into standby %d times", n)
	}
	b.pass(90*time.Minute, b.good) // it never comes
	if n := b.count("park", "n2"); n < 5 || n > 14 {
		t.Errorf("within 90 minutes it was tried %d times", n)
	}
	if !b.incident("node/n2/standby") {
		t.Error("nobody was told")
	}
}

// A node in standby has no owner and is chosen first; its boot is claimed as it is:
// no power cycle, no boot.
func TestAParkedBootIsClaimedAsItIs(t *testing.T) {
	b := ready(t, "6.1-orders", plain, nil)
	boots, offs := b.count("boot", "n2"), b.count("power-off", "n2")
	b.pow["n1"] = haengine.PowerIsOff
	b.pass(8*time.Second, func() { b.event(haengine.Heartbeat{Node: "n2", BootID: "n2-parked"}) })
	g := b.app().Grant
	if g == nil || g.Way != haengine.WayStandbySwitch || !g.Claimed || g.BootID != "n2-parked" {
		t.Fatalf("granted %+v", g)
	}
	if b.count("boot", "n2") != boots || b.count("power-off", "n2") != offs {
		t.Error("its power was touched")
	}
	if n := b.s.Durable.Nodes["n2"]; n.Park != nil || n.Owner != "orders" {
		t.Errorf("n2 is %+v", n)
	}
	// The word that it is in standby comes again after a reconnection: it carries
	// something now.
	b.event(haengine.Parked{Node: "n2", BootID: "n2-parked", Turn: 2, Kernel: "6.1-orders"})
	if g := b.app().Grant; g == nil || g.BootID != "n2-parked" {
		t.Errorf("after its reconnection: %+v", g)
	}
}

// Suspicion holds a parked node ready; another application takes it last.
func TestSuspicionHoldsANodeReady(t *testing.T) {
	b := newBench(t, 4)
	b.event(image(nil))
	b.up(app(nil))
	b.event(standby(2))
	b.pass(10*time.Second, b.good)
	b.parkOn("n2", "6.1-orders", plain)
	b.parkOn("n3", "6.1-orders", plain)
	b.pass(2*time.Second, b.hears("n2", "n3"))
	b.report("database", haengine.ResourceFailed)
	b.event(haengine.Tick{})
	if w := b.s.Soft.Apps["orders"].Warm; w != "n2" {
		t.Fatalf("held ready: %q", w)
	}
	web := app(func(a *haengine.Application) { a.Name, a.Image = "web", "orders" })
	b.event(haengine.AppApplied{Application: web})
	if g := b.s.Durable.Apps["web"].Grant; g == nil || g.Node != "n3" {
		t.Errorf("web took %+v", g)
	}
	b.report("database", haengine.ResourceOnline)
	b.pass(time.Second, b.hears("n2"))
	if w := b.s.Soft.Apps["orders"].Warm; w != "" {
		t.Errorf("%s is still held ready", w)
	}
	if n := b.s.Durable.Nodes["n2"]; n.Phase != haengine.NodeIdle || n.Park == nil {
		t.Errorf("n2 is %s", n.Phase)
	}
}

// A new version of an image is preloaded anew; one with another kernel has the
// nodes that wait on the old one parked anew, one after the other. So does a policy
// that asks for another kernel.
func TestParkedNodesFollowTheirImage(t *testing.T) {
	b := newBench(t, 4)
	b.event(image(nil))
	b.up(app(nil))
	b.event(standby(2))
	b.pass(10*time.Second, b.good)
	b.parkOn("n2", "6.1-orders", plain)
	b.parkOn("n3", "6.1-orders", plain)
	loads := b.count("preload", "n2")
	b.pass(40*time.Second, b.hears("n2", "n3"))
	b.event(image(func(f *haengine.ImageFacts) { f.Image = "orders:8" }))
	b.perform()
	if n := b.count("preload", "n2"); n != loads+1 {
		t.Errorf("preloaded %d times, then %d", loads, n)
	}
	b.event(image(func(f *haengine.ImageFacts) { f.Image, f.Kernel = "orders:9", "6.6-orders" }))
	b.pass(4*time.Second, b.hears("n2", "n3"))
	if a, c := b.count("power-off", "n2"), b.count("power-off", "n3"); a+c != 1 {
		t.Fatalf("%d and %d were switched off at once", a, c)
	}
	b.pass(20*time.Second, b.hears("n3"))
	if n := b.s.Durable.Nodes["n4"]; n.Park == nil || n.Park.Wanted != "6.6-orders" { // it took n2's place
		t.Errorf("n4 waits on %+v", n.Park)
	}
	if n := b.s.Durable.Nodes["n3"]; n.Park == nil || n.Park.BootID == "" {
		t.Errorf("n3 left before another one was there: %+v", n.Park)
	}
}
