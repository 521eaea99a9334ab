package httpboot_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
)

// fileHandler serves one file of the disk as the kernel of goodToken.
func fileHandler(t *testing.T, size int64, stall time.Duration) (*httpboot.Handler, string, *boot.Recorder) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	recorder := boot.NewRecorder(0, 0)
	a := boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: goodToken, Kernel: "vmlinuz", Initrd: "initrd", Epoch: 9}
	h, err := httpboot.New(httpboot.Options{
		Site:     boot.Site{Server: netip.MustParseAddr("127.0.0.1"), Loaders: boot.DefaultLoaders()},
		Director: directorFunc(func(boot.Request) (boot.Assignment, error) { return a, nil }),
		Source: sourceFunc(func(string, boot.Artefact) (httpboot.File, error) {
			f, err := os.Open(path)
			return httpboot.File{ReadSeekCloser: f, ModTime: time.Unix(1700000000, 0), ETag: `"k"`}, err
		}),
		Script: ipxe.Write, Stall: stall, Recorder: recorder,
		Loader: func(string) (io.ReadSeekCloser, error) { return os.Open(path) },
		MACOf:  func(netip.Addr) (boot.MAC, bool) { return boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}, true },
	})
	if err != nil {
		t.Fatal(err)
	}
	return h, path, recorder
}

// serveOn runs Serve on a port of its own.
func serveOn(t *testing.T, h http.Handler, o httpboot.ServerOptions) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := httpboot.Serve(ctx, ln, h, o); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return ln.Addr().String()
}

// spyConn sees what net/http hands to the socket.
type spyConn struct {
	*net.TCPConn
	files *atomic.Int64
}

func (c spyConn) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if _, ok := l.R.(*os.File); ok {
			c.files.Add(1)
		}
	}
	return c.TCPConn.ReadFrom(r)
}

type spyListener struct {
	net.Listener
	files *atomic.Int64
}

func (l spyListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return spyConn{c.(*net.TCPConn), l.files}, nil
}

// A file goes from the page cache to the socket: no wrapper of ours hides it
// from net/http.
func TestFilesGoBySendfile(t *testing.T) {
	h, _, _ := fileHandler(t, 3<<20, 0)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var files atomic.Int64
	srv := &http.Server{Handler: h}
	go srv.Serve(spyListener{ln, &files})
	defer srv.Close()
	for _, path := range []string{"/boot/" + goodToken + "/kernel", "/loader/snponly.efi"} {
		files.Store(0)
		resp, err := http.Get("http://" + ln.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if n != 3<<20 || err != nil || files.Load() < 3 {
			t.Errorf("%s: %d bytes, %v, %d times by sendfile", path, n, err, files.Load())
		}
		if resp.Header.Get("Last-Modified") == "" || len(resp.TransferEncoding) > 0 {
			t.Errorf("%s: %v %v", path, resp.Header, resp.TransferEncoding)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestSeveralRanges(t *testing.T) {
	f := newFixture(t)
	kernel := "/boot/" + goodToken + "/kernel"
	r := f.do(t, "GET", kernel, "Range", "bytes=0-3,16-19,-2")
	kind, param, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if r.StatusCode != 206 || kind != "multipart/byteranges" || err != nil || r.ContentLength != int64(len(r.body)) {
		t.Fatalf("%s %v", r.Status, r.Header)
	}
	m := multipart.NewReader(strings.NewReader(r.body), param["boundary"])
	for _, want := range []string{"0123", "0123", "ef"} {
		p, err := m.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(p); string(b) != want {
			t.Errorf("part %q, want %q", b, want)
		}
	}
	for _, c := range []struct {
		name   string
		header []string
		status int
	}{
		{"unsatisfiable says how long it is", []string{"Range", "bytes=1048576-"}, 416},
		{"If-Range with the date", []string{"Range", "bytes=0-2", "If-Range", time.Unix(1700000000, 0).UTC().Format(http.TimeFormat)}, 206},
		{"If-Range with another date", []string{"Range", "bytes=0-2", "If-Range", time.Unix(1700000001, 0).UTC().Format(http.TimeFormat)}, 200},
		{"If-Range with a weak tag", []string{"Range", "bytes=0-2", "If-Range", `W/"sha256-1"`}, 200},
		{"If-Match fails", []string{"If-Match", `"sha256-0"`}, 412},
		{"not a range", []string{"Range", "lines=1-2"}, 416},
	} {
		r := f.do(t, "GET", kernel, c.header...)
		if r.StatusCode != c.status {
			t.Errorf("%s: %s", c.name, r.Status)
		}
		if c.status == 416 && strings.HasPrefix(c.name, "unsat") && r.Header.Get("Content-Range") != "bytes */1048576" {
			t.Errorf("%s: %v", c.name, r.Header)
		}
	}
}

// Firmware keeps its connection; the deadline of one answer does not reach into
// the next one.
func TestKeepAliveOutlivesDeadlines(t *testing.T) {
	h, _, _ := fileHandler(t, 1000, 50*time.Millisecond)
	addr := serveOn(t, h, httpboot.ServerOptions{})
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for i := range 3 {
		fmt.Fprintf(c, "GET /boot/%s/kernel HTTP/1.1\r\nHost: a\r\n\r\n", goodToken)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != 1000 || err != nil || resp.Close {
			t.Fatalf("request %d: %d bytes, %v, close %v", i, n, err, resp.Close)
		}
		time.Sleep(80 * time.Millisecond) // longer than the deadline
	}
}

// A client that takes nothing is cut, and the trace says so.
func TestClientThatTakesNothingIsCut(t *testing.T) {
	h, _, recorder := fileHandler(t, 256<<20, 100*time.Millisecond)
	addr := serveOn(t, h, httpboot.ServerOptions{})
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /boot/%s/kernel HTTP/1.1\r\nHost: a\r\n\r\n", goodToken)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		trace, _ := recorder.Trace(boot.MAC{0x52, 0x54, 0, 0x77, 0, 1})
		if len(trace.Entries) == 1 {
			e := trace.Entries[0]
			if !strings.Contains(e.Reason.Text, "took less than") || e.Detail.Bytes >= 256<<20 || e.Detail.Size != 256<<20 || e.Step != boot.StepKernel {
				t.Errorf("%+v", e)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal("it is still served")
		}
	}
}

func TestClientsThatSendSlowlyAreCut(t *testing.T) {
	h, _, _ := fileHandler(t, 10, 0)
	addr := serveOn(t, h, httpboot.ServerOptions{Header: 100 * time.Millisecond})
	for _, begin := range []string{"", "GET /boot/x HTTP/1.1\r\nHost:"} {
		c, err := net.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, begin)
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if b, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %q the connection stays open: %q", begin, b)
		}
		c.Close()
	}
	resp, err := http.Post("http://"+addr+"/boot/"+goodToken+"/kernel", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 405 || !resp.Close {
		t.Errorf("a body: %s, close %v", resp.Status, resp.Close)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	h, _, _ := fileHandler(t, 10, 0)
	addr := serveOn(t, h, httpboot.ServerOptions{PerAddress: 2, Connections: 3})
	open := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET /boot/%s/kernel HTTP/1.1\r\nHost: a\r\n\r\n", goodToken)
		return c
	}
	answered := func(c net.Conn, patience time.Duration) bool {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		n, _ := c.Read(make([]byte, 1000))
		return n > 0
	}
	first, second := open("127.0.0.1"), open("127.0.0.1")
	if !answered(first, 10*time.Second) || !answered(second, 10*time.Second) {
		t.Fatal("two connections are not answered")
	}
	if answered(open("127.0.0.1"), 10*time.Second) {
		t.Error("a third connection of one address is answered")
	}
	if !answered(open("127.0.0.2"), 10*time.Second) {
		t.Error("another address is not answered")
	}
	late := open("127.0.0.3")
	if answered(late, 100*time.Millisecond) {
		t.Error("there are more connections than allowed")
	}
	first.Close()
	if !answered(late, 10*time.Second) {
		t.Error("a place that became free is not given away")
	}
}

// authority is a CA such as the appliance's.
func authority(t *testing.T) (httpboot.Authority, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-100 * time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return httpboot.Authority{Certificate: cert, Key: key}, path
}

// Old and new clients get the file over TLS, with the appliance's CA and not
// without it.
func TestTLS(t *testing.T) {
	ca, pemPath := authority(t)
	for _, ec := range []bool{false, true} {
		certs, err := httpboot.NewCertificates(ca, httpboot.CertificateOptions{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Names: []string{"boot.example"}, ECDSA: ec})
		if err != nil {
			t.Fatal(err)
		}
		h, path, _ := fileHandler(t, 5<<20+3, 0)
		addr := serveOn(t, h, httpboot.ServerOptions{TLS: certs.Config()})
		out := filepath.Join(t.TempDir(), "out")
		for _, c := range []struct {
			name string
			args []string
			ok   bool
		}{
			{"TLS 1.3", []string{"--cacert", pemPath, "--tlsv1.3"}, true},
			{"TLS 1.2", []string{"--cacert", pemPath, "--tlsv1.2", "--tls-max", "1.2"}, true},
			{"by name", []string{"--cacert", pemPath, "--connect-to", "boot.example::" + addr}, true},
			{"an iPXE of Debian 12", []string{"--cacert", pemPath, "--tls-max", "1.2", "--ciphers", "AES128-SHA"}, !ec},
			{"TLS 1.1", []string{"--cacert", pemPath, "--tls-max", "1.1"}, false},
			{"without the CA", nil, false},
		} {
			_ = os.Remove(out)
			host := addr
			if c.name == "by name" {
				host = "boot.example"
			}
			b, err := exec.Command("curl", append(c.args, "-sS", "--fail", "-o", out, "https://"+host+"/boot/"+goodToken+"/kernel")...).CombinedOutput()
			if (err == nil) != c.ok {
				t.Errorf("ECDSA %v, %s: %v %s", ec, c.name, err, b)
				continue
			}
			if !c.ok {
				continue
			}
			if b, err := exec.Command("cmp", out, path).CombinedOutput(); err != nil {
				t.Errorf("ECDSA %v, %s: %s", ec, c.name, b)
			}
		}
	}
}

func TestCertificateIsRenewed(t *testing.T) {
	ca, _ := authority(t)
	now := time.Now()
	life := 300 * time.Hour
	certs, err := httpboot.NewCertificates(ca, httpboot.CertificateOptions{Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.1")}, Lifetime: life, ECDSA: true, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	get := func() *tls.Certificate {
		c, err := certs.Config().GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(ca.Certificate)
		for _, at := range []time.Time{now, now.Add(-40 * time.Hour)} { // a clock that is behind
			if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "10.77.0.1", CurrentTime: at}); err != nil {
				t.Errorf("at %v: %v", at.Sub(now), err)
			}
		}
		return c
	}
	first := get()
	now = now.Add(life/2 + time.Hour)
	if get() != first {
		t.Error("renewed with more than a third of its life left")
	}
	now = now.Add(life / 6)
	second := get()
	if second == first || second.Leaf.SerialNumber.Cmp(first.Leaf.SerialNumber) == 0 {
		t.Error("not renewed with less than a third left")
	}
	now = ca.Certificate.NotAfter.Add(-time.Hour) // it cannot outlive its authority
	third := get()
	if !third.Leaf.NotAfter.Equal(ca.Certificate.NotAfter) || get() != third {
		t.Errorf("ends %v, its authority %v", third.Leaf.NotAfter, ca.Certificate.NotAfter)
	}
}

func TestAuthorityIsChecked(t *testing.T) {
	good, _ := authority(t)
	other, _ := authority(t)
	to := httpboot.CertificateOptions{Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.1")}, ECDSA: true}
	leaf, err := httpboot.NewCertificates(good, to)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := leaf.Config().GetCertificate(nil)
	for name, a := range map[string]httpboot.Authority{
		"none": {}, "key of another": {Certificate: good.Certificate, Key: other.Key}, "no authority": {Certificate: c.Leaf, Key: good.Key},
	} {
		if _, err := httpboot.NewCertificates(a, to); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := httpboot.NewCertificates(good, httpboot.CertificateOptions{}); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("for nobody: %v", err)
	}
}
