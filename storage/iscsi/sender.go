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
// without waiting; one goroutine writes the rest, all that has gathered at once.
type sender struct {
	mem *memory
	raw syscall.RawConn // nil: run writes all
	d   Digests

	mu        sync.Mutex
	cond      sync.Cond
	queue     []*batch
	queued    int  // bytes in queue, and those that run writes now
	busy      bool // somebody is in the write system call
	statSN    uint32
	started   bool // run is there, or about to be
	finishing bool // end when all is written
	stopped   bool
}

// maxQueued is how much may wait to be sent before commands wait.
const maxQueued = 4 << 20

// start readies the sender for the full feature phase.
func (s *sender) start(nc net.Conn, statSN uint32, d Digests) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.statSN, s.d, s.started = statSN, d, true
	if sc, ok := nc.(syscall.Conn); ok {
		s.raw, _ = sc.SyscallConn()
	}
}

// put queues a PDU. withStat sets the StatSN field.
func (s *sender) put(h *Header, data []byte, counted, withStat bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.await()
	s.append(h, data, counted, withStat)
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
	s.cond.Broadcast()
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
			s.stopped = true
		}
		if err != nil || b.sent == len(b.buf) {
			s.mem.freeBatch(b)
			if len(s.queue) > 0 || s.stopped || s.finishing {
				s.cond.Broadcast()
			}
			return
		}
	}
	s.queued += len(b.buf) - b.sent
	s.queue = slices.Insert(s.queue, at, b)
	s.cond.Broadcast()
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
	s.stopped = true
	s.cond.Broadcast()
}

// run writes what is queued until the connection ends.
func (s *sender) run(nc net.Conn) {
	defer nc.Close()
	var mine []*batch
	var parts net.Buffers
	for {
		s.mu.Lock()
		for !s.stopped && (s.busy || len(s.queue) == 0 && !s.finishing) {
			s.cond.Wait()
		}
		if s.stopped || len(s.queue) == 0 {
			s.stopped = true
			s.cond.Broadcast()
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
		_, err := all.WriteTo(nc)
		for i, b := range mine {
			s.mem.freeBatch(b)
			mine[i] = nil
		}
		s.mu.Lock()
		s.busy = false
		s.queued -= size
		if err != nil {
			s.stopped = true
		}
		s.cond.Broadcast()
		s.mu.Unlock()
	}
}
