package haengine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Reason is why something is so: Rule for machines, Text for people.
type Reason struct {
	Rule string `json:"rule"`
	Text string `json:"text"`
}

// leaseAllowed is the rule behind LeaseAllowed: the live grant, or one that is
// being released in order.
func leaseAllowed(a *AppState, node, bootID, app string, epoch Epoch) (bool, Reason) {
	if a == nil {
		return false, Reason{"unknown-app", fmt.Sprintf("there is no application %s", app)}
	}
	match := func(g *Grant) bool {
		return g.Epoch == epoch && g.Node == node && g.BootID == bootID && bootID != "" && g.Claimed
	}
	if g := a.Grant; g != nil && match(g) {
		return true, Reason{}
	}
	for i := range a.Old {
		if g := &a.Old[i]; match(g) && g.Exclusion.Orderly && !g.Exclusion.Released && g.Exclusion.Proof == nil {
			return true, Reason{}
		}
	}
	switch {
	case epoch < a.Epoch:
		return false, Reason{"stale-epoch", fmt.Sprintf("epoch %d of %s is over; the last is %d", epoch, app, a.Epoch)}
	case a.Grant == nil || a.Grant.Node != node:
		return false, Reason{"not-owner", fmt.Sprintf("%s does not belong to %s", app, node)}
	case a.Grant.BootID != bootID:
		return false, Reason{"other-boot", fmt.Sprintf("%s was granted to another boot of %s", app, node)}
	}
	return false, Reason{"not-claimed", fmt.Sprintf("%s epoch %d was not claimed", app, epoch)}
}

// LeaseOf gives the lease that a grant's heartbeats are answered with: what was
// promised with its claim, or more while a restart is announced. A later change of
// the policy does not change it, because evidence counts on it.
func LeaseOf(a *AppState, e Epoch) Duration {
	if g := grantOf(a, e); g != nil {
		return g.lease()
	}
	return 0
}

// grantOf gives the live or an earlier grant of an epoch, or nil.
func grantOf(a *AppState, e Epoch) *Grant {
	if g := a.Grant; g != nil && g.Epoch == e {
		return g
	}
	for i := range a.Old {
		if a.Old[i].Epoch == e {
			return &a.Old[i]
		}
	}
	return nil
}

func leaseKey(app string, e Epoch) string { return fmt.Sprintf("%s@%d", app, e) }

// acked notes that a heartbeat was answered with a lease; one that was given
// before and lasts longer still counts.
func (w *work) acked(app string, e Epoch) {
	a := w.apps.get(app)
	if a == nil {
		return
	}
	key, end := leaseKey(app, e), w.now.At.Add(LeaseOf(a, e).D())
	w.leases()[key] = max(w.s.Soft.Leases[key], end)
}

// leases gives the table of answered heartbeats for changing.
func (w *work) leases() map[string]Instant {
	f := &w.s.Soft
	if !w.ownLeases {
		m := make(map[string]Instant, len(f.Leases)+1)
		maps.Copy(m, f.Leases)
		f.Leases, w.ownLeases = m, true
	}
	return f.Leases
}

// forgetLeases drops the leases of an application's grants that nothing waits
// for any more, all but the one under keep.
func (w *work) forgetLeases(app string, keep Epoch) {
	for _, k := range slices.Collect(maps.Keys(w.s.Soft.Leases)) {
		if strings.HasPrefix(k, app+"@") && k != leaseKey(app, keep) {
			delete(w.leases(), k)
		}
	}
}

// leaseOver gives the moment from which the holder of an earlier grant has
// dropped the application by itself: the end of the lease that the last heartbeat
// was answered with (after a restart of the appliance, or when none came, of the
// longest lease that it may have, given then or with the claim), plus drop bound
// and margin. ok is false while a claim is on its way.
func (w *work) leaseOver(app string, g *Grant) (at Instant, ok bool) {
	if !g.Claimed {
		return 0, true // nothing of it ever ran
	}
	if w.inFlight(func(a Action) bool {
		c, is := a.(Claim)
		return is && c.App == app && c.Epoch == g.Epoch
	}) {
		return 0, false
	}
	at = max(w.s.Soft.RestartedAt, g.ClaimedAt.At).Add(g.longestLease().D())
	return max(at, w.s.Soft.Leases[leaseKey(app, g.Epoch)]).Add(g.Bound.D()), true
}

// inFlight says whether somebody may be performing such an action right now,
// wanted or not.
func (w *work) inFlight(keep func(Action) bool) bool {
	return len(w.open(func(p *Pending) bool { return !p.Waiting && keep(p.Action) })) > 0
}

// heartbeatTimeout is the silence of the agent that counts as a failed channel.
func heartbeatTimeout(a *AppState) time.Duration {
	for _, m := range a.Spec.Monitors {
		if m.Kind == MonitorHeartbeat {
			return m.Timeout.D()
		}
	}
	return DefaultHeartbeat.D()
}
