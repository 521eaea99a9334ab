package iscsi

import (
	"bufio"
	"encoding/binary"
	"io"
	"math/bits"
	"sync"
)

// batch is a run of PDUs that are sent with one write. Data is put straight into
// its wire form; sequence numbers and header digests are set when the batch is
// committed, so that they come in the order of the wire.
type batch struct {
	buf  []byte
	pdus []framed
	data int // where the data segment of the PDU that is being made begins
	sent int // bytes that are on the wire already
}

// framed is one PDU of a batch.
type framed struct {
	at       int  // of its header in buf
	withStat bool // the StatSN field is set
	counted  bool // and used up
}

// batchSize holds the largest data segment that we send, and the headers of as
// much data in pieces of the standard's default length.
const batchSize = maxRecvSegment + 8<<10

// frameSize bounds what a PDU with n bytes of data takes.
func frameSize(n int) int { return HeaderSize + n + 3 + 8 }

// room says whether a PDU with n bytes of data fits.
func (b *batch) room(n int) bool { return len(b.buf)+frameSize(n) <= cap(b.buf) }

// begin appends a PDU with n bytes of data, gives the place of the data, and
// wants an end after that is filled. There must be room.
func (b *batch) begin(h *Header, n int, d Digests, withStat, counted bool) []byte {
	h[4] = 0
	h.SetDataLength(n)
	b.pdus = append(b.pdus, framed{len(b.buf), withStat, counted})
	b.buf = append(b.buf, h[:]...)
	if d.Header {
		b.buf = append(b.buf, 0, 0, 0, 0)
	}
	b.data = len(b.buf)
	b.buf = b.buf[:b.data+n]
	return b.buf[b.data:]
}

// end pads the data and adds its digest.
func (b *batch) end(d Digests) {
	n := len(b.buf) - b.data
	if n == 0 {
		return
	}
	for range pad(n) {
		b.buf = append(b.buf, 0)
	}
	if d.Data {
		b.buf = binary.LittleEndian.AppendUint32(b.buf, Digest(b.buf[b.data:]))
	}
}

// add appends a whole PDU.
func (b *batch) add(h *Header, data []byte, d Digests, withStat, counted bool) {
	copy(b.begin(h, len(data), d, withStat, counted), data)
	b.end(d)
}

// cutTo takes back the PDUs after the first n, which took so many bytes.
func (b *batch) cutTo(n, bytes int) { b.pdus, b.buf = b.pdus[:n], b.buf[:bytes] }

// number sets what only the order of sending decides, in the PDUs from the
// first one on, and gives the next StatSN.
func (b *batch) number(first int, statSN uint32, d Digests) uint32 {
	for _, p := range b.pdus[first:] {
		h := b.buf[p.at:]
		if p.withStat {
			binary.BigEndian.PutUint32(h[24:], statSN)
		}
		if p.counted {
			statSN++
		}
		if d.Header {
			binary.LittleEndian.PutUint32(h[HeaderSize:], Digest(h[:HeaderSize]))
		}
	}
	return statSN
}

// setWindow sets ExpCmdSN and MaxCmdSN of all PDUs.
func (b *batch) setWindow(exp, limit uint32) {
	for _, p := range b.pdus {
		binary.BigEndian.PutUint32(b.buf[p.at+28:], exp)
		binary.BigEndian.PutUint32(b.buf[p.at+32:], limit)
	}
}

// memory keeps buffers that connections use for moments. Its methods are safe
// for concurrent use.
type memory struct {
	batches sync.Pool
	readers sync.Pool
	buffers [bufferClasses]sync.Pool
}

// Buffers for write data come in powers of two, 16 KiB to 1 MiB.
const (
	smallestBuffer = 14
	bufferClasses  = 7
)

func (m *memory) batch() *batch {
	if b, ok := m.batches.Get().(*batch); ok {
		return b
	}
	return &batch{buf: make([]byte, 0, batchSize)}
}

func (m *memory) freeBatch(b *batch) {
	b.buf, b.pdus, b.sent = b.buf[:0], b.pdus[:0], 0
	m.batches.Put(b)
}

// reader gives a receive buffer.
func (m *memory) reader(from io.Reader) *bufio.Reader {
	if r, ok := m.readers.Get().(*bufio.Reader); ok {
		r.Reset(from)
		return r
	}
	return bufio.NewReaderSize(from, 64<<10)
}

func (m *memory) freeReader(r *bufio.Reader) {
	r.Reset(nil)
	m.readers.Put(r)
}

func bufferClass(n int) int { return max(0, bits.Len(uint(n-1))-smallestBuffer) }

// buffer gives n bytes that hold anything; nil if there are none of that size.
func (m *memory) buffer(n int) []byte {
	class := bufferClass(n)
	if n <= 0 || class >= bufferClasses {
		return nil
	}
	if p, ok := m.buffers[class].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, 1<<(smallestBuffer+class))
}

// pooled says whether p can have come from buffer.
func pooled(p []byte) bool {
	n := cap(p)
	return n&(n-1) == 0 && n >= 1<<smallestBuffer && bufferClass(n) < bufferClasses
}

// freeBuffer takes back a pooled buffer.
func (m *memory) freeBuffer(p []byte) {
	p = p[:0]
	m.buffers[bufferClass(cap(p))].Put(&p)
}
