package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// lifecycle stops what was started, last first. Every part registers its stop
// right after it was created; when a later part cannot be created, the same
// path takes the earlier ones down.
type lifecycle struct {
	log *slog.Logger

	mu    sync.Mutex
	stops []stop

	background sync.WaitGroup
	failed     chan error
}

type stop struct {
	name string
	fn   func(context.Context) error
}

func newLifecycle(log *slog.Logger) *lifecycle {
	return &lifecycle{log: log, failed: make(chan error, 1)}
}

// onStop registers fn to run when the appliance stops.
func (l *lifecycle) onStop(name string, fn func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stops = append(l.stops, stop{name, fn})
}

// run starts fn in the background and registers its end: the context given to
// fn is cancelled and its return is awaited. A return with an error before that
// ends the whole appliance.
func (l *lifecycle) run(name string, fn func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	l.background.Go(func() {
		defer close(done)
		err := fn(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		select {
		case l.failed <- fmt.Errorf("%s: %w", name, err):
		default:
		}
	})
	l.onStop(name, func(stopCtx context.Context) error {
		cancel(errors.New("the appliance stops"))
		select {
		case <-done:
			return nil
		case <-stopCtx.Done():
			return context.Cause(stopCtx)
		}
	})
}

// errSlow ends the wait for a part that does not stop in time.
var errSlow = errors.New("the part did not stop in time")

// stop takes everything down, last first, within bound for each part. It may be
// called once. A part that hangs is left behind with a warning: the agents'
// leases run while the appliance is down.
func (l *lifecycle) stop(bound time.Duration) error {
	l.mu.Lock()
	stops := l.stops
	l.stops = nil
	l.mu.Unlock()
	var errs []error
	for i := len(stops) - 1; i >= 0; i-- {
		ctx, cancel := context.WithTimeoutCause(context.Background(), bound, errSlow)
		err := stops[i].fn(ctx)
		cancel()
		switch {
		case errors.Is(err, errSlow), errors.Is(err, context.DeadlineExceeded):
			// It hangs on something outside, such as a dead BMC. Nothing is lost
			// by leaving it: what it orders is journalled and ordered again.
			l.log.Warn("a part was left behind", "part", stops[i].name, "after", bound)
		case err != nil:
			errs = append(errs, fmt.Errorf("stop %s: %w", stops[i].name, err))
		default:
			l.log.Debug("stopped", "part", stops[i].name)
		}
	}
	return errors.Join(errs...)
}
