package tftp

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		name, options, oack string
		block, window, mtu  int
		fragment            bool
	}{
		{name: "nothing asked", block: 512, window: 1},
		{name: "unknown only", options: "rollover\x001\x00multicast\x00\x00", block: 512, window: 1},
		{name: "fits the path", options: "blksize\x001468\x00", oack: "blksize\x001468\x00", block: 1468, window: 1, mtu: 1500},
		{name: "one byte too many for the path", options: "blksize\x001469\x00", oack: "blksize\x001468\x00", block: 1468, window: 1, mtu: 1500},
		{name: "jumbo frames", options: "blksize\x0065464\x00", oack: "blksize\x008968\x00", block: 8968, window: 1, mtu: 9000},
		{name: "fragments wanted", options: "blksize\x008192\x00", oack: "blksize\x008192\x00", block: 8192, window: 1, mtu: 1500, fragment: true},
		{name: "smallest block", options: "blksize\x008\x00", oack: "blksize\x008\x00", block: 8, window: 1, mtu: 1500},
		{name: "block too small", options: "blksize\x007\x00", block: 512, window: 1},
		{name: "block too large", options: "blksize\x0099999\x00", oack: "blksize\x0065464\x00", block: 65464, window: 1},
		{name: "not numbers", options: "blksize\x001k\x00windowsize\x00-4\x00timeout\x00\x00tsize\x00?\x00", block: 512, window: 1},
		{name: "no window", options: "windowsize\x000\x00", block: 512, window: 1},
		{name: "a window", options: "windowsize\x0016\x00", oack: "windowsize\x0016\x00", block: 512, window: 16},
		{name: "window too large", options: "windowsize\x0065535\x00", oack: "windowsize\x0064\x00", block: 512, window: 64},
		{name: "window out of range", options: "windowsize\x0065536\x00", block: 512, window: 1},
		{name: "flight is bounded", options: "windowsize\x0064\x00blksize\x0065464\x00", oack: "windowsize\x0016\x00blksize\x0065464\x00", block: 65464, window: 16},
		{name: "size and order", options: "tsize\x000\x00Blksize\x00600\x00", oack: "tsize\x0077\x00Blksize\x00600\x00", block: 600, window: 1},
		{name: "once only", options: "blksize\x00600\x00BLKSIZE\x00700\x00", oack: "blksize\x00600\x00", block: 600, window: 1},
		{name: "too patient", options: "timeout\x00255\x00", block: 512, window: 1},
		{name: "timeout", options: "timeout\x003\x00", oack: "timeout\x003\x00", block: 512, window: 1},
	} {
		r, err := parseRequest([]byte("\x00\x01f\x00OCTET\x00" + c.options))
		if err != nil || r.mode != "octet" || r.name != "f" {
			t.Errorf("%s: %+v %v", c.name, r, err)
			continue
		}
		oack, p := negotiate(r, 77, limits{window: 64, mtu: c.mtu, fragment: c.fragment})
		want := c.oack
		if want != "" {
			want = "\x00\x06" + want
		}
		if string(oack) != want || p.block != c.block || p.window != c.window {
			t.Errorf("%s: %q and %+v", c.name, oack, p)
		}
	}
}

func TestMalformedRequests(t *testing.T) {
	for _, s := range []string{"\x00\x01", "\x00\x01\x00\x00", "\x00\x01name", "\x00\x01name\x00", "\x00\x01\x00octet\x00", "\x00\x01" + strings.Repeat("x", 2000) + "\x00octet\x00"} {
		if r, err := parseRequest([]byte(s)); err == nil {
			t.Errorf("%.30q is taken for %+v", s, r)
		}
	}
	for _, s := range []string{"\x00\x01f\x00octet", "\x00\x01f\x00octet\x00\x00\x00\x00\x00", "\x00\x01f\x00octet\x00blksize\x00600"} {
		if _, err := parseRequest([]byte(s)); err != nil {
			t.Errorf("%q is refused", s)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte("\x00\x01f\x00octet\x00blksize\x001468\x00windowsize\x0016\x00tsize\x000\x00timeout\x005\x00"), 1500)
	f.Add([]byte("\x00\x01f\x00octet\x00BLKSIZE\x00\x00"), 0)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		r, err := parseRequest(b)
		if err != nil {
			return
		}
		oack, p := negotiate(r, 1<<40, limits{window: 64, mtu: mtu})
		if p.block < minBlock || p.block > maxBlock || p.window < 1 || p.window > 64 || p.block*p.window > maxFlight {
			t.Errorf("%q: %+v", b, p)
		}
		if mtu >= 68 && r.asks("blksize") && p.block != defaultBlock && p.block+headLen+ipHeads > mtu {
			t.Errorf("%q: blocks of %d do not fit into %d", b, p.block, mtu)
		}
		if len(oack) > len(b)+64 {
			t.Errorf("%q is answered by %d bytes", b, len(oack))
		}
	})
}

// Blocks are cut to what fits beside the headers of the path: IPv6's is longer.
func TestTheMTUCountsTheHeader(t *testing.T) {
	for at, want := range map[string]int{"127.0.0.1": 65535, "::1": 65536 - 20} {
		a := netip.MustParseAddr(at)
		p, err := openPort(a, netip.AddrPortFrom(a, 9))
		if err != nil {
			t.Fatal(err)
		}
		if p.mtu != want { // of the loopback interface, which is 65536; IPv4 counts no further than 65535
			t.Errorf("%s: %d, want %d", at, p.mtu, want)
		}
		if err := p.close(); err != nil {
			t.Error(err)
		}
	}
}
