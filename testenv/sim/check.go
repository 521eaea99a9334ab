package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"hotspare/haengine"
)

// check holds the world against the promises after every event.
func (s *Sim) check() {
	s.w.unheard()
	for _, a := range s.w.apps {
		s.checkOneRunner(a)
	}
}

// patience is longer than every deadline of a simulated policy: who waits longer
// says why.
const patience = 115 * time.Second

// checkTold is S3: no application that waits is silent about it. A freeze and a
// blind appliance are reasons by themselves.
func (s *Sim) checkTold() {
	if !s.up() {
		return
	}
	st := s.machine.State()
	if len(st.Durable.Freezes) > 0 || st.Soft.Isolated || s.w.slow > 0 || s.w.flaky > 0 {
		s.calm = s.now
	}
	for name, a := range st.Durable.Apps {
		switch a.Phase {
		case haengine.PhaseReleasing, haengine.PhaseFencing, haengine.PhaseAttaching, haengine.PhaseStarting, haengine.PhaseOnlining:
		default:
			continue
		}
		if waited := st.Soft.Now.Sub(a.Since); waited > patience && s.now-s.calm > patience {
			s.violate("S3", "%s is %s for %s and says no reason", name, a.Phase, waited)
		}
	}
}

// checkOneRunner is S1 in the ground truth: never two nodes that are powered,
// run one instance, and can write its data or answer on its address.
func (s *Sim) checkOneRunner(a *app) {
	var can []string
	for _, n := range s.w.nodes {
		i := n.inst
		if !n.powered || n.frozen || i == nil || i.key.app != a.spec.Name || !i.up {
			continue
		}
		writes := (i.local() || s.w.admitted(n, i)) && !n.cut
		answers := i.addr && !n.cut
		if writes || answers {
			can = append(can, fmt.Sprintf("%s epoch %d", n.name, i.key.epoch))
		}
	}
	if len(can) > 1 && !a.lied {
		s.violate("S1", "%s runs on %s", a.spec.Name, strings.Join(can, " and "))
	}
}

// checkStep holds one step of the engine against the promises.
func (s *Sim) checkStep(before, st haengine.State, e haengine.Event, actions []haengine.Action) {
	for name, a := range st.Durable.Apps {
		old := before.Durable.Apps[name]
		if old == nil || old == a {
			continue
		}
		s.checkApp(old, a, st)
	}
	for _, a := range actions {
		s.checkFreeze(st, a)
		s.checkFence(st, a)
		switch a := a.(type) {
		case haengine.Claim:
			s.checkEvidence(st, a)
			s.checkParkedClaim(before, st, a)
		case haengine.Boot:
			if !a.Way.HasAgent() { // it starts the application by itself
				s.checkEvidence(st, haengine.Claim{Order: a.Order})
			}
		case haengine.Attach:
			s.checkAttach(st, a)
		case haengine.ParkNode:
			s.checkPark(before, st, a)
		}
	}
	s.checkOwners(st)
	s.checkParked(st)
}

func (s *Sim) checkApp(old, a *haengine.AppState, st haengine.State) {
	name := a.Spec.Name
	if a.Epoch < old.Epoch {
		s.violate("S4", "%s goes from epoch %d back to %d", name, old.Epoch, a.Epoch)
	}
	if old.Phase != a.Phase {
		s.counts["phase "+string(a.Phase)]++
	}
	if a.Phase == haengine.PhaseRunning && old.Phase != haengine.PhaseRunning {
		truth := s.w.app(name)
		if s.now-truth.upAt > 5e9 {
			s.violate("S13", "%s is called running, and nobody was served since %.2fs", name, truth.upAt.Seconds())
		}
		s.counts["running"]++
	}
	if a.Failover != 0 && old.Failover != a.Failover {
		f := st.Durable.Failovers[a.Failover]
		s.counts["failover "+string(f.Cause)]++
		if f.Cause == haengine.CauseFailure {
			s.checkJustified(name, f)
		}
	}
	if a.Grant != nil && a.Attempts == 1 && (old.Grant == nil || old.Grant.Epoch != a.Grant.Epoch) {
		s.checkBudget(a, st)
	}
	for i := range a.Old {
		x := a.Old[i].Exclusion
		if x.Proof != nil && (i >= len(old.Old) || old.Old[i].Exclusion == nil || old.Old[i].Exclusion.Proof == nil) {
			s.counts["evidence "+string(x.Proof.Kind)]++
			s.checkProof(name, &a.Old[i])
		}
		if i < len(old.Old) && len(x.Void) > len(old.Old[i].Exclusion.Void) {
			s.counts["evidence void"]++
		}
	}
	if a.Hold != nil && (old.Hold == nil || old.Hold.Rule != a.Hold.Rule) {
		s.counts["hold "+a.Hold.Rule]++
	}
}

// checkBudget is S11: at most F failovers for failures within the window, but
// those that a person asked for.
func (s *Sim) checkBudget(a *haengine.AppState, st haengine.State) {
	f := st.Durable.Failovers[a.Failover]
	if f == nil || f.Cause != haengine.CauseFailure || f.By != "" {
		return
	}
	truth, p := s.w.app(a.Spec.Name), a.Spec.Policy.WithDefaults()
	if n := len(truth.moves); n == 0 || truth.moves[n-1] != s.now {
		truth.moves = append(truth.moves, s.now)
	}
	recent := 0
	for _, at := range truth.moves {
		if s.now-at < p.FailoverWindow.D() {
			recent++
		}
	}
	if recent > p.MaxFailovers {
		s.violate("S11", "%s is failed over %d times within %s, the policy allows %d", a.Spec.Name, recent, p.FailoverWindow, p.MaxFailovers)
	}
}

// checkJustified is S7: a failover for a failure has a failure in the truth, or
// two channels that the world really broke.
func (s *Sim) checkJustified(name string, f *haengine.Failover) {
	truth := s.w.app(name)
	n := s.w.node(f.From)
	mends := n != nil && s.w.mends(n, name)
	if n == nil || n.inst == nil || !n.serves(name) && !mends || n.inst.dropping {
		return
	}
	if i := n.inst; i.unhung > 0 && s.now-i.unhung < 5e9 {
		return
	}
	broken := 0
	if mends || truth.probe || n.pathCut || s.now-s.w.probeFixed(truth) < 8e9 {
		broken++
	}
	if n.noHB || n.pathCut || s.now-s.w.hbFixed(n) < 8e9 {
		broken++
	}
	if n.bmcLies || n.cut || s.w.isolated || s.now-s.w.linkFixed < 15e9 {
		broken += 2
	}
	if broken < 2 {
		s.violate("S7", "%s is failed over while %s serves it: %s", name, n.name, f.Why)
	}
}

// checkEvidence is S2 as the engine states it: every earlier grant has a proof of
// an accepted kind, not contradicted, at the moment of the claim.
func (s *Sim) checkEvidence(st haengine.State, c haengine.Claim) {
	a := st.Durable.Apps[c.App]
	if a == nil || a.Grant == nil || a.Grant.Epoch != c.Epoch {
		s.violate("S2", "%s epoch %d is claimed without a grant", c.App, c.Epoch)
		return
	}
	for _, g := range a.Old {
		if g.Exclusion == nil || g.Exclusion.Proof == nil {
			s.violate("S2", "%s epoch %d is claimed, epoch %d on %s is not excluded", c.App, c.Epoch, g.Epoch, g.Node)
		}
	}
	if len(a.Old) == 0 && c.Epoch > 1 && a.Revoked < c.Epoch {
		s.violate("S2", "%s epoch %d is claimed before the revocation", c.App, c.Epoch)
	}
}

// checkLease is S2: no lease is renewed for a grant that is over.
func (s *Sim) checkLease(st haengine.State, h haengine.Heartbeat) {
	a := st.Durable.Apps[h.App]
	orderly := a != nil && slices.ContainsFunc(a.Old, func(g haengine.Grant) bool {
		return g.Epoch == h.Epoch && g.Exclusion.Orderly && !g.Exclusion.Released
	})
	if a == nil || orderly || a.Grant != nil && a.Grant.Epoch == h.Epoch && a.Grant.Node == h.Node {
		return
	}
	s.violate("S2", "%s gets a lease for %s epoch %d, which is over", h.Node, h.App, h.Epoch)
}

// checkFreeze is S9 and S5: no effects in a frozen scope or by a blind appliance.
func (s *Sim) checkFreeze(st haengine.State, a haengine.Action) {
	switch a.(type) {
	case haengine.ReadPower, haengine.ProbeAddress, haengine.Notify:
		return
	}
	h := a.Head()
	if st.Soft.Isolated {
		s.violate("S5", "%s by a cut-off appliance", a.Kind())
	}
	for _, f := range st.Durable.Freezes {
		site := f.Scope == haengine.Scope{}
		pool := f.Scope.Pool != "" && (h.Node != "" || a.Kind() == (haengine.Revoke{}).Kind()) // there is one pool
		if site || pool || f.Scope.App != "" && f.Scope.App == h.App {
			s.violate("S9", "%s of %s %s while the %s is frozen", a.Kind(), h.App, h.Node, f.Scope)
		}
	}
}

// checkFence is S4 for machines: no power-off of a node that carries a live grant.
func (s *Sim) checkFence(st haengine.State, a haengine.Action) {
	off, is := a.(haengine.PowerOff)
	if !is {
		return
	}
	for name, x := range st.Durable.Apps {
		if g := x.Grant; g != nil && g.Node == off.Node && g.Claimed {
			s.violate("S4", "%s is powered off while it carries %s epoch %d", off.Node, name, g.Epoch)
		}
	}
}

// checkOwners is S12: a node has at most one owner.
func (s *Sim) checkOwners(st haengine.State) {
	owner := map[string]string{}
	for name, a := range st.Durable.Apps {
		if a.Grant == nil {
			continue
		}
		if other := owner[a.Grant.Node]; other != "" {
			s.violate("S12", "%s belongs to %s and %s", a.Grant.Node, other, name)
		}
		owner[a.Grant.Node] = name
	}
}

// settled says whether everything runs, in the engine's eyes and in truth.
func (s *Sim) settled() bool {
	if !s.up() {
		return false
	}
	st := s.machine.State()
	for _, a := range s.w.apps {
		x := st.Durable.Apps[a.spec.Name]
		if x == nil || x.Phase != haengine.PhaseRunning || s.now-a.upAt > 3e9 {
			return false
		}
		if n := s.w.node(x.Grant.Node); n == nil || !n.serves(a.spec.Name) {
			return false
		}
	}
	if !s.w.parkedAsAsked(st) {
		return false
	}
	return !slices.ContainsFunc(s.w.nodes, func(n *node) bool {
		x := st.Durable.Nodes[n.name]
		return x == nil || x.Phase != haengine.NodeIdle && x.Phase != haengine.NodeOwned && x.Phase != haengine.NodeQuarantined
	})
}
