package dhcp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"hotspare"
)

// Option is a DHCP option that the operator adds to the answers of a subnet.
type Option struct {
	Code   uint8
	Value  []byte
	Always bool // also to clients whose list (option 55) does not ask for it
}

// optionKinds are the forms in which ParseOption takes values.
const optionKinds = "ip, text, uint8, uint16, uint32, bool, hex"

// ours are options that the server must set itself: the exchange, the lease and
// the boot depend on them.
var ours = map[uint8]string{
	0: "padding", 1: "the mask follows from the prefix", 3: "use gateway", 6: "use dns", 15: "use domain", 42: "use ntp", 119: "use search",
	43: "it belongs to PXE", 50: "it is the client's", 51: "use the lease time", 52: "it is part of the format", 53: "it is the message's type",
	54: "it is the server's address", 55: "it is the client's", 57: "it is the client's", 58: "it follows from the lease time",
	59: "it follows from the lease time", 60: "it belongs to PXE", 61: "it is the client's", 66: "it belongs to the boot decision",
	67: "it belongs to the boot decision", 82: "it is the relay's", 93: "it is the client's", 97: "it is the client's", 175: "it belongs to iPXE", 255: "the end",
}

// ParseOption reads an option as configuration gives it: a code, the kind of value
// (ip, text, uint8, uint16, uint32, bool, hex) and the value; several addresses or
// numbers are separated by commas. An error is a *hotspare.Error with CodeInvalid.
func ParseOption(code int, kind, value string, always bool) (Option, error) {
	bad := func(why string) (Option, error) {
		return Option{}, &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "the DHCP option cannot be used", Where: fmt.Sprintf("option %d", code), Why: why,
			Fix: "give a code from 1 to 254, a kind (" + optionKinds + ") and a value of that kind",
		}
	}
	if code < 1 || code > 254 {
		return bad("codes are 1 to 254")
	}
	o := Option{Code: uint8(code), Always: always}
	switch kind {
	case "text":
		o.Value = []byte(value)
	case "hex":
		b, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(value))
		if err != nil {
			return bad(fmt.Sprintf("%q is not hexadecimal", value))
		}
		o.Value = b
	case "bool":
		b, err := strconv.ParseBool(value)
		if err != nil {
			return bad(fmt.Sprintf("%q is neither true nor false", value))
		}
		o.Value = []byte{0}
		if b {
			o.Value[0] = 1
		}
	case "ip", "uint8", "uint16", "uint32":
		for part := range strings.SplitSeq(value, ",") {
			var err error
			if o.Value, err = appendValue(o.Value, kind, strings.TrimSpace(part)); err != nil {
				return bad(err.Error())
			}
		}
	default:
		return bad(fmt.Sprintf("kind %q is none of %s", kind, optionKinds))
	}
	if err := o.validate(); err != nil {
		return bad(err.Error())
	}
	return o, nil
}

func appendValue(b []byte, kind, s string) ([]byte, error) {
	if kind == "ip" {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return nil, fmt.Errorf("%q is no IPv4 address", s)
		}
		return append(b, a.AsSlice()...), nil
	}
	bits, err := strconv.Atoi(strings.TrimPrefix(kind, "uint"))
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(s, 0, bits)
	if err != nil {
		return nil, fmt.Errorf("%q is no number of %d bits", s, bits)
	}
	switch bits {
	case 8:
		return append(b, byte(n)), nil
	case 16:
		return binary.BigEndian.AppendUint16(b, uint16(n)), nil
	}
	return binary.BigEndian.AppendUint32(b, uint32(n)), nil
}

func (e Option) validate() error {
	if why, ok := ours[e.Code]; ok {
		return fmt.Errorf("option %d cannot be set by hand: %s", e.Code, why)
	}
	if len(e.Value) == 0 || len(e.Value) > 255 {
		return fmt.Errorf("option %d has %d bytes, want 1 to 255", e.Code, len(e.Value))
	}
	return nil
}

// wanted says whether the client asked for an option. One that sends no list gets
// all.
func wanted(list []byte, code uint8) bool { return len(list) == 0 || slices.Contains(list, code) }
