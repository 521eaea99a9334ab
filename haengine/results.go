package haengine

import (
	"fmt"

	"hotspare"
)

// done takes the end of an action. What belongs to an earlier epoch or turn is
// noted as ended and otherwise ignored.
func (w *work) done(e Done) {
	p := w.getPending(e.ID)
	if p == nil {
		return
	}
	if off, is := p.Action.(PowerOff); is && !p.Withdrawn && !w.countsAsOff(off, e) {
		return
	}
	w.step(p, true, resultText(e))
	w.endPending(e.ID)
	w.all = true
	if p.Withdrawn {
		return
	}
	h := p.Action.Head()
	a := w.apps.get(h.App)
	ours := a != nil && a.Grant != nil && a.Grant.Epoch == h.Epoch
	switch o := p.Action.(type) {
	case ReadPower:
		if e.Read != nil {
			w.powerRead(h.Node, *e.Read)
		}
	case PowerOff:
		w.isOff(o, e.Power)
	case Revoke:
		if a != nil && e.Revocation != nil && e.Revocation.Below >= o.Below {
			a = w.apps.edit(h.App)
			a.Revoked, a.RevokedAt = max(a.Revoked, o.Below), w.now
			w.say(a, "", "volumes revoked below epoch %d: %d sessions closed, %d writes drained", o.Below, e.Revocation.Sessions, e.Revocation.Drained)
			w.unclean(a, p.Tries, e.Revocation.Sessions)
		}
	case Attach:
		if ours {
			w.apps.edit(h.App).Grant.AttachEnd = true
		}
	case Boot:
		if ours {
			w.apps.edit(h.App).Grant.BootDone = w.now
			if o.BootID != "" {
				w.say(a, h.Node, "executes the image's kernel")
			} else {
				w.say(a, h.Node, "powered on")
			}
		}
	case Install:
		if o.Epoch == 0 {
			w.installedAhead(o, e.Copy)
		} else if ours && e.Copy == nil {
			w.attemptFailed(w.apps.edit(h.App), "the installation ended without a word about the copy", false)
		} else if ours {
			a = w.apps.edit(h.App)
			w.written(a, *e.Copy)
			f := w.soft(a) // it took its time: the address is asked anew
			f.Address, f.AddressAt = AddressProbe{}, Stamp{}
		}
	case ParkNode:
		if n := w.nodes.edit(h.Node); n != nil && n.Park != nil && n.Park.Turn == o.Turn {
			n.Park.On = w.now
		}
	case Preload:
		if n := w.nodes.edit(h.Node); n != nil && n.Park != nil && n.Park.BootID == o.BootID {
			n.Park.Loaded, n.Park.Refused = o.Images, ""
		}
	case DisableCopies:
		w.disabled(o)
	case Release:
		w.attested(h)
	case ProbeAddress:
		if ours && e.Address != nil {
			f := w.soft(a)
			f.Address, f.AddressAt = *e.Address, w.now
			if !e.Address.Silent {
				w.answered(h.App, e.Address.By)
			}
		}
	case ReturnNode:
		if n := w.nodes.edit(h.Node); n != nil && n.Phase == NodeReturning && n.Turn == o.Turn {
			w.freeNode(n, n.Then, n.Reason)
		}
	}
}

func resultText(e Done) string {
	switch {
	case e.Power != nil:
		return fmt.Sprintf("off, read back %d times", len(e.Power.Reads))
	case e.Revocation != nil:
		return fmt.Sprintf("revoked below %d, %d sessions closed", e.Revocation.Below, e.Revocation.Sessions)
	case e.Address != nil && e.Address.Silent:
		return "silent"
	case e.Address != nil:
		return "answers at " + e.Address.By
	}
	return "done"
}

// countsAsOff says whether a finished power fence is a proof now. If not, it is
// done again.
func (w *work) countsAsOff(o PowerOff, e Done) bool {
	if e.Power == nil || !e.Power.Proven() {
		w.failed(Failed{ID: e.ID, Why: "off was not read back twice in a row", Transient: true, Power: e.Power})
		return false
	}
	booting := w.inFlight(func(x Action) bool {
		switch b := x.(type) {
		case Boot:
			return b.Node == o.Node && b.Turn < o.Turn
		case ParkNode:
			return b.Node == o.Node && b.Turn < o.Turn
		}
		return false
	})
	if booting { // an earlier power-on may still take effect
		w.again(e.ID)
		return false
	}
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		for i := range a.Old {
			if g := &a.Old[i]; g.Node == o.Node && g.Exclusion.Proof == nil && w.lately(a, g.Exclusion) && !w.r.proofsStay {
				w.again(e.ID)
				return false
			}
		}
	}
	return true
}

// isOff takes power evidence about a node in its present turn.
func (w *work) isOff(o PowerOff, ev *PowerEvidence) {
	n := w.nodes.edit(o.Node)
	if n == nil || n.Turn != o.Turn {
		return
	}
	proof := Evidence{Kind: EvidencePower, At: w.now, Text: o.Node + " was read back as off twice", Reads: ev.Reads}
	n.OffProof = &proof
	seen := w.seen(o.Node)
	seen.Power, seen.PowerAt, seen.BMCDead = PowerIsOff, w.now, ""
	w.say(nil, o.Node, "proven off")
	w.proveNode(o.Node, proof, func(a *AppState, g *Grant) bool { return accepts(a.Spec.Policy, EvidencePower) })
	for _, k := range w.apps.keys() {
		if a := w.apps.get(k); a.Grant != nil && a.Grant.Node == o.Node && !a.Grant.Booted {
			w.apps.edit(k).Grant.Prepared = true
		}
	}
}

func accepts(p Policy, k EvidenceKind) bool {
	for _, e := range p.Evidence {
		if e == k {
			return true
		}
	}
	return false
}

// attested takes the agent's word that it ended a grant in order.
func (w *work) attested(h Order) {
	a := w.apps.edit(h.App)
	if a == nil {
		return
	}
	for i := range a.Old {
		if g := &a.Old[i]; g.Epoch == h.Epoch && g.Node == h.Node && g.Exclusion.Orderly {
			g.Exclusion.Released = true
			w.say(a, h.Node, "epoch %d was released in order", h.Epoch)
			if !g.Way.NeedsVolume() && !w.r.releaseTrusted {
				g.Exclusion.Orderly, g.Exclusion.Since = false, w.now // its own word only: no log-out could tell otherwise
				w.say(a, h.Node, "started as %s it needs no volume to run: the node is fenced", g.Way)
			}
		}
	}
}

// failed takes a failed try of an action and decides whether it is tried again.
func (w *work) failed(e Failed) {
	p := w.getPending(e.ID)
	if p == nil {
		return
	}
	w.step(p, p.Withdrawn, e.Why)
	w.all = true
	if p.Withdrawn {
		w.endPending(e.ID)
		return
	}
	h := p.Action.Head()
	a := w.apps.get(h.App)
	ours := a != nil && a.Grant != nil && a.Grant.Epoch == h.Epoch
	drop := func() { w.endPending(e.ID) }
	switch o := p.Action.(type) {
	case ReadPower:
		if e.Transient && p.Tries < 3 {
			w.again(e.ID)
			return
		}
		drop()
		w.powerRead(h.Node, PowerReading{Err: e.Why})
	case PowerOff:
		w.notOff(o, e)
	case Attach:
		w.again(e.ID)
		switch {
		case !ours:
			drop()
		case e.Code == hotspare.CodeStaleEpoch:
			drop()
			w.attemptFailed(w.apps.edit(h.App), "the storage knows a later epoch: "+e.Why, false)
		case !e.Transient || p.Tries >= 3:
			w.block(w.apps.edit(h.App), PhaseAttaching, e.Code, "its volumes cannot be exported: "+e.Why, "mend the storage; it is tried again by itself")
		}
	case Boot:
		if ours && (!e.Transient || p.Tries >= 4 && o.BootID == "") { // of a parked boot nobody knows whether it went
			drop()
			w.attemptFailed(w.apps.edit(h.App), "it cannot be booted: "+e.Why, true)
			return
		}
		w.again(e.ID)
	case Claim:
		if ours && !e.Transient {
			drop()
			w.attemptFailed(w.apps.edit(h.App), "the agent refused the claim: "+e.Why, true)
			return
		}
		w.again(e.ID)
	case Install:
		if o.Epoch == 0 {
			drop()
			w.notAhead(o, e)
			return
		}
		if ours && !e.Transient {
			drop()
			w.attemptFailed(w.apps.edit(h.App), "the image cannot be installed: "+e.Why, true)
			return
		}
		w.again(e.ID)
	case ParkNode:
		n := w.nodes.get(h.Node)
		if n == nil || n.Park == nil || n.Park.Turn != o.Turn {
			drop()
			return
		}
		w.again(e.ID)
		if !e.Transient || p.Tries >= 4 {
			w.parkFailed(w.nodes.edit(h.Node), "it cannot be booted: "+e.Why)
		}
	case Preload, DisableCopies:
		if e.Transient && p.Tries < 4 {
			w.again(e.ID)
			return
		}
		drop()
		w.say(nil, h.Node, "%s failed: %s", o.Kind(), e.Why)
		if n := w.nodes.edit(h.Node); n != nil && n.Park != nil {
			n.Park.Refused = brief(e.Why)
		}
	case Release:
		if e.Transient {
			w.again(e.ID)
			return
		}
		drop()
		w.notReleased(h, e.Why)
	case ProbeAddress:
		w.again(e.ID)
		if ours && p.Tries >= 4 && a.Phase == PhaseStarting {
			w.block(w.apps.edit(h.App), PhaseStarting, e.Code, "nobody can say whether the service address is free: "+e.Why, "mend the appliance's interface; it is tried again by itself")
		}
	default: // revoke, return, cancel, delete, notify: until they succeed
		w.again(e.ID)
	}
}

// notOff takes a failed power fence. It goes on for as long as the node is to be
// off; the failure only opens the next kind of evidence.
func (w *work) notOff(o PowerOff, e Failed) {
	if w.r.timeoutIsOff {
		w.endPending(e.ID)
		w.isOff(o, &PowerEvidence{})
		return
	}
	p := w.getPending(e.ID)
	n := w.nodes.get(o.Node)
	if n == nil || n.Turn != o.Turn {
		w.endPending(e.ID)
		return
	}
	w.again(e.ID)
	if p.Tries == 1 || !e.Transient {
		w.say(nil, o.Node, "not proven off: %s", e.Why)
	}
	if !e.Transient {
		w.seen(o.Node).BMCDead = brief(e.Why)
		for _, k := range w.apps.keys() {
			a := w.apps.get(k)
			for i := range a.Old {
				if g := &a.Old[i]; g.Node == o.Node && g.Exclusion.Proof == nil && g.Exclusion.PowerFailed != e.Why {
					w.apps.edit(k).Old[i].Exclusion.PowerFailed = e.Why
				}
			}
		}
	}
	if e.Transient && p.Tries < 3 {
		return
	}
	a := w.apps.get(n.Owner)
	if a == nil || a.Grant == nil || a.Grant.Node != o.Node {
		return
	}
	chosen := n.Phase == NodeReserved && !a.Grant.Attached
	attaching := n.Phase == NodeOwned && !a.Grant.Prepared && !a.Grant.Booted
	if chosen || attaching {
		w.attemptFailed(w.apps.edit(n.Owner), "it cannot be proven off before its boot: "+e.Why, true)
	}
}

// unclean takes the trust from attested releases whose log-out the target did
// not see (SAFETY S2.6): the revocation had to close sessions of data volumes,
// or it was tried before and nobody knows what that try closed. The node is
// being fenced; other evidence is to come.
func (w *work) unclean(a *AppState, tries, sessions int) {
	if sessions == 0 && tries <= 1 || w.r.releaseTrusted {
		return
	}
	why := fmt.Sprintf("%d sessions of its data volumes were still open", sessions)
	if sessions == 0 {
		why = "the revocation was tried twice, its log-out cannot be told"
	}
	for i := range a.Old {
		g := &a.Old[i]
		if x := g.Exclusion; x.Orderly && x.Released && x.Proof == nil {
			x.Orderly, x.Since = false, w.now
			w.say(a, g.Node, "the release of epoch %d does not count: %s", g.Epoch, why)
		}
	}
}

// notReleased ends an orderly release that failed: the node is fenced.
func (w *work) notReleased(h Order, why string) {
	a := w.apps.edit(h.App)
	if a == nil {
		return
	}
	for i := range a.Old {
		if g := &a.Old[i]; g.Epoch == h.Epoch && g.Exclusion.Orderly && !g.Exclusion.Released {
			g.Exclusion.Orderly, g.Exclusion.Since = false, w.now
			w.say(a, h.Node, "not released in order: %s", why)
		}
	}
}
