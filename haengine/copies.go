package haengine

import (
	"fmt"
	"slices"
	"strings"
)

// CopyState is the state of a copy on a local disk.
type CopyState string

// The states of a local copy. Only a ready one is started, and a whole disk that
// was started before: a slot that was is not what was installed any more.
const (
	CopyWriting  CopyState = "writing"
	CopyReady    CopyState = "ready"    // written and read back, never started
	CopyStarted  CopyState = "started"  // a grant started it
	CopyDisabled CopyState = "disabled" // nothing starts it any more
	CopyFailed   CopyState = "failed"   // it did not come up, or its digest differs
)

// LocalCopy is an image of an application on a node's local disk. It is known
// before its first byte is written, and until an agent said that it is gone.
type LocalCopy struct {
	App    string    `json:"app"`
	Epoch  Epoch     `json:"epoch"`          // of the last grant that wrote or started it
	Image  string    `json:"image"`          // name:version
	Disk   string    `json:"disk,omitempty"` // stable id
	Slot   string    `json:"slot,omitempty"` // empty: the whole disk, or not known yet
	Digest string    `json:"digest,omitempty"`
	State  CopyState `json:"state"`
}

// usableCopy gives the copy of an image that an application may be started from.
func (n *NodeState) usableCopy(app, image string) *LocalCopy {
	for _, c := range slices.Backward(n.Copies) {
		// One that was started, and of which only the disk says so, is not relied on:
		// whoever ran there last may have written it.
		if c.App == app && c.Image == image && (c.State == CopyReady || c.State == CopyStarted && c.Slot == "" && !n.Listed) {
			return &c
		}
	}
	return nil
}

// roomFor says whether an application may be installed on the node's disk: no other
// one's copy is overwritten that may be started.
func (n *NodeState) roomFor(app string) bool {
	taken := map[string]bool{}
	for _, c := range n.Copies {
		if c.App != app && (c.State == CopyReady || c.State == CopyStarted) {
			taken[c.Slot] = true
		}
	}
	d := n.Spec.Disk
	return d == nil || d.Overwrite && d.Slots == 0 || len(taken) < max(1, d.Slots)
}

// writes notes, before it is ordered, that a grant puts an application on its
// node's disk. What the disk held of it before is not to be started any more.
func (w *work) writes(a *AppState) {
	g := a.Grant
	n := w.nodes.edit(g.Node)
	image := a.Spec.Image
	if f := w.images.get(image); f != nil {
		image = f.Image
	}
	c := LocalCopy{App: a.Spec.Name, Epoch: g.Epoch, Image: image, State: CopyWriting}
	if n != nil {
		n.Copies = append(slices.DeleteFunc(slices.Clone(n.Copies), func(o LocalCopy) bool { return o.App == c.App && o.Epoch == c.Epoch }), c)
	}
	g.Copy = &c
}

// starts notes that a grant starts a copy, so that it is known whose it is. A slot
// stays as it was installed: what runs in it writes to memory.
func (w *work) starts(a *AppState) {
	g := a.Grant
	n := w.nodes.edit(g.Node)
	if n == nil || g.Copy == nil {
		return
	}
	state := CopyStarted
	if g.Copy.Slot != "" {
		state = CopyReady
	}
	n.Copies, n.Listed = slices.Clone(n.Copies), false
	for i := range n.Copies {
		if c := &n.Copies[i]; c.App == g.Copy.App && c.Disk == g.Copy.Disk && c.Slot == g.Copy.Slot && c.Image == g.Copy.Image {
			c.Epoch, c.State = g.Epoch, state
		}
	}
	c := *g.Copy
	c.Epoch, c.State = g.Epoch, state
	g.Copy = &c
}

// written takes the word that an installation ended: the copy is whole, read
// back, and has the digest.
func (w *work) written(a *AppState, c LocalCopy) {
	g := a.Grant
	c.App, c.Epoch, c.State = a.Spec.Name, g.Epoch, CopyReady
	if c.Image == "" && g.Copy != nil {
		c.Image = g.Copy.Image
	}
	if n := w.nodes.edit(g.Node); n != nil {
		// What stood in the same place is overwritten; the entry of this grant had
		// no place yet.
		n.Copies = append(slices.DeleteFunc(slices.Clone(n.Copies), func(o LocalCopy) bool {
			return o.App == c.App && o.Epoch == c.Epoch || o.Disk == c.Disk && (o.Slot == c.Slot || o.Slot == "" || c.Slot == "")
		}), c)
	}
	g.Copy, g.Installed = &c, true
	w.say(a, g.Node, "installed on disk %s%s", orUnknownDisk(c.Disk), slotText(c.Slot))
}

func orUnknownDisk(d string) string {
	if d == "" {
		return "(unnamed)"
	}
	return d
}

func slotText(s string) string {
	if s == "" {
		return ""
	}
	return ", slot " + s
}

// copyFailed marks the copy that a grant did not come up from.
func (w *work) copyFailed(g *Grant) {
	n := w.nodes.edit(g.Node)
	if n == nil || g.Copy == nil {
		return
	}
	n.Copies = slices.Clone(n.Copies)
	for i := range n.Copies {
		if c := &n.Copies[i]; c.App == g.Copy.App && c.Epoch == g.Epoch {
			c.State = CopyFailed
		}
	}
}

// copiesSeen takes an authenticated agent's list of what is on its disks.
func (w *work) copiesSeen(node string, found []LocalCopy) {
	n := w.nodes.edit(node)
	if n == nil || found == nil {
		return
	}
	n.Copies, n.Listed = slices.Clone(found), true
}

// disabled takes the agent's word that nothing on its disks starts an application
// by itself any more: that boot is identity evidence for installed copies, too.
func (w *work) disabled(o DisableCopies) {
	n := w.nodes.edit(o.Node)
	if n == nil {
		return
	}
	n.Copies = slices.Clone(n.Copies)
	apps := map[string]bool{}
	for _, app := range o.Apps {
		apps[app] = true
	}
	for i := range n.Copies {
		if apps[n.Copies[i].App] {
			n.Copies[i].State = CopyDisabled
		}
	}
	w.say(nil, o.Node, "its local copies of %s are disabled", strings.Join(o.Apps, ", "))
	if w.node(o.Node).Discovered != o.BootID {
		return // it was booted once more since
	}
	w.proveNode(o.Node, Evidence{Kind: EvidenceIdentity, Text: fmt.Sprintf("%s is seen as boot %s, and its local copies are disabled", o.Node, o.BootID)},
		func(a *AppState, g *Grant) bool {
			return apps[a.Spec.Name] && g.Way.LeavesCopy() && g.BootID != o.BootID && !w.lately(a, g.Exclusion)
		})
}

// disable has the copies on a node disabled, which was seen carrying nothing, that
// were started there before, and those of applications whose evidence waits for
// that. A copy that was installed for later stays.
func (w *work) disable(node, boot string) {
	waits := map[string]bool{}
	if n := w.nodes.get(node); n != nil {
		for _, c := range n.Copies {
			if c.State == CopyStarted || c.State != CopyDisabled && w.removed(c.App) {
				waits[c.App] = true
			}
		}
	}
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		for _, g := range a.Old {
			if g.Node == node && g.Way.LeavesCopy() && g.Exclusion.Proof == nil && g.BootID != boot {
				waits[k] = true
			}
		}
	}
	if len(waits) == 0 || w.has(func(a Action) bool { d, is := a.(DisableCopies); return is && d.Node == node && d.BootID == boot }) {
		return
	}
	w.withdraw(func(a Action) bool { d, is := a.(DisableCopies); return is && d.Node == node })
	w.order(DisableCopies{Order: Order{Node: node}, BootID: boot, Apps: sortedKeys(waits)}, 0)
}

// removed says whether an application was known once and is not any more.
func (w *work) removed(app string) bool {
	return w.apps.get(app) == nil && w.s.Durable.Floors[app] > 0
}

// LocalBoot says whether a node may be handed back to its firmware to start from
// its own disk (SAFETY S2a), and why. Whoever answers boot requests asks it; the
// answer holds for this request only.
func LocalBoot(s State, node string) (bool, Reason) {
	n := s.Durable.Nodes[node]
	if n == nil {
		return false, Reason{"unknown-node", "there is no node " + node}
	}
	if a := s.Durable.Apps[n.Owner]; n.Phase == NodeOwned && a != nil && a.Grant != nil && a.Grant.Node == node && a.Grant.Way.LeavesCopy() {
		if g := a.Grant; g.Booted && g.BootID == "" && (g.Way == WaySlot || g.Installed) {
			return true, Reason{"live-grant", fmt.Sprintf("epoch %d of %s starts from its disk", g.Epoch, n.Owner)}
		}
	}
	switch {
	case n.Phase == NodeFencing || n.Phase == NodeReturning || n.Phase == NodeQuarantined:
		return false, Reason{"not-released", fmt.Sprintf("%s is %s: it boots nothing but discovery", node, n.Phase)}
	case n.Phase != NodeIdle && n.Phase != NodeMaintenance:
		return false, Reason{"other-way", fmt.Sprintf("%s is %s, and nothing of it starts from its disk", node, n.Phase)}
	case n.Park != nil:
		return false, Reason{"standby", node + " goes to standby"}
	}
	for _, c := range n.Copies { // disabled or not: nothing of it is to run
		return false, Reason{"local-copy", fmt.Sprintf("its disk holds %s (%s, epoch %d, %s) without a live grant", c.App, c.Image, c.Epoch, c.State)}
	}
	if !n.Listed {
		return false, Reason{"not-listed", "no agent has said yet what its disks hold"}
	}
	return true, Reason{"no-copy", "its agent has found nothing of hotspare's on its disks, and nothing was put there since"}
}

// install has the image written to the node's disk before it is claimed. That the
// disk holds it is known from here on.
func (w *work) install(a *AppState) {
	g, limit := a.Grant, a.Spec.Policy.InstallLimit.D()
	ids := w.open(func(p *Pending) bool {
		i, is := p.Action.(Install)
		return is && !p.Withdrawn && i.App == a.Spec.Name && i.Epoch == g.Epoch
	})
	lost := w.lostBoot(g.Node, g.BootID, g.Joined, parkedLost)
	switch {
	case lost != "":
		w.attemptFailed(a, "while the image was written: "+lost, true)
	case len(ids) == 0:
		w.writes(a)
		w.order(Install{Order: w.head(a), BootID: g.BootID, Image: g.Copy.Image}, a.Failover)
	case w.now.Sub(w.getPending(ids[0]).Ordered) >= limit:
		w.attemptFailed(a, "the image was not written within "+limit.String(), true)
	default:
		w.readPower(a.Spec.Name, g.Node, bootReadEvery)
	}
}
