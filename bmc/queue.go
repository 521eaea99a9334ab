package bmc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"hotspare"
)

// Command is what a Queue may be asked to do. There is no cycle and no reset.
type Command uint8

// The commands.
const (
	CommandOff Command = iota + 1
	CommandOn
	CommandNextBootPXE
	CommandNextBootPXEUEFI  // the same, of a machine whose firmware is known to be UEFI
	CommandNetworkFirst     // every boot from the network
	CommandNetworkFirstUEFI // the same, of a machine whose firmware is known to be UEFI
)

// String gives the word for logs.
func (c Command) String() string {
	switch c {
	case CommandOff:
		return "power off"
	case CommandOn:
		return "power on"
	case CommandNextBootPXE:
		return "next boot pxe"
	case CommandNextBootPXEUEFI:
		return "next boot pxe, uefi"
	case CommandNetworkFirst:
		return "every boot pxe"
	case CommandNetworkFirstUEFI:
		return "every boot pxe, uefi"
	default:
		return fmt.Sprintf("command %d", uint8(c))
	}
}

// QueueOptions describe one BMC.
type QueueOptions struct {
	// Name stands in errors and logs, e.g. "node-2 (10.78.0.12:623)".
	Name string
	// Timeout bounds one driver call. Default 20 s.
	Timeout time.Duration
	// Settle is the longest time that may pass between a command sent to this
	// BMC and its last effect, also when its answer was lost: the node is not
	// released, and an Off read does not count, before it has passed. It counts
	// from the creation of the queue too, because an earlier process may have
	// sent commands just before it died. Default 15 s.
	Settle time.Duration
	// Log receives commands and their outcome. Nil discards.
	Log *slog.Logger
}

func (o QueueOptions) withDefaults() QueueOptions {
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 15 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Queue is the one way to a BMC. It sends one command at a time, in the order
// in which they were asked for, and refuses those of an owner or epoch that has
// been superseded, also when they were already waiting (a BMC cannot refuse a
// stale command, so nothing stale may be sent). All methods may be called
// concurrently.
type Queue struct {
	driver Driver
	opts   QueueOptions
	turn   chan struct{} // holds one token; whoever has it talks to the BMC
	flight sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change of the below
	closed  bool
	right   Right // whose commands are taken; zero Owner: free
	waiting int   // commands that wait or are in flight
	reads   int   // driver calls for reading that wait or are in flight
	shared  *sharedRead

	lastSent time.Time // end of the last command, or creation
	ons      uint64    // commands "on" ever sent
	onUntil  time.Time // until then an "on" may still take effect by itself
	onClean  bool      // that "on" was the only one, accepted, on a machine read off
	last     Reading   // the last state read since the last command
}

type sharedRead struct {
	done    chan struct{}
	reading Reading
	err     error
}

// NewQueue takes over the driver; Close closes it.
func NewQueue(d Driver, opts QueueOptions) *Queue {
	opts = opts.withDefaults()
	now := time.Now()
	return &Queue{
		driver:   d,
		opts:     opts,
		turn:     make(chan struct{}, 1),
		changed:  make(chan struct{}),
		lastSent: now,
		onUntil:  now.Add(opts.Settle),
	}
}

// Name gives the name of the BMC for texts.
func (q *Queue) Name() string { return q.opts.Name }

// Raise makes r the right whose commands are taken. Commands of the same owner
// with a lower epoch are refused from now on, also those that wait. It fails
// with ErrStaleEpoch when the queue has a higher epoch of that owner already,
// or belongs to another owner: the other must Release it first.
func (q *Queue) Raise(r Right) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.raiseLocked(r)
}

func (q *Queue) raiseLocked(r Right) error {
	if q.closed {
		return q.closedError()
	}
	if err := q.admitLocked(r); err != nil {
		return err
	}
	if q.right != r {
		q.right = r
		q.signalLocked()
	}
	return nil
}

// admitLocked says whether a command of r may be sent now.
func (q *Queue) admitLocked(r Right) error {
	var why, fix string
	switch {
	case r.Owner == "":
		why = "the command names no owner"
		fix = "this is a fault of the product; report it"
	case q.right.Owner != "" && q.right.Owner != r.Owner:
		why = fmt.Sprintf("it comes from %q, but the node belongs to %q (epoch %d)", r.Owner, q.right.Owner, q.right.Epoch)
		fix = "release the node first"
	case q.right.Owner == r.Owner && r.Epoch < q.right.Epoch:
		why = fmt.Sprintf("it carries epoch %d of %q, which was superseded by epoch %d", r.Epoch, r.Owner, q.right.Epoch)
		fix = "none needed: a newer decision is in force"
	default:
		return nil
	}
	return &hotspare.Error{Code: hotspare.CodeStaleEpoch, What: "a stale BMC command was not sent", Where: q.opts.Name, Why: why, Fix: fix}
}

// Do sends one command in the name of r and returns what the BMC answered. Nil
// means accepted, never done: see Off and On. It raises the queue to r when r
// is newer, and fails with ErrStaleEpoch when r is or becomes stale before the
// command's turn. A command whose context ends while it is in flight may still
// take effect.
func (q *Queue) Do(ctx context.Context, r Right, c Command) error {
	send, err := q.sender(c)
	if err != nil {
		return err
	}
	q.mu.Lock()
	if err := q.raiseLocked(r); err != nil {
		q.mu.Unlock()
		return err
	}
	q.waiting++
	q.flight.Add(1)
	q.signalLocked()
	q.mu.Unlock()
	defer q.flight.Done()
	defer q.update(func() { q.waiting-- })

	if err := q.take(ctx); err != nil {
		return err
	}
	defer q.give()
	clean, err := q.begin(r, c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, q.opts.Timeout)
	defer cancel()
	start := time.Now()
	err = send(ctx)
	q.ended(c, clean && err == nil)
	q.opts.Log.Info("bmc command", "bmc", q.opts.Name, "command", c.String(), "owner", r.Owner,
		"epoch", r.Epoch, "took", time.Since(start), "err", err)
	return err
}

func (q *Queue) sender(c Command) (func(context.Context) error, error) {
	switch c {
	case CommandOff:
		return q.driver.PowerOff, nil
	case CommandOn:
		return q.driver.PowerOn, nil
	case CommandNextBootPXE, CommandNextBootPXEUEFI:
		return func(ctx context.Context) error { return q.driver.SetNextBootPXE(ctx, c == CommandNextBootPXEUEFI) }, nil
	case CommandNetworkFirst, CommandNetworkFirstUEFI:
		return func(ctx context.Context) error { return q.driver.SetNetworkFirst(ctx, c == CommandNetworkFirstUEFI) }, nil
	default:
		return nil, &hotspare.Error{Code: hotspare.CodeInternal, What: "unknown BMC command", Where: q.opts.Name, Why: c.String()}
	}
}

// begin is called with the turn in hand, just before the command goes out. The
// right is checked again: it may have been superseded while the command waited.
func (q *Queue) begin(r Right, c Command) (clean bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.admitLocked(r); err != nil {
		return false, err
	}
	if c == CommandOn {
		now := time.Now()
		clean = !now.Before(q.onUntil) && q.last.State == PowerOff
		q.ons++
		q.onClean = false
		// The bound is set before the command goes out, with the longest time
		// the call may take, so that a crash of the call leaves it in force.
		q.onUntil = now.Add(q.opts.Timeout + q.opts.Settle)
	}
	return clean, nil
}

func (q *Queue) ended(c Command, clean bool) {
	q.update(func() {
		q.lastSent = time.Now()
		if c == CommandOn {
			q.onUntil = q.lastSent.Add(q.opts.Settle)
			q.onClean = clean
		}
		if c == CommandOff || c == CommandOn { // a boot order leaves the power alone
			q.last = Reading{}
		}
	})
}

// PowerState reads the state. Callers that ask while a read is under way share
// it; Reading.At tells when that one began. The error is nil when the BMC
// answered, even if it answered nonsense (PowerUnknown).
func (q *Queue) PowerState(ctx context.Context) (Reading, error) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return Reading{}, q.closedError()
	}
	s := q.shared
	if s == nil {
		s = &sharedRead{done: make(chan struct{})}
		q.shared = s
		q.flight.Add(1)
		// The read outlives the caller that began it: others may wait for it.
		go q.readShared(context.WithoutCancel(ctx), s)
	}
	q.mu.Unlock()
	select {
	case <-s.done:
		return s.reading, s.err
	case <-ctx.Done():
		return Reading{At: time.Now(), Err: ctx.Err().Error()}, q.interrupted(ctx)
	}
}

func (q *Queue) readShared(ctx context.Context, s *sharedRead) {
	defer q.flight.Done()
	s.reading, s.err = q.read(ctx)
	q.mu.Lock()
	q.shared = nil
	q.mu.Unlock()
	close(s.done)
}

// fresh reads with a question that is put after the call of fresh: the only
// kind of read that evidence is made of.
func (q *Queue) fresh(ctx context.Context) (Reading, error) {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return Reading{}, q.closedError()
	}
	q.flight.Add(1)
	q.mu.Unlock()
	defer q.flight.Done()
	return q.read(ctx)
}

func (q *Queue) read(ctx context.Context) (Reading, error) {
	q.update(func() { q.reads++ })
	defer q.update(func() { q.reads-- })
	if err := q.take(ctx); err != nil {
		return Reading{At: time.Now(), Err: err.Error()}, err
	}
	defer q.give()
	ctx, cancel := context.WithTimeout(ctx, q.opts.Timeout)
	defer cancel()
	r := Reading{At: time.Now()}
	state, err := q.driver.PowerState(ctx)
	r.Took = time.Since(r.At)
	if err != nil {
		r.Err = err.Error()
		return r, err
	}
	r.State = state
	q.update(func() {
		q.last = r
		if state == PowerOn && q.onClean {
			// Off was read, one "on" was sent and accepted, on is read: that
			// command has had its effect and will have no other.
			q.onUntil, q.onClean = time.Time{}, false
		}
	})
	return r, nil
}

// SystemUUID asks the BMC which machine it belongs to.
func (q *Queue) SystemUUID(ctx context.Context) (string, error) {
	var uuid string
	err := q.Exclusive(ctx, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, q.opts.Timeout)
		defer cancel()
		uuid, err = q.driver.SystemUUID(ctx)
		return err
	})
	return uuid, err
}

// BootOrder asks the BMC what it has been asked to boot from.
func (q *Queue) BootOrder(ctx context.Context) (BootOrder, error) {
	var order BootOrder
	err := q.Exclusive(ctx, func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, q.opts.Timeout)
		defer cancel()
		order, err = q.driver.BootOrder(ctx)
		return err
	})
	return order, err
}

// Exclusive runs f while nothing else talks to the BMC, for a Probe of a BMC
// that has a queue. f must not use the queue.
func (q *Queue) Exclusive(ctx context.Context, f func(context.Context) error) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return q.closedError()
	}
	q.flight.Add(1)
	q.mu.Unlock()
	defer q.flight.Done()
	if err := q.take(ctx); err != nil {
		return err
	}
	defer q.give()
	return f(ctx)
}

// Close takes no more work, waits for what is in flight or until ctx ends, and
// closes the driver.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil
	}
	q.closed = true
	q.signalLocked()
	q.mu.Unlock()
	done := make(chan struct{})
	go func() { q.flight.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	return q.driver.Close(ctx)
}

// take waits for the turn. Waiters are served in the order of their coming
// (the runtime queues senders on a channel).
func (q *Queue) take(ctx context.Context) error {
	select {
	case q.turn <- struct{}{}:
		if ctx.Err() != nil { // both were ready: the end of the caller wins
			<-q.turn
			return q.interrupted(ctx)
		}
		return nil
	case <-ctx.Done():
		return q.interrupted(ctx)
	}
}

func (q *Queue) give() { <-q.turn }

func (q *Queue) update(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
	q.signalLocked()
}

func (q *Queue) signalLocked() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *Queue) closedError() error {
	return fmt.Errorf("bmc queue of %s: %w", q.opts.Name, errClosed)
}

var errClosed = errors.New("closed")

// interrupted gives the error of a wait that the caller's context ended: it
// says nothing about the machine.
func (q *Queue) interrupted(ctx context.Context) error {
	return fmt.Errorf("bmc queue of %s: %w", q.opts.Name, context.Cause(ctx))
}
