package storage

import (
	"sync/atomic"
	"time"
)

// Statistics of one volume since the exports were opened. The values are read
// one after the other while commands go on, so they may be apart by a command.
type Statistics struct {
	Reads, Writes, Flushes, Discards uint64 // commands, failed ones too
	BytesRead, BytesWritten          uint64
	BytesDiscarded                   uint64
	InFlight                         int64     // commands under way now, over all sessions
	LastWrite, LastFlush             time.Time // of the last one that succeeded
	// How long commands took from the gate of their session to the device's
	// answer: the time on the wire is not in it.
	ReadLatency, WriteLatency, FlushLatency, DiscardLatency Histogram
}

// Rates are the changes of two Statistics by time.
type Rates struct {
	Reads, Writes, Flushes  float64 // commands per second
	BytesRead, BytesWritten float64 // bytes per second
	// Queue is the mean number of commands that were under way (Little's law).
	Queue float64
}

// RatesOf gives the rates between two readings that lie span apart; zero for no
// span, and for counters that began anew in between.
func RatesOf(old, now Statistics, span time.Duration) Rates {
	s := span.Seconds()
	if s <= 0 {
		return Rates{}
	}
	per := func(old, now uint64) float64 {
		if now < old {
			return 0
		}
		return float64(now-old) / s
	}
	busy := now.busy() - old.busy()
	return Rates{
		Reads: per(old.Reads, now.Reads), Writes: per(old.Writes, now.Writes), Flushes: per(old.Flushes, now.Flushes),
		BytesRead: per(old.BytesRead, now.BytesRead), BytesWritten: per(old.BytesWritten, now.BytesWritten),
		Queue: max(0, busy.Seconds()/s),
	}
}

func (s *Statistics) busy() time.Duration {
	return s.ReadLatency.Sum + s.WriteLatency.Sum + s.FlushLatency.Sum + s.DiscardLatency.Sum
}

// counters of one volume. Commands add to them without a lock; the number of
// commands is the sum of its histogram. Times are ticks of the exports' stopwatch.
type counters struct {
	reads, writes, flushes, discards        histogram
	bytesRead, bytesWritten, bytesDiscarded atomic.Uint64
	lastWrite, lastFlush                    atomic.Int64 // 0 for never
}

// stopwatch gives the nanoseconds since it was made, at least 1. Reading it costs
// half of what the time of day costs, and commands read it twice.
type stopwatch struct {
	made time.Time
	now  func() time.Time // nil: the machine's
}

func newStopwatch(now func() time.Time) stopwatch {
	if now == nil {
		return stopwatch{made: time.Now()}
	}
	return stopwatch{now(), now}
}

func (w *stopwatch) ticks() int64 {
	if w.now != nil {
		return max(1, int64(w.now().Sub(w.made)))
	}
	return max(1, int64(time.Since(w.made)))
}

// wall gives the time of day of a tick, as the clock stands now; the zero time
// for 0.
func (w *stopwatch) wall(tick int64) time.Time {
	if tick == 0 {
		return time.Time{}
	}
	now := time.Now
	if w.now != nil {
		now = w.now
	}
	n := now()
	return n.Add(time.Duration(tick) - n.Sub(w.made)).Round(0)
}

// command measures one command. The zero value, of exports without statistics,
// measures nothing.
type command struct {
	c     *counters
	watch *stopwatch
	start int64
}

func (a *Attachment) begin() command {
	if a.stats == nil {
		return command{}
	}
	return command{a.stats, a.watch, a.watch.ticks()}
}

func (m command) read(n int) {
	if m.c != nil {
		m.c.bytesRead.Add(uint64(n))
		m.c.reads.add(time.Duration(m.watch.ticks() - m.start))
	}
}

func (m command) write(n int, at int64, err error) {
	if m.c == nil {
		return
	}
	m.c.bytesWritten.Add(uint64(n))
	m.c.writes.add(time.Duration(at - m.start))
	if err == nil {
		m.c.lastWrite.Store(at)
	}
}

func (m command) flush(err error) {
	if m.c == nil {
		return
	}
	at := m.watch.ticks()
	m.c.flushes.add(time.Duration(at - m.start))
	if err == nil {
		m.c.lastFlush.Store(at)
	}
}

func (m command) discard(n, at int64, err error) {
	if m.c == nil {
		return
	}
	m.c.discards.add(time.Duration(at - m.start))
	if err == nil {
		m.c.bytesDiscarded.Add(uint64(n))
		m.c.lastWrite.Store(at)
	}
}

// Statistics gives the counters of a volume; all zero for an unknown one.
func (e *Exports) Statistics(volume string) Statistics {
	e.mu.Lock()
	v := e.volumes[volume]
	e.mu.Unlock()
	if v == nil {
		return Statistics{}
	}
	c := &v.stats
	s := Statistics{
		BytesRead: c.bytesRead.Load(), BytesWritten: c.bytesWritten.Load(), BytesDiscarded: c.bytesDiscarded.Load(),
		LastWrite: e.watch.wall(c.lastWrite.Load()), LastFlush: e.watch.wall(c.lastFlush.Load()),
	}
	c.reads.load(&s.ReadLatency)
	c.writes.load(&s.WriteLatency)
	c.flushes.load(&s.FlushLatency)
	c.discards.load(&s.DiscardLatency)
	s.Reads, s.Writes = s.ReadLatency.Count(), s.WriteLatency.Count()
	s.Flushes, s.Discards = s.FlushLatency.Count(), s.DiscardLatency.Count()
	v.mu.Lock()
	defer v.mu.Unlock()
	for a := range v.attached {
		s.InFlight += a.gate.inside()
	}
	return s
}
