package bmc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hotspare"
)

// OnOptions say how On switches on.
type OnOptions struct {
	// PXE asks for a network boot, once, before the power.
	PXE bool
	// Interval between two reads. Default 1 s.
	Interval time.Duration
	// Deadline bounds the whole. Default 60 s.
	Deadline time.Duration
	// Resend is how long a machine may stay off before the command is given
	// again. Default 10 s.
	Resend time.Duration
	// ExpectUUID: see OffOptions.
	ExpectUUID string
}

func (o OnOptions) withDefaults() OnOptions {
	if o.Interval == 0 {
		o.Interval = time.Second
	}
	if o.Deadline == 0 {
		o.Deadline = time.Minute
	}
	if o.Resend == 0 {
		o.Resend = 10 * time.Second
	}
	return o
}

// OnResult is the record of On.
type OnResult struct {
	BMC   string `json:"bmc"`
	Right Right  `json:"right"`
	// WasOn says that the machine was on at the first read. Then nothing was
	// sent, neither the boot device nor the power: a replayed start must not
	// reboot a machine that runs already. The caller looks at its boot id.
	WasOn bool      `json:"wasOn"`
	UUID  string    `json:"uuid,omitempty"`
	Sent  []Sent    `json:"sent,omitempty"`
	Reads []Reading `json:"reads"`
}

// On switches the machine on and reads that it is on. It reads first and does
// nothing to a machine that is on. Errors are those of the last attempt when
// the deadline passes; Permanent ones end it early.
func On(ctx context.Context, q *Queue, r Right, opts OnOptions) (OnResult, error) {
	o := &onRun{q: q, opts: opts.withDefaults(), res: OnResult{BMC: q.Name(), Right: r}}
	ctx, cancel := context.WithTimeout(ctx, o.opts.Deadline)
	defer cancel()
	if err := q.Raise(r); err != nil {
		return o.res, err
	}
	if o.opts.ExpectUUID != "" {
		id := &offRun{q: q, opts: OffOptions{Interval: o.opts.Interval, ExpectUUID: o.opts.ExpectUUID}}
		if err := id.identify(ctx); err != nil {
			return o.res, o.ended(err, id.cause)
		}
		o.res.UUID = id.ev.UUID
	}
	for {
		reading, err := q.fresh(ctx)
		o.res.Reads = append(o.res.Reads, reading)
		if err == nil && reading.State == PowerOn {
			o.res.WasOn = len(o.res.Sent) == 0
			return o.res, nil
		}
		if err == nil && reading.State == PowerOff {
			err = o.start(ctx)
		}
		if err != nil {
			if Permanent(err) || errors.Is(err, errClosed) {
				return o.res, err
			}
			o.cause = telling(o.cause, err)
		}
		if err := pause(ctx, o.opts.Interval); err != nil {
			return o.res, o.ended(err, o.cause)
		}
	}
}

type onRun struct {
	q      *Queue
	opts   OnOptions
	res    OnResult
	cause  error
	sentAt time.Time
}

// start gives the commands to a machine that reads as off.
func (o *onRun) start(ctx context.Context) error {
	if !o.sentAt.IsZero() && time.Since(o.sentAt) < o.opts.Resend {
		return nil
	}
	if o.opts.PXE {
		if err := o.send(ctx, CommandNextBootPXE); err != nil {
			return err
		}
	}
	o.sentAt = time.Now()
	return o.send(ctx, CommandOn)
}

func (o *onRun) send(ctx context.Context, c Command) error {
	at := time.Now()
	err := o.q.Do(ctx, o.res.Right, c)
	sent := Sent{Command: c.String(), At: at, Took: time.Since(at)}
	if err != nil {
		sent.Err = err.Error()
	}
	o.res.Sent = append(o.res.Sent, sent)
	return err
}

func (o *onRun) ended(err, cause error) error {
	if cause == nil || !errors.Is(err, context.DeadlineExceeded) {
		cause = err
	}
	if hotspare.CodeOf(cause) != "" {
		return cause
	}
	return NewError(hotspare.CodeBMCRefused, o.res.BMC,
		fmt.Sprintf("the machine did not read as on within %s", o.opts.Deadline), cause)
}
