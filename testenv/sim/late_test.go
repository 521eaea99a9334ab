package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"hotspare/haengine"
)

// lateRun starts an application in one way on a node where everything arrives
// late, lets it fall back to another way, and goes on until long after the first
// one woke.
type lateRun struct{ *Sim }

func newLateRun(first, then haengine.Way, nodes int, bmcDead bool) *lateRun {
	r := &lateRun{newSim(Config{Seed: uint64(len(first))*7 + uint64(len(then)), Nodes: nodes, Apps: 1})}
	w := &r.w
	w.facts, w.standby = true, haengine.Standby{Nodes: max(1, nodes-1), Kernel: "orders"}
	p := &w.apps[0].spec.Policy
	p.BootDeadline, p.OnlineDeadline, p.Lease, p.RetryAfter = dur(25*time.Second), dur(25*time.Second), dur(5*time.Second), dur(10*time.Second)
	p.MaxAttempts = 100
	spec := w.apps[0].spec
	w.apps = nil // declared when the nodes are in standby
	w.begin()
	w.apps = []*app{{spec: spec, grants: map[haengine.Epoch]string{}}}
	r.every(100*time.Millisecond, time.Second, func() { w.sample(w.apps[0]) })
	for _, n := range w.nodes {
		w.installedAhead(n, spec, "A", "B")
		r.submit(haengine.Discovered{Node: n.name, BootID: n.name + "-boot0", Facts: n.facts(), Copies: n.onDisk()})
	}
	w.tellImage(w.apps[0])
	r.runUntil(2*time.Minute, func() bool {
		waiting := 0
		for _, n := range w.nodes {
			if n.mode == "standby" {
				waiting++
			}
		}
		return waiting == w.standby.Nodes
	})
	for _, n := range w.nodes {
		n.late = 150 * time.Second
	}
	r.declare(first)
	r.runUntil(r.now+time.Minute, func() bool { g := r.grant(); return g != nil && (!g.BootDone.IsZero() || g.Claimed && g.Direct) })
	if g := r.grant(); g != nil {
		r.w.node(g.Node).bmcDead = bmcDead
	}
	r.runUntil(r.now+2*time.Second, nil) // it is under way
	return r
}

// declare applies the application with one way allowed.
func (r *lateRun) declare(way haengine.Way) {
	a := r.w.apps[0]
	a.spec.Policy.Ways = []haengine.Way{way}
	r.submit(haengine.AppApplied{Application: a.spec})
}

func (r *lateRun) grant() *haengine.Grant {
	if a := r.machine.State().Durable.Apps["orders"]; a != nil {
		return a.Grant
	}
	return nil
}

// TestAWayThatWakesLate is the promise that a way that wakes after its fall-back
// was granted changes nothing: for each pair of ways, with the old node's BMC dead
// (so that it stays on, and does wake) and on a single node that is chosen anew.
func TestAWayThatWakesLate(t *testing.T) {
	woke := map[haengine.Way]int{}
	for _, first := range haengine.Ways() {
		for _, then := range haengine.Ways() {
			for _, c := range []struct {
				name    string
				nodes   int
				bmcDead bool
			}{{"elsewhere, the old node stays on", 3, true}, {"elsewhere", 3, false}, {"on the same node", 1, false}} {
				t.Run(fmt.Sprintf("%s then %s %s", first, then, c.name), func(t *testing.T) {
					if lateWay(t, first, then, c.nodes, c.bmcDead) {
						woke[first]++
					}
				})
			}
		}
	}
	for _, first := range []haengine.Way{haengine.WayStandbySwitch, haengine.WayStandbyKexec, haengine.WayColdISCSI} {
		if woke[first] < 4 {
			t.Errorf("%s woke late after its fall-back %d times only", first, woke[first])
		}
	}
}

// lateWay runs one pair and says whether the late way woke while its fall-back was
// granted or running.
func lateWay(t *testing.T, first, then haengine.Way, nodes int, bmcDead bool) bool {
	t.Helper()
	r := newLateRun(first, then, nodes, bmcDead)
	g := r.grant()
	if g == nil || g.Way != first || r.counts["late boot"]+r.counts["late claim"] == 0 {
		t.Fatalf("%s did not begin: %+v, %s", first, g, r.stands())
	}
	old := *g
	r.declare(then)
	mend := r.now + 100*time.Second
	woke := false
	end := r.now + 8*time.Minute
	var served time.Duration
	for r.now < end && len(r.violations) == 0 {
		r.runUntil(r.now+500*time.Millisecond, nil)
		if r.now >= mend && !old.Way.NeedsVolume() || r.now >= mend+3*time.Minute { // without the BMC it is blocked, and stays so
			r.w.node(old.Node).bmcDead = false
		}
		n, now := r.w.node(old.Node), r.grant()
		later := now != nil && now.Epoch > old.Epoch
		if later { // what is ordered from now on is in time
			for _, n := range r.w.nodes {
				n.late = 0
			}
		}
		if later && (n.token == (grantKey{"orders", old.Epoch}) && n.speaks() || n.inst != nil && n.inst.key.epoch == old.Epoch) {
			woke = true
		}
		if a := r.machine.State().Durable.Apps["orders"]; later && a.Phase == haengine.PhaseRunning && served == 0 {
			served = r.now
		}
		r.w.release1()
		if served != 0 && r.now-served > 3*time.Minute {
			break
		}
	}
	for _, v := range r.violations {
		t.Error(v)
	}
	a := r.machine.State().Durable.Apps["orders"]
	if a.Phase != haengine.PhaseRunning || a.Grant.Way != then || a.Grant.Epoch <= old.Epoch || !r.w.node(a.Grant.Node).serves("orders") {
		t.Fatalf("in the end: %s", r.stands())
	}
	if i := slices.IndexFunc(r.w.nodes, func(n *node) bool { return n.name != a.Grant.Node && n.serves("orders") }); i >= 0 {
		t.Errorf("%s serves it, too", r.w.nodes[i].name)
	}
	return woke
}
