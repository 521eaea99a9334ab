package tftp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/tftp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

func opener(b []byte) tftp.Opener {
	return func() (io.ReadSeekCloser, error) { return memFile{bytes.NewReader(b)}, nil }
}

// content is a loader of an awkward length: no multiple of any block size.
var content = bytes.Repeat([]byte("hotspare\x00\r\n\xff"), 20001)

type fixture struct {
	addr     netip.AddrPort
	recorder *boot.Recorder
	stop     func()
}

func serve(t *testing.T, o tftp.Options) *fixture {
	t.Helper()
	f := &fixture{recorder: boot.NewRecorder(0, 0)}
	if o.Recorder = f.recorder; o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	o.MACOf = func(netip.Addr) (boot.MAC, bool) { return boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}, true }
	if o.Files == nil {
		o.Files = map[string]tftp.Opener{
			"undionly.kpxe": opener(content), "empty": opener(nil), "block": opener(content[:1024]),
			"broken": func() (io.ReadSeekCloser, error) { return nil, errors.New("/secret/path is gone") },
			"panics": func() (io.ReadSeekCloser, error) { panic("opener") },
		}
	}
	s, err := tftp.New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.addr = s.Addr()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	f.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(f.stop)
	return f
}

// trace waits for n entries.
func (f *fixture) trace(t *testing.T, n int) boot.Trace {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		trace, _ := f.recorder.Trace(boot.MAC{0x52, 0x54, 0, 0x77, 0, 1})
		if len(trace.Entries) == n {
			return trace
		}
		if time.Now().After(end) {
			t.Fatalf("%d entries are missing: %+v", n-len(trace.Entries), trace)
		}
	}
}

// Every client that the field has gets the same bytes.
func TestRealClients(t *testing.T) {
	realClients(t, tftp.Options{})
}

// Likewise when everything comes from the port that was asked.
func TestRealClientsOverOnePort(t *testing.T) {
	realClients(t, tftp.Options{SinglePort: true})
}

// Likewise over IPv6.
func TestRealClientsOverIPv6(t *testing.T) {
	realClients(t, tftp.Options{Listen: "[::1]:0"})
}

func TestRealClientsOverIPv6AndOnePort(t *testing.T) {
	realClients(t, tftp.Options{Listen: "[::1]:0", SinglePort: true})
}

func realClients(t *testing.T, o tftp.Options) {
	f := serve(t, o)
	host, url := f.addr.Addr().String(), "tftp://"+f.addr.String()+"/"
	if n, err := tftp.Probe(t.Context(), f.addr, "undionly.kpxe"); n != int64(len(content)) || err != nil {
		t.Errorf("the probe: %d bytes, %v", n, err)
	}
	if _, err := tftp.Probe(t.Context(), f.addr, "gone"); hotspare.CodeOf(err) != hotspare.CodeTransfer || !strings.Contains(err.Error(), "not found") {
		t.Errorf("the probe of a file that is not there: %v", err)
	}
	port := fmt.Sprint(f.addr.Port())
	for _, name := range []string{"undionly.kpxe", "empty", "block"} {
		want := map[string][]byte{"undionly.kpxe": content, "empty": nil, "block": content[:1024]}[name]
		for client, cmd := range map[string]func(out string) *exec.Cmd{
			"curl": func(out string) *exec.Cmd {
				return exec.Command("curl", "-sS", "-o", out, url+name)
			},
			"curl, 1428": func(out string) *exec.Cmd {
				return exec.Command("curl", "-sS", "--tftp-blksize", "1428", "-o", out, url+name)
			},
			"curl, no options": func(out string) *exec.Cmd {
				return exec.Command("curl", "-sS", "--tftp-no-options", "-o", out, url+name)
			},
			"tftp-hpa": func(out string) *exec.Cmd {
				return exec.Command("tftp", "-m", "binary", host, port, "-c", "get", name, out)
			},
			"atftp, window": func(out string) *exec.Cmd {
				return exec.Command("atftp", "-g", "-r", name, "-l", out, "--option", "blksize 1428", "--option", "windowsize 8", host, port)
			},
			"atftp": func(out string) *exec.Cmd {
				return exec.Command("atftp", "-g", "-r", name, "-l", out, "--option", "blksize 1428", "--option", "tsize 0", host, port)
			},
			"busybox": func(out string) *exec.Cmd {
				return exec.Command("busybox", "tftp", "-g", "-b", "1400", "-r", name, "-l", out, host, port)
			},
		} {
			t.Run(name+" by "+client, func(t *testing.T) {
				out := filepath.Join(t.TempDir(), "out")
				c := cmd(out)
				if b, err := c.CombinedOutput(); err != nil {
					t.Fatalf("%v: %v\n%s", c.Args, err, b)
				}
				got, err := os.ReadFile(out)
				if err != nil && !(len(want) == 0 && errors.Is(err, os.ErrNotExist)) { // curl makes no empty file
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Errorf("got %d bytes, want %d", len(got), len(want))
				}
			})
		}
	}
}

// raw sends one packet and gives the first answer.
func raw(t *testing.T, to netip.AddrPort, packet string) (net.PacketConn, net.Addr, string) {
	t.Helper()
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.WriteTo([]byte(packet), net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	n, from, err := c.ReadFrom(buf)
	if err != nil {
		return c, nil, ""
	}
	return c, from, string(buf[:n])
}

func ackLast(t *testing.T, c net.PacketConn, to net.Addr, code, message string) {
	t.Helper()
	if _, err := c.WriteTo([]byte("\x00\x05\x00"+code+message+"\x00"), to); err != nil {
		t.Fatal(err)
	}
}

// There is no file system: no name leads anywhere but to the map.
func TestNoPathLeadsOut(t *testing.T) {
	f := serve(t, tftp.Options{})
	for _, name := range []string{
		"", "/", ".", "..", "/etc/passwd", "../etc/passwd", "../../../../../../etc/passwd", "//etc/passwd", "etc/passwd",
		"undionly.kpxe/../../etc/passwd", "..\\..\\boot.ini", "C:\\boot.ini", "%2e%2e/etc/passwd", "undionly.kpxe/", "./undionly.kpxe", "//undionly.kpxe",
		"UNDIONLY.KPXE", "undionly.kpxe\n", "undionly", "*", strings.Repeat("a", 480), "\xff\xfe", "broken", "panics",
	} {
		_, _, got := raw(t, f.addr, "\x00\x01"+name+"\x00octet\x00")
		if !strings.HasPrefix(got, "\x00\x05") || strings.Contains(got, "root:") || strings.Contains(got, "secret") {
			t.Errorf("%q is answered by %q", name, got)
		}
	}
	c, from, got := raw(t, f.addr, "\x00\x01/undionly.kpxe\x00octet\x00") // one slash, as some firmware sends
	if !strings.HasPrefix(got, "\x00\x03\x00\x01hotspare") {
		t.Errorf("the loader with a slash before it: %.20q", got)
	} else {
		ackLast(t, c, from, "\x00", "enough")
	}
}

func TestWritingAndNetasciiAreRefused(t *testing.T) {
	f := serve(t, tftp.Options{})
	_, _, got := raw(t, f.addr, "\x00\x02undionly.kpxe\x00octet\x00")
	if !strings.HasPrefix(got, "\x00\x05\x00\x02") {
		t.Errorf("a write request is answered by %q", got)
	}
	for _, mode := range []string{"netascii", "NetASCII"} {
		if _, _, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00"+mode+"\x00"); !strings.HasPrefix(got, "\x00\x05\x00\x00netascii") || !strings.Contains(got, "octet") {
			t.Errorf("%s is answered by %q", mode, got)
		}
	}
	if _, _, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00mail\x00"); !strings.HasPrefix(got, "\x00\x05\x00\x04") {
		t.Errorf("mail is answered by %q", got)
	}
}

func TestOptionsAreNegotiated(t *testing.T) {
	f := serve(t, tftp.Options{})
	for options, want := range map[string][]string{
		"tsize\x000\x00":                                    {fmt.Sprintf("tsize\x00%d\x00", len(content))},
		"blksize\x001428\x00tsize\x000\x00":                 {fmt.Sprintf("tsize\x00%d\x00", len(content)), "blksize\x001428\x00"},
		"blksize\x0065464\x00":                              {"blksize\x00"},
		"windowsize\x0016\x00blksize\x00600\x00":            {"\x00\x06windowsize\x0016\x00blksize\x00600\x00"},
		"BLKSIZE\x008\x00timeout\x005\x00utimeout\x005\x00": {"\x00\x06BLKSIZE\x008\x00timeout\x005\x00"},
	} {
		c, from, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00octet\x00"+options)
		if !strings.HasPrefix(got, "\x00\x06") || strings.Contains(got, "utimeout") {
			t.Errorf("%q is answered by %.40q", options, got)
		}
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%q is answered by %.60q without %q", options, got, w)
			}
		}
		if from != nil {
			ackLast(t, c, from, "\x08", "only asking") // as PXE firmware does to learn the size
		}
	}
}

func TestTrace(t *testing.T) {
	f := serve(t, tftp.Options{})
	out := filepath.Join(t.TempDir(), "out")
	if b, err := exec.Command("curl", "-sS", "-o", out, fmt.Sprintf("tftp://%s/undionly.kpxe", f.addr)).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, b)
	}
	raw(t, f.addr, "\x00\x01shadow\x00octet\x00")
	c, from, _ := raw(t, f.addr, "\x00\x01undionly.kpxe\x00octet\x00tsize\x000\x00")
	ackLast(t, c, from, "\x08", "User aborted the transfer")
	trace := f.trace(t, 3)
	var rules []boot.Rule
	for _, e := range trace.Entries {
		rules = append(rules, e.Reason.Rule)
		if e.Reason.Rule == boot.RuleTransferFail {
			t.Errorf("a question for the size is told as a failure: %+v", e)
		}
	}
	if text := fmt.Sprint(rules); !strings.Contains(text, "transferred") || !strings.Contains(text, "no-such-file") {
		t.Errorf("%s", text)
	}
}

// A machine that dies in the middle holds up nothing: the server ends soon.
func TestServerEndsWhileAClientIsSilent(t *testing.T) {
	f := serve(t, tftp.Options{Timeout: 50 * time.Millisecond})
	_, _, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00octet\x00")
	if !strings.HasPrefix(got, "\x00\x03") {
		t.Fatalf("%.20q", got)
	}
	start := time.Now()
	f.stop()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

// A machine that comes when all slots are taken waits for its turn.
func TestTransfersTakeTurns(t *testing.T) {
	f := serve(t, tftp.Options{Transfers: 1})
	c, from, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00octet\x00")
	if !strings.HasPrefix(got, "\x00\x03") {
		t.Fatalf("%.20q", got)
	}
	second := make(chan string, 1)
	go func() {
		_, _, got := raw(t, f.addr, "\x00\x01block\x00octet\x00")
		second <- got
	}()
	select {
	case got := <-second:
		t.Fatalf("the second transfer did not wait: %.20q", got)
	case <-time.After(100 * time.Millisecond):
	}
	ackLast(t, c, from, "\x00", "done")
	if got := <-second; !strings.HasPrefix(got, "\x00\x03\x00\x01hotspare") {
		t.Errorf("the second transfer: %.20q", got)
	}
}

func TestSessionsAreBounded(t *testing.T) {
	f := serve(t, tftp.Options{PerAddress: 2})
	for range 2 {
		if _, _, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00octet\x00"); !strings.HasPrefix(got, "\x00\x03") {
			t.Fatalf("%.20q", got)
		}
	}
	if _, _, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00octet\x00"); !strings.HasPrefix(got, "\x00\x05\x00\x00busy") {
		t.Errorf("the third transfer of one address: %q", got)
	}
	f = serve(t, tftp.Options{Transfers: 1, Waiting: 1})
	for _, want := range []string{"\x00\x03", "", "\x00\x05\x00\x00busy"} {
		if want == "" { // it waits; do not wait for it
			c, err := net.Dial("udp4", f.addr.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte("\x00\x01block\x00octet\x00")); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, _, got := raw(t, f.addr, "\x00\x01undionly.kpxe\x00octet\x00"); !strings.HasPrefix(got, want) {
			t.Errorf("got %.40q, want %q", got, want)
		}
	}
}

func TestPortTaken(t *testing.T) {
	f := serve(t, tftp.Options{})
	_, err := tftp.New(tftp.Options{Listen: f.addr.String(), Holder: func(network string, port uint16) (string, error) {
		return fmt.Sprintf("atftpd (pid 7) on %s/%d", network, port), nil
	}})
	if hotspare.CodeOf(err) != hotspare.CodePortTaken || !strings.Contains(err.Error(), fmt.Sprintf("atftpd (pid 7) on udp/%d", f.addr.Port())) {
		t.Errorf("%v", err)
	}
	if _, err := tftp.New(tftp.Options{Files: map[string]tftp.Opener{"../x": nil}}); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("a bad name: %v", err)
	}
	s, err := tftp.New(tftp.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Errorf("close: %v", err)
	}
}

// FuzzRequest sends any request to a real server, which must answer the next
// good one.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{"\x00\x01x\x00octet\x00", "\x00\x01\x00\x00", "\x00\x01empty\x00netascii\x00tsize\x00-1\x00blksize\x00x\x00", "\x00\x02w\x00octet\x00", "\x00\x03", "\x00\x05\x00\x00\x00", "", "\x00\x01empty\x00octet\x00tsize\x00" + strings.Repeat("9", 470) + "\x00"} {
		f.Add([]byte(s))
	}
	s, err := tftp.New(tftp.Options{Listen: "127.0.0.1:0", Timeout: time.Millisecond, Transfers: 1 << 10, Waiting: 1 << 14, PerAddress: 1 << 14, Files: map[string]tftp.Opener{"empty": opener(nil), "x": opener([]byte("x"))}})
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	f.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("udp4", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if len(b) > 1400 {
			b = b[:1400]
		}
		if _, err := c.Write(b); err != nil {
			t.Skip() // an answer from before was refused
		}
		conn, from, got := raw(t, s.Addr(), "\x00\x01x\x00octet\x00")
		if got != "\x00\x03\x00\x01x" {
			t.Fatalf("after %q the server answers %q", b, got)
		}
		if _, err := conn.WriteTo([]byte("\x00\x04\x00\x01"), from); err != nil {
			t.Fatal(err)
		}
	})
}
