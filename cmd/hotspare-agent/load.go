package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hotspare"
	"hotspare/cmd/hotspare-agent/disk"
	"hotspare/cmd/hotspare-agent/fence"
	"hotspare/cmd/hotspare-agent/group"
	"hotspare/cmd/hotspare-agent/units"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// load is the application that the node carries under one epoch.
type load struct {
	app    haengine.Application
	epoch  uint64
	claim  agentlink.Claim
	policy agentlink.LeasePolicy

	disks   *diskHealth
	gate    units.Gate
	dropper *fence.Dropper

	mu         sync.Mutex
	met        chan struct{} // closed when the image's systemd has been met, or not
	manager    services
	managerErr error
	group      *group.Group       // set when the service group is begun
	halt       context.CancelFunc // ends watching
	sessions   map[string]DiskSession
	kill       *os.File // cgroup.kill of the group's slice
	witness    *disk.Witness
	steps      []agentlink.Step
	done       bool // released, failed or dropped: nothing is carried any more
}

func newLoad(o agentlink.Order) *load {
	app := o.Claim.Application
	app.Policy = app.Policy.WithDefaults()
	return &load{
		app: app, epoch: o.Epoch, claim: *o.Claim, policy: o.Claim.Lease,
		disks: newDiskHealth(), gate: units.NewGate("/", app.Name), sessions: map[string]DiskSession{},
		halt: func() {}, met: make(chan struct{}),
	}
}

// service gives the service group, or nil when it is not begun.
func (l *load) service() *group.Group {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.group
}

// services runs what the service group consists of: the image's systemd, or the
// agent itself where the image is one process.
type services interface {
	Run(ctx context.Context, c units.Command) error
	Launch(ctx context.Context, c units.Command) error
	Start(ctx context.Context, unit string) error
	Stop(ctx context.Context, unit string) error
	State(ctx context.Context, unit string) (units.State, error)
}

// systemd gives what runs the service group, and waits for the image's systemd.
func (l *load) systemd(ctx context.Context) (services, error) {
	select {
	case <-l.met:
	case <-ctx.Done():
		return nil, fmt.Errorf("the image's systemd does not answer: %w", context.Cause(ctx))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.manager, l.managerErr
}

func (l *load) isDone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done
}

// finish ends the watching; nothing is carried any more.
func (l *load) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = true
	l.halt()
}

func (l *load) volume(name string) (agentlink.Volume, bool) {
	for _, v := range l.claim.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return agentlink.Volume{}, false
}

// device gives the block device of a volume that is logged in.
func (l *load) device(name string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.sessions[name]
	if !ok {
		return "", fmt.Errorf("volume %q is not logged in", name)
	}
	return s.Device(), nil
}

func (l *load) witnessCounter() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.witness == nil {
		return 0
	}
	return l.witness.Counter()
}

// gatedUnits are all units of the service group.
func (l *load) gatedUnits() []string {
	var out []string
	for _, r := range l.app.Resources {
		if r.Unit != "" {
			out = append(out, r.Unit)
		}
		out = append(out, r.Masks...)
	}
	return out
}

// step notes what was done for the order.
func (l *load) step(s agentlink.Step) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steps = append(l.steps, s)
}

// takeSteps gives the steps since the last order.
func (l *load) takeSteps() []agentlink.Step {
	l.mu.Lock()
	defer l.mu.Unlock()
	steps := l.steps
	l.steps = nil
	return steps
}

// timed runs a part of a claim or a release and notes it.
func (a *agent) timed(l *load, name string, do func() error) error {
	start := a.up()
	err := do()
	end := a.up()
	s := agentlink.Step{Name: name, OK: err == nil, UpMillis: end.Milliseconds(), Millis: (end - start).Milliseconds()}
	if err != nil {
		s.Why = err.Error()
		err = fmt.Errorf("%s: %w", name, err)
	}
	l.step(s)
	a.tellStep(s)
	return err
}

func (a *agent) tellStep(s agentlink.Step) {
	if s.OK {
		a.out.say("%s: %d ms", s.Name, s.Millis)
		return
	}
	a.out.say("%s failed after %d ms: %s", s.Name, s.Millis, s.Why)
}

// order carries out one order of the appliance's.
func (a *agent) order(ctx context.Context, o agentlink.Order) agentlink.Result {
	switch {
	case o.Claim != nil:
		return a.claim(ctx, o)
	case o.Release != nil:
		return a.release(ctx, o)
	case o.Drop != nil:
		return a.dropOrder(o)
	case o.Preload != nil:
		return a.preload(ctx, o)
	case o.Kexec != nil:
		return a.kexec(ctx, o)
	case o.Install != nil:
		return a.install(ctx, o)
	case o.Wipe != nil:
		return a.wipe(ctx, o)
	default:
		return a.power(o)
	}
}

func failed(o agentlink.Order, err error, steps []agentlink.Step) agentlink.Result {
	code := hotspare.CodeOf(err)
	if code == "" {
		code = hotspare.CodeOnlineFailed
	}
	return agentlink.Result{OrderID: o.ID, Code: code, Why: err.Error(), Steps: steps}
}

// takeOn makes the claim's application the one that the node carries. A boot
// carries one application once: what comes after it, boots again.
func (a *agent) takeOn(o agentlink.Order) (*load, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.load != nil {
		return nil, &hotspare.Error{
			Code: hotspare.CodeConflict, What: "the node has carried an application in this boot", Where: a.boot.Node,
			Why: fmt.Sprintf("%s under epoch %d, phase %s", a.load.app.Name, a.load.epoch, a.phase),
			Fix: "power the node off and on before the next claim",
		}
	}
	if a.busy != "" {
		return nil, &hotspare.Error{Code: hotspare.CodeConflict, What: "the node takes no claim now", Where: a.boot.Node, Why: "it " + a.busy, Fix: "try again when that has ended"}
	}
	if a.boot.Mode == agentlink.ModeDiscovery {
		return nil, &hotspare.Error{Code: hotspare.CodeConflict, What: "the node was booted for discovery", Where: a.boot.Node, Fix: "boot it for a start"}
	}
	if want := o.Claim.Image.Kernel; want != "" && want != a.facts.Kernel {
		return nil, &hotspare.Error{
			Code: hotspare.CodeWrongKernel, What: "the node runs another kernel than the image needs", Where: a.boot.Node,
			Why: fmt.Sprintf("it runs %s, the image has the modules of %s", a.facts.Kernel, want), Fix: "start the application by kexec or by a cold boot",
		}
	}
	l := newLoad(o)
	l.dropper = a.newDropper(l)
	a.load = l
	a.phase = agentlink.PhaseClaiming
	return l, nil
}

// claim starts the application. When it fails, nothing of it is left online; if
// that cannot be made sure of, the node resets itself.
func (a *agent) claim(ctx context.Context, o agentlink.Order) agentlink.Result {
	wait := time.Duration(0)
	if root := o.Claim.Image.Root; root == agentlink.RootInSlot || root == agentlink.RootOnDisk {
		wait = spareEnd
	}
	a.comesFirst("a claim for "+o.App, wait)
	l, err := a.takeOn(o)
	if err != nil {
		return failed(o, err, nil)
	}
	a.out.mark("claim")
	a.out.say("this node becomes %s, epoch %d", l.app.Name, l.epoch)
	a.lease.Begin(l.app.Name, l.epoch, a.up()+l.policy.Lease.D())
	a.link.Poke()
	ctx, halt := context.WithCancel(ctx)
	a.probeAddress(ctx, l)
	l.mu.Lock()
	l.halt = halt
	l.mu.Unlock()
	if err := a.start(ctx, l); err != nil {
		return a.giveUp(ctx, o, l, err)
	}
	a.out.mark("online")
	a.setPhase(agentlink.PhaseOnline)
	a.monitors.Watch(l.app, haengine.Epoch(l.epoch))
	go l.service().Watch(ctx)
	a.link.Poke()
	return agentlink.Result{OrderID: o.ID, OK: true, Steps: l.takeSteps()}
}

// probeAddress begins early to ask whether anybody has the service's address: it
// needs nothing of the image.
func (a *agent) probeAddress(ctx context.Context, l *load) {
	for _, r := range l.app.Resources {
		if r.Kind == haengine.ResourceAddress {
			a.addresses.Probe(ctx, l.app.Address)
			return
		}
	}
}

// giveUp ends a claim that failed. The group is offline already if it was ever
// touched; volumes are logged out where nothing holds them.
func (a *agent) giveUp(ctx context.Context, o agentlink.Order, l *load, cause error) agentlink.Result {
	a.out.say("the claim failed: %v", cause)
	ctx = context.WithoutCancel(ctx)
	if g := l.service(); g != nil {
		if err := g.Offline(ctx); err != nil {
			go a.drop("the claim failed and the service group does not go offline: " + err.Error())
			return failed(o, errors.Join(cause, err), l.takeSteps())
		}
	}
	_ = l.gate.Revoke()
	cause = errors.Join(cause, a.logOut(ctx, l))
	a.settle(l, agentlink.PhaseFailed)
	return failed(o, cause, l.takeSteps())
}

// settle ends the term: nothing is carried, nothing is to be dropped.
func (a *agent) settle(l *load, p agentlink.Phase) {
	l.finish()
	a.lease.Stop()
	if err := a.guard.Disarm(); err != nil {
		a.log.Error("the guard was not disarmed", "err", err)
	}
	a.setPhase(p)
	a.link.Poke()
}

// logOut logs the data volumes out; the root stays. It goes on after a failure.
func (a *agent) logOut(ctx context.Context, l *load) error {
	l.mu.Lock()
	sessions := map[string]DiskSession{}
	for name, s := range l.sessions {
		if name != agentlink.RootVolume {
			sessions[name] = s
		}
	}
	l.mu.Unlock()
	var errs []error
	for name, s := range sessions {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := a.timed(l, "logout "+name, func() error { return s.Logout(ctx) })
		cancel()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.disks.forget(name)
		l.mu.Lock()
		delete(l.sessions, name)
		l.mu.Unlock()
	}
	return errors.Join(errs...)
}

// targetPath gives a mount point of the image.
func targetPath(target string) string { return filepath.Clean("/" + target) }
