package sim

import (
	"fmt"
	"testing"
	"time"

	"hotspare/haengine"
)

// ending is what a failover comes to: the same with and without crashes (L3).
type ending struct {
	node   string
	epoch  haengine.Epoch
	claims int
	boots  int
	lost   bool
}

// powerCut runs one application, cuts its node's power, and lets the appliance
// die at a step: spoil prepares that death.
func powerCut(t *testing.T, standby haengine.Standby, spoil func(s *Sim)) (ending, *Sim) {
	t.Helper()
	s := newSim(Config{Seed: 3, Nodes: 3, Apps: 1})
	s.w.standby, s.w.facts = standby, standby.Nodes > 0
	s.w.begin()
	running := func() bool {
		return s.up() && s.machine.State().Durable.Apps["orders"].Phase == haengine.PhaseRunning
	}
	s.runUntil(2*time.Minute, running)
	if !running() {
		t.Fatal("the application did not start")
	}
	first := s.machine.State().Durable.Apps["orders"].Grant.Node
	s.runUntil(s.now+30*time.Second, nil) // until standby is as the policy wants it
	spoil(s)
	old := s.w.node(first)
	old.lostPower = true
	s.w.setPower(old, false)
	s.runUntil(s.now+20*time.Second, func() bool { return !running() && s.up() })
	s.runUntil(s.now+5*time.Minute, func() bool { return running() && s.machine.State().Durable.Apps["orders"].Grant.Node != first })
	s.runUntil(s.now+10*time.Second, nil)
	s.runUntil(s.now+30*time.Second, running) // it may have died on its last write
	for _, v := range s.violations {
		t.Error(v)
	}
	if !running() {
		t.Fatalf("not running in the end: %s", s.stands())
	}
	g := s.machine.State().Durable.Apps["orders"].Grant
	n := s.w.node(g.Node)
	return ending{node: g.Node, epoch: g.Epoch, claims: s.counts["claim"], boots: n.boots, lost: !n.serves("orders")}, s
}

// TestCrashAtEveryStep is L3: the appliance dies at each write of its journal
// (with the record on disk and without), and between each write and its first
// effect. The outcome is that of a run without a crash: same node, same epoch,
// the node booted once.
func TestCrashAtEveryStep(t *testing.T) {
	for _, c := range []struct {
		way     haengine.Way
		standby haengine.Standby
	}{
		{haengine.WayColdISCSI, haengine.Standby{}},
		{haengine.WayStandbySwitch, haengine.Standby{Nodes: 1}},
		{haengine.WayStandbyKexec, haengine.Standby{Nodes: 1, Kernel: haengine.KernelOfAppliance}},
	} {
		t.Run(string(c.way), func(t *testing.T) { crashAtEveryStep(t, c.way, c.standby) })
	}
}

func crashAtEveryStep(t *testing.T, way haengine.Way, standby haengine.Standby) {
	want, plain := powerCut(t, standby, func(*Sim) {})
	if g := plain.machine.State().Durable.Apps["orders"].Grant; want.lost || want.epoch != 2 || g.Way != way {
		t.Fatalf("without a crash: %+v, %s", want, g.Way)
	}
	begin := 0
	powerCut(t, standby, func(s *Sim) { begin = s.journal.saves })
	writes := plain.journal.saves - begin
	if writes < 12 {
		t.Fatalf("a failover has %d writes of the journal only", writes)
	}
	crash := func(name string, spoil func(*Sim)) {
		t.Run(name, func(t *testing.T) {
			got, s := powerCut(t, standby, spoil)
			if s.counts["appliance crash"] == 0 {
				t.Fatal("the appliance did not die")
			}
			if got.node != want.node || got.epoch != want.epoch || got.boots != want.boots || got.lost {
				t.Errorf("got %+v, without a crash %+v", got, want)
			}
		})
	}
	for k := 1; k <= writes; k++ {
		for _, keep := range []bool{true, false} {
			crash(fmt.Sprintf("write %d, on disk %v", k, keep), func(s *Sim) {
				s.journal.failAt, s.journal.keep = s.journal.saves+k, keep
			})
		}
	}
	for k := 1; k <= 8; k++ {
		crash(fmt.Sprintf("before the effects of step %d", k), func(s *Sim) { s.w.crashBeforeActing = k })
	}
}
