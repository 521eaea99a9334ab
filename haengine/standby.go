package haengine

import (
	"fmt"
	"slices"
	"time"
)

// A node in standby runs the agent in memory and waits. It stays idle and has no
// owner (SAFETY S12): what is kept here decides whether it may be claimed as it
// is. It is bound to one boot id, which the node's agent brought with the one-time
// token of the order to park it; a boot that is not heard any more is not parked.

const (
	parkedSilence = 4 * time.Second  // a parked boot that was not heard for so long is not claimed
	parkedLost    = 30 * time.Second // ... and so long: it is switched off and parked anew
	parkDeadline  = 5 * time.Minute  // from the order to the agent's word
	parkPause     = 30 * time.Second // after the first failure to park a node; doubled with each
	longParkPause = 30 * time.Minute
	surplusAfter  = 30 * time.Second // a parked node that is not needed stays for so long
)

// Park is a node's standby: ordered, or reached.
type Park struct {
	Turn    Turn     `json:"turn"`             // of the order; an agent of an earlier one is refused
	Image   string   `json:"image,omitempty"`  // whose kernel it is parked on; empty: the appliance's own
	Wanted  string   `json:"wanted,omitempty"` // the kernel of Image when it was ordered, as ImageFacts.Kernel
	Apps    []string `json:"apps,omitempty"`   // that it is parked for, the likeliest first
	Ordered Stamp    `json:"ordered"`
	On      Stamp    `json:"on,omitzero"`      // the power-on was confirmed
	BootID  string   `json:"bootID,omitempty"` // of the parked boot, once its agent came
	Kernel  string   `json:"kernel,omitempty"` // that it runs, as ImageFacts.Kernel
	Since   Stamp    `json:"since,omitzero"`
	Loaded  []string `json:"loaded,omitempty"`  // images that it has preloaded
	Ahead   Stamp    `json:"ahead,omitzero"`    // an installation for later failed: none is ordered before
	Refused string   `json:"refused,omitempty"` // why the last preload failed
}

// parkedBoot gives the boot of a node that may be claimed as it is now, or why
// there is none.
func (w *work) parkedBoot(n *NodeState) (boot, why string) {
	switch {
	case n.Park == nil && n.ParkWhy != "":
		return "", "it is not in standby: " + n.ParkWhy
	case n.Park == nil:
		return "", "it is not in standby"
	case n.Park.BootID == "":
		return "", "it is on its way to standby"
	case n.Phase != NodeIdle:
		return "", "it is " + string(n.Phase)
	}
	if why := w.lostBoot(n.Spec.Name, n.Park.BootID, n.Park.Since, parkedSilence); why != "" {
		return "", why
	}
	if !w.r.staleParked && w.node(n.Spec.Name).HeardBoot != n.Park.BootID {
		return "", "its boot was not heard since the appliance started"
	}
	return n.Park.BootID, ""
}

// lostBoot says why a parked boot cannot be relied on: silent for too long, off,
// or another boot came.
func (w *work) lostBoot(node, boot string, since Stamp, silence time.Duration) string {
	s := w.node(node)
	heard := max(since.At, w.s.Soft.RestartedAt)
	if s.HeardBoot == boot {
		heard = max(heard, s.Heard.At)
	}
	switch {
	case w.r.staleParked:
		return ""
	case s.Discovered != "" && s.Discovered != boot && s.SeenAt.At > since.At:
		return "it was booted anew as " + s.Discovered
	case s.Power == PowerIsOff && s.PowerAt.At > heard:
		return "it went off in standby"
	case w.now.At.Sub(heard) >= silence:
		return fmt.Sprintf("its boot was not heard for %s", w.now.At.Sub(heard).Round(time.Second))
	}
	return ""
}

// lostFrom says why a grant that was not claimed cannot go on: its node is not what
// it was taken for, or the parked boot that it begins from is gone.
func (w *work) lostFrom(a *AppState) string {
	g := a.Grant
	switch {
	case g == nil || g.Claimed:
		return ""
	case g.Lost != "":
		return g.Lost
	case g.From == "" || g.Booted:
		return ""
	}
	n := w.nodes.get(g.Node)
	if n == nil || n.Park == nil || n.Park.BootID != g.From {
		return "it is not in standby any more"
	}
	return w.lostBoot(g.Node, g.From, n.Park.Since, 2*parkedSilence)
}

// parked takes a node that was seen, authenticated, in the standby environment.
func (w *work) parked(e Parked) {
	n := w.nodes.get(e.Node)
	if n == nil || e.BootID == "" {
		return
	}
	w.copiesSeen(e.Node, e.Copies)
	if e.Facts != nil {
		f := *e.Facts
		w.nodes.edit(e.Node).Facts = &f
	}
	n = w.nodes.get(e.Node)
	p := n.Park
	switch {
	case p != nil && p.BootID == e.BootID: // it connected again
		w.hear(e.Node, e.BootID)
		w.disable(e.Node, e.BootID)
		return
	case (n.Phase == NodeReserved || n.Phase == NodeOwned) && n.BootID == e.BootID:
		return // it was claimed as it is, and came again
	}
	w.seenAnew(e.Node, e.BootID, "standby")
	switch {
	case p == nil || p.BootID != "" || n.Phase != NodeIdle:
		w.say(nil, e.Node, "boot %s is in standby, which was not ordered: it carries nothing", e.BootID)
		return
	case e.Turn != p.Turn && !w.r.staleParked:
		w.say(nil, e.Node, "boot %s is of turn %d, standby was ordered in turn %d: it is refused", e.BootID, e.Turn, p.Turn)
		return
	}
	n = w.nodes.edit(e.Node)
	n.Park.BootID, n.Park.Kernel, n.Park.Since = e.BootID, e.Kernel, w.now
	n.ParkFails, n.ParkAfter, n.ParkWhy = 0, Stamp{}, ""
	w.hear(e.Node, e.BootID)
	w.say(nil, e.Node, "in standby as boot %s, kernel %s", e.BootID, e.Kernel)
	w.resolve("node/"+e.Node+"/standby", e.Node+" is in standby")
	w.preload(n, "")
	w.news(e.Node + " is in standby")
}

// hear notes that a boot spoke just now.
func (w *work) hear(node, boot string) {
	s := w.seen(node)
	s.Heard, s.HeardBoot, s.Power = w.now, boot, PowerIsOn
	s.PowerAt = w.now
}

// preload has a parked node fetch what a claim for its likeliest applications
// needs, app first. Nothing of the images runs, nothing is attached (SAFETY S8).
func (w *work) preload(n *NodeState, app string) {
	p := n.Park
	var images []string
	for _, name := range slices.Concat([]string{app}, p.Apps) {
		a := w.apps.get(name)
		if a == nil || slices.Contains(images, a.Spec.Image) || len(images) == maxPreload {
			continue
		}
		images = append(images, a.Spec.Image)
	}
	same := func(x Action) bool {
		l, is := x.(Preload)
		return is && l.Node == n.Spec.Name && l.BootID == p.BootID && slices.Equal(l.Images, images)
	}
	if len(images) == 0 || slices.Equal(p.Loaded, images) || w.has(same) {
		return
	}
	w.withdraw(func(x Action) bool { l, is := x.(Preload); return is && l.Node == n.Spec.Name })
	w.order(Preload{Order: Order{App: app, Node: n.Spec.Name}, BootID: p.BootID, Images: images}, 0)
	if a := w.apps.get(app); a != nil && a.Grant != nil && w.r.preloadAttaches {
		w.order(Attach{Order: Order{App: app, Node: n.Spec.Name, Epoch: a.Grant.Epoch}, Spec: a.Spec, Way: WayStandbySwitch}, 0)
	}
}

// maxPreload is how many images one node keeps ready.
const maxPreload = 3

// warm holds a parked node ready for an application that is suspect: others
// choose it last, and it has what the application needs. It is released when the
// suspicion is over.
func (w *work) warm(a *AppState) {
	f := w.watched(a)
	if f.Warm != "" || w.s.Soft.Isolated || w.frozen(a.Spec.Name, "") != nil {
		return
	}
	for _, c := range w.candidates(a) {
		if !c.Eligible || !c.Parked {
			continue
		}
		w.soft(a).Warm = c.Node
		w.say(a, c.Node, "held ready in standby")
		w.preload(w.nodes.edit(c.Node), a.Spec.Name)
		return
	}
}

// cool releases it.
func (w *work) cool(a *AppState) {
	if f := w.watched(a); f.Warm != "" {
		w.say(a, f.Warm, "not held ready any longer")
		w.soft(a).Warm = ""
	}
}

// warmedFor names another application that holds a node ready.
func (w *work) warmedFor(node, but string) string {
	for _, k := range sortedKeys(w.s.Soft.Apps) {
		a := w.apps.get(k)
		if f := w.s.Soft.Apps[k]; k != but && f.Warm == node && a != nil && f.Epoch == grantEpoch(a) {
			return k
		}
	}
	return ""
}

// unpark ends a node's standby: it is switched off, its traces are removed, and
// it is off and idle then.
func (w *work) unpark(n *NodeState, why string) {
	n.ParkWhy = why
	w.say(nil, n.Spec.Name, "leaves standby: %s", why)
	w.fenceNode(n, n.Then, why)
}

// parkFailed ends a standby that was not reached or was lost, and lets the node
// rest, longer with each failure.
func (w *work) parkFailed(n *NodeState, why string) {
	pause := longParkPause
	if n.ParkFails < 6 {
		pause = parkPause << n.ParkFails
	}
	n.ParkFails++
	n.ParkAfter = Stamp{At: w.now.At.Add(pause), Wall: w.now.Wall.Add(pause)}
	w.unpark(n, brief(why))
	if n.ParkFails >= 3 {
		w.notify("node/"+n.Spec.Name+"/standby", Notice{
			Node: n.Spec.Name, Text: fmt.Sprintf("%s does not stay in standby (%d times): %s", n.Spec.Name, n.ParkFails, brief(why)),
			Fix: "see how it boots: hotspare explain boot " + n.Spec.Name,
		})
	}
}

// dropPark forgets a node's standby and what was ordered for it.
func (w *work) dropPark(n *NodeState) {
	if n.Park == nil {
		return
	}
	name := n.Spec.Name
	n.Park = nil
	w.withdraw(func(o Action) bool {
		switch o.(type) {
		case ParkNode, Preload, DisableCopies:
			return o.Head().Node == name
		case Install:
			return o.Head().Node == name && o.Head().Epoch == 0
		}
		return false
	})
}
