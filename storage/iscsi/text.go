package iscsi

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Limits on text (RFC 7143, 6.1).
const (
	MaxKeyLength   = 63   // bytes of a key name
	MaxValueLength = 8192 // bytes of a value, as CHAP's largest binary values need
	MaxPairs       = 128  // pairs in one exchange
)

// Pair is one key=value.
type Pair struct{ Key, Value string }

// Pairs is the text of a log-in or text PDU, in the order of the wire.
type Pairs []Pair

// ErrText is wrapped by every error of ParseText.
var ErrText = errors.New("iscsi: malformed text")

// ParseText reads the data segment of a log-in or text PDU: pairs that each end
// in a NUL. A missing last NUL is accepted, as real initiators send it; a key
// that comes twice is not (RFC 7143, 6.2).
func ParseText(b []byte) (Pairs, error) {
	var ps Pairs
	for rest := string(b); rest != ""; {
		item, tail, _ := strings.Cut(rest, "\x00")
		rest = tail
		if item == "" {
			continue // stray NULs pad the segment of some initiators
		}
		key, value, found := strings.Cut(item, "=")
		if !found {
			return nil, fmt.Errorf("%w: %.40q has no '='", ErrText, item)
		}
		if err := checkKey(key); err != nil {
			return nil, err
		}
		if len(value) > MaxValueLength {
			return nil, fmt.Errorf("%w: value of %s has %d bytes, at most %d", ErrText, key, len(value), MaxValueLength)
		}
		if _, dup := ps.Get(key); dup {
			return nil, fmt.Errorf("%w: %s comes twice", ErrText, key)
		}
		if len(ps) == MaxPairs {
			return nil, fmt.Errorf("%w: more than %d pairs", ErrText, MaxPairs)
		}
		ps = append(ps, Pair{key, value})
	}
	return ps, nil
}

// checkKey holds keys to the standard's key-name: a letter first (or the dot of
// vendor keys' domain), then letters, digits, and . - + @ _ .
func checkKey(k string) error {
	if k == "" || len(k) > MaxKeyLength {
		return fmt.Errorf("%w: key of %d bytes", ErrText, len(k))
	}
	for i := range len(k) {
		c := k[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		other := c >= '0' && c <= '9' || strings.IndexByte(".-+@_#", c) >= 0
		if !letter && (i == 0 || !other) {
			return fmt.Errorf("%w: key %.40q", ErrText, k)
		}
	}
	return nil
}

// Get gives the value of key.
func (ps Pairs) Get(key string) (string, bool) {
	for _, p := range ps {
		if p.Key == key {
			return p.Value, true
		}
	}
	return "", false
}

// Add appends a pair.
func (ps *Pairs) Add(key, value string) { *ps = append(*ps, Pair{key, value}) }

// Encode gives the data segment: each pair followed by a NUL.
func (ps Pairs) Encode() []byte {
	var b []byte
	for _, p := range ps {
		b = append(b, p.Key...)
		b = append(b, '=')
		b = append(b, p.Value...)
		b = append(b, 0)
	}
	return b
}

// ParseNumber reads a numerical value: decimal, or hexadecimal with 0x
// (RFC 7143, 6.1).
func ParseNumber(s string) (uint64, error) {
	base := 10
	if len(s) > 2 && (s[:2] == "0x" || s[:2] == "0X") {
		s, base = s[2:], 16
	}
	if s == "" || s[0] == '+' || s[0] == '-' {
		return 0, fmt.Errorf("%w: number %.20q", ErrText, s)
	}
	n, err := strconv.ParseUint(s, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: number %.20q", ErrText, s)
	}
	return n, nil
}

// ParseBinary reads a large binary value: hexadecimal with 0x (an odd number of
// digits means a leading zero) or base64 with 0b. More than max bytes are
// refused.
func ParseBinary(s string, max int) ([]byte, error) {
	if len(s) < 3 {
		return nil, fmt.Errorf("%w: binary value of %d bytes", ErrText, len(s))
	}
	var b []byte
	var err error
	switch body := s[2:]; s[:2] {
	case "0x", "0X":
		if len(body)%2 == 1 {
			body = "0" + body
		}
		b, err = hex.DecodeString(body)
	case "0b", "0B":
		b, err = base64.StdEncoding.DecodeString(body)
	default:
		return nil, fmt.Errorf("%w: binary value without 0x or 0b", ErrText)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: binary value: %w", ErrText, err)
	}
	if len(b) > max {
		return nil, fmt.Errorf("%w: binary value of %d bytes, at most %d", ErrText, len(b), max)
	}
	return b, nil
}

// FormatBinary gives a large binary value in hexadecimal.
func FormatBinary(b []byte) string { return "0x" + hex.EncodeToString(b) }
