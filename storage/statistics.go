package storage

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets is the number of latency buckets: bucket i counts commands that took
// less than 2^i microseconds and at least half of that; the last one takes all
// that is longer.
const Buckets = 24

// Statistics of one volume since the exports were opened.
type Statistics struct {
	Reads, Writes, Flushes, Discards uint64
	BytesRead, BytesWritten          uint64
	InFlight                         int64 // commands under way now
	LastWrite, LastFlush             time.Time
	Latency                          [Buckets]uint64
}

type counters struct {
	reads, writes, flushes, discards atomic.Uint64
	bytesRead, bytesWritten          atomic.Uint64
	inFlight                         atomic.Int64
	lastWrite, lastFlush             atomic.Int64
	latency                          [Buckets]atomic.Uint64
}

// command measures one command.
type command struct {
	c     *counters
	start time.Time
}

func (c *counters) begin() command {
	c.inFlight.Add(1)
	return command{c, time.Now()}
}

func (m command) end() {
	us := uint64(time.Since(m.start).Microseconds())
	m.c.latency[min(bits.Len64(us), Buckets-1)].Add(1)
	m.c.inFlight.Add(-1)
}

func (m command) read(n int) {
	m.c.reads.Add(1)
	m.c.bytesRead.Add(uint64(n))
	m.end()
}

func (m command) write(n int, now time.Time) {
	m.c.writes.Add(1)
	m.c.bytesWritten.Add(uint64(n))
	m.c.lastWrite.Store(now.UnixNano())
	m.end()
}

func (m command) flush(now time.Time) {
	m.c.flushes.Add(1)
	m.c.lastFlush.Store(now.UnixNano())
	m.end()
}

func (m command) discard(now time.Time) {
	m.c.discards.Add(1)
	m.c.lastWrite.Store(now.UnixNano())
	m.end()
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
		Reads: c.reads.Load(), Writes: c.writes.Load(), Flushes: c.flushes.Load(), Discards: c.discards.Load(),
		BytesRead: c.bytesRead.Load(), BytesWritten: c.bytesWritten.Load(), InFlight: c.inFlight.Load(),
	}
	if n := c.lastWrite.Load(); n != 0 {
		s.LastWrite = time.Unix(0, n)
	}
	if n := c.lastFlush.Load(); n != 0 {
		s.LastFlush = time.Unix(0, n)
	}
	for i := range s.Latency {
		s.Latency[i] = c.latency[i].Load()
	}
	return s
}
