package haengine

import (
	"fmt"
	"slices"
	"time"
)

func (p Policy) validate(where string) error {
	where += " policy"
	for _, e := range p.Evidence {
		switch e {
		case EvidencePower, EvidenceStorage, EvidenceIdentity, EvidencePerson, EvidenceRelease:
		default:
			return invalid(where, "evidence", fmt.Sprintf("%q is not a kind of evidence", e), "use power and storage+drop")
		}
	}
	for name, d := range map[string]Duration{
		"lease": p.Lease, "dropBound": p.DropBound, "margin": p.Margin, "fenceDeadline": p.FenceDeadline,
		"bootDeadline": p.BootDeadline, "onlineDeadline": p.OnlineDeadline, "failoverWindow": p.FailoverWindow, "retryAfter": p.RetryAfter,
		"restartTime": p.RestartTime, "installLimit": p.InstallLimit,
	} {
		if d <= 0 {
			return invalid(where, name, "it is not positive", "leave it out for the default")
		}
	}
	if p.Lease < Duration(3*time.Second) {
		return invalid(where, "lease", "it is below 3s, and heartbeats come every second", "give at least 3s")
	}
	if err := p.validateOutage(where); err != nil {
		return err
	}
	if err := p.validateWays(where); err != nil {
		return err
	}
	if p.MaxFailovers < 1 || p.MaxAttempts < 1 {
		return invalid(where, "maxFailovers or maxAttempts", "it is below 1", "leave it out for the default; freeze the application to forbid failovers")
	}
	switch p.Previous {
	case PreviousReturn, PreviousKeep, PreviousQuarantine:
	default:
		return invalid(where, "previous", fmt.Sprintf("%q is unknown", p.Previous), "use return, keep or quarantine")
	}
	return nil
}

// validateOutage checks that an agent does not give its application up before the
// outage is over that the policy tolerates.
func (p Policy) validateOutage(where string) error {
	switch {
	case p.TolerateOutage < 0:
		return invalid(where, "tolerateOutage", "it is negative", "leave it out for none")
	case p.SelfFences() && p.TolerateOutage > 0 && p.Lease <= p.TolerateOutage:
		return invalid(where, "lease", fmt.Sprintf("the agent gives the application up %s after the appliance fell silent, and an outage of %s is to be tolerated", p.Lease, p.TolerateOutage),
			"give a lease longer than tolerateOutage, or leave it out")
	}
	return nil
}

func (p Policy) validateWays(where string) error {
	seen := map[Way]bool{}
	for _, way := range p.Ways {
		switch {
		case !slices.Contains(Ways(), way):
			return invalid(where, "ways", fmt.Sprintf("%q is not a way", way), fmt.Sprintf("use some of %v", Ways()))
		case seen[way]:
			return invalid(where, "ways", fmt.Sprintf("%q is listed twice", way), "list each way once")
		}
		seen[way] = true
	}
	switch {
	case p.WayOrder != OrderMeasured && p.WayOrder != OrderListed:
		return invalid(where, "wayOrder", fmt.Sprintf("%q is unknown", p.WayOrder), "use measured or listed")
	case p.WayOrder == OrderListed && len(p.Ways) == 0:
		return invalid(where, "wayOrder", "no ways are listed", "list them under ways, the first choice first")
	}
	return nil
}
