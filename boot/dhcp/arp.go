package dhcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/packet"

	"hotspare/boot"
)

// arp asks who has an address (RFC 5227 section 2.1.1) and hears who says so.
type arp struct {
	conn *packet.Conn
	own  boot.MAC
	wait time.Duration
	near func(netip.Addr) bool // addresses that are worth remembering

	mu    sync.Mutex
	heard map[netip.Addr]claim
	asked map[netip.Addr][]chan boot.MAC
	lack  chan struct{} // the stock was used
}

// claim is somebody who said that he has an address.
type claim struct {
	mac boot.MAC
	at  time.Time
}

func openARP(ifi *net.Interface, o Options) (*arp, error) {
	c, err := packet.Listen(ifi, packet.Raw, etherARP, nil)
	if err != nil {
		return nil, fmt.Errorf("open an ARP socket on %s: %w", ifi.Name, err)
	}
	return &arp{
		conn: c, own: boot.MAC(ifi.HardwareAddr), wait: o.ProbeWait, near: o.Range.Contains,
		heard: map[netip.Addr]claim{}, asked: map[netip.Addr][]chan boot.MAC{}, lack: make(chan struct{}, 1),
	}, nil
}

// listen hears every ARP packet of the segment until the socket is unblocked.
func (p *arp) listen(ctx context.Context) error {
	buf := make([]byte, 1<<11)
	for {
		n, err := readFrame(ctx, p.conn, buf)
		if err != nil {
			return err
		}
		if m, a, ok := arpSender(buf[:n]); ok && m != p.own && p.near(a) {
			p.note(a, m, time.Now())
		}
	}
}

func (p *arp) note(a netip.Addr, m boot.MAC, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard[a] = claim{m, now} // as many as the range has addresses
	for _, c := range p.asked[a] {
		select {
		case c <- m:
		default:
		}
	}
}

// claimed gives who said after since that he has a.
func (p *arp) claimed(a netip.Addr, since time.Time) (boot.MAC, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.heard[a]
	return c.mac, ok && !c.at.Before(since)
}

// probe asks who has a, from no address of our own, and waits for an answer. used
// is false when nobody but the machine itself answers in time.
func (p *arp) probe(ctx context.Context, a netip.Addr, itself boot.MAC) (who boot.MAC, used bool, err error) {
	answers := make(chan boot.MAC, 4)
	p.mu.Lock()
	p.asked[a] = append(p.asked[a], answers)
	p.mu.Unlock()
	defer p.done(a, answers)
	if err := p.ask(a); err != nil {
		return who, false, err
	}
	late := time.NewTimer(p.wait)
	defer late.Stop()
	for {
		select {
		case m := <-answers:
			if m != itself {
				return m, true, nil
			}
		case <-late.C:
			return who, false, nil
		case <-ctx.Done():
			return who, false, nil
		}
	}
}

func (p *arp) done(a netip.Addr, c chan boot.MAC) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := p.asked[a][:0]
	for _, x := range p.asked[a] {
		if x != c {
			rest = append(rest, x)
		}
	}
	if p.asked[a] = rest; len(rest) == 0 {
		delete(p.asked, a)
	}
}

func (p *arp) ask(a netip.Addr) error {
	all := boot.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := p.conn.WriteTo(arpProbe(p.own, a), &packet.Addr{HardwareAddr: all[:]}); err != nil {
		return fmt.Errorf("probe %s: %w", a, err)
	}
	return nil
}

// used says that the stock of probed addresses was drawn from.
func (p *arp) used() {
	select {
	case p.lack <- struct{}{}:
	default:
	}
}

// keepStock probes unused addresses before a machine needs them.
func (s *Server) keepStock(ctx context.Context) error {
	p := s.link.arp
	again := time.NewTicker(stockFresh / 16)
	defer again.Stop()
	for {
		more, err := s.probeBatch(ctx, p)
		if err != nil {
			s.o.Log.Warn("addresses not probed", "err", err)
		}
		if more && err == nil && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-p.lack:
		}
	}
}

// probeBatch probes what the stock lacks, up to a batch; more says that there may
// be more to do.
func (s *Server) probeBatch(ctx context.Context, p *arp) (more bool, err error) {
	s.mu.Lock()
	batch := s.own.table.toProbe(s.o.Now())
	s.mu.Unlock()
	if len(batch) == 0 {
		return false, nil
	}
	began := time.Now()
	for i, a := range batch {
		if err := p.ask(a); err != nil {
			return false, err
		}
		if i%32 == 31 && pause(ctx, 5*time.Millisecond) { // every machine of the segment has to read them
			return false, nil
		}
	}
	if pause(ctx, p.wait) {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range batch {
		if _, used := p.claimed(a, began); used {
			// Not in quarantine: it is probed again, and then offered only
			// after a probe of its own.
			continue
		}
		s.own.table.setQuiet(a, s.o.Now())
	}
	return len(batch) == stockBatch, nil
}

// pause waits; it says whether ctx ended meanwhile.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-ctx.Done():
		return true
	}
}

// arpProbe builds the frame of a question with sender address 0 (RFC 826).
func arpProbe(src boot.MAC, a netip.Addr) []byte {
	b := make([]byte, 0, 42)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, src[:]...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, request
	b = append(b, src[:]...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, a.AsSlice()...)
}

// arpSender reads a frame: who says of himself that he has which address. That is
// so in answers, in questions, and in announcements alike.
func arpSender(b []byte) (boot.MAC, netip.Addr, bool) {
	if len(b) < 42 || binary.BigEndian.Uint16(b[12:]) != etherARP || string(b[14:20]) != "\x00\x01\x08\x00\x06\x04" {
		return boot.MAC{}, netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte(b[28:32]))
	m, ok := boot.MACFrom(b[22:28])
	return m, a, ok && !a.IsUnspecified()
}
