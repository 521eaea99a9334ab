package haengine

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// releaseDeadline is how long an orderly release may take before it is fenced.
const releaseDeadline = time.Minute

// ready says whether nothing of an earlier grant can run or write any more:
// each has a proof that was not contradicted, and the target confirmed that no
// lower epoch can write (SAFETY S2). It takes the proofs that time brings.
func (w *work) ready(a *AppState) bool {
	ok := a.Revoked >= a.Epoch
	for i := range a.Old {
		ok = w.prove(a, &a.Old[i]) && ok
	}
	return ok
}

// prove says whether an earlier grant is excluded.
func (w *work) prove(a *AppState, g *Grant) bool {
	x := g.Exclusion
	if x.Proof != nil {
		return true
	}
	if w.lately(a, x) {
		return false
	}
	// A later boot of the node joined for a later grant: this one's boot is over.
	if n := w.nodes.get(g.Node); n != nil && n.BootID != "" && g.BootID != "" && n.BootID != g.BootID && !g.Way.LeavesCopy() {
		w.proof(a, g, Evidence{Kind: EvidenceIdentity, Text: fmt.Sprintf("%s has joined as boot %s since", g.Node, n.BootID)})
		return true
	}
	revoked := a.Revoked > g.Epoch
	if x.Orderly && x.Released && revoked {
		w.proof(a, g, Evidence{Kind: EvidenceRelease, Text: fmt.Sprintf("%s released epoch %d in order, its volumes are revoked", g.Node, g.Epoch)})
		return true
	}
	if revoked && !g.Booted && !g.Claimed { // its node was never told anything
		w.proof(a, g, Evidence{Kind: EvidenceStorage, Text: fmt.Sprintf("volumes of epoch %d revoked; nothing was ever ordered to start it", g.Epoch)})
		return true
	}
	if !revoked || !w.storageOpen(a, g) {
		return false
	}
	end, ok := w.leaseOver(a.Spec.Name, g)
	if w.r.leaseIgnored {
		end, ok = 0, true
	}
	if !ok || w.now.At < end {
		return false
	}
	text := fmt.Sprintf("volumes of epoch %d revoked; nothing of it was ever claimed", g.Epoch)
	if g.Claimed {
		text = fmt.Sprintf("volumes of epoch %d revoked, and lease %s + drop bound and margin %s passed since its last renewal", g.Epoch, g.Lease, g.Bound)
	}
	w.proof(a, g, Evidence{Kind: EvidenceStorage, Text: text})
	return true
}

// proven says whether every earlier grant has a proof that stands.
func (w *work) proven(a *AppState) bool {
	return a != nil && !slices.ContainsFunc(a.Old, func(g Grant) bool { return g.Exclusion.Proof == nil })
}

// lately says whether a proof was contradicted a moment ago: then new ones count
// only after silence.
func (w *work) lately(a *AppState, x *Exclusion) bool {
	return !x.Contradicted.IsZero() && w.now.Sub(x.Contradicted) < heartbeatTimeout(a)
}

// storageOpen says whether storage evidence is accepted now: by the policy, for
// this way, and after the kinds that the policy prefers had their time or failed.
func (w *work) storageOpen(a *AppState, g *Grant) bool {
	if !g.Way.NeedsVolume() && !w.r.storageForLocal || !g.Way.HasAgent() {
		return false // it runs on without its volumes, or nobody drops it
	}
	p := a.Spec.Policy
	i := slices.Index(p.Evidence, EvidenceStorage)
	if i < 0 {
		return false
	}
	power := slices.Index(p.Evidence, EvidencePower)
	if power < 0 || power > i || g.Node == "" || g.Exclusion.PowerFailed != "" {
		return true
	}
	return w.now.Sub(g.Exclusion.Since) >= p.FenceDeadline.D()
}

// proof accepts evidence about an earlier grant.
func (w *work) proof(a *AppState, g *Grant, e Evidence) {
	e.At = w.now
	g.Exclusion.Proof = &e
	if f := w.failovers.edit(a.Failover); f != nil {
		f.Evidence = append(f.Evidence, e)
	}
	w.say(a, g.Node, "evidence (%s): %s", e.Kind, e.Text)
}

// proveNode accepts evidence about a node for every earlier grant on it.
func (w *work) proveNode(node string, e Evidence, accepted func(a *AppState, g *Grant) bool) {
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		for i := range a.Old {
			g := &a.Old[i]
			if g.Node != node || g.Exclusion.Proof != nil || !accepted(a, g) {
				continue
			}
			a = w.apps.edit(k)
			w.proof(a, &a.Old[i], e)
		}
	}
	w.all = true
}

// fence has ordered what brings the evidence: the revocation, which is safe as
// soon as the epoch is durable, and the power fence of every node concerned.
func (w *work) fence(a *AppState) {
	name := a.Spec.Name
	if !w.released(a) {
		return // its storage is not cut from under it
	}
	if a.Revoked < a.Epoch && !w.has(func(o Action) bool { r, is := o.(Revoke); return is && r.App == name && r.Below == a.Epoch }) {
		w.withdraw(func(o Action) bool { r, is := o.(Revoke); return is && r.App == name })
		w.order(Revoke{Order: Order{App: name, Epoch: a.Epoch}, Below: a.Epoch}, a.Failover)
	}
	for i := range a.Old {
		g := &a.Old[i]
		n := w.nodes.get(g.Node)
		if n == nil || g.Exclusion.Proof != nil {
			continue
		}
		switch {
		case n.Phase == NodeFencing, n.Phase == NodeReserved && n.Owner == name:
			w.powerOff(n)
		case n.Phase == NodeIdle && accepts(a.Spec.Policy, EvidencePower):
			w.suspectNode(g.Node, fmt.Sprintf("%s epoch %d was on it and is not excluded", name, g.Epoch))
		}
	}
}

// released says whether no orderly release is awaited any more: the agent
// attested it, or it took too long, or the node is gone. The node left is fenced.
func (w *work) released(a *AppState) bool {
	open := false
	for i := range a.Old {
		g := &a.Old[i]
		x := g.Exclusion
		if !x.Orderly {
			w.leave(a, g)
			continue
		}
		n := w.node(g.Node)
		gone := x.Proof != nil || n.Power == PowerIsOff && n.PowerAt.At > x.Since.At ||
			w.now.At.Sub(max(n.Heard.At, x.Since.At, w.s.Soft.RestartedAt)) >= heartbeatTimeout(a)
		switch {
		case x.Released:
		case gone || w.now.Sub(x.Since) >= releaseDeadline:
			x.Orderly, x.Since = false, w.now
			w.withdraw(func(o Action) bool { r, is := o.(Release); return is && r.App == a.Spec.Name })
		default:
			open = true
			continue
		}
		w.leave(a, g)
	}
	return !open
}

// leave takes the node of an earlier grant from the application, if that was not
// done when the grant ended because a release was awaited.
func (w *work) leave(a *AppState, g *Grant) {
	if n := w.nodes.get(g.Node); n != nil && n.Phase == NodeOwned && n.Owner == a.Spec.Name && n.Epoch == g.Epoch {
		w.fenceNode(w.nodes.edit(g.Node), "", "left by "+a.Spec.Name)
	}
}

// silent says whether the boots of earlier grants have been silent for long
// enough to tell a proof from a BMC's lie: a heartbeat that is due would have
// come. It costs nothing but for a node that fell just now.
func (w *work) silent(a *AppState) bool {
	wait := heartbeatTimeout(a) / 2
	if w.r.proofsStay || w.r.silenceIgnored {
		return true
	}
	for i := range a.Old {
		g := &a.Old[i]
		n := w.node(g.Node)
		if k := g.Exclusion.Proof.Kind; g.BootID == "" || k != EvidencePower && k != EvidencePerson {
			continue // only a node that is off has to be silent
		}
		if w.now.At.Sub(w.s.Soft.RestartedAt) < wait || n.HeardBoot == g.BootID && w.now.Sub(n.Heard) < wait {
			return false
		}
	}
	return true
}

// fenceNode takes a node from its application: it is to be off, then returned.
func (w *work) fenceNode(n *NodeState, then NodePhase, reason string) {
	w.dropPark(n)
	n.Turn++
	n.OffProof, n.Then = nil, then
	w.nodePhase(n, NodeFencing, reason)
	w.powerOff(n)
}

// powerOff orders the power fence of a node in its present turn.
func (w *work) powerOff(n *NodeState) {
	name, turn := n.Spec.Name, n.Turn
	if n.OffProof != nil || w.has(func(o Action) bool { p, is := o.(PowerOff); return is && p.Node == name && p.Turn == turn }) {
		return
	}
	w.withdraw(func(o Action) bool { p, is := o.(PowerOff); return is && p.Node == name })
	w.order(PowerOff{Order: Order{App: n.Owner, Node: name, Epoch: n.Epoch}, Turn: turn}, w.failoverOf(n.Owner))
}

// noPowerOff says whether no power fence of the node is wanted or may still take
// effect: only then it is powered on.
func (w *work) noPowerOff(node string) bool {
	off := func(o Action) bool { p, is := o.(PowerOff); return is && p.Node == node }
	w.withdraw(off)
	return !w.inFlight(off)
}

// stuck says why the evidence cannot come by itself, and what a person can do.
func (w *work) stuck(a *AppState) (why, fix string) {
	p := a.Spec.Policy
	for i := range a.Old {
		g := &a.Old[i]
		x := g.Exclusion
		if x.Proof != nil || x.Orderly {
			continue
		}
		late := w.now.Sub(x.Since) >= p.FenceDeadline.D()
		if !late && x.PowerFailed == "" {
			continue
		}
		storage := slices.Contains(p.Evidence, EvidenceStorage) && g.Way.NeedsVolume() && g.Way.HasAgent() && g.longestLease() < NoLease
		power := x.PowerFailed
		if power == "" {
			power = "not read back as off within " + p.FenceDeadline.String()
		}
		who := g.Node
		if who == "" {
			who = "an unknown node"
		}
		confirm := fmt.Sprintf("make sure that %s is off, then confirm it by hand; it goes on by itself when the BMC answers", who)
		switch {
		case !storage:
			return fmt.Sprintf("%s may still run epoch %d: power: %s; %s", who, g.Epoch, power, nothingElse(g.Way)), confirm
		case a.Revoked <= g.Epoch && late:
			return fmt.Sprintf("%s may still run epoch %d: power: %s; the storage has not confirmed the revocation", who, g.Epoch, power), confirm
		case w.lately(a, x):
			return fmt.Sprintf("%s still shows life after it was proven to be gone: %s", who, lastVoid(x)), confirm
		}
	}
	const unrevoked = "the storage has not confirmed the revocation"
	if a.Revoked < a.Epoch && !strings.HasPrefix(a.Reason, unrevoked) && (a.Phase == PhaseBlocked || w.now.Sub(a.Since) >= p.FenceDeadline.D()) {
		return unrevoked + w.lastTry(a, Revoke{}.Kind()), "see the storage's errors; it goes on by itself"
	}
	if a.Phase == PhaseBlocked && a.Resume == PhaseFencing {
		return a.Reason, a.Fix // stays until it is ready
	}
	return "", ""
}

// nothingElse says why storage evidence does not count.
func nothingElse(way Way) string {
	switch {
	case !way.HasAgent():
		return "no agent is there to drop it: the revoked storage proves one writer, not one runner"
	case !way.NeedsVolume():
		return "started as " + string(way) + " it needs no volume to run: the revoked storage proves nothing"
	}
	return "the policy accepts nothing else here"
}

// lastTry gives what the open try of an action of the failover ended with last,
// as the end of a sentence.
func (w *work) lastTry(a *AppState, kind string) string {
	if f := w.failovers.get(a.Failover); f != nil {
		for i := len(f.Steps) - 1; i >= 0; i-- {
			if s := f.Steps[i]; s.Kind == kind && s.Ended.IsZero() && s.Text != "" {
				return ": " + s.Text
			}
		}
	}
	return ""
}

// probe asks whether the service address is silent: after the evidence, and
// again while it answers.
func (w *work) probe(a *AppState) {
	f := w.watched(a)
	if !f.AddressAt.IsZero() && (f.Address.Silent || w.now.Sub(f.AddressAt) < probeEvery) {
		return
	}
	name, e := a.Spec.Name, a.Grant.Epoch
	if w.has(func(o Action) bool { p, is := o.(ProbeAddress); return is && p.App == name && p.Epoch == e }) {
		return
	}
	w.order(ProbeAddress{Order: w.head(a), Address: a.Spec.Address}, a.Failover)
}

// proofText says by what evidence the earlier grants are excluded.
func (w *work) proofText(a *AppState) string {
	var out []string
	for i := range a.Old {
		out = append(out, string(a.Old[i].Exclusion.Proof.Kind)+" about "+a.Old[i].Node)
	}
	if out == nil {
		return "evidence " + string(EvidenceNone) + ": it never ran before"
	}
	return "evidence " + strings.Join(out, ", ")
}
