package bmc

import (
	"context"
	"time"
)

// Status is a look at a Queue, for people and for decisions to release.
type Status struct {
	Right   Right         `json:"right"`   // zero: free
	Waiting int           `json:"waiting"` // commands that wait or are in flight
	Reading int           `json:"reading"` // reads that wait or are in flight
	Drained bool          `json:"drained"` // nothing waits and Settle has passed
	Settles time.Duration `json:"settles"` // how long until it is drained, if nothing waits
}

// Status gives the state of the queue now.
func (q *Queue) Status() Status {
	q.mu.Lock()
	defer q.mu.Unlock()
	left := max(0, time.Until(q.lastSent.Add(q.opts.Settle)))
	return Status{Right: q.right, Waiting: q.waiting, Reading: q.reads,
		Drained: q.waiting == 0 && left == 0, Settles: left}
}

// Drained says that no command waits or is in flight and that the longest
// possible delay of the last one has passed.
func (q *Queue) Drained() bool { return q.Status().Drained }

// WaitDrained returns when the queue is drained, or with the context's end.
func (q *Queue) WaitDrained(ctx context.Context) error {
	return q.waitDrained(ctx, func() error { return nil })
}

func (q *Queue) waitDrained(ctx context.Context, then func() error) error {
	for {
		q.mu.Lock()
		changed := q.changed
		left := time.Until(q.lastSent.Add(q.opts.Settle))
		if q.waiting == 0 && left <= 0 {
			defer q.mu.Unlock()
			return then()
		}
		idle := q.waiting == 0
		q.mu.Unlock()
		if !idle {
			left = time.Hour // only a change can end this wait
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
			timer.Stop()
			return q.interrupted(ctx)
		}
		timer.Stop()
	}
}

// Release waits until the queue is drained and then frees it for another
// owner. It fails with ErrStaleEpoch when r is no longer the right in force. A
// free queue takes the commands of whoever comes first.
func (q *Queue) Release(ctx context.Context, r Right) error {
	return q.waitDrained(ctx, func() error {
		if err := q.admitLocked(r); err != nil {
			return err
		}
		q.right = Right{}
		q.signalLocked()
		return nil
	})
}
