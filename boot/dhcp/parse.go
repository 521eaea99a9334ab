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
	link  netip.Addr // by which the subnet is chosen: link selection, else giaddr
	as    netip.Addr // server identifier that the relay wants us to use, RFC 5107
	have  netip.Addr // ciaddr, invalid when the client has no address
	boot  boot.Request
	net   *subnet // that it belongs to; set by the server
}

// Bounds of what is read. A packet over Ethernet fits 1,500 bytes; a relay may
// have added some. RFC 1542 section 4.1.1 stops a packet that went through 16
// relays: it goes in a circle.
const (
	longest = 4096
	hopsMax = 16
)

// Sub-options of option 82 (RFC 3046) that are heeded.
const (
	relayLink     = 5  // RFC 3527
	relayServerID = 11 // RFC 5107
)

// parse reads one datagram of a client. The library has panicked on hostile
// packets before (insomniacslk/dhcp #382, #583): a panic becomes an error.
func parse(b []byte, protocol boot.Protocol) (m message, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the packet made the parser panic: %v", p)
		}
	}()
	if len(b) > longest {
		return message{}, fmt.Errorf("%d bytes are more than any client sends", len(b))
	}
	d, err := dhcpv4.FromBytes(b)
	if err != nil {
		return message{}, fmt.Errorf("parse: %w", err)
	}
	if err := unfold(d, b); err != nil {
		return message{}, err
	}
	if d.HopCount > hopsMax {
		return message{}, fmt.Errorf("it went through %d relays: it goes in a circle", d.HopCount)
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
	m.link = m.relay
	if m.relay.IsValid() {
		if a, ok := agentAddr(d.Options[82], relayLink); ok {
			m.link = a
		}
		m.as, _ = agentAddr(d.Options[82], relayServerID)
	}
	m.boot = bootRequest(d, mac, protocol)
	m.boot.Client = m.have
	return m, nil
}

// unfold reads the options that lie in the fields file and sname (RFC 2132 section
// 9.3): first those in file, then those in sname.
func unfold(d *dhcpv4.DHCPv4, b []byte) error {
	o := d.Options[52]
	if len(o) == 0 {
		return nil
	}
	if len(o) != 1 || o[0] < 1 || o[0] > 3 || len(b) < 236 {
		return fmt.Errorf("option 52 is % x", o)
	}
	delete(d.Options, 52)
	for _, field := range []struct {
		bit  byte
		b    []byte
		text *string
	}{{1, b[108:236], &d.BootFileName}, {2, b[44:108], &d.ServerHostName}} {
		if o[0]&field.bit == 0 {
			continue
		}
		*field.text = ""
		if err := d.Options.FromBytes(field.b); err != nil {
			return fmt.Errorf("overloaded field: %w", err)
		}
	}
	return nil
}

// agentAddr finds an address among the sub-options of option 82.
func agentAddr(b []byte, code byte) (netip.Addr, bool) {
	for len(b) >= 2 {
		n := int(b[1])
		if len(b) < 2+n {
			return netip.Addr{}, false
		}
		if b[0] == code && n == 4 {
			a := addrOf(b[2:6])
			return a, a.IsValid()
		}
		b = b[2+n:]
	}
	return netip.Addr{}, false
}

// sender reads the MAC address of a packet's client without parsing it, so that a
// flood is cheap to drop.
func sender(b []byte) (boot.MAC, bool) {
	if len(b) < 240 || b[0] != 1 || b[1] != 1 || b[2] != 6 {
		return boot.MAC{}, false
	}
	return boot.MACFrom(b[28:34])
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
