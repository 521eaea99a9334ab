package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/cmd/hotspare-agent/kexec"
	"hotspare/cmd/hotspare-agent/memory"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/client"
)

// memoryLimit is how much a parked node holds of artefacts: a third of what is
// free, since an image needs the rest when it is started.
func memoryLimit() int64 { return int64(meminfo("MemAvailable")) * 1024 / 3 }

// errBootAgain ends a boot that has nothing to show to anybody.
var errBootAgain = errors.New("the node was approved and boots again for it")

// announce tells the appliance of a node that it has not approved, for ever. All
// that it may learn is that it is to boot again.
func (a *agent) announce(ctx context.Context) error {
	opt := client.Options{
		Addr: a.boot.Appliance.String(), CA: []byte(a.boot.CA), Node: a.boot.Node, Facts: a.facts, Software: version,
		Now: a.up, Dial: dialer.DialContext, Log: a.log,
	}
	a.out.mark("discovery")
	told := ""
	for {
		noted, err := client.Announce(ctx, opt)
		text := fmt.Sprintf("node %s (system UUID %s, network card %s) is not approved: approve it on the appliance",
			a.boot.Node, a.facts.UUID, strings.Join(a.facts.MACs, ", "))
		if noted.Why != "" {
			text += ": " + noted.Why
		}
		wait := noted.Again.D()
		if err != nil {
			text = fmt.Sprintf("the appliance at %s does not take this node's announcement: %v", a.boot.Appliance, err)
			wait = 10 * time.Second
		}
		if noted.Boot {
			return errBootAgain
		}
		if text != told {
			told = text
			a.out.say("%s", text)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// forsakenAfter is how long a parked node bears that the appliance does not know
// it, e.g. with a certificate that ended while the appliance was down.
const forsakenAfter = time.Minute

// noteRefusal follows the answers to this node's certificate. A parked node that
// is refused for good boots again, which brings it a token. One that carries an
// application goes on: its lease decides.
func (a *agent) noteRefusal(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.up()
	switch {
	case err == nil:
		a.refused = 0
	case !client.IsRefusal(err): // the link is down: no word of the appliance's
	case a.refused == 0:
		a.refused = now
	case now-a.refused > forsakenAfter && (a.load == nil || a.load.isDone()):
		a.forsaken(fmt.Errorf("the appliance does not know this boot any more: %w", err))
	}
}

// occupy keeps claims and other long orders away while the node does what it
// is told. It fails when the node carries something or is occupied already.
func (a *agent) occupy(what string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.occupyLocked(what)
}

func (a *agent) occupyLocked(what string) error {
	why := ""
	switch {
	case a.load != nil:
		why = fmt.Sprintf("it has carried %s in this boot", a.load.app.Name)
	case a.busy != "":
		why = "it " + a.busy
	default:
		a.busy = what
		return nil
	}
	return &hotspare.Error{Code: hotspare.CodeConflict, What: "the node is not parked", Where: a.boot.Node, Why: why, Fix: "power the node off and on first"}
}

func (a *agent) vacate() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy = ""
}

// spareTime is a long order that nobody waits for, and that ends for one that
// somebody does.
type spareTime struct {
	stop  context.CancelCauseFunc
	ended chan struct{}
}

// spareEnd is how long an order waits for the end of what was done in spare time: a
// disk that hangs must not hold a claim up for ever.
const spareEnd = 15 * time.Second

// occupyFor is occupy for an order that may be one of spare time, which gives way to
// whatever comes. ended is to be called when the node is free of it.
func (a *agent) occupyFor(ctx context.Context, what string, spare bool) (_ context.Context, ended func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.occupyLocked(what); err != nil {
		return ctx, nil, err
	}
	if !spare {
		return ctx, a.vacate, nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	s := &spareTime{stop: stop, ended: make(chan struct{})}
	a.spare = s
	return ctx, func() {
		stop(nil)
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.spare == s { // nobody has gone on without its end
			a.spare, a.busy = nil, ""
		}
		close(s.ended)
	}, nil
}

// comesFirst ends what is done in spare time, and waits for its end: what was
// written is noted, so it goes on from there another time. Who needs none of the
// node's disks does not wait: 0.
func (a *agent) comesFirst(what string, wait time.Duration) {
	a.mu.Lock()
	s := a.spare
	a.mu.Unlock()
	if s == nil {
		return
	}
	s.stop(&hotspare.Error{
		Code: hotspare.CodeUnavailable, What: "the order was given up", Where: a.boot.Node, Why: what + " came first", Fix: "nothing: it is ordered again, and goes on where it ended",
	})
	if wait > 0 {
		select {
		case <-s.ended:
			return
		case <-time.After(wait):
			a.out.say("what was done in spare time does not end: a local disk hangs")
			return // the node stays occupied
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.spare == s {
		a.spare, a.busy = nil, ""
	}
}

// steps notes what is done for an order that carries no application.
type steps struct {
	a   *agent
	mu  sync.Mutex
	all []agentlink.Step
}

func (s *steps) timed(name string, do func() error) error {
	start := s.a.up()
	err := do()
	end := s.a.up()
	step := agentlink.Step{Name: name, OK: err == nil, UpMillis: end.Milliseconds(), Millis: (end - start).Milliseconds()}
	if err != nil {
		step.Why = err.Error()
		err = fmt.Errorf("%s: %w", name, err)
	}
	s.mu.Lock()
	s.all = append(s.all, step)
	s.mu.Unlock()
	s.a.tellStep(step)
	return err
}

// preload fetches artefacts into memory and drops the others.
func (a *agent) preload(ctx context.Context, o agentlink.Order) agentlink.Result {
	if l := a.current(); l != nil {
		return failed(o, &hotspare.Error{Code: hotspare.CodeConflict, What: "the node is not parked", Where: a.boot.Node, Why: "it has carried " + l.app.Name}, nil)
	}
	a.memory.Keep(o.Preload.Artefacts)
	did := &steps{a: a}
	errs := make([]error, len(o.Preload.Artefacts))
	var wg sync.WaitGroup
	for i, art := range o.Preload.Artefacts {
		wg.Go(func() {
			errs[i] = did.timed("preload "+art.SHA256[:12], func() error {
				_, err := a.memory.Get(ctx, art)
				return err
			})
		})
	}
	wg.Wait()
	a.link.Poke()
	if err := errors.Join(errs...); err != nil {
		return failed(o, err, did.all)
	}
	return agentlink.Result{OrderID: o.ID, OK: true, Steps: did.all}
}

// leaveTime bounds the wait for the appliance to have heard that the node
// leaves.
const leaveTime = 3 * time.Second

// kexec leaves this kernel for another one. It returns only when the node stays.
func (a *agent) kexec(ctx context.Context, o agentlink.Order) agentlink.Result {
	if !a.facts.Kexec.Possible {
		return failed(o, &hotspare.Error{
			Code: hotspare.CodeKexec, What: "the running kernel does not execute another one", Where: a.boot.Node, Why: a.facts.Kexec.Why,
			Fix: "start the application by a cold boot",
		}, nil)
	}
	a.comesFirst("another kernel", spareEnd)
	if err := a.occupy("is about to execute another kernel"); err != nil {
		return failed(o, err, nil)
	}
	did := &steps{a: a}
	if err := a.loadKernel(ctx, o, did); err != nil {
		a.vacate()
		return failed(o, err, did.all)
	}
	// From here on nothing takes time but the way out: an order that has become
	// stale meanwhile is not followed any more.
	if seen := a.link.Gate().Seen(o.App); o.App != "" && seen > o.Epoch {
		a.vacate()
		return failed(o, &hotspare.Error{
			Code: hotspare.CodeStaleEpoch, What: "the order carries an epoch that is over", Where: "order " + o.ID,
			Why: fmt.Sprintf("epoch %d of %s, this node has seen %d", o.Epoch, o.App, seen),
		}, did.all)
	}
	a.setPhase(agentlink.PhaseLeaving)
	leave, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	err := a.link.Leave(leave, agentlink.Result{OrderID: o.ID, OK: true, Steps: did.all})
	if errors.Is(err, client.ErrLinkDown) {
		a.setPhase(agentlink.PhaseParked)
		a.vacate()
		return failed(o, fmt.Errorf("the node stays: %w", err), did.all)
	}
	if err != nil {
		a.log.Warn("the appliance may not know that this node leaves", "err", err)
	}
	a.out.mark("kexec")
	a.out.flush(100 * time.Millisecond)
	if err := kexec.Quiesce(); err != nil {
		a.log.Warn("a device may write into the memory of the next kernel", "err", err)
	}
	a.out.say("%v; the machine is reset", kexec.Execute())
	a.out.flush(time.Second)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

// loadKernel fetches what is not in memory yet and hands it to the kernel.
func (a *agent) loadKernel(ctx context.Context, o agentlink.Order, did *steps) error {
	var kernel, initrd *os.File
	if err := did.timed("fetch", func() error {
		var wg sync.WaitGroup
		var errs [2]error
		wg.Go(func() { kernel, errs[0] = a.memory.Get(ctx, o.Kexec.Kernel) })
		wg.Go(func() { initrd, errs[1] = a.memory.Get(ctx, o.Kexec.Initrd) })
		wg.Wait()
		return errors.Join(errs[:]...)
	}); err != nil {
		return err
	}
	return did.timed("load kernel", func() error {
		whole, err := memory.Concat(initrd, o.Kexec.Initrd.Bytes, []byte(o.Kexec.Join.Reveal()))
		if err != nil {
			return err
		}
		defer whole.Close()
		return kexec.Load(kernel, whole, a.withBootNIC(o.Kexec.Cmdline))
	})
}

// withBootNIC names the network card to the next kernel's agent.
func (a *agent) withBootNIC(cmdline string) string {
	if strings.Contains(" "+cmdline, " BOOTIF=") {
		return cmdline
	}
	return strings.TrimSpace(cmdline + " BOOTIF=01-" + strings.ReplaceAll(a.nic.MAC.String(), ":", "-"))
}
