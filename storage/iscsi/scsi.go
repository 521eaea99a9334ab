package iscsi

import "encoding/binary"

// blockSize is the logical block; the physical one is 8 of them, the block of
// the store.
const (
	blockSize        = 512
	physicalExponent = 3
)

// call is one command on its way through its handler.
type call struct {
	*lu
	task *task
	cdb  []byte
	out  []byte // data from the initiator, all of it
	edtl int
}

// operation is one row of the command table.
type operation struct {
	opcode  byte
	action  int // service action, -1 if the opcode has none
	size    int // of the CDB
	usage   []byte
	access  access
	handler func(*call) result
}

// access says what a reservation of somebody else allows (SPC-4, table 67).
type access byte

const (
	accessAlways access = iota // inquiries
	accessRead
	accessWrite
)

// buildOperations gives the table of all commands that the target knows. usage
// is the CDB usage data of REPORT SUPPORTED OPERATION CODES: the bits that mean
// something.
func buildOperations() []operation {
	ff := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = 0xff
		}
		return b
	}
	u := func(parts ...[]byte) []byte {
		var b []byte
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	by := func(b ...byte) []byte { return b }
	lba8, n4, lba4, n2 := ff(8), ff(4), ff(4), ff(2)
	return []operation{
		{0x00, -1, 6, by(0, 0, 0, 0, 0, 4), accessAlways, (*call).testUnitReady},
		{0x03, -1, 6, by(3, 1, 0, 0, 0xff, 4), accessAlways, (*call).requestSense},
		{0x08, -1, 6, by(8, 0x1f, 0xff, 0xff, 0xff, 4), accessRead, (*call).read},
		{0x0a, -1, 6, by(0x0a, 0x1f, 0xff, 0xff, 0xff, 4), accessWrite, (*call).write},
		{0x12, -1, 6, by(0x12, 1, 0xff, 0xff, 0xff, 4), accessAlways, (*call).inquiry},
		{0x15, -1, 6, by(0x15, 0x11, 0, 0, 0xff, 4), accessWrite, (*call).modeSelect},
		{0x16, -1, 6, by(0x16, 0, 0, 0, 0, 4), accessAlways, (*call).reserve6},
		{0x17, -1, 6, by(0x17, 0, 0, 0, 0, 4), accessAlways, (*call).release6},
		{0x1a, -1, 6, by(0x1a, 8, 0xff, 0xff, 0xff, 4), accessRead, (*call).modeSense},
		{0x1b, -1, 6, by(0x1b, 1, 0, 0x0f, 0xf7, 4), accessWrite, (*call).startStop},
		{0x1e, -1, 6, by(0x1e, 0, 0, 0, 3, 4), accessWrite, (*call).preventRemoval},
		{0x25, -1, 10, by(0x25, 0, 0, 0, 0, 0, 0, 0, 0, 4), accessAlways, (*call).readCapacity10},
		{0x28, -1, 10, u(by(0x28, 0xf8), lba4, by(0), n2, by(4)), accessRead, (*call).read},
		{0x2a, -1, 10, u(by(0x2a, 0xf8), lba4, by(0), n2, by(4)), accessWrite, (*call).write},
		{0x2e, -1, 10, u(by(0x2e, 0xf2), lba4, by(0), n2, by(4)), accessWrite, (*call).writeVerify},
		{0x2f, -1, 10, u(by(0x2f, 0xf6), lba4, by(0), n2, by(4)), accessRead, (*call).verify},
		{0x34, -1, 10, u(by(0x34, 2), lba4, by(0), n2, by(4)), accessRead, (*call).prefetch},
		{0x35, -1, 10, u(by(0x35, 2), lba4, by(0), n2, by(4)), accessWrite, (*call).syncCache},
		{0x37, -1, 10, by(0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 4), accessRead, (*call).readDefects},
		{0x41, -1, 10, u(by(0x41, 0xf8), lba4, by(0), n2, by(4)), accessWrite, (*call).writeSame},
		{0x42, -1, 10, by(0x42, 1, 0, 0, 0, 0, 0, 0xff, 0xff, 4), accessWrite, (*call).unmap},
		{0x55, -1, 10, by(0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 4), accessWrite, (*call).modeSelect},
		{0x5a, -1, 10, by(0x5a, 8, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 4), accessRead, (*call).modeSense},
		{0x5e, 0, 10, by(0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 4), accessAlways, (*call).readKeys},
		{0x5e, 1, 10, by(0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 4), accessAlways, (*call).readReservation},
		{0x5e, 2, 10, by(0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 4), accessAlways, (*call).reportCapabilities},
		{0x5e, 3, 10, by(0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 4), accessAlways, (*call).readFullStatus},
		{0x5f, 0, 10, by(0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4), accessAlways, (*call).reserveOut},
		{0x5f, 1, 10, by(0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4), accessAlways, (*call).reserveOut},
		{0x5f, 2, 10, by(0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4), accessAlways, (*call).reserveOut},
		{0x5f, 3, 10, by(0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4), accessAlways, (*call).reserveOut},
		{0x5f, 4, 10, by(0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4), accessAlways, (*call).reserveOut},
		{0x5f, 5, 10, by(0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4), accessAlways, (*call).reserveOut},
		{0x5f, 6, 10, by(0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 4), accessAlways, (*call).reserveOut},
		{0x83, 0, 16, u(by(0x83, 0x1f), make([]byte, 8), n4, by(0, 4)), accessWrite, (*call).extendedCopy},
		{0x84, 0, 16, u(by(0x84, 0x1f, 0xff), make([]byte, 7), n4, by(0, 4)), accessWrite, (*call).copyStatus},
		{0x84, 3, 16, u(by(0x84, 0x1f, 0xff), make([]byte, 7), n4, by(0, 4)), accessWrite, (*call).copyParameters},
		{0x88, -1, 16, u(by(0x88, 0xf8), lba8, n4, by(0, 4)), accessRead, (*call).read},
		{0x89, -1, 16, u(by(0x89, 0xf8), lba8, by(0, 0, 0, 0xff, 0, 4)), accessWrite, (*call).compareAndWrite},
		{0x8a, -1, 16, u(by(0x8a, 0xf8), lba8, n4, by(0, 4)), accessWrite, (*call).write},
		{0x8b, -1, 16, u(by(0x8b, 0xf8), lba8, n4, by(0, 4)), accessWrite, (*call).orWrite},
		{0x8e, -1, 16, u(by(0x8e, 0xf2), lba8, n4, by(0, 4)), accessWrite, (*call).writeVerify},
		{0x8f, -1, 16, u(by(0x8f, 0xf6), lba8, n4, by(0, 4)), accessRead, (*call).verify},
		{0x90, -1, 16, u(by(0x90, 2), lba8, n4, by(0, 4)), accessRead, (*call).prefetch},
		{0x91, -1, 16, u(by(0x91, 2), lba8, n4, by(0, 4)), accessWrite, (*call).syncCache},
		{0x93, -1, 16, u(by(0x93, 0xf9), lba8, n4, by(0, 4)), accessWrite, (*call).writeSame},
		{0x9e, 0x10, 16, u(by(0x9e, 0x1f), make([]byte, 8), n4, by(0, 4)), accessAlways, (*call).readCapacity16},
		{0x9e, 0x12, 16, u(by(0x9e, 0x1f), lba8, n4, by(0, 4)), accessRead, (*call).lbaStatus},
		{0xa0, -1, 12, u(by(0xa0, 0, 0xff, 0, 0, 0), n4, by(0, 4)), accessAlways, (*call).reportLUNs},
		{0xa3, 0x0c, 12, u(by(0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff), n4, by(0, 4)), accessAlways, (*call).reportOperations},
		{0xa8, -1, 12, u(by(0xa8, 0xf8), lba4, n4, by(0, 4)), accessRead, (*call).read},
		{0xaa, -1, 12, u(by(0xaa, 0xf8), lba4, n4, by(0, 4)), accessWrite, (*call).write},
		{0xae, -1, 12, u(by(0xae, 0xf2), lba4, n4, by(0, 4)), accessWrite, (*call).writeVerify},
		{0xaf, -1, 12, u(by(0xaf, 0xf6), lba4, n4, by(0, 4)), accessRead, (*call).verify},
		{0xb7, -1, 12, u(by(0xb7, 0x1f), n4, n4, by(0, 4)), accessRead, (*call).readDefects},
	}
}

// find gives the operation of a CDB; sense says what is unknown if there is
// none.
func find(operations []operation, cdb []byte) (*operation, sense) {
	s := senseOpcode
	for i := range operations {
		o := &operations[i]
		if o.opcode != cdb[0] {
			continue
		}
		if o.action < 0 || o.action == int(cdb[1]&0x1f) {
			return o, senseNone
		}
		s = senseField.inCDB(1) // the opcode is known, its service action is not
	}
	return nil, s
}

// execute runs the command of a task.
func (l *lu) execute(t *task) result {
	cdb := t.cdb[:]
	o, s := find(l.c.t.operations, cdb)
	if cdb[0] != 0x12 && cdb[0] != 0xa0 && cdb[0] != 0x03 { // these never meet an attention
		if a, ok := l.attention(); ok {
			return check(a)
		}
	}
	if o == nil {
		return check(s)
	}
	if cdb[o.size-1]&0x04 != 0 { // NACA is not supported
		return check(senseField.inCDB(o.size - 1))
	}
	if !l.unit.allows(l, o) {
		return reservationConflict()
	}
	return o.handler(&call{lu: l, task: t, cdb: cdb[:o.size], out: t.buf, edtl: t.edtl})
}

// aborted says whether the command was aborted, by a task management request or
// by the end of its connection.
func (c *call) aborted() bool {
	c.lu.c.mu.Lock()
	defer c.lu.c.mu.Unlock()
	return c.task.aborted
}

// special answers what does not reach the unit: commands to other logical units
// (of which only the inquiries have an answer) and those beyond our limits.
func (l *lu) special(h *Header, beyond bool) result {
	if h.LUN() == 0 || beyond {
		return check(senseField)
	}
	cdb := h.CDB()
	switch cdb[0] {
	case 0x12:
		if cdb[1]&1 == 1 {
			return check(senseNoLUN)
		}
		b := standardInquiry()
		b[0] = 0x7f // no such unit
		return good(truncate(b, int(binary.BigEndian.Uint16(cdb[3:]))))
	case 0xa0:
		return (&call{lu: l, cdb: cdb}).reportLUNs()
	case 0x03:
		return good(truncate(senseNoLUN.fixed(), int(cdb[4])))
	}
	return check(senseNoLUN)
}

// truncate cuts to the allocation length.
func truncate(b []byte, n int) []byte { return b[:min(len(b), n)] }

// extent gives the logical blocks that a CDB names.
func (c *call) extent() (lba uint64, n uint32) {
	switch len(c.cdb) {
	case 6:
		n = uint32(c.cdb[4])
		if n == 0 {
			n = 256
		}
		return uint64(c.cdb[1]&0x1f)<<16 | uint64(c.cdb[2])<<8 | uint64(c.cdb[3]), n
	case 10:
		return uint64(binary.BigEndian.Uint32(c.cdb[2:])), uint32(binary.BigEndian.Uint16(c.cdb[7:]))
	case 12:
		return uint64(binary.BigEndian.Uint32(c.cdb[2:])), binary.BigEndian.Uint32(c.cdb[6:])
	}
	return binary.BigEndian.Uint64(c.cdb[2:]), binary.BigEndian.Uint32(c.cdb[10:])
}

// senseCount says that the number of blocks is too high.
func (c *call) senseCount() sense {
	at := map[int]int{6: 4, 10: 7, 12: 6, 16: 10}[len(c.cdb)]
	return senseField.inCDB(at)
}

// inside says whether the extent lies within the volume.
func (c *call) inside(lba uint64, n uint32) bool {
	size := c.blocks()
	return lba <= size && uint64(n) <= size-lba
}

// protection says whether a CDB asks for protection information, which the
// volumes do not have.
func (c *call) protection() bool { return len(c.cdb) > 6 && c.cdb[1]&0xe0 != 0 }
