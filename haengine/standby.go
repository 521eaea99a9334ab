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
	Turn    Turn     `json:"turn"`            // of the order; an agent of an earlier one is refused
	Image   string   `json:"image,omitempty"` // whose kernel it is parked on; empty: the appliance's own
	Apps    []string `json:"apps,omitempty"`  // that it is parked for, the likeliest first
	Ordered Stamp    `json:"ordered"`
	On      Stamp    `json:"on,omitzero"`      // the power-on was confirmed
	BootID  string   `json:"bootID,omitempty"` // of the parked boot, once its agent came
	Kernel  string   `json:"kernel,omitempty"` // that it runs, as ImageFacts.Kernel
	Since   Stamp    `json:"since,omitzero"`
	Loaded  []string `json:"loaded,omitempty"`  // images that it has preloaded
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
	case s.HeardBoot != boot:
		return "its boot is not heard"
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
		}
		return false
	})
}

// keepStandby holds the pools to their standby policies. It looks at ticks only.
func (w *work) keepStandby() {
	if w.s.Soft.Isolated {
		return // parking is an effect (SAFETY S5)
	}
	for _, k := range w.nodes.keys() {
		if n := w.nodes.get(k); n.Park != nil && n.Phase == NodeIdle && w.frozen("", k) == nil {
			w.checkParked(n)
		}
	}
	for _, k := range w.pools.keys() {
		if w.frozen("", "") == nil && w.freezes.get(Scope{Pool: k}.String()) == nil {
			w.keepPool(w.pools.get(k))
		}
	}
}

// checkParked ends a standby that was not reached in time or was lost. When many
// fall silent together it is the network: nothing is switched off for that.
func (w *work) checkParked(n *NodeState) {
	p, name := n.Park, n.Spec.Name
	if p.BootID == "" {
		seen := w.node(name)
		switch {
		case !p.On.IsZero() && w.now.Sub(p.On) > settleOff && seen.Power == PowerIsOff && seen.PowerAt.Sub(p.On) > settleOff:
			w.parkFailed(w.nodes.edit(name), "it went off on its way to standby")
		case w.now.Sub(p.Ordered) >= parkDeadline:
			w.parkFailed(w.nodes.edit(name), "it did not reach standby within "+parkDeadline.String())
		case !p.On.IsZero():
			w.readPower("", name, bootReadEvery)
		}
		return
	}
	if why := w.lostBoot(name, p.BootID, p.Since, parkedLost); why != "" {
		if !w.parkedStorm(n.Spec.Pool) {
			w.parkFailed(w.nodes.edit(name), why)
		}
		return
	}
	if w.lostBoot(name, p.BootID, p.Since, parkedSilence) != "" {
		w.readPower("", name, readEvery)
	}
}

// parkedStorm says whether at least three and half of a pool's parked nodes are
// silent, and nothing is known about any of them (SAFETY S6).
func (w *work) parkedStorm(pool string) bool {
	parked, silent := 0, 0
	for _, k := range w.nodes.keys() {
		n := w.nodes.get(k)
		if n.Spec.Pool != pool || n.Park == nil || n.Park.BootID == "" {
			continue
		}
		parked++
		s := w.node(k)
		if s.Power != PowerIsOff && w.lostBoot(k, n.Park.BootID, n.Park.Since, parkedSilence) != "" {
			silent++
		}
	}
	site := w.s.Durable.Site.WithDefaults()
	return silent >= site.StormNodes && float64(silent) >= site.StormShare*float64(parked)
}

// keepPool parks nodes that are missing, or lets those go that are too many.
func (w *work) keepPool(p *Pool) {
	var parked, free []*NodeState
	busy, moving := 0, 0
	for _, k := range w.nodes.keys() {
		n := w.nodes.get(k)
		switch {
		case n.Spec.Pool != p.Name:
		case n.Phase == NodeReserved || n.Phase == NodeOwned:
			busy++
		case n.Phase == NodeFencing:
			busy++
		case n.Phase == NodeIdle && n.Park != nil:
			parked = append(parked, n)
			if n.Park.BootID == "" {
				moving++
			}
		case n.Phase == NodeIdle:
			free = append(free, n)
		}
	}
	policy := Standby{}
	if p.Standby != nil {
		policy = *p.Standby
	}
	if policy.Nodes == 0 && len(parked) == 0 {
		return
	}
	want := policy.Nodes
	if policy.PowerBudget > 0 {
		want = max(0, min(want, policy.PowerBudget-busy))
	}
	for ; len(parked) > want; parked = parked[:len(parked)-1] {
		w.surplus(parked[len(parked)-1])
	}
	for _, n := range w.parkable(free, policy) {
		if len(parked) >= want || moving >= policy.atOnce() {
			return
		}
		n = w.nodes.edit(n.Spec.Name)
		if w.node(n.Spec.Name).Power == PowerIsOff {
			w.park(n, policy, len(parked))
		} else {
			w.fenceNode(n, "", "it is in discovery, and goes to standby from off")
		}
		parked = append(parked, n)
		moving++
	}
}

// surplus lets a parked node go that the policy does not ask for, unless an
// application holds it ready or it came just now.
func (w *work) surplus(n *NodeState) {
	if w.warmedFor(n.Spec.Name, "") == "" && w.now.Sub(n.Park.Ordered) >= surplusAfter {
		w.unpark(w.nodes.edit(n.Spec.Name), "the pool's policy does not ask for it")
	}
}

// parkable gives the idle nodes that may be put in standby now, the best first.
// A node is powered on for it only when it was read as off a moment ago; one that
// is known to run nothing, because its agent in discovery says so, is switched off
// first. Whatever else is on is left alone.
func (w *work) parkable(free []*NodeState, policy Standby) []*NodeState {
	var out []*NodeState
	for _, n := range free {
		s, name := w.node(n.Spec.Name), n.Spec.Name
		if w.now.Sub(n.Since) < settleOff { // what was fenced may still show life
			continue
		}
		if !n.Spec.Approved || n.Removing || s.BMCDead != "" || !n.ParkAfter.IsZero() && w.now.At < n.ParkAfter.At {
			continue
		}
		idle := s.Discovered != "" && s.HeardBoot == s.Discovered && w.now.Sub(s.Heard) < parkedSilence
		if (s.Power != PowerIsOff || w.now.Sub(s.PowerAt) >= freshOff) && !idle {
			w.readPower("", name, freshOff/2)
			continue
		}
		out = append(out, n)
	}
	slices.SortStableFunc(out, func(x, y *NodeState) int {
		if d := x.ParkFails - y.ParkFails; d != 0 {
			return d
		}
		return w.fits(policy, y) - w.fits(policy, x)
	})
	return out
}

// fits counts the applications that a node is parked for and could carry.
func (w *work) fits(policy Standby, n *NodeState) int {
	count := 0
	for _, k := range w.parkedFor(policy, n.Spec.Pool) {
		if a := w.apps.get(k); a != nil && carries(a.Spec.Requires, n.Spec) {
			count++
		}
	}
	return count
}

func carries(q Requirements, s Node) bool {
	for k, v := range q.Labels {
		if s.Labels[k] != v {
			return false
		}
	}
	return (q.Arch == "" || q.Arch == s.Arch) && s.CPUs >= q.CPUs && s.MemoryMiB >= q.MemoryMiB && s.DiskGiB >= q.DiskGiB
}

// parkedFor gives the applications that nodes of a pool are parked for: as the
// policy says, else all that may use the pool, the most important first.
func (w *work) parkedFor(policy Standby, pool string) []string {
	if len(policy.For) > 0 {
		return policy.For
	}
	var out []string
	for _, k := range w.apps.keys() {
		if slices.Contains(w.apps.get(k).Spec.Pools, pool) {
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(x, y string) int { return w.apps.get(y).Spec.Priority - w.apps.get(x).Spec.Priority })
	return out
}

// park orders a node into standby. The applications take turns in being the
// likeliest, so that several nodes are parked on several kernels.
func (w *work) park(n *NodeState, policy Standby, nth int) {
	var apps []string
	for _, k := range w.parkedFor(policy, n.Spec.Pool) {
		if a := w.apps.get(k); a != nil && carries(a.Spec.Requires, n.Spec) {
			apps = append(apps, k)
		}
	}
	if len(apps) > 0 {
		nth %= len(apps)
		apps = slices.Concat(apps[nth:], apps[:nth])
	}
	image := policy.Kernel
	if image == "" && len(apps) > 0 {
		image = w.apps.get(apps[0]).Spec.Image
	}
	if image == KernelOfAppliance || policy.Kernel == "" && w.images.get(image) == nil {
		image = ""
	}
	n.Turn++
	n.OffProof = nil
	n.Park = &Park{Turn: n.Turn, Image: image, Apps: apps, Ordered: w.now}
	n.ParkWhy = ""
	w.seen(n.Spec.Name).Power = PowerUnknown
	w.say(nil, n.Spec.Name, "goes to standby%s", forApps(apps))
	w.order(ParkNode{Order: Order{Node: n.Spec.Name}, Turn: n.Turn, Image: image}, 0)
}

func forApps(apps []string) string {
	if len(apps) == 0 {
		return ""
	}
	return fmt.Sprintf(" for %v", apps)
}
