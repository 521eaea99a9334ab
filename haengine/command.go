package haengine

import (
	"fmt"
	"slices"

	"hotspare"
)

// command takes what an operator declares or orders.
func (w *work) command(e Event) {
	if err := w.refuse(e); err != nil {
		w.say(nil, "", "refused: %s", err.What)
		return
	}
	w.all = true
	switch e := e.(type) {
	case NodeApplied:
		spec := e.Node.WithDefaults()
		if n := w.nodes.edit(spec.Name); n != nil {
			if n.Park != nil || n.Phase != NodeIdle && n.Phase != NodeQuarantined && n.Phase != NodeMaintenance {
				w.keepIdentity(n, &spec)
			}
			if n.Spec.UUID != spec.UUID || !slices.Equal(n.Spec.MACs, spec.MACs) { // another machine
				n.Copies, n.Facts, n.Listed = nil, nil, false
			}
			n.Spec, n.Removing = spec, false
		} else {
			w.nodes.put(spec.Name, &NodeState{Spec: spec, Phase: NodeIdle, Since: w.now})
			w.say(nil, spec.Name, "node declared")
		}
		w.readPower("", spec.Name, 0)
		w.news(spec.Name + " was declared or changed")
	case NodeDeleted:
		if n := w.nodes.edit(e.Name); n != nil {
			n.Removing = true
		}
	case PoolApplied:
		p := e.Pool
		w.pools.put(p.Name, &p)
	case PoolDeleted:
		w.pools.del(e.Name)
	case AppApplied:
		w.declare(e.Application.WithDefaults())
	case AppDeleted:
		if a := w.apps.edit(e.Name); a != nil {
			a.Removing = true
			w.say(a, "", "is to be removed, as %s asked", e.By)
		}
	case SiteApplied:
		w.s.Durable.Site, w.meta = e.Site, true
	case FailoverRequested:
		a := w.apps.edit(e.App)
		a.Asked = &Asked{To: e.To, Way: e.Way, By: e.By}
		if f := w.failovers.edit(a.Failover); f != nil {
			f.By = e.By
		}
		w.say(a, "", "%s asked for a failover", e.By)
	case PlannedRestart:
		w.plan(e)
	case FreezeSet:
		w.freezes.put(e.Scope.String(), &Freeze{Scope: e.Scope, By: e.By, Reason: e.Reason, At: w.now, Until: e.Until})
		w.say(nil, "", "frozen: %s, by %s: %s", e.Scope, e.By, e.Reason)
	case FreezeLifted:
		w.freezes.del(e.Scope.String())
		w.say(nil, "", "freeze of the %s lifted by %s", e.Scope, e.By)
		w.news("a freeze was lifted")
	case ConfirmOff:
		w.confirmed(e)
	case Unquarantine:
		w.unquarantine(e)
	case MaintenanceSet:
		n := w.nodes.edit(e.Node)
		if e.On && n.Park != nil {
			w.fenceNode(n, NodeMaintenance, e.Reason+", by "+e.By)
		} else if e.On {
			w.freeNode(n, NodeMaintenance, e.Reason+", by "+e.By)
		} else {
			w.freeNode(n, "", "")
			w.news(e.Node + " is out of maintenance")
		}
	}
}

func (w *work) declare(spec Application) {
	if a := w.apps.edit(spec.Name); a != nil {
		a.Spec, a.Removing = spec, false
		w.news(spec.Name + " was changed")
		return
	}
	a := &AppState{Spec: spec, Phase: PhaseUndecided, Since: w.now}
	if f := w.s.Durable.Floors[spec.Name]; f > 0 { // an application of this name was removed in order
		a.Epoch, a.Revoked = f+1, f+1
		w.floorAt(spec.Name, a.Epoch)
	}
	w.apps.put(spec.Name, a)
	w.say(a, "", "application declared")
}

// confirmed takes a person's word that a node is down (SAFETY S2.5).
func (w *work) confirmed(e ConfirmOff) {
	proof := Evidence{Kind: EvidencePerson, By: e.By, Text: e.By + " confirmed that " + orUnknown(e.Node) + " is down"}
	w.say(nil, e.Node, "%s", proof.Text)
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		if e.Node != "" && live(a) && a.Grant.Node == e.Node && w.now.Sub(w.node(e.Node).Heard) >= heartbeatTimeout(a) {
			w.soft(a).Conclusive = proof.Text
			w.apps.edit(k)
			w.advanceApp(k) // it may become an earlier grant now
		}
	}
	w.proveNode(e.Node, proof, func(a *AppState, g *Grant) bool {
		return (e.App == "" || a.Spec.Name == e.App) && !w.lately(a, g.Exclusion)
	})
}

func orUnknown(node string) string {
	if node == "" {
		return "the unknown node"
	}
	return node
}

func (w *work) unquarantine(e Unquarantine) {
	n := w.nodes.edit(e.Node)
	if n.Phase == NodeQuarantined {
		w.freeNode(n, "", "")
	}
	if n.Then == NodeQuarantined {
		n.Then = ""
	}
	for _, k := range w.apps.keys() {
		if w.failureOf(w.apps.get(k), e.Node) != nil {
			a := w.apps.edit(k)
			a.Failures = slices.DeleteFunc(a.Failures, func(f Failure) bool { return f.Node == e.Node })
		}
	}
	w.say(nil, e.Node, "released from quarantine by %s", e.By)
	w.resolve("node/"+e.Node+"/quarantine", e.Node+" was released from quarantine by "+e.By)
	w.news(e.Node + " was released")
}

// Refuse says why an operator's command would be ignored, or nil. It is asked
// before the event is submitted; Step refuses by the same rules.
func Refuse(s State, e Event) error {
	if err := (Rules{}).begin(s, s.Soft.Now).refuse(e); err != nil {
		return err
	}
	return nil
}

func (w *work) refuse(e Event) *hotspare.Error {
	var app, node string
	needApp, needNode := false, false
	switch e := e.(type) {
	case PlannedRestart:
		return refusePlanned(e)
	case FailoverRequested:
		if e.Way != "" && !slices.Contains(Ways(), e.Way) {
			return refusal(hotspare.CodeInvalid, "there is no way "+string(e.Way), "application "+e.App, "", fmt.Sprintf("use one of %v", Ways()))
		}
		app, needApp = e.App, true
		node, needNode = e.To, e.To != ""
	case AppDeleted:
		app, needApp = e.Name, true
	case NodeDeleted:
		node, needNode = e.Name, true
	case Unquarantine:
		node, needNode = e.Node, true
	case MaintenanceSet:
		node, needNode = e.Node, true
	case ConfirmOff:
		node, needNode = e.Node, e.Node != ""
		app, needApp = e.App, e.App != ""
		if !needApp && !needNode {
			return refusal(hotspare.CodeInvalid, "a confirmation names a node or an application", "", "both are empty", "name the node that is down")
		}
	}
	a, n := w.apps.get(app), w.nodes.get(node)
	if needApp && a == nil {
		return refusal(hotspare.CodeNotFound, "there is no application "+app, "application "+app, "", "see the list of applications")
	}
	if needNode && n == nil {
		return refusal(hotspare.CodeNotFound, "there is no node "+node, "node "+node, "", "see the list of nodes")
	}
	return w.refuseState(e, a, n)
}

// refuseState weighs a command against what is going on.
func (w *work) refuseState(e Event, a *AppState, n *NodeState) *hotspare.Error {
	switch e := e.(type) {
	case NodeDeleted:
		if a := w.apps.get(n.Owner); a != nil && a.Grant != nil && a.Grant.Node == e.Name {
			return refusal(hotspare.CodeConflict, "node "+e.Name+" carries "+n.Owner, "node "+e.Name, "a node is removed only when it is free", "move "+n.Owner+" first")
		}
	case MaintenanceSet:
		if n.Phase != NodeIdle && n.Phase != NodeMaintenance && n.Phase != NodeQuarantined {
			return refusal(hotspare.CodeConflict, "node "+e.Node+" is "+string(n.Phase), "node "+e.Node, "only a free node can be taken out", "move what it carries first")
		}
	case FailoverRequested:
		switch a.Phase {
		case PhaseRunning:
			if e.To != "" && e.To == a.Grant.Node {
				return refusal(hotspare.CodeConflict, e.App+" runs on "+e.To+" already", "application "+e.App, "", "name another node")
			}
			if h := w.hold(a, CauseOperator); h != nil {
				return refusal(hotspare.CodeHeld, e.App+" is held by "+h.Rule, "application "+e.App, h.Text, h.Lift)
			}
			asked := *a
			asked.Asked = &Asked{To: e.To, Way: e.Way, By: e.By}
			if c := w.candidates(&asked); len(c) == 0 || !c[0].Eligible {
				return refusal(hotspare.CodeNoCandidate, "no node is eligible for "+e.App, "application "+e.App, nearest(c), "add a node or mend one")
			}
		case PhaseDown, PhaseUndecided:
		default:
			return refusal(hotspare.CodeConflict, fmt.Sprintf("%s is %s already", e.App, a.Phase), "application "+e.App, "one recovery at a time", "wait for its end, or see what blocks it")
		}
	}
	return nil
}

// keepIdentity lets a node that is in use, or waits, stay the machine that it is:
// readings of another machine's BMC would count as proofs about it.
func (w *work) keepIdentity(n *NodeState, spec *Node) {
	if n.Spec.UUID == spec.UUID && n.Spec.BMC == spec.BMC && slices.Equal(n.Spec.MACs, spec.MACs) {
		return
	}
	spec.UUID, spec.BMC, spec.MACs = n.Spec.UUID, n.Spec.BMC, n.Spec.MACs
	w.say(nil, spec.Name, "its uuid, BMC and MAC addresses stay as they were: it is %s, and proofs are about that machine", n.Phase)
}
