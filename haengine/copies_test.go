package haengine_test

import (
	"testing"
	"time"

	"hotspare/haengine"
)

// A node is handed back to its firmware only when its disks are known to hold
// nothing of an application, or for a grant that starts from there (S2a).
func TestLocalBootIsADecision(t *testing.T) {
	one := []haengine.LocalCopy{{App: "orders", Image: "orders:7", State: haengine.CopyDisabled}}
	for _, c := range []struct {
		name string
		do   func(b *bench)
		node string
		want string // rule
	}{
		{"unknown", func(*bench) {}, "n9", "unknown-node"},
		{"never seen", func(*bench) {}, "n1", "not-listed"},
		{"nothing on it", func(b *bench) {
			b.event(haengine.Discovered{Node: "n1", BootID: "x", Copies: []haengine.LocalCopy{}})
		}, "n1", "no-copy"},
		{"a copy", func(b *bench) { b.event(haengine.Discovered{Node: "n1", BootID: "x", Copies: one}) }, "n1", "local-copy"},
		{"nothing said", func(b *bench) {
			b.event(haengine.Discovered{Node: "n1", BootID: "x", Copies: one})
			b.event(haengine.Discovered{Node: "n1", BootID: "y"})
		}, "n1", "local-copy"},
		{"quarantined", func(b *bench) {
			b.event(haengine.Discovered{Node: "n1", BootID: "x", Copies: []haengine.LocalCopy{}})
			b.event(haengine.Quarantine{Node: "n1", Reason: "x"})
		}, "n1", "not-released"},
		{"carries from volumes", func(b *bench) { b.up(app(nil)) }, "n1", "other-way"},
		{"fenced", func(b *bench) {
			b.up(app(nil))
			b.keep["power-off n1"] = true
			b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann"})
			b.pass(5*time.Second, nil)
		}, "n1", "not-released"},
		{"on its way to standby", func(b *bench) {
			b.event(standby(1))
			b.pass(10*time.Second, nil)
		}, "n1", "standby"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, 2)
			b.perform()
			c.do(b)
			ok, why := haengine.LocalBoot(b.s, c.node)
			if why.Rule != c.want || ok != (c.want == "no-copy") {
				t.Errorf("%v: %s (%s), want %s", ok, why.Rule, why.Text, c.want)
			}
		})
	}
}

// What a grant writes is known before the first byte, and when it does not come up
// nothing starts from it again.
func TestACopyIsKnownBeforeItIsWritten(t *testing.T) {
	b := newBench(t, 2)
	b.event(image(nil))
	b.perform()
	b.keep["install"] = true
	b.event(haengine.AppApplied{Application: app(func(a *haengine.Application) { a.Policy.Ways = []haengine.Way{haengine.WayInstall} })})
	b.pass(3*time.Second, nil)
	b.join()
	b.pass(time.Second, b.beat)
	if n := b.s.Durable.Nodes["n1"]; len(n.Copies) != 1 || n.Copies[0].State != haengine.CopyWriting || n.Copies[0].Image != "orders:7" {
		t.Fatalf("while it is written: %+v", n.Copies)
	}
	if b.count("claim", "") != 0 {
		t.Error("claimed before it was written")
	}
	for _, a := range b.all {
		if a.Kind() == "install" {
			b.answer(a)
		}
	}
	b.perform()
	if c := b.claimed(); c.Copy == nil || c.Copy.Disk != "wwn-1" || c.Way != haengine.WayInstall {
		t.Fatalf("claimed %+v", c)
	}
	b.event(haengine.Dropped{Node: "n1", BootID: "n1-boot1", App: "orders", Epoch: 1, Why: "the root cannot be mounted"})
	b.pass(2*time.Second, nil)
	if n := b.s.Durable.Nodes["n1"]; len(n.Copies) != 1 || n.Copies[0].State != haengine.CopyFailed {
		t.Errorf("after it did not come up: %+v", n.Copies)
	}
}

// The sight of another boot is no evidence about an installed copy before that was
// disabled, and the revoked storage never is (S2.2, S2.3).
func TestEvidenceAboutAnInstalledCopy(t *testing.T) {
	b := newBench(t, 2)
	b.event(image(nil))
	b.perform()
	b.event(haengine.AppApplied{Application: app(func(a *haengine.Application) { a.Policy.Ways = []haengine.Way{haengine.WayInstall} })})
	b.pass(3*time.Second, nil)
	b.join()
	b.pass(20*time.Second, b.good)
	if p := b.app().Phase; p != haengine.PhaseRunning {
		t.Fatalf("orders is %s", p)
	}
	b.fail["power-off n1"] = haengine.Failed{Why: "no answer"}
	b.keep["disable-copies"] = true
	b.event(haengine.Dropped{Node: "n1", BootID: "n1-boot1", App: "orders", Epoch: 1, Why: "exit status 1"})
	b.pass(3*time.Minute, nil) // long after every lease
	old := func() *haengine.Exclusion { return b.app().Old[0].Exclusion }
	if old().Proof != nil {
		t.Fatalf("excluded by %+v", old().Proof)
	}
	b.event(haengine.Discovered{Node: "n1", BootID: "n1-boot9", Copies: []haengine.LocalCopy{{App: "orders", Image: "orders:7", Disk: "wwn-1", State: haengine.CopyStarted}}})
	b.pass(5*time.Second, nil)
	if old().Proof != nil {
		t.Fatalf("excluded by %+v while the copy can start", old().Proof)
	}
	for _, a := range b.all {
		if a.Kind() == "disable-copies" {
			b.answer(a)
		}
	}
	if p := old().Proof; p == nil || p.Kind != haengine.EvidenceIdentity {
		t.Errorf("after it was disabled: %+v", p)
	}
}

// The attested release of a node that needs no volume is its own word alone: no
// log-out can be seen. It is fenced first (S2.6).
func TestAReleaseOfALocalWayIsNoEvidence(t *testing.T) {
	b := newBench(t, 2)
	b.event(image(nil))
	b.up(app(func(a *haengine.Application) { a.Policy.Ways = []haengine.Way{haengine.WayRAM} }))
	b.keep["power-off n1"] = true
	b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann"})
	b.pass(30*time.Second, nil)
	x := b.app().Old[0].Exclusion
	if !x.Released || x.Proof != nil || b.app().Grant.Attached {
		t.Fatalf("after the attested release: %+v, attached %v", x, b.app().Grant.Attached)
	}
	delete(b.keep, "power-off n1")
	for _, a := range b.all {
		if a.Kind() == "power-off" && a.Head().Node == "n1" {
			b.answer(a)
		}
	}
	if p := b.app().Old[0].Exclusion.Proof; p == nil || p.Kind != haengine.EvidencePower {
		t.Errorf("after the power fence: %+v", p)
	}
}

// A node without an agent that its BMC took for off is found out when it answers on
// the service address: it is fenced, although it was taken for free.
func TestWhoAnswersOnTheAddressIsFenced(t *testing.T) {
	b := newBench(t, 0)
	for i, name := range []string{"n1", "n2"} {
		b.pow[name] = haengine.PowerIsOff
		b.event(haengine.NodeApplied{Node: node(name, func(n *haengine.Node) { n.MACs = []string{"52:54:00:77:00:0" + string(rune('1'+i))} })})
	}
	b.perform()
	b.keep["probe-address"] = true
	b.event(haengine.AppApplied{Application: app(nil)})
	b.pass(3*time.Second, nil)
	before := b.count("power-off", "n2")
	b.keep["power-off n2"] = true
	b.event(haengine.AddressAnswered{App: "orders", By: "52:54:00:77:00:02"})
	if n := b.s.Durable.Nodes["n2"]; n.Phase != haengine.NodeFencing || b.count("power-off", "n2") != before+1 {
		t.Errorf("n2 is %s: %s", n.Phase, n.Reason)
	}
}

// A slot stays as it was installed, so it is startable again; a whole disk that ran is
// not taken from the disk's own word.
func TestWhatMayBeStartedAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		copy haengine.LocalCopy
		ok   bool
	}{
		{"a slot", haengine.LocalCopy{App: "orders", Image: "orders:7", Disk: "wwn-1", Slot: "A", State: haengine.CopyReady}, true},
		{"a whole disk", haengine.LocalCopy{App: "orders", Image: "orders:7", Disk: "wwn-1", State: haengine.CopyReady}, true},
		{"a whole disk that ran, as it says", haengine.LocalCopy{App: "orders", Image: "orders:7", Disk: "wwn-1", State: haengine.CopyStarted}, false},
	} {
		b := newBench(t, 2)
		b.keep["install"], b.keep["disable-copies"] = true, true
		readyOn(b, "6.1-orders", haengine.NodeFacts{Kexec: true, Disk: true}, func(a *haengine.Application) {
			a.Policy.Ways = []haengine.Way{haengine.WayColdISCSI, haengine.WaySlot}
		}, c.copy)
		if got := choice(b, "n2", haengine.WaySlot); got.OK != c.ok {
			t.Errorf("%s: %v: %s", c.name, got.OK, got.Text)
			continue
		}
		if !c.ok {
			continue
		}
		b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann", Way: haengine.WaySlot})
		b.pass(10*time.Second, b.hears("n2"))
		if x := b.claimed(); x.Way != haengine.WaySlot || x.Copy == nil || x.Copy.Slot != c.copy.Slot {
			t.Fatalf("%s: claimed %+v", c.name, x)
		}
		want := haengine.CopyReady
		if c.copy.Slot == "" {
			want = haengine.CopyStarted
		}
		if got := b.s.Durable.Nodes["n2"].Copies; len(got) != 1 || got[0].State != want || got[0].Epoch != b.app().Grant.Epoch {
			t.Errorf("%s: after its start %+v", c.name, got)
		}
	}
}

// Nobody is sent to a disk that holds what others may have to start.
func TestAFullDiskTakesNoInstallation(t *testing.T) {
	web := func(slot string) haengine.LocalCopy {
		return haengine.LocalCopy{App: "web", Image: "web:1", Disk: "wwn-1", Slot: slot, State: haengine.CopyReady}
	}
	for _, c := range []struct {
		name   string
		disk   haengine.LocalDisk
		copies []haengine.LocalCopy
		ok     bool
	}{
		{"a whole disk with another's copy", haengine.LocalDisk{Serial: "d"}, []haengine.LocalCopy{web("")}, false},
		{"... that may be overwritten", haengine.LocalDisk{Serial: "d", Overwrite: true}, []haengine.LocalCopy{web("")}, true},
		{"a free slot", haengine.LocalDisk{Serial: "d", Slots: 2, SlotGiB: 1}, []haengine.LocalCopy{web("A")}, true},
		{"no free slot", haengine.LocalDisk{Serial: "d", Slots: 2, SlotGiB: 1}, []haengine.LocalCopy{web("A"), web("B")}, false},
	} {
		b := newBench(t, 2)
		b.event(image(nil))
		b.up(app(func(a *haengine.Application) {
			a.Policy.Ways = []haengine.Way{haengine.WayColdISCSI, haengine.WayInstall}
		}))
		b.event(haengine.NodeApplied{Node: node("n2", func(n *haengine.Node) { n.MACs = b.s.Durable.Nodes["n2"].Spec.MACs; n.Disk = &c.disk })})
		b.event(standby(1))
		b.pass(10*time.Second, b.good)
		b.parkOn("n2", "6.1-orders", haengine.NodeFacts{Kexec: true, Disk: true}, c.copies...)
		b.pass(2*time.Second, b.hears("n2"))
		if got := choice(b, "n2", haengine.WayInstall); got.OK != c.ok {
			t.Errorf("%s: %v: %s", c.name, got.OK, got.Text)
		}
	}
}

// What is on disks for an application that was removed is nobody's: it is disabled,
// and its place is free.
func TestCopiesOfARemovedApplicationAreFreed(t *testing.T) {
	b := slotted(t)
	b.pass(2*time.Second, b.hears("n2"))
	b.event(haengine.AppDeleted{Name: "orders", By: "ann"})
	b.pass(30*time.Second, func() { b.event(haengine.Heartbeat{Node: "n2", BootID: "n2-parked"}) })
	if b.app() != nil {
		t.Fatalf("orders is %s", b.app().Phase)
	}
	if c := b.s.Durable.Nodes["n2"].Copies; len(c) != 1 || c[0].State != haengine.CopyDisabled {
		t.Errorf("its copies: %+v", c)
	}
}

// The holder of an epoch of which nothing is known is taken for the way that is the
// hardest to exclude among those that were possible.
func TestAnUnknownHolderOfAnImageInMemory(t *testing.T) {
	for way, storage := range map[haengine.Way]bool{haengine.WayRAM: false, haengine.WayColdISCSI: true} {
		b := newBench(t, 2)
		b.event(image(func(f *haengine.ImageFacts) { f.Ways = []haengine.Way{way} }))
		b.up(app(nil))
		if got := b.app().Grant.Way; got != way {
			t.Fatalf("started as %s", got)
		}
		b.fail["power-off n1"] = haengine.Failed{Why: "no answer"}
		b.event(haengine.EpochFloor{App: "orders", Epoch: 9})
		b.pass(3*time.Minute, nil)
		for _, g := range b.app().Old {
			if g.Epoch == 9 && (g.Exclusion.Proof != nil && g.Exclusion.Proof.Kind == haengine.EvidenceStorage) != storage {
				t.Errorf("%s: storage evidence about an unknown holder: %+v", way, g.Exclusion.Proof)
			}
		}
	}
}
