package haengine

import (
	"fmt"
	"time"

	"hotspare"
)

// PhaseOf gives an application's phase as people see it: running, while
// something looks wrong, is suspect.
func PhaseOf(s State, app string) Phase {
	a := s.Durable.Apps[app]
	if a == nil {
		return ""
	}
	if f := s.Soft.Apps[app]; a.Phase == PhaseRunning && f != nil && f.Epoch == grantEpoch(a) && !f.Suspected.IsZero() {
		return PhaseSuspect
	}
	return a.Phase
}

// Explanation says why something is as it is, in rows for people and machines.
type Explanation struct {
	Title string `json:"title"`
	Rows  []Row  `json:"rows"`
}

// Row is one fact. Value is what Text says, for machines; it may be empty.
type Row struct {
	Topic string `json:"topic"` // phase, grant, evidence, hold, channel, candidate, step, time, ...
	Text  string `json:"text"`
	Value any    `json:"value,omitempty"`
}

func (x *Explanation) row(topic string, value any, format string, args ...any) {
	x.Rows = append(x.Rows, Row{topic, fmt.Sprintf(format, args...), value})
}

// ExplainApp says where an application stands, what it waits for and what every
// node would need to carry it.
func ExplainApp(s State, app string) Explanation {
	a := s.Durable.Apps[app]
	if a == nil {
		return Explanation{Title: "there is no application " + app}
	}
	w := Rules{}.begin(s, s.Soft.Now)
	x := Explanation{Title: fmt.Sprintf("%s is %s", app, PhaseOf(s, app))}
	x.row("phase", a.Phase, "%s for %s", PhaseOf(s, app), w.now.Sub(a.Since).Round(time.Second))
	if a.Reason != "" {
		x.row("reason", a.Code, "%s", a.Reason)
	}
	if a.Fix != "" {
		x.row("fix", nil, "%s", a.Fix)
	}
	if h := a.Hold; h != nil {
		x.row("hold", h.Rule, "held by %s: %s; lifted by: %s", h.Rule, h.Text, h.Lift)
	}
	if w.s.Soft.Isolated && a.Hold == nil {
		x.row("hold", "S5", "held by S5: the appliance itself is cut off: %s: it observes only", w.s.Soft.IsolatedWhy)
	}
	if g := a.Grant; g != nil {
		x.row("grant", g.Epoch, "epoch %d belongs to %s (%s)%s", g.Epoch, g.Node, g.Way, bootText(g))
	}
	for i := range a.Old {
		w.explainOld(&x, a, &a.Old[i])
	}
	if live(a) {
		w.explainChannels(&x, a)
	}
	if ok, why := Armable(s, app); !ok {
		x.row("armed", false, "cannot be armed (%s)", hotspare.CodeCannotArm)
		for _, r := range why {
			x.row("armed", r.Rule, "%s", r.Text)
		}
	}
	explainCandidates(&x, w.candidates(a))
	return x
}

func bootText(g *Grant) string {
	switch {
	case g.BootID != "":
		return ", boot " + g.BootID
	case !g.Way.HasAgent() && g.Claimed:
		return ", without an agent"
	case g.Booted:
		return ", booting"
	}
	return ""
}

func (w *work) explainOld(x *Explanation, a *AppState, g *Grant) {
	who := g.Node
	if who == "" {
		who = "an unknown node"
	}
	e := g.Exclusion
	if e.Proof != nil {
		x.row("evidence", e.Proof.Kind, "epoch %d on %s: %s: %s", g.Epoch, who, e.Proof.Kind, e.Proof.Text)
		return
	}
	text := "power fence is going on"
	if e.PowerFailed != "" {
		text = "power fence failed: " + e.PowerFailed
	}
	if end, ok := w.leaseOver(a.Spec.Name, g); ok && accepts(a.Spec.Policy, EvidenceStorage) && g.Way.NeedsVolume() && g.Way.HasAgent() && g.Lease < NoLease {
		text += fmt.Sprintf("; storage evidence in %s", max(0, end.Sub(w.now.At)).Round(time.Second))
		if a.Revoked <= g.Epoch {
			text += " once its volumes are revoked"
		}
	}
	x.row("evidence", EvidenceNone, "epoch %d on %s is not excluded: %s", g.Epoch, who, text)
	for _, v := range e.Void {
		x.row("evidence", v.Kind, "void: %s: %s", v.Text, v.Void)
	}
}

func (w *work) explainChannels(x *Explanation, a *AppState) {
	f := w.watched(a)
	for _, k := range sortedKeys(f.Checks) {
		c := f.Checks[k]
		if m, ok := monitorOf(a, c.Monitor); !ok || w.now.Sub(c.At) > 3*m.Every.D()+m.Timeout.D() {
			x.row("channel", k, "%s: no sample for %s", k, w.now.Sub(c.At).Round(time.Second))
			continue
		}
		if c.OK {
			x.row("channel", k, "%s: good, %d in a row", k, c.Good)
			continue
		}
		m, _ := monitorOf(a, c.Monitor)
		x.row("channel", k, "%s: bad, %d of %d in a row: %s", k, c.Bad, m.Failures, c.Why)
	}
	if a.Grant.Way.HasAgent() {
		silent := w.silence(a, f).Round(100 * time.Millisecond)
		x.row("channel", "heartbeat", "heartbeat: last %s ago, counts as failed after %s", silent, heartbeatTimeout(a))
	} else {
		x.row("channel", "heartbeat", "no agent is on the node: its checks, its power and its storage session are all that is known")
	}
	v := w.judge(a)
	switch {
	case v.failed:
		x.row("verdict", true, "failed: %s", v.why)
	case v.turn > 0:
		x.row("verdict", false, "the agent restarts what failed: a conclusive proof is needed for %s more, then two failed channels; %d so far",
			v.turn.Round(100*time.Millisecond), len(v.obs))
	case v.suspect:
		x.row("verdict", false, "suspect: two failed channels or one conclusive proof are needed; %d so far", len(v.obs))
	default:
		x.row("verdict", false, "nothing speaks against it")
	}
}

func explainCandidates(x *Explanation, cands []Candidate) {
	for _, c := range cands {
		if c.Eligible {
			x.row("candidate", c, "%s: eligible, rank %d%s", c.Node, c.Rank, wayRow(c))
			continue
		}
		x.row("candidate", c, "%s", c.Nearest)
	}
	if len(cands) == 0 || !known(cands[0]) {
		return
	}
	for _, way := range cands[0].Ways { // of the first: the others have them in Value
		x.row("way", way, "%s on %s: %s", way.Way, cands[0].Node, way.Text)
	}
}

// known says whether more than the one way is weighed that needs no knowledge of
// the image.
func known(c Candidate) bool {
	possible := 0
	for _, way := range c.Ways {
		if way.OK {
			possible++
		}
	}
	return possible > 1 || possible == 1 && c.Way != WayColdISCSI
}

func wayRow(c Candidate) string {
	if !known(c) {
		return ""
	}
	return fmt.Sprintf(": %s, %s", c.Way, c.Ways[0].Text)
}

// ExplainFailover tells a failover from its cause to its end.
func ExplainFailover(f Failover) Explanation {
	x := Explanation{Title: fmt.Sprintf("failover %d of %s: %s", f.ID, f.App, f.Cause)}
	x.row("cause", f.Cause, "%s", f.Why)
	if f.By != "" {
		x.row("by", f.By, "asked for by %s", f.By)
	}
	for _, o := range f.Observations {
		kind := "one channel"
		if o.Conclusive {
			kind = "conclusive"
		}
		x.row("observation", o, "%s: %s (%s)", o.Channel, o.Text, kind)
	}
	if f.From != "" {
		x.row("from", f.From, "it was on %s under epoch %d", f.From, f.FromEpoch)
	}
	explainCandidates(&x, f.Candidates)
	for _, e := range f.Evidence {
		text := e.Text
		if e.Void != "" {
			text += "; void: " + e.Void
		}
		x.row("evidence", e.Kind, "%s: %s", e.Kind, text)
	}
	for _, t := range f.Attempts {
		end := ""
		if t.Why != "" {
			end = ": failed: " + t.Why
		}
		x.row("attempt", t, "epoch %d on %s (%s)%s", t.Epoch, t.Node, t.Way, end)
	}
	start := f.Marks.Failed
	for _, s := range f.Steps {
		end := "not ended"
		if !s.Ended.IsZero() {
			end = fmt.Sprintf("took %s", s.Ended.Sub(s.Ordered).Round(10*time.Millisecond))
		}
		x.row("step", s, "+%s %s#%d %s epoch %d: %s, %s", s.Ordered.Sub(start).Round(10*time.Millisecond), s.Kind, s.Action, s.Node, s.Epoch, s.Text, end)
	}
	p := f.Phases
	x.row("time", p, "detect %s, decide %s, fence %s, provision %s, boot %s, online %s, total %s",
		sec(p.Detect), sec(p.Decide), sec(p.Fence), sec(p.Provision), sec(p.Boot), sec(p.Online), sec(p.Total))
	outcome := "goes on"
	if f.Outcome != OutcomeOpen {
		outcome = string(f.Outcome)
	}
	x.row("outcome", f.Outcome, "%s", outcome)
	return x
}

func sec(d time.Duration) string { return fmt.Sprintf("%.2fs", d.Seconds()) }
