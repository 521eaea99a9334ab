package sim

import (
	"fmt"
	"time"

	"hotspare/haengine"
)

// This file ends the faults, looks after what a person has to, and says where
// things stand.

// healAll ends what no fault's own healing ends.
func (w *world) healAll() {
	s := w.s
	w.isolated, w.slow, w.flaky, w.crashBeforeActing, w.noRevoke = false, 0, 0, 0, false
	s.journal.failAt = 0
	for _, n := range w.nodes {
		n.cut, n.pathCut, n.noHB, n.noAck, n.noBoot, n.badApp, n.badExit = false, false, false, false, false, false, false
		n.late, n.noKexec = 0, false
		n.bmcDead, n.bmcLies, n.bmcRefuse, n.bmcLag, n.lostPower, n.shared = false, false, false, 0, false, false
		if n.powered && n.mode == "booting" { // a boot that could not succeed begins again
			w.reboot(n)
		}
	}
	for _, a := range w.apps {
		a.probe = false
	}
	w.linkFixed, w.healed = s.now, s.now
	if !s.up() {
		s.start()
	}
	s.submit(haengine.SelfHealth{})
	scopes := []haengine.Scope{{}, {Pool: "rack1"}}
	for _, a := range w.apps {
		scopes = append(scopes, haengine.Scope{App: a.spec.Name})
	}
	for _, f := range scopes {
		s.submit(haengine.FreezeLifted{Scope: f, By: "ann"})
	}
	s.submit(haengine.PoolApplied{Pool: w.pool()}) // one that was applied while the journal failed was refused
}

// release1 is the operator who looks after quarantined nodes and held
// applications.
func (w *world) release1() {
	if !w.s.up() {
		return
	}
	st := w.s.machine.State()
	for _, a := range w.apps {
		x := st.Durable.Apps[a.spec.Name]
		if w.onlyPerson(x) {
			w.s.submit(haengine.FailoverRequested{App: a.spec.Name, By: "ann"})
		}
		if x.Hold != nil && (x.Hold.Rule == "S6" || x.Hold.Rule == "S11") && w.s.now-w.healed > time.Minute {
			w.s.submit(haengine.FailoverRequested{App: a.spec.Name, By: "ann"}) // what the notice asks for
		}
	}
	for _, n := range w.nodes {
		if x := st.Durable.Nodes[n.name]; x != nil && x.Phase == haengine.NodeQuarantined {
			w.s.submit(haengine.Unquarantine{Node: n.name, By: "ann"})
		}
	}
}

func (w *world) probeFixed(a *app) time.Duration { return w.fixed(w.probeAt, a.spec.Name) }
func (w *world) hbFixed(n *node) time.Duration   { return w.fixed(w.hbAt, n.name) }

func (w *world) fixed(m map[string]time.Duration, k string) time.Duration {
	if at, ok := m[k]; ok {
		return at
	}
	return -time.Hour
}

// stands says where the applications stand, for messages.
func (s *Sim) stands() string {
	if !s.up() {
		return "the appliance is down"
	}
	text := ""
	st := s.machine.State()
	for _, a := range s.w.apps {
		x := st.Durable.Apps[a.spec.Name]
		text += fmt.Sprintf("%s is %s (%s) ", a.spec.Name, x.Phase, x.Reason)
	}
	for _, n := range s.w.nodes {
		x := st.Durable.Nodes[n.name]
		text += fmt.Sprintf("%s %s turn %d ", n.name, x.Phase, x.Turn)
		if x.Park != nil || x.ParkWhy != "" {
			text += fmt.Sprintf("(standby %+v, %s; in truth %q boot %s) ", x.Park, x.ParkWhy, n.mode, n.boot)
		}
	}
	for _, p := range st.Durable.Pending {
		h := p.Action.Head()
		text += fmt.Sprintf("[%s#%d %s %s tries %d waiting %v withdrawn %v] ", p.Action.Kind(), h.ID, h.App, h.Node, p.Tries, p.Waiting, p.Withdrawn)
	}
	return text
}
