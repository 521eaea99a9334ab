package fence

import (
	"context"
	"sync"
	"time"
)

// Lease is the lease of the one application that the node carries. The zero
// value holds none.
type Lease struct {
	mu      sync.Mutex
	app     string
	epoch   uint64
	end     time.Duration
	granted bool
	begun   bool
	changed chan struct{}
}

// Begin opens the term of a claim. Until the first grant the lease is not held,
// and the term ends at end: a claim that gets no lease is given up then.
func (l *Lease) Begin(app string, epoch uint64, end time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.app, l.epoch, l.end, l.granted, l.begun = app, epoch, end, false, true
	l.wake()
}

// Stop ends the term in good order: nothing is carried any more.
func (l *Lease) Stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun, l.granted = false, false
	l.wake()
}

// Grant renews the lease for app and epoch from sent, the moment at which the
// acknowledged heartbeat was sent. A grant for another term is ignored; an
// answer that comes late never shortens the lease.
func (l *Lease) Grant(app string, epoch uint64, sent, duration time.Duration) (end time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun || app != l.app || epoch != l.epoch || duration <= 0 {
		return 0, false
	}
	end = sent + duration
	if l.granted {
		end = max(end, l.end)
	}
	l.end, l.granted = end, true
	l.wake()
	return end, true
}

// Held says whether the lease is held at now, and for how much longer.
func (l *Lease) Held(now time.Duration) (left time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun || !l.granted || now >= l.end {
		return 0, false
	}
	return l.end - now, true
}

// Wait returns nil when the lease is held, or an error when ctx is done.
func (l *Lease) Wait(ctx context.Context, now func() time.Duration) error {
	for {
		changed := l.changes()
		if _, ok := l.Held(now()); ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Watch returns true when the term has ended without Stop: the drop is due. It
// returns false when ctx is done. It follows now, not Go's timers, which only
// wake it.
func (l *Lease) Watch(ctx context.Context, now func() time.Duration) bool {
	for {
		changed := l.changes()
		l.mu.Lock()
		begun, left := l.begun, l.end-now()
		l.mu.Unlock()
		if begun && left <= 0 {
			return true
		}
		var timer <-chan time.Time
		if begun {
			// At most a second: the boot clock runs on while a Go timer's
			// clock may stand (suspend).
			timer = time.After(min(left, time.Second))
		}
		select {
		case <-changed:
		case <-timer:
		case <-ctx.Done():
			return false
		}
	}
}

func (l *Lease) changes() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// wake tells the waiters; the lock is held.
func (l *Lease) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}
