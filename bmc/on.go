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
	// Network says for which starts a network boot is asked for before the power.
	// NetworkEvery is for machines whose disk holds something that their firmware
	// must not start by itself (SAFETY S2a): the order is set, read back, and only
	// then the power goes on. Never give NetworkOnce for such a machine.
	Network NetworkBoot
	// UEFI says that the machine's firmware is known to be UEFI, so that a UEFI
	// start is asked for, and NetworkEvery takes no legacy one for it.
	UEFI bool
	// ReadBack is how long a BMC may take to show the order that it took. Default
	// 10 s.
	ReadBack time.Duration
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
	if o.ReadBack == 0 {
		o.ReadBack = 10 * time.Second
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
	// Order is the boot order that was read last, with NetworkEvery only.
	Order *BootOrder `json:"order,omitempty"`
}

// On switches the machine on and reads that it is on. It reads first and does
// nothing to a machine that is on. Errors are those of the last attempt when
// the deadline passes; Permanent ones end it early, among them ErrBootOrder: a
// machine whose boot order is not as asked stays off.
func On(ctx context.Context, q *Queue, r Right, opts OnOptions) (OnResult, error) {
	o := &onRun{q: q, opts: opts.withDefaults(), res: OnResult{BMC: q.Name(), Right: r}}
	ctx, cancel := context.WithTimeout(ctx, o.opts.Deadline)
	defer cancel()
	if err := o.begin(ctx); err != nil {
		return o.res, err
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
			return o.res, o.ended(err, fmt.Sprintf("the machine did not read as on within %s", o.opts.Deadline))
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

// begin makes the right count and the machine known.
func (o *onRun) begin(ctx context.Context) error {
	if err := o.q.Raise(o.res.Right); err != nil {
		return err
	}
	if o.opts.ExpectUUID == "" {
		return nil
	}
	id := &offRun{q: o.q, opts: OffOptions{Interval: o.opts.Interval, ExpectUUID: o.opts.ExpectUUID}}
	if err := id.identify(ctx); err != nil {
		o.cause = id.cause
		return o.ended(err, "the machine's UUID was not read")
	}
	o.res.UUID = id.ev.UUID
	return nil
}

// start gives the commands to a machine that reads as off.
func (o *onRun) start(ctx context.Context) error {
	if !o.sentAt.IsZero() && time.Since(o.sentAt) < o.opts.Resend {
		return nil
	}
	var err error
	switch o.opts.Network {
	case NetworkOnce:
		c := CommandNextBootPXE
		if o.opts.UEFI {
			c = CommandNextBootPXEUEFI
		}
		err = o.send(ctx, c)
	case NetworkEvery:
		err = o.setOrder(ctx)
	default:
	}
	if err != nil {
		return err
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

// ended gives the error of a run whose time was up: the last cause where there is
// one, else why.
func (o *onRun) ended(err error, why string) error {
	cause := o.cause
	if cause == nil || !errors.Is(err, context.DeadlineExceeded) {
		cause = err
	}
	if hotspare.CodeOf(cause) != "" {
		return cause
	}
	return NewError(hotspare.CodeBMCRefused, o.res.BMC, why, cause)
}
