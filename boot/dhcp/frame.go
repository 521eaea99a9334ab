package dhcp

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"

	"hotspare/boot"
)

const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// frame builds Ethernet, IPv4 (RFC 791) and UDP (RFC 768) around a payload. It
// reaches a client that has no address yet and so answers no ARP.
func frame(src net.HardwareAddr, dst boot.MAC, from, to netip.AddrPort, payload []byte) ([]byte, error) {
	if len(src) != 6 || !from.Addr().Is4() || !to.Addr().Is4() {
		return nil, errors.New("build frame: want Ethernet and IPv4 addresses")
	}
	total := 20 + 8 + len(payload)
	if total > 0xffff {
		return nil, errors.New("build frame: the payload is too long")
	}
	b := make([]byte, 0, 14+total)
	b = append(b, dst[:]...)
	b = append(b, src...)
	b = binary.BigEndian.AppendUint16(b, etherIPv4)

	ip := len(b)
	b = append(b, 0x45, 0x10)
	b = binary.BigEndian.AppendUint16(b, uint16(total))
	b = append(b, 0, 0, 0x40, 0, 64, 17, 0, 0) // don't fragment, TTL 64, UDP, checksum later
	b = append(b, from.Addr().AsSlice()...)
	b = append(b, to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[ip+10:], fold(sum(0, b[ip:ip+20])))

	udp := len(b)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	pseudo := sum(sum(0, b[ip+12:ip+20]), []byte{0, 17, byte((8 + len(payload)) >> 8), byte(8 + len(payload))})
	c := fold(sum(pseudo, b[udp:]))
	if c == 0 {
		c = 0xffff // 0 means: no checksum
	}
	binary.BigEndian.PutUint16(b[udp+6:], c)
	return b, nil
}

// sum adds b to an Internet checksum (RFC 1071).
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
