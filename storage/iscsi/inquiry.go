package iscsi

import (
	"bytes"
	"encoding/binary"
)

// Names that INQUIRY gives, padded to their fields.
const (
	vendor   = "HOTSPARE"
	product  = "VOLUME          "
	revision = "0001"
)

// standardInquiry gives the standard data (SPC-4, 6.6.2).
func standardInquiry() []byte {
	b := make([]byte, 96)
	b[2] = 0x06 // SPC-4
	b[3] = 0x12 // HISUP, response format 2
	b[4] = byte(len(b) - 5)
	b[5] = 0x08 // 3PC
	b[7] = 0x02 // CMDQUE
	copy(b[8:], vendor)
	copy(b[16:], product)
	copy(b[32:], revision)
	for i, v := range []uint16{0x00a0, 0x0960, 0x0460, 0x04c0} { // SAM-5, iSCSI, SPC-4, SBC-3
		binary.BigEndian.PutUint16(b[58+2*i:], v)
	}
	return b
}

func (c *call) inquiry() result {
	size := int(binary.BigEndian.Uint16(c.cdb[3:]))
	if c.cdb[1]&1 == 0 {
		if c.cdb[2] != 0 {
			return check(senseField)
		}
		return good(truncate(standardInquiry(), size))
	}
	var page []byte
	switch c.cdb[2] {
	case 0x00:
		page = []byte{0x00, 0x80, 0x83, 0x8f, 0xb0, 0xb1, 0xb2}
	case 0x80:
		page = []byte(c.att.Export().UID)
	case 0x83:
		page = c.identification()
	case 0x8f:
		page = thirdPartyCopy()
	case 0xb0:
		page = blockLimits()
	case 0xb1:
		page = make([]byte, 60)
		page[1] = 1 // does not rotate
	case 0xb2:
		page = []byte{0, 0xe4, 2, 0} // UNMAP and both WRITE SAME unmap, unmapped is zeros; thin
	default:
		return check(senseField.inCDB(2))
	}
	b := append([]byte{0, c.cdb[2], byte(len(page) >> 8), byte(len(page))}, page...)
	return good(truncate(b, size))
}

// identification gives VPD page 83h: the unit's names, the port and the target.
func (c *call) identification() []byte {
	e := c.att.Export()
	var b []byte
	add := func(codeSet, kind byte, id []byte) {
		piv := byte(0x80) // the protocol is named for ports and devices
		if kind&0x30 == 0 {
			piv = 0
		}
		b = append(b, 0x50|codeSet, piv|kind, 0, byte(len(id)))
		b = append(b, id...)
	}
	text := func(s string) []byte { // NUL-terminated, a multiple of four
		p := append([]byte(s), 0)
		return append(p, make([]byte, pad(len(p)))...)
	}
	naa := e.NAA
	add(1, 0x03, naa[:])                      // logical unit: NAA
	add(2, 0x01, []byte(vendor+e.UID))        // logical unit: T10 vendor id
	add(1, 0x14, []byte{0, 0, 0, 1})          // target port: relative port 1
	add(3, 0x18, text(e.TargetName+",t,0x1")) // target port: SCSI name
	add(3, 0x28, text(e.TargetName))          // target device: SCSI name
	return b
}

// blockLimits gives VPD page B0h (SBC-3, 6.6.4).
func blockLimits() []byte {
	b := make([]byte, 60)
	b[1] = maxCompareBlocks
	binary.BigEndian.PutUint16(b[2:], unmapGranularity)
	binary.BigEndian.PutUint32(b[4:], maxBlocks)
	binary.BigEndian.PutUint32(b[8:], maxBurst/blockSize)
	binary.BigEndian.PutUint32(b[16:], maxUnmapBlocks)
	binary.BigEndian.PutUint32(b[20:], maxUnmapRanges)
	binary.BigEndian.PutUint32(b[24:], unmapGranularity)
	binary.BigEndian.PutUint32(b[28:], 0x80000000) // alignment 0 is valid
	binary.BigEndian.PutUint64(b[32:], maxSameBlocks)
	return b
}

func (c *call) reportLUNs() result {
	if c.cdb[2] > 2 {
		return check(senseField)
	}
	b := make([]byte, 8, 16)
	if c.cdb[2] != 1 { // 1 asks for well-known units only
		b = append(b, make([]byte, 8)...)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-8))
	return good(truncate(b, int(binary.BigEndian.Uint32(c.cdb[6:]))))
}

// reportOperations lists the command table, or one row of it (SPC-4, 6.35).
func (c *call) reportOperations() result {
	size := int(binary.BigEndian.Uint32(c.cdb[6:]))
	timeouts := c.cdb[2]&0x80 != 0
	action := int(binary.BigEndian.Uint16(c.cdb[4:]))
	table := c.lu.c.t.operations
	if c.cdb[2]&7 == 0 {
		b := make([]byte, 4)
		for _, o := range table {
			d := make([]byte, 8)
			d[0] = o.opcode
			if o.action >= 0 {
				binary.BigEndian.PutUint16(d[2:], uint16(o.action))
				d[5] = 1
			}
			binary.BigEndian.PutUint16(d[6:], uint16(o.size))
			if timeouts {
				d[5] |= 2
				d = append(d, noTimeouts()...)
			}
			b = append(b, d...)
		}
		binary.BigEndian.PutUint32(b, uint32(len(b)-4))
		return good(truncate(b, size))
	}
	known, actions := false, false
	var row *operation
	for i := range table {
		o := &table[i]
		if o.opcode != c.cdb[3] {
			continue
		}
		known, actions = true, actions || o.action >= 0
		if o.action < 0 || o.action == action {
			row = o
		}
	}
	switch how := c.cdb[2] & 7; {
	case how > 3, how == 1 && known && actions, how == 2 && known && !actions:
		return check(senseField.inCDB(2))
	case how == 3 && row != nil && row.action < 0 && action != 0:
		row = nil
	}
	b := []byte{0, 1, 0, 0} // not supported
	if row != nil {
		b[1] = 3
		binary.BigEndian.PutUint16(b[2:], uint16(row.size))
		usage := bytes.Clone(row.usage)
		usage[0] = row.opcode
		if row.action >= 0 {
			usage[1] = usage[1]&0xe0 | byte(row.action)
		}
		b = append(b, usage...)
		if timeouts {
			b[1] |= 0x80
			b = append(b, noTimeouts()...)
		}
	}
	return good(truncate(b, size))
}

// noTimeouts is a command timeouts descriptor that names none.
func noTimeouts() []byte { return []byte{0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} }

// readDefects serves READ DEFECT DATA 10 and 12 (SBC-3, 5.21 and 5.22): a volume
// has no list of defects, whatever the format.
func (c *call) readDefects() result {
	if len(c.cdb) == 10 {
		b := []byte{0, c.cdb[2] & 0x1f, 0, 0}
		return good(truncate(b, int(binary.BigEndian.Uint16(c.cdb[7:]))))
	}
	b := []byte{0, c.cdb[1] & 0x1f, 0, 0, 0, 0, 0, 0}
	return good(truncate(b, int(binary.BigEndian.Uint32(c.cdb[6:]))))
}
