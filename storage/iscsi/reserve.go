package iscsi

import (
	"encoding/binary"
	"slices"
)

// Types of persistent reservation (SPC-4, table 68).
const (
	prWriteExclusive       = 1
	prExclusiveAccess      = 3
	prWriteExclusiveRegs   = 5
	prExclusiveAccessRegs  = 6
	prWriteExclusiveAll    = 7
	prExclusiveAccessAll   = 8
	maxRegistrations       = 256
	reservationTypeSupport = 0xea01 // WR_EX_AR, EX_AC_RO, WR_EX_RO, EX_AC, WR_EX; EX_AC_AR
)

// reservations of one unit (SPC-4, 5.12). They end with the epoch. A restart of
// the target ends them too, unless the last registration asked otherwise.
type reservations struct {
	legacy     *lu // RESERVE(6)
	generation uint32
	persists   bool // APTPL: kept in the exports, reserve_kept.go
	registered []registration
	holder     string // port that holds the reservation; for the "all registrants" types any of them
	kind       byte   // 0: no reservation
}

type registration struct {
	port string
	key  uint64
}

func (r *reservations) of(port string) int {
	return slices.IndexFunc(r.registered, func(g registration) bool { return g.port == port })
}

// all says whether every registrant holds the reservation.
func (r *reservations) all() bool {
	return r.kind == prWriteExclusiveAll || r.kind == prExclusiveAccessAll
}

// holds says whether the port holds the reservation.
func (r *reservations) holds(port string) bool {
	if r.kind == 0 {
		return false
	}
	if r.all() {
		return r.of(port) >= 0
	}
	return r.holder == port
}

// allows says whether reservations of others let the operation pass.
func (u *unit) allows(l *lu, o *operation) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := &u.reservations
	if r.legacy != nil && r.legacy != l {
		return o.access == accessAlways && o.opcode != 0x16 && o.opcode != 0x5f && o.opcode != 0x5e && o.opcode != 0x00
	}
	if o.opcode == 0x16 || o.opcode == 0x17 {
		return len(r.registered) == 0 // the two kinds exclude each other
	}
	if r.kind == 0 || o.access == accessAlways || r.holds(l.port) {
		return true
	}
	switch r.kind {
	case prWriteExclusive:
		return o.access == accessRead
	case prWriteExclusiveRegs, prWriteExclusiveAll:
		return o.access == accessRead || r.of(l.port) >= 0
	case prExclusiveAccessRegs, prExclusiveAccessAll:
		return r.of(l.port) >= 0
	}
	return false
}

func (c *call) reserve6() result {
	c.unit.mu.Lock()
	defer c.unit.mu.Unlock()
	c.unit.reservations.legacy = c.lu
	return good(nil)
}

func (c *call) release6() result {
	c.unit.mu.Lock()
	defer c.unit.mu.Unlock()
	if c.unit.reservations.legacy == c.lu {
		c.unit.reservations.legacy = nil
	}
	return good(nil)
}

func (c *call) allocation() int { return int(binary.BigEndian.Uint16(c.cdb[7:])) }

func (c *call) readKeys() result {
	c.unit.mu.Lock()
	defer c.unit.mu.Unlock()
	r := &c.unit.reservations
	b := binary.BigEndian.AppendUint32(nil, r.generation)
	b = binary.BigEndian.AppendUint32(b, uint32(8*len(r.registered)))
	for _, g := range r.registered {
		b = binary.BigEndian.AppendUint64(b, g.key)
	}
	return good(truncate(b, c.allocation()))
}

func (c *call) readReservation() result {
	c.unit.mu.Lock()
	defer c.unit.mu.Unlock()
	r := &c.unit.reservations
	b := binary.BigEndian.AppendUint32(nil, r.generation)
	if r.kind == 0 {
		return good(truncate(append(b, 0, 0, 0, 0), c.allocation()))
	}
	b = append(b, 0, 0, 0, 16)
	d := make([]byte, 16)
	if i := r.of(r.holder); i >= 0 && !r.all() {
		binary.BigEndian.PutUint64(d, r.registered[i].key)
	}
	d[13] = r.kind
	return good(truncate(append(b, d...), c.allocation()))
}

func (c *call) reportCapabilities() result {
	b := []byte{0, 8, 0x01, 0x80, 0, 0, 0, 0} // PTPL_C; type mask valid
	c.unit.mu.Lock()
	if c.unit.reservations.persists {
		b[3] |= 0x01 // PTPL_A
	}
	c.unit.mu.Unlock()
	binary.BigEndian.PutUint16(b[4:], reservationTypeSupport)
	return good(truncate(b, c.allocation()))
}

func (c *call) readFullStatus() result {
	c.unit.mu.Lock()
	defer c.unit.mu.Unlock()
	r := &c.unit.reservations
	var list []byte
	for _, g := range r.registered {
		id := append([]byte(g.port), 0)
		id = append(id, make([]byte, pad(len(id)))...)
		d := make([]byte, 24, 28+len(id))
		binary.BigEndian.PutUint64(d, g.key)
		if r.holds(g.port) {
			d[12] = 1
			d[13] = r.kind
		}
		d[19] = 1                                               // relative target port
		binary.BigEndian.PutUint32(d[20:], uint32(4+len(id)))   // of the TransportID
		d = append(d, 0x45, 0, byte(len(id)>>8), byte(len(id))) // iSCSI, with ISID
		list = append(list, append(d, id...)...)
	}
	b := binary.BigEndian.AppendUint32(nil, r.generation)
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
	return good(truncate(append(b, list...), c.allocation()))
}

// Service actions of PERSISTENT RESERVE OUT.
const (
	prRegister       = 0
	prReserve        = 1
	prRelease        = 2
	prClear          = 3
	prPreempt        = 4
	prPreemptAbort   = 5
	prRegisterIgnore = 6
)

// reserveOut changes reservations. Others hear of it by unit attentions; what
// PREEMPT AND ABORT aborts has ended before it answers. With APTPL the change is
// durable before it counts.
func (c *call) reserveOut() result {
	size := int(binary.BigEndian.Uint32(c.cdb[5:]))
	if size != 24 || len(c.out) < 24 {
		return check(senseParamLength)
	}
	key, action := binary.BigEndian.Uint64(c.out), binary.BigEndian.Uint64(c.out[8:])
	if c.out[20]&0x0c != 0 { // SPEC_I_PT, ALL_TG_PT
		return check(senseParam.inData(20))
	}
	do := c.cdb[1] & 0x1f
	c.unit.mu.Lock()
	next := c.unit.reservations
	next.registered = slices.Clone(next.registered)
	res, told, abort := c.changeReservation(&next, do, key, action)
	if res.status == statusGood {
		if do == prRegister || do == prRegisterIgnore { // in others the bit means nothing (SPC-4, 6.16.3)
			next.persists = c.out[20]&0x01 != 0
		}
		if err := c.unit.keep(c.att, &next); err != nil {
			c.unit.mu.Unlock()
			return failed(err, true)
		}
		c.unit.reservations = next
	}
	members := make([]*lu, 0, len(c.unit.sessions))
	for l := range c.unit.sessions {
		members = append(members, l)
	}
	c.unit.mu.Unlock()
	for _, l := range members {
		if l == c.lu {
			continue
		}
		if s, ok := told[l.port]; ok {
			if abort {
				l.c.abortAll()
			}
			l.attend(s)
		}
	}
	if res.status == statusGood {
		res.used = size
	}
	return res
}

// changeReservation does the change to r, a copy of the unit's. told says which
// port gets which attention.
func (c *call) changeReservation(r *reservations, do byte, key, action uint64) (res result, told map[string]sense, abort bool) {
	me := r.of(c.port)
	if do == prRegister || do == prRegisterIgnore {
		return c.registerKey(r, me, do, key, action)
	}
	if me < 0 || r.registered[me].key != key {
		return reservationConflict(), nil, false
	}
	scope, kind := c.cdb[2]>>4, c.cdb[2]&0x0f
	known := kind == 1 || kind == 3 || kind >= 5 && kind <= 8
	switch do {
	case prReserve:
		switch {
		case scope != 0 || !known:
			return check(senseField), nil, false
		case r.kind == 0:
			r.kind, r.holder = kind, c.port
		case !r.holds(c.port) || r.kind != kind:
			return reservationConflict(), nil, false
		}
		return good(nil), nil, false
	case prRelease:
		if !r.holds(c.port) {
			return good(nil), nil, false
		}
		if scope != 0 || kind != r.kind {
			return check(senseRelease), nil, false
		}
		return good(nil), r.release(c.port), false
	case prClear:
		told = r.others(c.port, attentionReserved)
		r.registered, r.kind, r.holder = nil, 0, ""
		r.generation++
		return good(nil), told, false
	}
	if scope != 0 || !known {
		return check(senseField), nil, false
	}
	res, told = r.preempt(c.port, action, kind)
	return res, told, do == prPreemptAbort
}

// registerKey registers, changes or removes the port's key.
func (c *call) registerKey(r *reservations, me int, do byte, key, action uint64) (result, map[string]sense, bool) {
	if do == prRegister && (me < 0 && key != 0 || me >= 0 && r.registered[me].key != key) {
		return reservationConflict(), nil, false
	}
	var told map[string]sense
	switch {
	case me < 0 && action == 0: // nothing to remove
	case me < 0:
		if len(r.registered) >= maxRegistrations {
			return check(senseRegistration), nil, false
		}
		r.registered = append(r.registered, registration{c.port, action})
	case action == 0:
		held := r.holds(c.port)
		r.registered = slices.Delete(r.registered, me, me+1)
		if held && (!r.all() || len(r.registered) == 0) {
			told = r.release(c.port)
		}
	default:
		r.registered[me].key = action
	}
	r.generation++
	return good(nil), told, false
}

// release ends the reservation. Registrants of the kinds that let them in are
// told (SPC-4, 5.12.11.2.2).
func (r *reservations) release(port string) map[string]sense {
	var told map[string]sense
	if r.kind >= prWriteExclusiveRegs {
		told = r.others(port, attentionReleased)
	}
	r.kind, r.holder = 0, ""
	return told
}

func (r *reservations) others(port string, s sense) map[string]sense {
	told := map[string]sense{}
	for _, g := range r.registered {
		if g.port != port {
			told[g.port] = s
		}
	}
	return told
}

// preempt removes registrations by key and takes the reservation over where it
// was theirs (SPC-4, 5.12.11.2.5).
func (r *reservations) preempt(port string, victim uint64, kind byte) (result, map[string]sense) {
	takeOver := false
	match := func(g registration) bool { return g.key == victim }
	switch {
	case r.kind != 0 && r.all() && victim == 0:
		match = func(g registration) bool { return g.port != port }
		takeOver = true
	case victim == 0:
		return check(senseParam), nil
	case r.kind != 0 && r.all():
	case r.kind != 0:
		if i := r.of(r.holder); i >= 0 && r.registered[i].key == victim {
			takeOver = true
		}
	}
	told := map[string]sense{}
	found := false
	kept := r.registered[:0:0]
	for _, g := range r.registered {
		if !match(g) {
			kept = append(kept, g)
			continue
		}
		found = true
		if g.port == port { // one may preempt oneself and stays registered
			kept = append(kept, g)
			continue
		}
		told[g.port] = attentionPreempted
	}
	if !found && !takeOver {
		return reservationConflict(), nil
	}
	old := r.kind
	r.registered = kept
	if takeOver {
		r.kind, r.holder = kind, port
		if old != kind {
			for _, g := range kept {
				if g.port != port {
					told[g.port] = attentionReleased
				}
			}
		}
	}
	r.generation++
	return good(nil), told
}
