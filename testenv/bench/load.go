package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/storage/iscsi"
)

// work is a pattern of commands.
type work struct {
	write  bool
	size   int   // bytes of a command
	depth  int   // commands outstanding
	random bool  // else one after the other, wrapping
	flush  bool  // SYNCHRONIZE CACHE after each write; both are one operation
	span   int64 // bytes from the unit's start that are used
	// It ends after the time, or after so many operations if ops is set.
	time time.Duration
	ops  int
}

// outcome is what a pattern gave.
type outcome struct {
	ops    int
	took   time.Duration
	median time.Duration // of the operations' latencies, sampled
}

func (o outcome) perSecond() float64 { return float64(o.ops) / o.took.Seconds() }

// megabytes per second
func (o outcome) megabytes(w work) float64 { return o.perSecond() * float64(w.size) / 1e6 }

// slot is one outstanding operation; its index is the task tag.
type slot struct {
	off   int64
	since time.Time
	sync  bool // the flush of a write that is done
}

// generator runs one pattern over one session.
type generator struct {
	s     *session
	w     work
	rng   *rand.Rand
	next  int64
	slots []slot
	free  []uint32
	iov   [][]byte
	heads []iscsi.Header // of the PDUs in iov
	data  []byte         // what is written
	in    []byte
	have  int // bytes of in that are filled
	skip  int // bytes of data segment still to come that nobody looks at
	limit uint32
	o     outcome
	lat   []time.Duration
}

// run runs the pattern to its end.
func run(s *session, w work, seed uint64) (outcome, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	g := &generator{s: s, w: w, rng: rand.New(rand.NewPCG(seed, 1)), slots: make([]slot, w.depth),
		heads: make([]iscsi.Header, 0, 4096), in: make([]byte, 256<<10), data: make([]byte, w.size), limit: s.cmdSN + uint32(w.depth) - 1}
	for i := range g.data {
		g.data[i] = byte(g.rng.Uint32())
	}
	for i := range w.depth {
		g.free = append(g.free, uint32(i))
	}
	start := time.Now()
	end := start.Add(w.time)
	for {
		now := time.Now()
		more := w.ops == 0 && now.Before(end) || w.ops > 0 && g.o.ops+w.depth-len(g.free) < w.ops
		for more && len(g.free) > 0 && int32(g.limit-s.cmdSN) >= 0 {
			g.start(now)
			more = w.ops == 0 || g.o.ops+w.depth-len(g.free) < w.ops
		}
		if len(g.free) == w.depth && !more && g.skip == 0 && g.have == 0 {
			break
		}
		if err := g.send(); err != nil {
			return g.o, err
		}
		if err := g.receive(); err != nil {
			return g.o, err
		}
	}
	g.o.took = time.Since(start)
	if slices.Sort(g.lat); len(g.lat) > 0 {
		g.o.median = g.lat[len(g.lat)/2]
	}
	return g.o, nil
}

// start begins the next operation.
func (g *generator) start(now time.Time) {
	tag := g.free[len(g.free)-1]
	g.free = g.free[:len(g.free)-1]
	n := g.w.span / int64(g.w.size)
	var at int64
	if g.w.random {
		at = g.rng.Int64N(n)
	} else {
		at = g.next % n
		g.next++
	}
	g.slots[tag] = slot{off: at * int64(g.w.size), since: now}
	g.command(tag)
}

// command queues the SCSI command of a slot, with what data may go unasked.
func (g *generator) command(tag uint32) {
	sl := &g.slots[tag]
	h := g.head(iscsi.OpSCSICommand)
	binary.BigEndian.PutUint64(h[8:], uint64(g.s.place.lun)<<48)
	h.SetTaskTag(tag)
	h.SetCmdSN(g.s.cmdSN)
	g.s.cmdSN++
	if sl.sync {
		h.SetFlags(0x80)
		h[32] = 0x35
		g.iov = append(g.iov, h[:])
		return
	}
	h.SetTransferTag(uint32(g.w.size))
	h.PutUint32(34, uint32(sl.off/512))
	h.PutUint16(39, uint16(g.w.size/512))
	if !g.w.write {
		h[32] = 0x28
		h.SetFlags(0xc0)
		g.iov = append(g.iov, h[:])
		return
	}
	h[32] = 0x2a
	now := 0
	if g.s.immediate {
		now = min(g.w.size, g.s.segment, g.s.firstBurst)
	}
	burst := now
	if !g.s.initialR2T {
		burst = min(g.w.size, g.s.firstBurst)
	}
	h.SetDataLength(now)
	h.SetFlags(0x20)
	if burst == now {
		h.SetFlags(0xa0)
	}
	g.iov = append(g.iov, h[:])
	if now > 0 {
		g.iov = append(g.iov, g.data[:now])
	}
	g.dataOut(tag, iscsi.ReservedTag, now, burst)
}

// dataOut queues the bytes from off to end of a write.
func (g *generator) dataOut(tag, transfer uint32, off, end int) {
	for sn := uint32(0); off < end; sn++ {
		n := min(g.s.segment, end-off)
		h := g.head(iscsi.OpDataOut)
		if off+n == end {
			h.SetFlags(0x80)
		}
		binary.BigEndian.PutUint64(h[8:], uint64(g.s.place.lun)<<48)
		h.SetTaskTag(tag)
		h.SetTransferTag(transfer)
		h.PutUint32(36, sn)
		h.PutUint32(40, uint32(off))
		h.SetDataLength(n)
		g.iov = append(g.iov, h[:], g.data[off:off+n])
		off += n
	}
}

func (g *generator) head(op iscsi.Opcode) *iscsi.Header {
	if len(g.heads) == cap(g.heads) { // those in iov stay where they are
		g.heads = make([]iscsi.Header, 0, cap(g.heads))
	}
	g.heads = append(g.heads, iscsi.Header{})
	h := &g.heads[len(g.heads)-1]
	h.SetOpcode(op, false)
	return h
}

// send writes all that is queued with as few system calls as possible.
func (g *generator) send() error {
	iov := g.iov
	for len(iov) > 0 {
		n, err := unix.Writev(g.s.fd, iov[:min(len(iov), 1024)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for n > 0 && n >= len(iov[0]) {
			n -= len(iov[0])
			iov = iov[1:]
		}
		if n > 0 {
			iov[0] = iov[0][n:]
		}
	}
	g.iov, g.heads = g.iov[:0], g.heads[:0]
	return nil
}

// receive takes what has arrived, at least some.
func (g *generator) receive() error {
	n, err := wire(g.s.fd).Read(g.in[g.have:])
	if err != nil {
		return err
	}
	g.have += n
	b := g.in[:g.have]
	now := time.Now()
	for {
		if g.skip > 0 {
			n := min(g.skip, len(b))
			b, g.skip = b[n:], g.skip-n
		}
		if g.skip > 0 || len(b) < iscsi.HeaderSize {
			break
		}
		h := iscsi.Header(b)
		size := h.DataLength()
		b = b[iscsi.HeaderSize:]
		if g.skip = size + -size&3; h.AHSLength() > 0 {
			return errors.New("additional headers")
		}
		if err := g.pdu(&h, now); err != nil {
			return err
		}
	}
	g.have = copy(g.in, b)
	return nil
}

// pdu acts on one header from the target.
func (g *generator) pdu(h *iscsi.Header, now time.Time) error {
	if limit := h.MaxCmdSN(); int32(limit-g.limit) > 0 {
		g.limit = limit
	}
	tag := h.TaskTag()
	switch h.Opcode() {
	case iscsi.OpNopIn:
		return errors.New("a NOP-In that nobody answers: the target heard nothing from us")
	case iscsi.OpDataIn:
		if h.Flags()&1 == 0 {
			return nil
		}
	case iscsi.OpR2T:
		off := int(h.Uint32(40))
		g.dataOut(tag, h.TransferTag(), off, off+int(h.Uint32(44)))
		return nil
	case iscsi.OpSCSIResponse:
	default:
		return fmt.Errorf("opcode %#x", h.Opcode())
	}
	if h[3] != 0 || h[2] != 0 {
		return fmt.Errorf("a command ended with status %#x, response %#x", h[3], h[2])
	}
	sl := &g.slots[tag]
	if g.w.flush && !sl.sync {
		sl.sync = true
		g.command(tag)
		return nil
	}
	if g.o.ops%16 == 0 || g.w.depth == 1 {
		g.lat = append(g.lat, now.Sub(sl.since))
	}
	g.o.ops++
	g.free = append(g.free, tag)
	return nil
}

// quiet takes the unit attentions that a new session may find.
func (s *session) quiet() error {
	for range 8 {
		var h iscsi.Header
		h.SetOpcode(iscsi.OpSCSICommand, false)
		h.SetFlags(0x80)
		binary.BigEndian.PutUint64(h[8:], uint64(s.place.lun)<<48)
		h.SetTaskTag(1)
		h.SetCmdSN(s.cmdSN)
		s.cmdSN++
		if err := iscsi.WritePDU(wire(s.fd), &iscsi.PDU{Header: h}, iscsi.Digests{}); err != nil {
			return err
		}
		p, err := iscsi.ReadPDU(wire(s.fd), iscsi.Digests{}, 65536)
		if err != nil {
			return err
		}
		if p.Header.Opcode() == iscsi.OpSCSIResponse && p.Header[3] == 0 {
			return nil
		}
	}
	return errors.New("the unit does not get ready")
}
