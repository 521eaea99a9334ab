package iscsi

import (
	"errors"
)

// task is one SCSI command from its arrival to its response.
type task struct {
	tag       uint32
	immediate bool
	cdb       [16]byte
	edtl      int // expected data transfer length
	in, out   bool

	// Of a write, guarded by conn.mu while it collects data.
	buf         []byte
	got         int  // bytes received, in order
	unsolicited bool // unsolicited data is still to come
	asked       int  // bytes received or asked for
	r2ts        []r2t
	r2tSN       uint32
	dataSN      uint32 // expected in the current sequence
	started     bool   // it holds its share of outstandingData

	aborted bool // no response is sent
	runs    bool
	done    chan struct{} // closed when it runs no more
}

// r2t is one outstanding request for data.
type r2t struct {
	tag  uint32
	off  int
	size int
}

// command begins a SCSI command; data is its immediate data.
func (c *conn) command(h *Header, ahs int, data []byte) error {
	t := &task{
		tag: h.TaskTag(), immediate: h.Immediate(), edtl: int(h.TransferTag()),
		in: h.Flags()&0x40 != 0, out: h.Flags()&0x20 != 0, done: make(chan struct{}),
	}
	copy(t.cdb[:], h.CDB())
	final := h.Final()
	switch {
	case !t.out && len(data) > 0, t.in && t.out:
		return c.protocolError(h, "data with a command that writes none, or both directions")
	case t.out && len(data) > min(t.edtl, c.params.firstBurst), len(data) > 0 && !c.params.immediateData:
		return c.protocolError(h, "%d bytes of immediate data", len(data))
	case !final && (!t.out || c.params.initialR2T):
		return c.protocolError(h, "unsolicited data was not agreed on")
	}
	c.mu.Lock()
	if _, dup := c.tasks[t.tag]; dup {
		c.mu.Unlock()
		return c.protocolError(h, "task tag %#x is in use", t.tag)
	}
	c.tasks[t.tag] = t
	if t.edtl > maxTransfer || ahs > 0 || h.LUN() != 0 {
		// What is not for our unit needs no data; what still comes is dropped.
		c.mu.Unlock()
		c.finishTask(t, c.lu.special(h, t.edtl > maxTransfer || ahs > 0))
		return nil
	}
	if t.out && t.edtl > 0 {
		t.got = len(data)
		t.asked = t.got
		t.unsolicited = !final
		t.buf = data
		if t.unsolicited && cap(data) >= t.edtl {
			t.buf = data[:min(t.edtl, c.params.firstBurst)]
		} else if t.unsolicited {
			t.buf = make([]byte, min(t.edtl, c.params.firstBurst))
			copy(t.buf, data)
		}
	}
	ready := c.advance(t)
	c.mu.Unlock()
	if ready {
		c.perform(t)
	}
	return nil
}

// perform runs a task on the receiving goroutine if that need not wait.
func (c *conn) perform(t *task) {
	if !c.hotTask(t) && !c.chain(t) {
		c.running.Go(func() { c.exec(t) })
	}
}

// advance starts a task, or asks for its data. When it says ready, the caller
// runs it. c.mu is held.
func (c *conn) advance(t *task) (ready bool) {
	if t.aborted || t.runs || t.unsolicited {
		return false
	}
	if !t.started {
		if t.out && c.held > 0 && c.held+t.edtl > outstandingData {
			c.waiting = append(c.waiting, t)
			return false
		}
		t.started = true
		if t.out {
			c.held += t.edtl
			if cap(t.buf) >= t.edtl {
				t.buf = t.buf[:t.edtl]
			} else if len(t.buf) < t.edtl {
				full := make([]byte, t.edtl)
				copy(full, t.buf[:t.got])
				t.buf = full
			}
		}
	}
	if t.out && t.got < t.edtl {
		c.ask(t)
		return false
	}
	t.runs = true
	return true
}

// ask sends the R2Ts that may be outstanding; c.mu is held.
func (c *conn) ask(t *task) {
	for len(t.r2ts) < c.params.outstandingR2T && t.asked < t.edtl {
		n := min(c.params.maxBurst, t.edtl-t.asked)
		c.nextTag++
		if c.nextTag == ReservedTag {
			c.nextTag = 0
		}
		q := r2t{c.nextTag, t.asked, n}
		t.r2ts = append(t.r2ts, q)
		t.asked += n
		var h Header
		h.SetOpcode(OpR2T, false)
		h.SetFlags(0x80)
		h.SetTaskTag(t.tag)
		h.SetTransferTag(q.tag)
		h.SetWindow(c.cmdSN, c.cmdSN+commandWindow-1-c.active)
		h.PutUint32(36, t.r2tSN)
		h.PutUint32(40, uint32(q.off))
		h.PutUint32(44, uint32(q.size))
		t.r2tSN++
		c.tx.putNow(&h, false)
	}
}

// dataOut takes a Data-Out PDU whose data is still to be read.
func (c *conn) dataOut(h *Header) error {
	n := h.DataLength()
	c.mu.Lock()
	t := c.tasks[h.TaskTag()]
	if t == nil || t.aborted || t.runs || !t.out {
		c.mu.Unlock()
		return c.readData(make([]byte, n)) // of a task that was aborted or refused
	}
	if why := t.fits(h, n); why != "" {
		t.runs = true // no further data is for it
		c.mu.Unlock()
		c.t.opts.Log.Warn("iscsi: a write is refused", "initiator", c.nexus.initiator, "why", why)
		c.finishTask(t, check(senseDataPhase))
		return c.readData(make([]byte, n))
	}
	dst := t.buf[t.got : t.got+n]
	c.mu.Unlock()
	if err := c.readData(dst); err != nil {
		if errors.Is(err, ErrDataDigest) {
			c.reject(h, rejectDataDigest)
		}
		return err
	}
	c.mu.Lock()
	if t.aborted {
		c.mu.Unlock()
		return nil
	}
	t.got += n
	t.dataSN++
	if h.Final() {
		t.dataSN = 0
		if h.TransferTag() == ReservedTag {
			t.unsolicited = false
			t.asked = t.got
		} else {
			t.r2ts = t.r2ts[1:]
		}
	}
	ready := h.Final() && c.advance(t)
	c.mu.Unlock()
	if ready {
		c.perform(t)
	}
	return nil
}

// fits says why a Data-Out PDU with n bytes is not what comes next, "" if it is.
func (t *task) fits(h *Header, n int) string {
	off := int(h.Uint32(40))
	switch {
	case h.Uint32(36) != t.dataSN:
		return "data sequence number out of order"
	case off != t.got:
		return "data offset out of order"
	}
	if h.TransferTag() == ReservedTag {
		if !t.unsolicited || t.got+n > len(t.buf) {
			return "unsolicited data beyond what was agreed on"
		}
		return ""
	}
	if t.unsolicited || len(t.r2ts) == 0 || t.r2ts[0].tag != h.TransferTag() {
		return "data that was not asked for"
	}
	left := t.r2ts[0].off + t.r2ts[0].size - t.got
	if n > left || h.Final() != (n == left) {
		return "a data sequence of another length than asked for"
	}
	return ""
}

// exec runs a command and answers it.
func (c *conn) exec(t *task) {
	b, done := c.slowRead(t, nil)
	c.sendOwn(b)
	if done {
		return
	}
	if t.in && t.edtl > maxRecvSegment { // all of its data is made before any is sent
		c.big <- struct{}{}
		defer func() { <-c.big }()
	}
	res := c.lu.execute(t)
	switch t.cdb[0] {
	case 0x2a, 0x8a, 0xaa: // a write holds on to nothing
		c.forgetData(t)
	}
	c.finishTask(t, res)
}

// finishTask takes the task off the books and answers it.
func (c *conn) finishTask(t *task, res result) {
	c.mu.Lock()
	aborted := t.aborted
	c.release(t)
	c.mu.Unlock()
	if !aborted {
		c.respond(t, res)
	}
	close(t.done)
}

// release gives back what the task holds and starts who waited; c.mu is held.
func (c *conn) release(t *task) {
	if c.tasks[t.tag] == t {
		delete(c.tasks, t.tag)
	}
	if !t.immediate {
		c.active--
	}
	if t.started && t.out {
		c.held -= t.edtl
	}
	for len(c.waiting) > 0 {
		w := c.waiting[0]
		if !w.aborted && c.held > 0 && c.held+w.edtl > outstandingData {
			return
		}
		c.waiting = c.waiting[1:]
		if c.advance(w) {
			c.running.Go(func() { c.exec(w) })
		}
	}
}

// respond sends the data and status of a command.
func (c *conn) respond(t *task, res result) {
	residual, flags := 0, byte(0)
	moved := res.used // bytes that the command transfers by its CDB
	switch {
	case moved > t.edtl:
		residual, flags = moved-t.edtl, 0x04
	case moved < t.edtl:
		residual, flags = t.edtl-moved, 0x02
	}
	if t.in && len(res.data) > 0 {
		data := res.data[:min(len(res.data), t.edtl)]
		if c.dataIn(t, data, res.status == statusGood, flags, residual) {
			return
		}
	}
	var h Header
	h.SetOpcode(OpSCSIResponse, false)
	h.SetFlags(0x80 | flags)
	h[3] = res.status
	h.SetTaskTag(t.tag)
	h.PutUint32(44, uint32(residual))
	var data []byte
	if res.status == statusCheck {
		data = append([]byte{0, senseSize}, res.sense.fixed()...)
	}
	c.send(&h, data)
}

// segments cuts the data of a read into Data-In PDUs (RFC 7143, 11.7).
type segments struct {
	tag   uint32
	size  int // of all data
	sn    uint32
	off   int // of the next PDU's data
	burst int
}

// next gives the header of the next PDU and the length of its data; the caller
// adds the status to the last.
func (s *segments) next(p *params) (h Header, n int, last bool) {
	n = min(s.size-s.off, p.peerSegment, p.maxBurst-s.burst)
	last = s.off+n == s.size
	s.burst += n
	h.SetOpcode(OpDataIn, false)
	if last || s.burst == p.maxBurst {
		h.SetFlags(0x80)
		s.burst = 0
	}
	h.SetTaskTag(s.tag)
	h.SetTransferTag(ReservedTag)
	h.PutUint32(36, s.sn)
	h.PutUint32(40, uint32(s.off))
	s.sn++
	s.off += n
	return h, n, last
}

// dataIn sends the data of a read; with phase collapse the last PDU carries the
// status. It says whether it did.
func (c *conn) dataIn(t *task, data []byte, good bool, flags byte, residual int) bool {
	for s := (segments{tag: t.tag, size: len(data)}); s.off < s.size; {
		off := s.off
		h, n, last := s.next(&c.params)
		exp, limit := c.window()
		h.SetWindow(exp, limit)
		collapse := last && good
		if collapse {
			h.SetFlags(h.Flags() | 0x01 | flags)
			h.PutUint32(44, uint32(residual))
		}
		c.tx.put(&h, data[off:off+n], collapse)
	}
	return good && len(data) > 0
}

// Task management functions and responses (RFC 7143, 11.5.1 and 11.6.1).
const (
	tmfAbortTask    = 1
	tmfAbortTaskSet = 2
	tmfClearACA     = 3
	tmfClearTaskSet = 4
	tmfLUNReset     = 5
	tmfWarmReset    = 6
	tmfColdReset    = 7
	tmfReassign     = 8

	tmfComplete    = 0
	tmfNoTask      = 1
	tmfNoLUN       = 2
	tmfNoReassign  = 4
	tmfUnsupported = 5
)
