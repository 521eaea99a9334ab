package nic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hotspare"
)

// A probe is sent probeCount times, probeGap apart; answers are awaited for
// probeWait after the last. RFC 5227 would take 5 to 9 s; the address was
// silent before this node was chosen, and a hand-over must be quick.
const (
	probeCount = 3
	probeGap   = 100 * time.Millisecond
	probeWait  = 200 * time.Millisecond
)

// announceGaps are the pauses after the announcements.
var announceGaps = []time.Duration{200 * time.Millisecond, 800 * time.Millisecond, 0}

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Addresses adds and removes service addresses on one NIC. Its netlink socket
// is open from the start, so that Remove needs nothing but the kernel.
type Addresses struct {
	link Link
	nl   *netlink.Handle

	mu     sync.Mutex
	set    map[netip.Prefix]bool
	probes map[netip.Prefix]*earlyProbe
}

// NewAddresses opens the netlink socket.
func NewAddresses(l Link) (*Addresses, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := nl.SetSocketTimeout(time.Second); err != nil {
		nl.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Addresses{link: l, nl: nl, set: map[netip.Prefix]bool{}, probes: map[netip.Prefix]*earlyProbe{}}, nil
}

// Close closes the netlink socket.
func (a *Addresses) Close() { a.nl.Close() }

// Add makes sure by ARP that nobody else has the address, sets it and announces
// it. The last announcements follow in the background.
func (a *Addresses) Add(ctx context.Context, p netip.Prefix) error {
	if !p.Addr().Is4() {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the service address is not IPv4", Where: p.String(), Fix: "give the application an IPv4 address"}
	}
	conn, err := a.probed(ctx, p)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.set[p] = true // before it is set: Remove must know of it
	a.mu.Unlock()
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: a.link.Index}}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if err := a.nl.AddrReplace(link, addr); err != nil {
		return errors.Join(fmt.Errorf("set %s: %w", p, err), conn.Close())
	}
	if err := a.announce(conn, p.Addr()); err != nil {
		return errors.Join(fmt.Errorf("announce %s: %w", p, err), conn.Close())
	}
	go a.announceMore(conn, p)
	return nil
}

// Has says whether the kernel still has the address.
func (a *Addresses) Has(p netip.Prefix) (bool, error) {
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: a.link.Index}}
	addrs, err := a.nl.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return false, err
	}
	for _, have := range addrs {
		if have.IPNet != nil && have.IP.Equal(p.Addr().AsSlice()) {
			return true, nil
		}
	}
	return false, nil
}

// Remove removes one address; one that is not there is no failure.
func (a *Addresses) Remove(p netip.Prefix) error {
	a.mu.Lock()
	delete(a.set, p)
	a.mu.Unlock()
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: a.link.Index}}
	err := a.nl.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

// RemoveAll removes every address that Add has set.
func (a *Addresses) RemoveAll() error {
	a.mu.Lock()
	var all []netip.Prefix
	for p := range a.set {
		all = append(all, p)
	}
	a.mu.Unlock()
	var errs []error
	for _, p := range all {
		errs = append(errs, a.Remove(p))
	}
	return errors.Join(errs...)
}

func (a *Addresses) openARP() (*packet.Conn, error) {
	ifi, err := net.InterfaceByIndex(a.link.Index)
	if err != nil {
		return nil, err
	}
	return packet.Listen(ifi, packet.Datagram, etherTypeARP, nil)
}

// probe asks for the address with an unspecified sender and listens.
func (a *Addresses) probe(ctx context.Context, conn *packet.Conn, addr netip.Addr) error {
	question := arp{op: arpRequest, senderMAC: a.link.MAC, senderIP: netip.IPv4Unspecified(), targetMAC: make([]byte, 6), targetIP: addr}.encode()
	buf := make([]byte, 1500)
	for i := range probeCount {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := conn.WriteTo(question, &packet.Addr{HardwareAddr: broadcast}); err != nil {
			return fmt.Errorf("probe %s: %w", addr, err)
		}
		wait := probeGap
		if i == probeCount-1 {
			wait = probeWait
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		for {
			n, _, err := conn.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return fmt.Errorf("probe %s: %w", addr, err)
			}
			if p, err := parseARP(buf[:n]); err == nil && p.conflicts(addr, a.link.MAC) {
				return inUse(addr, p.senderMAC)
			}
		}
	}
	return nil
}

func inUse(addr netip.Addr, by net.HardwareAddr) error {
	return &hotspare.Error{
		Code: hotspare.CodeAddressInUse, What: "another station has the service address", Where: addr.String(),
		Why: "it answered an ARP probe from " + by.String(),
		Fix: "find the station with that Ethernet address and take the address from it",
	}
}

// announce sends a gratuitous request and a gratuitous reply: some stations
// heed only one of the two.
func (a *Addresses) announce(conn *packet.Conn, addr netip.Addr) error {
	for _, op := range []uint16{arpRequest, arpReply} {
		p := arp{op: op, senderMAC: a.link.MAC, senderIP: addr, targetMAC: broadcast, targetIP: addr}
		if _, err := conn.WriteTo(p.encode(), &packet.Addr{HardwareAddr: broadcast}); err != nil {
			return err
		}
	}
	return nil
}

// announceMore repeats the announcement as long as the address is meant to be
// here.
func (a *Addresses) announceMore(conn *packet.Conn, p netip.Prefix) {
	defer func() { _ = conn.Close() }()
	for _, gap := range announceGaps {
		time.Sleep(gap)
		a.mu.Lock()
		here := a.set[p]
		a.mu.Unlock()
		if !here || a.announce(conn, p.Addr()) != nil {
			return
		}
	}
}
