package dhcp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare/boot"
)

// destination says where an answer goes (RFC 2131 section 4.1).
type destination struct {
	addr  netip.AddrPort // of the datagram
	frame boot.MAC       // if set: the Ethernet frame goes there, for the client cannot answer ARP yet
}

var (
	limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	pxeNoDiscovery   = []byte{6, 1, 8, 255} // option 43: PXE_DISCOVERY_CONTROL, use the boot file at hand
	ipxeNoProxy      = []byte{0xb0, 1, 1}   // option 175: no-pxedhcp
)

// where chooses the destination of an answer of kind with address your.
func where(m message, kind dhcpv4.MessageType, your netip.Addr) destination {
	switch {
	case m.relay.IsValid():
		return destination{addr: netip.AddrPortFrom(m.relay, 67)}
	case kind == dhcpv4.MessageTypeNak:
		return destination{addr: netip.AddrPortFrom(limitedBroadcast, 68)}
	case m.have.IsValid():
		return destination{addr: netip.AddrPortFrom(m.have, 68)}
	case m.IsBroadcast() || !your.IsValid():
		return destination{addr: netip.AddrPortFrom(limitedBroadcast, 68)}
	}
	return destination{addr: netip.AddrPortFrom(your, 68), frame: m.mac}
}

// reply builds an answer with what every answer has: option 54, the client's
// identifiers, the relay's option 82.
func (s *Server) reply(m message, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	id := s.o.Server
	if m.as.IsValid() {
		id = m.as // RFC 5107: the client renews through its relay
	}
	out := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootReply, HWType: m.HWType, TransactionID: m.TransactionID, Flags: m.Flags,
		ClientIPAddr: m.ClientIPAddr, YourIPAddr: net.IPv4zero, ServerIPAddr: net.IPv4zero, GatewayIPAddr: m.GatewayIPAddr, ClientHWAddr: m.ClientHWAddr,
		Options: make(dhcpv4.Options, 16),
	}
	out.Options[53], out.Options[54] = []byte{byte(kind)}, id.AsSlice()
	for _, code := range []uint8{61, 82} { // RFC 6842, RFC 3046
		if v := m.Options[code]; len(v) > 0 {
			out.Options[code] = v
		}
	}
	if guid := m.Options[97]; len(guid) > 0 {
		out.Options[97] = guid // PXE 2.1: must come back, some firmware checks
	}
	if kind == dhcpv4.MessageTypeNak {
		out.ClientIPAddr = net.IPv4zero
		if m.relay.IsValid() {
			out.SetBroadcast() // RFC 2131 section 4.3.2
		}
	}
	return out
}

// addressOptions adds address and network settings.
func (s *Server) addressOptions(out *dhcpv4.DHCPv4, m message, addr netip.Addr, lease time.Duration) {
	n, list := m.net, m.Options[55]
	out.Options[1] = net.CIDRMask(n.Prefix.Bits(), 32)
	if n.Gateway.IsValid() {
		out.Options[3] = n.Gateway.AsSlice()
	}
	set := func(code uint8, v []byte) {
		if len(v) > 0 && wanted(list, code) {
			out.Options[code] = v
		}
	}
	if dns := join(n.DNS); len(dns) > 0 {
		out.Options[6] = dns
	}
	set(15, []byte(n.Domain))
	set(42, join(n.NTP))
	set(119, searchList(n.Search))
	for _, e := range n.Extra {
		if e.Always || wanted(list, e.Code) {
			out.Options[e.Code] = e.Value
		}
	}
	if b := broadcast(n.Prefix); b.IsValid() {
		out.Options[28] = b.AsSlice()
	}
	if !addr.IsValid() { // an INFORM: the client has its address from elsewhere
		return
	}
	out.YourIPAddr = net.IP(addr.AsSlice())
	out.Options[51] = seconds(lease)
	out.Options[58] = seconds(lease / 2)
	out.Options[59] = seconds(lease / 8 * 7)
}

func join(addrs []netip.Addr) []byte {
	var b []byte
	for _, a := range addrs {
		if a.Is4() {
			b = append(b, a.AsSlice()...)
		}
	}
	return b
}

// smallest is what every client takes (RFC 2131 section 2), of a datagram with its
// IP and UDP headers.
const smallest = 576

// shorten drops options that the client can do without until the answer is no
// longer than the client takes (option 57): the operator's own first, the highest
// code first.
func shorten(out *dhcpv4.DHCPv4, m message) {
	most := smallest
	if b := m.Options[57]; len(b) == 2 {
		most = max(most, int(b[0])<<8|int(b[1]))
	}
	most -= 28
	size := 241 // header, cookie, end
	for _, v := range out.Options {
		size += len(v) + 2*max(1, (len(v)+254)/255)
	}
	for code := 254; code > 0 && size > most; code-- {
		v, there := out.Options[uint8(code)]
		if _, must := ours[uint8(code)]; there && (!must || code == 119 || code == 42 || code == 15) {
			delete(out.Options, uint8(code))
			size -= len(v) + 2
		}
	}
}

// bootOptions adds what to boot, in header fields and options both: firmware
// differs in what it reads, and the library sets neither from the other.
func bootOptions(out *dhcpv4.DHCPv4, r boot.Request, o boot.Offer) {
	if o.Kind != boot.OfferFile && o.Kind != boot.OfferURL {
		return
	}
	server := o.NextServer.String()
	out.ServerIPAddr = net.IP(o.NextServer.AsSlice())
	out.ServerHostName = server
	out.Options[66] = []byte(server)
	out.Options[67] = []byte(o.BootFile)
	if len(o.BootFile) < 128 {
		out.BootFileName = o.BootFile
	}
	if o.VendorClass != "" {
		out.Options[60] = []byte(o.VendorClass)
	}
	if r.Protocol == boot.DHCP && r.Stage == boot.StageIPXE {
		// iPXE waits 2.8 s for proxyDHCP offers, unless told that none will come.
		out.Options[175] = ipxeNoProxy
	}
	if o.VendorClass == "PXEClient" {
		// Without it, EDK2 takes class PXEClient for BINL, asks port 4011 and
		// gives up (fog-docs#188).
		out.Options[43] = pxeNoDiscovery
	}
}

func seconds(d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(nil, uint32(d/time.Second))
}
