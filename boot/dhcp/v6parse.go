package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"hotspare/boot"
)

// message6 is a DHCPv6 message that is fit to be answered.
type message6 struct {
	*dhcpv6.Message
	relay *dhcpv6.RelayMessage // outermost, nil without one
	link  netip.Addr           // link-address of the relay next to the client
	boot  boot.Request
}

// relaysMost is RFC 8415's HOP_COUNT_LIMIT.
const relaysMost = 8

func request6(d dhcpv6.DHCPv6, from netip.Addr) (message6, error) {
	m := message6{}
	peer, mac := from, boot.MAC{}
	for hops := 0; d.IsRelay(); hops++ {
		r, ok := d.(*dhcpv6.RelayMessage)
		if !ok || r.MessageType != dhcpv6.MessageTypeRelayForward || hops >= relaysMost {
			return m, fmt.Errorf("no relayed question (%s, %d relays)", d.Type(), hops)
		}
		if m.relay == nil {
			m.relay = r
		}
		peer, m.link = addr6(r.PeerAddr), addr6(r.LinkAddr)
		if kind, hw := r.Options.ClientLinkLayerAddress(); kind == 1 {
			mac, _ = boot.MACFrom(hw)
		}
		if d = r.Options.RelayMessage(); d == nil {
			return m, errors.New("a relayed packet without a message")
		}
	}
	inner, ok := d.(*dhcpv6.Message)
	if !ok {
		return m, errors.New("no message")
	}
	m.Message = inner
	if inner.Options.ClientID() == nil && inner.MessageType != dhcpv6.MessageTypeInformationRequest {
		return m, fmt.Errorf("%s without a client identifier", inner.MessageType)
	}
	if mac.IsZero() {
		mac = mac6(peer, inner.Options.ClientID())
	}
	m.boot = bootRequest6(inner, mac)
	m.boot.Client = peer
	return m, nil
}

func addr6(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// mac6 finds the machine's MAC address: in its link-local address, as firmware
// forms it (RFC 4291 appendix A), or in its client identifier.
func mac6(peer netip.Addr, id dhcpv6.DUID) boot.MAC {
	if b := peer.As16(); peer.IsLinkLocalUnicast() && b[11] == 0xff && b[12] == 0xfe {
		if m, ok := boot.MACFrom([]byte{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]}); ok {
			return m
		}
	}
	var m boot.MAC
	switch d := id.(type) {
	case *dhcpv6.DUIDLL:
		m, _ = boot.MACFrom(d.LinkLayerAddr)
	case *dhcpv6.DUIDLLT:
		m, _ = boot.MACFrom(d.LinkLayerAddr)
	}
	return m
}

func bootRequest6(m *dhcpv6.Message, mac boot.MAC) boot.Request {
	r := boot.Request{Protocol: boot.DHCP, Stage: boot.StageSystem, MAC: mac}
	if id, ok := m.Options.ClientID().(*dhcpv6.DUIDUUID); ok {
		r.UUID = uuidOf(append([]byte{0}, id.UUID[:]...))
	}
	for _, c := range m.Options.VendorClasses() {
		for _, text := range c.Data {
			if s := printable(text); strings.HasPrefix(s, "PXEClient") || strings.HasPrefix(s, "HTTPClient") {
				r.VendorClass, r.Stage = s, boot.StageFirmware
			}
		}
	}
	for _, c := range m.Options.UserClasses() {
		if string(c) == "iPXE" {
			// It lists no features over IPv6; every build of the last ten years
			// has HTTP.
			r.UserClass, r.Stage, r.Features.HTTP = "iPXE", boot.StageIPXE, true
		}
	}
	r.Arch = archOf(nil, r.VendorClass)
	if types := m.Options.ArchTypes(); len(types) > 0 {
		r.Arch = boot.Arch(types[0])
	}
	return r
}
