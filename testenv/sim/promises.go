package sim

import (
	"slices"
	"time"

	"hotspare/haengine"
)

// The promises about ways and standby, held against the ground truth.

// checkLocalBoot is S2a: a node whose disk holds an application is handed back to
// its firmware only while its grant is live.
func (w *world) checkLocalBoot(n *node) {
	if len(n.copies) == 0 || !w.s.up() {
		return
	}
	w.s.counts["boot with a local copy"]++
	st := w.s.machine.State()
	ok, why := haengine.LocalBoot(st, n.name)
	if !ok {
		return
	}
	for _, a := range st.Durable.Apps {
		if g := a.Grant; g != nil && g.Node == n.name && g.Way.LeavesCopy() && g.Booted {
			return
		}
	}
	w.s.violate("S2a", "%s may start from its disk, which holds %s: %s", n.name, n.copies[0].App, why.Text)
}

// checkProof is S2.2 and S2.3: the revoked storage says nothing about what runs
// without it, or without an agent; another boot says nothing about a local copy
// that can start.
func (s *Sim) checkProof(name string, g *haengine.Grant) {
	ran := g.Booted || g.Claimed
	switch k := g.Exclusion.Proof.Kind; {
	case !ran:
	case k == haengine.EvidenceStorage && (!g.Way.NeedsVolume() || !g.Way.HasAgent()):
		s.violate("S2", "storage evidence about %s epoch %d, which was started as %s", name, g.Epoch, g.Way)
	case k == haengine.EvidenceRelease && (!g.Way.NeedsVolume() || !g.Way.HasAgent()):
		s.violate("S2", "release evidence about %s epoch %d, which was started as %s", name, g.Epoch, g.Way)
	case k == haengine.EvidenceIdentity && g.Way.LeavesCopy():
		s.counts["identity of a local copy"]++
		if slices.ContainsFunc(s.w.node(g.Node).copies, func(c haengine.LocalCopy) bool {
			return c.App == name && (c.State == haengine.CopyReady || c.State == haengine.CopyStarted)
		}) {
			s.violate("S2", "identity evidence about %s epoch %d, and the disk of %s can start it", name, g.Epoch, g.Node)
		}
	}
}

// checkParkedClaim is S2 and S12: a boot is claimed for the grant that it came for
// only, and a parked one only while it is heard.
func (s *Sim) checkParkedClaim(before, st haengine.State, c haengine.Claim) {
	a := st.Durable.Apps[c.App]
	if k, came := s.w.tokens[c.BootID]; came && k != (grantKey{c.App, c.Epoch}) {
		s.violate("S2", "%s epoch %d is claimed on boot %s, which came for %s epoch %d", c.App, c.Epoch, c.BootID, k.app, k.epoch)
	}
	if a == nil || a.Grant == nil || !a.Grant.Direct || c.BootID != a.Grant.BootID {
		return
	}
	if before.Durable.Pending[c.ID] != nil {
		return // it is told again, as after a restart
	}
	n := st.Soft.Nodes[c.Node]
	if n == nil || n.HeardBoot != c.BootID || st.Soft.Now.Sub(n.Heard) > 10*time.Second {
		s.violate("S12", "%s epoch %d is claimed on boot %s of %s, which is not heard", c.App, c.Epoch, c.BootID, c.Node)
	}
}

// checkAttach is S8: volumes are exported to the holder of the grant only, after
// every earlier grant was excluded.
func (s *Sim) checkAttach(st haengine.State, x haengine.Attach) {
	a := st.Durable.Apps[x.App]
	if a == nil || a.Grant == nil || a.Grant.Node != x.Node || a.Grant.Epoch != x.Epoch {
		s.violate("S8", "volumes of %s epoch %d are exported to %s, which holds no grant", x.App, x.Epoch, x.Node)
	}
}

// checkParked is S12: a node in standby has no owner but the one that takes it as
// it is.
func (s *Sim) checkParked(st haengine.State) {
	for name, n := range st.Durable.Nodes {
		if n.Park == nil {
			continue
		}
		switch n.Phase {
		case haengine.NodeIdle:
			if n.Owner != "" {
				s.violate("S12", "%s is in standby and belongs to %s", name, n.Owner)
			}
		case haengine.NodeReserved, haengine.NodeOwned:
		default:
			s.violate("S12", "%s is %s and in standby", name, n.Phase)
		}
	}
}

// checkPark is the policy's number at the moment at which a further node is ordered
// into standby for the first time.
func (s *Sim) checkPark(before, st haengine.State, x haengine.ParkNode) {
	p := st.Durable.Pools["rack1"]
	if before.Durable.Pending[x.ID] != nil || p == nil {
		return
	}
	idle := 0
	for _, n := range st.Durable.Nodes {
		if n.Park != nil && n.Phase == haengine.NodeIdle {
			idle++
		}
	}
	if p.Standby == nil || idle > p.Standby.Nodes {
		s.violate("S12", "%d nodes are in standby or on their way, the policy is %+v", idle, p.Standby)
	}
	if n := s.w.node(x.Node); n.inst != nil && n.powered && !n.believed {
		s.violate("S12", "%s is ordered into standby while it runs %s", x.Node, n.inst.key.app)
	}
}
