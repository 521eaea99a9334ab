package sim

import (
	"time"

	"hotspare"
	"hotspare/haengine"
)

// fault is one kind of trouble. It gives what heals it; nil when it passes by
// itself.
type fault struct {
	name string
	do   func(s *Sim) (heal func())
}

// faults lists every kind of trouble that Run draws from.
func faults() []fault {
	return []fault{
		{"power cut", func(s *Sim) func() { n := s.owner(); return s.cutPower(n) }},
		{"power cut, bmc shares it", func(s *Sim) func() {
			n := s.owner()
			n.shared = true
			return s.cutPower(n)
		}},
		{"site power cut", func(s *Sim) func() {
			var heal []func()
			for _, n := range s.w.nodes {
				heal = append(heal, s.cutPower(n))
			}
			return func() {
				for _, h := range heal {
					h()
				}
			}
		}},
		{"service crash", func(s *Sim) func() {
			if n := s.owner(); n.inst != nil && n.inst.up {
				n.inst.up = false
				s.w.report(n, n.inst, haengine.ResourceFailed, "exit status 1")
			}
			return nil
		}},
		{"service restarts in place", func(s *Sim) func() {
			if n := s.owner(); n.inst != nil && n.inst.up && !n.inst.dropping {
				s.w.restart(n, n.inst, s.between(200*time.Millisecond, 20*time.Second))
			}
			return nil
		}},
		{"service hang", func(s *Sim) func() {
			n := s.owner()
			i := n.inst
			if i == nil {
				return nil
			}
			i.hung = true
			if s.chance(0.5) {
				return func() { i.hung, i.unhung = false, s.now }
			}
			return nil
		}},
		{"machine hang", func(s *Sim) func() { s.owner().frozen = true; return nil }},
		{"link cut", func(s *Sim) func() {
			n := s.owner()
			n.cut = true
			return func() { n.cut = false; s.w.linkFixed = s.now }
		}},
		{"link cut, bmc dead", func(s *Sim) func() {
			n := s.owner()
			n.cut, n.bmcDead = true, true
			return func() { n.cut, n.bmcDead = false, false; s.w.linkFixed = s.now }
		}},
		{"path cut", func(s *Sim) func() {
			n := s.owner()
			n.pathCut = true
			return func() { n.pathCut = false; s.w.linkFixed = s.now }
		}},
		{"path cut, bmc dead", func(s *Sim) func() {
			n := s.owner()
			n.pathCut, n.bmcDead = true, true
			return func() { n.pathCut, n.bmcDead = false, false; s.w.linkFixed = s.now }
		}},
		{"service hang, bmc dead", func(s *Sim) func() {
			n := s.owner()
			n.bmcDead = true
			if n.inst != nil {
				n.inst.hung = true
				i := n.inst
				s.after(s.between(20*time.Second, 60*time.Second), func() { i.hung, i.unhung = false, s.now })
			}
			return func() { n.bmcDead = false }
		}},
		{"switch fails", func(s *Sim) func() {
			for _, n := range s.w.nodes {
				n.pathCut, n.bmcDead = true, n.bmcDead || s.chance(0.7)
			}
			return func() {
				for _, n := range s.w.nodes {
					n.pathCut, n.bmcDead = false, false
				}
				s.w.linkFixed = s.now
			}
		}},
		{"heartbeats lost", func(s *Sim) func() {
			n := s.owner()
			n.noHB = true
			return func() { n.noHB = false; s.w.hbAt[n.name] = s.now }
		}},
		{"acks lost", func(s *Sim) func() { n := s.owner(); n.noAck = true; return func() { n.noAck = false } }},
		{"probe path broken", func(s *Sim) func() {
			a := s.pickApp()
			a.probe = true
			return func() { a.probe = false; s.w.probeAt[a.spec.Name] = s.now }
		}},
		{"probe path broken, bmc dead", func(s *Sim) func() {
			a, n := s.pickApp(), s.owner()
			a.probe, n.bmcDead, n.noHB = true, true, true
			return func() {
				a.probe, n.bmcDead, n.noHB = false, false, false
				s.w.probeAt[a.spec.Name], s.w.hbAt[n.name] = s.now, s.now
			}
		}},
		{"probe path broken, service hangs, bmc dead", func(s *Sim) func() {
			n := s.owner()
			n.bmcDead = true
			a := s.pickApp()
			if i := n.inst; i != nil {
				i.hung = true
				a = s.w.app(i.key.app)
			}
			a.probe = true
			return func() {
				n.bmcDead, a.probe = false, false
				s.w.probeAt[a.spec.Name] = s.now
			}
		}},
		{"bmc lies, answers lost, service hangs, probe path broken", func(s *Sim) func() {
			n := s.owner()
			n.bmcLies, n.noAck = true, true
			a := s.pickApp()
			if i := n.inst; i != nil {
				i.hung = true
				a = s.w.app(i.key.app)
			}
			a.probe = true
			return func() {
				n.bmcLies, n.noAck, a.probe = false, false, false
				s.w.probeAt[a.spec.Name] = s.now
			}
		}},
		{"bmc dead", func(s *Sim) func() { n := s.any(); n.bmcDead = true; return func() { n.bmcDead = false } }},
		{"bmc lies", func(s *Sim) func() { n := s.any(); n.bmcLies = true; return func() { n.bmcLies = false } }},
		{"bmc lies, service hangs", func(s *Sim) func() {
			n := s.owner()
			n.bmcLies = true
			if n.inst != nil {
				n.inst.hung = true
				i := n.inst
				s.after(s.between(10*time.Second, 40*time.Second), func() { i.hung, i.unhung = false, s.now })
			}
			return func() { n.bmcLies = false }
		}},
		{"bmc lies, answers lost, service hangs", func(s *Sim) func() {
			n := s.owner()
			n.bmcLies, n.noAck = true, true
			if n.inst != nil {
				n.inst.hung = true
			}
			return func() { n.bmcLies, n.noAck = false, false }
		}},
		{"bmc refuses", func(s *Sim) func() { n := s.any(); n.bmcRefuse = true; return func() { n.bmcRefuse = false } }},
		{"bmc late", func(s *Sim) func() {
			n := s.any()
			n.bmcLag = s.between(time.Second, 8*time.Second)
			return func() { n.bmcLag = 0 }
		}},
		{"node does not boot", func(s *Sim) func() { n := s.any(); n.noBoot = true; return func() { n.noBoot = false } }},
		{"application does not start there", func(s *Sim) func() { n := s.any(); n.badApp = true; return func() { n.badApp = false } }},
		{"node comes up by itself", func(s *Sim) func() {
			if n := s.any(); n.inst == nil {
				s.w.setPower(n, true)
			}
			return nil
		}},
		{"node reboots by itself", func(s *Sim) func() {
			if n := s.owner(); n.powered {
				s.w.reboot(n)
			}
			return nil
		}},
		{"appliance crash", func(s *Sim) func() {
			if s.up() {
				s.crash()
				s.after(s.between(time.Second, 25*time.Second), s.start)
			}
			return nil
		}},
		{"crash between journal and effect", func(s *Sim) func() {
			if s.w.crashBeforeActing == 0 {
				s.w.crashBeforeActing = 1 + s.rng.IntN(6)
			}
			return func() { s.w.crashBeforeActing = 0 }
		}},
		{"journal fails", func(s *Sim) func() {
			s.journal.failAt, s.journal.keep = s.journal.saves+1+s.rng.IntN(8), s.chance(0.5)
			return func() { s.journal.failAt = 0 }
		}},
		{"appliance isolated", func(s *Sim) func() {
			s.w.isolated = true
			life := s.life
			if s.chance(0.7) { // it notices
				s.after(s.between(100*time.Millisecond, 2*time.Second), func() {
					if s.w.isolated && s.life == life {
						s.submit(haengine.SelfHealth{Isolated: true, Why: "no carrier"})
					}
				})
			}
			return func() {
				s.w.isolated = false
				s.w.linkFixed = s.now
				s.submit(haengine.SelfHealth{})
			}
		}},
		{"slow actions", func(s *Sim) func() { s.w.slow = s.between(time.Second, 15*time.Second); return func() { s.w.slow = 0 } }},
		{"flaky actions", func(s *Sim) func() { s.w.flaky = 0.5; return func() { s.w.flaky = 0 } }},
		{"freeze", func(s *Sim) func() {
			scope := []haengine.Scope{{}, {App: s.pickApp().spec.Name}, {Pool: "rack1"}}[s.rng.IntN(3)]
			s.submit(haengine.FreezeSet{Scope: scope, By: "ann", Reason: "maintenance"})
			return func() { s.submit(haengine.FreezeLifted{Scope: scope, By: "ann"}) }
		}},
		{"parked node loses power", func(s *Sim) func() {
			if n := s.parked(); n != nil {
				return s.cutPower(n)
			}
			return nil
		}},
		{"parked node reboots", func(s *Sim) func() {
			if n := s.parked(); n != nil {
				s.w.reboot(n)
			}
			return nil
		}},
		{"parked node hangs", func(s *Sim) func() {
			if n := s.parked(); n != nil {
				n.frozen = true
			}
			return nil
		}},
		{"parked node does not come up from kexec, owner loses power", func(s *Sim) func() {
			n := s.parked()
			if n == nil {
				return nil
			}
			n.noBoot = true
			heal := s.cutPower(s.owner())
			return func() { n.noBoot = false; heal() }
		}},
		{"everything on its way is late", func(s *Sim) func() {
			for _, n := range s.w.nodes {
				n.late = s.between(20*time.Second, 200*time.Second)
			}
			heal := s.cutPower(s.owner())
			return func() {
				for _, n := range s.w.nodes {
					n.late = 0
				}
				heal()
			}
		}},
		{"one node is late", func(s *Sim) func() {
			n := s.any()
			n.late = s.between(20*time.Second, 200*time.Second)
			return func() { n.late = 0 }
		}},
		{"kernels are locked down", func(s *Sim) func() {
			for _, n := range s.w.nodes {
				n.noKexec = true
			}
			return func() {
				for _, n := range s.w.nodes {
					n.noKexec = false
				}
			}
		}},
		{"planned restart", func(s *Sim) func() {
			if s.up() {
				s.submit(haengine.PlannedRestart{For: dur(30 * time.Second), By: "ann"})
				s.after(s.between(time.Second, 4*time.Second), func() {
					if s.up() {
						s.crash()
						s.after(s.between(time.Second, 25*time.Second), s.start)
					}
				})
			}
			return nil
		}},
		{"switchover in another way", func(s *Sim) func() {
			e := haengine.FailoverRequested{App: s.pickApp().spec.Name, By: "bob", Way: haengine.Ways()[s.rng.IntN(7)]}
			if s.up() && haengine.Refuse(s.machine.State(), e) == nil {
				s.submit(e)
				s.counts["switchover "+string(e.Way)]++
			}
			return nil
		}},
		{"standby policy changes", func(s *Sim) func() {
			if s.up() && s.w.facts {
				s.w.standby.Nodes = s.rng.IntN(3)
				s.submit(haengine.PoolApplied{Pool: s.w.pool()})
			}
			return nil
		}},
		{"revocations fail", func(s *Sim) func() { s.w.noRevoke = true; return func() { s.w.noRevoke = false } }},
		{"revocations fail for long", func(s *Sim) func() {
			s.w.noRevoke = true // until everything is mended
			return nil
		}},
		{"token presented twice", func(s *Sim) func() {
			s.submit(haengine.Quarantine{Node: s.any().name, Code: hotspare.CodeTokenReused, Reason: "its join token was presented twice"})
			return nil
		}},
		{"release without log-out, then silence, bmc dead, probe path broken", func(s *Sim) func() {
			n := s.owner()
			if n.inst == nil || !s.up() {
				return nil
			}
			a := s.w.app(n.inst.key.app)
			e := haengine.FailoverRequested{App: a.spec.Name, By: "bob"}
			if haengine.Refuse(s.machine.State(), e) != nil {
				return nil
			}
			n.badExit, n.bmcDead, a.probe = true, true, true
			s.submit(e)
			return func() {
				n.badExit, n.bmcDead, n.noHB, a.probe = false, false, false, false
				s.w.probeAt[a.spec.Name], s.w.hbAt[n.name] = s.now, s.now
			}
		}},
		{"switchover", func(s *Sim) func() {
			e := haengine.FailoverRequested{App: s.pickApp().spec.Name, By: "bob"}
			if s.up() && haengine.Refuse(s.machine.State(), e) == nil {
				s.submit(e)
				s.counts["switchover"]++
			}
			return nil
		}},
	}
}

func (s *Sim) any() *node    { return s.w.nodes[s.rng.IntN(len(s.w.nodes))] }
func (s *Sim) pickApp() *app { return s.w.apps[s.rng.IntN(len(s.w.apps))] }
