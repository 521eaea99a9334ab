package haengine_test

import (
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
)

// slotted has orders running on n1, which may start from a slot, and n2 in standby.
func slotted(t *testing.T, copies ...haengine.LocalCopy) *bench {
	t.Helper()
	return ready(t, "5.10", haengine.NodeFacts{Kexec: true, Disk: true}, func(a *haengine.Application) {
		a.Policy.Ways = []haengine.Way{haengine.WaySlot, haengine.WayColdISCSI}
	}, append([]haengine.LocalCopy{}, copies...)...)
}

// A parked node gets the image that it may have to start, before it has to, and a
// claim then starts it.
func TestAParkedNodeGetsItsImageAhead(t *testing.T) {
	b := slotted(t)
	b.pass(2*time.Second, b.hears("n2"))
	if n := b.count("install", "n2"); n != 1 {
		t.Fatalf("%d installations were ordered", n)
	}
	c := b.s.Durable.Nodes["n2"].Copies
	if len(c) != 1 || c[0].App != "orders" || c[0].State != haengine.CopyReady || c[0].Epoch != 0 {
		t.Fatalf("the node's copies: %+v", c)
	}
	if w := choice(b, "n2", haengine.WaySlot); !w.OK || !w.Parked {
		t.Errorf("the copy is not a way: %+v", w)
	}
	b.pass(5*time.Minute, b.hears("n2"))
	if n := b.count("install", "n2"); n != 1 {
		t.Errorf("it was installed %d times", n)
	}
	b.event(image(func(f *haengine.ImageFacts) { f.Image = "orders:8" }))
	b.pass(2*time.Second, b.hears("n2"))
	if n := b.count("install", "n2"); n != 2 {
		t.Errorf("the next version was not installed: %d", n)
	}
}

// What is on the disk already, and what the policy does not list, is not written.
func TestNothingIsInstalledAheadWithoutNeed(t *testing.T) {
	b := slotted(t, haengine.LocalCopy{App: "orders", Image: "orders:7", Disk: "wwn-1", Slot: "A", State: haengine.CopyReady})
	b.pass(time.Minute, b.hears("n2"))
	if n := b.count("install", "n2"); n != 0 {
		t.Errorf("installed %d times over a copy that is there", n)
	}
	b = ready(t, "5.10", haengine.NodeFacts{Kexec: true, Disk: true}, nil)
	b.pass(time.Minute, b.hears("n2"))
	if n := b.count("install", "n2"); n != 0 {
		t.Errorf("installed %d times though no policy lists slots", n)
	}
	b = ready(t, "5.10", haengine.NodeFacts{Kexec: true, NoDisk: "two disks fit"}, func(a *haengine.Application) {
		a.Policy.Ways = []haengine.Way{haengine.WaySlot, haengine.WayColdISCSI}
	})
	b.pass(time.Minute, b.hears("n2"))
	if n := b.count("install", "n2"); n != 0 {
		t.Errorf("installed %d times without a disk", n)
	}
}

// A failover does not wait for an installation that is for later: it is withdrawn,
// and what it says afterwards counts for nothing.
func TestAClaimComesBeforeAnInstallation(t *testing.T) {
	b := newBench(t, 2)
	b.keep["install"] = true
	b.event(image(nil))
	b.up(app(func(a *haengine.Application) {
		a.Policy.Ways = []haengine.Way{haengine.WaySlot, haengine.WayStandbySwitch, haengine.WayColdISCSI}
	}))
	b.event(standby(1))
	b.pass(10*time.Second, b.good)
	b.parkOn("n2", "6.1-orders", haengine.NodeFacts{Kexec: true, Disk: true}, []haengine.LocalCopy{}...)
	b.pass(2*time.Second, b.hears("n2"))
	if n := b.count("install", "n2"); n != 1 {
		t.Fatalf("%d installations were ordered", n)
	}
	b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann"})
	b.pass(5*time.Second, b.hears("n2"))
	if c := b.claimed(); c.Node != "n2" || c.Way != haengine.WayStandbySwitch {
		t.Fatalf("claimed %+v", c)
	}
	for _, a := range b.all {
		if a.Kind() == "install" {
			b.answer(a)
		}
	}
	if c := b.s.Durable.Nodes["n2"].Copies; len(c) != 0 {
		t.Errorf("a withdrawn installation left %+v", c)
	}
}

// An installation that fails is told, and not tried again at once.
func TestAnInstallationAheadThatFailsRests(t *testing.T) {
	b := newBench(t, 2)
	b.event(image(nil))
	b.fail["install n2"] = haengine.Failed{Code: hotspare.CodeDiskChoice, Why: "two disks fit"}
	b.up(app(func(a *haengine.Application) { a.Policy.Ways = []haengine.Way{haengine.WaySlot, haengine.WayColdISCSI} }))
	b.event(standby(1))
	b.pass(10*time.Second, b.good)
	b.parkOn("n2", "5.10", haengine.NodeFacts{Kexec: true, Disk: true})
	b.pass(5*time.Minute, b.hears("n2"))
	if n := b.count("install", "n2"); n != 1 {
		t.Errorf("%d tries in five minutes", n)
	}
	if p := b.s.Durable.Nodes["n2"].Park; p == nil || p.Refused == "" {
		t.Errorf("nobody is told: %+v", p)
	}
	delete(b.fail, "install n2")
	b.pass(6*time.Minute, b.hears("n2"))
	if n := b.count("install", "n2"); n != 2 {
		t.Errorf("%d tries after the rest", n)
	}
}
