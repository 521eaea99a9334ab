package boot

import (
	"fmt"
	"slices"
	"time"
)

// complete says whether nothing more belongs to a rung that was reached last.
func (v *view) complete(n RungName) bool {
	switch n {
	case RungAgent:
		return v.has(StepMark, MarkJoined) || v.has(StepMark, MarkDiscovery)
	case RungService:
		return v.serves()
	}
	return false
}

// serves says whether the application came up: all is online, or its own check
// passes.
func (v *view) serves() bool {
	ok := false
	for _, e := range v.all {
		switch {
		case e.Step == StepMark && e.Detail.Mark == MarkOnline:
			ok = ok || !v.has(StepService, "")
		case e.Step == StepService:
			ok = !e.Detail.Failed
		}
	}
	return ok
}

func (v *view) has(s Step, mark string) bool {
	return slices.ContainsFunc(v.all, func(e Entry) bool { return e.Step == s && (mark == "" || e.Detail.Mark == mark) })
}

func (v *view) state(findings []Finding) LadderState {
	last := v.all[len(v.all)-1]
	switch {
	case v.serves() && v.ended.IsZero():
		return LadderServes
	case len(findings) > 0 && findings[0].Gravity == Stuck:
		return LadderStuck
	case !v.ended.IsZero():
		return LadderOver
	case v.has(StepLocal, ""):
		return LadderLocal
	case v.waiting(), v.complete(RungAgent) && !v.has(StepMark, MarkClaim) && v.rung[len(v.rung)-1] == RungAgent:
		return LadderWaits
	case last.Step == StepPower, v.has(StepScript, ""), v.has(StepLoader, ""):
		return LadderBoots
	}
	return LadderBoots
}

// waiting says whether the last that the machine was told is to wait.
func (v *view) waiting() bool {
	for i := len(v.all) - 1; i >= 0; i-- {
		switch s := v.all[i].Step; {
		case s == StepWait:
			return true
		case s == StepScript || s.started() || s == StepLoader:
			return false
		}
	}
	return false
}

// reached is when the ladder's last rung was reached, or when something was seen
// last.
func (v *view) reached(l Ladder) time.Time {
	for _, e := range v.all {
		if v.serves() && (e.Step == StepMark && e.Detail.Mark == MarkOnline && !v.has(StepService, "") || e.Step == StepService && !e.Detail.Failed) {
			return e.At
		}
	}
	return l.Last
}

// verdict is the one line that screen, console and command line show first.
func (v *view) verdict(l Ladder) string {
	if len(l.Findings) > 0 && l.Findings[0].Gravity == Stuck {
		return l.Findings[0].String()
	}
	total := (time.Duration(l.Total) * time.Millisecond).Round(100 * time.Millisecond)
	last := v.all[len(v.all)-1]
	switch l.State {
	case LadderServes:
		text := fmt.Sprintf("serves %s after it began", total)
		if len(l.Findings) > 0 {
			text += "; " + l.Findings[0].Text
		}
		return text
	case LadderWaits:
		if v.waiting() {
			return "waits: " + last.Reason.String()
		}
		if v.has(StepMark, MarkDiscovery) && !v.has(StepMark, MarkJoined) {
			return "in the discovery environment: it waits for an operator to approve it"
		}
		return "parked: the agent has joined and waits for something to do"
	case LadderLocal:
		return "boots from its own disk: " + last.Reason.Text
	case LadderOver:
		if v.serves() {
			return fmt.Sprintf("over; it served %s after it began", total)
		}
		return fmt.Sprintf("over after %s; last seen: %s", total, last.Request)
	}
	return fmt.Sprintf("boots, %s so far; last seen: %s", total, last.Request)
}
