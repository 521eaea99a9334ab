package dhcp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hotspare"
	"hotspare/boot"
)

// Stats counts what the server saw since New.
type Stats struct {
	Received  uint64 `json:"received"`
	Answered  uint64 `json:"answered"`
	Malformed uint64 `json:"malformed"` // not parsed, or no client's request
	Dropped   uint64 `json:"dropped"`   // too many at once
	Limited   uint64 `json:"limited"`   // too many of one machine
	Unknown   uint64 `json:"unknown"`   // too many of unknown machines together
	NoAddress uint64 `json:"noAddress"` // the pool, or the share of the unknown, was used up
	Conflicts uint64 `json:"conflicts"` // addresses on which somebody else answered
	NAKs      uint64 `json:"naks"`
	Panics    uint64 `json:"panics"`
	Failed    uint64 `json:"failed"` // an answer could not be sent or a lease not written
}

// Usage is how full a subnet's pool is.
type Usage struct {
	Prefix netip.Prefix `json:"prefix"`
	Size   int          `json:"size"`
	Used   int          `json:"used"` // held by machines, or in quarantine
}

// subnet is a network that is served, with who has which address.
type subnet struct {
	Subnet
	table *table
}

// Server serves one link. It holds its ports from New on; Serve answers.
type Server struct {
	o      Options
	limits *limiter

	mu      sync.Mutex // guards the tables, file, foreign, alarmed
	own     *subnet
	subnets []*subnet // own first
	file    *leaseFile
	foreign map[netip.Addr]*Foreign
	alarmed map[string]*Alarm // by code and place

	makers struct { // of network cards, as looked up
		sync.Mutex
		of map[[3]byte]string
	}
	link    *link // sockets; nil when nothing is served
	waiting atomic.Int64
	v6      *v6 // nil without IPv6
	stat    struct {
		received, answered, malformed, dropped, limited, unknown, noAddress, conflicts, naks, panics, failed atomic.Uint64
	}
}

// newServer makes a server without sockets and files.
func newServer(o Options) *Server {
	s := &Server{o: o, limits: newLimiter(o.Limits), foreign: map[netip.Addr]*Foreign{}, alarmed: map[string]*Alarm{}}
	for _, n := range append([]Subnet{o.Subnet}, o.Relayed...) {
		s.subnets = append(s.subnets, &subnet{Subnet: n, table: newTable(o, n)})
	}
	s.own = s.subnets[0]
	return s
}

// New takes the ports and reads the leases. A taken port is a *hotspare.Error
// with CodePortTaken that names the holder; a missing interface or address has
// CodeNoInterface.
func New(o Options) (_ *Server, err error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := newServer(o)
	if o.Mode == Off && o.Interface == "" {
		return s, nil
	}
	if o.Mode == Authoritative && o.Leases != "" {
		if err := s.openLeases(); err != nil {
			return nil, err
		}
	}
	if s.link, err = openLink(o); err != nil {
		return nil, errors.Join(err, s.file.close())
	}
	if o.IPv6 != nil {
		if s.v6, err = openV6(s.link.ifi, *o.IPv6); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *Server) openLeases() error {
	file, leases, skipped, err := openLeases(s.o.Leases)
	if err != nil {
		return err
	}
	if skipped > 0 {
		s.o.Log.Warn("lease file has unreadable lines", "path", s.o.Leases, "lines", skipped)
	}
	s.file = file
	now := s.o.Now()
	for _, l := range leases { // a later one takes the place of an earlier one
		n := s.subnetOf(l.Addr)
		switch {
		case n == nil: // a network that is served no more
		case l.Quarantine:
			if now.Before(l.Expires) {
				n.table.quarantine(l.Addr, l.Expires, now)
			}
		default:
			n.table.put(&l, now)
		}
	}
	return nil
}

// subnetOf gives the subnet that an address belongs to, or nil.
func (s *Server) subnetOf(a netip.Addr) *subnet {
	for _, n := range s.subnets {
		if n.Prefix.Contains(a) {
			return n
		}
	}
	return nil
}

// Close gives ports and files back. Serve does so itself when it ends.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.file.close()
	s.file = nil
	if s.link != nil {
		err = errors.Join(err, s.link.close())
	}
	if s.v6 != nil {
		if cerr := s.v6.conn.Close(); !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}

// Serve answers until ctx ends; then it closes the server and returns nil. Any
// other end is an error.
func (s *Server) Serve(ctx context.Context) error {
	if s.link == nil {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		s.link.unblock()
		if s.v6 != nil {
			_ = s.v6.conn.SetReadDeadline(time.Unix(1, 0))
		}
	})
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				errs <- fmt.Errorf("%s on %s: %w", name, s.o.Interface, err)
			}
			cancel()
		})
	}
	if s.link.dhcp != nil {
		run("DHCP", func(ctx context.Context) error { return s.loop(ctx, s.link.dhcp, portDHCP) })
	}
	if s.link.arp != nil {
		run("ARP", s.link.arp.listen)
		run("address probes", s.keepStock)
	}
	if s.link.spy != nil {
		run("watch for other DHCP servers", s.watch)
	}
	if s.v6 != nil {
		run("DHCPv6", s.serve6)
	}
	if s.link.pxe != nil {
		run("proxyDHCP", func(ctx context.Context) error { return s.loop(ctx, s.link.pxe, portPXE) })
	}
	if s.link.ra != nil {
		run("router advertisements", s.advertise)
	}
	wg.Wait()
	cancel()
	stop()
	err := s.Close()
	select {
	case first := <-errs:
		return first
	default:
		return err
	}
}

// Leases gives all leases, live and remembered, by address.
func (s *Server) Leases() []Lease { return s.list(false) }

// Quarantined gives the addresses that are left alone because somebody without a
// lease answers there.
func (s *Server) Quarantined() []Lease { return s.list(true) }

func (s *Server) list(quarantine bool) []Lease {
	out := slices.DeleteFunc(s.allLeases(), func(l Lease) bool { return l.Quarantine != quarantine })
	slices.SortFunc(out, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return out
}

func (s *Server) allLeases() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Lease
	for _, n := range s.subnets {
		out = n.table.leases(out, s.o.Now())
	}
	return out
}

// Usage gives how full the pools are, the link's own first.
func (s *Server) Usage() []Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Usage, 0, len(s.subnets))
	for _, n := range s.subnets {
		out = append(out, Usage{Prefix: n.Prefix.Masked(), Size: n.Range.Size(), Used: n.table.used(s.o.Now())})
	}
	return out
}

// MACOf gives the machine that has addr by a live lease.
func (s *Server) MACOf(addr netip.Addr) (boot.MAC, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.subnetOf(addr)
	if n == nil {
		return boot.MAC{}, false
	}
	l := n.table.byAddr[addr]
	if l == nil || !l.Live(s.o.Now()) {
		return boot.MAC{}, false
	}
	return l.MAC, true
}

// AddrOf gives the address that mac has by a live lease; of several, in different
// subnets, the one that lasts longest.
func (s *Server) AddrOf(mac boot.MAC) (a netip.Addr, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var until time.Time
	for _, n := range s.subnets {
		if l := n.table.byMAC[mac]; l != nil && l.Live(s.o.Now()) && l.Expires.After(until) {
			a, ok, until = l.Addr, true, l.Expires
		}
	}
	return a, ok
}

// Stats gives the counters.
func (s *Server) Stats() Stats {
	c := &s.stat
	return Stats{
		Received: c.received.Load(), Answered: c.answered.Load(), Malformed: c.malformed.Load(), Dropped: c.dropped.Load(),
		Limited: c.limited.Load(), Unknown: c.unknown.Load(), NoAddress: c.noAddress.Load(), Conflicts: c.conflicts.Load(),
		NAKs: c.naks.Load(), Panics: c.panics.Load(), Failed: c.failed.Load(),
	}
}

// alarmQuiet is how long a cause must have been gone to be told of again.
const alarmQuiet = 10 * time.Minute

// Alarm is something that an operator should look at.
type Alarm struct {
	Err   *hotspare.Error // as it was seen last
	First time.Time       // when it began
	Last  time.Time
}

// Alarms gives what stands: it was seen within the last ten minutes.
func (s *Server) Alarms() []Alarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Alarm
	for _, a := range s.alarmed {
		if s.o.Now().Sub(a.Last) < alarmQuiet {
			out = append(out, *a)
		}
	}
	slices.SortFunc(out, func(a, b Alarm) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Err.Where, b.Err.Where))
	})
	return out
}

// alarm tells the operator, once while a cause lasts.
func (s *Server) alarm(e *hotspare.Error) {
	key, now := string(e.Code)+" "+e.Where, s.o.Now()
	s.mu.Lock()
	a := s.alarmed[key]
	stands := a != nil && now.Sub(a.Last) < alarmQuiet
	if a == nil && len(s.alarmed) >= 256 {
		clear(s.alarmed)
	}
	if !stands {
		a = &Alarm{First: now}
		s.alarmed[key] = a
	}
	a.Err, a.Last = e, now
	s.mu.Unlock()
	if stands {
		return
	}
	s.o.Log.Warn(e.What, "code", e.Code, "where", e.Where, "why", e.Why, "fix", e.Fix)
	s.o.Alarm(e)
}
