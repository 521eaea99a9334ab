package storage

import (
	"context"
	"time"
)

// Pace keeps work in the background (scrub, export, copy) below a rate, so that
// it leaves the disk to those who wait for it. The zero value does not hold up
// anybody. It belongs to one goroutine.
type Pace struct {
	BytesPerSecond int64 // 0: no limit
	due            time.Time
}

// Wait accounts for n bytes and waits until they are within the rate. What was
// not used is lost after a tenth of a second: there are no bursts.
func (p *Pace) Wait(ctx context.Context, n int64) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if p.BytesPerSecond <= 0 {
		return nil
	}
	now := time.Now()
	if least := now.Add(-100 * time.Millisecond); p.due.Before(least) {
		p.due = least
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.BytesPerSecond) * float64(time.Second)))
	ahead := p.due.Sub(now)
	if ahead <= 0 {
		return nil
	}
	t := time.NewTimer(ahead)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
