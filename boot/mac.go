package boot

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// MAC is an Ethernet address. It is a label, never an identity: whoever is on
// the segment can send any (SAFETY, trust levels).
type MAC [6]byte

// ParseMAC takes 52:54:00:77:00:01, 52-54-00-77-00-01 or 525400770001.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	clean := s
	if len(s) == 17 {
		sep := s[2]
		if sep != ':' && sep != '-' {
			return m, fmt.Errorf("MAC address %q: want six pairs of hex digits", s)
		}
		for i := 2; i < 17; i += 3 {
			if s[i] != sep {
				return m, fmt.Errorf("MAC address %q: want one kind of separator", s)
			}
		}
		clean = strings.ReplaceAll(s, string(sep), "")
	}
	b, err := hex.DecodeString(clean)
	if err != nil || len(b) != len(m) {
		return m, fmt.Errorf("MAC address %q: want six pairs of hex digits", s)
	}
	copy(m[:], b)
	return m, nil
}

// MACFrom takes the hardware address of a packet; ok is false when it is not
// six bytes long, all zero, or a group address, which no machine may claim.
func MACFrom(b []byte) (m MAC, ok bool) {
	if len(b) != len(m) {
		return m, false
	}
	copy(m[:], b)
	return m, m != MAC{} && m[0]&1 == 0
}

// String gives 52:54:00:77:00:01.
func (m MAC) String() string { return m.join(':') }

// Hyphens gives 52-54-00-77-00-01, as paths and BOOTIF carry it.
func (m MAC) Hyphens() string { return m.join('-') }

func (m MAC) join(sep byte) string {
	b := make([]byte, 0, 17)
	for i, v := range m {
		if i > 0 {
			b = append(b, sep)
		}
		b = hex.AppendEncode(b, []byte{v})
	}
	return string(b)
}

// IsZero says whether no address is known.
func (m MAC) IsZero() bool { return m == MAC{} }

// MarshalText gives String.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is ParseMAC.
func (m *MAC) UnmarshalText(b []byte) (err error) { *m, err = ParseMAC(string(b)); return err }
