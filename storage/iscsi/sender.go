package iscsi

import (
	"errors"
	"net"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// sender is the queue of a connection to the peer. Whoever commits a batch while
// nothing is queued hands it to the kernel himself, as far as that takes it
// without waiting; one goroutine, which begins with the first need of it, writes
// the rest, all that has gathered at once.
type sender struct {
	mem   *memory
	nc    net.Conn
	raw   syscall.RawConn // nil: run writes all
	d     Digests
	spawn func() // begins run
	// drained is closed with stopped: nothing more is written.
	drained chan struct{}

	mu        sync.Mutex
	cond      sync.Cond
	queue     []*batch
	queued    int  // bytes in queue, and those that run writes now
	busy      bool // somebody is in the write system call
	statSN    uint32
	started   bool // the full feature phase has begun
	running   bool // run is there, or about to be
	finishing bool // end when all is written
	stopped   bool
}

// maxQueued is how much may wait to be sent before commands wait.
const maxQueued = 4 << 20

// start readies the sender for the full feature phase.
func (s *sender) start(statSN uint32, d Digests, raw syscall.RawConn, spawn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.statSN, s.d, s.raw, s.spawn, s.started = statSN, d, raw, spawn, true
}

// kick sees to it that what is queued is written, and that the connection ends
// when it is to; s.mu is held.
func (s *sender) kick() {
	switch {
	case s.stopped:
	case s.running || s.busy: // who is busy kicks afterwards
		s.cond.Broadcast()
	case len(s.queue) > 0 && s.started:
		s.running = true
		s.spawn()
	case s.finishing:
		s.halt()
	}
}

// halt ends the connection; s.mu is held.
func (s *sender) halt() {
	if !s.stopped {
		s.stopped = true
		close(s.drained)
		s.nc.Close()
	}
	s.cond.Broadcast()
}

// finish ends the connection when all that is queued is written.
func (s *sender) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finishing = true
	if !s.started { // still in log-in: nothing will send
		s.halt()
	}
	s.kick()
}

// put queues a PDU, which takes a status number if it is counted.
func (s *sender) put(h *Header, data []byte, counted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.await()
	s.append(h, data, counted, counted)
}

// putNow queues a PDU without data, whatever is queued already: what a session
// may have outstanding bounds it.
func (s *sender) putNow(h *Header, counted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.append(h, nil, counted, true)
}

// await waits until more may be queued; s.mu is held.
func (s *sender) await() {
	for s.queued > maxQueued && !s.stopped && !s.finishing {
		s.cond.Wait()
	}
}

// wait waits until more may be queued.
func (s *sender) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.await()
}

// crowded says whether more would have to wait.
func (s *sender) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queued > maxQueued/2
}

// append does put's work; s.mu is held.
func (s *sender) append(h *Header, data []byte, counted, withStat bool) {
	if s.stopped || s.finishing {
		return
	}
	var b *batch
	if n := len(s.queue); n > 0 && s.queue[n-1].room(len(data)) {
		b = s.queue[n-1]
	} else {
		b = s.mem.batch()
		s.queue = append(s.queue, b)
	}
	first, before := len(b.pdus), len(b.buf)
	b.add(h, data, s.d, withStat, counted)
	s.statSN = b.number(first, s.statSN, s.d)
	s.queued += len(b.buf) - before
	s.kick()
}

// commit sends a batch, which is the sender's from here on.
func (s *sender) commit(b *batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || s.finishing {
		s.mem.freeBatch(b)
		return
	}
	s.statSN = b.number(0, s.statSN, s.d)
	at := len(s.queue)
	if s.raw != nil && !s.busy && len(s.queue) == 0 {
		s.busy = true
		s.mu.Unlock()
		err := s.try(b)
		s.mu.Lock()
		s.busy = false
		if err != nil {
			s.halt()
		}
		if s.stopped || b.sent == len(b.buf) {
			s.mem.freeBatch(b)
			if len(s.queue) > 0 || s.finishing {
				s.kick()
			}
			return
		}
	}
	s.queued += len(b.buf) - b.sent
	s.queue = slices.Insert(s.queue, at, b)
	s.kick()
}

// try writes what the kernel takes without waiting.
func (s *sender) try(b *batch) error {
	var werr error
	err := s.raw.Write(func(fd uintptr) bool {
		var n int
		n, werr = unix.Write(int(fd), b.buf)
		b.sent = max(0, n)
		return true
	})
	if err != nil {
		return err
	}
	if errors.Is(werr, unix.EAGAIN) || errors.Is(werr, unix.EINTR) {
		return nil
	}
	return werr
}

func (s *sender) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halt()
}

// run writes what is queued until the connection ends.
func (s *sender) run() {
	var mine []*batch
	var parts net.Buffers
	for {
		s.mu.Lock()
		for !s.stopped && (s.busy || len(s.queue) == 0 && !s.finishing) {
			s.cond.Wait()
		}
		if s.stopped || len(s.queue) == 0 {
			s.halt()
			s.mu.Unlock()
			return
		}
		mine, s.queue = s.queue, mine[:0]
		s.busy = true
		s.mu.Unlock()
		size := 0
		all := parts[:0]
		for _, b := range mine {
			all = append(all, b.buf[b.sent:])
			size += len(b.buf) - b.sent
		}
		parts = all
		_, err := all.WriteTo(s.nc)
		for i, b := range mine {
			s.mem.freeBatch(b)
			mine[i] = nil
		}
		s.mu.Lock()
		s.busy = false
		s.queued -= size
		if err != nil {
			s.halt()
		}
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}
