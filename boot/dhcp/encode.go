package dhcp

import (
	"encoding/binary"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// encode writes a packet as the library's ToBytes does (a test compares the two), in
// a third of its time: a rack that is powered on waits for nothing else.
func encode(d *dhcpv4.DHCPv4) []byte {
	b := make([]byte, 236, 600)
	b[0], b[1], b[2], b[3] = byte(d.OpCode), byte(d.HWType), byte(len(d.ClientHWAddr)), d.HopCount
	copy(b[4:8], d.TransactionID[:])
	binary.BigEndian.PutUint16(b[8:], d.NumSeconds)
	binary.BigEndian.PutUint16(b[10:], d.Flags)
	copy(b[12:16], d.ClientIPAddr.To4())
	copy(b[16:20], d.YourIPAddr.To4())
	copy(b[20:24], d.ServerIPAddr.To4())
	copy(b[24:28], d.GatewayIPAddr.To4())
	copy(b[28:44], d.ClientHWAddr)
	copy(b[44:107], d.ServerHostName) // both end with a zero byte
	copy(b[108:235], d.BootFileName)
	b = append(b, 99, 130, 83, 99)
	var room [64]uint8
	codes := room[:0]
	for code := range d.Options {
		if code != 0 && code != 82 && code != 255 {
			codes = append(codes, code)
		}
	}
	slices.Sort(codes)
	if _, ok := d.Options[82]; ok {
		codes = append(codes, 82) // RFC 3046 section 2.1: last
	}
	for _, code := range codes {
		v := d.Options[code]
		for { // RFC 3396: what is longer than an option goes on in a further one
			n := min(len(v), 255)
			b = append(append(b, code, byte(n)), v[:n]...)
			if v = v[n:]; len(v) == 0 {
				break
			}
		}
	}
	b = append(b, 255)
	for len(b) < 300 { // RFC 951: some relays drop what is shorter
		b = append(b, 0)
	}
	return b
}
