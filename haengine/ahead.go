package haengine

import (
	"slices"
	"time"
)

// This file is about installations for later: a parked node that may have images on
// its disk gets those of the applications that it is parked for, so that a failover
// copies nothing over the network. They start nothing, and a claim comes first: the
// agent gives an installation up for it.

const (
	aheadPause = 10 * time.Minute // after an installation for later that failed
	aheadBreak = 30 * time.Second // ... or that something came between
)

// installAhead orders the next image that is missing on a parked node's disk.
func (w *work) installAhead(node string) {
	n := w.nodes.get(node)
	if n.Park == nil || n.Spec.Disk == nil || n.Facts == nil || !n.Facts.Disk || w.now.At < n.Park.Ahead.At {
		return
	}
	boot, _ := w.parkedBoot(n)
	if boot == "" || w.warmedFor(node, "") != "" || w.writesDisk(node) {
		return
	}
	room := max(1, n.Spec.Disk.Slots)
	for _, k := range n.Park.Apps {
		a := w.apps.get(k)
		if a == nil || a.Removing || !slices.Contains(a.Spec.Policy.Ways, WaySlot) || !carries(a.Spec.Requires, n.Spec) {
			continue
		}
		f := w.images.get(a.Spec.Image)
		if f == nil || !slices.Contains(f.Ways, WaySlot) {
			continue
		}
		if room--; room < 0 {
			return
		}
		if n.usableCopy(k, f.Image) == nil {
			w.say(nil, node, "gets %s for %s on its disk", f.Image, k)
			w.order(Install{Order: Order{App: k, Node: node}, BootID: boot, Image: f.Image}, 0)
			return
		}
	}
}

// writesDisk says whether something is to be done, or to be found out, about a
// node's disk before more is written to it.
func (w *work) writesDisk(node string) bool {
	if w.has(func(x Action) bool {
		switch x.(type) {
		case Install, DisableCopies:
			return x.Head().Node == node
		}
		return false
	}) {
		return true
	}
	for _, k := range w.apps.keys() {
		for _, g := range w.apps.get(k).Old {
			if g.Node == node && g.Way.LeavesCopy() && g.Exclusion.Proof == nil {
				return true
			}
		}
	}
	return false
}

// installedAhead takes the word that an image is on a parked node's disk.
func (w *work) installedAhead(o Install, c *LocalCopy) {
	n := w.nodes.edit(o.Node)
	if n == nil || c == nil || n.Park == nil || n.Park.BootID != o.BootID {
		return // another boot tells what its disk holds
	}
	x := *c
	x.App, x.Epoch, x.State = o.App, 0, CopyReady
	if x.Image == "" {
		x.Image = o.Image
	}
	n.Copies = append(slices.DeleteFunc(slices.Clone(n.Copies), func(c LocalCopy) bool {
		return c.Disk == x.Disk && (c.Slot == x.Slot || c.Slot == "" || x.Slot == "")
	}), x)
	w.say(nil, o.Node, "holds %s for %s on disk %s%s", x.Image, o.App, orUnknownDisk(x.Disk), slotText(x.Slot))
}

// notAhead lets a node rest whose installation for later failed.
func (w *work) notAhead(o Install, e Failed) {
	n := w.nodes.edit(o.Node)
	if n == nil || n.Park == nil || n.Park.BootID != o.BootID {
		return
	}
	pause := aheadPause
	if e.Transient {
		pause = aheadBreak
	}
	n.Park.Ahead = Stamp{At: w.now.At.Add(pause), Wall: w.now.Wall.Add(pause)}
	n.Park.Refused = brief("installing " + o.Image + " for " + o.App + ": " + e.Why)
	w.say(nil, o.Node, "the installation of %s for %s failed: %s", o.Image, o.App, e.Why)
}
