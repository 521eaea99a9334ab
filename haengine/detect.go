package haengine

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	readEvery    = 2 * time.Second         // a suspected node's BMC is read this often
	sessionGrace = 2 * time.Second         // a storage session may be away this long: initiators recover
	noAnswer     = 1500 * time.Millisecond // a power reading of off counts when nothing was heard for this long
)

// verdict is what the channels of a running application say together.
type verdict struct {
	suspect bool
	failed  bool
	why     string
	obs     []Observation
	turn    time.Duration // what is left of the agent's time to restart what failed
}

// sampled counts a monitor's sample.
func (w *work) sampled(e Sample) {
	a := w.apps.get(e.App)
	if a == nil || !live(a) || e.Epoch != 0 && e.Epoch != a.Grant.Epoch {
		return
	}
	m, ok := monitorOf(a, e.Monitor)
	if !ok {
		return
	}
	f := w.soft(a)
	key := e.Monitor + "/" + string(e.From)
	c := Check{Monitor: e.Monitor, From: e.From}
	if old := f.Checks[key]; old != nil {
		c = *old
	}
	c.OK, c.Why, c.At = e.OK, e.Why, w.now
	if e.OK {
		c.Good, c.Bad, c.Why = c.Good+1, 0, ""
		c.Failed = c.Failed && c.Good < m.Successes
		if e.From == FromAppliance {
			f.LastGood = w.now
		}
	} else {
		c.Good, c.Bad = 0, c.Bad+1
		c.Failed = c.Failed || c.Bad >= m.Failures
	}
	f.Checks[key] = &c
	w.touch(e.App)
}

func monitorOf(a *AppState, name string) (Monitor, bool) {
	for _, m := range a.Spec.Monitors {
		if m.Name == name {
			return m, true
		}
	}
	return Monitor{}, false
}

// restarted ends the agent's turn: what the checks saw before the service was
// back says nothing about it now, so they count bad samples anew.
func (f *AppSoft) restarted() {
	f.Restarting = Stamp{}
	for k, c := range f.Checks {
		if !c.OK {
			anew := *c
			anew.Bad, anew.Failed = 0, false
			f.Checks[k] = &anew
		}
	}
}

// live says whether the current grant may be running now.
func live(a *AppState) bool {
	return a.Grant != nil && a.Grant.Claimed
}

// judge weighs the channels (SAFETY S7): two that failed, or one conclusive
// proof. It looks at a claimed grant.
func (w *work) judge(a *AppState) verdict {
	f := w.watched(a)
	var v verdict
	see := func(channel, text string, conclusive bool, at Stamp) {
		v.obs = append(v.obs, Observation{Channel: channel, Text: text, Conclusive: conclusive, At: at})
	}
	channels := map[string]bool{}
	lastBad := false
	for _, k := range slices.Sorted(maps.Keys(f.Checks)) {
		c := f.Checks[k]
		if m, ok := monitorOf(a, c.Monitor); !ok || w.now.Sub(c.At) > 3*m.Every.D()+m.Timeout.D() {
			continue // its voice is gone: that is no sample
		}
		if !c.OK {
			v.suspect = true
			lastBad = lastBad || c.From == FromAppliance
		}
		if c.Failed {
			channels[string(c.From)] = true
			see(k, c.Why, false, c.At)
		}
	}
	for _, k := range sortedKeys(f.Failing) {
		v.suspect, channels[string(FromNode)] = true, true
		see("agent", f.Failing[k], false, w.now)
	}
	silent, timeout, voice := w.silence(a, f), heartbeatTimeout(a), a.Grant.Way.HasAgent()
	if voice && silent >= timeout/2 {
		v.suspect = true
	}
	if voice && silent >= timeout {
		channels["heartbeat"] = true
		see("heartbeat", fmt.Sprintf("none for %s", timeout), false, w.now)
	}
	conclusive := ""
	conclude := func(channel, text string, at Stamp) {
		see(channel, text, true, at)
		if conclusive == "" {
			conclusive = text
		}
	}
	if f.Conclusive != "" {
		conclude("agent", f.Conclusive, w.now)
	}
	if w.readOff(a, f, silent) {
		conclude("power", a.Grant.Node+" is off", w.node(a.Grant.Node).PowerAt)
	}
	if !f.SessionEnd.IsZero() && !f.SessionOpen && w.now.Sub(f.SessionEnd) >= sessionGrace && lastBad {
		conclude("session", "its storage session ended and the check fails", f.SessionEnd)
	}
	if silent < timeout && !f.Restarting.IsZero() && !w.r.noTurn {
		v.turn = a.Spec.Policy.RestartTime.D() - w.now.Sub(f.Restarting)
	}
	v.decide(w, conclusive, channels)
	return v
}

// decide takes one conclusive proof, or enough channels. While the agent, which
// is heard, restarts what failed, the channels see the same failure that it is
// mending: they count again when the restart took too long.
func (v *verdict) decide(w *work, conclusive string, channels map[string]bool) {
	need := 2
	if w.r.oneChannel {
		need = 1
	}
	switch {
	case conclusive != "":
		v.suspect, v.failed, v.why = true, true, conclusive
	case len(channels) >= need && w.now.At >= w.s.Soft.QuietUntil && v.turn <= 0:
		v.failed = true
		for i, o := range v.obs {
			if i > 0 {
				v.why += "; "
			}
			v.why += o.Channel + ": " + o.Text
		}
	}
}

// silence is the time since the current grant's agent was heard. After a
// restart, and after a claim, it counts from there.
func (w *work) silence(a *AppState, f AppSoft) time.Duration {
	if !a.Grant.Way.HasAgent() { // the passed check is its only voice
		f.Heartbeat = f.LastGood
	}
	return w.now.At.Sub(max(f.Heartbeat.At, w.s.Soft.RestartedAt, a.Grant.ClaimedAt.At))
}

// readOff says whether the node was read as off and nothing says otherwise: a
// BMC that says off while the application answers lies or is another node's.
func (w *work) readOff(a *AppState, f AppSoft, silent time.Duration) bool {
	n := w.node(a.Grant.Node)
	if n.Power != PowerIsOff || n.PowerAt.At < a.Grant.ClaimedAt.At {
		return false
	}
	if f.LastGood.At > n.PowerAt.At || f.Heartbeat.At > n.PowerAt.At {
		w.notify("node/"+a.Grant.Node+"/bmc-lies", Notice{
			App: a.Spec.Name, Node: a.Grant.Node, Text: "the BMC of " + a.Grant.Node + " says off, and the node still answers",
			Fix: "check that the BMC's address belongs to this node",
		})
		return false
	}
	return silent >= noAnswer && (f.LastGood.IsZero() || w.now.Sub(f.LastGood) >= noAnswer)
}

// healthy says whether the application's own check passes now (SAFETY S13): the
// agent is heard under this epoch and every check from the best vantage that is
// configured passes.
func (w *work) healthy(a *AppState) bool {
	if !live(a) {
		return false
	}
	f := w.watched(a)
	voice := a.Grant.Way.HasAgent()
	if voice && (f.Heartbeat.IsZero() || w.now.Sub(f.Heartbeat) >= heartbeatTimeout(a)) || f.Conclusive != "" || len(f.Failing) > 0 {
		return false
	}
	for _, from := range []Vantage{FromAppliance, FromNode} {
		if from == FromNode && !voice {
			return false
		}
		checks := 0
		for _, m := range a.Spec.Monitors {
			if m.Kind == MonitorHeartbeat || !slices.Contains(m.From, from) {
				continue
			}
			checks++
			c := f.Checks[m.Name+"/"+string(from)]
			if c == nil || c.Failed || c.Good < m.Successes {
				return false
			}
		}
		if checks > 0 {
			return true
		}
	}
	// Without a check of its own it runs when the claim ended: by then the agent
	// has the whole group online.
	return !w.claiming(a)
}

// claiming says whether the agent is still busy with the claim: its service group
// is not wholly online, and it does not look at it yet.
func (w *work) claiming(a *AppState) bool {
	return w.has(func(o Action) bool {
		c, is := o.(Claim)
		return is && c.App == a.Spec.Name && c.Epoch == a.Grant.Epoch
	})
}

// suspect keeps the soft state of suspicion and has a suspected node's BMC read,
// so that a dead machine is conclusive within one read.
func (w *work) suspicion(a *AppState, v verdict) {
	f := w.watched(a)
	switch {
	case v.suspect && f.Suspected.IsZero():
		w.soft(a).Suspected = w.now
		w.say(a, a.Grant.Node, "suspect")
	case !v.suspect && !f.Suspected.IsZero():
		w.soft(a).Suspected = Stamp{}
		w.say(a, a.Grant.Node, "no longer suspect")
		w.resolve("node/"+a.Grant.Node+"/bmc-lies", "the BMC of "+a.Grant.Node+" agrees with the node again")
	}
	if v.suspect {
		w.readPower(a.Spec.Name, a.Grant.Node, readEvery)
		w.warm(a)
	} else {
		w.cool(a)
	}
	if !a.Grant.Way.HasAgent() && !v.failed && len(v.obs) > 0 {
		w.notify("app/"+a.Spec.Name+"/one-channel", Notice{
			App: a.Spec.Name, Node: a.Grant.Node, Text: a.Spec.Name + " fails its check, and nothing else can be known about it: no agent is on its node: " + v.obs[0].Text,
			Fix: "look at it, then ask for the failover of " + a.Spec.Name,
		})
	}
}

// readPower has a node's BMC read unless that was ordered lately.
func (w *work) readPower(app, node string, every time.Duration) {
	if w.nodes.get(node) == nil {
		return
	}
	n := w.node(node)
	if !n.Asked.IsZero() && w.now.Sub(n.Asked) < every {
		return
	}
	if w.has(func(a Action) bool { r, is := a.(ReadPower); return is && r.Node == node }) {
		return
	}
	w.seen(node).Asked = w.now
	w.order(ReadPower{Order{App: app, Node: node}}, 0)
}

// powerRead takes an answer of a BMC.
func (w *work) powerRead(node string, r PowerReading) {
	if w.nodes.get(node) == nil {
		return
	}
	n := w.seen(node)
	if r.Err != "" {
		n.BMCDead, n.Power = brief(r.Err), PowerUnknown
		return
	}
	if n.BMCDead != "" {
		n.BMCDead = ""
		w.say(nil, node, "the BMC answers again")
		w.news("the BMC of " + node + " answers again")
	}
	n.Power, n.PowerAt = r.State, w.now
	w.all = true
}
