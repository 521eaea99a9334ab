package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare"
	"hotspare/boot"
)

// answer is what one packet leads to. Without a packet nothing is sent; without
// a text nothing is recorded. A change must be durable before anything is sent.
// later gives the answer after a probe, which takes its time.
type answer struct {
	later  func(context.Context) answer
	file   *leaseFile
	change *leaseBatch
	packet *dhcpv4.DHCPv4
	to     destination
	text   string
	reason boot.Reason
	node   string
}

// answer works on one packet as the segment's own server.
func (s *Server) answer(ctx context.Context, m message) answer {
	n, ok := s.choose(m)
	if !ok {
		return answer{text: "nothing", reason: boot.Reason{
			Rule: boot.RuleNoAddress, Text: fmt.Sprintf("the request comes from a network that is not served (%s)", m.link),
			Fix: "add that network to the segment, or take the relay's forwarding out",
		}}
	}
	m.net = n
	if m.have.IsValid() && !n.Prefix.Contains(m.have) {
		// The client claims an address of another network. Answers go to that
		// address, and they carry boot tokens: none may leave the segment.
		if m.kind == dhcpv4.MessageTypeRequest {
			return s.nak(m, m.have, "")
		}
		return answer{}
	}
	switch m.kind {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(m, s.decide(ctx, m))
	case dhcpv4.MessageTypeRequest:
		return s.request(ctx, m)
	case dhcpv4.MessageTypeDecline:
		return s.decline(m)
	case dhcpv4.MessageTypeRelease:
		return s.release(m)
	case dhcpv4.MessageTypeInform:
		return s.inform(ctx, m)
	}
	return answer{}
}

// choose gives the subnet that a packet belongs to: of a relayed one the relay's
// choice, of a machine that writes by itself the one that its address is in, else
// the link's own. A relay is answered only at an address of a network that is
// served, or at one that the subnet names (boot tokens travel in answers).
func (s *Server) choose(m message) (*subnet, bool) {
	if !m.relay.IsValid() {
		if n := s.subnetOf(m.have); n != nil && m.kind != dhcpv4.MessageTypeDiscover {
			return n, true
		}
		return s.own, s.own.Prefix.Contains(s.o.Server)
	}
	n := s.subnetOf(m.link)
	if n == nil || m.relay == s.o.Server {
		return nil, false
	}
	return n, s.subnetOf(m.relay) != nil || slices.Contains(n.Relays, m.relay)
}

// decision is what director and plan say.
type decision struct {
	offer  boot.Offer
	reason boot.Reason
	node   string
	known  bool // more than a MAC address that somebody sent
}

func (s *Server) decide(ctx context.Context, m message) decision {
	a, err := s.o.Director.Assign(ctx, m.boot)
	offer, reason := s.o.Site.Plan(m.boot, a)
	if err != nil {
		s.o.Log.Error("boot decision failed", "mac", m.mac, "err", err)
		// The plan over the zero assignment makes the machine wait and ask
		// again; only the reason is another.
		offer, reason = s.o.Site.Plan(m.boot, boot.Assignment{})
		if m.boot.Stage == boot.StageIPXE {
			reason = boot.Undecided()
		}
		return decision{offer: offer, reason: reason, known: s.wasKnown(m)}
	}
	known := a.Node != ""
	if !known {
		_, known = s.o.Reservations.Reserved(m.mac, m.net.Prefix)
	}
	if !known {
		known = s.o.Known(m.mac)
	}
	s.limits.learn(m.mac, known)
	return decision{offer: offer, reason: reason, node: a.Node, known: known}
}

// wasKnown says whether the machine was known when it got its lease.
func (s *Server) wasKnown(m message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := m.net.table.byMAC[m.mac]
	return l != nil && l.Known
}

func (s *Server) discover(m message, d decision) answer {
	want := addrOf(m.Options[50])
	l, probe, err := s.offer(m, want, d.known)
	if err != nil {
		return s.noAddress(m, d, err)
	}
	if !probe {
		return s.send(m, dhcpv4.MessageTypeOffer, l.Addr, m.net.LeaseTime, d)
	}
	return answer{later: func(ctx context.Context) answer { return s.offerProbed(ctx, m, d, l) }}
}

// offer holds an address for m, and says whether it must be probed.
func (s *Server) offer(m message, want netip.Addr, known bool) (Lease, bool, error) {
	s.mu.Lock()
	l, probe, err := m.net.table.offer(m.mac, want, known, s.o.Now())
	s.mu.Unlock()
	if err != nil || !s.canProbe(m.net) {
		return l, false, err
	}
	if !l.Bound {
		s.link.arp.used()
	}
	return l, probe || s.claimed(l), nil
}

// offerProbed offers the first address on which nobody answers.
func (s *Server) offerProbed(ctx context.Context, m message, d decision, l Lease) answer {
	for range 4 {
		if !s.taken(ctx, l.Addr, m.mac) {
			return s.send(m, dhcpv4.MessageTypeOffer, l.Addr, m.net.LeaseTime, d)
		}
		if !s.avoid(m, l.Addr) {
			return s.noAddress(m, d, errPoolEmpty)
		}
		var probe bool
		var err error
		if l, probe, err = s.offer(m, netip.Addr{}, d.known); err != nil {
			return s.noAddress(m, d, err)
		}
		if !probe {
			return s.send(m, dhcpv4.MessageTypeOffer, l.Addr, m.net.LeaseTime, d)
		}
	}
	return s.noAddress(m, d, errors.New("every address that was tried is in use by somebody else"))
}

// canProbe says whether addresses of n can be asked for by ARP. Behind a relay
// nobody can be asked: there the machine's own check and its DECLINE are what is
// left.
func (s *Server) canProbe(n *subnet) bool { return s.link != nil && s.link.arp != nil && n == s.own }

// taken probes an address that is new to its machine. The machine itself may
// answer, from an earlier life.
func (s *Server) taken(ctx context.Context, a netip.Addr, m boot.MAC) bool {
	who, used, err := s.link.arp.probe(ctx, a, m)
	if err != nil {
		s.o.Log.Warn("address not probed", "addr", a, "err", err)
	}
	if used {
		s.conflict(a, fmt.Sprintf("%s answers there without a lease", s.nameMAC(who)))
	}
	return used
}

// claimed says whether somebody else was heard to claim an address that is not yet
// its machine's, since it was probed for the stock.
func (s *Server) claimed(l Lease) bool {
	if l.Bound {
		return false
	}
	who, ok := s.link.arp.claimed(l.Addr, time.Now().Add(-stockFresh))
	return ok && who != l.MAC
}

func (s *Server) conflict(a netip.Addr, why string) {
	s.stat.conflicts.Add(1)
	s.alarm(&hotspare.Error{
		Code: hotspare.CodeAddressInUse, What: "an address of the pool is in use by somebody else", Where: a.String(), Why: why,
		Fix: "give that machine an address outside the range, or by DHCP; the address is left alone for " + conflictHold.String(),
	})
}

// avoid puts m's address into quarantine, durably.
func (s *Server) avoid(m message, a netip.Addr) bool {
	s.mu.Lock()
	l, ok := m.net.table.avoid(m.mac, a, s.o.Now())
	x := s.change(l, ok)
	s.mu.Unlock()
	s.settle(m, x)
	return ok
}

// change enters a change that is to be durable before it is told. The caller holds
// mu, with which it has changed the table.
func (s *Server) change(l Lease, ok bool) answer {
	if !ok || s.file == nil {
		return answer{}
	}
	return answer{file: s.file, change: s.file.enter(l)}
}

func (s *Server) noAddress(m message, d decision, err error) answer {
	s.stat.noAddress.Add(1)
	reason := boot.Reason{Rule: boot.RuleNoAddress, Code: hotspare.CodePoolEmpty, Text: err.Error(), Fix: "make the range larger, or free addresses"}
	if errors.Is(err, errUnknown) {
		reason.Code, reason.Fix = hotspare.CodeDHCPRefuses, "add the machine as a node, or find out who sends so many MAC addresses"
	}
	s.alarm(&hotspare.Error{
		Code: reason.Code, What: "a machine gets no address", Where: fmt.Sprintf("%s on %s", m.net.Prefix.Masked(), s.o.Interface),
		Why: fmt.Sprintf("%s (%s %s)", err, m.mac, d.node), Fix: reason.Fix,
	})
	return answer{text: "nothing", reason: reason, node: d.node}
}

// request answers the four kinds of REQUEST (RFC 2131 section 4.3.2): selecting
// names the server, INIT-REBOOT the address alone, renewing and rebinding come from
// the address itself.
func (s *Server) request(ctx context.Context, m message) answer {
	chosen, want := addrOf(m.Options[54]), addrOf(m.Options[50])
	if chosen.IsValid() && chosen != s.o.Server && chosen != m.as {
		return s.lost(m, chosen)
	}
	if !want.IsValid() {
		want = m.have
	}
	d := s.decide(ctx, m)
	if !want.IsValid() {
		return answer{node: d.node, text: "nothing", reason: boot.Reason{Rule: boot.RuleNoAddress, Text: "the request names no address"}}
	}
	s.mu.Lock()
	v, held := m.net.table.judge(m.mac, want, d.known, s.o.Now())
	probe := v == grant && !held && !m.net.table.isQuiet(want, s.o.Now())
	s.mu.Unlock()
	if !probe || !s.canProbe(m.net) {
		return s.bind(m, want, d)
	}
	// It was not offered this address lately: the pool may have forgotten who
	// uses it.
	return answer{later: func(ctx context.Context) answer {
		if !s.taken(ctx, want, m.mac) {
			return s.bind(m, want, d)
		}
		s.mu.Lock()
		l, ok := m.net.table.quarantine(want, s.o.Now().Add(conflictHold), s.o.Now())
		x := s.change(l, ok)
		s.mu.Unlock()
		s.settle(m, x)
		return s.nak(m, want, d.node)
	}}
}

// bind gives the machine its address.
func (s *Server) bind(m message, want netip.Addr, d decision) answer {
	s.mu.Lock()
	l, v := m.net.table.bind(m.mac, want, d.known, m.net.LeaseTime, s.o.Now())
	x := s.change(l, v == grant)
	s.mu.Unlock()
	switch v {
	case grant:
		a := s.send(m, dhcpv4.MessageTypeAck, l.Addr, m.net.LeaseTime, d)
		a.file, a.change = x.file, x.change
		return a
	case ignore:
		return s.noAddress(m, d, errUnknown)
	}
	return s.nak(m, want, d.node)
}

// lost notes that the machine took another server's offer: what was held for it is
// free again.
func (s *Server) lost(m message, chosen netip.Addr) answer {
	f := s.foreignTaken(chosen, m)
	s.mu.Lock()
	if l := m.net.table.byMAC[m.mac]; l != nil && !l.Bound {
		m.net.table.drop(l)
	}
	s.mu.Unlock()
	return answer{text: "nothing", reason: boot.Reason{
		Rule: boot.RuleNoAddress, Code: hotspare.CodeForeignDHCP, Text: "the machine took the offer of another DHCP server, " + f.name(), Fix: f.Fix,
	}}
}

// nak tells a machine to begin anew.
func (s *Server) nak(m message, want netip.Addr, node string) answer {
	out := s.reply(m, dhcpv4.MessageTypeNak)
	s.stat.naks.Add(1)
	text := fmt.Sprintf("the machine may not have %s; it asks anew", want)
	out.Options[56] = []byte(text)
	return answer{packet: out, to: where(m, dhcpv4.MessageTypeNak, netip.Addr{}), text: "NAK", reason: boot.Reason{Rule: boot.RuleNoAddress, Text: text}, node: node}
}

func (s *Server) send(m message, kind dhcpv4.MessageType, addr netip.Addr, lease time.Duration, d decision) answer {
	out := s.reply(m, kind)
	s.addressOptions(out, m, addr, lease)
	bootOptions(out, m.boot, d.offer)
	shorten(out, m)
	text := kind.String()
	if addr.IsValid() {
		text += " " + addr.String()
	}
	if d.offer.BootFile != "" {
		text += ", " + d.offer.Redacted()
	}
	return answer{packet: out, to: where(m, kind, addr), text: text, reason: d.reason, node: d.node}
}

// decline takes an address away that the machine itself found in use.
func (s *Server) decline(m message) answer {
	addr := addrOf(m.Options[50])
	if chosen := addrOf(m.Options[54]); chosen.IsValid() && chosen != s.o.Server && chosen != m.as {
		return answer{}
	}
	if !s.avoid(m, addr) {
		return answer{}
	}
	s.conflict(addr, fmt.Sprintf("%s was to have it and found it in use", m.mac))
	return answer{text: "noted", reason: boot.Reason{Rule: boot.RuleNoAddress, Code: hotspare.CodeAddressInUse, Text: fmt.Sprintf("somebody else answers on %s", addr), Fix: "find the machine that has it, or exclude the address"}}
}

func (s *Server) release(m message) answer {
	if chosen := addrOf(m.Options[54]); chosen.IsValid() && chosen != s.o.Server && chosen != m.as {
		return answer{}
	}
	s.mu.Lock()
	l, ok := m.net.table.release(m.mac, m.have, s.o.Now())
	x := s.change(l, ok)
	s.mu.Unlock()
	if ok {
		x.text, x.reason = "released "+l.Addr.String(), boot.Reason{Rule: boot.RuleAddress, Text: "the machine gave its address back"}
	}
	return x
}

func (s *Server) inform(ctx context.Context, m message) answer {
	if !m.have.IsValid() {
		return answer{}
	}
	d := s.decide(ctx, m)
	return s.send(m, dhcpv4.MessageTypeAck, netip.Addr{}, 0, d)
}

// answerProxy works on one packet beside another server: boot files only, and
// only for machines that boot. With from, its sender, a packet to port 4011 comes
// from a machine that has its address already.
func (s *Server) answerProxy(ctx context.Context, m message, from netip.Addr, port int) answer {
	if port == portPXE {
		if m.relay.IsValid() {
			return answer{}
		}
		m.net = s.subnetOf(from)
	} else {
		m.net, _ = s.choose(m)
	}
	if m.net == nil || m.have.IsValid() && !m.net.Prefix.Contains(m.have) {
		return answer{} // see answer: no boot token leaves the networks that are served
	}
	if chosen := addrOf(m.Options[54]); port == portDHCP && m.kind == dhcpv4.MessageTypeRequest && chosen.IsValid() && chosen != s.o.Server {
		s.foreignTaken(chosen, m)
	}
	if m.boot.Stage == boot.StageSystem {
		return answer{}
	}
	kind := dhcpv4.MessageTypeAck
	switch {
	case m.kind == dhcpv4.MessageTypeDiscover && port == portDHCP:
		kind = dhcpv4.MessageTypeOffer
	case (m.kind == dhcpv4.MessageTypeRequest || m.kind == dhcpv4.MessageTypeInform) && port == portPXE:
	default:
		return answer{}
	}
	d := s.decide(ctx, m)
	if d.offer.Kind != boot.OfferFile && d.offer.Kind != boot.OfferURL {
		return answer{text: "nothing", reason: d.reason, node: d.node}
	}
	out := s.reply(m, kind)
	bootOptions(out, m.boot, d.offer)
	if item := bootItem(m.Options[43]); item != nil && d.offer.VendorClass == "PXEClient" {
		// PXE 2.1: the answer names the item of the menu that was asked for.
		out.Options[43] = append(item, out.Options[43]...)
	}
	return answer{packet: out, to: where(m, kind, netip.Addr{}), text: kind.String() + " " + d.offer.Redacted(), reason: d.reason, node: d.node}
}

// bootItem gives PXE_BOOT_ITEM (71) out of option 43, with tag and length.
func bootItem(b []byte) []byte {
	for len(b) >= 2 && b[0] != 255 {
		if b[0] == 0 {
			b = b[1:]
			continue
		}
		n := 2 + int(b[1])
		if len(b) < n {
			return nil
		}
		if b[0] == 71 && n == 6 {
			return slices.Clone(b[:n])
		}
		b = b[n:]
	}
	return nil
}

// describe tells a request in a few words, for the trace.
func describe(m message) string {
	var b strings.Builder
	b.WriteString(m.kind.String())
	if m.boot.Stage == boot.StageSystem {
		b.WriteString(", operating system")
	} else {
		b.WriteString(", " + m.boot.Arch.String())
	}
	if m.boot.Stage == boot.StageIPXE {
		b.WriteString(", iPXE " + m.boot.Features.Version)
	}
	if m.boot.Arch.HTTP() {
		b.WriteString(", HTTP boot")
	}
	if m.relay.IsValid() {
		b.WriteString(", by relay " + m.relay.String())
		if m.link != m.relay {
			b.WriteString(" for " + m.link.String())
		}
	}
	return b.String()
}
