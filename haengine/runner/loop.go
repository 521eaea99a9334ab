package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"hotspare/haengine"
)

// Options are what a Runner works with. All interfaces are required.
type Options struct {
	Journal  Journal
	Power    Power
	Booter   Booter
	Volumes  Volumes
	Agents   Agents
	Preparer Preparer
	Prober   Prober
	Notifier Notifier

	Clock     Clock                         // nil: the host's clocks, a tick every 250 ms
	Log       *slog.Logger                  // nil: discard
	Deadlines map[string]time.Duration      // per kind of action; missing kinds have their defaults
	Rules     haengine.Rules                // tests only
	Observe   func(context.Context, Change) // called for each change in the runner's goroutine; may be nil
}

// deadlines bound one try of an action. They bound the time for which a withdrawn
// claim keeps storage evidence from counting, too.
func deadlines() map[string]time.Duration {
	return map[string]time.Duration{
		haengine.ReadPower{}.Kind(): 10 * time.Second, haengine.PowerOff{}.Kind(): 30 * time.Second,
		haengine.Revoke{}.Kind(): 30 * time.Second, haengine.Attach{}.Kind(): time.Minute,
		haengine.Boot{}.Kind(): 90 * time.Second, haengine.Claim{}.Kind(): 3 * time.Minute,
		haengine.Release{}.Kind(): 90 * time.Second, haengine.ProbeAddress{}.Kind(): 10 * time.Second,
		haengine.ReturnNode{}.Kind(): 2 * time.Minute, haengine.CancelBoot{}.Kind(): 30 * time.Second,
		haengine.ParkNode{}.Kind(): 90 * time.Second, haengine.Install{}.Kind(): 24 * time.Hour, // the policy's limit ends it
		haengine.Preload{}.Kind(): 2 * time.Minute, haengine.DisableCopies{}.Kind(): 5 * time.Minute,
		haengine.DeleteRoot{}.Kind(): time.Minute, haengine.Notify{}.Kind(): time.Minute,
	}
}

func (o Options) withDefaults() Options {
	if o.Clock == nil {
		o.Clock = NewClock(250 * time.Millisecond)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := deadlines()
	for k, v := range o.Deadlines {
		d[k] = v
	}
	o.Deadlines = d
	return o
}

func (o Options) validate() error {
	missing := map[string]bool{
		"Journal": o.Journal == nil, "Power": o.Power == nil, "Booter": o.Booter == nil, "Volumes": o.Volumes == nil,
		"Agents": o.Agents == nil, "Preparer": o.Preparer == nil, "Prober": o.Prober == nil, "Notifier": o.Notifier == nil,
	}
	for _, k := range []string{"Journal", "Power", "Booter", "Volumes", "Agents", "Preparer", "Prober", "Notifier"} {
		if missing[k] {
			return fmt.Errorf("runner: option %s is missing", k)
		}
	}
	return nil
}

// Change is one step of the engine for those who look on.
type Change struct {
	Seq       uint64                `json:"seq"`
	Stamp     haengine.Stamp        `json:"stamp"`
	Apps      []string              `json:"apps,omitempty"`
	Nodes     []string              `json:"nodes,omitempty"`
	Failovers []haengine.FailoverID `json:"failovers,omitempty"`
	Entries   []haengine.Entry      `json:"entries,omitempty"`
}

// Runner is the engine at work.
type Runner struct {
	opt     Options
	machine *Machine
	inbox   chan letter
	state   atomic.Pointer[haengine.State]
	seq     uint64

	mu   sync.Mutex
	subs map[chan Change]struct{}

	acting  sync.WaitGroup
	cancels map[haengine.ActionID]context.CancelFunc // of actions that are being performed; the loop's own
	ran     atomic.Bool
	done    chan struct{}
}

// letter is one event on its way into the loop.
type letter struct {
	event haengine.Event
	reply chan reply // nil: nobody waits
}

type reply struct {
	lease Lease
	err   error
}

// ErrStopped is given to those who submit after the runner has ended.
var ErrStopped = errors.New("the engine has stopped")

// New loads the journal. Run starts the engine.
func New(ctx context.Context, o Options) (*Runner, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	m, err := NewMachine(ctx, o.Journal, o.Rules)
	if err != nil {
		return nil, err
	}
	r := &Runner{
		opt: o, machine: m, inbox: make(chan letter, 256), subs: map[chan Change]struct{}{},
		cancels: map[haengine.ActionID]context.CancelFunc{}, done: make(chan struct{}),
	}
	s := m.State()
	r.state.Store(&s)
	return r, nil
}

// Run is the engine's loop. It returns when ctx ends, with nil, or when the
// journal fails, with the cause; every action has ended by then. It runs once.
func (r *Runner) Run(ctx context.Context) error {
	if r.ran.Swap(true) {
		return errors.New("runner: Run was called twice")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		close(r.done)
		r.acting.Wait()
		r.closeSubs()
	}()
	ticks, stop := r.opt.Clock.Tick()
	defer stop()
	if err := r.take(ctx, letter{event: haengine.Restarted{}}); err != nil {
		return err
	}
	for {
		var l letter
		select {
		case <-ctx.Done():
			return nil
		case l = <-r.inbox:
		case <-ticks:
			l = letter{event: haengine.Tick{}}
		}
		if err := r.take(ctx, l); err != nil {
			return err
		}
	}
}

// take puts one event through the machine and has its actions performed.
func (r *Runner) take(ctx context.Context, l letter) error {
	now := haengine.Stamp{At: r.opt.Clock.Now(), Wall: r.opt.Clock.Wall()}
	var (
		out     reply
		actions []haengine.Action
	)
	// A journal write is not cut short by a stop: half of it may be on disk.
	jctx := context.WithoutCancel(ctx)
	switch e := l.event.(type) {
	case haengine.Heartbeat:
		out.lease, actions, out.err = r.machine.Heartbeat(jctx, now, e)
	default:
		r.ended(l.event)
		actions, out.err = r.machine.Apply(jctx, now, e)
	}
	s := r.machine.State()
	r.state.Store(&s)
	if l.reply != nil {
		l.reply <- out
	}
	if out.err != nil {
		return out.err
	}
	r.publish(ctx, s, now)
	r.stopWithdrawn(s)
	for _, a := range actions {
		r.start(ctx, a)
	}
	return nil
}

// ended forgets the cancel function of an action whose result came.
func (r *Runner) ended(e haengine.Event) {
	var id haengine.ActionID
	switch e := e.(type) {
	case haengine.Done:
		id = e.ID
	case haengine.Failed:
		id = e.ID
	default:
		return
	}
	if cancel := r.cancels[id]; cancel != nil {
		cancel()
		delete(r.cancels, id)
	}
}

// stopWithdrawn cancels what the core no longer wants.
func (r *Runner) stopWithdrawn(s haengine.State) {
	for id, cancel := range r.cancels {
		p := s.Durable.Pending[id]
		if p == nil {
			p = s.Soft.Pending[id]
		}
		if p == nil || p.Withdrawn {
			cancel()
		}
	}
}

// start performs an action beside the loop; its result comes back as an event.
func (r *Runner) start(ctx context.Context, a haengine.Action) {
	id := a.Head().ID
	actx, cancel := context.WithTimeout(ctx, r.opt.Deadlines[a.Kind()])
	r.cancels[id] = cancel
	r.acting.Go(func() {
		result := r.perform(actx, a)
		if f, is := result.(haengine.Failed); is {
			r.opt.Log.Warn("action failed", "action", a.Kind(), "id", id, "node", a.Head().Node, "app", a.Head().App, "why", f.Why)
		}
		select {
		case r.inbox <- letter{event: result}:
		case <-r.done:
		}
	})
}

// Submit gives an event to the engine and waits until it is journalled.
func (r *Runner) Submit(ctx context.Context, e haengine.Event) error {
	_, err := r.send(ctx, e)
	return err
}

// Heartbeat gives an agent's heartbeat to the engine and waits for its answer,
// which the link sends to the agent. A refused or missing answer lets the
// agent's lease run out.
func (r *Runner) Heartbeat(ctx context.Context, h haengine.Heartbeat) (Lease, error) {
	return r.send(ctx, h)
}

// Command submits an operator's command, or says why it is refused.
func (r *Runner) Command(ctx context.Context, e haengine.Event) error {
	if err := haengine.Refuse(r.Snapshot(), e); err != nil {
		return err
	}
	return r.Submit(ctx, e)
}

func (r *Runner) send(ctx context.Context, e haengine.Event) (Lease, error) {
	l := letter{event: e, reply: make(chan reply, 1)}
	select {
	case r.inbox <- l:
	case <-r.done:
		return Lease{}, ErrStopped
	case <-ctx.Done():
		return Lease{}, ctx.Err()
	}
	select {
	case out := <-l.reply:
		return out.lease, out.err
	case <-r.done:
		return Lease{}, ErrStopped
	case <-ctx.Done():
		return Lease{}, ctx.Err()
	}
}

// Snapshot gives the present state. It is immutable.
func (r *Runner) Snapshot() haengine.State { return *r.state.Load() }

// Done is closed when Run has returned or is about to.
func (r *Runner) Done() <-chan struct{} { return r.done }
