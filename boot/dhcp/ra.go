package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"

	"hotspare/boot"
)

// Debian's iPXE configures IPv6 beside IPv4 and waits 16 s for a router
// advertisement before it boots. An advertisement with lifetime 0 ("no default
// router here", RFC 4861 section 6.2.3) ends that wait; it announces no prefix
// and no router, and goes only to the machine that asked. Frames are built by
// hand, so it works on hosts that have IPv6 switched off.
//
// Where IPv6 is served the advertisement makes machines ask by DHCPv6: flag O for
// what to boot, and with flag M for an address, for which it names the network that
// is on the link. It goes to all as well, from time to time, for what it says ends.

const (
	icmpSolicitation  = 133
	icmpAdvertisement = 134
)

// listenSolicitations opens a socket that sees ICMPv6 router solicitations only.
func listenSolicitations(ifi *net.Interface) (*packet.Conn, error) {
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: etherIPv6, SkipTrue: 5},
		bpf.LoadAbsolute{Off: 20, Size: 1}, // next header
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 58, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 54, Size: 1}, // ICMPv6 type
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmpSolicitation, SkipTrue: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, fmt.Errorf("assemble the filter of router solicitations: %w", err)
	}
	c, err := packet.Listen(ifi, packet.Raw, etherIPv6, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("listen for router solicitations on %s: %w", ifi.Name, err)
	}
	// All-routers, ff02::2.
	if err := c.JoinGroup(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}); err != nil {
		return nil, errors.Join(fmt.Errorf("join all-routers on %s: %w", ifi.Name, err), c.Close())
	}
	return c, nil
}

// advertiseAgain is RFC 4861's MaxRtrAdvInterval.
const advertiseAgain = 10 * time.Minute

// advertise answers solicitations until the socket is unblocked.
func (s *Server) advertise(ctx context.Context) error {
	if s.v6 != nil {
		asker, cancel := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.announce(asker)
		}()
		defer func() { cancel(); <-ended }()
	}
	buf := make([]byte, 2048)
	own := boot.MAC(s.link.ifi.HardwareAddr)
	for {
		n, err := readFrame(ctx, s.link.ra, buf)
		if err != nil {
			return err
		}
		mac, ip, ok := parseSolicitation(buf[:n])
		if !ok || mac == own {
			continue
		}
		s.sendAdvertisement(mac, ip)
	}
}

// announce advertises to all.
func (s *Server) announce(ctx context.Context) {
	again := time.NewTicker(advertiseAgain)
	defer again.Stop()
	for {
		s.sendAdvertisement(boot.MAC{0x33, 0x33, 0, 0, 0, 1}, [16]byte{})
		select {
		case <-ctx.Done():
			return
		case <-again.C:
		}
	}
}

func (s *Server) sendAdvertisement(to boot.MAC, ip [16]byte) {
	if _, err := s.link.ra.WriteTo(advertisement(boot.MAC(s.link.ifi.HardwareAddr), to, ip, s.o.IPv6), &packet.Addr{HardwareAddr: to[:]}); err != nil {
		s.o.Log.Warn("router advertisement not sent", "mac", to, "err", err)
	}
}

// parseSolicitation reads a frame: who asked, and from which IPv6 address (zero
// while it has none). RFC 4861 section 6.1.1: hop limit 255, checksum right.
func parseSolicitation(b []byte) (boot.MAC, [16]byte, bool) {
	if len(b) < 14+40+8 || binary.BigEndian.Uint16(b[12:]) != etherIPv6 {
		return boot.MAC{}, [16]byte{}, false
	}
	ip, length := b[14:], int(binary.BigEndian.Uint16(b[18:]))
	if ip[0]>>4 != 6 || ip[6] != 58 || ip[7] != 255 || length < 8 || len(ip) < 40+length {
		return boot.MAC{}, [16]byte{}, false
	}
	icmp := ip[40 : 40+length]
	if icmp[0] != icmpSolicitation || icmp[1] != 0 || checksum6(ip[8:40], icmp) != 0 {
		return boot.MAC{}, [16]byte{}, false
	}
	mac, ok := boot.MACFrom(b[6:12])
	return mac, [16]byte(ip[8:24]), ok
}

// advertisement builds a frame with a router lifetime of 0 to one machine, or to
// all. Without x it offers nothing at all.
func advertisement(src, dst boot.MAC, to [16]byte, x *IPv6) []byte {
	if to == [16]byte{} {
		to = [16]byte{0: 0xff, 1: 0x02, 15: 1} // all nodes
	}
	from := [16]byte{0: 0xfe, 1: 0x80, 8: src[0] ^ 2, 9: src[1], 10: src[2], 11: 0xff, 12: 0xfe, 13: src[3], 14: src[4], 15: src[5]}
	icmp := make([]byte, 16) // hop limit, flags, lifetime and timers all 0: unspecified
	icmp[0] = icmpAdvertisement
	if x != nil {
		icmp = append(icmp, 1, 1) // source link-layer address
		icmp = append(icmp, src[:]...)
		icmp[5] = 0x40 // O
		if x.Addresses {
			icmp[5] |= 0x80                                        // M
			icmp = append(icmp, 3, 4, byte(x.Prefix.Bits()), 0x80) // prefix information: on-link, no autoconfiguration
			icmp = binary.BigEndian.AppendUint32(icmp, 2592000)    // valid, RFC 4861's default
			icmp = binary.BigEndian.AppendUint32(icmp, 604800)     // preferred
			icmp = append(icmp, 0, 0, 0, 0)
			p := x.Prefix.Masked().Addr().As16()
			icmp = append(icmp, p[:]...)
		}
	}
	b := make([]byte, 0, 14+40+len(icmp))
	b = append(b, dst[:]...)
	b = append(b, src[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv6)
	b = append(b, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	b = append(b, from[:]...)
	b = append(b, to[:]...)
	binary.BigEndian.PutUint16(icmp[2:], checksum6(b[22:54], icmp))
	return append(b, icmp...)
}

// checksum6 is that of ICMPv6 (RFC 4443 section 2.3) over both addresses and the
// message; 0 for a message that carries the right one.
func checksum6(addrs, icmp []byte) uint16 {
	n := len(icmp)
	return fold(sum(sum(sum(0, addrs), []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), 0, 0, 0, 58}), icmp))
}
