package runner

import (
	"context"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/haengine"
)

// watchers' channels hold this many changes before their reader counts as lost.
const watchBuffer = 256

// Subscribe gives every change from now on. The channel is closed when ctx ends,
// when the runner ends, or when the reader falls too far behind: it then reads
// Snapshot and subscribes anew.
func (r *Runner) Subscribe(ctx context.Context) <-chan Change {
	ch := make(chan Change, watchBuffer)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.subs == nil { // ended
		close(ch)
		return ch
	}
	r.subs[ch] = struct{}{}
	context.AfterFunc(ctx, func() { r.unsubscribe(ch) })
	return ch
}

func (r *Runner) unsubscribe(ch chan Change) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.subs[ch]; ok {
		delete(r.subs, ch)
		close(ch)
	}
}

func (r *Runner) closeSubs() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ch := range r.subs {
		close(ch)
	}
	r.subs = nil
}

// publish tells watchers, log and observer what a step changed.
func (r *Runner) publish(ctx context.Context, s haengine.State, now haengine.Stamp) {
	d := s.Delta()
	if d.IsEmpty() {
		return
	}
	r.seq++
	c := Change{
		Seq: r.seq, Stamp: now, Apps: slices.Sorted(maps.Keys(d.Apps)), Nodes: slices.Sorted(maps.Keys(d.Nodes)),
		Failovers: slices.Sorted(maps.Keys(d.Failovers)), Entries: d.Entries,
	}
	for _, e := range d.Entries {
		r.opt.Log.Info(e.Text, "app", e.App, "node", e.Node, "epoch", e.Epoch, "failover", e.Failover)
	}
	if r.opt.Observe != nil {
		r.opt.Observe(ctx, c)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for ch := range r.subs {
		select {
		case ch <- c:
		default:
			delete(r.subs, ch)
			close(ch)
		}
	}
}

// hostClock reads CLOCK_BOOTTIME, which goes on while the host is suspended: a
// lease that ran out meanwhile has run out.
type hostClock struct{ every time.Duration }

// NewClock gives the host's clocks with a tick of the given period.
func NewClock(every time.Duration) Clock { return hostClock{every} }

func (hostClock) Now() haengine.Instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("CLOCK_BOOTTIME cannot be read: " + err.Error()) // Linux has had it since 2.6.39
	}
	return haengine.Instant(ts.Nano())
}

func (hostClock) Wall() time.Time { return time.Now() }

func (c hostClock) Tick() (<-chan time.Time, func()) {
	t := time.NewTicker(c.every)
	return t.C, t.Stop
}
