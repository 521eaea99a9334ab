package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hotspare"
	"hotspare/boot"
)

// atOnce bounds the packets that are worked on at one time; more are dropped and
// their senders ask again.
const atOnce = 64

// Stats counts what the server saw since New.
type Stats struct {
	Received  uint64 `json:"received"`
	Answered  uint64 `json:"answered"`
	Malformed uint64 `json:"malformed"` // not parsed, or no client's request
	Dropped   uint64 `json:"dropped"`   // too many at once
	Panics    uint64 `json:"panics"`
	Failed    uint64 `json:"failed"` // an answer could not be sent or a lease not written
}

// Foreign is another DHCP server whose offers machines on this segment take.
type Foreign struct {
	Server netip.Addr `json:"server"`
	Last   time.Time  `json:"last"`
	MAC    boot.MAC   `json:"mac"` // the machine that took its offer last
	Count  uint64     `json:"count"`
}

// Server serves one segment. It holds its ports from New on; Serve answers.
type Server struct {
	o Options

	mu      sync.Mutex // guards table, file, foreign
	table   *table
	file    *leaseFile
	foreign map[netip.Addr]*Foreign

	link *link // sockets; nil when off
	stat struct{ received, answered, malformed, dropped, panics, failed atomic.Uint64 }
}

// New takes the ports and reads the leases. A taken port is a *hotspare.Error
// with CodePortTaken that names the holder; a missing interface or address has
// CodeNoInterface.
func New(o Options) (_ *Server, err error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, err
	}
	s := &Server{o: o, table: newTable(o), foreign: map[netip.Addr]*Foreign{}}
	if o.Mode == Off {
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
	// Oldest first, so that of two leases on one address the later one stays.
	slices.SortFunc(leases, func(a, b Lease) int { return a.Expires.Compare(b.Expires) })
	for _, l := range leases {
		s.table.put(&l)
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
	return err
}

// Serve answers until ctx ends; then it closes the server and returns nil. Any
// other end is an error.
func (s *Server) Serve(ctx context.Context) error {
	if s.o.Mode == Off {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { s.link.unblock() })
	var wg sync.WaitGroup
	errs := make(chan error, 3)
	run := func(name string, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				errs <- fmt.Errorf("%s on %s: %w", name, s.o.Interface, err)
			}
			cancel()
		})
	}
	run("DHCP", func(ctx context.Context) error { return s.loop(ctx, s.link.dhcp, portDHCP) })
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

// loop reads packets and answers each on a goroutine of its own, for a probe or
// a slow Director must not hold up other machines.
func (s *Server) loop(ctx context.Context, c *socket, port int) error {
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	defer wg.Wait()
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.read(buf)
		if err != nil {
			return err
		}
		s.stat.received.Add(1)
		select {
		case slots <- struct{}{}:
		default:
			s.stat.dropped.Add(1)
			continue
		}
		packet := slices.Clone(buf[:n])
		wg.Go(func() {
			defer func() {
				<-slots
				if p := recover(); p != nil {
					s.stat.panics.Add(1)
					s.o.Log.Error("DHCP packet dropped: it made the server panic", "from", from, "panic", p)
				}
			}()
			s.packet(ctx, c, packet, from, port)
		})
	}
}

// packet answers one packet.
func (s *Server) packet(ctx context.Context, c *socket, b []byte, from netip.AddrPort, port int) {
	protocol := boot.DHCP
	if s.o.Mode == Proxy {
		protocol = boot.ProxyDHCP
	}
	m, err := parse(b, protocol)
	if err != nil {
		s.stat.malformed.Add(1)
		s.o.Log.Debug("DHCP packet dropped", "from", from, "err", err)
		return
	}
	var a answer
	if s.o.Mode == Proxy {
		a = s.answerProxy(ctx, m, port)
	} else {
		a = s.answer(ctx, m)
	}
	if a.packet != nil {
		if port == portPXE && s.o.Prefix.Contains(from.Addr()) {
			a.to = destination{addr: from} // PXE 2.1: back to where it came from
		}
		if err := s.link.send(c, a.packet.ToBytes(), a.to); err != nil {
			s.stat.failed.Add(1)
			s.o.Log.Error("DHCP answer not sent", "mac", m.mac, "to", a.to.addr, "err", err)
			a.text += " (not sent)"
		} else {
			s.stat.answered.Add(1)
		}
	}
	if a.text != "" {
		s.o.Recorder.Record(boot.Entry{
			At: s.o.Now(), MAC: m.mac, Protocol: protocol, Node: a.node,
			Request: describe(m), Answer: a.text, Reason: a.reason,
		})
	}
}

// Leases gives all leases, live and remembered, by address.
func (s *Server) Leases() []Lease {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases()
}

func (s *Server) leases() []Lease {
	out := make([]Lease, 0, len(s.table.byMAC))
	for _, l := range s.table.byMAC {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return out
}

// MACOf gives the machine that has addr by a live lease.
func (s *Server) MACOf(addr netip.Addr) (boot.MAC, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.table.byAddr[addr]
	if l == nil || !l.Live(s.o.Now()) {
		return boot.MAC{}, false
	}
	return l.MAC, true
}

// AddrOf gives the address that mac has by a live lease.
func (s *Server) AddrOf(mac boot.MAC) (netip.Addr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.table.byMAC[mac]
	if l == nil || !l.Live(s.o.Now()) {
		return netip.Addr{}, false
	}
	return l.Addr, true
}

// Stats gives the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Received: s.stat.received.Load(), Answered: s.stat.answered.Load(), Malformed: s.stat.malformed.Load(),
		Dropped: s.stat.dropped.Load(), Panics: s.stat.panics.Load(), Failed: s.stat.failed.Load(),
	}
}

// ForeignServers gives the other DHCP servers that were noticed.
func (s *Server) ForeignServers() []Foreign {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Foreign, 0, len(s.foreign))
	for _, f := range s.foreign {
		out = append(out, *f)
	}
	slices.SortFunc(out, func(a, b Foreign) int { return a.Server.Compare(b.Server) })
	return out
}

// noteForeign remembers that mac took the offer of another server.
func (s *Server) noteForeign(server netip.Addr, mac boot.MAC) {
	s.mu.Lock()
	f := s.foreign[server]
	first := f == nil
	if first && len(s.foreign) < 64 {
		f = &Foreign{Server: server}
		s.foreign[server] = f
	}
	if f != nil {
		f.Last, f.MAC, f.Count = s.o.Now(), mac, f.Count+1
	}
	s.mu.Unlock()
	if first {
		s.o.Log.Warn("another DHCP server answers on the segment", "code", hotspare.CodeForeignDHCP, "server", server, "mac", mac,
			"fix", "use proxy mode, or stop that server")
	}
}
