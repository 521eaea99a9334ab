package iscsi

import (
	"bytes"
	"encoding/binary"
)

// Limits that VPD page B0h tells.
const (
	maxSameBlocks    = 1<<16 - 1
	maxUnmapRanges   = 256
	maxUnmapBlocks   = 512 << 20 / blockSize
	unmapGranularity = 8 // blocks: 4 KiB
)

// What a long command does between two looks at whether it was aborted, and
// with the lock against COMPARE AND WRITE held.
const (
	fillStep    = 256 << 10
	discardStep = maxUnmapBlocks * blockSize
)

// writeSame fills a range with one block, or unmaps it. Zeros are stored by
// discarding: what is unmapped reads as zeros (LBPRZ). Anything else is written
// also where UNMAP is set: what is read afterwards must be what was sent. No
// blocks means all to the end (WSNZ is 0; SBC-3, 5.43).
func (c *call) writeSame() result {
	lba, n := c.extent()
	noData := len(c.cdb) == 16 && c.cdb[1]&0x01 != 0
	count := uint64(n)
	switch {
	case c.protection(), c.cdb[1]&0x10 != 0: // ANCHOR
		return check(senseField.inCDB(1))
	case !c.inside(lba, n):
		return check(senseRange)
	case n == 0:
		count = c.blocks() - lba
	}
	switch {
	case count == 0: // at the very end
		return check(senseRange)
	case count > maxSameBlocks:
		return check(c.senseCount())
	case c.readOnly():
		return check(senseWriteProtect)
	case !noData && len(c.out) != blockSize:
		return check(senseField)
	}
	block, used := make([]byte, blockSize), 0
	if !noData {
		block, used = c.out[:blockSize], blockSize
	}
	off, size := int64(lba)*blockSize, int64(count)*blockSize
	var r *result
	if isZero(block) {
		r = c.discard(off, size)
	} else {
		r = c.fill(off, size, block)
	}
	if r != nil {
		return *r
	}
	return moved(used)
}

// fill writes block again and again.
func (c *call) fill(off, size int64, block []byte) *result {
	p := bytes.Repeat(block, int(min(size, fillStep)/blockSize))
	return c.inSteps(off, size, int64(len(p)), func(off, n int64) error {
		_, err := c.att.WriteAt(p[:n], off)
		return err
	})
}

// discard makes a range read as zeros.
func (c *call) discard(off, size int64) *result {
	return c.inSteps(off, size, discardStep, c.att.Discard)
}

// inSteps changes a range piece by piece: a long command must end when it is
// aborted, and let others have their turn.
func (c *call) inSteps(off, size, step int64, change func(off, n int64) error) *result {
	for end := off + size; off < end; off += step {
		if c.aborted() {
			r := check(senseAborted)
			return &r
		}
		c.unit.atomic.RLock()
		err := change(off, min(step, end-off))
		c.unit.atomic.RUnlock()
		if err != nil {
			r := failed(err, true)
			return &r
		}
	}
	return nil
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// unmap discards a list of ranges (SBC-3, 5.28). All are checked first.
func (c *call) unmap() result {
	size := int(binary.BigEndian.Uint16(c.cdb[7:]))
	switch {
	case c.cdb[1]&1 != 0: // ANCHOR
		return check(senseField.inCDB(1))
	case c.readOnly():
		return check(senseWriteProtect)
	case size == 0:
		return moved(0)
	case size < 8 || len(c.out) < size:
		return check(senseParamLength)
	}
	list := c.out[8:size]
	list = list[:min(len(list), int(binary.BigEndian.Uint16(c.out[2:])))/16*16]
	if len(list)/16 > maxUnmapRanges {
		return check(senseParam)
	}
	for d := list; len(d) > 0; d = d[16:] {
		lba, n := binary.BigEndian.Uint64(d), binary.BigEndian.Uint32(d[8:])
		if !c.inside(lba, n) {
			return check(senseRange)
		}
		if n > maxUnmapBlocks {
			return check(senseParam)
		}
	}
	for d := list; len(d) > 0; d = d[16:] {
		lba, n := binary.BigEndian.Uint64(d), binary.BigEndian.Uint32(d[8:])
		if r := c.discard(int64(lba)*blockSize, int64(n)*blockSize); r != nil {
			return *r
		}
	}
	return moved(size)
}

// What one GET LBA STATUS tells at most: it must not take long.
const (
	maxStatuses    = 64
	maxStatusBytes = 64 << 30
)

// lbaStatus tells which blocks are mapped (SBC-3, 5.4). The first descriptor
// begins where the CDB says, each further one where the last one ended.
func (c *call) lbaStatus() result {
	lba := binary.BigEndian.Uint64(c.cdb[2:])
	size := int(binary.BigEndian.Uint32(c.cdb[10:]))
	end := c.blocks()
	if lba >= end {
		return check(senseRange)
	}
	b := make([]byte, 8)
	for told := int64(0); lba < end && told < maxStatusBytes && (len(b) < min(size, 8+16*maxStatuses) || len(b) == 8); {
		mapped, n, err := c.att.Mapped(int64(lba)*blockSize, maxStatusBytes)
		if err != nil {
			return failed(err, false)
		}
		blocks := uint64(max(n, blockSize)) / blockSize
		d := binary.BigEndian.AppendUint64(nil, lba)
		d = binary.BigEndian.AppendUint32(d, uint32(blocks))
		d = append(d, 0, 0, 0, 0)
		if !mapped {
			d[12] = 1 // deallocated
		}
		b = append(b, d...)
		lba += blocks
		told += n
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return good(truncate(b, size))
}
