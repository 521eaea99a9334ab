package haengine

import (
	"time"

	"hotspare"
)

// CauseKind is why an application was placed or moved.
type CauseKind string

// The causes.
const (
	CauseDeclared CauseKind = "declared" // first start
	CauseFailure  CauseKind = "failure"
	CauseOperator CauseKind = "operator"
	CauseEpoch    CauseKind = "epoch" // the store knew a later grant than the engine
)

// Outcome is how a failover ended.
type Outcome string

// The outcomes. The zero value means that it goes on.
const (
	OutcomeOpen      Outcome = ""
	OutcomeRunning   Outcome = "running"   // the application's own check passed
	OutcomeRecovered Outcome = "recovered" // it healed where it was before anything was granted
	OutcomeAborted   Outcome = "aborted"   // the application was deleted
)

// Failover is the durable record of one hand-over.
type Failover struct {
	ID           FailoverID    `json:"id"`
	App          string        `json:"app"`
	Cause        CauseKind     `json:"cause"`
	Why          string        `json:"why"`
	By           string        `json:"by,omitempty"`
	Observations []Observation `json:"observations,omitempty"`
	From         string        `json:"from,omitempty"`
	FromEpoch    Epoch         `json:"fromEpoch,omitempty"`
	Candidates   []Candidate   `json:"candidates"` // at the latest decision or refusal
	Attempts     []Attempt     `json:"attempts,omitempty"`
	Evidence     []Evidence    `json:"evidence,omitempty"`
	Steps        []StepRecord  `json:"steps,omitempty"`
	Outcome      Outcome       `json:"outcome"`
	Marks        Marks         `json:"marks"`
	Phases       Timeline      `json:"phases"`
	Way          Way           `json:"way,omitempty"`
	To           string        `json:"to,omitempty"`
	ToEpoch      Epoch         `json:"toEpoch,omitempty"`
}

// Observation is one channel's word at the time of the decision.
type Observation struct {
	Channel    string `json:"channel"` // "sql/appliance", "heartbeat", "power", "agent", "session"
	Text       string `json:"text"`
	Conclusive bool   `json:"conclusive,omitempty"`
	At         Stamp  `json:"at"`
}

// Attempt is one grant within a failover.
type Attempt struct {
	Epoch   Epoch  `json:"epoch"`
	Node    string `json:"node"`
	Way     Way    `json:"way"`
	Started Stamp  `json:"started"`
	Ended   Stamp  `json:"ended,omitzero"`
	Why     string `json:"why,omitempty"` // why it failed; empty while open or when it runs
}

// StepRecord is one action of a failover.
type StepRecord struct {
	Action  ActionID `json:"action"`
	Kind    string   `json:"kind"`
	Node    string   `json:"node,omitempty"`
	Epoch   Epoch    `json:"epoch,omitempty"`
	Ordered Stamp    `json:"ordered"`
	Ended   Stamp    `json:"ended,omitzero"`
	Tries   int      `json:"tries"`
	Text    string   `json:"text,omitempty"` // result or the last failure
}

// Marks are the moments between the phases of a failover, as far as reached.
type Marks struct {
	LastGood  Stamp `json:"lastGood,omitzero"`
	Suspected Stamp `json:"suspected,omitzero"`
	Failed    Stamp `json:"failed,omitzero"`   // the failure was established
	Decided   Stamp `json:"decided,omitzero"`  // a node was granted the current epoch
	Fenced    Stamp `json:"fenced,omitzero"`   // evidence about every earlier grant
	Attached  Stamp `json:"attached,omitzero"` // volumes exported
	Joined    Stamp `json:"joined,omitzero"`   // the agent came
	Ended     Stamp `json:"ended,omitzero"`
}

// Timeline is what each phase took. Provision and later belong to the last
// attempt; Fence includes earlier attempts.
type Timeline struct {
	Detect    time.Duration `json:"detect"`    // last good observation to the established failure
	Decide    time.Duration `json:"decide"`    // to the grant
	Fence     time.Duration `json:"fence"`     // to the evidence
	Provision time.Duration `json:"provision"` // to the exported volumes
	Boot      time.Duration `json:"boot"`      // to the agent's join
	Online    time.Duration `json:"online"`    // to the application's own check
	Total     time.Duration `json:"total"`     // last good observation (or the declaration) to the end
}

// timeline derives the phases from the marks; a phase that was not reached, or
// was skipped, takes no time.
func (m Marks) timeline() Timeline {
	seq := []Stamp{m.LastGood, m.Failed, m.Decided, m.Fenced, m.Attached, m.Joined, m.Ended}
	var out [6]time.Duration
	var last Stamp
	for i, s := range seq {
		if s.IsZero() {
			continue
		}
		if i > 0 && !last.IsZero() && s.At > last.At {
			out[i-1] = s.Sub(last)
		}
		if last.IsZero() || s.At > last.At {
			last = s
		}
	}
	t := Timeline{Detect: out[0], Decide: out[1], Fence: out[2], Provision: out[3], Boot: out[4], Online: out[5]}
	t.Total = t.Detect + t.Decide + t.Fence + t.Provision + t.Boot + t.Online
	return t
}

// Candidate is a node as placement saw it, with every rule that it passed or
// failed (SAFETY E2).
type Candidate struct {
	Node     string `json:"node"`
	Eligible bool   `json:"eligible"`
	Rank     int    `json:"rank,omitempty"` // 1 is tried first; 0 when not eligible
	Rules    []Rule `json:"rules"`
	Nearest  string `json:"nearest,omitempty"` // what would make it eligible: "n7: 112 MiB short"

	Way    Way         `json:"way,omitempty"`    // in which it would be tried
	Parked bool        `json:"parked,omitempty"` // from its standby
	Expect Duration    `json:"expect,omitempty"` // time to service
	Ways   []WayChoice `json:"ways,omitempty"`   // each way with its reasons; Way is the first

	order []int // sort key, compared from the left
}

// Rule is one test of a candidate.
type Rule struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
}

// Refusal is why a command is not taken.
func refusal(code hotspare.Code, what, where, why, fix string) *hotspare.Error {
	return &hotspare.Error{Code: code, What: what, Where: where, Why: why, Fix: fix}
}

// openFailover begins the record of a hand-over, or adds to the open one.
func (w *work) openFailover(a *AppState, cause CauseKind, why, by string, obs []Observation) {
	if a.Failover != 0 {
		return
	}
	d := &w.s.Durable
	d.NextFailover++
	w.meta = true
	f := &Failover{ID: d.NextFailover, App: a.Spec.Name, Cause: cause, Why: why, By: by, Observations: obs}
	soft := w.watched(a)
	f.Marks = Marks{LastGood: soft.LastGood, Suspected: soft.Suspected, Failed: w.now}
	if cause != CauseFailure || f.Marks.LastGood.IsZero() {
		f.Marks.LastGood = w.now
	}
	if a.Grant != nil {
		f.From, f.FromEpoch = a.Grant.Node, a.Grant.Epoch
	}
	w.failovers.put(f.ID, f)
	a.Failover, a.Attempts = f.ID, 0
	w.say(a, f.From, "failover %d: %s: %s", f.ID, cause, why)
	keys := w.failovers.keys()
	for _, k := range keys[:max(0, len(keys)-keptFailovers)] {
		if w.failovers.get(k).Outcome != OutcomeOpen {
			w.failovers.del(k)
		}
	}
}

// mark sets a moment of the open failover.
func (w *work) mark(a *AppState, at func(*Marks) *Stamp) {
	if f := w.failovers.edit(a.Failover); f != nil {
		*at(&f.Marks) = w.now
		f.Phases = f.Marks.timeline()
	}
}

func (w *work) closeFailover(a *AppState, o Outcome) {
	f := w.failovers.edit(a.Failover)
	if f == nil {
		return
	}
	f.Outcome, f.Marks.Ended = o, w.now
	f.Phases = f.Marks.timeline()
	for i := range f.Attempts {
		if f.Attempts[i].Ended.IsZero() {
			f.Attempts[i].Ended = w.now
		}
	}
	w.say(a, f.To, "failover %d: %s", f.ID, o)
	a.Failover = 0
}

func (w *work) cause(a *AppState) CauseKind {
	if f := w.failovers.get(a.Failover); f != nil {
		return f.Cause
	}
	return CauseFailure
}

func (w *work) failoverOf(app string) FailoverID {
	if a := w.apps.get(app); a != nil {
		return a.Failover
	}
	return 0
}
