package haengine

import (
	"slices"
	"time"
)

const (
	firstPause = 500 * time.Millisecond // before the second try of an action
	longPause  = 30 * time.Second       // between tries at most
	maxSteps   = 200                    // step records kept per failover
)

// journalled says whether an action is kept in the durable state. Observations
// are not: they have no effect, and are made anew after a restart.
func journalled(a Action) bool {
	switch a.(type) {
	case ReadPower, ProbeAddress:
		return false
	}
	return true
}

// order makes an action; dispatch gives it out at the end of the step unless a
// guard holds it.
func (w *work) order(a Action, fo FailoverID) {
	h := a.Head()
	w.s.Durable.NextAction++
	h.ID = w.s.Durable.NextAction
	p := &Pending{Action: a.withHead(h), Ordered: w.now, Waiting: true, NotBefore: w.now.At, Failover: fo}
	if !journalled(a) {
		w.softPend.put(h.ID, p)
		return
	}
	w.meta = true
	w.pending.put(h.ID, p)
	if f := w.failovers.edit(fo); f != nil && len(f.Steps) < maxSteps {
		f.Steps = append(f.Steps, StepRecord{Action: h.ID, Kind: a.Kind(), Node: h.Node, Epoch: h.Epoch, Ordered: w.now})
	}
}

// editPending gives a pending action of either table for changing.
func (w *work) editPending(id ActionID) *Pending {
	if p := w.pending.edit(id); p != nil {
		return p
	}
	return w.softPend.edit(id)
}

func (w *work) getPending(id ActionID) *Pending {
	if p := w.pending.get(id); p != nil {
		return p
	}
	return w.softPend.get(id)
}

func (w *work) endPending(id ActionID) {
	w.pending.del(id)
	w.softPend.del(id)
}

// open gives the numbers of unfinished actions for which keep holds, in order.
func (w *work) open(keep func(*Pending) bool) []ActionID {
	var ids []ActionID
	for _, id := range slices.Concat(w.pending.keys(), w.softPend.keys()) {
		if keep(w.getPending(id)) {
			ids = append(ids, id)
		}
	}
	return ids
}

// has says whether a wanted action like that is unfinished.
func (w *work) has(keep func(Action) bool) bool {
	return len(w.open(func(p *Pending) bool { return !p.Withdrawn && keep(p.Action) })) > 0
}

// withdraw stops wanting actions. One that was never given out is forgotten; of
// the others the end is awaited, because they may still take effect.
func (w *work) withdraw(keep func(Action) bool) {
	for _, id := range w.open(func(p *Pending) bool { return !p.Withdrawn && keep(p.Action) }) {
		p := w.editPending(id)
		w.step(p, true, "withdrawn")
		if p.Waiting && p.Tries == 0 || !journalled(p.Action) {
			w.endPending(id)
			continue
		}
		if p.Waiting { // between two tries: nobody is performing it
			w.endPending(id)
			continue
		}
		p.Withdrawn = true
	}
}

// again lets an action be tried once more, later with each try.
func (w *work) again(id ActionID) {
	p := w.editPending(id)
	pause := longPause
	if p.Tries < 7 {
		pause = min(longPause, firstPause<<max(0, p.Tries-1))
	}
	p.Waiting, p.NotBefore = true, w.now.At.Add(pause)
}

// step writes the end of a try into the failover's record.
func (w *work) step(p *Pending, ended bool, text string) {
	f := w.failovers.get(p.Failover)
	if f == nil {
		return
	}
	id := p.Action.Head().ID
	i := slices.IndexFunc(f.Steps, func(s StepRecord) bool { return s.Action == id })
	if i < 0 {
		return
	}
	f = w.failovers.edit(p.Failover)
	s := &f.Steps[i]
	s.Tries, s.Text = p.Tries, text
	if ended {
		s.Ended = w.now
	}
}

// dispatch gives out what is due and not held.
func (w *work) dispatch() {
	due := func(p *Pending) bool {
		return p.Waiting && !p.Withdrawn && p.NotBefore <= w.now.At && !w.heldBack(p.Action)
	}
	for _, id := range w.open(due) {
		p := w.editPending(id)
		p.Waiting = false
		p.Tries++
		w.out = append(w.out, p.Action)
	}
}

// heldBack says whether a guard forbids the action now (SAFETY S5, S9).
// Observations and messages have no effect on anybody.
func (w *work) heldBack(a Action) bool {
	switch a.(type) {
	case ReadPower, ProbeAddress, Notify:
		return false
	}
	if w.s.Soft.Isolated {
		return true
	}
	h := a.Head()
	if starts(a) && !w.proven(w.apps.get(h.App)) {
		return true // a proof was contradicted before the claim arrived
	}
	if w.r.freezeIgnored {
		return false
	}
	if _, is := a.(Revoke); is && w.poolFrozen(w.apps.get(h.App)) {
		return true
	}
	return w.frozen(h.App, h.Node) != nil
}

// starts says whether the application may run as soon as the action was begun.
func starts(a Action) bool {
	switch a := a.(type) {
	case Claim:
		return true
	case Boot:
		return !a.Way.HasAgent()
	}
	return false
}

// poolFrozen says whether the pool of a node that an application left is frozen:
// a revocation names no node, and is felt there. Of a node that is unknown every
// pool of the application counts.
func (w *work) poolFrozen(a *AppState) bool {
	if a == nil {
		return false
	}
	frozen := func(pool string) bool { return w.freezes.get(Scope{Pool: pool}.String()) != nil }
	for i := range a.Old {
		n := w.nodes.get(a.Old[i].Node)
		if n == nil && slices.ContainsFunc(a.Spec.Pools, frozen) || n != nil && frozen(n.Spec.Pool) {
			return true
		}
	}
	return false
}

// frozen gives the freeze that covers an application or a node, or nil.
func (w *work) frozen(app, node string) *Freeze {
	if f := w.freezes.get(Scope{}.String()); f != nil {
		return f
	}
	if app != "" {
		if f := w.freezes.get(Scope{App: app}.String()); f != nil {
			return f
		}
	}
	if n := w.nodes.get(node); n != nil {
		return w.freezes.get(Scope{Pool: n.Spec.Pool}.String())
	}
	return nil
}
