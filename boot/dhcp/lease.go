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

// How long an offered address waits for its REQUEST. A machine that nobody knows
// gets less: firmware collects offers for up to 8 s, and what is held for invented
// MAC addresses is missing for real ones.
const (
	offerHold        = 60 * time.Second
	offerHoldUnknown = 20 * time.Second
)

// conflictHold is how long an address is left alone after somebody else answered
// on it.
const conflictHold = 10 * time.Minute

// nearby and searched bound the addresses that are looked at for one offer: for one
// that was probed lately, and at all. A pool of 65,536 that was all used once costs
// a flood of new machines no more than a small one.
const (
	nearby   = 64
	searched = 1024
)

// Lease is one machine's address.
type Lease struct {
	MAC        boot.MAC   `json:"mac"`
	Addr       netip.Addr `json:"addr"`
	Expires    time.Time  `json:"expires"`
	Known      bool       `json:"known,omitempty"`      // the Director knows the machine
	Bound      bool       `json:"bound"`                // acknowledged, not only offered
	Quarantine bool       `json:"quarantine,omitempty"` // nobody's: somebody without a lease answers there
}

// Live says whether the machine may use the address at now.
func (l Lease) Live(now time.Time) bool { return now.Before(l.Expires) }

// Errors of the table.
var (
	errPoolEmpty = errors.New("the pool has no free address")
	errUnknown   = errors.New("the share of the pool for unknown machines is used up")
)

// table decides who has which address of one subnet. It is pure: time comes in. A
// MAC address has at most one lease and an address at most one holder. Expired
// leases stay until the address is needed, so that a machine gets its old address
// again. Its memory is bounded by the addresses that it may give.
type table struct {
	pool     Range
	network  netip.Prefix
	reserved Reservations
	exclude  func(netip.Addr) bool // also server, gateway, network, broadcast
	unknown  int

	byMAC    map[boot.MAC]*Lease
	byAddr   map[netip.Addr]*Lease
	conflict map[netip.Addr]time.Time // answered by somebody else; until when to avoid
	quiet    map[netip.Addr]time.Time // nobody answered to a probe; when
	next     uint32                   // where toProbe goes on

	full struct { // of unknown machines' live leases, counted at most once a second
		n  int
		at time.Time
	}
}

func newTable(o Options, n Subnet) *table {
	return &table{
		pool: n.Range, network: n.Prefix.Masked(), reserved: o.Reservations, unknown: n.Unknown,
		exclude: func(a netip.Addr) bool {
			return a == o.Server || a == n.Gateway || a == n.Prefix.Masked().Addr() || a == broadcast(n.Prefix) || o.Exclude(a)
		},
		byMAC: map[boot.MAC]*Lease{}, byAddr: map[netip.Addr]*Lease{}, conflict: map[netip.Addr]time.Time{}, quiet: map[netip.Addr]time.Time{},
	}
}

// offer chooses an address for m and holds it for a while; probe says that m did
// not have it before and nobody has looked lately whether it is in use.
func (t *table) offer(m boot.MAC, want netip.Addr, known bool, now time.Time) (l Lease, probe bool, err error) {
	had := t.byMAC[m]
	addr, err := t.choose(m, want, known, now)
	if err != nil {
		return Lease{}, false, err
	}
	if had != nil && had.Addr == addr && had.Live(now) {
		had.Known = known
		return *had, false, nil
	}
	hold := offerHold
	if !known {
		hold = offerHoldUnknown
	}
	n := &Lease{MAC: m, Addr: addr, Expires: now.Add(hold), Known: known}
	probe = !t.isQuiet(addr, now)
	t.put(n, now)
	return *n, probe, nil
}

func (t *table) choose(m boot.MAC, want netip.Addr, known bool, now time.Time) (netip.Addr, error) {
	if a, ok := t.reserved.Reserved(m, t.network); ok {
		if h := t.byAddr[a]; (h == nil || h.MAC == m || !h.Live(now)) && !t.avoided(a, now) {
			return a, nil
		}
		// Somebody else has it for now. A node that cannot boot is worse than a
		// node with another address: it gets its own at its next boot.
	}
	had := t.byMAC[m]
	if !known && (had == nil || !had.Live(now)) && t.unknownLive(now) >= t.unknown {
		return netip.Addr{}, errUnknown
	}
	if had != nil && t.free(had.Addr, m, now) {
		return had.Addr, nil
	}
	if t.byAddr[want] == nil && t.free(want, m, now) {
		return want, nil
	}
	return t.search(m, now)
}

// search begins at a place that the MAC address gives, so that machines tend to
// get the same address even from an empty table. An address that nobody ever had
// is preferred, one that was probed lately first of all, then the one that expired
// first.
func (t *table) search(m boot.MAC, now time.Time) (netip.Addr, error) {
	h := fnv.New32a()
	h.Write(m[:])
	size := uint32(t.pool.Size())
	if size == 0 {
		return netip.Addr{}, errPoolEmpty
	}
	first, start := number(t.pool.From), h.Sum32()%size
	var unused netip.Addr
	var oldest *Lease
	for i := range size {
		if i == nearby {
			if a, ok := t.stock(m, now); ok {
				return a, nil
			}
		}
		// All of the pool only while nothing is found at all.
		if i >= nearby && unused.IsValid() || i >= searched && oldest != nil {
			break
		}
		a := address(first + (start+i)%size)
		l := t.byAddr[a]
		if l != nil && l.MAC != m && l.Live(now) || l == nil && unused.IsValid() && !t.isQuiet(a, now) || !t.free(a, m, now) {
			continue
		}
		switch {
		case l == nil && t.isQuiet(a, now):
			return a, nil
		case l == nil && !unused.IsValid():
			unused = a
		case l != nil && (oldest == nil || l.Expires.Before(oldest.Expires)):
			oldest = l
		}
	}
	switch {
	case unused.IsValid():
		return unused, nil
	case oldest != nil:
		return oldest.Addr, nil
	}
	return netip.Addr{}, errPoolEmpty
}

// stock gives any address that was probed lately and is still unused.
func (t *table) stock(m boot.MAC, now time.Time) (netip.Addr, bool) {
	tries := 0
	for a := range t.quiet {
		if tries++; tries > 64 {
			break
		}
		if t.byAddr[a] == nil && t.isQuiet(a, now) && t.free(a, m, now) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// free says whether the pool may give a to m. Asking the owner of Exclude comes
// last: it may cost more than all the rest.
func (t *table) free(a netip.Addr, m boot.MAC, now time.Time) bool {
	if !t.pool.Contains(a) || t.avoided(a, now) {
		return false
	}
	if l := t.byAddr[a]; l != nil && l.MAC != m && l.Live(now) {
		return false
	}
	if owner, ok := t.reserved.Owner(a); ok && owner != m {
		return false
	}
	return !t.exclude(a)
}

func (t *table) avoided(a netip.Addr, now time.Time) bool {
	until, ok := t.conflict[a]
	if ok && !now.Before(until) {
		delete(t.conflict, a)
		return false
	}
	return ok
}

// unknownLive counts what unknown machines hold: exactly at most a second ago,
// and what was given since. It may be too high for a second, never too low.
func (t *table) unknownLive(now time.Time) int {
	if age := now.Sub(t.full.at); age >= 0 && age < time.Second {
		return t.full.n
	}
	t.full.n, t.full.at = 0, now
	for _, l := range t.byMAC {
		if !l.Known && l.Live(now) {
			t.full.n++
		}
	}
	return t.full.n
}

// verdict says how a REQUEST for an address is to be answered.
type verdict int

const (
	grant  verdict = iota // ACK
	refuse                // NAK: the machine must begin anew
	ignore                // silence: not ours to say
)

// judge says whether m may have addr, and whether it has held it before.
func (t *table) judge(m boot.MAC, addr netip.Addr, known bool, now time.Time) (v verdict, held bool) {
	if !t.network.Contains(addr) {
		return refuse, false
	}
	had := t.byMAC[m]
	mine := had != nil && had.Addr == addr
	if mine && had.Live(now) {
		// It was offered, or is renewed: also when the pool would not give it
		// today, for the machine may hold its root over that address.
		if had.Bound || t.mayHave(m, addr, now) {
			return grant, true
		}
		return refuse, true
	}
	switch {
	case !t.mayHave(m, addr, now):
		return refuse, mine
	case !mine && t.byAddr[addr] != nil:
		return refuse, false // it was another's: let the machine ask anew
	case !known && t.unknownLive(now) >= t.unknown:
		return ignore, mine
	}
	return grant, mine
}

// mayHave says whether addr is m's reserved address or the pool's to give.
func (t *table) mayHave(m boot.MAC, addr netip.Addr, now time.Time) bool {
	r, ok := t.reserved.Reserved(m, t.network)
	if !ok || r != addr {
		if h := t.byAddr[r]; ok && (h == nil || h.MAC == m || !h.Live(now)) && !t.avoided(r, now) {
			return false // its own address waits for it
		}
		return t.free(addr, m, now)
	}
	h := t.byAddr[addr]
	return (h == nil || h.MAC == m || !h.Live(now)) && !t.avoided(addr, now)
}

// bind confirms addr for m. A machine that asks for an address that it cannot
// have is refused, so that it asks anew at once instead of waiting.
func (t *table) bind(m boot.MAC, addr netip.Addr, known bool, d time.Duration, now time.Time) (Lease, verdict) {
	v, _ := t.judge(m, addr, known, now)
	if v != grant {
		return Lease{}, v
	}
	l := &Lease{MAC: m, Addr: addr, Expires: now.Add(d), Known: known, Bound: true}
	t.put(l, now)
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
	t.full.at = time.Time{}
	return *l, true
}

// avoid forgets m's hold on addr, on which somebody else answered, and puts the
// address into quarantine. So that a hostile client cannot decline the whole pool,
// no more than a quarter of it is avoided at once; false says that this limit is
// reached, or that addr is not m's.
func (t *table) avoid(m boot.MAC, addr netip.Addr, now time.Time) (Lease, bool) {
	l := t.byMAC[m]
	if l == nil || l.Addr != addr {
		return Lease{}, false
	}
	t.drop(l)
	return t.quarantine(addr, now.Add(conflictHold), now)
}

// quarantine keeps an address from being given until then.
func (t *table) quarantine(addr netip.Addr, until, now time.Time) (Lease, bool) {
	delete(t.quiet, addr)
	for a, end := range t.conflict {
		if !now.Before(end) {
			delete(t.conflict, a)
		}
	}
	if _, again := t.conflict[addr]; !again && len(t.conflict) >= max(1, t.pool.Size()/4) {
		return Lease{}, false
	}
	t.conflict[addr] = until
	return Lease{Addr: addr, Expires: until, Quarantine: true}, true
}

func (t *table) put(l *Lease, now time.Time) {
	old := t.byMAC[l.MAC]
	counted := old != nil && !old.Known && old.Live(now)
	if old != nil {
		t.drop(old)
	}
	if old := t.byAddr[l.Addr]; old != nil {
		t.drop(old)
	}
	delete(t.quiet, l.Addr)
	t.byMAC[l.MAC], t.byAddr[l.Addr] = l, l
	if counted {
		t.full.n--
	}
	if !l.Known {
		t.full.n++
	}
}

func (t *table) drop(l *Lease) {
	if t.byMAC[l.MAC] == l {
		delete(t.byMAC, l.MAC)
	}
	if t.byAddr[l.Addr] == l {
		delete(t.byAddr, l.Addr)
	}
}

// leases gives all leases and what is in quarantine.
func (t *table) leases(out []Lease, now time.Time) []Lease {
	for _, l := range t.byMAC {
		out = append(out, *l)
	}
	for a, until := range t.conflict {
		if now.Before(until) {
			out = append(out, Lease{Addr: a, Expires: until, Quarantine: true})
		}
	}
	return out
}

// used says how many addresses of the pool are held or in quarantine.
func (t *table) used(now time.Time) int {
	n := 0
	for a, l := range t.byAddr {
		if l.Live(now) && t.pool.Contains(a) {
			n++
		}
	}
	for a, until := range t.conflict {
		if l := t.byAddr[a]; now.Before(until) && (l == nil || !l.Live(now)) {
			n++
		}
	}
	return n
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

// String tells a lease in a few words.
func (l Lease) String() string {
	return fmt.Sprintf("%s of %s until %s", l.Addr, l.MAC, l.Expires.UTC().Format(time.RFC3339))
}
