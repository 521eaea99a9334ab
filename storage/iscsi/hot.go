package iscsi

import (
	"encoding/binary"
	"time"
)

// The hot path: plain reads and writes that need not wait for the disk are
// carried out by the goroutine that receives them, from the receive buffer and
// into the send buffer. All that has arrived is worked on before the answers go
// out together. What is not plain, or would have to wait, goes the way of tasks.

// source is the socket as the receive buffer reads it: before more is waited
// for, what was answered so far goes out.
type source struct{ c *conn }

func (s source) Read(p []byte) (int, error) {
	s.c.runMissed()
	s.c.sendBatch()
	n, err := 0, error(nil)
	if s.c.idle() { // else the peer waits for us, and those who work need the processor
		n = s.c.eager.read(p)
	}
	if n == 0 {
		n, err = s.c.nc.Read(p)
	}
	s.c.heard.Store(time.Now().UnixNano())
	return n, err
}

// maxHotWrite is the longest write that is taken from the receive buffer.
const maxHotWrite = 32 << 10

// plain is a READ or WRITE without any speciality: the unit and the whole of
// the expected data, no forced access.
type plain struct {
	off   int64
	size  int
	write bool
}

// plainCDB gives what a CDB asks for if it is plain for this much expected data.
func plainCDB(cdb []byte, edtl int) (p plain, ok bool) {
	var n uint64
	var lba uint64
	var control byte
	switch cdb[0] {
	case 0x28, 0x2a:
		lba, n, control = uint64(binary.BigEndian.Uint32(cdb[2:])), uint64(binary.BigEndian.Uint16(cdb[7:])), cdb[9]
	case 0x88, 0x8a:
		lba, n, control = binary.BigEndian.Uint64(cdb[2:]), uint64(binary.BigEndian.Uint32(cdb[10:])), cdb[15]
	default:
		return plain{}, false
	}
	const protectionAndForce = 0xe8
	if n == 0 || n*blockSize != uint64(edtl) || lba > 1<<50 || cdb[1]&protectionAndForce != 0 || control != 0 {
		return plain{}, false
	}
	return plain{int64(lba) * blockSize, edtl, cdb[0]&2 != 0}, true
}

// admits says whether the unit lets a plain command through: no attention waits,
// no reservation forbids it, it lies within the volume.
func (l *lu) admits(p plain, cdb []byte) bool {
	size := l.att.Size()
	if p.off > size || int64(p.size) > size-p.off {
		return false
	}
	if l.waiting.Load() > 0 || size != l.size.Load() {
		return false
	}
	o, _ := find(l.c.t.operations, cdb)
	return o != nil && l.unit.allows(l, o) && (!p.write || !(&call{lu: l}).readOnly())
}

// hotCommand carries out a SCSI command whose PDU is the next in the receive
// buffer, if it is plain and need not wait. It says whether it did.
func (c *conn) hotCommand(h *Header) bool {
	if c.discovery || h.AHSLength() > 0 || h.LUN() != 0 || h.TransferTag() > batchSize {
		return false
	}
	p, ok := plainCDB(h.CDB(), int(h.TransferTag()))
	if !ok {
		return false
	}
	data := h.DataLength()
	switch flags := h.Flags() & 0xe0; {
	case flags == 0xc0 && !p.write && data == 0:
	case flags == 0xa0 && p.write && data == p.size && data <= maxHotWrite && c.params.immediateData && data <= c.params.firstBurst:
	default:
		return false
	}
	d := c.params.digests
	whole := HeaderSize + d.headerSize()
	if p.write {
		whole += p.size + pad(p.size) + d.dataSize()
	}
	pdu, err := c.r.Peek(whole)
	if err != nil || !d.match(pdu, p.write) || !c.expects(h) {
		return false // the plain way meets it again
	}
	c.hot.Lock()
	defer c.hot.Unlock()
	if !c.lu.admits(p, h.CDB()) {
		return false
	}
	if p.write {
		return c.hotWrite(h, p, pdu)
	}
	return c.hotRead(h, p, pdu)
}

// match says whether the digests of a PDU without additional headers are right.
func (d Digests) match(pdu []byte, data bool) bool {
	if d.Header && binary.LittleEndian.Uint32(pdu[HeaderSize:]) != Digest(pdu[:HeaderSize]) {
		return false
	}
	end := len(pdu) - 4
	return !data || !d.Data || binary.LittleEndian.Uint32(pdu[end:]) == Digest(pdu[HeaderSize+d.headerSize():end])
}

// expects says whether h has the number that comes next and a tag of its own.
func (c *conn) expects(h *Header) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, dup := c.tasks[h.TaskTag()]
	return !dup && !h.Immediate() && h.CmdSN() == c.cmdSN && len(c.tasks) < commandWindow
}

// took counts a command that was carried out, and drops its PDU from the receive
// buffer.
func (c *conn) took(pdu []byte) {
	if n, err := c.r.Discard(len(pdu)); err != nil || n != len(pdu) {
		panic("iscsi: the receive buffer lost what it held")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cmdSN++
}

// headerSize and dataSize give the length of the digests in a PDU with data.
func (d Digests) headerSize() int {
	if d.Header {
		return 4
	}
	return 0
}

func (d Digests) dataSize() int {
	if d.Data {
		return 4
	}
	return 0
}

func (c *conn) hotRead(h *Header, p plain, pdu []byte) bool {
	if c.tx.crowded() {
		return false
	}
	b := c.batchFor(p.size)
	pdus, bytes := len(b.pdus), len(b.buf)
	if ok, _ := c.fill(b, h.TaskTag(), p, false); !ok {
		b.cutTo(pdus, bytes)
		return false
	}
	c.took(pdu)
	return true
}

// hotWrite writes from the receive buffer.
func (c *conn) hotWrite(h *Header, p plain, pdu []byte) bool {
	d := c.params.digests
	data := pdu[HeaderSize+d.headerSize():][:p.size]
	if !c.lu.unit.atomic.TryRLock() {
		return false
	}
	done, err := c.lu.att.WriteAtNoWait(data, p.off)
	c.lu.unit.atomic.RUnlock()
	if !done {
		return false
	}
	c.took(pdu)
	c.written(h.TaskTag(), p, err)
	return true
}

// written answers a write that the receiving goroutine carried out.
func (c *conn) written(tag uint32, p plain, err error) {
	var h Header
	h.SetOpcode(OpSCSIResponse, false)
	h.SetFlags(0x80)
	h.SetTaskTag(tag)
	var sense []byte
	if err != nil {
		res := failed(err, true)
		h[3] = res.status
		h.SetFlags(0x82) // all of it is left
		h.PutUint32(44, uint32(p.size))
		sense = append([]byte{0, senseSize}, res.sense.fixed()...)
	}
	c.batchFor(len(sense)).add(&h, sense, c.params.digests, true, true)
}

// hotTask carries out a task that is ready to run, on the receiving goroutine,
// if it is a plain write that need not wait. It says whether it did.
func (c *conn) hotTask(t *task) bool {
	p, ok := plainCDB(t.cdb[:], t.edtl)
	if !ok || !p.write || p.size > maxBurst || !t.out || t.in || !c.lu.admits(p, t.cdb[:]) || !c.lu.unit.atomic.TryRLock() {
		return false
	}
	done, err := c.lu.att.WriteAtNoWait(t.buf, p.off)
	c.lu.unit.atomic.RUnlock()
	if !done {
		return false
	}
	c.mu.Lock()
	aborted := t.aborted
	c.release(t)
	c.mu.Unlock()
	if !aborted {
		c.written(t.tag, p, err)
	}
	c.forgetData(t)
	close(t.done)
	return true
}

// forgetData gives back the buffer of a write that was carried out.
func (c *conn) forgetData(t *task) {
	if buf := t.buf; pooled(buf) {
		t.buf = nil
		c.t.mem.freeBuffer(buf)
	}
}

// fill appends the Data-In PDUs of a read to b, the last with the status. With
// wait it takes the time that the disk takes. Unless ok, b has some of them.
func (c *conn) fill(b *batch, tag uint32, p plain, wait bool) (ok bool, err error) {
	d := c.params.digests
	for s := (segments{tag: tag, size: p.size}); s.off < s.size; {
		off := s.off
		h, n, last := s.next(&c.params)
		if last {
			h.SetFlags(0x81) // phase collapse: status good
		}
		if !b.room(n) {
			return false, nil
		}
		dst := b.begin(&h, n, d, last, last)
		if !wait {
			if !c.lu.att.ReadAtNoWait(dst, p.off+int64(off)) {
				return false, nil
			}
		} else if _, err := c.lu.att.ReadAt(dst, p.off+int64(off)); err != nil {
			return false, err
		}
		b.end(d)
	}
	return true, nil
}

// batchFor gives the batch that the receiving goroutine fills, with room for a
// PDU of n bytes.
func (c *conn) batchFor(n int) *batch {
	if c.out != nil && !c.out.room(n) {
		c.sendBatch()
	}
	if c.out == nil {
		c.out = c.t.mem.batch()
	}
	return c.out
}

// sendBatch sends what the receiving goroutine has answered.
func (c *conn) sendBatch() {
	b := c.out
	if b == nil {
		return
	}
	c.out = nil
	c.sendOwn(b)
}

// Small reads that have to wait for the disk are chained: trying them has asked
// the disk for all of them already, so one goroutine that takes a few, one after
// the other, waits hardly longer than a goroutine for each, and costs less.
const (
	maxChain   = 8
	maxChained = 16 << 10 // bytes of one read
)

// chain takes a task that is to wait for the disk if it is a small plain read.
func (c *conn) chain(t *task) bool {
	if p, ok := plainCDB(t.cdb[:], t.edtl); !ok || p.write || t.out || p.size > maxChained {
		return false
	}
	c.missed = append(c.missed, t)
	if len(c.missed) == maxChain {
		c.runMissed()
	}
	return true
}

// runMissed runs the tasks that were chained.
func (c *conn) runMissed() {
	if len(c.missed) == 0 {
		return
	}
	ts := c.missed
	c.missed = nil
	c.running.Go(func() {
		var b *batch
		for _, t := range ts {
			if b != nil && !b.room(t.edtl) {
				c.sendOwn(b)
				b = nil
			}
			var done bool
			if b, done = c.slowRead(t, b); !done {
				c.exec(t)
			}
		}
		c.sendOwn(b)
	})
}

// slowRead carries out a plain read as a task, straight into a batch: b, or a new
// one if it is nil. It gives the batch, which is to be sent, and says whether the
// command was a plain read.
func (c *conn) slowRead(t *task, b *batch) (*batch, bool) {
	p, ok := plainCDB(t.cdb[:], t.edtl)
	if !ok || p.write || !t.in || t.out || p.size > maxRecvSegment || !c.lu.admits(p, t.cdb[:]) {
		return b, false
	}
	if b == nil {
		c.tx.wait() // before there is a buffer
		b = c.t.mem.batch()
	}
	pdus, bytes := len(b.pdus), len(b.buf)
	ok, err := c.fill(b, t.tag, p, true)
	if !ok {
		b.cutTo(pdus, bytes)
		if err == nil {
			return b, false // pieces too small for a batch
		}
		c.finishTask(t, failed(err, false))
		return b, true
	}
	c.mu.Lock()
	aborted := t.aborted
	c.release(t)
	c.mu.Unlock()
	if aborted {
		b.cutTo(pdus, bytes)
	}
	close(t.done)
	return b, true
}

// sendOwn sends a batch that a task made.
func (c *conn) sendOwn(b *batch) {
	switch {
	case b == nil:
	case len(b.pdus) == 0:
		c.t.mem.freeBatch(b)
	default:
		b.setWindow(c.window())
		c.tx.commit(b)
	}
}

// settle waits until the receiving goroutine carries out nothing by itself that
// it began before.
func (c *conn) settle() {
	c.hot.Lock()
	defer c.hot.Unlock()
}
