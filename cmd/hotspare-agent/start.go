package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/cmd/hotspare-agent/group"
	"hotspare/cmd/hotspare-agent/pid1"
	"hotspare/cmd/hotspare-agent/units"
	"hotspare/haengine/agentlink"
)

// systemdWait bounds the image's way from its init to systemd's first answer.
const systemdWait = 3 * time.Minute

// start makes the node the application: volumes, root, switch, service group.
func (a *agent) start(ctx context.Context, l *load) error {
	if err := a.logInAll(ctx, l); err != nil {
		return err
	}
	if err := a.superseded(l); err != nil {
		return err
	}
	if err := a.startImage(ctx, l); err != nil {
		return err
	}
	if err := a.superseded(l); err != nil {
		return err
	}
	a.setPhase(agentlink.PhaseOnlining)
	g, err := a.newGroup(l)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.group = g
	l.mu.Unlock()
	// Mounts and addresses need no systemd and come online while it starts;
	// what needs it waits in load.systemd.
	if l.claim.Image.Process {
		a.beInit(l)
	} else {
		go a.meetSystemd(ctx, l)
	}
	if err := g.Online(ctx); err != nil {
		return err
	}
	_, err = l.systemd(ctx)
	return err
}

// logIn logs one volume in and follows its session.
func (a *agent) logIn(ctx context.Context, l *load, v agentlink.Volume) error {
	return a.timed(l, "login "+v.Name, func() error {
		s, err := patientLogin(ctx, func(ctx context.Context) (DiskSession, error) { return a.initiator.Login(ctx, targetOf(v)) },
			func(err error) { a.out.say("volume %s: %v; trying again", v.Name, err) })
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.sessions[v.Name] = s
		l.mu.Unlock()
		go func() {
			for e := range s.Events() {
				l.disks.note(v.Name, e, a.up())
				a.out.say("volume %s: %s: %s", v.Name, diskWord(e.Change), e.Why)
				if e.Change == DiskRefused {
					a.link.Poke() // does the grant still hold?
				}
			}
		}()
		return nil
	})
}

// An appliance that was killed in the middle of a claim is back within this time;
// its target answers nobody until then.
const (
	loginPatience = time.Minute
	loginPause    = 300 * time.Millisecond
)

// patientLogin tries a log-in again while the target cannot be reached. A refusal
// is an answer and ends it at once, and so does the end of the claim.
func patientLogin(ctx context.Context, login func(context.Context) (DiskSession, error), again func(error)) (DiskSession, error) {
	ctx, cancel := context.WithTimeout(ctx, loginPatience)
	defer cancel()
	for told := false; ; told = true {
		s, err := login(ctx)
		if err == nil || hotspare.CodeOf(err) != hotspare.CodeNoSession {
			return s, err
		}
		if !told {
			again(err)
		}
		select {
		case <-time.After(loginPause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func diskWord(c DiskChange) string {
	return map[DiskChange]string{DiskLost: "lost", DiskRecovered: "recovered", DiskRefused: "refused"}[c]
}

// logInAll logs all volumes in at once. It ends before the switch: /sys and
// /dev are out of reach for a moment then, and a log-in looks for its device
// there.
func (a *agent) logInAll(ctx context.Context, l *load) error {
	var wg sync.WaitGroup
	errs := make([]error, len(l.claim.Volumes))
	for i, v := range l.claim.Volumes {
		wg.Go(func() { errs[i] = a.logIn(ctx, l, v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// startImage mounts the root, closes the gate before anything of the image
// runs, and switches to the image's init, or makes the image the agent's own
// world when it has none.
func (a *agent) startImage(ctx context.Context, l *load) error {
	if err := a.timed(l, "mount root", func() error { return a.mountRoot(ctx, l) }); err != nil {
		return err
	}
	image := l.claim.Image
	if image.Process {
		a.nameHost()
		a.out.mark("switch")
		return a.timed(l, "enter root", func() error { return a.control.Stay(pid1.NewRoot) })
	}
	if err := placeSeed(pid1.NewRoot, l.claim.Seed); err != nil {
		return err
	}
	if err := l.gate.Close(l.gatedUnits()); err != nil {
		return fmt.Errorf("close the gate of the service group: %w", err)
	}
	if err := units.ReserveNIC("/", a.nic.MAC); err != nil {
		return fmt.Errorf("reserve the network card: %w", err)
	}
	a.nameHost()
	init := image.Init
	if init == "" {
		init = "/sbin/init"
	}
	a.out.mark("switch")
	return a.timed(l, "switch root", func() error { return a.control.Switch(pid1.NewRoot, init) })
}

// superseded says whether another grant of the application has been made since:
// a way that wakes late must not go on (SAFETY S2).
func (a *agent) superseded(l *load) error {
	if seen := a.link.Gate().Seen(l.app.Name); seen > l.epoch {
		return &hotspare.Error{
			Code: hotspare.CodeStaleEpoch, What: "the grant is over", Where: l.app.Name,
			Why: fmt.Sprintf("epoch %d was to be started here, and epoch %d was granted since", l.epoch, seen),
		}
	}
	return nil
}

// nameHost gives the host its node's name. The image's /etc/hostname would win
// at its start, so it is done again afterwards.
func (a *agent) nameHost() {
	if err := unix.Sethostname([]byte(a.link.Node())); err != nil {
		a.log.Warn("host name not set", "err", err)
	}
}

// meetSystemd waits for the image's systemd, opens what the drop needs and
// wakes those who wait in load.systemd.
func (a *agent) meetSystemd(ctx context.Context, l *load) {
	var manager *units.Manager
	var kill *os.File
	err := a.timed(l, "systemd answers", func() (err error) {
		wait, cancel := context.WithTimeout(ctx, systemdWait)
		defer cancel()
		if manager, err = units.Connect(wait); err != nil {
			return err
		}
		a.out.mark("systemd")
		a.nameHost()
		kill, err = manager.KillSwitch(wait, l.gate.Slice())
		return err
	})
	if err == nil {
		err = a.awaitCloudInit(ctx, l)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kill, l.managerErr = kill, err
	if manager != nil {
		l.manager = manager
	}
	close(l.met)
}

// newGroup makes the service group with a driver for each kind of resource.
func (a *agent) newGroup(l *load) (*group.Group, error) {
	return group.New(group.Options{
		App: l.app.Name, Epoch: l.epoch, Resources: l.app.Resources, Drivers: a.drivers(l),
		Policy: group.Policy{Restarts: l.app.Policy.Restarts, Window: l.app.Policy.RestartWindow.D()},
		Allowed: func(ctx context.Context) error {
			if err := a.superseded(l); err != nil {
				return err
			}
			return a.leaseHeld(ctx, l)
		},
		Report: a.link.Report,
		Step:   func(s agentlink.Step) { l.step(s); a.tellStep(s) },
		Up:     a.up,
		Log:    a.log,
	})
}

// leaseHeld waits for the lease: nothing comes online without it.
func (a *agent) leaseHeld(ctx context.Context, l *load) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.policy.Lease.D(), &hotspare.Error{
		Code: hotspare.CodeOnlineFailed, What: "the appliance does not grant the lease", Where: l.app.Name,
		Fix: "see `hotspare explain app " + l.app.Name + "`",
	})
	defer cancel()
	return a.lease.Wait(ctx, a.up)
}
