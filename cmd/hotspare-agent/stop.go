package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/cmd/hotspare-agent/fence"
	"hotspare/haengine/agentlink"
)

// tellTime bounds the wait for the appliance to hear of a drop.
const tellTime = 300 * time.Millisecond

// newDropper lists what the drop does, in its order. Each step uses what is
// open already: a netlink socket, a name on a tmpfs, cgroup.kill, the link.
func (a *agent) newDropper(l *load) *fence.Dropper {
	return fence.NewDropper(l.policy.DropBound.D(),
		fence.Step{Name: "remove address", Do: a.addresses.RemoveAll},
		fence.Step{Name: "close gate", Do: l.gate.Revoke},
		fence.Step{Name: "kill service group", Do: l.killGroup},
		fence.Step{Name: "halt witness", Do: l.haltWitness},
		fence.Step{Name: "tell appliance", Do: func() error {
			ctx, cancel := context.WithTimeout(context.Background(), tellTime)
			defer cancel()
			return a.link.Flush(ctx)
		}},
	)
}

// killGroup kills every process of the group's slice.
func (l *load) killGroup() error {
	l.mu.Lock()
	kill := l.kill
	l.mu.Unlock()
	if kill == nil {
		return nil // the image's systemd has not been met: nothing was started
	}
	_, err := kill.Write([]byte("1"))
	return err
}

func (l *load) haltWitness() error {
	l.mu.Lock()
	w := l.witness
	l.mu.Unlock()
	if w != nil {
		w.Halt()
	}
	return nil
}

// drop is self-fencing: the service goes within the drop bound, then the
// machine is reset. It does not return.
func (a *agent) drop(why string) {
	l := a.current()
	if l == nil || l.isDone() {
		return
	}
	a.mu.Lock()
	a.phase = agentlink.PhaseDropping
	a.mu.Unlock()
	start := a.up()
	// If anything below hangs, the guard ends it within the bound.
	if err := a.guard.Arm(start + l.policy.DropBound.D()); err != nil {
		a.log.Error("the guard does not answer", "err", err)
	}
	a.out.say("DROP of %s, epoch %d: %s", l.app.Name, l.epoch, why)
	if g := l.service(); g != nil {
		g.Halt()
	}
	a.link.Report(agentlink.Report{
		App: l.app.Name, Epoch: l.epoch, State: agentlink.ResourceFailed, Why: why, Conclusive: true, Dropped: true,
		UpMillis: start.Milliseconds(),
	})
	for _, o := range l.dropper.Drop() {
		a.out.say("drop: %s: %d ms%s", o.Name, o.Millis, trouble(o))
	}
	a.out.say("drop took %d ms; the machine is reset", (a.up() - start).Milliseconds())
	a.out.flush(100 * time.Millisecond)
	if err := a.guard.Reset(); err != nil {
		a.log.Error("reset by sysrq failed", "err", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func trouble(o fence.Outcome) string {
	switch {
	case o.Hung:
		return ", hangs"
	case o.Err != nil:
		return ", " + o.Err.Error()
	default:
		return ""
	}
}

// dropOrder drops the application if it is carried under a lower epoch.
func (a *agent) dropOrder(o agentlink.Order) agentlink.Result {
	l := a.current()
	if l == nil || l.isDone() || l.app.Name != o.App || l.epoch >= o.Drop.Below {
		return agentlink.Result{OrderID: o.ID, OK: true, Why: "nothing of that epoch is carried"}
	}
	// The answer leaves before the drop ends this boot; the drop's own report
	// follows it.
	go a.drop(o.Drop.Why)
	return agentlink.Result{OrderID: o.ID, OK: true, Why: "the drop has begun"}
}

// release stops the application in good order and attests each step.
func (a *agent) release(ctx context.Context, o agentlink.Order) agentlink.Result {
	l := a.current()
	if l == nil || l.app.Name != o.App {
		return failed(o, &hotspare.Error{
			Code: hotspare.CodeConflict, What: "the node does not carry the application", Where: o.App,
		}, nil)
	}
	if l.isDone() {
		return a.releasedAlready(o, l)
	}
	if l.epoch != o.Epoch {
		return failed(o, &hotspare.Error{
			Code: hotspare.CodeStaleEpoch, What: "the release is for another epoch", Where: o.App,
			Why: fmt.Sprintf("epoch %d is carried, the order says %d", l.epoch, o.Epoch),
		}, nil)
	}
	g := l.service()
	if g == nil {
		return failed(o, &hotspare.Error{
			Code: hotspare.CodeConflict, What: "the application is still being started", Where: o.App, Fix: "try again when the claim has ended",
		}, nil)
	}
	a.setPhase(agentlink.PhaseReleasing)
	a.monitors.Forget(l.app.Name)
	l.takeSteps()
	if err := g.Offline(ctx); err != nil {
		return failed(o, fmt.Errorf("the service group is not wholly offline: %w", err), l.takeSteps())
	}
	if err := errors.Join(l.gate.Revoke(), a.addresses.RemoveAll(), l.killGroup()); err != nil {
		return failed(o, err, l.takeSteps())
	}
	if err := a.logOut(ctx, l); err != nil {
		return failed(o, err, l.takeSteps())
	}
	a.settle(l, agentlink.PhaseReleased)
	return agentlink.Result{OrderID: o.ID, OK: true, Steps: l.takeSteps()}
}

// releasedAlready answers a release of what is not carried any more.
func (a *agent) releasedAlready(o agentlink.Order, l *load) agentlink.Result {
	a.mu.Lock()
	phase := a.phase
	a.mu.Unlock()
	if phase == agentlink.PhaseReleased || phase == agentlink.PhaseFailed {
		return agentlink.Result{OrderID: o.ID, OK: true, Why: "the application is not carried any more: " + string(phase)}
	}
	return failed(o, errors.New("the application is being dropped"), nil)
}

// power ends this boot. What is carried is dropped first.
func (a *agent) power(o agentlink.Order) agentlink.Result {
	go func() {
		if l := a.current(); l != nil && !l.isDone() {
			a.drop("ordered to power " + string(o.Power.Action) + ": " + o.Power.Why)
		}
		time.Sleep(tellTime) // for the answer to leave
		syncFor(2 * time.Second)
		command := unix.LINUX_REBOOT_CMD_RESTART
		if o.Power.Action == agentlink.PowerOff {
			command = unix.LINUX_REBOOT_CMD_POWER_OFF
		}
		a.out.say("power %s: %s", o.Power.Action, o.Power.Why)
		if err := unix.Reboot(command); err != nil {
			a.log.Error("power order failed", "err", err)
		}
	}()
	return agentlink.Result{OrderID: o.ID, OK: true}
}

// syncFor writes what is dirty, but does not wait for a dead volume.
func syncFor(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		unix.Sync()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}
