package haengine

import (
	"fmt"
	"time"
)

// hold gives the guard that keeps a decision about the application from being
// acted on, or nil. An operator's request passes S6 and S11.
func (w *work) hold(a *AppState, cause CauseKind) *Hold {
	if w.s.Soft.Isolated {
		return &Hold{"S5", "the appliance itself is cut off: " + w.s.Soft.IsolatedWhy, "mend the appliance's own network"}
	}
	node := ""
	if a.Grant != nil {
		node = a.Grant.Node
	}
	if f := w.frozen(a.Spec.Name, node); f != nil && !w.r.freezeIgnored {
		until := "until it is lifted"
		if !f.Until.IsZero() {
			until = "until " + f.Until.UTC().Format(time.RFC3339)
		}
		return &Hold{"S9", fmt.Sprintf("frozen (%s) by %s: %s, %s", f.Scope, f.By, f.Reason, until), "lift the freeze of the " + f.Scope.String()}
	}
	if cause != CauseFailure || a.Asked != nil {
		return nil
	}
	if h := w.storm(a); h != nil {
		return h
	}
	site := w.s.Durable.Site.WithDefaults()
	if n := recent(w.s.Durable.Fences, w.now, site.FenceWindow.D()); n >= site.FenceBudget {
		return &Hold{"S6", fmt.Sprintf("the fence budget is spent: %d within %s", n, site.FenceWindow), "find the common cause, then ask for the failover of " + a.Spec.Name}
	}
	p := a.Spec.Policy
	if a.Attempts > 0 {
		return nil // the same failover goes on: it was counted
	}
	if n := recent(a.Ledger, w.now, p.FailoverWindow.D()); n >= p.MaxFailovers {
		return &Hold{"S11", fmt.Sprintf("%d failovers within %s, the policy allows %d", n, p.FailoverWindow, p.MaxFailovers), "find the cause, then ask for the failover of " + a.Spec.Name}
	}
	return nil
}

// storm holds when many nodes fall silent together and nothing conclusive is
// known about any of them: then it is the network, or the appliance (SAFETY S6).
func (w *work) storm(a *AppState) *Hold {
	if !live(a) || w.watched(a).Conclusive != "" {
		return nil
	}
	site := w.s.Durable.Site.WithDefaults()
	carrying, silent := 0, 0
	own := false
	for _, k := range w.apps.keys() {
		b := w.apps.get(k)
		if !live(b) {
			continue
		}
		carrying++
		f := w.watched(b)
		s := w.silence(b, f)
		if s < heartbeatTimeout(b)/2 || f.Conclusive != "" || w.readOff(b, f, s) {
			continue
		}
		silent++
		own = own || k == a.Spec.Name
	}
	if silent >= site.StormNodes && float64(silent) >= site.StormShare*float64(carrying) {
		w.s.Soft.Storm, w.s.Soft.StormText = w.now, fmt.Sprintf("%d of %d nodes fell silent together and nothing is known about any of them", silent, carrying)
	}
	// It is over only a while after it ended: the nodes come back one by one.
	if f := w.s.Soft; !own || f.Storm.IsZero() || w.now.Sub(f.Storm) >= heartbeatTimeout(a) {
		return nil
	}
	return &Hold{
		"S6", w.s.Soft.StormText,
		"check the network between appliance and nodes, or ask for the failover of " + a.Spec.Name,
	}
}

func recent(at []Stamp, now Stamp, window time.Duration) int {
	n := 0
	for _, s := range at {
		if now.Sub(s) < window {
			n++
		}
	}
	return n
}

// keepRecent gives the stamps within the window and now.
func keepRecent(at []Stamp, now Stamp, window time.Duration) []Stamp {
	var out []Stamp
	for _, s := range at {
		if now.Sub(s) < window {
			out = append(out, s)
		}
	}
	return append(out, now)
}

// thaw ends freezes whose date has come.
func (w *work) thaw() {
	for _, k := range w.freezes.keys() {
		f := w.freezes.get(k)
		if !f.Until.IsZero() && !w.now.Wall.Before(f.Until) {
			w.freezes.del(k)
			w.say(nil, "", "the freeze of the %s by %s is over", f.Scope, f.By)
			w.all = true
		}
	}
}
