package haengine

import (
	"maps"
	"slices"

	"hotspare"
)

// restarted begins a run of the appliance: the monotonic clock is new. Every
// lease counts as renewed now, deadlines begin anew, unfinished actions are
// ordered again under their numbers (SAFETY S2, S4, L3).
func (w *work) restarted() {
	f := &w.s.Soft
	f.RestartedAt = w.now.At
	f.Apps, f.Nodes, f.Leases, f.Pending = map[string]*AppSoft{}, map[string]*NodeSoft{}, map[string]Instant{}, map[ActionID]*Pending{}
	f.Storm, f.Isolated = Stamp{}, false
	f.QuietUntil = w.now.At.Add(w.s.Durable.Site.WithDefaults().Grace.D())
	for _, k := range w.apps.keys() {
		w.rebaseApp(w.apps.edit(k))
	}
	for _, k := range w.nodes.keys() {
		n := w.nodes.edit(k)
		n.Since = w.rebase(n.Since)
		w.rebaseNode(n)
	}
	for _, k := range w.failovers.keys() {
		if w.failovers.get(k).Outcome == OutcomeOpen {
			w.rebaseMarks(&w.failovers.edit(k).Marks)
		}
	}
	d := &w.s.Durable
	d.Incidents = maps.Clone(d.Incidents)
	for k, v := range d.Incidents {
		d.Incidents[k] = w.rebase(v)
	}
	fences := make([]Stamp, len(d.Fences))
	for i, s := range d.Fences {
		fences[i] = w.rebase(s)
	}
	d.Fences, w.meta = fences, true
	if p := d.Planned; p != nil {
		away := *p
		away.Away, away.Since.At = true, w.now.At
		d.Planned = &away
	}
	for _, id := range w.pending.keys() {
		p := w.pending.edit(id)
		if p.Withdrawn { // whoever performed it died with the last run
			w.endPending(id)
			continue
		}
		tried := 0
		if p.Action.Kind() == (Revoke{}).Kind() {
			tried = min(p.Tries, 1) // that it was tried before stays known: unclean
		}
		p.Waiting, p.NotBefore, p.Tries, p.Ordered = true, w.now.At, tried, w.rebase(p.Ordered)
	}
	w.say(nil, "", "the appliance started")
	for _, k := range w.nodes.keys() {
		w.readPower("", k, 0)
	}
	w.all = true
}

// rebase moves a stamp of an earlier run onto the present clock by the wall
// clock's distance; it never lies in the future.
func (w *work) rebase(s Stamp) Stamp {
	if s.IsZero() {
		return s
	}
	age := max(0, w.now.Wall.Sub(s.Wall))
	s.At = w.now.At.Add(-age)
	return s
}

func (w *work) rebaseMarks(m *Marks) {
	for _, s := range []*Stamp{&m.LastGood, &m.Suspected, &m.Failed, &m.Decided, &m.Fenced, &m.Attached, &m.Joined, &m.Ended} {
		*s = w.rebase(*s)
	}
}

// rebaseApp: what is a deadline begins anew (longer is safer), what is history
// keeps its age.
func (w *work) rebaseApp(a *AppState) {
	a.Since.At = w.now.At
	a.RevokedAt = w.rebase(a.RevokedAt)
	for i := range a.Ledger {
		a.Ledger[i] = w.rebase(a.Ledger[i])
	}
	for i := range a.Failures {
		a.Failures[i].At = w.rebase(a.Failures[i].At)
	}
	if g := a.Grant; g != nil {
		g.Since = w.rebase(g.Since)
		rebaseGrant(g, w.now)
	}
	for i := range a.Old {
		g := &a.Old[i]
		rebaseGrant(g, w.now)
		x := g.Exclusion
		x.Since.At = w.now.At
		if !x.Contradicted.IsZero() {
			x.Contradicted.At = w.now.At
		}
		if x.Proof != nil {
			p := *x.Proof
			p.At.At = w.now.At
			x.Proof = &p
		}
	}
}

// rebaseNode: a parked boot has to be heard anew, within the time that it had; a
// node that rests goes on to rest.
func (w *work) rebaseNode(n *NodeState) {
	if p := n.Park; p != nil {
		p.Ordered.At = w.now.At
		for _, s := range []*Stamp{&p.On, &p.Since} {
			if !s.IsZero() {
				s.At = w.now.At
			}
		}
		p.Ahead = Stamp{} // what kept it may be mended
	}
	if !n.ParkAfter.IsZero() {
		n.ParkAfter.At = w.now.At.Add(min(longParkPause, max(0, n.ParkAfter.Wall.Sub(w.now.Wall))))
	}
}

func rebaseGrant(g *Grant, now Stamp) {
	g.Began = Stamp{} // a start that the appliance did not see as a whole is not measured
	if !g.LongUntil.IsZero() {
		g.LongUntil.At = now.At.Add(g.Longest.D()) // the longest that the last of them can last
	}
	for _, s := range []*Stamp{&g.BootDone, &g.Joined, &g.ClaimedAt} {
		if !s.IsZero() {
			s.At = now.At
		}
	}
}

// floor takes the storage's or an agent's word about a higher epoch than the
// state knows: the state is older than the world. The higher one wins; who holds
// it is unknown and needs evidence like any earlier grant.
func (w *work) floor(e EpochFloor) {
	a := w.apps.get(e.App)
	if a == nil || e.Epoch <= a.Epoch {
		return
	}
	if e.Epoch > MaxEpoch {
		w.notify("app/"+e.App+"/epoch", Notice{
			App: e.App, Code: hotspare.CodeCorrupt,
			Text: e.App + ": the storage tells of epoch " + itoa(e.Epoch) + ", which cannot be: it is not believed",
			Fix:  "check the storage of " + e.App,
		})
		return
	}
	a = w.apps.edit(e.App)
	w.openFailover(a, CauseEpoch, "the storage knows epoch "+itoa(e.Epoch)+", the engine only "+itoa(a.Epoch), "", nil)
	w.notify("app/"+e.App+"/epoch", Notice{
		App: e.App, Text: e.App + ": epoch " + itoa(e.Epoch) + " exists and the engine knows only " + itoa(a.Epoch) + ": its state is older than the world",
		Fix: "was an old backup restored? It goes on when the unknown holder is excluded",
	})
	if a.Grant != nil {
		w.retire(a, false, "", "a later grant exists")
	}
	p := a.Spec.Policy
	a.Old = append(a.Old, Grant{
		Epoch: e.Epoch, Way: unknownWay(p, w.images.get(a.Spec.Image)), Since: w.now, Attached: true, Booted: true, Claimed: true, ClaimedAt: w.now,
		Lease: p.promised(), Longest: w.plannedLease(), Bound: p.DropBound + p.Margin, Exclusion: &Exclusion{Since: w.now},
	})
	a.Epoch = e.Epoch + 1
	w.floorAt(e.App, a.Epoch)
	w.enter(a, PhaseFencing, "an unknown node may hold epoch %d", e.Epoch)
	w.fence(a)
	w.all = true
}

// unknownWay is the way that the holder of an epoch is taken to have been started
// in of which nothing is known: the one that is the hardest to exclude among those
// that the policy allows. A policy that lists none allows what the image offers when
// it offers nothing else.
func unknownWay(p Policy, f *ImageFacts) Way {
	for _, way := range []Way{WayInstall, WaySlot, WayColdSAN, WayRAM} {
		if slices.Contains(p.Ways, way) {
			return way
		}
	}
	switch {
	case len(p.Ways) > 0 || f == nil: // of an image that nobody knows, nothing else was ever started
		return WayColdISCSI
	case slices.Contains(f.Ways, WayColdSAN) && !f.offers(Way.HasAgent):
		return WayColdSAN
	case slices.Contains(f.Ways, WayRAM) && !f.offers(Way.NeedsVolume):
		return WayRAM
	}
	return WayColdISCSI
}

func (w *work) plannedLease() Duration {
	if p := w.s.Durable.Planned; p != nil {
		return p.For + plannedSlack
	}
	return 0
}
