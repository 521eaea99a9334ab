package iscsi

import (
	"bytes"
	"encoding/binary"
)

// modePages gives the pages that the unit has, as their current values or as a
// mask of what MODE SELECT may change.
func (c *call) modePages(changeable bool) [][]byte {
	caching := make([]byte, 20)
	caching[0], caching[1] = 0x08, 18
	control := make([]byte, 12)
	control[0], control[1] = 0x0a, 10
	exceptions := make([]byte, 12)
	exceptions[0], exceptions[1] = 0x1c, 10
	if changeable {
		control[4] = 0x08
		return [][]byte{caching, control, exceptions}
	}
	caching[2] = 0x04 // WCE: what is not flushed may be lost with the power
	c.unit.mu.Lock()
	if c.unit.protected {
		control[4] = 0x08 // SWP
	}
	c.unit.mu.Unlock()
	exceptions[2] = 0x08 // DEXCPT
	return [][]byte{caching, control, exceptions}
}

// modeSense serves both sizes.
func (c *call) modeSense() result {
	page, sub := c.cdb[2]&0x3f, c.cdb[3]
	control := c.cdb[2] >> 6
	if control == 3 {
		return check(sense{key: keyIllegal, asc: 0x39}) // nothing is saved
	}
	if sub != 0 && sub != 0xff {
		return check(senseField)
	}
	var pages []byte
	for _, p := range c.modePages(control == 1) {
		if page == 0x3f || page == p[0] {
			pages = append(pages, p...)
		}
	}
	if len(pages) == 0 {
		return check(senseField)
	}
	specific := byte(0x10) // DPOFUA
	if c.readOnly() {
		specific |= 0x80
	}
	var desc []byte
	if c.cdb[1]&0x08 == 0 {
		desc = make([]byte, 8)
		binary.BigEndian.PutUint32(desc, uint32(min(c.blocks(), 0xffffffff)))
		desc[6] = blockSize >> 8
	}
	if len(c.cdb) == 6 {
		b := append([]byte{0, 0, specific, byte(len(desc))}, append(desc, pages...)...)
		b[0] = byte(len(b) - 1)
		return good(truncate(b, int(c.cdb[4])))
	}
	b := append([]byte{0, 0, 0, specific, 0, 0, 0, byte(len(desc))}, append(desc, pages...)...)
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	return good(truncate(b, int(binary.BigEndian.Uint16(c.cdb[7:]))))
}

// modeSelect changes the write protection bit; everything else must be as it is.
func (c *call) modeSelect() result {
	head, size := 4, int(c.cdb[4])
	if len(c.cdb) == 10 {
		head, size = 8, int(binary.BigEndian.Uint16(c.cdb[7:]))
	}
	if c.cdb[1]&0x10 == 0 || c.cdb[1]&0x01 != 0 { // page format, not saved
		return check(senseField)
	}
	if size == 0 {
		return moved(0)
	}
	if size < head || len(c.out) < size {
		return check(senseParamLength)
	}
	b := c.out[:size]
	descs := int(b[3])
	if head == 8 {
		descs = int(binary.BigEndian.Uint16(b[6:]))
	}
	if len(b) < head+descs {
		return check(senseParamLength)
	}
	current, mask := c.modePages(false), c.modePages(true)
	protect := current[1][4]&0x08 != 0
	for p := b[head+descs:]; len(p) > 0; {
		if len(p) < 2 || len(p) < 2+int(p[1]) {
			return check(senseParamLength)
		}
		n := 2 + int(p[1])
		i := indexOfPage(current, p[0]&0x3f)
		if i < 0 || len(current[i]) != n || !onlyChanges(p[2:n], current[i][2:], mask[i][2:]) {
			return check(senseParam)
		}
		if i == 1 {
			protect = p[4]&0x08 != 0
		}
		p = p[n:]
	}
	c.protect(protect)
	return moved(size)
}

// protect sets the write protection and tells the other sessions.
func (c *call) protect(on bool) {
	c.unit.mu.Lock()
	changed := c.unit.protected != on
	c.unit.protected = on
	c.unit.mu.Unlock()
	if !changed {
		return
	}
	for _, l := range c.unit.members() {
		if l != c.lu {
			l.attend(attentionModeChange)
		}
	}
}

func indexOfPage(pages [][]byte, code byte) int {
	for i, p := range pages {
		if p[0] == code {
			return i
		}
	}
	return -1
}

// onlyChanges says whether p differs from current in bits of mask alone.
func onlyChanges(p, current, mask []byte) bool {
	q := bytes.Clone(p)
	for i := range q {
		q[i] = q[i]&^mask[i] | current[i]&mask[i]
	}
	return bytes.Equal(q, current)
}
