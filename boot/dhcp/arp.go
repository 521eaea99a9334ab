package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"

	"hotspare/boot"
)

// probe asks by ARP who has a, from no address of our own (RFC 5227 section
// 2.1.1), and waits for an answer. used is false when nobody but the machine
// itself answers in time.
func (l *link) probe(ctx context.Context, a netip.Addr, itself boot.MAC, wait time.Duration) (who boot.MAC, used bool, err error) {
	if len(l.ifi.HardwareAddr) != 6 {
		return who, false, nil
	}
	c, err := packet.Listen(l.ifi, packet.Raw, etherARP, nil)
	if err != nil {
		return who, false, fmt.Errorf("open an ARP socket on %s: %w", l.ifi.Name, err)
	}
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return who, false, fmt.Errorf("probe %s: %w", a, err)
	}
	all := boot.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := c.WriteTo(arpProbe(boot.MAC(l.ifi.HardwareAddr), a), &packet.Addr{HardwareAddr: all[:]}); err != nil {
		return who, false, fmt.Errorf("probe %s: %w", a, err)
	}
	buf := make([]byte, 1<<11)
	for {
		n, _, err := c.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return who, false, nil
		}
		if err != nil {
			return who, false, fmt.Errorf("probe %s: %w", a, err)
		}
		if m, ok := arpAnswer(buf[:n], a); ok && m != boot.MAC(l.ifi.HardwareAddr) && m != itself {
			return m, true, nil
		}
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

// arpAnswer reads a frame: any ARP packet whose sender claims a is an answer.
func arpAnswer(b []byte, a netip.Addr) (boot.MAC, bool) {
	if len(b) < 42 || binary.BigEndian.Uint16(b[12:]) != etherARP || string(b[14:20]) != "\x00\x01\x08\x00\x06\x04" {
		return boot.MAC{}, false
	}
	if netip.AddrFrom4([4]byte(b[28:32])) != a {
		return boot.MAC{}, false
	}
	return boot.MACFrom(b[22:28])
}
