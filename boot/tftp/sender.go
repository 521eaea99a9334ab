package tftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

var (
	errTimeout = errors.New("no answer in time")
	errStopped = errors.New("the transfer was stopped")
	errGone    = errors.New("the machine closed its port, or a firewall rejects the packets")
	errSilent  = errors.New("the machine does not answer any more")
)

// link carries the packets of one transfer.
type link interface {
	// send writes packets: each is a head and its data, one after the other in
	// parts. All but the last have the same length.
	send(parts [][]byte) error
	// recv gives the next packet from the client. The slice is valid until the
	// next call. errTimeout, errStopped and errGone say why there is none.
	recv(wait time.Duration) ([]byte, error)
	// careful is called when packets may have been lost: from then on each goes
	// by itself.
	careful()
}

// patience is how long a client is waited for.
type patience struct {
	first, most time.Duration // the wait doubles from first to most
	tries       int           // packets are sent again at most this many times
	last        int           // likewise for the last block, which is often not acknowledged
}

// sender sends one file. It is our own: pin/tftp has no windowsize (RFC 7440),
// refuses blocks under 512 bytes, converts netascii and sends from no port but
// a new one.
type sender struct {
	link link
	r    io.ReaderAt
	size int64
	p    params
	wait patience

	heads [][headLen]byte
	parts [][]byte
	buf   []byte // data of the blocks from first on
	first uint64
	end   uint64

	acknowledged func(unixNano int64) // called at each acknowledgement

	acked  uint64 // blocks
	resent int    // blocks that were sent again
}

func newSender(l link, r io.ReaderAt, size int64, p params, w patience) *sender {
	if p.timeout > 0 { // the client chose: RFC 2349
		w.first, w.most = p.timeout, p.timeout
	}
	return &sender{acknowledged: func(int64) {}, link: l, r: r, size: size, p: p, wait: w, heads: make([][headLen]byte, p.window), parts: make([][]byte, 0, 2*p.window)}
}

// blocks is how many there are; the last one is shorter than the others, and
// may be empty.
func (s *sender) blocks() uint64 { return uint64(s.size)/uint64(s.p.block) + 1 }

// bytes is how much of the file has been acknowledged.
func (s *sender) bytes() int64 { return min(s.size, int64(s.acked)*int64(s.p.block)) }

// run sends it all. oack is the answer to the client's options, nil without
// any.
func (s *sender) run(oack []byte) error {
	if oack != nil {
		if err := s.agree(oack); err != nil {
			return err
		}
	}
	for total := s.blocks(); s.acked < total; {
		base := s.acked + 1
		if err := s.flight(base, min(base+uint64(s.p.window), total+1)); err != nil {
			return err
		}
	}
	return nil
}

// agree sends the options until the client acknowledges block 0.
func (s *sender) agree(oack []byte) error {
	part := [][]byte{oack, nil}
	return s.until(s.wait.tries, func(again bool) error { return s.link.send(part) }, func(b []byte) (bool, bool) {
		return binary.BigEndian.Uint16(b) == opAck && binary.BigEndian.Uint16(b[2:]) == 0, false
	})
}

// flight sends the blocks from base to before end, until the client has
// acknowledged one of them: the next flight begins behind that one (RFC 7440,
// section 4).
func (s *sender) flight(base, end uint64) error {
	tries := s.wait.tries
	if end == s.blocks()+1 {
		tries = s.wait.last
	}
	repeated := false
	return s.until(tries, func(again bool) error {
		if again {
			s.resent += int(end - base)
		}
		return s.blast(base, end)
	}, func(b []byte) (done, again bool) {
		if binary.BigEndian.Uint16(b) != opAck {
			return false, false
		}
		// Block numbers roll over from 65535 to 0.
		ahead := binary.BigEndian.Uint16(b[2:]) - uint16(base-1)
		if ahead > 0 && uint64(ahead) <= end-base {
			s.acked = base - 1 + uint64(ahead)
			if s.acked != end-1 {
				s.link.careful()
			}
			return true, false
		}
		// The block before the flight is acknowledged once more: the client
		// misses the first one. Only once, or two of us would double each other's
		// packets for ever; and never block by block, where the client's repeat
		// is the sorcerer's apprentice's (RFC 1123, 4.2.3.1).
		if ahead == 0 && s.p.window > 1 && !repeated {
			repeated = true
			s.link.careful()
			return false, true
		}
		return false, false
	})
}

// until sends, and takes packets until done; it sends again when nothing comes
// in time or when take asks for it.
func (s *sender) until(tries int, send func(again bool) error, take func([]byte) (done, again bool)) error {
	wait := s.wait.first
	for try := 0; ; {
		if err := send(try > 0); err != nil {
			return err
		}
		deadline, junk := time.Now().Add(wait), false // what is of no use does not keep a transfer alive
		for {
			b, err := s.link.recv(wait)
			if errors.Is(err, errTimeout) || junk {
				if try++; try > tries {
					return errSilent
				}
				wait = min(2*wait, s.wait.most)
				s.link.careful()
				break
			}
			if err != nil {
				return err
			}
			if len(b) < headLen {
				junk = time.Now().After(deadline)
				continue
			}
			if binary.BigEndian.Uint16(b) == opError {
				return parseRefusal(b)
			}
			done, again := take(b)
			if done {
				s.acknowledged(time.Now().UnixNano())
				return nil
			}
			if again {
				try = max(try, 1) // what follows is a repeat
				break
			}
			junk = time.Now().After(deadline)
		}
	}
}

// blast sends the blocks from base to before end, without waiting.
func (s *sender) blast(base, end uint64) error {
	if base < s.first || end > s.end {
		if err := s.fill(base); err != nil {
			return err
		}
	}
	s.parts = s.parts[:0]
	for b := base; b < end; b++ {
		h := &s.heads[b-base]
		binary.BigEndian.PutUint16(h[:], opData)
		binary.BigEndian.PutUint16(h[2:], uint16(b))
		at := int(b-s.first) * s.p.block
		s.parts = append(s.parts, h[:], s.buf[at:min(at+s.p.block, len(s.buf))])
	}
	return s.link.send(s.parts)
}

// fill reads ahead from block base on: at least a flight.
func (s *sender) fill(base uint64) error {
	ahead := s.p.window * max(1, (64<<10)/(s.p.window*s.p.block))
	if s.buf == nil {
		s.buf = make([]byte, 0, min(int64(ahead)*int64(s.p.block), s.size+1))
	}
	off := int64(base-1) * int64(s.p.block)
	n := min(int64(ahead)*int64(s.p.block), s.size-off)
	s.buf = s.buf[:n]
	if got, err := s.r.ReadAt(s.buf, off); int64(got) < n {
		return fmt.Errorf("read the file at %d: %w", off, errors.Join(err, io.ErrUnexpectedEOF))
	}
	s.first, s.end = base, min(base+uint64(ahead), s.blocks()+1)
	return nil
}
