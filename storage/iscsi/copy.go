package iscsi

import (
	"bytes"
	"encoding/binary"
)

// EXTENDED COPY(LID1) within one logical unit (SPC-4, 6.4 and 5.17.7). A copy
// source or destination is found by comparing the names of the unit that the
// session is attached to, and by nothing else: no descriptor can reach another
// volume, whoever's it is (CVE-2020-28374).
const (
	copyHeader     = 16
	copyDeviceSize = 32 // of an identification descriptor, E4h
	copySegSize    = 28 // of a block to block segment, 02h
	maxCopyDevices = 8
	maxCopySegs    = 16
	maxCopyList    = maxCopyDevices*copyDeviceSize + maxCopySegs*copySegSize
	maxCopyBlocks  = 0xffff // of one segment: all that its field can say
	maxCopies      = 8      // copies of one session that are under way or remembered

	copyDeviceType  = 0xe4
	copySegmentType = 0x02
)

var (
	senseTooManyDevices  = sense{key: keyIllegal, asc: 0x26, ascq: 0x06}
	senseCopyDeviceType  = sense{key: keyIllegal, asc: 0x26, ascq: 0x07}
	senseTooManySegments = sense{key: keyIllegal, asc: 0x26, ascq: 0x08}
	senseCopySegmentType = sense{key: keyIllegal, asc: 0x26, ascq: 0x09}
	senseCopyBusy        = sense{key: keyIllegal, asc: 0x00, ascq: 0x16} // operation in progress
	senseCopyResources   = sense{key: keyIllegal, asc: 0x55, ascq: 0x03}
	senseCopyRange       = sense{key: keyCopy}
	senseCopyUnreachable = sense{key: keyCopy, asc: 0x08, ascq: 0x04} // unreachable copy target
	senseCopyNotHere     = sense{key: keyCopy, asc: 0x0d, ascq: 0x02} // copy target device not reachable
)

// copyProgress is what RECEIVE COPY RESULTS tells of one copy; lu.mu guards it.
type copyProgress struct {
	ended, failed bool
	segments      uint16 // processed
	blocks        uint32 // written
}

// copyList is a parsed parameter list.
type copyList struct {
	id       byte
	hold     bool // remember the outcome
	devices  [][]byte
	segments []copySegment
}

type copySegment struct {
	source, destination uint16 // indices of devices
	blocks              uint16
	from, to            uint64 // LBA
}

// parseCopy reads a parameter list; a nil sense means that it is well formed.
func parseCopy(b []byte) (copyList, *sense) {
	bad := func(s sense) (copyList, *sense) { return copyList{}, &s }
	if len(b) < copyHeader {
		return bad(senseParamLength)
	}
	usage := b[1] >> 3 & 3
	l := copyList{id: b[0], hold: usage == 0}
	devices, segments := int(binary.BigEndian.Uint16(b[2:])), uint64(binary.BigEndian.Uint32(b[8:]))
	inline := uint64(binary.BigEndian.Uint32(b[12:]))
	switch {
	case usage == 1, usage == 3 && l.id != 0:
		return bad(senseParam.inData(1))
	case uint64(devices)+segments > maxCopyList, inline != 0, uint64(len(b)) < copyHeader+uint64(devices)+segments:
		return bad(senseParamLength)
	}
	list, rest := b[copyHeader:copyHeader+devices], b[copyHeader+devices:][:segments]
	if len(list) > maxCopyDevices*copyDeviceSize {
		return bad(senseTooManyDevices)
	}
	for ; len(list) > 0; list = list[copyDeviceSize:] {
		switch {
		case list[0] != copyDeviceType:
			return bad(senseCopyDeviceType)
		case len(list) < copyDeviceSize:
			return bad(senseParamLength)
		case list[7] > 20: // a name longer than its field
			return bad(senseParam)
		}
		l.devices = append(l.devices, list[:copyDeviceSize])
	}
	for at := 0; len(rest) > 0; at++ {
		switch {
		case rest[0] != copySegmentType:
			return bad(senseCopySegmentType)
		case at == maxCopySegs:
			return bad(senseTooManySegments)
		case len(rest) < copySegSize, binary.BigEndian.Uint16(rest[2:]) != copySegSize-4:
			return bad(senseParamLength)
		}
		l.segments = append(l.segments, copySegment{
			source: binary.BigEndian.Uint16(rest[4:]), destination: binary.BigEndian.Uint16(rest[6:]),
			blocks: binary.BigEndian.Uint16(rest[10:]),
			from:   binary.BigEndian.Uint64(rest[12:]), to: binary.BigEndian.Uint64(rest[20:]),
		})
		rest = rest[copySegSize:]
	}
	return l, nil
}

// extendedCopy copies within the unit, segment after segment.
func (c *call) extendedCopy() result {
	size := uint64(binary.BigEndian.Uint32(c.cdb[10:]))
	switch {
	case size == 0:
		return moved(0)
	case uint64(len(c.out)) < size:
		return check(senseParamLength)
	}
	l, bad := parseCopy(c.out[:size])
	if bad != nil {
		return check(*bad)
	}
	if c.readOnly() {
		return check(senseWriteProtect)
	}
	p, bad := c.beginCopy(l)
	if bad != nil {
		return check(*bad)
	}
	var r *result
	for i, s := range l.segments {
		if r = c.copySegment(l.devices, s, p); r != nil {
			break
		}
		c.mu.Lock()
		p.segments = uint16(i + 1)
		c.mu.Unlock()
	}
	c.mu.Lock()
	p.ended, p.failed = true, r != nil
	c.mu.Unlock()
	if r != nil {
		return *r
	}
	return moved(int(size))
}

// beginCopy takes the copy's place among those that are remembered.
func (c *call) beginCopy(l copyList) (*copyProgress, *sense) {
	p := &copyProgress{}
	if !l.hold {
		return p, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.copies[l.id]; old != nil && !old.ended {
		return nil, &senseCopyBusy
	}
	delete(c.copies, l.id)
	for id, old := range c.copies {
		if len(c.copies) < maxCopies {
			break
		}
		if old.ended {
			delete(c.copies, id)
		}
	}
	if len(c.copies) >= maxCopies {
		return nil, &senseCopyResources
	}
	if c.copies == nil {
		c.copies = map[byte]*copyProgress{}
	}
	c.copies[l.id] = p
	return p, nil
}

// isMe says whether a descriptor names the unit of this session.
func (c *call) isMe(device []byte) bool {
	name := device[8 : 8+int(device[7])]
	for d := c.identification(); len(d) > 0; d = d[4+int(d[3]):] {
		// The association (0: the unit) must match as well as code set and kind.
		if d[1]&0x30 == 0 && device[5]&0x30 == 0 && d[0]&0x0f == device[4]&0x0f && d[1]&0x0f == device[5]&0x0f &&
			bytes.Equal(d[4:4+int(d[3])], name) {
			return true
		}
	}
	return false
}

// copySegment copies one segment. Where source and destination overlap it goes
// backwards, so that what is read is never what was just written.
func (c *call) copySegment(devices [][]byte, s copySegment, p *copyProgress) *result {
	bad := func(s sense) *result { r := check(s); return &r }
	for _, i := range []uint16{s.source, s.destination} {
		switch {
		case int(i) >= len(devices):
			return bad(senseCopyUnreachable)
		case !c.isMe(devices[i]):
			return bad(senseCopyNotHere)
		}
	}
	if !c.inside(s.from, uint32(s.blocks)) || !c.inside(s.to, uint32(s.blocks)) {
		return bad(senseCopyRange)
	}
	size := int64(s.blocks) * blockSize
	from, to := int64(s.from)*blockSize, int64(s.to)*blockSize
	buf := make([]byte, min(size, fillStep))
	for done := int64(0); done < size; {
		n := min(int64(len(buf)), size-done)
		at := done
		if to > from {
			at = size - done - n
		}
		r := c.inSteps(to+at, n, n, func(off, n int64) error {
			if _, err := c.att.ReadAt(buf[:n], from+at); err != nil {
				return err
			}
			_, err := c.att.WriteAt(buf[:n], off)
			return err
		})
		if r != nil {
			return r
		}
		done += n
		c.mu.Lock()
		p.blocks += uint32(n / blockSize)
		c.mu.Unlock()
	}
	return nil
}

// copyStatus tells of a copy of this session, once it has ended for the last
// time.
func (c *call) copyStatus() result {
	id := c.cdb[2]
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.copies[id]
	if p == nil {
		return check(senseField.inCDB(2))
	}
	b := []byte{0, 0, 0, 8, 0, 0, 0, 0xf1, 0, 0, 0, 0} // F1h: the count is in blocks
	switch {
	case p.failed:
		b[4] = 2
	case p.ended:
		b[4] = 1
	}
	binary.BigEndian.PutUint16(b[5:], p.segments)
	binary.BigEndian.PutUint32(b[8:], p.blocks)
	if p.ended {
		delete(c.copies, id)
	}
	return good(truncate(b, int(binary.BigEndian.Uint32(c.cdb[10:]))))
}

// copyParameters tells the limits of EXTENDED COPY.
func (c *call) copyParameters() result {
	b := make([]byte, 44)
	binary.BigEndian.PutUint16(b[8:], maxCopyDevices)
	binary.BigEndian.PutUint16(b[10:], maxCopySegs)
	binary.BigEndian.PutUint32(b[12:], maxCopyList)
	binary.BigEndian.PutUint32(b[16:], maxCopyBlocks*blockSize)
	binary.BigEndian.PutUint16(b[34:], maxCopies)
	b[36] = maxCopies
	b[37] = 9 // granularity of 512 bytes
	b = append(b, copySegmentType, copyDeviceType)
	b[43] = 2
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return good(truncate(b, int(binary.BigEndian.Uint32(c.cdb[10:]))))
}

// thirdPartyCopy gives VPD page 8Fh (SPC-4, 7.8.17).
func thirdPartyCopy() []byte {
	var b []byte
	add := func(kind, size uint16) []byte {
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint16(b, size)
		b = append(b, make([]byte, size)...)
		return b[len(b)-int(size):]
	}
	// Supported commands: EXTENDED COPY, and two ways to ask for results.
	copy(add(0x0001, 8), []byte{7, 0x83, 1, 0x00, 0x84, 2, 0x00, 0x03})
	d := add(0x0004, 28) // parameter data
	binary.BigEndian.PutUint16(d[4:], maxCopyDevices)
	binary.BigEndian.PutUint16(d[6:], maxCopySegs)
	binary.BigEndian.PutUint32(d[8:], maxCopyList)
	copy(add(0x0008, 4), []byte{2, copySegmentType, copyDeviceType}) // supported descriptors
	add(0x000c, 4)                                                   // no CSCD descriptor ids
	d = add(0x8001, 32)                                              // general copy operations
	binary.BigEndian.PutUint32(d, maxCopies)
	binary.BigEndian.PutUint32(d[4:], maxCopies)
	binary.BigEndian.PutUint32(d[8:], maxCopyBlocks*blockSize)
	d[12] = 9
	return b
}
