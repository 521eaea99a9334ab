package bmc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hotspare"
)

// OffOptions say how hard Off tries.
type OffOptions struct {
	// Interval is the least time between the two reads that prove, and between
	// any two reads. It must be longer than the BMC may repeat an old state
	// after the machine was switched by hand. Default 1 s.
	Interval time.Duration
	// Deadline bounds the whole. Default 60 s.
	Deadline time.Duration
	// Resend is how long a machine may stay on (or in transition) before the
	// command is given again. Default 5 s.
	Resend time.Duration
	// ExpectUUID, if set, is compared with the UUID that the BMC gives, before
	// any command: a BMC that belongs to another machine is never commanded and
	// never believed.
	ExpectUUID string
}

func (o OffOptions) withDefaults() OffOptions {
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.Deadline == 0 {
		o.Deadline = time.Minute
	}
	if o.Resend == 0 {
		o.Resend = 5 * time.Second
	}
	return o
}

// Sent is one command that Off or On gave.
type Sent struct {
	Command string        `json:"command"`
	At      time.Time     `json:"at"`
	Took    time.Duration `json:"took"`
	Err     string        `json:"error,omitempty"`
}

// OffEvidence is the record of an attempt to prove that a machine is off. It
// is evidence only if Proven: then the last two of Reads said off, Interval
// apart, with no command "on" in between and none before that could still take
// effect.
type OffEvidence struct {
	BMC    string    `json:"bmc"`
	Right  Right     `json:"right"`
	Proven bool      `json:"proven"`
	UUID   string    `json:"uuid,omitempty"` // read through the BMC, if it was to be compared
	Sent   []Sent    `json:"sent,omitempty"` // empty: it was off already
	Reads  []Reading `json:"reads"`
	At     time.Time `json:"at"` // of the last read
}

// Off proves that the machine is off: it reads first (off already counts),
// commands off while the machine is not off, and returns a nil error only when
// off was read twice in a row, at least Interval apart. An accepted command, a
// refusal, a time-out, a state in transition or a silent BMC prove nothing; the
// result then is ErrUnproven around the last cause, with everything that was
// seen in the record. Errors that waiting cannot mend (Permanent) end it early.
func Off(ctx context.Context, q *Queue, r Right, opts OffOptions) (OffEvidence, error) {
	o := &offRun{q: q, opts: opts.withDefaults()}
	o.ev = OffEvidence{BMC: q.Name(), Right: r}
	ctx, cancel := context.WithTimeout(ctx, o.opts.Deadline)
	defer cancel()
	if err := q.Raise(r); err != nil {
		return o.ev, o.unproven(err)
	}
	if err := o.identify(ctx); err != nil {
		return o.ev, o.unproven(err)
	}
	for {
		done, err := o.step(ctx)
		if done {
			return o.ev, nil
		}
		if err != nil && (Permanent(err) || errors.Is(err, errClosed)) {
			return o.ev, o.unproven(err)
		}
		o.cause = telling(o.cause, err)
		if err := pause(ctx, o.opts.Interval); err != nil {
			return o.ev, o.unproven(err)
		}
	}
}

type offRun struct {
	q     *Queue
	opts  OffOptions
	ev    OffEvidence
	cause error

	first    time.Time // start of the first off read of the present row
	firstOns uint64    // commands "on" sent until then
	sentAt   time.Time
}

func (o *offRun) identify(ctx context.Context) error {
	if o.opts.ExpectUUID == "" {
		return nil
	}
	for {
		uuid, err := o.q.SystemUUID(ctx)
		switch {
		case err == nil:
			o.ev.UUID = uuid
			if !SameUUID(uuid, o.opts.ExpectUUID) {
				return wrongNode(o.q.Name(), uuid, o.opts.ExpectUUID)
			}
			return nil
		case Permanent(err), errors.Is(err, errClosed):
			return err
		}
		o.cause = telling(o.cause, err)
		if err := pause(ctx, o.opts.Interval); err != nil {
			return err
		}
	}
}

func wrongNode(where, got, want string) error {
	return NewError(hotspare.CodeBMCWrongNode, where, fmt.Sprintf("it reports machine %s, expected %s", got, want), nil)
}

// step reads once and does what follows from it.
func (o *offRun) step(ctx context.Context) (done bool, err error) {
	ons, settled := o.q.onState()
	reading, err := o.q.fresh(ctx)
	o.ev.Reads = append(o.ev.Reads, reading)
	o.ev.At = reading.At
	if err != nil {
		o.first = time.Time{}
		return false, err
	}
	if reading.State == PowerOff {
		return o.sawOff(reading, ons, settled)
	}
	o.first = time.Time{}
	if reading.State == PowerUnknown {
		o.cause = NewError(hotspare.CodeBMCRefused, o.q.Name(), "the power state is neither on nor off", nil)
	} else {
		o.cause = NewError(hotspare.CodeBMCRefused, o.q.Name(), "the machine still reads as on", nil)
	}
	if !o.sentAt.IsZero() && time.Since(o.sentAt) < o.opts.Resend {
		return false, nil
	}
	return false, o.command(ctx)
}

// sawOff counts an off read. It begins the row, or ends it with the proof.
func (o *offRun) sawOff(reading Reading, ons uint64, settled time.Time) (bool, error) {
	if reading.At.Before(settled) {
		// An earlier "on" may still take effect: off now proves nothing yet.
		o.first = time.Time{}
		o.cause = NewError(hotspare.CodeBMCRefused, o.q.Name(),
			"it reads as off, but an earlier power-on may still take effect", nil)
		return false, nil
	}
	if o.first.IsZero() {
		o.first, o.firstOns = reading.At, ons
		return false, nil
	}
	if reading.At.Sub(o.first) < o.opts.Interval {
		return false, nil
	}
	// Last look: neither a command "on" nor a newer right came during the read.
	if err := o.q.confirmOff(o.ev.Right, o.firstOns); err != nil {
		o.first = time.Time{}
		return false, err
	}
	o.ev.Proven = true
	return true, nil
}

func (o *offRun) command(ctx context.Context) error {
	o.sentAt = time.Now()
	err := o.q.Do(ctx, o.ev.Right, CommandOff)
	sent := Sent{Command: CommandOff.String(), At: o.sentAt, Took: time.Since(o.sentAt)}
	if err != nil {
		sent.Err = err.Error()
	}
	o.ev.Sent = append(o.ev.Sent, sent)
	if err != nil && !Permanent(err) && !errors.Is(err, errClosed) {
		// A refusal may mean "is off already" (Redfish 409) or "busy": what the
		// next read says decides.
		o.cause = telling(o.cause, err)
		return nil
	}
	return err
}

// telling keeps the error that says more: that the time was up in the middle of
// the last call is no cause.
func telling(cause, err error) error {
	if err == nil || cause != nil && hotspare.CodeOf(err) == "" {
		return cause
	}
	return err
}

func (o *offRun) unproven(err error) error {
	if errors.Is(err, ErrStaleEpoch) {
		return err
	}
	if o.cause != nil && errors.Is(err, context.DeadlineExceeded) {
		err = o.cause
	}
	return &hotspare.Error{
		Code: hotspare.CodeFenceUnproven, What: "the machine is not proven to be off", Where: o.ev.BMC,
		Why: fmt.Sprintf("%d reads and %d commands, never off twice in a row", len(o.ev.Reads), len(o.ev.Sent)),
		Fix: "mend the BMC, or look at the machine and confirm by hand that it is off",
		Err: err,
	}
}

// onState gives how many commands "on" were ever sent and until when one may
// still take effect.
func (q *Queue) onState() (ons uint64, settled time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ons, q.onUntil
}

func (q *Queue) confirmOff(r Right, ons uint64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.admitLocked(r); err != nil {
		return err
	}
	if q.ons != ons {
		return NewError(hotspare.CodeBMCRefused, q.opts.Name, "a power-on was sent while off was being proven", nil)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
