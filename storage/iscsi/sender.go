package iscsi

import (
	"encoding/binary"
	"net"
	"sync"
)

// sender is the queue of a connection to the peer. One goroutine writes all
// that has gathered at once.
type sender struct {
	mu        sync.Mutex
	cond      sync.Cond
	out       []byte
	statSN    uint32
	started   bool // run is there, or about to be
	finishing bool // end when out is empty
	stopped   bool
}

// maxQueued is how much may wait to be sent before commands wait.
const maxQueued = 4 << 20

// put appends a PDU. withStat sets the StatSN field.
func (s *sender) put(h *Header, data []byte, d Digests, counted, withStat bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.out) > maxQueued && !s.stopped && !s.finishing {
		s.cond.Wait()
	}
	s.append(h, data, d, counted, withStat)
}

// putNow appends a PDU without data, whatever is queued already: what a session
// may have outstanding bounds it.
func (s *sender) putNow(h *Header, d Digests, counted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.append(h, nil, d, counted, true)
}

// append does put's work; s.mu is held.
func (s *sender) append(h *Header, data []byte, d Digests, counted, withStat bool) {
	if s.stopped || s.finishing {
		return
	}
	if withStat {
		h.SetStatSN(s.statSN)
	}
	if counted {
		s.statSN++
	}
	s.out = appendFrame(s.out, h, data, d)
	s.cond.Broadcast()
}

// appendFrame is AppendPDU without an allocation.
func appendFrame(b []byte, h *Header, data []byte, d Digests) []byte {
	h[4] = 0
	h.SetDataLength(len(data))
	b = append(b, h[:]...)
	if d.Header {
		b = binary.LittleEndian.AppendUint32(b, Digest(h[:]))
	}
	if len(data) == 0 {
		return b
	}
	start := len(b)
	b = append(b, data...)
	for range pad(len(data)) {
		b = append(b, 0)
	}
	if d.Data {
		b = binary.LittleEndian.AppendUint32(b, Digest(b[start:]))
	}
	return b
}

func (s *sender) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = true
	s.cond.Broadcast()
}

// run writes until the connection ends.
func (s *sender) run(nc net.Conn) {
	var buf []byte
	for {
		s.mu.Lock()
		for len(s.out) == 0 && !s.stopped && !s.finishing {
			s.cond.Wait()
		}
		if s.stopped || len(s.out) == 0 {
			s.stopped = true
			s.cond.Broadcast()
			s.mu.Unlock()
			nc.Close()
			return
		}
		buf, s.out = s.out, buf[:0]
		s.cond.Broadcast()
		s.mu.Unlock()
		if _, err := nc.Write(buf); err != nil {
			nc.Close()
			s.stop()
			return
		}
		if cap(buf) > 2*maxQueued {
			buf = nil
		}
	}
}
