package bmcsim

import (
	"context"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/types"
)

// action is a power command that was accepted and is to be done.
type action struct {
	kind  actionKind
	after time.Time // SlowPower: not before
}

type actionKind uint8

const (
	actOff actionKind = iota + 1
	actOn
	actSoft
	actCycle
)

// maxActions bounds the commands that wait for the worker; a BMC that is asked
// for more answers "node busy".
const maxActions = 16

// controller is the state behind both protocols. The worker (work) is the only one
// that switches the machine.
type controller struct {
	opts Options
	sel  *eventLog

	mu       sync.Mutex
	fault    Fault
	queue    []action
	busy     actionKind // what the worker is at; 0 nothing
	wake     chan struct{}
	lyingOff bool // an off was answered and not done
	boot     bootOptions
	history  []powerSample
	count    Stats
}

type powerSample struct {
	at time.Time
	on bool
}

func newController(opts Options) *controller {
	return &controller{opts: opts, sel: &eventLog{}, wake: make(chan struct{}, 1)}
}

func (c *controller) setFault(f Fault) {
	c.mu.Lock()
	if !f.LyingOff {
		c.lyingOff = false
	}
	c.fault = f
	c.sampleLocked(time.Now())
	c.mu.Unlock()
	if p, ok := c.opts.Machine.(POSTDelayer); ok {
		p.SetPOSTDelay(f.POSTDelay)
	}
}

func (c *controller) getFault() Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

func (c *controller) stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count
}

// silent says whether the BMC answers nothing now.
func (c *controller) silent() bool {
	f := c.getFault()
	return f.Dead || f.DiesWithHost && !c.opts.Machine.PowerState()
}

// powered is the state that is reported, which with a fault is not the true one.
func (c *controller) powered() bool {
	on := c.opts.Machine.PowerState()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.recordLocked(now, on)
	switch {
	case c.lyingOff:
		return false
	case c.fault.StaleState > 0:
		return c.stateAtLocked(now.Add(-c.fault.StaleState), on)
	}
	return on
}

// redfishPower is the state in Redfish's words, which know states in between.
func (c *controller) redfishPower() string {
	c.mu.Lock()
	busy := c.busy
	if busy == 0 && len(c.queue) > 0 {
		busy = c.queue[0].kind
	}
	lying := c.lyingOff
	c.mu.Unlock()
	on := c.powered()
	switch {
	case lying:
		return "Off"
	case busy == actOff && on, busy == actCycle && on:
		return "PoweringOff"
	case busy == actOn && !on, busy == actCycle && !on:
		return "PoweringOn"
	case on:
		return "On"
	default:
		return "Off"
	}
}

func (c *controller) sampleLocked(now time.Time) {
	c.recordLocked(now, c.opts.Machine.PowerState())
}

func (c *controller) recordLocked(now time.Time, on bool) {
	if n := len(c.history); n > 0 && c.history[n-1].on == on {
		return
	}
	c.history = append(c.history, powerSample{now, on})
	if len(c.history) > 64 {
		c.history = c.history[1:]
	}
}

func (c *controller) stateAtLocked(at time.Time, now bool) bool {
	for i := len(c.history) - 1; i >= 0; i-- {
		if !c.history[i].at.After(at) {
			return c.history[i].on
		}
	}
	if len(c.history) > 0 {
		return c.history[0].on
	}
	return now
}

// accept takes a power command. It never waits for the machine.
func (c *controller) accept(kind actionKind) types.CompletionCode {
	on := c.opts.Machine.PowerState()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.countLocked(kind)
	f := c.fault
	switch {
	case f.Refuse, kind == actCycle && !on:
		return types.CodeNotSupported // D5h: not supported in present state
	case f.LyingSuccess:
		return types.CodeOK
	case f.LyingOff && (kind == actOff || kind == actSoft):
		c.lyingOff = true
		return types.CodeOK
	case len(c.queue) >= maxActions:
		return types.CodeNodeBusy
	}
	c.lyingOff = false
	c.queue = append(c.queue, action{kind: kind, after: time.Now().Add(f.SlowPower)})
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return types.CodeOK
}

func (c *controller) countLocked(kind actionKind) {
	switch kind {
	case actOff:
		c.count.Offs++
	case actOn:
		c.count.Ons++
	case actSoft:
		c.count.Softs++
	case actCycle:
		c.count.Cycles++
	}
}

// work does the accepted commands one after another until ctx ends.
func (c *controller) work(ctx context.Context) {
	for {
		a, ok := c.next()
		if !ok {
			select {
			case <-c.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if !sleepUntil(ctx, a.after) {
			return
		}
		c.do(ctx, a.kind)
		c.mu.Lock()
		c.busy = 0
		c.mu.Unlock()
	}
}

func (c *controller) next() (action, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) == 0 {
		return action{}, false
	}
	a := c.queue[0]
	c.queue, c.busy = c.queue[1:], a.kind
	return a, true
}

func (c *controller) do(ctx context.Context, kind actionKind) {
	m := c.opts.Machine
	switch kind {
	case actOff:
		c.switchOff(ctx)
	case actOn:
		c.switchOn(ctx)
	case actCycle:
		c.switchOff(ctx)
		c.switchOn(ctx)
	case actSoft:
		if s, ok := m.(SoftOff); ok && m.PowerState() {
			c.done("soft off", s.PowerSoft(ctx))
		}
	}
}

func (c *controller) switchOff(ctx context.Context) {
	if !c.opts.Machine.PowerState() {
		return
	}
	c.done("off", c.opts.Machine.PowerOff(ctx))
	c.mu.Lock()
	c.count.MachineOffs++
	c.sampleLocked(time.Now())
	c.mu.Unlock()
	c.sel.add(eventPowerOff)
}

func (c *controller) switchOn(ctx context.Context) {
	if c.opts.Machine.PowerState() {
		return
	}
	c.expireBoot()
	c.done("on", c.opts.Machine.PowerOn(ctx))
	c.mu.Lock()
	c.count.MachineOns++
	c.sampleLocked(time.Now())
	c.mu.Unlock()
	c.spendBoot()
	c.sel.add(eventPowerOn)
}

func (c *controller) done(what string, err error) {
	c.opts.Log.Info("machine switched", "to", what, "err", err)
}

func sleepUntil(ctx context.Context, t time.Time) bool {
	d := time.Until(t)
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
