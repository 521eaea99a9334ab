package boot

import (
	"net/netip"
	"slices"
	"time"
)

// RungName is one part of a boot. The order of Climb's rungs is that in which a
// machine passes them: the agent joins before it is given a root, for the root's
// secret comes over the agent's link.
type RungName string

// The rungs of a ladder.
const (
	RungFirmware RungName = "firmware" // from the power button to the first packet
	RungDHCP     RungName = "dhcp"
	RungLoader   RungName = "loader" // the network boot program, over TFTP or HTTP
	RungScript   RungName = "script" // what the loader is told; with its own DHCP
	RungKernel   RungName = "kernel" // kernel, initramfs, join archive
	RungInit     RungName = "init"   // from the last file to the first process
	RungAgent    RungName = "agent"  // link, address, join
	RungRoot     RungName = "root"   // claim, iSCSI log-ins, root mounted, switch
	RungService  RungName = "service"
)

func rungNames() []RungName {
	return []RungName{RungFirmware, RungDHCP, RungLoader, RungScript, RungKernel, RungInit, RungAgent, RungRoot, RungService}
}

// RungState says how far a rung is.
type RungState string

// States of a rung.
const (
	RungDone    RungState = "done"
	RungNow     RungState = "now"
	RungStuck   RungState = "stuck"
	RungSkipped RungState = "skipped" // this boot went another way
	RungAhead   RungState = "ahead"
)

// Rung is one part of a boot with what was seen of it. Times are milliseconds;
// At counts from the ladder's beginning.
type Rung struct {
	Name  RungName   `json:"name"`
	State RungState  `json:"state"`
	At    int64      `json:"atMillis"`
	Took  int64      `json:"tookMillis"`
	Text  string     `json:"text,omitempty"`
	Steps []RungStep `json:"steps,omitempty"`
}

// RungStep is one request with its answer.
type RungStep struct {
	At       time.Time `json:"at"`
	After    int64     `json:"afterMillis"` // since the ladder's beginning
	Protocol Protocol  `json:"protocol"`
	Request  string    `json:"request"`
	Answer   string    `json:"answer,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Again    uint64    `json:"again,omitempty"` // how often it came once more
	Took     int64     `json:"tookMillis,omitempty"`
	Failed   bool      `json:"failed,omitempty"`
}

// LadderState says in one word how a boot is.
type LadderState string

// States of a ladder.
const (
	LadderBoots  LadderState = "boots"
	LadderWaits  LadderState = "waits"  // on its screen or parked, for something to do
	LadderStuck  LadderState = "stuck"  // the findings say why
	LadderServes LadderState = "serves" // the application's own check passes, or all is online
	LadderLocal  LadderState = "local"  // handed to its own disk
	LadderOver   LadderState = "over"   // a later boot has begun
)

// Ladder is one boot of one machine, rung by rung, with its diagnosis.
type Ladder struct {
	MAC      MAC         `json:"mac"`
	Node     string      `json:"node,omitempty"`
	Number   uint64      `json:"number"` // counts the machine's boots up
	Began    time.Time   `json:"began"`
	Last     time.Time   `json:"last"` // when something was seen last
	State    LadderState `json:"state"`
	Verdict  string      `json:"verdict"`
	Total    int64       `json:"totalMillis"`
	Rungs    []Rung      `json:"rungs"`
	Findings []Finding   `json:"findings,omitempty"` // the gravest first
	Dropped  uint64      `json:"dropped,omitempty"`  // requests that were seen and are not kept
}

// Foreign is another DHCP server on the segment.
type Foreign struct {
	Server netip.Addr
	About  string // what is known of it, e.g. its vendor; may be empty
}

// Circumstances are what a diagnosis needs beside the trace.
type Circumstances struct {
	Now      time.Time
	Foreign  []Foreign
	Patience time.Duration // how long a firmware may take to its first packet; 0: 5 minutes
}

// Ladders gives all boots of a trace as ladders, the newest first. It is a pure
// function.
func Ladders(t Trace, c Circumstances) []Ladder {
	out := make([]Ladder, 0, len(t.Boots))
	for i := len(t.Boots) - 1; i >= 0; i-- {
		var ended time.Time
		if i+1 < len(t.Boots) {
			ended = t.Boots[i+1].Entries[0].At
		}
		l := climb(t.Boots[i], t.Boots[:i], ended, c)
		l.MAC, l.Node = t.MAC, t.Node
		out = append(out, l)
	}
	return out
}

// view is one boot as the rules of the diagnosis look at it.
type view struct {
	Circumstances
	all     []Entry // by time
	rung    []RungName
	ended   time.Time // when the next boot began; zero: it has not
	earlier []Boot
}

func climb(b Boot, earlier []Boot, ended time.Time, c Circumstances) Ladder {
	if c.Patience <= 0 {
		c.Patience = 5 * time.Minute
	}
	v := view{Circumstances: c, all: slices.Clone(b.Entries), ended: ended, earlier: earlier}
	// Marks of the agent come late: over the link that the last of them opened.
	slices.SortStableFunc(v.all, func(x, y Entry) int { return x.At.Compare(y.At) })
	v.place()
	l := Ladder{Number: b.Number, Dropped: b.Dropped, Began: v.all[0].At, Findings: v.diagnose()}
	for _, e := range v.all {
		if end := endOf(e); end.After(l.Last) {
			l.Last = end
		}
	}
	l.Rungs = v.rungs(l.Began, l.Findings)
	l.State = v.state(l.Findings)
	l.Total = v.reached(l).Sub(l.Began).Milliseconds()
	l.Verdict = v.verdict(l)
	return l
}

// endOf is when an entry, with its repetitions, was over.
func endOf(e Entry) time.Time { return e.Last().Add(e.Detail.Took) }

// place gives every entry its rung.
func (v *view) place() {
	var loaded, fetched, claimed bool
	v.rung = make([]RungName, len(v.all))
	for i, e := range v.all {
		r := RungService
		switch s := e.Step; {
		case s == StepPower:
			r = RungFirmware
		case s.dhcp() && e.Detail.Stage == StageSystem && fetched:
			if !claimed {
				r = RungAgent
			}
		case s.dhcp() && e.Detail.Stage == StageIPXE && loaded:
			r = RungScript
		case s.dhcp() || s == "":
			r = RungDHCP
		case s == StepLoader || s == StepFile:
			r, loaded = RungLoader, true
		case s == StepScript || s == StepWait || s == StepLocal:
			r = RungScript
		case s == StepKernel || s == StepInitrd || s == StepJoin:
			r, fetched = RungKernel, true
		case s == StepAdmit:
			r, fetched = RungAgent, true
		case s == StepLogin:
			r = RungRoot
		case s == StepMark || s == StepOrder:
			r = rungOfMark(e.Detail.Mark)
			fetched, claimed = true, claimed || r == RungRoot
		}
		v.rung[i] = r
	}
}

// rungOfMark places the marks of docs/agent.md and the steps of a claim.
func rungOfMark(mark string) RungName {
	switch mark {
	case MarkInit:
		return RungInit
	case MarkAgent, MarkLink, MarkAddress, MarkJoined, MarkParked, MarkDiscovery:
		return RungAgent
	case MarkClaim, MarkSwitch, MarkKexec, "login root", "mount root", "switch root":
		return RungRoot
	}
	return RungService
}

// rungs draws the ladder. A rung begins where the one before it ended: what a
// machine thinks about before it asks belongs to what it asks for.
func (v *view) rungs(began time.Time, findings []Finding) []Rung {
	top := -1 // the highest rung that was reached
	names := rungNames()
	for i, n := range names {
		if slices.Contains(v.rung, n) {
			top = i
		}
	}
	at := began
	out := make([]Rung, 0, len(names))
	for i, n := range names {
		r := Rung{Name: n, State: RungAhead, At: at.Sub(began).Milliseconds()}
		first, last := v.span(n)
		switch {
		case i > top:
			r.At = 0
		case first.IsZero() && n == RungFirmware:
			r.State, r.Text = RungDone, "not powered on by the appliance"
		case first.IsZero():
			r.State, r.Text = RungSkipped, skipped(n)
		default:
			if n == RungFirmware {
				last = v.firstRequest(last)
			}
			if next := v.nextFirst(i, names); !next.IsZero() && last.After(next) {
				last = next
			}
			if n == RungRoot && v.has(StepMark, MarkClaim) { // a parked node waits for its claim as long as it likes
				at = first
				r.At = at.Sub(began).Milliseconds()
			}
			if last.Before(at) {
				last = at
			}
			r.Took = last.Sub(at).Milliseconds()
			r.State, at = RungDone, last
			if i == top && !v.complete(n) && !stuckAbove(findings, names[i+1:]) {
				r.State = RungNow
			}
			r.Text, r.Steps = v.steps(n, began)
		}
		if slices.ContainsFunc(findings, func(f Finding) bool { return f.Rung == n && f.Gravity == Stuck }) {
			if r.State == RungAhead {
				r.At = at.Sub(began).Milliseconds()
			}
			r.State = RungStuck
		}
		out = append(out, r)
	}
	return out
}

func stuckAbove(findings []Finding, above []RungName) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.Gravity == Stuck && slices.Contains(above, f.Rung) })
}

func skipped(n RungName) string {
	switch n {
	case RungLoader:
		return "the network card brings its own iPXE"
	case RungInit:
		return "not reported"
	}
	return "this boot did not pass here"
}

// span gives the beginning of a rung's first entry and the end of its last.
func (v *view) span(n RungName) (first, last time.Time) {
	for i, e := range v.all {
		if v.rung[i] != n {
			continue
		}
		if first.IsZero() {
			first = e.At
		}
		if end := endOf(e); end.After(last) {
			last = end
		}
	}
	return first, last
}

// firstRequest is when a machine that was powered on was heard first.
func (v *view) firstRequest(otherwise time.Time) time.Time {
	for i, e := range v.all {
		if v.rung[i] != RungFirmware {
			return e.At
		}
	}
	return otherwise
}

func (v *view) nextFirst(i int, names []RungName) time.Time {
	for _, n := range names[i+1:] {
		if first, _ := v.span(n); !first.IsZero() {
			return first
		}
	}
	return time.Time{}
}

// steps gives a rung's requests, and as its text the last of them.
func (v *view) steps(n RungName, began time.Time) (text string, out []RungStep) {
	for i, e := range v.all {
		if v.rung[i] != n {
			continue
		}
		s := RungStep{
			At: e.At, After: e.At.Sub(began).Milliseconds(), Protocol: e.Protocol, Request: e.Request, Answer: e.Answer, Reason: e.Reason.String(),
			Again: e.Again, Took: e.Detail.Took.Milliseconds(), Failed: failed(e),
		}
		out = append(out, s)
		text = e.Request
		if e.Answer != "" {
			text += ": " + e.Answer
		}
	}
	return text, out
}

// failed says whether an entry tells of a refusal or a fault.
func failed(e Entry) bool {
	switch e.Reason.Rule {
	case RuleToken, RuleSpent, RuleTransferFail, RuleUndecided, RuleArch, RuleNoLoader, RuleNoAddress, RuleNoSuchFile, RuleNoToken:
		return true
	}
	return e.Detail.Failed
}
