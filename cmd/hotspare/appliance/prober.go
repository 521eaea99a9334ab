package appliance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"

	"hotspare"
)

// prober is runner.Prober: it asks the segment by ARP probes (RFC 5227, section
// 2.1.1: sender address 0.0.0.0) whether anybody answers for an address.
type prober struct {
	link func(netip.Addr) (iface string, ok bool) // that an address belongs to
	wait time.Duration                            // for an answer to each of two probes
}

const etherARP = 0x0806

// AddressSilent sends two probes and gives the MAC of whoever answers.
func (p prober) AddressSilent(ctx context.Context, _ string, addr netip.Prefix) (bool, string, error) {
	iface, ok := p.link(addr.Addr())
	if !ok {
		return false, "", &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "the service address is on no link of the appliance", Where: addr.String(),
			Why: "nobody can be asked whether it is free", Fix: "add the link to the configuration, or give the application another address",
		}
	}
	ifi, err := net.InterfaceByName(iface)
	if err != nil {
		return false, "", fmt.Errorf("probe %s: %w", addr.Addr(), err)
	}
	conn, err := packet.Listen(ifi, packet.Datagram, etherARP, nil)
	if err != nil {
		return false, "", fmt.Errorf("probe %s on %s: %w", addr.Addr(), iface, err)
	}
	defer conn.Close()
	question := arpProbe(ifi.HardwareAddr, addr.Addr())
	for range 2 {
		if err := ctx.Err(); err != nil {
			return false, "", err
		}
		if _, err := conn.WriteTo(question, &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}); err != nil {
			return false, "", passing{fmt.Errorf("probe %s on %s: %w", addr.Addr(), iface, err)}
		}
		by, err := awaitARP(conn, addr.Addr(), time.Now().Add(p.wait))
		if err != nil || by != "" {
			return false, by, err
		}
	}
	return true, "", nil
}

// arpProbe is an ARP request (RFC 826) with an empty sender address.
func arpProbe(from net.HardwareAddr, target netip.Addr) []byte {
	b := make([]byte, 28)
	binary.BigEndian.PutUint16(b[0:], 1)      // Ethernet
	binary.BigEndian.PutUint16(b[2:], 0x0800) // IPv4
	b[4], b[5] = 6, 4
	binary.BigEndian.PutUint16(b[6:], 1) // request
	copy(b[8:14], from)
	ip := target.As4()
	copy(b[24:28], ip[:])
	return b
}

// awaitARP reads until somebody announces the address or the time is up.
func awaitARP(conn *packet.Conn, addr netip.Addr, until time.Time) (string, error) {
	if err := conn.SetReadDeadline(until); err != nil {
		return "", err
	}
	ip := addr.As4()
	buf := make([]byte, 1514)
	for {
		n, _, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return "", nil
		}
		if err != nil {
			return "", passing{fmt.Errorf("probe %s: %w", addr, err)}
		}
		if n >= 28 && bytes.Equal(buf[14:18], ip[:]) && binary.BigEndian.Uint16(buf[2:]) == 0x0800 {
			return net.HardwareAddr(buf[8:14]).String(), nil
		}
	}
}
