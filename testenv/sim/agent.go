package sim

import (
	"slices"
	"time"

	"hotspare/haengine"
)

// beat is one second of an agent's life.
func (w *world) beat(n *node) {
	if !n.powered || n.frozen || !n.speaks() {
		return
	}
	if i := n.inst; i != nil && !i.dropping {
		w.session(n, i)
		if i.acked && w.s.now >= i.leaseEnd {
			w.drop(n, "lease over")
			return
		}
	}
	if !w.reaches(n) || n.noHB {
		n.missed = n.missed || !w.reaches(n)
		return
	}
	if n.missed {
		w.connect(n)
	}
	if !w.s.up() || !n.speaks() {
		return
	}
	h := haengine.Heartbeat{Node: n.name, BootID: n.boot}
	if n.inst != nil {
		h.App, h.Epoch = n.inst.key.app, n.inst.key.epoch
	} else if k := n.released; k.app != "" && w.s.cfg.babbles {
		h.App, h.Epoch = k.app, k.epoch
	}
	sent, gen, inst := w.s.now, n.gen, n.inst
	w.s.after(w.s.between(time.Millisecond, 20*time.Millisecond), func() { w.heard(n, h, sent, gen, inst) })
}

// heard is the heartbeat's arrival, and its answer's.
func (w *world) heard(n *node, h haengine.Heartbeat, sent time.Duration, gen int, inst *instance) {
	s := w.s
	if !s.up() {
		return
	}
	before := s.machine.State()
	lease, actions, err := s.machine.Heartbeat(s.ctx(), s.stamp(), h)
	if s.cfg.audit != nil && err == nil {
		s.cfg.audit(before, s.stamp(), h, s.machine.State(), actions)
	}
	life := s.life
	if lease.Granted && s.machine != nil {
		s.checkLease(s.machine.State(), h)
	}
	s.stepped(before, h, actions, err)
	if err != nil || h.App == "" || n.noAck {
		return
	}
	s.after(s.between(time.Millisecond, 20*time.Millisecond), func() {
		if n.gen != gen || n.inst != inst || inst == nil || inst.dropping || life != s.life || n.frozen {
			return
		}
		if !lease.Granted {
			w.drop(n, lease.Reason.Text)
			return
		}
		drift := 0.99 + 0.02*s.rng.Float64()
		inst.leaseEnd = sent + time.Duration(float64(lease.Duration)*drift)
		w.watchLease(n, inst)
		if !inst.acked {
			inst.acked = true
			w.online(n, inst)
		}
	})
}

// watchLease drops the application when its lease runs out.
func (w *world) watchLease(n *node, inst *instance) {
	end, gen := inst.leaseEnd, n.gen
	w.s.after(end-w.s.now, func() {
		if n.gen == gen && n.inst == inst && inst.leaseEnd == end && !inst.dropping && !n.frozen {
			w.drop(n, "lease over")
		}
	})
}

// drop is the agent's self-fencing: address and service go within the bound,
// then the node reboots.
func (w *world) drop(n *node, why string) {
	i := n.inst
	i.dropping = true
	gen := n.gen
	w.s.counts["agent drop"]++
	w.s.say("   %s drops %s epoch %d: %s", n.name, i.key.app, i.key.epoch, why)
	w.s.after(w.s.between(50*time.Millisecond, 2900*time.Millisecond), func() {
		if n.gen != gen || n.inst != i {
			return
		}
		boot := n.boot
		if w.reaches(n) {
			w.s.submit(haengine.Dropped{Node: n.name, BootID: boot, App: i.key.app, Epoch: i.key.epoch, Why: why})
		}
		w.reboot(n)
	})
}

// online brings the service group up, resource by resource.
func (w *world) online(n *node, i *instance) {
	gen := n.gen
	i.online = true
	w.s.after(w.pace(2*time.Second, 8*time.Second), func() {
		if n.gen != gen || n.inst != i || i.dropping || n.frozen {
			return
		}
		if !i.local() && !w.admitted(n, i) || n.badApp {
			i.failed = true
			w.report(n, i, haengine.ResourceFailed, "it does not start")
			return
		}
		i.up, i.addr = true, true
		w.s.say("   %s serves on %s, epoch %d", i.key.app, n.name, i.key.epoch)
		w.report(n, i, haengine.ResourceOnline, "")
	})
}

// report is the agent's last word about the application's own resource; it
// always names the resource.
func (w *world) report(n *node, i *instance, st haengine.ResourceState, why string) {
	w.tell(n, i, st, st == haengine.ResourceFailed, why)
}

func (w *world) tell(n *node, i *instance, st haengine.ResourceState, exhausted bool, why string) {
	if w.reaches(n) {
		w.s.submit(haengine.AgentReport{
			Node: n.name, BootID: n.boot, App: i.key.app, Epoch: i.key.epoch, Resource: "service", State: st,
			Exhausted: exhausted, Why: why,
		})
	}
}

// restart is a crash of the service that the agent mends by itself within d.
func (w *world) restart(n *node, i *instance, d time.Duration) {
	gen := n.gen
	i.up = false
	if w.reaches(n) {
		i.mending = w.s.now + w.app(i.key.app).spec.Policy.WithDefaults().RestartTime.D()
	}
	w.tell(n, i, haengine.ResourceFailed, false, "exit status 1; local restart 1 of 2")
	w.s.after(d, func() {
		if n.gen != gen || n.inst != i || i.dropping || n.frozen {
			return
		}
		i.mending = 0
		if !i.local() && !w.admitted(n, i) {
			w.report(n, i, haengine.ResourceFailed, "it does not start")
			return
		}
		i.up, i.unhung = true, w.s.now
		w.tell(n, i, haengine.ResourceOnline, false, "")
	})
}

// mends says whether the agent restarts the application there, heard by the
// appliance in its present life.
func (w *world) mends(n *node, app string) bool {
	i := n.inst
	return n.powered && !n.frozen && !n.cut && i != nil && i.key.app == app && w.s.now < i.mending && w.s.now-w.s.started > 45*time.Second
}

// admitted says whether the target lets the instance write.
func (w *world) admitted(n *node, i *instance) bool {
	a := w.app(i.key.app)
	return i.key.epoch >= a.floor && a.grants[i.key.epoch] == n.name
}

// session is the storage session's fate as the agent sees it: it gives up when
// it was refused for as long as a lease.
func (w *world) session(n *node, i *instance) {
	switch {
	case !i.up || i.local() || w.admitted(n, i) || !w.reaches(n):
		i.refused = 0
	case i.refused == 0:
		i.refused = w.s.now
	case w.s.now-i.refused >= w.app(i.key.app).spec.Policy.Lease.D():
		w.drop(n, "storage refuses it")
	}
}

// serves says whether a client would get an answer from this node.
func (n *node) serves(app string) bool {
	i := n.inst
	return n.powered && !n.frozen && !n.cut && i != nil && i.key.app == app && i.up && i.addr && !i.hung
}

// sample is one round of an application's monitors.
func (w *world) sample(a *app) {
	s := w.s
	served := slices.ContainsFunc(w.nodes, func(n *node) bool { return n.serves(a.spec.Name) })
	if served {
		a.upAt = s.now
	}
	if !s.up() {
		return
	}
	ok := !a.probe && !w.isolated && slices.ContainsFunc(w.nodes, func(n *node) bool { return n.serves(a.spec.Name) && !n.pathCut })
	x := haengine.Sample{App: a.spec.Name, Monitor: "check", From: haengine.FromAppliance, OK: ok}
	if ok {
		s.submit(x)
	} else {
		x.Why = "timeout"
		s.after(s.between(10*time.Millisecond, 2*time.Second), func() { s.submit(x) })
	}
	for _, n := range w.nodes {
		if i := n.inst; i != nil && i.key.app == a.spec.Name && i.online && !i.dropping && w.reaches(n) && !n.noHB {
			y := haengine.Sample{App: a.spec.Name, Monitor: "check", From: haengine.FromNode, Epoch: i.key.epoch, OK: i.up && !i.hung}
			if !y.OK {
				y.Why = "no answer on the node"
			}
			s.submit(y)
		}
	}
}
