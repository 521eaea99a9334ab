package dhcp

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"hotspare"
	"hotspare/boot"
)

// Reservations says which address belongs to which machine. It is asked at every
// packet and must answer at once. A reserved address may lie inside or outside the
// range; inside, nobody else gets it.
type Reservations interface {
	// Reserved gives the address of a machine in a network; a machine may have
	// one in each.
	Reserved(m boot.MAC, in netip.Prefix) (netip.Addr, bool)
	// Owner gives the machine that an address is reserved for.
	Owner(a netip.Addr) (boot.MAC, bool)
}

// Reservation is one machine's own address.
type Reservation struct {
	MAC  boot.MAC
	Addr netip.Addr
	Node string // for people
}

// ReservationList is Reservations from a list that can be replaced at any time,
// such as when a node is applied. The zero value is empty.
type ReservationList struct {
	now atomic.Pointer[reservationIndex]
}

type reservationIndex struct {
	byMAC  map[boot.MAC][]netip.Addr
	byAddr map[netip.Addr]Reservation
}

// Replace takes a new list. It is refused as a whole, with CodeInvalid, when an
// address is given twice, a machine has two in one network, or one lies in none of
// the networks.
func (r *ReservationList) Replace(list []Reservation, networks []netip.Prefix) error {
	x := &reservationIndex{byMAC: map[boot.MAC][]netip.Addr{}, byAddr: map[netip.Addr]Reservation{}}
	for _, e := range list {
		if err := x.add(e, networks); err != nil {
			return err
		}
	}
	r.now.Store(x)
	return nil
}

func (x *reservationIndex) add(e Reservation, networks []netip.Prefix) error {
	bad := func(why, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the reservation cannot be used", Where: fmt.Sprintf("%s %s for %s", e.Node, e.Addr, e.MAC), Why: why, Fix: fix}
	}
	in, ok := networkOf(e.Addr, networks)
	switch other, twice := x.byAddr[e.Addr]; {
	case e.MAC.IsZero():
		return bad("it names no MAC address", "give the node's MAC address")
	case !e.Addr.Is4() || !ok:
		return bad("the address is in none of the networks that are served", "give an address of the node's own network")
	case e.Addr == in.Masked().Addr() || e.Addr == broadcast(in):
		return bad("it is the address of the network itself, or its broadcast address", "give an address of a machine")
	case twice:
		return bad(fmt.Sprintf("the address is reserved for %s %s already", other.Node, other.MAC), "give each machine an address of its own")
	}
	for _, a := range x.byMAC[e.MAC] {
		if in.Contains(a) {
			return bad(fmt.Sprintf("the machine has %s in the same network already", a), "reserve one address for each machine and network")
		}
	}
	x.byAddr[e.Addr], x.byMAC[e.MAC] = e, append(x.byMAC[e.MAC], e.Addr)
	return nil
}

func networkOf(a netip.Addr, networks []netip.Prefix) (netip.Prefix, bool) {
	for _, p := range networks {
		if p.Contains(a) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Reserved is Reservations.Reserved.
func (r *ReservationList) Reserved(m boot.MAC, in netip.Prefix) (netip.Addr, bool) {
	x := r.now.Load()
	if x == nil {
		return netip.Addr{}, false
	}
	for _, a := range x.byMAC[m] {
		if in.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Owner is Reservations.Owner.
func (r *ReservationList) Owner(a netip.Addr) (boot.MAC, bool) {
	x := r.now.Load()
	if x == nil {
		return boot.MAC{}, false
	}
	e, ok := x.byAddr[a]
	return e.MAC, ok
}
