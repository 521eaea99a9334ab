package haengine

import (
	"slices"
	"time"

	"hotspare"
)

// NoLease is told to agents of applications whose policy does not ask for
// self-fencing: a lease that never ends. Storage evidence, which counts on the
// end of a lease, is not accepted for them.
const NoLease = Duration(10 * 365 * 24 * time.Hour)

// SelfFences says whether the policy asks the agent to give the application up
// when its lease was not renewed: only then storage evidence can count.
func (p Policy) SelfFences() bool { return slices.Contains(p.Evidence, EvidenceStorage) }

// promised gives the lease of a claim under a policy.
func (p Policy) promised() Duration {
	if p.SelfFences() {
		return p.Lease
	}
	return NoLease
}

// Planned is an announced absence of the appliance.
type Planned struct {
	For   Duration `json:"for"`
	By    string   `json:"by"`
	Since Stamp    `json:"since"`
	Away  bool     `json:"away,omitempty"` // the appliance has started since: it ends after the grace
}

// MaxPlanned bounds an announced absence: longer ones need a failover, or a freeze.
const MaxPlanned = Duration(30 * time.Minute)

const plannedSlack = Duration(30 * time.Second) // added to what was announced: the start itself, and the agents' return

// plan takes the announcement of a restart: from the answer to the next heartbeat
// on, every agent has a lease that outlasts it. The longer lease is durable before
// it is given, and evidence counts on it from this step on.
func (w *work) plan(e PlannedRestart) {
	w.s.Durable.Planned, w.meta = &Planned{For: e.For, By: e.By, Since: w.now}, true
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		if live(a) {
			w.lengthen(w.apps.edit(k).Grant)
		}
		for i := range a.Old { // one that is being released in order goes on, too
			if g := &a.Old[i]; g.Claimed && g.Exclusion.Orderly && !g.Exclusion.Released && g.Exclusion.Proof == nil {
				w.lengthen(&w.apps.edit(k).Old[i])
			}
		}
	}
	w.say(nil, "", "%s announced a restart of the appliance: leases last %s at least", e.By, e.For+plannedSlack)
}

// lengthen promises a grant the longer lease.
func (w *work) lengthen(g *Grant) {
	p := w.s.Durable.Planned
	if p == nil || g.Lease >= p.For+plannedSlack {
		return
	}
	g.Longest, g.LongUntil = max(g.Longest, p.For+plannedSlack), Stamp{}
}

// endPlanned goes back to the usual leases: after the restart, or when it did not
// come. The longer ones that were given count until the last of them is over.
func (w *work) endPlanned() {
	p := w.s.Durable.Planned
	over := p != nil && (p.Away && w.now.At >= w.s.Soft.QuietUntil || !p.Away && w.now.Sub(p.Since) >= p.For.D())
	if over {
		w.s.Durable.Planned, w.meta = nil, true
		w.say(nil, "", "the announced restart is over: leases are as usual again")
	}
	if w.s.Durable.Planned != nil {
		return
	}
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		if a.Grant != nil && a.Grant.Longest > 0 {
			w.shorten(w.apps.edit(k).Grant)
		}
		for i := range a.Old {
			if a.Old[i].Longest > 0 {
				w.shorten(&w.apps.edit(k).Old[i])
			}
		}
	}
}

func (w *work) shorten(g *Grant) {
	switch {
	case g.LongUntil.IsZero():
		g.LongUntil = Stamp{At: w.now.At.Add(g.Longest.D()), Wall: w.now.Wall.Add(g.Longest.D())}
	case w.now.At >= g.LongUntil.At:
		g.Longest, g.LongUntil = 0, Stamp{}
	}
}

// lease is what the holder of the grant is told now.
func (g *Grant) lease() Duration {
	if g.LongUntil.IsZero() {
		return max(g.Lease, g.Longest)
	}
	return g.Lease
}

// longestLease is the longest lease that its holder may have.
func (g *Grant) longestLease() Duration { return max(g.Lease, g.Longest) }

// RestartReady gives the applications whose agents have not yet been answered
// with the longer lease of an announced restart, or that are on their way to
// another node; the appliance stops when there are none, or tells them.
func RestartReady(s State) (waiting []string) {
	p := s.Durable.Planned
	for _, k := range sortedKeys(s.Durable.Apps) {
		a := s.Durable.Apps[k]
		switch {
		case a.Phase != PhaseRunning && a.Phase != PhaseDown && a.Phase != PhaseUndecided:
			waiting = append(waiting, k)
		case p == nil || !live(a) || !a.Grant.Way.HasAgent() || a.Grant.Lease == NoLease:
		case s.Soft.Leases[leaseKey(k, a.Grant.Epoch)] < p.Since.At.Add(p.For.D()):
			waiting = append(waiting, k)
		}
	}
	return waiting
}

func refusePlanned(e PlannedRestart) *hotspare.Error {
	if e.For <= 0 || e.For > MaxPlanned {
		return refusal(hotspare.CodeInvalid, "an announced restart takes at most "+MaxPlanned.String(), "", "it is "+e.For.String(),
			"announce a shorter one; for a longer one, freeze the site")
	}
	return nil
}
