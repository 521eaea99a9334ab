package sim

import (
	"slices"
	"time"
)

// owner picks a node that runs an application, if there is one.
func (s *Sim) owner() *node {
	var own []*node
	for _, n := range s.w.nodes {
		if n.inst != nil {
			own = append(own, n)
		}
	}
	if len(own) == 0 || s.chance(0.1) {
		return s.any()
	}
	return own[s.rng.IntN(len(own))]
}

// parked picks a node in standby, or gives nil.
func (s *Sim) parked() *node {
	var all []*node
	for _, n := range s.w.nodes {
		if n.mode == "standby" {
			all = append(all, n)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[s.rng.IntN(len(all))]
}

func (s *Sim) cutPower(n *node) func() {
	n.lostPower = true
	s.w.setPower(n, false)
	return func() {
		n.lostPower = false
		if s.chance(0.3) { // "restore on AC power"
			s.w.setPower(n, true)
		}
	}
}

// Run lets random faults happen, heals everything, and wants everything to run
// in the end (L1, and L3 because crashes are among the faults).
func Run(cfg Config) Result {
	if cfg.Nodes == 0 && cfg.Apps == 0 && cfg.Seed%5 == 0 {
		cfg.Nodes, cfg.Apps = 6, 4
	}
	s := newSim(cfg)
	s.w.randomise()
	s.w.begin()
	s.runUntil(s.between(30*time.Second, 60*time.Second), nil)
	var heals []func()
	end := s.now + s.cfg.Faulty
	kinds := slices.DeleteFunc(faults(), func(f fault) bool { return len(s.cfg.Only) > 0 && !slices.Contains(s.cfg.Only, f.name) })
	for s.now < end && len(s.violations) == 0 {
		f := kinds[s.rng.IntN(len(kinds))]
		s.counts["fault "+f.name]++
		s.say("** %s", f.name)
		if heal := f.do(s); heal != nil {
			healed := false
			once := func() {
				if !healed {
					healed = true
					s.say("** healed: %s", f.name)
					heal()
				}
			}
			heals = append(heals, once)
			s.after(s.between(time.Second, 60*time.Second), once)
		}
		gap := s.between(time.Second, 40*time.Second)
		if s.chance(0.3) {
			gap = s.between(10*time.Millisecond, 2*time.Second) // faults come in company
		}
		s.runUntil(s.now+gap, nil)
	}
	for _, h := range heals {
		h()
	}
	s.w.healAll()
	quiet := s.now + s.cfg.Quiet
	for s.now < quiet && len(s.violations) == 0 && !s.settled() {
		s.w.release1()
		s.runUntil(s.now+5*time.Second, s.settled)
	}
	if len(s.violations) == 0 && !s.settled() {
		s.violate("L1", "%s after %s without faults", s.stands(), s.cfg.Quiet)
	}
	return Result{Violations: s.violations, Counts: s.counts, Trace: s.trace, Events: s.handled}
}
