package iscsi

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// eager is a connection's way to wait for its peer: it looks at the socket again
// and again for a moment before it sleeps. An initiator with one command
// outstanding sends the next one a few microseconds after the answer; putting a
// thread to sleep and waking it takes longer than that, and much longer when the
// processor went idle in between. It costs processor time, so a connection whose
// peer takes its time stops doing it, and only so many do it at once.
type eager struct {
	raw     syscall.RawConn // nil: never
	places  *places
	resting bool // not now
	misses  uint // in a row, up to maxMisses
	skip    uint // sleeps to come without looking
}

const (
	// eagerFor is how long it looks: a round trip between two machines, or the
	// time in which a sleeping initiator on this one wakes up.
	eagerFor  = 60 * time.Microsecond
	maxMisses = 8 // then one sleep in 255 begins with a look
)

// places bounds the connections that look at once.
type places struct {
	free atomic.Int32
}

// newPlaces leaves at least half of the processors to those who have something to
// do; a single one is not for looking.
func newPlaces() *places {
	p := &places{}
	p.free.Store(int32(runtime.GOMAXPROCS(0) / 2))
	return p
}

func (p *places) take() bool {
	if p.free.Add(-1) >= 0 {
		return true
	}
	p.free.Add(1)
	return false
}

func (p *places) give() { p.free.Add(1) }

// read gives what arrives within a moment; 0: nothing did, or it did not look, or
// the connection has ended, which who reads it next finds out.
func (e *eager) read(b []byte) int {
	if e.raw == nil || e.resting {
		return 0
	}
	if e.skip > 0 {
		e.skip--
		return 0
	}
	if !e.places.take() {
		return 0
	}
	defer e.places.give()
	n := 0
	err := e.raw.Control(func(fd uintptr) {
		var start time.Time
		for {
			got, _, err := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
			if got > 0 {
				n = got
				return
			}
			if err != unix.EAGAIN {
				return
			}
			switch now := time.Now(); {
			case start.IsZero():
				start = now
			case now.Sub(start) > eagerFor:
				e.misses = min(e.misses+1, maxMisses)
				e.skip = 1<<e.misses - 1
				return
			}
		}
	})
	if err == nil && n > 0 {
		e.misses = 0
	}
	return n
}
