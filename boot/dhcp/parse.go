package dhcp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare/boot"
)

// message is a packet that is fit to be answered.
type message struct {
	*dhcpv4.DHCPv4
	kind  dhcpv4.MessageType
	mac   boot.MAC
	relay netip.Addr // giaddr, invalid without a relay
	have  netip.Addr // ciaddr, invalid when the client has no address
	boot  boot.Request
}

// parse reads one datagram of a client. The library has panicked on hostile
// packets before (insomniacslk/dhcp #382, #583): a panic becomes an error.
func parse(b []byte, protocol boot.Protocol) (m message, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the packet made the parser panic: %v", p)
		}
	}()
	d, err := dhcpv4.FromBytes(b)
	if err != nil {
		return message{}, fmt.Errorf("parse: %w", err)
	}
	if d.OpCode != dhcpv4.OpcodeBootRequest {
		return message{}, fmt.Errorf("opcode %d is no request", d.OpCode)
	}
	mac, ok := boot.MACFrom(d.ClientHWAddr)
	if !ok || d.HWType != 1 {
		return message{}, fmt.Errorf("hardware type %d with address %x is no Ethernet station", d.HWType, []byte(d.ClientHWAddr))
	}
	m = message{DHCPv4: d, kind: d.MessageType(), mac: mac, relay: addrOf(d.GatewayIPAddr), have: addrOf(d.ClientIPAddr)}
	if m.kind == dhcpv4.MessageTypeNone {
		return message{}, fmt.Errorf("BOOTP without a DHCP message type")
	}
	m.boot = bootRequest(d, mac, protocol)
	m.boot.Client = m.have
	return m, nil
}

func bootRequest(d *dhcpv4.DHCPv4, mac boot.MAC, protocol boot.Protocol) boot.Request {
	r := boot.Request{
		Protocol:    protocol,
		Stage:       boot.StageSystem,
		MAC:         mac,
		UUID:        uuidOf(d.Options[uint8(dhcpv4.OptionClientMachineIdentifier.Code())]),
		UserClass:   userClass(d.Options[77]),
		VendorClass: printable(d.Options[60]),
	}
	// A bad option 175 says nothing: such a client gets the loader.
	r.Features, _ = boot.ParseFeatures(d.Options[175])
	switch {
	case r.UserClass == "iPXE":
		r.Stage = boot.StageIPXE
	case strings.HasPrefix(r.VendorClass, "PXEClient"), strings.HasPrefix(r.VendorClass, "HTTPClient"):
		r.Stage = boot.StageFirmware
	}
	r.Arch = archOf(d.Options[93], r.VendorClass)
	return r
}

// archOf reads option 93, the first of its list, or what the vendor class says
// ("PXEClient:Arch:00007:UNDI:003016") when the option is missing.
func archOf(option []byte, vendorClass string) boot.Arch {
	if len(option) >= 2 {
		return boot.Arch(binary.BigEndian.Uint16(option))
	}
	if _, rest, ok := strings.Cut(vendorClass, ":Arch:"); ok && len(rest) >= 5 {
		n := 0
		for _, c := range []byte(rest[:5]) {
			if c < '0' || c > '9' {
				return boot.ArchBIOS
			}
			n = n*10 + int(c-'0')
		}
		if n <= 0xffff {
			return boot.Arch(n)
		}
	}
	return boot.ArchBIOS
}

// userClass reads option 77. iPXE sends the bare word; RFC 3004 wants each class
// with its length before it.
func userClass(b []byte) string {
	if len(b) > 1 && int(b[0]) <= len(b)-1 && (b[0] < ' ' || int(b[0]) == len(b)-1) {
		b = b[1 : 1+int(b[0])]
	}
	return printable(b)
}

// uuidOf reads option 97: type 0 and 16 bytes. The first three fields are
// little-endian, as in the SMBIOS table that the firmware copies it from.
func uuidOf(b []byte) string {
	if len(b) != 17 || b[0] != 0 {
		return ""
	}
	u := b[1:]
	le := []byte{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6]}
	h := hex.EncodeToString(append(le, u[8:]...))
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// printable keeps foreign text fit for logs and traces.
func printable(b []byte) string {
	if len(b) > 128 {
		b = b[:128]
	}
	return strings.TrimRight(strings.Map(func(r rune) rune {
		switch {
		case r == 0:
			return -1
		case r < ' ' || r > '~':
			return '?'
		}
		return r
	}, string(b)), " ")
}

func addrOf(ip []byte) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || !a.Unmap().Is4() || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}
