package haengine

import (
	"maps"
	"time"

	"hotspare"
)

// This file holds every transition of the engine: apply is the switch over
// events, advance the switch over an application's phases, advanceNode the one
// over a node's. Other files weigh (detect, place, hold, fence) and keep books.

const (
	settleOff     = 5 * time.Second  // after a confirmed power-on, off means that the node went off again
	bootReadEvery = 10 * time.Second // a booting node's BMC is read this often
	probeEvery    = 3 * time.Second  // an address that answers is asked again
)

// apply takes one event.
func (w *work) apply(e Event) {
	switch e := e.(type) {
	case Restarted:
		w.restarted()
	case Tick:
		w.thaw()
		w.readIdle()
		w.all = true
	case Sample:
		w.sampled(e)
	case Heartbeat:
		w.heartbeat(e)
	case PowerRead:
		w.powerRead(e.Node, PowerReading{State: e.State})
	case Joined:
		w.joined(e)
	case Discovered:
		w.discovered(e)
	case AgentReport:
		w.reported(e)
	case Dropped:
		if a := w.current(e.App, e.Node, e.BootID, e.Epoch); a != nil {
			w.soft(a).Conclusive = "the agent gave it up: " + e.Why
		}
	case StorageSession:
		w.session(e)
	case AddressAnswered:
		w.answered(e.App, e.By)
	case Quarantine:
		w.quarantine(e)
	case SelfHealth:
		w.selfHealth(e)
	case Done:
		w.done(e)
	case Failed:
		w.failed(e)
	case EpochFloor:
		w.floor(e)
	default:
		w.command(e)
	}
}

// advanceAll moves everything that the event touched as far as it goes.
func (w *work) advanceAll() {
	for range 8 {
		before := len(w.s.Soft.Said)
		names := w.apps.keys()
		if !w.all {
			names = sortedKeys(w.touched)
		}
		for _, k := range names {
			w.advanceApp(k)
		}
		if w.all {
			for _, k := range w.nodes.keys() {
				w.advanceNode(k)
			}
		}
		if len(w.s.Soft.Said) == before {
			return // every transition says so
		}
		w.all = true
	}
}

func (w *work) advanceApp(name string) {
	for range 12 {
		a := w.apps.get(name)
		if a == nil {
			return
		}
		phase, epoch := a.Phase, a.Epoch
		w.advance(a)
		if a = w.apps.get(name); a == nil || a.Phase == phase && a.Epoch == epoch {
			return
		}
	}
}

// advance makes the transitions of an application that need no event of their
// own. Running applications are the many: they are only read unless something
// is to change.
func (w *work) advance(a *AppState) {
	if a.Phase == PhaseRunning && !a.Removing && a.Asked == nil {
		v := w.judge(a)
		w.suspicion(a, v)
		if v.failed && !w.s.Soft.Isolated { // a blind appliance observes only (S5)
			a = w.apps.edit(a.Spec.Name)
			w.openFailover(a, CauseFailure, v.why, "", v.obs)
			w.remember(a, a.Grant.Node, v.why)
			w.place(a, CauseFailure)
		}
		return
	}
	a = w.apps.edit(a.Spec.Name)
	if a.Removing && w.remove(a) {
		return
	}
	phase := a.Phase
	if phase == PhaseBlocked {
		phase = a.Resume
	}
	switch phase {
	case PhaseUndecided:
		w.openFailover(a, CauseDeclared, "declared", "", nil)
		w.place(a, CauseDeclared)

	case PhaseRunning: // an operator asked
		w.openFailover(a, CauseOperator, "asked for", a.Asked.By, nil)
		w.place(a, CauseOperator)

	case PhaseDown:
		w.advanceDown(a)

	case PhaseReleasing:
		w.advanceReleasing(a)

	case PhaseFencing:
		if !w.ready(a) {
			w.fence(a)
			if why, fix := w.stuck(a); why != "" {
				w.block(a, PhaseFencing, hotspare.CodeFenceUnproven, why, fix)
			}
			return
		}
		if a.Grant == nil {
			w.place(a, w.cause(a))
			return
		}
		w.mark(a, func(m *Marks) *Stamp { return &m.Fenced })
		w.nodePhase(w.nodes.edit(a.Grant.Node), NodeOwned, "")
		w.enter(a, PhaseAttaching, "%s", w.proofText(a))
		a.Grant.Attached = true
		w.order(Attach{Order: w.head(a), Spec: a.Spec, Way: a.Grant.Way}, a.Failover)

	case PhaseAttaching:
		if !w.ready(a) {
			w.contradicted(a, PhaseAttaching)
			return
		}
		w.unblock(a, PhaseAttaching)
		w.probe(a)
		if a.Grant.AttachEnd && a.Grant.Prepared && w.noPowerOff(a.Grant.Node) {
			w.mark(a, func(m *Marks) *Stamp { return &m.Attached })
			w.enter(a, PhaseStarting, "%s boots (%s)", a.Grant.Node, a.Grant.Way)
			a.Grant.Booted = true
			w.nodes.edit(a.Grant.Node).OffProof = nil
			w.order(Boot{Order: w.head(a), Turn: w.nodes.get(a.Grant.Node).Turn, Way: a.Grant.Way, Image: a.Spec.Image}, a.Failover)
		}

	case PhaseStarting:
		w.advanceStarting(a)

	case PhaseOnlining:
		w.advanceOnlining(a)
	}
}

// advanceStarting waits for the agent, and claims when nothing speaks against
// it: this is the last gate before the application runs.
func (w *work) advanceStarting(a *AppState) {
	g := a.Grant
	if !w.ready(a) {
		w.contradicted(a, PhaseStarting)
		return
	}
	if g.BootID == "" {
		w.unblock(a, PhaseStarting)
		w.probe(a)
		n := w.node(g.Node)
		switch {
		case w.now.Sub(a.Since) >= a.Spec.Policy.BootDeadline.D():
			w.attemptFailed(a, "did not join within "+a.Spec.Policy.BootDeadline.String(), true)
		case !g.BootDone.IsZero() && w.now.Sub(g.BootDone) > settleOff && n.Power == PowerIsOff && n.PowerAt.Sub(g.BootDone) > settleOff:
			w.attemptFailed(a, "went off while it booted", true)
		case !g.BootDone.IsZero():
			w.readPower(a.Spec.Name, g.Node, bootReadEvery)
		}
		return
	}
	f := w.watched(a)
	switch {
	case f.AddressAt.IsZero():
		w.probe(a)
		return
	case !f.Address.Silent:
		w.block(a, PhaseStarting, hotspare.CodeAddressInUse,
			"the service address "+a.Spec.Address.Addr().String()+" answers at "+f.Address.By,
			"find out who has it; it is asked again by itself")
		w.probe(a)
		return
	case w.s.Soft.Isolated || w.frozen(a.Spec.Name, g.Node) != nil && !w.r.freezeIgnored:
		return
	}
	if !w.silent(a) {
		return
	}
	w.enter(a, PhaseOnlining, "claimed for boot %s", g.BootID)
	p := a.Spec.Policy
	g.Claimed, g.ClaimedAt, g.Lease, g.Bound = true, w.now, p.Lease, p.DropBound+p.Margin
	w.order(Claim{Order: w.head(a), BootID: g.BootID, Spec: a.Spec, Way: g.Way}, a.Failover)
	w.softApps.put(a.Spec.Name, &AppSoft{Epoch: g.Epoch, Since: w.now.At, Checks: map[string]*Check{}, Address: f.Address, AddressAt: f.AddressAt})
}

func (w *work) advanceOnlining(a *AppState) {
	if !w.proven(a) { // contradicted after the claim was ordered: prove it anew
		w.ready(a)
		w.fence(a)
	}
	g, f, n := a.Grant, w.watched(a), w.node(a.Grant.Node)
	switch {
	case f.Conclusive != "":
		w.attemptFailed(a, f.Conclusive, true)
	case n.Power == PowerIsOff && n.PowerAt.At > g.ClaimedAt.At && w.readOff(a, f, w.silence(a, f)):
		w.attemptFailed(a, "went off while the application started", true)
	case w.now.Sub(a.Since) >= a.Spec.Policy.OnlineDeadline.D():
		w.attemptFailed(a, "its own check did not pass within "+a.Spec.Policy.OnlineDeadline.String(), true)
	case w.healthy(a) && !w.claiming(a):
		w.running(a, OutcomeRunning)
	default:
		if w.silence(a, f) >= heartbeatTimeout(a)/2 {
			w.readPower(a.Spec.Name, g.Node, readEvery)
		}
	}
}

// advanceDown looks for a way up: the application may heal where it is, a guard
// may lift, a node may come.
func (w *work) advanceDown(a *AppState) {
	if live(a) && w.healthy(a) && !w.judge(a).failed {
		w.running(a, OutcomeRecovered)
		return
	}
	if live(a) && a.Asked == nil {
		v := w.judge(a)
		w.suspicion(a, v)
		if !v.failed {
			return // it may be healing: neither well nor failed now
		}
	}
	if a.Waiting {
		if w.now.Sub(a.Since) < a.Spec.Policy.RetryAfter.D() && a.Asked == nil {
			w.ready(a)
			w.fence(a)
			return
		}
		a.Waiting, a.Attempts = false, 0
	}
	w.place(a, w.cause(a))
	if a.Phase == PhaseDown && a.Grant == nil {
		w.ready(a)
		w.fence(a)
	}
}

// advanceReleasing waits for the agent's word, then for the evidence.
func (w *work) advanceReleasing(a *AppState) {
	if w.released(a) {
		w.enter(a, PhaseFencing, "")
		w.fence(a)
	}
}

// running ends a failover: the application's own check passed.
func (w *work) running(a *AppState, o Outcome) {
	w.enter(a, PhaseRunning, "on %s", a.Grant.Node)
	f := w.soft(a)
	maps.DeleteFunc(f.Checks, func(_ string, c *Check) bool { return !c.OK }) // of the time before it ran
	for _, g := range a.Old {
		if g.Attached && g.Epoch != a.Grant.Epoch {
			w.order(DeleteRoot{Order{App: a.Spec.Name, Node: g.Node, Epoch: g.Epoch}}, a.Failover)
		}
	}
	a.Old, a.Attempts, a.Waiting, a.Asked = nil, 0, false, nil
	w.forgetLeases(a.Spec.Name, a.Grant.Epoch)
	w.closeFailover(a, o)
	w.resolve("app/"+a.Spec.Name+"/", a.Spec.Name+" runs on "+a.Grant.Node)
}

// advanceNode makes the transitions of a node that need no event of their own.
func (w *work) advanceNode(name string) {
	n := w.nodes.get(name)
	switch n.Phase {
	case NodeFencing:
		if n.OffProof != nil {
			n = w.nodes.edit(name)
			w.returnNode(n, n.Reason)
			return
		}
		if n.Removing && !w.needed(name) {
			w.forget(name)
			return
		}
		w.powerOff(n)
	case NodeIdle, NodeQuarantined, NodeMaintenance:
		if n.Removing && !w.needed(name) {
			w.forget(name)
		}
	}
}

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
