package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/cmd/hotspare-agent/fence"
	"hotspare/cmd/hotspare-agent/inventory"
	"hotspare/cmd/hotspare-agent/memory"
	"hotspare/cmd/hotspare-agent/nic"
	"hotspare/cmd/hotspare-agent/pid1"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/client"
)

// How long a node shows why it cannot go on before it boots again.
const refusedPause = 60 * time.Second

// networkDeadline bounds the wait for a NIC, a carrier and an address.
const networkDeadline = 5 * time.Minute

// Switcher replaces the initramfs by the image's root.
type Switcher interface {
	Switch(root, init string) error
	Stay(root string) error
}

// Resetter resets the machine, now or at a deadline.
type Resetter interface {
	Arm(at time.Duration) error
	Disarm() error
	Reset() error
}

// agent is the whole of the agent's process.
type agent struct {
	boot  agentlink.BootConfig
	facts agentlink.Facts
	out   *console
	log   *slog.Logger
	up    func() time.Duration

	control   Switcher
	guard     Resetter
	nic       nic.Link
	addresses *nic.Addresses
	initiator Initiator
	monitors  Monitors
	link      *client.Client
	forsaken  context.CancelCauseFunc // ends the link of a parked node that the appliance does not know any more
	lease     fence.Lease

	memory *memory.Store // artefacts that are kept while the node is parked

	mu       sync.Mutex
	phase    agentlink.Phase
	load     *load                // what the node carries, or nil
	busy     string               // what excludes a claim: the node is about to leave, or writes to a local disk
	spare    *spareTime           // an installation for later that is under way
	granted  time.Duration        // when the last granted heartbeat was sent
	span     time.Duration        // how long a lease it was granted
	verified map[[2]string]string // disk and slot -> digest that it was read with in this boot
	refused  time.Duration        // since when the appliance refuses the certificate of this parked node; 0: it does not
}

// runAgent is the agent's process from its start to the machine's end.
func runAgent() {
	out := newConsole()
	log := out.logger()
	if err := fence.Pin(); err != nil {
		log.Warn("the agent is not wholly pinned in memory", "err", err)
	}
	a := &agent{out: out, log: log, up: bootTime, phase: agentlink.PhaseParked}
	err := a.run(context.Background())
	if errors.Is(err, errBootAgain) {
		out.say("%v", err)
		out.flush(100 * time.Millisecond)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	out.say("this node cannot go on: %v", err)
	out.say("it boots again in %s", refusedPause)
	time.Sleep(refusedPause)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// run returns only when the node can do nothing more in this boot.
func (a *agent) run(ctx context.Context) error {
	if began, err := strconv.ParseInt(os.Getenv(pid1.BeganVar), 10, 64); err == nil {
		a.out.remember("init", began) // PID 1 has said it
	}
	a.out.mark("agent")
	control, err := pid1.OpenControl()
	if err != nil {
		return err
	}
	guard, err := fence.StartGuard(pid1.AgentPath)
	if err != nil {
		return err
	}
	a.control, a.guard = control, guard
	if err := a.readBootConfig(); err != nil {
		return err
	}
	boot, err := a.network(ctx)
	if err != nil {
		return err
	}
	a.facts = readFacts(a.nic, boot, a.boot)
	if a.boot.Token.IsZero() {
		return a.announce(ctx)
	}
	if a.initiator, err = newKernelInitiator(a.log); err != nil {
		return err
	}
	a.memory = memory.NewStore(&http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, ResponseHeaderTimeout: 30 * time.Second}}, memoryLimit)
	go a.watch(ctx)
	return a.serve(ctx)
}

// dialer connects to the appliance.
var dialer = &net.Dialer{Timeout: 3 * time.Second, KeepAlive: 5 * time.Second}

// network brings the NIC up and gets the boot address.
func (a *agent) network(ctx context.Context) (nic.Boot, error) {
	wait, cancel := context.WithTimeout(ctx, networkDeadline)
	defer cancel()
	tell := func(text string) { a.out.say("%s", text) }
	link, err := nic.Up(wait, nic.BootMAC(readWord("/proc/cmdline")), tell)
	if err != nil {
		return nic.Boot{}, err
	}
	a.out.mark("link")
	boot, err := nic.Acquire(wait, link, tell)
	if err != nil {
		return nic.Boot{}, err
	}
	a.out.mark("address")
	a.out.say("address %s on %s", boot.Address, link.MAC)
	a.nic = link
	if a.addresses, err = nic.NewAddresses(link); err != nil {
		return nic.Boot{}, err
	}
	go nic.Keep(ctx, link, boot, a.log)
	return boot, nil
}

// readBootConfig reads boot.json and takes it away: the token is not for the
// image.
func (a *agent) readBootConfig() error {
	text, err := os.ReadFile(agentlink.BootConfigPath)
	if err != nil {
		return errors.New("no boot configuration: this boot was not given one, or it was fetched before by somebody else (" + err.Error() + ")")
	}
	_ = os.Remove(agentlink.BootConfigPath)
	if a.boot, err = agentlink.ParseBootConfig(text); err != nil {
		return err
	}
	if a.boot.Token.IsZero() && a.boot.Mode != agentlink.ModeDiscovery {
		return errors.New("the appliance gave no token for this boot")
	}
	return nil
}

// serve keeps the link up. It returns when the join is refused.
func (a *agent) serve(ctx context.Context) error {
	link, err := client.New(client.Options{
		Addr: a.boot.Appliance.String(), CA: []byte(a.boot.CA), Node: a.boot.Node, Token: a.boot.Token,
		Facts: a.facts, Software: version,
		Beat: a.beat, Acked: a.acked, Order: a.order, State: a.linkState, Now: a.up,
		Dial: dialer.DialContext,
		Log:  a.log,
	})
	if err != nil {
		return err
	}
	a.link = link
	a.monitors = newMonitors(link.Sample)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	a.forsaken = stop
	err = link.Run(ctx)
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// linkState tells the console what the node waits for.
func (a *agent) linkState(s client.State) {
	if !s.Up {
		a.out.say("no link to the appliance at %s: %s", a.boot.Appliance, s.Why)
		a.noteRefusal(s.Err)
		return
	}
	a.noteRefusal(nil)
	a.out.allMarks()
	a.out.mark("joined")
	a.setClock(s.ServerTime)
	a.out.say("%s", s.Why)
	if a.current() != nil {
		return
	}
	switch a.boot.Mode {
	case agentlink.ModeDiscovery:
		a.out.say("node %s is inspected and waits; nothing is started on it", a.link.Node())
	case agentlink.ModeStandby:
		a.out.mark("parked")
		a.out.say("node %s stands by on Linux %s", a.link.Node(), a.facts.Kernel)
	default:
		a.out.say("node %s waits for the application that it is to carry", a.link.Node())
	}
}

// clockTolerance is how far the node's clock may be off before it is set.
const clockTolerance = 30 * time.Second

// setClock sets a clock that is far off by the appliance's, as long as nothing
// runs here: a database must not start in the year 2000. Keeping it right is the
// image's matter.
func (a *agent) setClock(now time.Time) {
	off := time.Until(now)
	if now.IsZero() || off.Abs() < clockTolerance || a.current() != nil {
		return
	}
	tv := unix.NsecToTimeval(now.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		a.log.Warn("the clock is off and was not set", "off", off, "err", err)
		return
	}
	a.out.say("the clock was off by %s and is set to the appliance's", off.Round(time.Second))
}

// current gives what the node carries, or nil.
func (a *agent) current() *load {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.load
}

func (a *agent) setPhase(p agentlink.Phase) {
	a.mu.Lock()
	a.phase = p
	a.mu.Unlock()
	a.out.say("phase %s", p)
}

// beat makes a heartbeat.
func (a *agent) beat() agentlink.Heartbeat {
	a.mu.Lock()
	l, phase := a.load, a.phase
	a.mu.Unlock()
	health := inventory.Reader{Root: "/"}.Health()
	h := agentlink.Heartbeat{Phase: phase, Metrics: readMetrics(), Health: &health, Marks: a.out.freshMarks()}
	if l == nil || l.isDone() {
		h.Preloaded = a.memory.Have()
		return h // nothing is carried: no lease is asked for
	}
	h.App, h.Epoch = l.app.Name, l.epoch
	if g := l.service(); g != nil {
		h.Resources = g.States()
		if phase == agentlink.PhaseOnline && anyFailed(h.Resources) {
			h.Phase = agentlink.PhaseDegraded
		}
	}
	now := a.up()
	h.Metrics.StorageLostMillis = l.disks.lostFor(now).Milliseconds()
	if left, ok := a.lease.Held(now); ok {
		h.Metrics.LeaseMillisLeft = left.Milliseconds()
	}
	h.Metrics.WitnessCounter = l.witnessCounter()
	return h
}

func anyFailed(resources []agentlink.Resource) bool {
	for _, r := range resources {
		if r.State == agentlink.ResourceFailed {
			return true
		}
	}
	return false
}

// acked takes the appliance's answer to a heartbeat: the lease, or its end.
func (a *agent) acked(sent time.Duration, ack agentlink.HeartbeatAck) {
	l := a.current()
	if l == nil {
		return
	}
	if ack.Drop {
		go a.drop("the appliance ended the grant: " + ack.Reason)
		return
	}
	if !ack.Granted {
		return
	}
	end, ok := a.lease.Grant(l.app.Name, l.epoch, sent, ack.Lease.D())
	if !ok {
		return
	}
	a.mu.Lock()
	a.granted, a.span = max(a.granted, sent), ack.Lease.D()
	a.mu.Unlock()
	if err := a.guard.Arm(end + l.policy.DropBound.D()); err != nil {
		a.log.Error("the guard does not answer; the agent goes on alone", "err", err)
	}
}

// watch follows the lease and the volumes, and drops the service when one of
// them is gone.
func (a *agent) watch(ctx context.Context) {
	go func() {
		if a.lease.Watch(ctx, a.up) {
			a.drop("the lease ended")
		}
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		l := a.current()
		if l == nil || l.isDone() {
			continue
		}
		a.mu.Lock()
		granted, span := a.granted, a.span
		a.mu.Unlock()
		if why, drop := l.disks.verdict(a.up(), l.policy.Lease.D(), span, granted); drop {
			a.drop(why)
			return
		}
	}
}
