package dhcp

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/rfc1035label"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/boot"
)

// IPv6 says what the machines of a link are told over IPv6: by DHCPv6 (RFC 8415)
// what to boot (RFC 5970), and with Addresses an address too. Router advertisements
// carry the flags that make a machine ask (M and O); the appliance is no router,
// their lifetime is 0.
type IPv6 struct {
	Server netip.Addr   // our address on the link; boot files are fetched from it
	Prefix netip.Prefix // the link's network, a /64
	// Addresses: machines get theirs here. An address follows from the machine's
	// MAC address (RFC 7943), so that there is no pool to run dry and nothing to
	// remember. false: they have theirs from a router.
	Addresses bool
	DNS       []netip.Addr
	Search    []string
	LeaseTime time.Duration // 0: one hour
}

func (x IPv6) withDefaults() IPv6 {
	if x.LeaseTime == 0 {
		x.LeaseTime = time.Hour
	}
	return x
}

func (x IPv6) validate(bad bad) error {
	switch {
	case !x.Server.Is6() || x.Server.Is4In6() || x.Server.IsLinkLocalUnicast():
		return bad("server", fmt.Sprintf("%s is no IPv6 address that machines can reach", x.Server))
	case !x.Prefix.IsValid() || x.Prefix.Bits() != 64 || !x.Prefix.Contains(x.Server):
		return bad("prefix", "want the /64 that the server's address is in")
	case x.LeaseTime < time.Minute:
		return bad("leaseTime", "shorter than a minute")
	}
	for _, a := range x.DNS {
		if !a.Is6() {
			return bad("dns", fmt.Sprintf("%s is no IPv6 address", a))
		}
	}
	for _, d := range x.Search {
		if !validDomain(d) {
			return bad("search", fmt.Sprintf("%q is no domain name", d))
		}
	}
	return nil
}

// Ports of DHCPv6.
const (
	portServer6 = 547
	portClient6 = 546
)

// enterprise is the number that PXE and UEFI HTTP boot use in vendor classes.
const enterprise = 343

// v6 is the DHCPv6 side of a server.
type v6 struct {
	IPv6
	conn *net.UDPConn
	duid dhcpv6.DUID

	mu       sync.Mutex
	declined map[[32]byte]uint8 // how often a machine's address was found in use
}

func newV6(x IPv6, mac net.HardwareAddr) *v6 {
	return &v6{IPv6: x, duid: &dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: mac}, declined: map[[32]byte]uint8{}}
}

func openV6(ifi *net.Interface, x IPv6) (*v6, error) {
	if len(ifi.HardwareAddr) != 6 {
		return nil, &hotspare.Error{Code: hotspare.CodeNoInterface, What: "DHCPv6 needs an Ethernet interface", Where: ifi.Name, Fix: "leave ipv6 out of the segment's configuration"}
	}
	if err := hasAddress(ifi, x.Server); err != nil {
		return nil, err
	}
	pc, err := listenOn(ifi, "udp6", portServer6, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1) })
	if err != nil {
		return nil, err
	}
	v := newV6(x, ifi.HardwareAddr)
	v.conn = pc
	for _, group := range []string{"ff02::1:2", "ff05::1:3"} {
		if err := ipv6.NewPacketConn(pc).JoinGroup(ifi, &net.UDPAddr{IP: net.ParseIP(group)}); err != nil {
			return nil, errors.Join(fmt.Errorf("join %s on %s: %w", group, ifi.Name, err), pc.Close())
		}
	}
	return v, nil
}

// serve6 answers DHCPv6 until the socket is unblocked.
func (s *Server) serve6(ctx context.Context) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := s.v6.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		s.stat.received.Add(1)
		out, err := s.packet6(ctx, buf[:n], from.Addr())
		if err != nil {
			s.stat.malformed.Add(1)
			s.o.Log.Debug("DHCPv6 packet dropped", "from", from, "err", err)
			continue
		}
		if out == nil {
			continue
		}
		if _, err := s.v6.conn.WriteToUDPAddrPort(out, from); err != nil {
			s.stat.failed.Add(1)
			s.o.Log.Error("DHCPv6 answer not sent", "to", from, "err", err)
			continue
		}
		s.stat.answered.Add(1)
	}
}

// packet6 answers one packet; nil means that it gets no answer.
func (s *Server) packet6(ctx context.Context, b []byte, from netip.Addr) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil { // see parse
			s.stat.panics.Add(1)
			out, err = nil, fmt.Errorf("the packet made the server panic: %v", p)
		}
	}()
	if len(b) > longest {
		return nil, fmt.Errorf("%d bytes are more than any client sends", len(b))
	}
	d, err := dhcpv6.FromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	m, err := request6(d, from)
	if err != nil {
		return nil, err
	}
	if m.relay != nil && !s.v6.Prefix.Contains(m.link) {
		return nil, fmt.Errorf("relayed from %s, which is not served", m.link)
	}
	if !m.boot.MAC.IsZero() && s.limits.admit(m.boot.MAC, s.o.Known, s.o.Now()) != admitted {
		s.stat.limited.Add(1)
		return nil, nil
	}
	reply := s.answer6(ctx, m)
	if reply == nil {
		return nil, nil
	}
	if m.relay == nil {
		return reply.ToBytes(), nil
	}
	wrapped, err := dhcpv6.NewRelayReplFromRelayForw(m.relay, reply)
	if err != nil {
		return nil, fmt.Errorf("answer a relay: %w", err)
	}
	return wrapped.ToBytes(), nil
}

// answer6 answers one message (RFC 8415 section 18.3).
func (s *Server) answer6(ctx context.Context, m message6) *dhcpv6.Message {
	toUs := m.Options.ServerID() != nil && m.Options.ServerID().Equal(s.v6.duid)
	out := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	if id := m.Options.ClientID(); id != nil {
		out.AddOption(dhcpv6.OptClientID(id))
	}
	out.AddOption(dhcpv6.OptServerID(s.v6.duid))
	switch m.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if m.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
			out.MessageType = dhcpv6.MessageTypeAdvertise
		} else {
			out.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		}
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew:
		if !toUs {
			return nil
		}
	case dhcpv6.MessageTypeRebind:
	case dhcpv6.MessageTypeInformationRequest:
		if m.Options.ServerID() != nil && !toUs || len(m.Options.IANA()) > 0 {
			return nil
		}
	case dhcpv6.MessageTypeConfirm:
		return s.confirm6(m, out)
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		if !toUs {
			return nil
		}
		if m.MessageType == dhcpv6.MessageTypeDecline {
			s.decline6(m)
		}
		out.AddOption(&dhcpv6.OptStatusCode{StatusCode: 0, StatusMessage: "noted"})
		return out
	default:
		return nil
	}
	return s.inform6(ctx, m, out)
}

// inform6 adds addresses, network settings and what to boot.
func (s *Server) inform6(ctx context.Context, m message6, out *dhcpv6.Message) *dhcpv6.Message {
	text := out.MessageType.String()
	if m.MessageType != dhcpv6.MessageTypeInformationRequest {
		if !s.v6.Addresses {
			return nil // they are somebody else's to give
		}
		for i, ia := range m.Options.IANA() {
			if i >= 4 {
				break
			}
			a := s.v6.address(m, i, s.o.Exclude)
			text += " " + a.String()
			out.AddOption(s.v6.lease(ia.IaId, a))
		}
	}
	if len(s.v6.DNS) > 0 {
		ips := make([]net.IP, 0, len(s.v6.DNS))
		for _, a := range s.v6.DNS {
			ips = append(ips, a.AsSlice())
		}
		out.AddOption(dhcpv6.OptDNS(ips...))
	}
	if len(s.v6.Search) > 0 {
		out.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: s.v6.Search}))
	}
	offer, reason, node := s.decide6(ctx, m.boot)
	if target := s.v6.bootURL(offer); target != "" {
		out.AddOption(dhcpv6.OptBootFileURL(target))
		if offer.VendorClass == "HTTPClient" {
			// UEFI specification, HTTP boot: an offer without the class is not
			// taken for one.
			out.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: enterprise, Data: [][]byte{[]byte("HTTPClient")}})
		}
		text += ", " + offer.Redacted()
	}
	request := m.MessageType.String() + " over IPv6, " + m.boot.Arch.String()
	if m.boot.Stage == boot.StageSystem {
		request = m.MessageType.String() + " over IPv6, operating system"
	}
	s.o.Recorder.Record(boot.Entry{
		At: s.o.Now(), MAC: m.boot.MAC, Protocol: boot.DHCP, Step: stepOf6(m.MessageType), Node: node, Request: request, Answer: text, Reason: reason,
		Detail: boot.Detail{Stage: m.boot.Stage, Arch: m.boot.Arch},
	})
	return out
}

func (s *Server) decide6(ctx context.Context, r boot.Request) (boot.Offer, boot.Reason, string) {
	a, err := s.o.Director.Assign(ctx, r)
	if err != nil {
		s.o.Log.Error("boot decision failed", "mac", r.MAC, "err", err)
		offer, _ := s.o.Site.Plan(r, boot.Assignment{})
		return offer, boot.Undecided(), ""
	}
	s.limits.learn(r.MAC, a.Node != "")
	offer, reason := s.o.Site.Plan(r, a)
	return offer, reason, a.Node
}

// bootURL puts our IPv6 address into what is offered: over IPv6 everything is a
// URL (RFC 5970 section 3.1).
func (v *v6) bootURL(o boot.Offer) string {
	switch o.Kind {
	case boot.OfferFile:
		return "tftp://[" + v.Server.String() + "]/" + o.BootFile
	case boot.OfferURL:
		u, err := url.Parse(o.BootFile)
		if err != nil {
			return ""
		}
		port := u.Port()
		if u.Host = "[" + v.Server.String() + "]"; port != "" {
			u.Host += ":" + port
		}
		return u.String()
	}
	return ""
}

// lease builds the IA_NA that gives an address.
func (v *v6) lease(iaid [4]byte, a netip.Addr) *dhcpv6.OptIANA {
	ia := &dhcpv6.OptIANA{IaId: iaid, T1: v.LeaseTime / 2, T2: v.LeaseTime * 4 / 5}
	ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice(), PreferredLifetime: v.LeaseTime, ValidLifetime: v.LeaseTime})
	return ia
}

// identity is what a machine's address follows from: the MAC address, so that it
// has one through all stages of a boot, or its client identifier.
func identity(m message6, ia int) [32]byte {
	h := sha256.New()
	if m.boot.MAC.IsZero() {
		h.Write(m.Options.ClientID().ToBytes())
	} else {
		h.Write(m.boot.MAC[:])
	}
	h.Write([]byte{byte(ia)})
	return [32]byte(h.Sum(nil))
}

// address gives a machine's address: RFC 7943 with our identifier as the key. One
// that was declined, or that is not to be given, is passed over.
func (v *v6) address(m message6, ia int, exclude func(netip.Addr) bool) netip.Addr {
	id := identity(m, ia)
	v.mu.Lock()
	counter := v.declined[id]
	v.mu.Unlock()
	for {
		h := sha256.New()
		p := v.Prefix.Masked().Addr().As16()
		h.Write(v.duid.ToBytes())
		h.Write(p[:8])
		h.Write(id[:])
		h.Write([]byte{counter})
		sum := h.Sum(nil)
		copy(p[8:], sum[:8])
		a := netip.AddrFrom16(p)
		if low := binary.BigEndian.Uint64(sum); low > 0xffff && low < 0xfdffffffffffff80 && a != v.Server && !exclude(a) { // RFC 5453: reserved ones
			return a
		}
		counter++
	}
}

// decline6 gives the machine another address from now on.
func (s *Server) decline6(m message6) {
	s.v6.mu.Lock()
	if len(s.v6.declined) >= tracked {
		clear(s.v6.declined)
	}
	for i := range min(4, len(m.Options.IANA())) {
		s.v6.declined[identity(m, i)]++
	}
	s.v6.mu.Unlock()
	s.stat.conflicts.Add(1)
	s.alarm(&hotspare.Error{
		Code: hotspare.CodeAddressInUse, What: "an IPv6 address is in use by somebody else", Where: s.o.Interface, Why: fmt.Sprintf("%s was to have it and found it in use", m.boot.MAC),
		Fix: "look for a machine with a fixed address in " + s.v6.Prefix.String(),
	})
}

// confirm6 says whether the addresses that a machine still has fit this link.
func (s *Server) confirm6(m message6, out *dhcpv6.Message) *dhcpv6.Message {
	n, fit := 0, true
	for _, ia := range m.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			n++
			fit = fit && s.v6.Prefix.Contains(addr6(a.IPv6Addr))
		}
	}
	switch {
	case n == 0 || fit && !s.v6.Addresses:
		return nil
	case fit:
		out.AddOption(&dhcpv6.OptStatusCode{StatusCode: 0, StatusMessage: "they fit"})
	default:
		out.AddOption(&dhcpv6.OptStatusCode{StatusCode: 4, StatusMessage: "not on this link"})
	}
	return out
}
