package tftp_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"hotspare/boot"
	"hotspare/boot/tftp"
)

// client is a TFTP client of the tests: it keeps RFC 7440 and can lose what it
// receives and what it sends.
type client struct {
	conn   net.PacketConn
	to     net.Addr
	block  int
	window int
	lose   func(packet []byte) bool // of what comes in
	mute   func() bool              // of what goes out
	sent   int                      // acknowledgements
}

func newClient(t *testing.T, f *fixture, request string) (*client, string) {
	t.Helper()
	conn, from, got := raw(t, f.addr, request)
	return &client{conn: conn, to: from, block: 512, window: 1, lose: func([]byte) bool { return false }, mute: func() bool { return false }}, got
}

func (c *client) ack(t *testing.T, block uint16) {
	t.Helper()
	if c.mute() {
		return
	}
	c.sent++
	if _, err := c.conn.WriteTo([]byte{0, 4, byte(block >> 8), byte(block)}, c.to); err != nil {
		t.Fatal(err)
	}
}

// rest takes the file from the block after have on.
func (c *client) rest(t *testing.T, have uint16) []byte {
	t.Helper()
	var file []byte
	buf := make([]byte, 65536)
	in, gap := 0, false
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _, err := c.conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", len(file), err)
		}
		p := buf[:n]
		if binary.BigEndian.Uint16(p) != 3 {
			t.Fatalf("after %d bytes: %q", len(file), p)
		}
		if c.lose(p) {
			continue
		}
		if binary.BigEndian.Uint16(p[2:]) != have+1 {
			// Once for each gap, and when the last one comes again: then the
			// acknowledgement was lost.
			if !gap || binary.BigEndian.Uint16(p[2:]) == have {
				c.ack(t, have)
			}
			gap, in = true, 0
			continue
		}
		have++
		gap = false
		file = append(file, p[4:]...)
		last := len(p) < c.block+4
		if in++; in == c.window || last {
			c.ack(t, have)
			in = 0
		}
		if last {
			return file
		}
	}
}

// A window is one acknowledgement for many blocks, also when the file ends in
// its middle or with an empty block.
func TestWindows(t *testing.T) {
	for _, single := range []bool{false, true} {
		for _, c := range []struct{ size, block, window int }{
			{len(content), 1428, 16}, {1428 * 16, 1428, 16}, {1428*16 - 1, 1428, 16}, {1, 1428, 16}, {len(content), 512, 64}, {len(content), 65464, 2}, {len(content), 8192, 1}, {100000, 8, 7},
		} {
			t.Run(fmt.Sprintf("%+v single %v", c, single), func(t *testing.T) {
				f := serve(t, tftp.Options{SinglePort: single, Files: map[string]tftp.Opener{"x": opener(content[:c.size])}})
				x, got := newClient(t, f, fmt.Sprintf("\x00\x01x\x00octet\x00blksize\x00%d\x00windowsize\x00%d\x00", c.block, c.window))
				if want := fmt.Sprintf("\x00\x06blksize\x00%d\x00windowsize\x00%d\x00", c.block, c.window); got != want {
					t.Fatalf("agreed on %q", got)
				}
				if port := uint16(x.to.(*net.UDPAddr).Port); (port == f.addr.Port()) != single {
					t.Errorf("answers come from port %d, asked was %d", port, f.addr.Port())
				}
				x.block, x.window = c.block, c.window
				x.ack(t, 0)
				if b := x.rest(t, 0); !bytes.Equal(b, content[:c.size]) {
					t.Errorf("got %d bytes of %d", len(b), c.size)
				}
				if most := c.size/c.block/c.window + 2; x.sent > most {
					t.Errorf("%d acknowledgements, want %d", x.sent, most)
				}
			})
		}
	}
}

// Block numbers go on with 0 after 65535.
func TestRollover(t *testing.T) {
	big := make([]byte, 70000*8+3)
	for i := range big {
		big[i] = byte(i * 7 >> 3)
	}
	f := serve(t, tftp.Options{Files: map[string]tftp.Opener{"x": opener(big)}})
	for _, window := range []int{1, 60} {
		x, _ := newClient(t, f, fmt.Sprintf("\x00\x01x\x00octet\x00blksize\x008\x00windowsize\x00%d\x00", window))
		x.block, x.window = 8, window
		x.ack(t, 0)
		if b := x.rest(t, 0); !bytes.Equal(b, big) {
			t.Errorf("window %d: got %d bytes of %d, or wrong ones", window, len(b), len(big))
		}
	}
}

// Whatever is lost in either direction, the file arrives as it is.
func TestLosses(t *testing.T) {
	for _, single := range []bool{false, true} {
		for _, window := range []int{1, 4, 16} {
			t.Run(fmt.Sprintf("window %d single %v", window, single), func(t *testing.T) {
				f := serve(t, tftp.Options{SinglePort: single, Timeout: 5 * time.Millisecond, Retries: 12, Files: map[string]tftp.Opener{"x": opener(content[:60000])}})
				x, got := newClient(t, f, fmt.Sprintf("\x00\x01x\x00octet\x00windowsize\x00%d\x00", window))
				if !strings.HasPrefix(got, "\x00\x06") {
					t.Fatalf("%q", got)
				}
				rng := rand.New(rand.NewPCG(1, uint64(window)))
				x.window = window
				x.ack(t, 0)
				lost := 0
				x.lose = func([]byte) bool {
					if rng.IntN(10) == 0 {
						lost++
						return true
					}
					return false
				}
				x.mute = func() bool { return rng.IntN(10) == 0 }
				if b := x.rest(t, 0); !bytes.Equal(b, content[:60000]) {
					t.Errorf("got %d bytes, or wrong ones", len(b))
				}
				if lost < 5 {
					t.Errorf("only %d packets were lost", lost)
				}
			})
		}
	}
}

// An acknowledgement that comes twice does not double the packets from there on
// (the sorcerer's apprentice).
func TestRepeatedAcknowledgements(t *testing.T) {
	f := serve(t, tftp.Options{Timeout: 10 * time.Second, Files: map[string]tftp.Opener{"x": opener(content[:20*512+1])}})
	x, _ := newClient(t, f, "\x00\x01x\x00octet\x00")
	buf := make([]byte, 1024)
	blocks := 1
	for n := uint16(1); n < 21; n++ {
		for range 3 {
			x.ack(t, n)
		}
		_ = x.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, _, err := x.conn.ReadFrom(buf); err != nil {
			t.Fatal(err)
		}
		blocks++
		if got := binary.BigEndian.Uint16(buf[2:]); got != n+1 {
			t.Fatalf("after three acknowledgements of block %d comes %d", n, got)
		}
	}
	_ = x.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := x.conn.ReadFrom(buf); err == nil {
		t.Errorf("block %d comes once more, unasked", binary.BigEndian.Uint16(buf[2:n]))
	}
	x.ack(t, 21)
	if blocks != 21 {
		t.Errorf("%d blocks", blocks)
	}
}

// PXE firmware asks for the size, ends that with an error, and asks for the file
// from the same port; the second request overtakes the error packet.
func TestSizeProbeThenFileFromOnePort(t *testing.T) {
	for _, second := range []string{"\x00\x01block\x00octet\x00tsize\x000\x00blksize\x00512\x00", "\x00\x01block\x00octet\x00tsize\x000\x00"} {
		f := serve(t, tftp.Options{Timeout: 10 * time.Second})
		x, got := newClient(t, f, "\x00\x01block\x00octet\x00tsize\x000\x00")
		if got != "\x00\x06tsize\x001024\x00" {
			t.Fatalf("%q", got)
		}
		probe := x.to
		if _, err := x.conn.WriteTo([]byte(second), net.UDPAddrFromAddrPort(f.addr)); err != nil {
			t.Fatal(err)
		}
		ackLast(t, x.conn, probe, "\x08", "size only")
		buf := make([]byte, 1024)
		_ = x.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := x.conn.ReadFrom(buf)
		if err != nil || !strings.HasPrefix(string(buf[:n]), "\x00\x06tsize\x001024\x00") {
			t.Fatalf("%q is answered by %q %v", second, buf[:n], err)
		}
		x.to = from
		x.ack(t, 0)
		if b := x.rest(t, 0); !bytes.Equal(b, content[:1024]) {
			t.Errorf("%d bytes", len(b))
		}
	}
}

// A request that comes twice is answered once.
func TestRequestComesTwice(t *testing.T) {
	f := serve(t, tftp.Options{Timeout: 10 * time.Second})
	request := "\x00\x01block\x00octet\x00"
	x, got := newClient(t, f, request)
	if !strings.HasPrefix(got, "\x00\x03\x00\x01") {
		t.Fatalf("%q", got)
	}
	if _, err := x.conn.WriteTo([]byte(request), net.UDPAddrFromAddrPort(f.addr)); err != nil {
		t.Fatal(err)
	}
	_ = x.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, from, err := x.conn.ReadFrom(make([]byte, 1024)); err == nil {
		t.Errorf("answered again from %v, first from %v", from, x.to)
	}
	x.ack(t, 1)
	if b := x.rest(t, 1); len(b) != 512 {
		t.Errorf("the rest has %d bytes", len(b))
	}
	trace := f.trace(t, 1)
	if e := trace.Entries[0]; e.Detail.Bytes != 1024 || e.Detail.Size != 1024 || e.Reason.Rule != boot.RuleTransferred {
		t.Errorf("%+v", e)
	}
}

// A machine that asked twice, because the answer was late, goes on with the first
// answer; its second request comes to us in the middle of that.
func TestDelayedSecondRequest(t *testing.T) {
	for _, single := range []bool{false, true} {
		f := serve(t, tftp.Options{Timeout: 10 * time.Second, SinglePort: single})
		request := "\x00\x01undionly.kpxe\x00octet\x00"
		x, got := newClient(t, f, request)
		if !strings.HasPrefix(got, "\x00\x03\x00\x01") {
			t.Fatalf("%q", got)
		}
		sent := 0
		x.lose = func([]byte) bool {
			if sent++; sent%50 == 0 {
				if _, err := x.conn.WriteTo([]byte(request), net.UDPAddrFromAddrPort(f.addr)); err != nil {
					t.Fatal(err)
				}
			}
			return false
		}
		x.ack(t, 1)
		if b := x.rest(t, 1); !bytes.Equal(b, content[512:]) {
			t.Errorf("single port %v: %d bytes", single, len(b))
		}
	}
}

// A machine that asks for another file from the same port in the middle of a
// transfer gets it, and the transfer goes on as long as it is acknowledged.
func TestAnotherFileFromOnePort(t *testing.T) {
	f := serve(t, tftp.Options{Timeout: 10 * time.Second})
	x, got := newClient(t, f, "\x00\x01undionly.kpxe\x00octet\x00")
	if !strings.HasPrefix(got, "\x00\x03\x00\x01") {
		t.Fatalf("%q", got)
	}
	x.ack(t, 1)
	buf := make([]byte, 1024)
	receive := func() (string, net.Addr) {
		_ = x.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := x.conn.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n]), from
	}
	receive()
	if _, err := x.conn.WriteTo([]byte("\x00\x01block\x00octet\x00"), net.UDPAddrFromAddrPort(f.addr)); err != nil {
		t.Fatal(err)
	}
	second, from := receive()
	if !strings.HasPrefix(second, "\x00\x03\x00\x01") || from.String() == x.to.String() {
		t.Fatalf("the second file: %.8q from %v, the first came from %v", second, from, x.to)
	}
	x.ack(t, 2)
	if first, from := receive(); !strings.HasPrefix(first, "\x00\x03\x00\x03") || from.String() != x.to.String() {
		t.Errorf("the first file goes on with %.8q from %v", first, from)
	}
}

// A machine that closed its port is told by ICMP; nothing waits for it.
func TestMachineGoesAway(t *testing.T) {
	f := serve(t, tftp.Options{Timeout: 100 * time.Millisecond})
	x, got := newClient(t, f, "\x00\x01undionly.kpxe\x00octet\x00windowsize\x004\x00")
	if !strings.HasPrefix(got, "\x00\x06") {
		t.Fatalf("%q", got)
	}
	x.ack(t, 0)
	buf := make([]byte, 1024)
	_ = x.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := x.conn.ReadFrom(buf); err != nil {
		t.Fatal(err)
	}
	x.ack(t, 1)
	x.conn.Close()
	e := f.trace(t, 1).Entries[0]
	if e.Reason.Rule != boot.RuleTransferFail || e.Detail.Bytes > 2048 || !strings.Contains(e.Reason.Text, "closed its port") {
		t.Errorf("%+v", e)
	}
}

// A name that is not in the map is decided elsewhere; a token in it is not
// shown.
func TestResolvedNames(t *testing.T) {
	const token = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	questions := make(chan boot.Request, 2)
	f := serve(t, tftp.Options{Resolve: func(_ context.Context, r boot.Request) (tftp.Resolved, error) {
		questions <- r
		if r.File != "grub/"+token+"/grubx64.efi" {
			return tftp.Resolved{Reason: boot.Reason{Rule: boot.RuleNoSuchFile, Text: "not yours"}}, nil
		}
		return tftp.Resolved{File: plainFile{bytes.NewReader(content[:700])}, Node: "n1", Reason: boot.Reason{Rule: boot.RuleTransferred}}, nil
	}})
	x, got := newClient(t, f, "\x00\x01/grub/"+token+"/grubx64.efi\x00octet\x00")
	if len(got) != 516 {
		t.Fatalf("%q", got)
	}
	x.ack(t, 1)
	if b := x.rest(t, 1); !bytes.Equal(b, content[512:700]) {
		t.Errorf("%d bytes", len(b))
	}
	if asked := <-questions; asked.Client != f.addr.Addr() || asked.MAC.IsZero() || asked.Protocol != boot.TFTP {
		t.Errorf("asked: %+v", asked)
	}
	if _, _, got := raw(t, f.addr, "\x00\x01/grub/"+token+"/evil\x00octet\x00"); !strings.HasPrefix(got, "\x00\x05\x00\x01") {
		t.Errorf("refused by %q", got)
	}
	trace := f.trace(t, 2)
	text := fmt.Sprintf("%+v", trace)
	if strings.Contains(text, token) || !strings.Contains(text, "not yours") || trace.Node != "n1" {
		t.Errorf("%s", text)
	}
}

// plainFile is a file that can only be read where it stands.
type plainFile struct{ io.ReadSeeker }

func (plainFile) Close() error { return nil }
