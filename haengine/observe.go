package haengine

import (
	"slices"
	"strings"
	"time"
)

// This file takes what agents, the storage and the appliance itself say about an
// application or a node; what follows from it is decided in step.go.

// current gives the application for changing its soft state, when the word is
// about its live grant.
func (w *work) current(app, node, boot string, e Epoch) *AppState {
	a := w.apps.get(app)
	if a == nil || a.Grant == nil || a.Grant.Node != node || a.Grant.Epoch != e || a.Grant.BootID != boot || boot == "" {
		return nil
	}
	w.touch(app)
	return a
}

func (w *work) reported(e AgentReport) {
	a := w.current(e.App, e.Node, e.BootID, e.Epoch)
	if a == nil {
		return
	}
	f := w.soft(a)
	what := e.Resource
	if what == "" {
		what = "the service group"
	}
	switch e.State {
	case ResourceOnline:
		if w.r.failuresStay {
			return
		}
		if delete(f.Failing, e.Resource); e.Resource == "" {
			f.Failing = nil
		}
		if len(f.Failing) == 0 && !f.Restarting.IsZero() {
			f.restarted()
		}
		return
	case ResourceRestart:
		if f.Restarting.IsZero() {
			f.Restarting = w.now
		}
	case ResourceFailed:
		if f.Restarting.IsZero() {
			f.Restarting = w.now
		}
		if f.Failing == nil {
			f.Failing = map[string]string{}
		}
		f.Failing[e.Resource] = what + " failed: " + e.Why
		if e.Exhausted {
			f.Conclusive = what + " failed and its local restarts are spent: " + e.Why
		}
	}
	w.say(a, e.Node, "agent: %s %s: %s", what, e.State, e.Why)
}

func (w *work) session(e StorageSession) {
	a := w.apps.get(e.App)
	if a == nil {
		return
	}
	if a.Grant != nil && a.Grant.Epoch == e.Epoch {
		f := w.soft(a)
		f.SessionOpen = e.Open
		if !e.Open {
			f.SessionEnd = w.now
		}
		w.touch(e.App)
		return
	}
	if e.Open && e.Epoch < a.Revoked { // the target let a revoked epoch in
		a = w.apps.edit(e.App)
		a.Revoked = 0
		w.voidAll(a, "a session of epoch "+itoa(e.Epoch)+" is open", EvidenceStorage, EvidenceRelease)
		w.touch(e.App)
	}
}

// answered takes the word that somebody has the service address.
func (w *work) answered(app, by string) {
	a := w.apps.get(app)
	if a == nil || a.Grant == nil || a.Grant.Claimed {
		return
	}
	f := w.soft(a)
	f.Address, f.AddressAt = AddressProbe{By: by}, w.now
	w.voidAll(w.apps.edit(app), "the service address answers at "+by, EvidencePower, EvidencePerson, EvidenceStorage, EvidenceRelease)
	for _, k := range w.nodes.keys() { // a node that is taken for free has it: what runs there has no agent that could say so
		if n := w.nodes.get(k); slices.Contains(n.Spec.MACs, strings.ToLower(by)) && (n.Phase == NodeIdle || n.Phase == NodeQuarantined) {
			w.suspectNode(k, "it answers on the service address of "+app+" without right")
		}
	}
	w.touch(app)
}

func (w *work) selfHealth(e SelfHealth) {
	f := &w.s.Soft
	if f.Isolated == e.Isolated {
		return
	}
	f.Isolated, f.IsolatedWhy = e.Isolated, e.Why
	if e.Isolated {
		w.say(nil, "", "the appliance is cut off: %s: it observes only", e.Why)
	} else {
		w.say(nil, "", "the appliance is connected again")
		w.quiet()
	}
	w.all = true
}

// quiet begins a time in which only conclusive proofs count, and forgets the
// samples that were gathered by a blind appliance.
func (w *work) quiet() {
	w.s.Soft.QuietUntil = w.now.At.Add(w.s.Durable.Site.WithDefaults().Grace.D())
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		if live(a) {
			f := w.soft(a)
			f.Checks, f.Suspected = map[string]*Check{}, Stamp{}
			if !f.Heartbeat.IsZero() {
				f.Heartbeat = w.now
			}
		}
	}
}

// readIdle has the BMCs of nodes that carry nothing read now and then, so that
// placement knows which answer.
func (w *work) readIdle() {
	every := w.s.Durable.Site.WithDefaults().PowerEvery.D()
	for _, k := range w.nodes.keys() {
		if p := w.nodes.get(k).Phase; p != NodeOwned && p != NodeMaintenance {
			w.readPower("", k, every)
		}
	}
}

// settledOff says whether a reading of off is not one of the time before the
// power-on of a machine that was claimed with it.
func (w *work) settledOff(g *Grant, n NodeSoft) bool {
	return g.Way.HasAgent() || !g.BootDone.IsZero() && n.PowerAt.Sub(g.BootDone) > settleOff
}

// unheard is the time since the boot of a claimed grant was heard, whatever it said.
func (w *work) unheard(g *Grant) time.Duration {
	at, n := max(g.ClaimedAt.At, w.s.Soft.RestartedAt), w.node(g.Node)
	if n.HeardBoot == g.BootID {
		at = max(at, n.Heard.At)
	}
	return w.now.At.Sub(at)
}
