package bmc

import (
	"encoding/hex"
	"strings"
)

// SameUUID compares two UUIDs in text form without regard to case, dashes or
// braces, and takes the two byte orders that BMCs use for the same machine as
// equal: RFC 4122 order, SMBIOS order (the first three fields byte-swapped;
// SMBIOS specification, section 7.2.1) and IPMI order (all 16 bytes reversed;
// IPMI v2.0 section 20.8). Which one a BMC reports depends on its maker.
func SameUUID(a, b string) bool {
	x, okX := uuidBytes(a)
	y, okY := uuidBytes(b)
	if !okX || !okY {
		return false
	}
	return x == y || swapSMBIOS(x) == y || reverse(x) == y || reverse(swapSMBIOS(x)) == y
}

func uuidBytes(s string) (u [16]byte, ok bool) {
	s = strings.Trim(strings.TrimSpace(s), "{}")
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != len(u) {
		return u, false
	}
	copy(u[:], raw)
	return u, u != [16]byte{}
}

func swapSMBIOS(u [16]byte) [16]byte {
	return [16]byte{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6],
		u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]}
}

func reverse(u [16]byte) (r [16]byte) {
	for i, b := range u {
		r[len(u)-1-i] = b
	}
	return r
}
