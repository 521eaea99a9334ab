package haengine

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"hotspare"
)

// keptFailovers is how many ended failovers the durable state remembers.
const keptFailovers = 100

// place decides where an application goes, or says why it does not.
func (w *work) place(a *AppState, cause CauseKind) {
	moving := a.Phase == PhaseRunning && cause == CauseOperator
	cands := w.candidates(a)
	if f := w.failovers.edit(a.Failover); f != nil {
		f.Candidates = cands
	}
	hold := w.hold(a, cause)
	eligible := len(cands) > 0 && cands[0].Eligible
	asked := a.Asked
	a.Asked = nil
	switch {
	case moving && (hold != nil || !eligible): // it stays where it is
		why := "no node is eligible"
		if hold != nil {
			why = hold.Text
		}
		w.say(a, a.Grant.Node, "not moved as %s asked: %s", asked.By, why)
		w.closeFailover(a, OutcomeAborted)
	case hold != nil:
		w.down(a, hold, hotspare.CodeHeld, hold.Text, hold.Lift)
	case !eligible:
		w.down(a, nil, hotspare.CodeNoCandidate, "no node is eligible: "+nearest(cands), "add a node or mend one; it goes on by itself")
	default:
		w.grant(a, cands[0], cause)
	}
}

// nearest gives what stands against each node, shortly.
func nearest(cands []Candidate) string {
	if len(cands) == 0 {
		return "there are no nodes"
	}
	text := ""
	for i, c := range cands {
		if i == 4 {
			return text + fmt.Sprintf("; and %d more", len(cands)-i)
		}
		if i > 0 {
			text += "; "
		}
		text += c.Nearest
	}
	return text
}

// down says that an application is not running and why nothing is done.
func (w *work) down(a *AppState, h *Hold, code hotspare.Code, reason, fix string) {
	reason = brief(reason)
	if a.Phase == PhaseDown && a.Reason == reason {
		return
	}
	rule := "none"
	if h != nil {
		rule = h.Rule
		if h.Rule == "S9" {
			code = hotspare.CodeFrozen
		}
	}
	w.enter(a, PhaseDown, "%s", reason)
	a.Hold, a.Code, a.Reason, a.Fix = h, code, reason, fix
	w.notify("app/"+a.Spec.Name+"/down/"+rule, Notice{App: a.Spec.Name, Code: code, Text: a.Spec.Name + " is down: " + reason, Fix: fix})
}

// grant gives the application to a node under a new epoch. The epoch is durable
// before anything is done with it, because the step's actions wait for the
// journal; from here on there is only forward.
func (w *work) grant(a *AppState, c Candidate, cause CauseKind) {
	name, node, choice := a.Spec.Name, c.Node, c.Ways[0]
	orderly := cause == CauseOperator && a.Phase == PhaseRunning && a.Grant.Way.HasAgent()
	if a.Grant != nil {
		w.retire(a, orderly, previous(a.Spec.Policy), "left by "+name)
	}
	if a.Epoch == 0 {
		a.Epoch, a.Revoked = 1, 1 // there is nothing to exclude
	}
	w.floorAt(name, a.Epoch)
	n, seen := w.nodes.edit(node), w.node(node)
	n.Turn++
	n.Owner, n.Epoch, n.BootID, n.OffProof, n.Then = name, a.Epoch, "", nil, ""
	w.nodePhase(n, NodeReserved, "")
	a.Grant = &Grant{Epoch: a.Epoch, Node: node, Way: choice.Way, Since: w.now, Copy: choice.copy}
	if choice.Parked {
		a.Grant.From, a.Grant.Direct, a.Grant.Prepared = n.Park.BootID, choice.Direct, true
		if choice.Direct {
			a.Grant.BootID, n.BootID = n.Park.BootID, n.Park.BootID
		}
	} else {
		w.dropPark(n)
		a.Grant.Prepared = seen.Power == PowerIsOff && w.now.Sub(seen.PowerAt) < freshOff && !w.inFlight(func(o Action) bool { return o.Head().Node == node })
	}
	a.Attempts++
	if cause == CauseFailure && a.Attempts == 1 {
		site := w.s.Durable.Site.WithDefaults()
		a.Ledger = keepRecent(a.Ledger, w.now, a.Spec.Policy.FailoverWindow.D())
		w.s.Durable.Fences = keepRecent(w.s.Durable.Fences, w.now, site.FenceWindow.D())
		w.meta = true
	}
	if f := w.failovers.edit(a.Failover); f != nil {
		f.Attempts = append(f.Attempts, Attempt{Epoch: a.Epoch, Node: node, Way: choice.Way, Started: w.now})
		f.To, f.ToEpoch, f.Way = node, a.Epoch, choice.Way
		if f.Marks.Decided.IsZero() {
			f.Marks.Decided = w.now
		}
	}
	switch {
	case orderly:
		w.release(a)
	case slices.ContainsFunc(a.Old, func(g Grant) bool { return g.Exclusion.Orderly && !g.Exclusion.Released && g.Exclusion.Proof == nil }):
		w.enter(a, PhaseReleasing, "epoch %d goes to %s", a.Epoch, node)
	default:
		w.enter(a, PhaseFencing, "epoch %d goes to %s", a.Epoch, node)
		w.fence(a)
	}
	if !a.Grant.Prepared {
		w.powerOff(n)
	}
	w.all = true
}

func previous(p Policy) NodePhase {
	switch p.Previous {
	case PreviousKeep:
		return NodeMaintenance
	case PreviousQuarantine:
		return NodeQuarantined
	}
	return ""
}

// release orders the last grant's orderly end.
func (w *work) release(a *AppState) {
	g := &a.Old[len(a.Old)-1]
	w.enter(a, PhaseReleasing, "epoch %d ends in order on %s", g.Epoch, g.Node)
	w.order(Release{Order: Order{App: a.Spec.Name, Node: g.Node, Epoch: g.Epoch}, BootID: g.BootID}, a.Failover)
}

// retire ends the current grant: it becomes an earlier one that needs exclusion,
// and the next epoch is taken, by which the storage refuses it.
func (w *work) retire(a *AppState, orderly bool, then NodePhase, reason string) {
	g, name := *a.Grant, a.Spec.Name
	w.withdraw(func(o Action) bool {
		switch o.(type) {
		case Attach, Boot, Claim, ProbeAddress:
			return o.Head().App == name
		case Install: // one for later is no part of the grant
			return o.Head().App == name && o.Head().Epoch != 0
		}
		return false
	})
	if g.Booted {
		w.order(CancelBoot{Order{App: name, Node: g.Node, Epoch: g.Epoch}}, a.Failover)
	}
	a.Grant = nil
	a.Epoch++
	w.floorAt(name, a.Epoch)
	effects := g.Attached || g.Booted || g.Claimed
	if effects {
		g.Exclusion = &Exclusion{Since: w.now, Orderly: orderly}
		a.Old = append(a.Old, g)
		s := w.node(g.Node)
		if g.BootID != "" && !g.Way.LeavesCopy() && s.Discovered != "" && s.Discovered != g.BootID && s.SeenAt.At > g.Joined.At {
			w.proof(a, &a.Old[len(a.Old)-1], rebooted(g.Node, s.Discovered))
		}
	}
	n := w.nodes.edit(g.Node)
	if n == nil || n.Owner != name {
		return
	}
	switch {
	case !effects && !w.needed(g.Node) && g.From != "" && g.Lost == "" && n.Park != nil && then == "": // it goes on in standby
		n.Owner, n.Epoch, n.BootID = "", 0, ""
		w.nodePhase(n, NodeIdle, "")
	case g.From != "" && n.Phase != NodeFencing && !orderly: // its boot is on, and of no use any more
		w.fenceNode(n, then, reason)
	case !effects && !w.needed(g.Node): // nothing to prove; what was ordered to prepare it is cleaned up
		w.withdraw(func(o Action) bool { p, is := o.(PowerOff); return is && p.Node == n.Spec.Name })
		n.Turn++
		n.Then = then
		w.returnNode(n, reason)
	case !orderly:
		w.fenceNode(n, then, reason)
	}
}

// returnNode has the traces of a node's last use removed.
func (w *work) returnNode(n *NodeState, reason string) {
	w.nodePhase(n, NodeReturning, reason)
	w.order(ReturnNode{Order: Order{App: n.Owner, Node: n.Spec.Name, Epoch: n.Epoch}, Turn: n.Turn}, w.failoverOf(n.Owner))
}

// freeNode gives a node back to its pool, or puts it aside.
func (w *work) freeNode(n *NodeState, then NodePhase, reason string) {
	w.dropPark(n)
	n.Owner, n.Epoch, n.BootID, n.Then, n.OffProof = "", 0, "", "", nil
	if then == "" || then == NodeIdle {
		then, reason = NodeIdle, ""
	}
	w.nodePhase(n, then, reason)
}

// attemptFailed ends a grant that did not come up. When it was the node's fault
// the node is put aside with the reason (SAFETY S12).
func (w *work) attemptFailed(a *AppState, why string, nodesFault bool) {
	g := a.Grant
	w.say(a, g.Node, "attempt failed: %s", why)
	if f := w.failovers.edit(a.Failover); f != nil {
		if i := slices.IndexFunc(f.Attempts, func(t Attempt) bool { return t.Epoch == g.Epoch }); i >= 0 {
			f.Attempts[i].Ended, f.Attempts[i].Why = w.now, why
		}
	}
	then := NodePhase("")
	reason := ""
	if g.Way.LeavesCopy() && (g.Booted || g.Claimed) {
		w.copyFailed(g)
	}
	// A start from standby that fails speaks against the way: the node may come up
	// in another one, from off.
	parked := g.From != ""
	if parked && (nodesFault || g.Booted || g.Claimed) {
		w.holdAgainst(a, Failure{Node: g.Node, Way: g.Way, Parked: true, Why: why})
	} else if nodesFault {
		w.remember(a, g.Node, why)
	}
	if nodesFault && !parked {
		reason = fmt.Sprintf("%s epoch %d: %s", a.Spec.Name, g.Epoch, why)
		if w.mayQuarantine(g.Node) {
			then = NodeQuarantined
		}
	}
	w.retire(a, false, then, reason)
	if a.Attempts >= a.Spec.Policy.MaxAttempts {
		reason := fmt.Sprintf("%d attempts failed, the last on %s: %s", a.Attempts, g.Node, why)
		w.down(a, nil, hotspare.CodeNoCandidate, reason, "mend what failed, or ask for a failover; it is tried again after "+a.Spec.Policy.RetryAfter.String())
		a.Waiting = true
		return
	}
	w.place(a, w.cause(a))
}

// remember notes that the application failed on a node.
func (w *work) remember(a *AppState, node, why string) {
	w.holdAgainst(a, Failure{Node: node, Why: why})
}

// holdAgainst notes a failure in place of the last one of the same kind.
func (w *work) holdAgainst(a *AppState, x Failure) {
	x.At, x.Why = w.now, brief(x.Why)
	keep := a.Failures[:0:0]
	for _, f := range a.Failures {
		same := f.Node == x.Node && f.Parked == x.Parked && (!x.Parked || f.Way == x.Way)
		if !same && w.now.Sub(f.At) < a.Spec.Policy.FailoverWindow.D() {
			keep = append(keep, f)
		}
	}
	a.Failures = append(keep, x)
}

// remove ends an application that an operator deleted. It gives true when the
// step for it is done.
func (w *work) remove(a *AppState) bool {
	name := a.Spec.Name
	if a.Grant != nil {
		if a.Phase == PhaseReleasing { // a switchover was going on: its target is given back
			w.retire(a, false, "", "left by "+name)
			return false
		}
		orderly := a.Phase == PhaseRunning
		w.closeFailover(a, OutcomeAborted)
		w.retire(a, orderly, "", "left by "+name)
		if orderly {
			w.release(a)
		} else {
			w.enter(a, PhaseFencing, "being removed")
			w.fence(a)
		}
		return true
	}
	if a.Phase == PhaseReleasing {
		return false
	}
	if len(a.Old) > 0 && !w.ready(a) {
		if a.Phase != PhaseFencing && a.Phase != PhaseBlocked {
			w.enter(a, PhaseFencing, "being removed")
		}
		return false
	}
	for _, g := range a.Old {
		if g.Attached {
			w.order(DeleteRoot{Order{App: name, Node: g.Node, Epoch: g.Epoch}}, 0)
		}
	}
	w.closeFailover(a, OutcomeAborted)
	w.resolve("app/"+name+"/", name+" was removed")
	w.floorAt(name, a.Epoch)
	w.say(a, "", "removed")
	w.apps.del(name)
	w.softApps.del(name)
	w.withdraw(func(o Action) bool { _, is := o.(Install); return is && o.Head().App == name })
	for _, k := range w.nodes.keys() { // what waits for it on disks is nobody's now
		if n := w.nodes.get(k); n.Park != nil && n.Park.BootID != "" {
			w.disable(k, n.Park.BootID)
		}
	}
	w.forgetLeases(name, 0)
	w.forgetTimes(name)
	return true
}

// forget removes a node that nothing needs.
func (w *work) forget(name string) {
	w.withdraw(func(o Action) bool {
		return o.Head().Node == name && o.Kind() != Notify{}.Kind() && o.Kind() != DeleteRoot{}.Kind()
	})
	w.nodes.del(name)
	w.softNodes.del(name)
	w.say(nil, name, "node removed")
}

// needed says whether a grant that is not excluded names the node.
func (w *work) needed(node string) bool {
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		if a.Grant != nil && a.Grant.Node == node {
			return true
		}
		for _, g := range a.Old {
			if g.Node == node && g.Exclusion.Proof == nil {
				return true
			}
		}
	}
	return false
}

// head fills an order about the current grant.
func (w *work) head(a *AppState) Order {
	return Order{App: a.Spec.Name, Node: a.Grant.Node, Epoch: a.Grant.Epoch}
}

// news lets applications that spent their attempts try again.
func (w *work) news(why string) {
	for _, k := range w.apps.keys() {
		if w.apps.get(k).Waiting {
			a := w.apps.edit(k)
			a.Waiting, a.Attempts = false, 0
			w.say(a, "", "tries again: %s", why)
		}
	}
	w.all = true
}

// floorAt keeps the highest epoch of a name for ever.
func (w *work) floorAt(app string, e Epoch) {
	d := &w.s.Durable
	if d.Floors[app] >= e {
		return
	}
	d.Floors = maps.Clone(d.Floors)
	d.Floors[app] = e
	w.meta = true
}

func itoa(e Epoch) string { return strconv.FormatUint(uint64(e), 10) }
