package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare"
	"hotspare/boot"
)

// answer is what one packet leads to. Without a packet nothing is sent; without
// a text nothing is recorded.
type answer struct {
	packet *dhcpv4.DHCPv4
	to     destination
	text   string
	reason boot.Reason
	node   string
}

// answer works on one packet as the segment's own server.
func (s *Server) answer(ctx context.Context, m message) answer {
	if !s.serves(m) {
		return answer{text: "nothing", reason: boot.Reason{Rule: boot.RuleNoAddress, Text: "the request comes from a network that this segment does not serve"}}
	}
	if s.strays(m) {
		if m.kind == dhcpv4.MessageTypeRequest {
			return s.nak(m, m.have, "")
		}
		return answer{}
	}
	switch m.kind {
	case dhcpv4.MessageTypeDiscover:
		return s.discover(ctx, m)
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

// serves says whether the pool is for the network that the packet comes from.
func (s *Server) serves(m message) bool {
	if m.relay.IsValid() {
		return s.o.Prefix.Contains(m.relay)
	}
	return s.o.Prefix.Contains(s.o.Server)
}

// strays says whether the client or its relay claims an address of another
// network. Answers go to that address, and they carry boot tokens: none may
// leave the segment.
func (s *Server) strays(m message) bool {
	away := func(a netip.Addr) bool { return a.IsValid() && !s.o.Prefix.Contains(a) }
	return away(m.have) || away(m.relay)
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
		s.mu.Lock()
		l := s.table.byMAC[m.mac]
		known := l != nil && l.Known
		s.mu.Unlock()
		return decision{offer: offer, reason: reason, known: known}
	}
	_, reserved := s.o.Reservations(m.mac)
	return decision{offer: offer, reason: reason, node: a.Node, known: a.Node != "" || reserved}
}

func (s *Server) discover(ctx context.Context, m message) answer {
	d := s.decide(ctx, m)
	want := addrOf(m.Options[50])
	for range 4 {
		s.mu.Lock()
		l, fresh, err := s.table.offer(m.mac, want, d.known, s.o.Now())
		s.mu.Unlock()
		if err != nil {
			return s.noAddress(m, d, err)
		}
		if fresh && s.taken(ctx, l) {
			s.mu.Lock()
			avoided := s.table.avoid(m.mac, l.Addr, s.o.Now())
			s.mu.Unlock()
			if !avoided {
				return s.noAddress(m, d, errPoolEmpty)
			}
			continue
		}
		return s.send(m, dhcpv4.MessageTypeOffer, l.Addr, s.o.LeaseTime, d)
	}
	return s.noAddress(m, d, errors.New("every address that was tried is in use by somebody else"))
}

// taken probes an address that is new to its machine. The machine itself may
// answer, from an earlier life.
func (s *Server) taken(ctx context.Context, l Lease) bool {
	if s.o.ProbeWait < 0 || s.link == nil {
		return false
	}
	who, used, err := s.link.probe(ctx, l.Addr, l.MAC, s.o.ProbeWait)
	if err != nil {
		s.o.Log.Warn("address not probed", "addr", l.Addr, "err", err)
	}
	if used {
		s.o.Log.Warn("address is in use already", "code", hotspare.CodeAddressInUse, "addr", l.Addr, "by", who, "mac", l.MAC)
	}
	return used
}

func (s *Server) noAddress(m message, d decision, err error) answer {
	s.o.Log.Warn("no address for machine", "mac", m.mac, "node", d.node, "err", err)
	reason := boot.Reason{Rule: boot.RuleNoAddress, Text: err.Error(), Fix: "make the range larger, or free addresses"}
	if errors.Is(err, errUnknown) {
		reason.Fix = "add the machine as a node, or find out who sends so many MAC addresses"
	}
	return answer{text: "nothing", reason: reason, node: d.node}
}

// request answers the four kinds of REQUEST (RFC 2131 section 4.3.2).
func (s *Server) request(ctx context.Context, m message) answer {
	chosen, want := addrOf(m.Options[54]), addrOf(m.Options[50])
	if chosen.IsValid() && chosen != s.o.Server { // selecting, but another's offer
		s.noteForeign(chosen, m.mac)
		s.mu.Lock()
		if l := s.table.byMAC[m.mac]; l != nil && !l.Bound {
			s.table.drop(l)
		}
		s.mu.Unlock()
		return answer{text: "nothing", reason: boot.Reason{
			Rule: boot.RuleNoAddress, Code: hotspare.CodeForeignDHCP, Text: fmt.Sprintf("the machine took the offer of another DHCP server, %s", chosen),
			Fix: "use proxy mode on this segment, or stop that server",
		}}
	}
	if !want.IsValid() {
		want = m.have // renewing or rebinding
	}
	d := s.decide(ctx, m)
	if !want.IsValid() {
		return answer{node: d.node, text: "nothing", reason: boot.Reason{Rule: boot.RuleNoAddress, Text: "the request names no address"}}
	}
	l, v, err := s.bind(m, want, d.known)
	switch {
	case err != nil:
		s.stat.failed.Add(1)
		s.o.Log.Error("lease not written; it holds in memory only", "mac", m.mac, "err", err)
		fallthrough
	case v == grant:
		return s.send(m, dhcpv4.MessageTypeAck, l.Addr, s.o.LeaseTime, d)
	case v == ignore:
		return s.noAddress(m, d, errUnknown)
	}
	return s.nak(m, want, d.node)
}

// nak tells a machine to begin anew.
func (s *Server) nak(m message, want netip.Addr, node string) answer {
	out, err := s.reply(m, dhcpv4.MessageTypeNak)
	if err != nil {
		return answer{}
	}
	text := fmt.Sprintf("the machine may not have %s; it asks anew", want)
	out.Options[56] = []byte(text)
	return answer{packet: out, to: where(m, dhcpv4.MessageTypeNak, netip.Addr{}), text: "NAK", reason: boot.Reason{Rule: boot.RuleNoAddress, Text: text}, node: node}
}

// bind makes a lease durable. A lease that cannot be written still holds: a full
// disk must not keep machines from booting.
func (s *Server) bind(m message, want netip.Addr, known bool) (Lease, verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, v := s.table.bind(m.mac, want, known, s.o.LeaseTime, s.o.Now())
	if v != grant {
		return l, v, nil
	}
	return l, v, s.file.append(l, len(s.table.byMAC), s.leases)
}

func (s *Server) send(m message, kind dhcpv4.MessageType, addr netip.Addr, lease time.Duration, d decision) answer {
	out, err := s.reply(m, kind)
	if err != nil {
		s.o.Log.Error("DHCP answer not built", "mac", m.mac, "err", err)
		return answer{}
	}
	s.addressOptions(out, addr, lease)
	bootOptions(out, m.boot, d.offer)
	text := kind.String()
	if addr.IsValid() {
		text += " " + addr.String()
	}
	if d.offer.BootFile != "" {
		text += ", " + redact(d.offer)
	}
	return answer{packet: out, to: where(m, kind, addr), text: text, reason: d.reason, node: d.node}
}

func (s *Server) decline(m message) answer {
	addr := addrOf(m.Options[50])
	s.mu.Lock()
	avoided := s.table.avoid(m.mac, addr, s.o.Now())
	s.mu.Unlock()
	if !avoided {
		return answer{}
	}
	s.o.Log.Warn("machine declined its address: somebody else uses it", "code", hotspare.CodeAddressInUse, "addr", addr, "mac", m.mac)
	return answer{text: "noted", reason: boot.Reason{Rule: boot.RuleNoAddress, Code: hotspare.CodeAddressInUse, Text: fmt.Sprintf("somebody else answers on %s", addr), Fix: "find the machine that has it, or exclude the address"}}
}

func (s *Server) release(m message) answer {
	s.mu.Lock()
	l, ok := s.table.release(m.mac, m.have, s.o.Now())
	var err error
	if ok {
		err = s.file.append(l, len(s.table.byMAC), s.leases)
	}
	s.mu.Unlock()
	if err != nil {
		s.stat.failed.Add(1)
		s.o.Log.Error("release of a lease not written", "mac", m.mac, "err", err)
	}
	if !ok {
		return answer{}
	}
	return answer{text: "released " + l.Addr.String(), reason: boot.Reason{Rule: boot.RuleAddress, Text: "the machine gave its address back"}}
}

func (s *Server) inform(ctx context.Context, m message) answer {
	if !m.have.IsValid() {
		return answer{}
	}
	d := s.decide(ctx, m)
	return s.send(m, dhcpv4.MessageTypeAck, netip.Addr{}, 0, d)
}

// answerProxy works on one packet beside another server: boot files only, and
// only for machines that boot.
func (s *Server) answerProxy(ctx context.Context, m message, port int) answer {
	if m.boot.Stage == boot.StageSystem || s.strays(m) {
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
	out, err := s.reply(m, kind)
	if err != nil {
		return answer{}
	}
	bootOptions(out, m.boot, d.offer)
	return answer{packet: out, to: where(m, kind, netip.Addr{}), text: kind.String() + " " + redact(d.offer), reason: d.reason, node: d.node}
}

// redact shows an offer without its token.
func redact(o boot.Offer) string {
	if o.Kind != boot.OfferURL {
		return o.BootFile
	}
	i := strings.Index(strings.TrimPrefix(o.BootFile, "http://"), "/")
	if i < 0 {
		return o.BootFile
	}
	i += len("http://")
	if p, ok := boot.ParsePath(o.BootFile[i:]); ok && p.Token != "" {
		return o.BootFile[:i] + p.Redacted()
	}
	return o.BootFile
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
	}
	return b.String()
}
