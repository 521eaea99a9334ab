package runner

import (
	"context"
	"errors"
	"fmt"

	"hotspare"
	"hotspare/haengine"
)

// perform has one try of an action done and turns its end into an event.
func (r *Runner) perform(ctx context.Context, a haengine.Action) haengine.Event {
	id := a.Head().ID
	done := haengine.Done{ID: id}
	var err error
	switch a := a.(type) {
	case haengine.ReadPower:
		var s haengine.PowerState
		if s, err = r.opt.Power.ReadPower(ctx, a.Node); err == nil {
			done.Read = &haengine.PowerReading{State: s, At: r.opt.Clock.Wall()}
		}
	case haengine.PowerOff:
		var e haengine.PowerEvidence
		e, err = r.opt.Power.PowerOff(ctx, a)
		done.Power = &e
	case haengine.Revoke:
		var v haengine.Revocation
		if v, err = r.opt.Volumes.Revoke(ctx, a); err == nil {
			done.Revocation = &v
		}
	case haengine.Attach:
		err = r.opt.Volumes.Attach(ctx, a)
	case haengine.Boot:
		err = r.opt.Booter.Boot(ctx, a)
	case haengine.ParkNode:
		err = r.opt.Booter.Park(ctx, a)
	case haengine.Install:
		var c haengine.LocalCopy
		if c, err = r.opt.Preparer.Install(ctx, a); err == nil {
			done.Copy = &c
		}
	case haengine.Preload:
		err = r.opt.Preparer.Preload(ctx, a)
	case haengine.DisableCopies:
		err = r.opt.Preparer.DisableCopies(ctx, a)
	case haengine.Claim:
		err = r.opt.Agents.Claim(ctx, a)
	case haengine.Release:
		err = r.opt.Agents.Release(ctx, a)
	case haengine.ProbeAddress:
		var p haengine.AddressProbe
		if p.Silent, p.By, err = r.opt.Prober.AddressSilent(ctx, a.App, a.Address); err == nil {
			done.Address = &p
		}
	case haengine.ReturnNode:
		err = r.opt.Booter.Return(ctx, a)
	case haengine.CancelBoot:
		err = r.opt.Booter.CancelBoot(ctx, a)
	case haengine.DeleteRoot:
		err = r.opt.Volumes.DeleteRoot(ctx, a)
	case haengine.Notify:
		err = r.opt.Notifier.Notify(ctx, a.Notice)
	default:
		err = fmt.Errorf("nobody performs %s", a.Kind())
	}
	if err == nil {
		return done
	}
	return failure(id, err, done.Power)
}

// IsTransient says whether the same try may work in a moment. A deadline or a
// cancelled context is transient: nothing is known about the effect.
func IsTransient(err error) bool {
	var t Transient
	return errors.As(err, &t) && t.Transient() || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// failure tells a try that failed.
func failure(id haengine.ActionID, err error, power *haengine.PowerEvidence) haengine.Failed {
	if power != nil && len(power.Reads) == 0 {
		power = nil
	}
	return haengine.Failed{ID: id, Code: hotspare.CodeOf(err), Why: err.Error(), Transient: IsTransient(err), Power: power}
}
