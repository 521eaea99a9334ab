package haengine

import (
	"fmt"
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
	kexecDeadline = 90 * time.Second // for a parked node's join with the image's kernel: firmware has no part in it
	claimSilence  = 15 * time.Second // a parked boot that was claimed and is not heard is given up
	probeEvery    = 3 * time.Second  // an address that answers is asked again
	freshAddress  = 10 * time.Second // silence that was heard longer ago is asked for anew
)

// apply takes one event.
func (w *work) apply(e Event) {
	switch e := e.(type) {
	case Restarted:
		w.restarted()
	case Tick:
		w.thaw()
		w.readIdle()
		w.endPlanned()
		w.all, w.ticked = true, true
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
	case Parked:
		w.parked(e)
	case ImageSeen:
		w.imageSeen(e.Image)
	case ImageGone:
		w.images.del(e.Ref)
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

// advanceAll moves everything that the event touched as far as it goes; standby
// comes after the applications had their choice.
func (w *work) advanceAll() {
	w.settleAll()
	if w.ticked {
		w.keepStandby()
	}
}

func (w *work) settleAll() {
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
		if why := w.lostFrom(a); why != "" {
			w.attemptFailed(a, why, false)
			return
		}
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
		a.Grant.Attached, a.Grant.Began = true, w.now
		w.order(Attach{Order: w.head(a), Spec: a.Spec, Way: a.Grant.Way}, a.Failover)

	case PhaseAttaching:
		if why := w.lostFrom(a); why != "" {
			w.attemptFailed(a, why, false)
			return
		}
		if !w.ready(a) {
			w.contradicted(a, PhaseAttaching)
			return
		}
		w.unblock(a, PhaseAttaching)
		w.probe(a)
		if a.Grant.AttachEnd && a.Grant.Prepared && w.noPowerOff(a.Grant.Node) {
			w.mark(a, func(m *Marks) *Stamp { return &m.Attached })
			w.begins(a)
		}

	case PhaseStarting:
		w.advanceStarting(a)

	case PhaseOnlining:
		w.advanceOnlining(a)
	}
}

// begins takes the grant's way as far as its last gate: a parked boot that is
// claimed as it is, and a machine without an agent, wait for that; the others boot.
func (w *work) begins(a *AppState) {
	g, n := a.Grant, w.nodes.edit(a.Grant.Node)
	switch {
	case !g.Way.HasAgent():
		w.enter(a, PhaseStarting, "%s is ready (%s)", g.Node, g.Way)
	case g.Direct:
		w.enter(a, PhaseStarting, "%s is in standby as boot %s (%s)", g.Node, g.From, g.Way)
		g.Joined = w.now
		w.mark(a, func(m *Marks) *Stamp { return &m.Joined })
	default:
		w.enter(a, PhaseStarting, "%s boots (%s)", g.Node, g.Way)
		w.boots(a, n)
	}
}

func (w *work) boots(a *AppState, n *NodeState) {
	g := a.Grant
	g.Booted, n.OffProof = true, nil
	w.dropPark(n)
	w.order(Boot{Order: w.head(a), Turn: n.Turn, Way: g.Way, Image: a.Spec.Image, BootID: g.From}, a.Failover)
}

// advanceStarting waits for the agent, and claims when nothing speaks against
// it: this is the last gate before the application runs.
func (w *work) advanceStarting(a *AppState) {
	g := a.Grant
	if why := w.lostFrom(a); why != "" {
		w.attemptFailed(a, why, false)
		return
	}
	if !w.ready(a) {
		w.contradicted(a, PhaseStarting)
		return
	}
	if g.BootID == "" && g.Way.HasAgent() {
		w.unblock(a, PhaseStarting)
		w.probe(a)
		n, limit := w.node(g.Node), a.Spec.Policy.BootDeadline.D()
		if g.From != "" {
			limit = min(limit, kexecDeadline)
		}
		switch {
		case w.now.Sub(a.Since) >= limit:
			w.attemptFailed(a, "did not join within "+limit.String(), true)
		case !g.BootDone.IsZero() && w.now.Sub(g.BootDone) > settleOff && n.Power == PowerIsOff && n.PowerAt.Sub(g.BootDone) > settleOff:
			w.attemptFailed(a, "went off while it booted", true)
		case !g.BootDone.IsZero():
			w.readPower(a.Spec.Name, g.Node, bootReadEvery)
		}
		return
	}
	if g.Way == WayInstall && !g.Installed {
		w.unblock(a, PhaseStarting)
		w.install(a)
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
	case g.Direct && w.node(g.Node).HeardBoot != g.From && !w.r.staleParked: // after a restart it has to be heard anew
		return
	}
	if w.now.Sub(f.AddressAt) > freshAddress { // asked before a wait: whoever came since would not be known
		f := w.soft(a)
		f.Address, f.AddressAt = AddressProbe{}, Stamp{}
		w.probe(a)
		return
	}
	if !w.silent(a) {
		return
	}
	w.takes(a)
	w.softApps.put(a.Spec.Name, &AppSoft{Epoch: g.Epoch, Since: w.now.At, Checks: map[string]*Check{}, Address: f.Address, AddressAt: f.AddressAt})
}

// takes is the step from which on the application may run on the node.
func (w *work) takes(a *AppState) {
	g, p, n := a.Grant, a.Spec.Policy, w.nodes.edit(a.Grant.Node)
	g.Claimed, g.ClaimedAt = true, w.now
	if !g.Way.HasAgent() { // nobody is claimed: what boots is the application
		w.enter(a, PhaseOnlining, "%s boots (%s)", g.Node, g.Way)
		w.boots(a, n)
		return
	}
	w.enter(a, PhaseOnlining, "claimed for boot %s", g.BootID)
	g.Lease, g.Longest, g.Bound = p.promised(), w.plannedLease(), p.DropBound+p.Margin
	w.dropPark(n)
	if g.Way.LeavesCopy() {
		w.starts(a)
	}
	w.order(Claim{Order: w.head(a), BootID: g.BootID, Spec: a.Spec, Way: g.Way, Lease: g.lease(), Copy: g.Copy}, a.Failover)
}

func (w *work) advanceOnlining(a *AppState) {
	if !w.proven(a) { // contradicted after the claim was ordered: prove it anew
		w.ready(a)
		w.fence(a)
	}
	g, f, n, limit := a.Grant, w.watched(a), w.node(a.Grant.Node), a.Spec.Policy.OnlineDeadline
	if !g.Way.HasAgent() {
		limit += a.Spec.Policy.BootDeadline
	}
	switch {
	case f.Conclusive != "":
		w.attemptFailed(a, f.Conclusive, true)
	case n.Power == PowerIsOff && n.PowerAt.At > g.ClaimedAt.At && w.settledOff(g, n) && w.readOff(a, f, w.silence(a, f)):
		w.attemptFailed(a, "went off while the application started", true)
	case g.Direct && f.Heartbeat.IsZero() && w.unheard(g) >= claimSilence:
		w.attemptFailed(a, "its parked boot was claimed and is not heard any more", true)
	case w.now.Sub(a.Since) >= limit.D():
		w.attemptFailed(a, "its own check did not pass within "+limit.String(), true)
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
	if o == OutcomeRunning {
		w.measure(a)
	}
	a.Grant.Began = Stamp{}
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
		if n.Removing && !w.needed(name) && w.node(name).BMCDead != "" {
			w.abandon(name)
			return
		}
		w.powerOff(n)
	case NodeIdle, NodeQuarantined, NodeMaintenance:
		switch {
		case !n.Removing || w.needed(name):
		case n.Park != nil:
			// What the last power-off said must not spare this one.
			w.seen(name).BMCDead = ""
			w.unpark(w.nodes.edit(name), "it is removed")
		default:
			w.forget(name)
		}
	}
}

// abandon removes a node that cannot be switched off: its BMC may be why it goes.
func (w *work) abandon(name string) {
	w.notify("node/"+name+"/removed", Notice{
		Node: name, Text: fmt.Sprintf("%s is removed, and may be on: its BMC does not answer (%s)", name, w.node(name).BMCDead),
		Fix: "switch it off by hand; it carries nothing and is given nothing",
	})
	w.forget(name)
}
