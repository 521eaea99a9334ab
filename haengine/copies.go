package haengine

import (
	"fmt"
	"slices"
)

// CopyState is the state of a copy on a local disk.
type CopyState string

// The states of a local copy. What is being written, and what failed, is never
// started.
const (
	CopyWriting  CopyState = "writing"
	CopyReady    CopyState = "ready"
	CopyDisabled CopyState = "disabled" // nothing starts it but a claim that names it
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
	for i := len(n.Copies) - 1; i >= 0; i-- {
		if c := n.Copies[i]; c.App == app && c.Image == image && (c.State == CopyReady || c.State == CopyDisabled) {
			return &c
		}
	}
	return nil
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

// starts notes that a grant starts a copy, so that it is known whose it is.
func (w *work) starts(a *AppState) {
	g := a.Grant
	n := w.nodes.edit(g.Node)
	if n == nil || g.Copy == nil {
		return
	}
	n.Copies = slices.Clone(n.Copies)
	for i := range n.Copies {
		if c := &n.Copies[i]; c.App == g.Copy.App && c.Disk == g.Copy.Disk && c.Slot == g.Copy.Slot && c.Image == g.Copy.Image {
			c.Epoch = g.Epoch
		}
	}
	c := *g.Copy
	c.Epoch = g.Epoch
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
	n.Copies = slices.Clone(found)
}

// disabled takes the agent's word that nothing on its disks starts an application
// by itself any more: that boot is identity evidence for installed copies, too.
func (w *work) disabled(o DisableCopies) {
	n := w.nodes.edit(o.Node)
	if n == nil {
		return
	}
	n.Copies = slices.Clone(n.Copies)
	for i := range n.Copies {
		if n.Copies[i].State == CopyReady {
			n.Copies[i].State = CopyDisabled
		}
	}
	w.say(nil, o.Node, "its local copies are disabled")
	seen := w.node(o.Node)
	if seen.Discovered != o.BootID {
		return // it was booted once more since
	}
	w.proveNode(o.Node, Evidence{Kind: EvidenceIdentity, Text: fmt.Sprintf("%s is seen as boot %s, and its local copies are disabled", o.Node, o.BootID)},
		func(a *AppState, g *Grant) bool {
			return g.Way.LeavesCopy() && g.BootID != o.BootID && !w.lately(a, g.Exclusion)
		})
}

// disable has the local copies of a node disabled that was seen as another boot,
// when evidence about an installed copy waits for that.
func (w *work) disable(node, boot string) {
	waits := false
	for _, k := range w.apps.keys() {
		for _, g := range w.apps.get(k).Old {
			waits = waits || g.Node == node && g.Way.LeavesCopy() && g.Exclusion.Proof == nil && g.BootID != boot
		}
	}
	if !waits || w.has(func(a Action) bool { d, is := a.(DisableCopies); return is && d.Node == node && d.BootID == boot }) {
		return
	}
	w.withdraw(func(a Action) bool { d, is := a.(DisableCopies); return is && d.Node == node })
	w.order(DisableCopies{Order: Order{Node: node}, BootID: boot}, 0)
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
	}
	for _, c := range n.Copies {
		return false, Reason{"local-copy", fmt.Sprintf("its disk holds %s (%s, epoch %d, %s) without a live grant", c.App, c.Image, c.Epoch, c.State)}
	}
	return true, Reason{"no-copy", "hotspare has put nothing on its disk"}
}
