package haengine_test

import (
	"fmt"
	"testing"
	"time"

	"hotspare/haengine"
)

// bench steps the engine with a hand-made world: perform answers every action as
// a sound world would, but those that a test keeps or fails.
type bench struct {
	*engine
	t    *testing.T
	out  []haengine.Action
	keep map[string]bool                // "kind" or "kind node": never answered
	fail map[string]haengine.Failed     // "kind" or "kind node": how each try fails
	pow  map[string]haengine.PowerState // what the BMCs say
	all  []haengine.Action              // everything that was given out
}

// newBench has n nodes that are off, n1 to n4 in the pool rack1.
func newBench(t *testing.T, n int) *bench {
	t.Helper()
	b := &bench{
		engine: newEngine(), t: t, keep: map[string]bool{}, fail: map[string]haengine.Failed{}, pow: map[string]haengine.PowerState{},
	}
	for i := range n {
		name := fmt.Sprintf("n%d", i+1)
		b.pow[name] = haengine.PowerIsOff
		b.event(haengine.NodeApplied{Node: node(name, nil)})
	}
	return b
}

// event submits an event; the clock stays.
func (b *bench) event(e haengine.Event) {
	var actions []haengine.Action
	b.s, actions = haengine.Step(b.s, b.now, e)
	b.out, b.all = append(b.out, actions...), append(b.all, actions...)
}

// pass lets time go by in steps of a second, each with a tick, with each (if
// any) called after every second.
func (b *bench) pass(d time.Duration, each func()) {
	for end := b.now.At.Add(d); b.now.At < end; {
		b.now.At, b.now.Wall = b.now.At.Add(time.Second), b.now.Wall.Add(time.Second)
		b.event(haengine.Tick{})
		if each != nil {
			each()
		}
		b.perform()
	}
}

// perform answers what was given out.
func (b *bench) perform() {
	for i := 0; len(b.out) > 0; i++ {
		a := b.out[0]
		if i > 1000 {
			b.t.Fatalf("actions without end: %s %+v", a.Kind(), a.Head())
		}
		b.out = b.out[1:]
		h := a.Head()
		key, own := a.Kind(), a.Kind()+" "+h.Node
		if b.keep[key] || b.keep[own] {
			continue
		}
		f, bad := b.fail[own]
		if !bad {
			f, bad = b.fail[key]
		}
		if bad {
			f.ID = h.ID
			b.event(f)
			continue
		}
		b.answer(a)
	}
}

func (b *bench) answer(a haengine.Action) {
	h := a.Head()
	d := haengine.Done{ID: h.ID}
	switch a := a.(type) {
	case haengine.ReadPower:
		d.Read = &haengine.PowerReading{State: b.pow[h.Node]}
	case haengine.PowerOff:
		b.pow[h.Node] = haengine.PowerIsOff
		off := haengine.PowerReading{State: haengine.PowerIsOff}
		d.Power = &haengine.PowerEvidence{Reads: []haengine.PowerReading{off, off}}
	case haengine.Revoke:
		d.Revocation = &haengine.Revocation{Below: a.Below}
	case haengine.Boot, haengine.ParkNode:
		b.pow[h.Node] = haengine.PowerIsOn
	case haengine.Install:
		d.Copy = &haengine.LocalCopy{Disk: "wwn-1"}
	case haengine.ProbeAddress:
		d.Address = &haengine.AddressProbe{Silent: true}
	}
	b.event(d)
}

func (b *bench) app() *haengine.AppState { return b.s.Durable.Apps["orders"] }

// join lets the agent of the current grant come.
func (b *bench) join() {
	b.t.Helper()
	g := b.app().Grant
	if g == nil || !g.Booted {
		b.t.Fatalf("nothing boots: %s %s", b.app().Phase, b.app().Reason)
	}
	b.event(haengine.Joined{Node: g.Node, BootID: bootOf(g), App: "orders", Epoch: g.Epoch})
	b.perform()
}

func bootOf(g *haengine.Grant) string { return fmt.Sprintf("%s-boot%d", g.Node, g.Epoch) }

// beat is a heartbeat of the current grant's agent.
func (b *bench) beat() {
	if g := b.app().Grant; g != nil {
		b.event(haengine.Heartbeat{Node: g.Node, BootID: bootOf(g), App: "orders", Epoch: g.Epoch})
	}
}

// good is a second in which all is well.
func (b *bench) good() {
	b.beat()
	if g := b.app().Grant; g != nil {
		b.event(haengine.Sample{App: "orders", Monitor: "sql", From: haengine.FromAppliance, Epoch: g.Epoch, OK: true})
	}
}

// report is the agent's word about one resource.
func (b *bench) report(resource string, st haengine.ResourceState) {
	g := b.app().Grant
	b.event(haengine.AgentReport{Node: g.Node, BootID: bootOf(g), App: "orders", Epoch: g.Epoch, Resource: resource, State: st, Why: "exit status 1"})
}

// up brings orders up.
func (b *bench) up(a haengine.Application) {
	b.t.Helper()
	b.perform()
	b.event(haengine.AppApplied{Application: a})
	b.perform()
	b.pass(2*time.Second, nil)
	b.join()
	b.pass(20*time.Second, b.good)
	if p := b.app().Phase; p != haengine.PhaseRunning {
		b.t.Fatalf("orders is %s: %s", p, b.app().Reason)
	}
}

// incident says whether the administrator was told something under a prefix.
func (b *bench) incident(key string) bool { _, ok := b.s.Durable.Incidents[key]; return ok }

// count gives how many actions of a kind were given out for a node.
func (b *bench) count(kind, node string) int {
	n := 0
	for _, a := range b.all {
		if a.Kind() == kind && (node == "" || a.Head().Node == node) {
			n++
		}
	}
	return n
}
