package haengine

import (
	"fmt"
	"slices"

	"hotspare"
)

// voidAll takes back proofs of the given kinds about every earlier grant: the
// world contradicted them.
func (w *work) voidAll(a *AppState, why string, kinds ...EvidenceKind) {
	for i := range a.Old {
		if p := a.Old[i].Exclusion.Proof; p != nil && slices.Contains(kinds, p.Kind) {
			w.void(a, &a.Old[i], why)
		}
	}
}

// void takes one proof back and has the node fenced anew.
func (w *work) void(a *AppState, g *Grant, why string) {
	x := g.Exclusion
	x.Contradicted = w.now
	if x.Proof == nil || w.r.proofsStay {
		return
	}
	e := *x.Proof
	e.Void = why
	x.Void, x.Proof = append(x.Void, e), nil
	if len(x.Void) > 10 {
		x.Void = x.Void[len(x.Void)-10:]
	}
	w.say(a, g.Node, "evidence (%s) is void: %s", e.Kind, why)
	w.notify("app/"+a.Spec.Name+"/contradiction", Notice{
		App: a.Spec.Name, Node: g.Node, Code: hotspare.CodeFenceUnproven,
		Text: fmt.Sprintf("evidence about epoch %d of %s is void: %s", g.Epoch, a.Spec.Name, why),
		Fix:  "check what runs on " + g.Node + " and whose BMC answers at its address",
	})
	f := w.soft(a)
	f.AddressAt = Stamp{}
	w.suspectNode(g.Node, why)
}

// suspectNode fences a node anew that was taken for off and shows life.
func (w *work) suspectNode(node, why string) {
	n := w.nodes.edit(node)
	if n == nil {
		return
	}
	w.seen(node).Power = PowerUnknown
	switch n.Phase {
	case NodeIdle, NodeReturning, NodeQuarantined, NodeMaintenance:
		w.withdraw(func(o Action) bool { r, is := o.(ReturnNode); return is && r.Node == node })
		then := n.Then
		if n.Phase == NodeQuarantined || n.Phase == NodeMaintenance {
			then = n.Phase
		}
		w.fenceNode(n, then, why)
	case NodeFencing:
		n.OffProof = nil
		w.powerOff(n)
	case NodeReserved, NodeOwned: // chosen anew already: it is not booted before it is proven off again
		a := w.apps.edit(n.Owner)
		if a == nil || a.Grant == nil || a.Grant.Node != node || a.Grant.Claimed {
			return
		}
		// Who speaks there is not the parked boot alone, or is not off as it had to be
		// before it was booted: the grant is given up, and the node fenced for it.
		if a.Grant.From != "" || a.Grant.Booted {
			a.Grant.Lost = why
			w.all = true
			return
		}
		a.Grant.Prepared, n.OffProof = false, nil
		w.powerOff(n)
	}
	w.all = true
}

// contradicted keeps an application that is already being started from being
// claimed while a proof is void.
func (w *work) contradicted(a *AppState, resume Phase) {
	w.fence(a)
	why := "the evidence about an earlier grant is void"
	for i := range a.Old {
		if x := a.Old[i].Exclusion; x.Proof == nil && lastVoid(x) != "" {
			why = fmt.Sprintf("the evidence about epoch %d on %s is void: %s", a.Old[i].Epoch, a.Old[i].Node, lastVoid(x))
		}
	}
	w.block(a, resume, hotspare.CodeFenceUnproven, why, "check the old node; it goes on by itself when it is proven gone")
}

// unblock goes on after a contradiction was settled.
func (w *work) unblock(a *AppState, p Phase) {
	if a.Phase == PhaseBlocked && a.Code == hotspare.CodeFenceUnproven {
		w.enter(a, p, "the evidence is complete again")
	}
}

func lastVoid(x *Exclusion) string {
	if len(x.Void) == 0 {
		return ""
	}
	return x.Void[len(x.Void)-1].Void
}
