package boot

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"hotspare"
)

// Gravity says how bad a finding is.
type Gravity string

// Gravities, the worst first.
const (
	Stuck Gravity = "stuck" // the boot does not go on by itself
	Slow  Gravity = "slow"  // it goes on and takes longer than it must
	Noted Gravity = "note"
)

// Finding says what is wrong with a boot and what to do about it.
type Finding struct {
	Rung    RungName      `json:"rung"`
	Gravity Gravity       `json:"gravity"`
	Rule    string        `json:"rule"` // stable name of the rule that found it
	Code    hotspare.Code `json:"code,omitempty"`
	Text    string        `json:"text"`
	Fix     string        `json:"fix,omitempty"`
}

// String gives text and code, without the fix.
func (f Finding) String() string {
	if f.Code != "" {
		return string(f.Code) + ": " + f.Text
	}
	return f.Text
}

// Patience of the rules: how long a machine may be silent at a rung before it is
// said to be stuck there.
const (
	offerPatience  = 10 * time.Second
	filePatience   = 15 * time.Second
	loaderPatience = 30 * time.Second // an iPXE starts and looks for links first
	scriptPatience = 40 * time.Second // 16 s of it may be spent on an IPv6 router
	kernelPatience = 60 * time.Second
	joinPatience   = 20 * time.Second
)

// rule finds one thing, or nothing.
type rule func(v *view) (Finding, bool)

// rules in the order in which they count among equals: what explains a later
// symptom comes first.
func diagnosisRules() map[string]rule {
	return map[string]rule{
		"boot-loop":          bootLoop,
		"power-refused":      powerRefused,
		"never-asked":        neverAsked,
		"booted-local-disk":  bootedLocally,
		"foreign-server":     foreignServer,
		"offer-not-taken":    offerNotTaken,
		"no-address":         noAddress,
		"address-in-use":     addressInUse,
		"no-loader":          refusal(RuleNoLoader, RungDHCP),
		"architecture":       refusal(RuleArch, RungScript),
		"loader-not-fetched": loaderNotFetched,
		"loader-stalled":     loaderStalled,
		"loader-silent":      loaderSilent,
		"script-not-fetched": scriptNotFetched,
		"token-refused":      refusal(RuleToken, RungScript),
		"no-token":           refusal(RuleNoToken, RungScript),
		"token-spent":        refusal(RuleSpent, RungKernel),
		"undecided":          refusal(RuleUndecided, RungScript),
		"unknown-machine":    noted(RuleUnknown),
		"not-approved":       noted(RuleUnapproved),
		"kernel-not-fetched": kernelNotFetched,
		"file-stopped":       fileStopped,
		"file-missing":       fileMissing,
		"kernel-silent":      kernelSilent,
		"not-joined":         notJoined,
		"join-refused":       joinRefused,
		"login-refused":      loginRefused,
		"step-failed":        stepFailed,
		"check-fails":        checkFails,
		"link-late":          linkLate,
		"agent-link-late":    agentLinkLate,
		"router-wait":        routerWait,
		"proxy-wait":         proxyWait,
		"blocks-resent":      blocksResent,
		"file-slow":          fileSlow,
		"kernel-slow":        kernelSlow,
		"firmware-slow":      firmwareSlow,
	}
}

// diagnose runs all rules. The gravest finding comes first, and of several the
// one that the boot reached last: an earlier trouble was overcome.
func (v *view) diagnose() []Finding {
	var out []Finding
	for name, find := range diagnosisRules() {
		if f, ok := find(v); ok {
			f.Rule = name
			f.Text = Plain(cmp.Or(f.Text, name))
			out = append(out, f)
		}
	}
	grave := map[Gravity]int{Stuck: 0, Slow: 1, Noted: 2}
	names := rungNames()
	slices.SortFunc(out, func(a, b Finding) int {
		first := func(f Finding) int { // a loop is what all others are part of
			if f.Rule == "boot-loop" {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(grave[a.Gravity], grave[b.Gravity]), cmp.Compare(first(a), first(b)),
			cmp.Compare(slices.Index(names, b.Rung), slices.Index(names, a.Rung)), strings.Compare(a.Rule, b.Rule))
	})
	return out
}

// last gives the last entry that is, and whether there is one.
func (v *view) last(is func(Entry) bool) (Entry, bool) {
	for i := len(v.all) - 1; i >= 0; i-- {
		if is(v.all[i]) {
			return v.all[i], true
		}
	}
	return Entry{}, false
}

func (v *view) first(is func(Entry) bool) (Entry, bool) {
	for _, e := range v.all {
		if is(e) {
			return e, true
		}
	}
	return Entry{}, false
}

func step(s ...Step) func(Entry) bool {
	return func(e Entry) bool { return slices.Contains(s, e.Step) }
}

// after says whether any entry that is came at t or later.
func (v *view) after(t time.Time, is func(Entry) bool) bool {
	return slices.ContainsFunc(v.all, func(e Entry) bool { return !e.Last().Before(t) && is(e) })
}

// passed says whether the boot came to a rung above n.
func (v *view) passed(n RungName) bool {
	names := rungNames()
	at := slices.Index(names, n)
	return slices.ContainsFunc(v.rung, func(r RungName) bool { return slices.Index(names, r) > at })
}

// silent is how long nothing came after t: until now, or until the machine began
// anew, and then it does not matter how soon that was.
func (v *view) silent(t time.Time, patience time.Duration) (time.Duration, bool) {
	if !v.ended.IsZero() {
		return v.ended.Sub(t), true
	}
	d := v.Now.Sub(t)
	return d, d >= patience
}

func sec(d time.Duration) string {
	if d >= 2*time.Minute {
		return d.Round(time.Second).String()
	}
	if d >= 10*time.Second {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// anew says that the machine began anew, if it did, for the end of a text.
func (v *view) anew() string {
	if v.ended.IsZero() {
		return ""
	}
	return ", and the machine began anew"
}

// refusal turns what the appliance itself refused into a finding, if the boot
// did not come further afterwards.
func refusal(r Rule, rung RungName) rule {
	return func(v *view) (Finding, bool) {
		e, ok := v.last(func(e Entry) bool { return e.Reason.Rule == r })
		if !ok || v.after(e.Last(), func(x Entry) bool { return x.Step.started() && x.Reason.Rule != r }) {
			return Finding{}, false
		}
		if e.Step == StepWait || e.Step == StepScript || e.Step.dhcp() && r != RuleNoLoader {
			rung = RungScript
		}
		return Finding{Rung: rung, Gravity: Stuck, Code: e.Reason.Code, Text: e.Reason.Text, Fix: e.Reason.Fix}, true
	}
}

// noted turns a reason to wait into a finding.
func noted(r Rule) rule {
	return func(v *view) (Finding, bool) {
		e, ok := v.last(func(e Entry) bool {
			return e.Step == StepWait || e.Step == StepScript || e.Step.dhcp() && e.Detail.Stage == StageIPXE
		})
		if !ok || e.Reason.Rule != r {
			return Finding{}, false
		}
		return Finding{Rung: RungScript, Gravity: Noted, Code: e.Reason.Code, Text: e.Reason.Text, Fix: e.Reason.Fix}, true
	}
}

// loopSpan is the time in which boots count as one loop, and loopCount how many
// of them make one.
const (
	loopSpan  = 30 * time.Minute
	loopCount = 3
)

func bootLoop(v *view) (Finding, bool) {
	if v.serves() {
		return Finding{}, false
	}
	ends := map[RungName]int{}
	count := func(x view) bool {
		if x.serves() {
			return false
		}
		top := x.rung[0]
		for _, r := range x.rung {
			if slices.Index(rungNames(), r) > slices.Index(rungNames(), top) {
				top = r
			}
		}
		ends[top]++
		return true
	}
	n, began := 0, v.all[0].At
	if !slices.ContainsFunc(v.all, func(e Entry) bool { return e.Step == StepPower }) && count(*v) {
		n++
	}
	for i := len(v.earlier) - 1; i >= 0; i-- {
		b := v.earlier[i].Entries
		x := view{all: b}
		x.place()
		// A boot that somebody ordered is no loop.
		if v.all[0].At.Sub(b[0].At) > loopSpan || b[0].Step == StepPower && i != 0 && n == 0 || !count(x) {
			break
		}
		n, began = n+1, b[0].At
		if b[0].Step == StepPower {
			break
		}
	}
	if n < loopCount {
		return Finding{}, false
	}
	var where []string
	for _, r := range rungNames() {
		if ends[r] > 0 {
			where = append(where, fmt.Sprintf("%s (%d)", r, ends[r]))
		}
	}
	rung := v.rung[len(v.rung)-1]
	return Finding{
		Rung: rung, Gravity: Stuck, Code: hotspare.CodeBootLoop,
		// Up to this boot's beginning: the text stands on the machine's screen and in
		// its trace, where a text that changes all the time would push others out.
		Text: fmt.Sprintf("it has booted %d times in %s and none came up; they ended at: %s", n, sec(v.all[0].At.Sub(began)), strings.Join(where, ", ")),
		Fix:  "the other findings say why this boot ended; look at the machine's console",
	}, true
}

func powerRefused(v *view) (Finding, bool) {
	e, ok := v.last(step(StepPower))
	again := func(x Entry) bool { return x.Step == StepPower && !x.Detail.Failed }
	if !ok || !e.Detail.Failed || v.passed(RungFirmware) || v.after(e.Last(), again) {
		return Finding{}, false
	}
	return Finding{
		Rung: RungFirmware, Gravity: Stuck, Code: e.Reason.Code, Text: "it could not be powered on: " + e.Reason.Text,
		Fix: cmp.Or(e.Reason.Fix, "look at its BMC: hotspare explain node "+cmp.Or(v.node(), "NAME")),
	}, true
}

func neverAsked(v *view) (Finding, bool) {
	e, ok := v.last(func(e Entry) bool { return e.Step == StepPower && !e.Detail.Failed })
	if !ok || v.passed(RungFirmware) {
		return Finding{}, false
	}
	d, over := v.silent(e.Last(), v.Patience)
	if !over {
		return Finding{}, false
	}
	return Finding{
		Rung: RungFirmware, Gravity: Stuck, Code: hotspare.CodeNeverAsked,
		Text: fmt.Sprintf("hotspare powered it on %s ago and it has asked for nothing: it hangs in its firmware, its link is down, or it boots something else", sec(d)),
		Fix:  "look at its console; check cable, VLAN and MAC address, put the network first in its boot order, and check that its BMC honours the one-time network boot",
	}, true
}

func bootedLocally(v *view) (Finding, bool) {
	p, ok := v.last(step(StepPower))
	e, asked := v.first(func(e Entry) bool { return e.Step.dhcp() && !e.At.Before(p.At) })
	if !ok || !asked || e.Detail.Stage != StageSystem || v.has(StepMark, "") || v.has(StepKernel, "") || v.has(StepScript, "") {
		return Finding{}, false
	}
	return Finding{
		Rung: RungFirmware, Gravity: Stuck, Code: hotspare.CodeNeverAsked,
		Text: fmt.Sprintf("hotspare powered it on for a network boot and %s later an operating system asked for an address: it booted from its own disk, the one-time network boot was not honoured", sec(e.At.Sub(p.At))),
		Fix:  "put the network first in its boot order; some BMCs accept the one-time override and do not apply it",
	}, true
}
