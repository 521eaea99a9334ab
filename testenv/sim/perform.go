package sim

import (
	"context"
	"slices"
	"time"

	"hotspare"
	"hotspare/haengine"
)

func (s *Sim) ctx() context.Context { return context.Background() }

// perform has an action done by the world, later. Its result reaches only the
// life of the appliance that ordered it; its effect may happen all the same.
func (w *world) perform(a haengine.Action) {
	s := w.s
	life, id := s.life, a.Head().ID
	answered := false
	answer := func(e haengine.Event) {
		if s.up() && s.life == life && !answered {
			answered = true
			s.submit(e)
		}
	}
	fail := func(why string, code hotspare.Code, transient bool) {
		answer(haengine.Failed{ID: id, Why: why, Code: code, Transient: transient})
	}
	s.after(90*time.Second, func() { fail("deadline", "", true) })
	delay := s.between(5*time.Millisecond, 60*time.Millisecond)
	if w.slow > 0 {
		delay += s.between(0, w.slow)
	}
	flaky := s.chance(w.flaky)
	s.after(delay, func() {
		if !s.up() && s.chance(0.5) || s.up() && s.life != life {
			return // died with the process that performed it
		}
		if s.up() && w.withdrawn(id) {
			fail("withdrawn", "", true)
			return
		}
		if flaky {
			s.counts["flaky action"]++
			fail("try again", "", true)
			return
		}
		w.act(a, answer, fail)
	})
}

// withdrawn says whether the engine gave an action up before it was begun.
func (w *world) withdrawn(id haengine.ActionID) bool {
	d := w.s.machine.State()
	p := d.Durable.Pending[id]
	if p == nil {
		p = d.Soft.Pending[id]
	}
	return p == nil || p.Withdrawn
}

func (w *world) act(a haengine.Action, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	h := a.Head()
	done := haengine.Done{ID: h.ID}
	switch a := a.(type) {
	case haengine.ReadPower:
		w.readPower(w.node(h.Node), done, answer, fail)
	case haengine.PowerOff:
		w.powerOff(w.node(h.Node), done, answer, fail)
	case haengine.Boot:
		if a.BootID != "" {
			w.kexec(w.node(h.Node), a, done, answer, fail)
			return
		}
		w.powerOn(w.node(h.Node), answerOf(a), done, answer, fail)
	case haengine.ParkNode:
		w.powerOn(w.node(h.Node), answerPark(w, a), done, answer, fail)
	case haengine.Install:
		w.install(w.node(h.Node), a, done, answer, fail)
	case haengine.Preload:
		w.preload(w.node(h.Node), a, done, answer, fail)
	case haengine.DisableCopies:
		w.disable(w.node(h.Node), a, done, answer, fail)
	case haengine.Revoke:
		if w.noRevoke {
			fail("no space left on device", hotspare.CodeDiskFull, false)
			return
		}
		x := w.app(h.App)
		x.floor = max(x.floor, a.Below)
		done.Revocation = &haengine.Revocation{Below: a.Below, Sessions: w.sessions(h.App, a.Below)}
		answer(done)
	case haengine.Attach:
		x := w.app(h.App)
		if h.Epoch < x.floor {
			fail("epoch below the durable one", hotspare.CodeStaleEpoch, false)
			return
		}
		x.grants[h.Epoch] = h.Node
		answer(done)
	case haengine.Claim:
		w.claim(w.node(h.Node), a, done, answer, fail)
	case haengine.Release:
		w.release(w.node(h.Node), a, done, answer, fail)
	case haengine.ProbeAddress:
		done.Address = &haengine.AddressProbe{Silent: true}
		for _, n := range w.nodes {
			hears := n.powered && !n.frozen && !n.cut && !n.pathCut && !w.isolated && !w.app(h.App).probe
			if i := n.inst; hears && i != nil && i.key.app == h.App && i.addr {
				done.Address = &haengine.AddressProbe{By: nodeSpec(n).MACs[0]}
			}
		}
		answer(done)
	case haengine.ReturnNode:
		delete(w.answers, h.Node)
		answer(done)
	case haengine.CancelBoot:
		if w.answers[h.Node].key == (grantKey{h.App, h.Epoch}) {
			delete(w.answers, h.Node)
		}
		answer(done)
	default:
		answer(done)
	}
}

// become is the agent's acceptance of a claim.
func (w *world) become(n *node, c haengine.Claim) {
	n.mode, n.seen = "running", c.Epoch
	n.inst = &instance{key: grantKey{c.App, c.Epoch}, way: c.Way}
	if c.Copy != nil {
		n.copies = n.onDisk()
		for i := range n.copies {
			if n.copies[i].Slot == c.Copy.Slot {
				n.copies[i].Epoch = c.Epoch
				if c.Copy.Slot == "" { // a slot stays as it was installed
					n.copies[i].State = haengine.CopyStarted
				}
			}
		}
	}
}

// sessions counts the instances below an epoch that have the data volumes open.
func (w *world) sessions(app string, below haengine.Epoch) int {
	open := 0
	for _, n := range w.nodes {
		if i := n.inst; n.powered && i != nil && i.key.app == app && i.key.epoch < below && i.up {
			open++
		}
	}
	return open
}

// bmc says whether a node's controller answers.
func (n *node) bmc() bool { return !n.bmcDead && !(n.shared && n.lostPower) }

func (n *node) read() haengine.PowerReading {
	if n.powered && !n.bmcLies {
		return haengine.PowerReading{State: haengine.PowerIsOn}
	}
	return haengine.PowerReading{State: haengine.PowerIsOff}
}

func (w *world) readPower(n *node, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	w.s.after(300*time.Millisecond, func() {
		if !n.bmc() || w.isolated {
			fail("no answer", hotspare.CodeBMCUnreachable, false)
			return
		}
		r := n.read()
		done.Read = &r
		answer(done)
	})
}

// powerOff is a serialised BMC queue: a power-on that may still take effect is
// awaited before off is believed.
func (w *world) powerOff(n *node, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	switch {
	case !n.bmc() || w.isolated:
		w.s.after(w.s.between(time.Second, 6*time.Second), func() { fail("no answer", hotspare.CodeBMCUnreachable, w.s.chance(0.5)) })
		return
	case n.bmcRefuse:
		fail("409", hotspare.CodeBMCRefused, false)
		return
	}
	lies := n.bmcLies
	if !lies {
		w.s.after(n.bmcLag, func() { w.setPower(n, false) })
	}
	wait := max(n.bmcLag, n.onAt-w.s.now) + 1200*time.Millisecond
	w.s.after(wait, func() {
		if !n.bmc() || w.isolated {
			fail("no answer", hotspare.CodeBMCUnreachable, false)
			return
		}
		r := n.read()
		if r.State != haengine.PowerIsOff {
			fail("still on", hotspare.CodeBMCRefused, true)
			return
		}
		if n.powered {
			w.lied(n)
		}
		done.Power = &haengine.PowerEvidence{Reads: []haengine.PowerReading{{State: haengine.PowerIsOn}, r, r}}
		answer(done)
	})
}

// lied notes that a BMC's lie about a running node was believed.
func (w *world) lied(n *node) {
	w.s.counts["lying bmc believed"]++
	n.believed = true
}

// unheard marks applications whose old node a BMC lied about while nobody could
// hear that node: no engine can see through that, so S1 is not held against it.
func (w *world) unheard() {
	for _, n := range w.nodes {
		if i := n.inst; n.believed && n.powered && i != nil && w.s.up() && (!w.reaches(n) || n.noHB || !n.speaks()) {
			w.app(i.key.app).lied = true
		}
	}
}

func (w *world) powerOn(n *node, x answer, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	if key := x.key; n.powered && (key.app != "" && n.token == key || x.turn != 0 && n.turn == x.turn) && n.mode != "booting" && n.mode != "" {
		answer(done) // it joined for this epoch, or is in standby by this order, already
		return
	}
	switch {
	case !n.bmc() || w.isolated:
		fail("no answer", hotspare.CodeBMCUnreachable, false)
		return
	case n.bmcRefuse:
		fail("refused", hotspare.CodeBMCRefused, false)
		return
	}
	if i := n.inst; n.powered && i != nil && !n.bmcLies && !n.believed && !w.app(i.key.app).lied {
		w.s.violate("S12", "%s is booted for %s while it runs %s", n.name, x.key.app, i.key.app)
		return
	}
	w.answers[n.name] = x
	n.onAt = w.s.now + n.bmcLag
	w.s.after(n.bmcLag, func() { w.setPower(n, true) })
	w.s.after(500*time.Millisecond, func() { answer(done) })
}

func (w *world) claim(n *node, c haengine.Claim, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	switch {
	case !w.reaches(n) || n.noHB:
		fail("not connected", "", true)
		return
	case n.boot != c.BootID || c.Epoch < n.seen || n.mode != "parked" && n.mode != "running" && n.mode != "standby":
		fail("other boot or epoch", hotspare.CodeJoinRefused, false)
		return
	case c.Copy != nil && !slices.ContainsFunc(n.copies, func(o haengine.LocalCopy) bool {
		return o.App == c.App && o.Slot == c.Copy.Slot && (o.State == haengine.CopyReady || o.State == haengine.CopyStarted && o.Epoch == c.Epoch)
	}):
		fail("there is no such copy", hotspare.CodeInvalid, false)
		return
	case n.mode == "standby" && n.kernel != w.kernelOf(c.Spec.Image):
		fail("other kernel", hotspare.CodeInvalid, false)
		return
	}
	a := w.app(c.App)
	if c.Epoch < a.claims {
		w.s.violate("S4", "%s epoch %d is claimed after epoch %d", c.App, c.Epoch, a.claims)
	}
	a.claims = c.Epoch
	w.s.counts["claim"]++
	w.s.counts["claim "+string(c.Way)]++
	if n.late > 0 && n.inst == nil {
		w.lateClaim(n, c, fail)
		return
	}
	if n.inst == nil {
		w.become(n, c)
	} else if n.inst.key != (grantKey{c.App, c.Epoch}) {
		w.s.violate("S12", "%s is claimed for %s while it runs %s", n.name, c.App, n.inst.key.app)
	}
	w.await(n, n.inst, c.ID, w.s.life, func() { answer(done) }, fail)
}

// await gives a claim's end: the agent answers when the whole group is online,
// or when it failed; a claim that is withdrawn is not awaited any longer.
func (w *world) await(n *node, i *instance, id haengine.ActionID, life int, online func(), fail func(string, hotspare.Code, bool)) {
	switch {
	case !w.s.up() || w.s.life != life:
	case w.withdrawn(id):
		fail("withdrawn", "", true)
	case n.inst != i:
		fail("not connected", "", true)
	case i.failed:
		fail("it does not start", hotspare.CodeOnlineFailed, false)
	case i.addr && w.reaches(n):
		online()
	default:
		w.s.after(250*time.Millisecond, func() { w.await(n, i, id, life, online, fail) })
	}
}

func (w *world) release(n *node, r haengine.Release, done haengine.Done, answer func(haengine.Event), fail func(string, hotspare.Code, bool)) {
	if !w.reaches(n) || n.noHB {
		fail("not connected", "", true)
		return
	}
	if i := n.inst; i == nil || n.boot != r.BootID || i.key != (grantKey{r.App, r.Epoch}) {
		fail("not mine", hotspare.CodeJoinRefused, false)
		return
	}
	gen, i := n.gen, n.inst
	w.s.after(w.s.between(500*time.Millisecond, 3*time.Second), func() {
		if n.gen != gen || n.inst != i || n.frozen || i.hung {
			return // it will be fenced
		}
		if n.badExit {
			n.noHB = true // from here on nobody hears it
			w.s.counts["release without log-out"]++
		} else {
			n.inst, n.mode, n.released = nil, "parked", i.key
			w.s.counts["orderly release"]++
		}
		answer(done)
	})
}
