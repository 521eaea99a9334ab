package nic

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
)

// ARP over Ethernet for IPv4 (RFC 826), as much as a probe and an announcement
// need.
const (
	etherTypeARP = 0x0806
	arpRequest   = 1
	arpReply     = 2
	arpLen       = 28
)

type arp struct {
	op        uint16
	senderMAC net.HardwareAddr
	senderIP  netip.Addr
	targetMAC net.HardwareAddr
	targetIP  netip.Addr
}

var errNotARP = errors.New("no ARP packet for IPv4 over Ethernet")

func (a arp) encode() []byte {
	b := make([]byte, arpLen)
	binary.BigEndian.PutUint16(b[0:], 1) // Ethernet
	binary.BigEndian.PutUint16(b[2:], 0x0800)
	b[4], b[5] = 6, 4
	binary.BigEndian.PutUint16(b[6:], a.op)
	copy(b[8:14], a.senderMAC)
	copy(b[14:18], a.senderIP.AsSlice())
	copy(b[18:24], a.targetMAC)
	copy(b[24:28], a.targetIP.AsSlice())
	return b
}

func parseARP(b []byte) (arp, error) {
	if len(b) < arpLen || binary.BigEndian.Uint16(b[0:]) != 1 || binary.BigEndian.Uint16(b[2:]) != 0x0800 || b[4] != 6 || b[5] != 4 {
		return arp{}, errNotARP
	}
	return arp{
		op:        binary.BigEndian.Uint16(b[6:]),
		senderMAC: append(net.HardwareAddr(nil), b[8:14]...),
		senderIP:  netip.AddrFrom4([4]byte(b[14:18])),
		targetMAC: append(net.HardwareAddr(nil), b[18:24]...),
		targetIP:  netip.AddrFrom4([4]byte(b[24:28])),
	}, nil
}

// conflicts says whether a packet, seen while own probes for addr are under
// way, shows that another station has the address or is about to take it
// (RFC 5227, section 2.1.1).
func (a arp) conflicts(addr netip.Addr, own net.HardwareAddr) bool {
	if a.senderMAC.String() == own.String() {
		return false
	}
	if a.senderIP == addr {
		return true
	}
	return a.op == arpRequest && a.senderIP.IsUnspecified() && a.targetIP == addr
}
