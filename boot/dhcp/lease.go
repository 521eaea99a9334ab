package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"time"

	"hotspare/boot"
)

// offerHold is how long an offered address waits for its REQUEST.
const offerHold = 60 * time.Second

// conflictHold is how long an address is left alone after somebody else answered
// on it.
const conflictHold = 10 * time.Minute

// Lease is one machine's address.
type Lease struct {
	MAC     boot.MAC   `json:"mac"`
	Addr    netip.Addr `json:"addr"`
	Expires time.Time  `json:"expires"`
	Known   bool       `json:"known,omitempty"` // the Director knows the machine
	Bound   bool       `json:"bound"`           // acknowledged, not only offered
}

// Live says whether the machine may use the address at now.
func (l Lease) Live(now time.Time) bool { return now.Before(l.Expires) }

// Errors of the table.
var (
	errPoolEmpty = errors.New("the pool has no free address")
	errUnknown   = errors.New("the share of the pool for unknown machines is used up")
)

// table decides who has which address. It is pure: time comes in. A MAC address
// has at most one lease and an address at most one holder. Expired leases stay
// until the address is needed, so that a machine gets its old address again.
type table struct {
	pool     Range
	network  netip.Prefix
	reserved func(boot.MAC) (netip.Addr, bool)
	exclude  func(netip.Addr) bool // also server, gateway, network, broadcast
	unknown  int

	byMAC    map[boot.MAC]*Lease
	byAddr   map[netip.Addr]*Lease
	conflict map[netip.Addr]time.Time // answered by somebody else; until when to avoid
}

func newTable(o Options) *table {
	return &table{
		pool: o.Range, network: o.Prefix, reserved: o.Reservations, unknown: o.Unknown,
		exclude: func(a netip.Addr) bool {
			return a == o.Server || a == o.Gateway || a == o.Prefix.Masked().Addr() || a == broadcast(o.Prefix) || o.Exclude(a)
		},
		byMAC: map[boot.MAC]*Lease{}, byAddr: map[netip.Addr]*Lease{}, conflict: map[netip.Addr]time.Time{},
	}
}

// offer chooses an address for m and holds it for a while; fresh says that m did
// not have it before, so that it should be probed.
func (t *table) offer(m boot.MAC, want netip.Addr, known bool, now time.Time) (l Lease, fresh bool, err error) {
	had := t.byMAC[m]
	addr, err := t.choose(m, want, known, now)
	if err != nil {
		return Lease{}, false, err
	}
	if had != nil && had.Addr == addr && had.Live(now) {
		had.Known = known
		return *had, false, nil
	}
	fresh = had == nil || had.Addr != addr || !had.Live(now)
	n := &Lease{MAC: m, Addr: addr, Expires: now.Add(offerHold), Known: known}
	t.put(n)
	return *n, fresh, nil
}

func (t *table) choose(m boot.MAC, want netip.Addr, known bool, now time.Time) (netip.Addr, error) {
	if a, ok := t.reserved(m); ok {
		if h := t.byAddr[a]; h != nil && h.MAC != m && h.Live(now) {
			return netip.Addr{}, fmt.Errorf("the reserved address %s is held by %s until %s", a, h.MAC, h.Expires.UTC().Format(time.RFC3339))
		}
		return a, nil
	}
	had := t.byMAC[m]
	if !known && (had == nil || !had.Live(now)) && t.unknownLive(now) >= t.unknown {
		return netip.Addr{}, errUnknown
	}
	if had != nil && t.free(had.Addr, m, now) {
		return had.Addr, nil
	}
	if t.free(want, m, now) && t.byAddr[want] == nil {
		return want, nil
	}
	return t.search(m, now)
}

// search begins at a place that the MAC address gives, so that machines tend to
// get the same address even from an empty table. An address that nobody ever had
// is preferred, then the one that expired first.
func (t *table) search(m boot.MAC, now time.Time) (netip.Addr, error) {
	h := fnv.New32a()
	h.Write(m[:])
	size := uint32(t.pool.Size())
	first, start := number(t.pool.From), h.Sum32()%size
	var oldest *Lease
	for i := range size {
		a := address(first + (start+i)%size)
		if !t.free(a, m, now) {
			continue
		}
		l := t.byAddr[a]
		if l == nil {
			return a, nil
		}
		if oldest == nil || l.Expires.Before(oldest.Expires) {
			oldest = l
		}
	}
	if oldest == nil {
		return netip.Addr{}, errPoolEmpty
	}
	return oldest.Addr, nil
}

// free says whether the pool may give a to m.
func (t *table) free(a netip.Addr, m boot.MAC, now time.Time) bool {
	if !t.pool.Contains(a) || t.exclude(a) {
		return false
	}
	if until, ok := t.conflict[a]; ok {
		if now.Before(until) {
			return false
		}
		delete(t.conflict, a)
	}
	l := t.byAddr[a]
	return l == nil || l.MAC == m || !l.Live(now)
}

func (t *table) unknownLive(now time.Time) int {
	n := 0
	for _, l := range t.byMAC {
		if !l.Known && l.Live(now) {
			n++
		}
	}
	return n
}

// verdict says how a REQUEST for an address is to be answered.
type verdict int

const (
	grant  verdict = iota // ACK
	refuse                // NAK: the machine must begin anew
	ignore                // silence: not ours to say
)

// bind confirms addr for m. A machine that asks for an address that it cannot
// have is refused, so that it asks anew at once instead of waiting.
func (t *table) bind(m boot.MAC, addr netip.Addr, known bool, d time.Duration, now time.Time) (Lease, verdict) {
	if !t.network.Contains(addr) {
		return Lease{}, refuse
	}
	if r, ok := t.reserved(m); ok {
		h := t.byAddr[addr]
		if r != addr || h != nil && h.MAC != m && h.Live(now) {
			return Lease{}, refuse
		}
	} else {
		had := t.byMAC[m]
		mine := had != nil && had.Addr == addr
		// A live lease is renewed also when the pool would not give it today:
		// the machine may hold its root over that address.
		renewal := mine && had.Bound && had.Live(now)
		switch {
		case renewal:
		case !t.free(addr, m, now):
			return Lease{}, refuse
		case !mine && t.byAddr[addr] != nil:
			return Lease{}, refuse // it was another's: let the machine ask anew
		case !known && !(mine && had.Live(now)) && t.unknownLive(now) >= t.unknown:
			return Lease{}, ignore
		}
	}
	l := &Lease{MAC: m, Addr: addr, Expires: now.Add(d), Known: known, Bound: true}
	t.put(l)
	return *l, grant
}

// release ends m's lease on addr and says whether there was one. The machine's
// claim to the address stays remembered.
func (t *table) release(m boot.MAC, addr netip.Addr, now time.Time) (Lease, bool) {
	l := t.byMAC[m]
	if l == nil || l.Addr != addr || !l.Live(now) {
		return Lease{}, false
	}
	l.Expires = now
	return *l, true
}

// avoid forgets m's hold on addr, on which somebody else answered. So that a
// hostile client cannot decline the whole pool, no more than a quarter of it is
// avoided at once; false says that this limit is reached.
func (t *table) avoid(m boot.MAC, addr netip.Addr, now time.Time) bool {
	l := t.byMAC[m]
	if l == nil || l.Addr != addr {
		return false
	}
	t.drop(l)
	for a, until := range t.conflict {
		if !now.Before(until) {
			delete(t.conflict, a)
		}
	}
	if len(t.conflict) >= max(1, t.pool.Size()/4) {
		return false
	}
	t.conflict[addr] = now.Add(conflictHold)
	return true
}

func (t *table) put(l *Lease) {
	if old := t.byMAC[l.MAC]; old != nil {
		t.drop(old)
	}
	if old := t.byAddr[l.Addr]; old != nil {
		t.drop(old)
	}
	t.byMAC[l.MAC], t.byAddr[l.Addr] = l, l
}

func (t *table) drop(l *Lease) {
	if t.byMAC[l.MAC] == l {
		delete(t.byMAC, l.MAC)
	}
	if t.byAddr[l.Addr] == l {
		delete(t.byAddr, l.Addr)
	}
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

func broadcast(p netip.Prefix) netip.Addr {
	if !p.IsValid() || !p.Addr().Is4() || p.Bits() >= 31 {
		return netip.Addr{}
	}
	return address(number(p.Masked().Addr()) | (1<<(32-p.Bits()) - 1))
}
