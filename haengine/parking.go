package haengine

import (
	"fmt"
	"slices"
)

// This file holds the pools to their standby policies: who is parked, who is let
// go, and who rests. What a parked boot is worth stands in standby.go.

// keepStandby holds the pools to their standby policies. It looks at ticks only.
func (w *work) keepStandby() {
	if w.s.Soft.Isolated {
		return // parking is an effect (SAFETY S5)
	}
	for _, k := range w.nodes.keys() {
		if n := w.nodes.get(k); n.Park != nil && n.Phase == NodeIdle && w.frozen("", k) == nil {
			w.checkParked(n)
			w.installAhead(k)
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
	busy, moving, leaving := 0, 0, 0
	for _, k := range w.nodes.keys() {
		n := w.nodes.get(k)
		switch {
		case n.Spec.Pool != p.Name:
		case n.Phase == NodeReserved || n.Phase == NodeOwned:
			busy++
		case n.Phase == NodeFencing, n.Phase == NodeReturning:
			busy++
			leaving++
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
	if moving+leaving == 0 && (len(parked) >= want || len(free) == 0) {
		w.renew(parked, policy)
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

// renew lets one parked node go that waits on another kernel than it should by now;
// it comes again on the right one. The others wait meanwhile.
func (w *work) renew(parked []*NodeState, policy Standby) {
	for _, n := range parked {
		p, why := n.Park, ""
		f := w.images.get(p.Image)
		switch {
		case p.BootID == "" || w.warmedFor(n.Spec.Name, "") != "" || w.now.Sub(p.Ordered) < surplusAfter:
		case policy.Kernel == KernelOfAppliance && p.Image != "", policy.Kernel != "" && policy.Kernel != KernelOfAppliance && policy.Kernel != p.Image:
			why = "the pool's policy asks for another kernel"
		case p.Wanted != "" && f != nil && f.Kernel != p.Wanted:
			why = p.Image + " has another kernel now"
		}
		if why != "" {
			w.unpark(w.nodes.edit(n.Spec.Name), why)
			return
		}
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
	if f := w.images.get(image); f != nil {
		n.Park.Wanted = f.Kernel
	}
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
