package iscsi_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"hotspare"
	"hotspare/storage/iscsi"
)

func TestDigestExamplesOfTheStandard(t *testing.T) { // RFC 7143, appendix A.4
	up := make([]byte, 32)
	for i := range up {
		up[i] = byte(i)
	}
	down := make([]byte, 32)
	for i := range down {
		down[i] = byte(31 - i)
	}
	for _, c := range []struct {
		name string
		in   []byte
		want uint32
	}{
		{"zeros", make([]byte, 32), 0x8a9136aa},
		{"ones", []byte(strings.Repeat("\xff", 32)), 0x62a8ab43},
		{"ascending", up, 0x46dd794e},
		{"descending", down, 0x113fdb5c},
	} {
		if got := iscsi.Digest(c.in); got != c.want {
			t.Errorf("%s: %08x, not %08x", c.name, got, c.want)
		}
	}
}

func TestCHAPResponse(t *testing.T) {
	// MD5 over 01 "0123456789abcdef" 00 01 02 03.
	got := hex.EncodeToString(iscsi.CHAPResponse(1, hotspare.NewSecret("0123456789abcdef"), []byte{0, 1, 2, 3}))
	if want := "52208fb99411c7ecb794d580cfdbec19"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

func TestBinaryValues(t *testing.T) {
	for in, want := range map[string]string{"0x0a0b": "0a0b", "0Xabc": "0abc", "0bAAEC": "000102", "0x": "error", "abcd": "error", "0xzz": "error", "0b!!": "error"} {
		b, err := iscsi.ParseBinary(in, 16)
		got := hex.EncodeToString(b)
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s: %s, not %s", in, got, want)
		}
	}
	if _, err := iscsi.ParseBinary("0x"+strings.Repeat("00", 17), 16); err == nil {
		t.Error("17 bytes pass a limit of 16")
	}
}

func TestTextRefusals(t *testing.T) {
	many := strings.Repeat("k=v\x00", 2)
	for _, in := range []string{"novalue\x00", "=v\x00", "1k=v\x00", many, strings.Repeat("k", 64) + "=v\x00", "k=" + strings.Repeat("v", 8193) + "\x00", "k\n=v\x00"} {
		if ps, err := iscsi.ParseText([]byte(in)); err == nil {
			t.Errorf("%.40q gives %.80q", in, ps)
		}
	}
}
