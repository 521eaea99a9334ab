package iscsi

import (
	"bytes"
	"encoding/binary"
)

// Limits that VPD page B0h tells.
const (
	maxBlocks        = maxTransfer / blockSize // of one READ, WRITE, VERIFY
	maxCompareBlocks = 128
)

func (c *call) testUnitReady() result  { return good(nil) }
func (c *call) startStop() result      { return good(nil) }
func (c *call) preventRemoval() result { return good(nil) }

func (c *call) requestSense() result {
	if c.cdb[1]&1 != 0 { // descriptor format
		return check(senseField)
	}
	s := senseNone
	if a, ok := c.attention(); ok {
		s = a
	}
	return good(truncate(s.fixed(), int(c.cdb[4])))
}

// fua says whether the CDB asks for the medium instead of the cache.
func (c *call) fua() bool { return len(c.cdb) > 6 && c.cdb[1]&0x08 != 0 }

func (c *call) readOnly() bool {
	c.unit.mu.Lock()
	defer c.unit.mu.Unlock()
	return c.att.ReadOnly() || c.unit.protected
}

// ranged checks what reads and writes have in common; nil means go on.
func (c *call) ranged(lba uint64, n uint32) *result {
	var r result
	switch {
	case c.protection():
		r = check(senseField)
	case !c.inside(lba, n):
		r = check(senseRange)
	case n > maxBlocks:
		r = check(senseField)
	default:
		return nil
	}
	return &r
}

func (c *call) read() result {
	lba, n := c.extent()
	if r := c.ranged(lba, n); r != nil {
		return *r
	}
	need := int(n) * blockSize
	buf := make([]byte, min(need, c.edtl))
	if _, err := c.att.ReadAt(buf, int64(lba)*blockSize); err != nil {
		return failed(err, false)
	}
	return result{data: buf, used: need}
}

func (c *call) write() result {
	lba, n := c.extent()
	if r := c.ranged(lba, n); r != nil {
		return *r
	}
	if c.readOnly() {
		return check(senseWriteProtect)
	}
	need := int(n) * blockSize
	if r := c.put(lba, c.out[:min(need, len(c.out))]); r != nil {
		return *r
	}
	return moved(need)
}

// put writes whole blocks of p, and makes them durable for FUA.
func (c *call) put(lba uint64, p []byte) *result {
	p = p[:len(p)/blockSize*blockSize]
	c.unit.atomic.RLock()
	defer c.unit.atomic.RUnlock()
	if _, err := c.att.WriteAt(p, int64(lba)*blockSize); err != nil {
		r := failed(err, true)
		return &r
	}
	if c.fua() {
		if err := c.att.Flush(); err != nil {
			r := failed(err, true)
			return &r
		}
	}
	return nil
}

// writeVerify writes, and with BYTCHK compares what it reads back.
func (c *call) writeVerify() result {
	lba, n := c.extent()
	if r := c.ranged(lba, n); r != nil {
		return *r
	}
	if c.readOnly() {
		return check(senseWriteProtect)
	}
	need := int(n) * blockSize
	data := c.out[:min(need, len(c.out))/blockSize*blockSize]
	if r := c.put(lba, data); r != nil {
		return *r
	}
	if err := c.att.Flush(); err != nil {
		return failed(err, true)
	}
	if r := c.compare(lba, data); r != nil {
		return *r
	}
	return moved(need)
}

// verify reads and checks, and with BYTCHK compares with the initiator's data.
func (c *call) verify() result {
	lba, n := c.extent()
	if r := c.ranged(lba, n); r != nil {
		return *r
	}
	need := int(n) * blockSize
	switch c.cdb[1] >> 1 & 3 {
	case 0:
		buf := make([]byte, min(need, fillStep))
		for off := 0; off < need; off += len(buf) {
			part := buf[:min(len(buf), need-off)]
			if _, err := c.att.ReadAt(part, int64(lba)*blockSize+int64(off)); err != nil {
				return failed(err, false)
			}
		}
		return moved(0)
	case 1:
		if r := c.compare(lba, c.out[:min(need, len(c.out))]); r != nil {
			return *r
		}
		return moved(need)
	case 3: // one block that all must equal
		if n == 0 {
			return moved(0)
		}
		if len(c.out) < blockSize {
			return check(senseField)
		}
		part := bytes.Repeat(c.out[:blockSize], int(min(n, fillStep/blockSize)))
		for done := 0; done < need; done += len(part) {
			part = part[:min(len(part), need-done)]
			if r := c.compare(lba+uint64(done/blockSize), part); r != nil {
				r.sense.info += uint32(done)
				return *r
			}
		}
		return moved(blockSize)
	}
	return check(senseField)
}

// compare says where the volume differs from p.
func (c *call) compare(lba uint64, p []byte) *result {
	have := make([]byte, len(p))
	if _, err := c.att.ReadAt(have, int64(lba)*blockSize); err != nil {
		r := failed(err, false)
		return &r
	}
	if at := firstDifference(have, p); at >= 0 {
		s := senseMiscompare
		s.info, s.infoValid = uint32(at), true
		r := check(s)
		return &r
	}
	return nil
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// compareAndWrite writes the second half of its data if the volume equals the
// first, and nobody writes in between (SBC-3, 5.3).
func (c *call) compareAndWrite() result {
	lba, n := binary.BigEndian.Uint64(c.cdb[2:]), uint32(c.cdb[13])
	if r := c.ranged(lba, n); r != nil {
		return *r
	}
	half := int(n) * blockSize
	switch {
	case n > maxCompareBlocks, len(c.out) != 2*half:
		return check(senseField)
	case c.readOnly():
		return check(senseWriteProtect)
	case n == 0:
		return moved(0)
	}
	c.unit.atomic.Lock()
	defer c.unit.atomic.Unlock()
	if r := c.compare(lba, c.out[:half]); r != nil {
		return *r
	}
	if _, err := c.att.WriteAt(c.out[half:2*half], int64(lba)*blockSize); err != nil {
		return failed(err, true)
	}
	if c.fua() {
		if err := c.att.Flush(); err != nil {
			return failed(err, true)
		}
	}
	return moved(2 * half)
}

// orWrite sets the bits of its data in the volume.
func (c *call) orWrite() result {
	lba, n := c.extent()
	if r := c.ranged(lba, n); r != nil {
		return *r
	}
	if c.readOnly() {
		return check(senseWriteProtect)
	}
	need := int(n) * blockSize
	data := c.out[:min(need, len(c.out))/blockSize*blockSize]
	have := make([]byte, len(data))
	c.unit.atomic.Lock()
	defer c.unit.atomic.Unlock()
	if _, err := c.att.ReadAt(have, int64(lba)*blockSize); err != nil {
		return failed(err, false)
	}
	for i := range have {
		have[i] |= data[i]
	}
	if _, err := c.att.WriteAt(have, int64(lba)*blockSize); err != nil {
		return failed(err, true)
	}
	if c.fua() {
		if err := c.att.Flush(); err != nil {
			return failed(err, true)
		}
	}
	return moved(need)
}

func (c *call) prefetch() result {
	lba, n := c.extent()
	if !c.inside(lba, n) {
		return check(senseRange)
	}
	return good(nil)
}

func (c *call) syncCache() result {
	lba, n := c.extent()
	if !c.inside(lba, n) {
		return check(senseRange)
	}
	if err := c.att.Flush(); err != nil {
		return failed(err, true)
	}
	return good(nil)
}

func (c *call) readCapacity10() result {
	if c.cdb[8]&1 == 0 && binary.BigEndian.Uint32(c.cdb[2:]) != 0 {
		return check(senseField)
	}
	b := make([]byte, 8)
	binary.BigEndian.PutUint32(b, uint32(min(c.blocks()-1, 0xffffffff)))
	binary.BigEndian.PutUint32(b[4:], blockSize)
	return good(b)
}

func (c *call) readCapacity16() result {
	b := make([]byte, 32)
	binary.BigEndian.PutUint64(b, c.blocks()-1)
	binary.BigEndian.PutUint32(b[8:], blockSize)
	b[13] = physicalExponent
	b[14] = 0xc0 // LBPME, LBPRZ: thin, and what is unmapped reads as zeros
	return good(truncate(b, int(binary.BigEndian.Uint32(c.cdb[10:]))))
}
