package haengine

import (
	"fmt"

	"hotspare"
)

// heartbeat takes the agent's voice. It renews the lease of a grant that is
// allowed to go on, and contradicts proofs that its node is off or has dropped
// the application.
func (w *work) heartbeat(e Heartbeat) {
	if w.nodes.get(e.Node) == nil {
		return
	}
	n := w.seen(e.Node)
	n.Heard, n.HeardBoot = w.now, e.BootID
	if p := w.nodes.get(e.Node).Phase; p == NodeIdle || p == NodeQuarantined {
		n.Power = PowerUnknown // who speaks is not off, whatever was read
	}
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		for i := range a.Old {
			g := &a.Old[i]
			if g.Node != e.Node || g.BootID != e.BootID || e.BootID == "" {
				continue
			}
			if w.contradicts(g.Exclusion, a.Spec.Name, e) {
				w.touch(k)
				w.void(w.apps.edit(k), &w.apps.edit(k).Old[i], fmt.Sprintf("%s still speaks as boot %s (runs %s)", e.Node, e.BootID, orNothing(e.App)))
			}
		}
	}
	if e.App == "" {
		return
	}
	a := w.apps.get(e.App)
	if a != nil && e.Epoch > a.Epoch {
		if e.Epoch-a.Epoch <= MaxLag && e.Epoch <= MaxEpoch {
			w.floor(EpochFloor{App: e.App, Epoch: e.Epoch})
			return
		}
		w.notify("node/"+e.Node+"/epoch", Notice{
			App: e.App, Node: e.Node, Code: hotspare.CodeJoinRefused,
			Text: fmt.Sprintf("%s says that it runs %s under epoch %d, which was never granted (the last is %d)", e.Node, e.App, e.Epoch, a.Epoch),
			Fix:  "its lease is refused; find out what runs on it",
		})
	}
	if a := w.current(e.App, e.Node, e.BootID, e.Epoch); a != nil {
		w.soft(a).Heartbeat = w.now
	}
	if ok, _ := leaseAllowed(a, e.Node, e.BootID, e.App, e.Epoch); ok {
		w.acked(e.App, e.Epoch)
		return
	}
	w.ghost(e)
}

// contradicts says whether a heartbeat speaks against a proof. A node that is
// off does not speak at all; one that dropped the application may speak, but not
// as its owner.
func (w *work) contradicts(x *Exclusion, app string, e Heartbeat) bool {
	runs := e.App == app
	if x.Proof == nil {
		return runs && len(x.Void) > 0 // life goes on after a contradiction
	}
	switch x.Proof.Kind {
	case EvidencePower, EvidencePerson, EvidenceIdentity:
		return true
	}
	return runs
}

// ghost is an agent that runs an application without right: its lease is
// refused, and its node, if it was taken for free, is fenced.
func (w *work) ghost(e Heartbeat) {
	n := w.nodes.get(e.Node)
	if n == nil || n.Phase != NodeIdle && n.Phase != NodeQuarantined {
		return
	}
	why := fmt.Sprintf("it runs %s epoch %d without right", e.App, e.Epoch)
	w.notify("node/"+e.Node+"/ghost", Notice{App: e.App, Node: e.Node, Text: e.Node + ": " + why, Fix: "it is fenced; find out how it came up"})
	w.suspectNode(e.Node, why)
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// joined takes an agent that came with a grant's token.
func (w *work) joined(e Joined) {
	for _, k := range w.apps.keys() {
		for _, g := range w.apps.get(k).Old {
			if w.r.lateJoin {
				continue
			}
			if g.Node == e.Node && g.BootID == e.BootID && e.BootID != "" { // epochs of two applications may be equal
				w.say(nil, e.Node, "boot %s joined for epoch %d of %s before: it is not awaited again", e.BootID, g.Epoch, k)
				return
			}
		}
	}
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		g := a.Grant
		if g == nil || k != e.App || g.Node != e.Node || g.Epoch != e.Epoch && !w.r.lateJoin || e.BootID == "" {
			continue
		}
		switch {
		case e.BootID == g.From:
			w.say(a, e.Node, "boot %s comes with the token of its successor: it is not awaited", e.BootID)
		case g.BootID == "" && g.Booted && !g.Claimed:
			a = w.apps.edit(k)
			a.Grant.BootID, a.Grant.Joined = e.BootID, w.now
			if n := w.nodes.edit(e.Node); n != nil {
				n.BootID = e.BootID
			}
			s := w.seen(e.Node)
			s.Heard, s.HeardBoot, s.Discovered, s.SeenAt, s.Power = w.now, e.BootID, "", Stamp{}, PowerIsOn
			s.PowerAt = w.now
			// Whether the address is free is asked anew: the answer from before the boot
			// is too old to claim by.
			f := w.soft(a)
			f.Address, f.AddressAt = AddressProbe{}, Stamp{}
			w.withdraw(func(o Action) bool { p, is := o.(ProbeAddress); return is && p.App == k })
			w.mark(a, func(m *Marks) *Stamp { return &m.Joined })
			w.say(a, e.Node, "joined as boot %s", e.BootID)
			w.touch(k)
		case g.BootID != e.BootID:
			w.soft(a).Conclusive = e.Node + " came again as another boot"
			w.touch(k)
		}
		return
	}
	w.say(nil, e.Node, "a join for epoch %d of %q is not awaited", e.Epoch, e.App)
}

// discovered takes a node that was seen, authenticated, in discovery: whatever
// boot ran there before is over.
func (w *work) discovered(e Discovered) {
	if w.nodes.get(e.Node) == nil || e.BootID == "" {
		return
	}
	if e.Facts != nil {
		f := *e.Facts
		w.nodes.edit(e.Node).Facts = &f
	}
	w.copiesSeen(e.Node, e.Copies)
	w.seenAnew(e.Node, e.BootID, "discovery")
}

// seenAnew takes the sight of a boot that carries nothing. What an earlier boot of
// the node ran in memory or from volumes is over; what lies on a local disk is only
// after it was disabled.
func (w *work) seenAnew(node, boot, where string) {
	s := w.seen(node)
	s.Discovered, s.SeenAt = boot, w.now
	w.say(nil, node, "seen in %s as boot %s", where, boot)
	w.proveNode(node, rebooted(node, boot), func(a *AppState, g *Grant) bool {
		return g.BootID != "" && g.BootID != boot && !g.Way.LeavesCopy() && !w.lately(a, g.Exclusion)
	})
	w.disable(node, boot)
	for _, k := range w.apps.keys() {
		if a := w.apps.get(k); live(a) && a.Grant.Node == node && a.Grant.BootID != boot {
			w.soft(a).Conclusive = node + " was booted anew"
			w.touch(k)
		}
	}
}

func rebooted(node, boot string) Evidence {
	return Evidence{Kind: EvidenceIdentity, Text: fmt.Sprintf("%s is seen, carrying nothing, as boot %s", node, boot)}
}
