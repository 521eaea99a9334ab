package sim

import (
	"fmt"
	"slices"
	"time"

	"hotspare"
	"hotspare/haengine"
)

// This file is the world of standby, of the ways other than a cold start over
// iSCSI, and of what wakes late.

// kernelOf is the identity of an image's kernel.
func (w *world) kernelOf(image string) string { return "k-" + image }

const kernelOfAppliance = "k-appliance"

func (w *world) pool() haengine.Pool {
	p := haengine.Pool{Name: "rack1"}
	if w.standby.Nodes > 0 {
		s := w.standby
		p.Standby = &s
	}
	return p
}

// tellImage tells what the appliance knows about an application's image.
func (w *world) tellImage(a *app) {
	if w.facts {
		w.s.submit(haengine.ImageSeen{Image: haengine.ImageFacts{
			Ref: a.spec.Image, Image: a.spec.Image + ":1", Arch: "amd64", Kernel: w.kernelOf(a.spec.Image), Ways: haengine.Ways(),
		}})
	}
}

func (n *node) facts() *haengine.NodeFacts {
	f := &haengine.NodeFacts{Model: "vm", Kexec: !n.noKexec, Disk: true}
	if n.noKexec {
		f.NoKexec = "the kernel is locked down"
	}
	return f
}

func (n *node) onDisk() []haengine.LocalCopy {
	return append([]haengine.LocalCopy{}, n.copies...)
}

// forget ends what a boot knew.
func (n *node) forget() {
	n.mode, n.inst, n.seen, n.boot, n.released = "", nil, 0, "", grantKey{}
	n.token, n.turn, n.kernel, n.loaded = grantKey{}, 0, "", nil
}

// speaks says whether an agent runs on the node.
func (n *node) speaks() bool {
	return n.mode != "" && n.mode != "booting" && n.mode != "itself"
}

// local says whether the instance runs without its volumes.
func (i *instance) local() bool { return i.way != "" && !i.way.NeedsVolume() }

func answerOf(b haengine.Boot) answer {
	return answer{key: grantKey{b.App, b.Epoch}, way: b.Way}
}

func answerPark(w *world, p haengine.ParkNode) answer {
	x := answer{turn: p.Turn, kernel: kernelOfAppliance}
	if p.Image != "" {
		x.kernel = w.kernelOf(p.Image)
	}
	w.s.counts["park"]++
	return x
}

// lateness is how much longer than usual something takes.
func (w *world) lateness(n *node) time.Duration {
	if n.late == 0 {
		return 0
	}
	return w.s.between(n.late/2, n.late)
}

// bootsItself is a machine without an agent: the application comes up with its
// system, and nobody can tell it anything.
func (w *world) bootsItself(n *node, x answer) {
	i := &instance{key: x.key, way: x.way}
	n.mode, n.inst, n.token = "itself", i, x.key
	gen := n.gen
	w.s.after(w.pace(2*time.Second, 8*time.Second), func() {
		if n.gen != gen || n.frozen || n.badApp || !w.admitted(n, i) {
			return
		}
		i.up, i.addr = true, true
		w.s.counts["served without an agent"]++
		w.s.say("   %s serves on %s, epoch %d, without an agent", i.key.app, n.name, i.key.epoch)
	})
}

// kexec has a parked boot execute the image's kernel: the order is answered, then
// the node is another boot, which comes with the token of the grant.
func (w *world) kexec(n *node, b haengine.Boot, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	key := grantKey{b.App, b.Epoch}
	switch {
	case n.token == key && n.mode != "":
		answer(done) // it went already
		return
	case !w.reaches(n) || n.noHB:
		fail("not connected", "", true)
		return
	case n.boot != b.BootID || n.mode != "standby" || b.Epoch < n.seen:
		fail("another boot", hotspare.CodeConflict, false)
		return
	case n.noKexec:
		fail("the kernel is locked down", hotspare.CodeInvalid, false)
		return
	}
	w.s.counts["kexec"]++
	if n.late > 0 {
		w.s.counts["late boot"]++
	}
	w.s.after(50*time.Millisecond, func() { answer(done) })
	late := w.lateness(n)
	n.gen++
	n.boots++
	n.forget()
	n.mode, n.token = "booting", key
	gen, boot := n.gen, fmt.Sprintf("%s-boot%d", n.name, n.boots)
	if n.noBoot {
		return
	}
	var come func()
	come = func() {
		if n.gen != gen {
			return
		}
		if !w.reaches(n) {
			w.s.after(2*time.Second, come)
			return
		}
		n.boot, n.mode, n.seen = boot, "parked", key.epoch
		w.connect(n)
	}
	w.s.after(w.pace(3*time.Second, 9*time.Second)+late, come)
}

// lateClaim is a claim that was sent and lies on its way: nobody hears of it, and
// the agent follows it when it comes, whatever was decided since.
func (w *world) lateClaim(n *node, c haengine.Claim, fail func(string, hotspare.Code, bool)) {
	gen := n.gen
	w.s.counts["late claim"]++
	w.s.after(w.lateness(n), func() {
		if n.gen != gen || n.frozen || n.cut || n.inst != nil || c.Epoch < n.seen {
			return
		}
		w.s.counts["late claim followed"]++
		w.s.say("   the late claim of %s epoch %d reaches %s", c.App, c.Epoch, n.name)
		w.become(n, c)
	})
	w.s.after(20*time.Second, func() { fail("no answer", "", true) })
}

// wholeDisk says whether an image takes the node's whole disk, instead of a slot.
func (n *node) wholeDisk() bool { return n.name == "n1" }

// installedAhead puts copies of an application on a node's disk that were never
// started.
func (w *world) installedAhead(n *node, spec haengine.Application, slots ...string) {
	for _, slot := range slots {
		n.copies = append(n.onDisk(), haengine.LocalCopy{App: spec.Name, Image: spec.Image + ":1", Disk: "wwn-" + n.name, Slot: slot, State: haengine.CopyReady})
		n.installs++
	}
}

// install writes an image to the node's disk.
func (w *world) install(n *node, x haengine.Install, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	switch {
	case !w.reaches(n) || n.noHB:
		fail("not connected", "", true)
		return
	case n.boot != x.BootID || n.mode != "standby" && n.mode != "parked":
		fail("another boot", hotspare.CodeConflict, false)
		return
	}
	gen := n.gen
	w.s.after(w.pace(5*time.Second, 20*time.Second), func() {
		if n.gen != gen || n.frozen {
			return
		}
		if x.Epoch == 0 && n.inst != nil { // a claim came first
			fail("given up for a claim", hotspare.CodeConflict, true)
			return
		}
		slot := []string{"A", "B", "C"}[n.installs%3]
		if n.wholeDisk() {
			slot = ""
		}
		n.installs++
		c := haengine.LocalCopy{App: x.App, Epoch: x.Epoch, Image: x.Image, Disk: "wwn-" + n.name, Slot: slot, State: haengine.CopyReady}
		n.copies = append(slices.DeleteFunc(n.onDisk(), func(o haengine.LocalCopy) bool { return slot == "" || o.Slot == slot }), c)
		w.s.counts["install"]++
		done.Copy = &c
		answer(done)
	})
}

func (w *world) preload(n *node, p haengine.Preload, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	switch {
	case !w.reaches(n) || n.noHB:
		fail("not connected", "", true)
	case n.boot != p.BootID || n.mode != "standby":
		fail("another boot", hotspare.CodeConflict, false)
	default:
		w.s.counts["preload"]++
		n.loaded = p.Images
		answer(done)
	}
}

func (w *world) disable(n *node, d haengine.DisableCopies, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	switch {
	case !w.reaches(n) || n.noHB:
		fail("not connected", "", true)
	case n.boot != d.BootID || n.mode != "standby" && n.mode != "discovery":
		fail("another boot", hotspare.CodeConflict, false)
	default:
		n.copies = n.onDisk()
		for i := range n.copies {
			if slices.Contains(d.Apps, n.copies[i].App) {
				n.copies[i].State = haengine.CopyDisabled
			}
		}
		w.s.counts["disable copies"]++
		answer(done)
	}
}

// randomiseStandby gives each run its own standby and ways.
func (w *world) randomiseStandby() {
	s := w.s
	if s.chance(0.2) {
		return // as it was before there was standby
	}
	w.facts = true
	if s.chance(0.8) {
		w.standby.Nodes = 1 + s.rng.IntN(2)
		if s.chance(0.3) {
			w.standby.Kernel = haengine.KernelOfAppliance
		}
		if s.chance(0.2) {
			w.standby.PowerBudget = w.standby.Nodes + s.rng.IntN(3)
		}
	}
	for _, a := range w.apps {
		p := &a.spec.Policy
		if !s.chance(0.4) {
			continue
		}
		switch s.rng.IntN(4) {
		case 0:
			p.Ways = []haengine.Way{haengine.WaySlot, haengine.WayInstall, haengine.WayColdISCSI}
			for _, n := range w.nodes {
				if s.chance(0.5) {
					w.installedAhead(n, a.spec, []string{"A", "B", "C"}[n.installs%3])
				}
			}
		case 1:
			p.Ways = []haengine.Way{haengine.WayRAM}
		case 2:
			p.Ways = []haengine.Way{haengine.WayColdSAN}
			p.Evidence = []haengine.EvidenceKind{haengine.EvidencePower, haengine.EvidenceStorage}
		case 3:
			p.Ways = []haengine.Way{haengine.WayStandbyKexec, haengine.WayInstall}
			p.WayOrder = haengine.OrderMeasured
		}
	}
	for _, n := range w.nodes {
		n.noKexec = s.chance(0.2)
	}
}

// onlyPerson says whether the operator has to ask for a failover: an application
// without an agent that fails its check has one channel.
func (w *world) onlyPerson(x *haengine.AppState) bool {
	if x.Phase != haengine.PhaseRunning && x.Phase != haengine.PhaseDown || x.Grant == nil || x.Grant.Way.HasAgent() || w.s.now-w.healed < time.Minute {
		return false
	}
	return w.s.now-w.app(x.Spec.Name).upAt > 20*time.Second
}

// parkedAsAsked says whether as many nodes wait in standby, in the engine's eyes
// and in truth, as the policy asks for and idle nodes allow.
func (w *world) parkedAsAsked(st haengine.State) bool {
	want, on, parked, able := w.standby.Nodes, 0, 0, 0
	for _, n := range w.nodes {
		x := st.Durable.Nodes[n.name]
		switch {
		case x == nil:
		case x.Phase == haengine.NodeOwned:
			on++
		case x.Phase == haengine.NodeIdle && x.Park != nil && x.Park.BootID != "":
			if n.mode != "standby" || n.boot != x.Park.BootID {
				return false
			}
			parked++
			able++
		case n.powered && (n.frozen || n.mode != "discovery"): // it is on, and nobody knows what it runs
		case x.Phase == haengine.NodeIdle && x.Park == nil && (x.ParkAfter.IsZero() || x.ParkAfter.At <= st.Soft.Now.At):
			able++
		}
	}
	if b := w.standby.PowerBudget; b > 0 {
		want = max(0, min(want, b-on))
	}
	return parked == min(want, able)
}
