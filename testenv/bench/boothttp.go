package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/boot"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
)

// Where the HTTP servers of the run listen.
const (
	ownHTTP, ownTLS     = "127.0.0.1:8091", "127.0.0.1:8092"
	nginxHTTP, nginxTLS = "127.0.0.1:8093", "127.0.0.1:8094"
	benchToken          = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	benchPath           = "/boot/" + benchToken + "/kernel" // nginx has a file of this name
)

// httpFigures sets the boot file server beside nginx: one large file, 64 clients
// at once, and TLS with the same version, cipher and certificate.
func httpFigures(ctx context.Context, o options) (_ []figure, err error) {
	w, err := newWeb(ctx, o)
	if err != nil {
		return nil, err
	}
	defer w.close()
	one := &series{name: fmt.Sprintf("HTTP, one file of %d MiB", w.size>>20), unit: "MB/s", peer: "nginx", goal: 1, better: "higher"}
	many := &series{name: "HTTP, 64 clients at once", unit: "MB/s", peer: "nginx", goal: 1, better: "higher"}
	secure := &series{name: fmt.Sprintf("HTTPS, one file of %d MiB", w.size>>20), unit: "MB/s", peer: "nginx", goal: 0.8, better: "higher"}
	crowd := &series{name: "HTTPS, 64 clients at once", unit: "MB/s", peer: "nginx", goal: 0.8, better: "higher"}
	var out []figure
	for _, m := range []struct {
		*series
		at, theirs string
		measure    func(addr string) (float64, error)
	}{
		{one, ownHTTP, nginxHTTP, func(a string) (float64, error) { return w.once(a, o.slice/2, w.plain) }},
		{many, ownHTTP, nginxHTTP, func(a string) (float64, error) { return w.during(ctx, a, 64, o.slice, w.plain) }},
		{secure, ownTLS, nginxTLS, func(a string) (float64, error) { return w.once(a, o.slice/2, w.secure) }},
		{crowd, ownTLS, nginxTLS, func(a string) (float64, error) { return w.during(ctx, a, 64, o.slice, w.secure) }},
	} {
		if !o.pattern.MatchString(m.name) {
			continue
		}
		for range o.rounds {
			for _, p := range []struct {
				name, addr string
				to         *[]float64
			}{{ours, m.at, &m.own}, {"nginx", m.theirs, &m.other}} {
				before := w.cpu(p.name)
				v, err := m.measure(p.addr)
				if err != nil {
					return out, fmt.Errorf("%s, %s: %w", p.name, m.name, err)
				}
				if o.verbose {
					fmt.Printf("%-9s %-40s %8.0f MB/s, the server used %v\n", p.name, m.name, v, w.cpu(p.name)-before)
				}
				*p.to = append(*p.to, v)
			}
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
		}
		out = append(out, m.figure())
	}
	return out, nil
}

// web is the two servers over the same file and certificate.
type web struct {
	peers []*peer
	size  int64
	roots *x509.CertPool
}

func newWeb(ctx context.Context, o options) (_ *web, err error) {
	w := &web{size: 1 << 30, roots: x509.NewCertPool()}
	if o.quick {
		w.size = 128 << 20
	}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	root := filepath.Join(o.memory, "www")
	file := filepath.Join(root, filepath.FromSlash(benchPath))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	sum, err := writeRandom(file, w.size)
	if err != nil {
		return nil, err
	}
	cert, key := filepath.Join(o.memory, "cert.pem"), filepath.Join(o.memory, "key.pem")
	if err := w.certificate(cert, key); err != nil {
		return nil, err
	}
	nginx, err := find("nginx", "nginx")
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(o.memory, "nginx.conf")
	err = os.WriteFile(conf, fmt.Appendf(nil, `daemon off; worker_processes auto; error_log /dev/null; pid %[1]s/nginx.pid; user root;
events { worker_connections 4096; }
http {
	sendfile on; tcp_nopush on; access_log off; keepalive_requests 1000000; default_type application/octet-stream;
	client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
	server { listen %[2]s; root %[6]s; }
	server { listen %[3]s ssl; root %[6]s; ssl_certificate %[4]s; ssl_certificate_key %[5]s; ssl_protocols TLSv1.2 TLSv1.3; }
}
`, o.memory, nginxHTTP, nginxTLS, cert, key, root), 0o600)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct {
		name         string
		cmd          *exec.Cmd
		plain, crypt string
	}{
		{ours, exec.CommandContext(ctx, "/proc/self/exe", "serve-http", "-listen", ownHTTP, "-tls", ownTLS, "-file", file, "-cert", cert, "-key", key), ownHTTP, ownTLS},
		{"nginx", exec.CommandContext(ctx, nginx, "-c", conf, "-e", "/dev/null"), nginxHTTP, nginxTLS},
	} {
		p, err := runPeer(ctx, s.name, s.cmd, func() error { return errors.Join(answers(s.plain), answers(s.crypt)) })
		if err != nil {
			return nil, err
		}
		w.peers = append(w.peers, p)
		if err := w.same(s.plain, s.crypt, sum); err != nil { // both give the file, before anybody is fast
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return w, nil
}

func (w *web) close() {
	for _, p := range w.peers {
		p.end()
	}
}

// cpu gives the processor time that a server and its workers have used.
func (w *web) cpu(name string) time.Duration {
	var sum time.Duration
	for _, p := range w.peers {
		if p.name != name {
			continue
		}
		pids := []int{p.cmd.Process.Pid}
		kids, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pids[0], pids[0]))
		for _, f := range strings.Fields(string(kids)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		for _, pid := range pids {
			d, cerr := (&peer{cmd: &exec.Cmd{Process: &os.Process{Pid: pid}}}).cpu()
			if err = errors.Join(err, cerr); err == nil {
				sum += d
			}
		}
	}
	return sum
}

func answers(addr string) error {
	c, err := net.Dial("tcp4", addr)
	if err == nil {
		c.Close()
	}
	return err
}

func writeRandom(path string, size int64) (sum [32]byte, err error) {
	f, err := os.Create(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.Reader, size); err != nil {
		return sum, err
	}
	return [32]byte(h.Sum(nil)), f.Chmod(0o644)
}

// certificate writes an RSA certificate with its key, made by the product's own
// func.
func (w *web) certificate(cert, key string) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(240 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return err
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	w.roots.AddCert(ca)
	certs, err := httpboot.NewCertificates(httpboot.Authority{Certificate: ca, Key: k}, httpboot.CertificateOptions{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		return err
	}
	c, err := certs.Config().GetCertificate(nil)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o644),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600))
}

// clientConfig leaves both servers one choice: what an nginx of Debian 12 and
// firmware have in common.
func (w *web) clientConfig() *tls.Config {
	return &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}, CurvePreferences: []tls.CurveID{tls.X25519}}
}

// same fetches the file by both ways and compares it.
func (w *web) same(plain, crypt string, sum [32]byte) error {
	t := &http.Transport{TLSClientConfig: w.clientConfig()}
	defer t.CloseIdleConnections()
	for _, url := range []string{"http://" + plain + benchPath, "https://" + crypt + benchPath} {
		resp, err := (&http.Client{Transport: t}).Get(url)
		if err != nil {
			return err
		}
		h := sha256.New()
		n, err := io.Copy(h, resp.Body)
		resp.Body.Close()
		if err != nil || n != w.size || [32]byte(h.Sum(nil)) != sum {
			return fmt.Errorf("%s: %s, %d bytes, not the file (%w)", url, resp.Status, n, err)
		}
	}
	return nil
}

// once gives the rate of one whole file after the other, each on a connection of
// its own, for some time.
func (w *web) once(addr string, d time.Duration, fetch func(addr string, more func() bool) (int64, error)) (float64, error) {
	var total int64
	start := time.Now()
	for {
		n, err := fetch(addr, func() bool { return false })
		if err != nil {
			return 0, err
		}
		total += n
		if took := time.Since(start); took >= d {
			return float64(total) / 1e6 / took.Seconds(), nil
		}
	}
}

// during lets n clients fetch the file again and again on connections of their
// own, and gives what all of them took together.
func (w *web) during(ctx context.Context, addr string, n int, d time.Duration, fetch func(addr string, more func() bool) (int64, error)) (float64, error) {
	var total atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	start := time.Now()
	end := start.Add(d)
	for i := range n {
		wg.Go(func() {
			got, err := fetch(addr, func() bool { return ctx.Err() == nil && time.Now().Before(end) })
			total.Add(got)
			errs[i] = err
		})
	}
	wg.Wait()
	return float64(total.Load()) / 1e6 / time.Since(start).Seconds(), errors.Join(errs...)
}

// stopAfter is how much a client of many looks at between two questions for the
// time.
const stopAfter = 4 << 20

// plain fetches by HTTP and drops the bytes inside the kernel: MSG_TRUNC. While
// more says so it goes on with the file and then begins anew; otherwise it takes
// one whole file.
func (w *web) plain(addr string, more func() bool) (int64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	ap := netip.MustParseAddrPort(addr)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: ap.Addr().As4(), Port: int(ap.Port())}); err != nil {
		return 0, err
	}
	buf := make([]byte, 1<<20)
	var total int64
	limited := more()
	for {
		left, err := ask(wire(fd), addr, w.size, buf)
		if err != nil {
			return total, err
		}
		total += w.size - left
		seen := int64(0)
		for left > 0 {
			n, _, err := unix.Recvfrom(fd, buf[:min(int64(len(buf)), left)], unix.MSG_TRUNC)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				return total, fmt.Errorf("%d bytes are missing: %w", left, errors.Join(err, io.ErrUnexpectedEOF))
			}
			left -= int64(n)
			total += int64(n)
			if seen += int64(n); limited && seen > stopAfter {
				if seen = 0; !more() {
					return total, nil
				}
			}
		}
		if !more() {
			return total, nil
		}
	}
}

// ask sends one request and gives how many bytes of the file have not come with
// the head of the answer.
func ask(c io.ReadWriter, host string, size int64, buf []byte) (int64, error) {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", benchPath, host); err != nil {
		return 0, err
	}
	r := bufio.NewReaderSize(c, 4096)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength != size {
		return 0, fmt.Errorf("%s, %d bytes", resp.Status, resp.ContentLength)
	}
	n, err := io.ReadFull(r, buf[:r.Buffered()])
	return size - int64(n), err
}

// secure is plain over TLS.
func (w *web) secure(addr string, more func() bool) (int64, error) {
	c, err := tls.Dial("tcp4", addr, w.clientConfig())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 64<<10)
	var total int64
	limited := more()
	for {
		left, err := ask(c, addr, w.size, buf)
		if err != nil {
			return total, err
		}
		total += w.size - left
		seen := int64(0)
		for left > 0 {
			n, err := c.Read(buf[:min(int64(len(buf)), left)])
			left -= int64(n)
			total += int64(n)
			if err != nil {
				return total, fmt.Errorf("%d bytes are missing: %w", left, err)
			}
			if seen += int64(n); limited && seen > stopAfter {
				if seen = 0; !more() {
					return total, nil
				}
			}
		}
		if !more() {
			return total, nil
		}
	}
}

// serveHTTP is our server alone: `bench serve-http`. The file is the kernel of
// the one boot that there is.
func serveHTTP(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("serve-http", flag.ContinueOnError)
	listen := fs.String("listen", "", "")
	secure := fs.String("tls", "", "")
	file := fs.String("file", "", "")
	cert := fs.String("cert", "", "")
	key := fs.String("key", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	h, err := httpboot.New(httpboot.Options{
		Site: boot.Site{Server: netip.MustParseAddr("127.0.0.1"), Loaders: boot.DefaultLoaders()}, Director: oneBoot{}, Source: oneFile(*file),
		Script: ipxe.Write, Loader: func(string) (io.ReadSeekCloser, error) { return os.Open(*file) }, Recorder: boot.NewRecorder(0, 0), Log: log,
	})
	if err != nil {
		return err
	}
	// The settings of the product, but for the certificate that nginx has too.
	certs := (&httpboot.Certificates{}).Config()
	certs.GetCertificate, certs.Certificates = nil, []tls.Certificate{pair}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, l := range []struct {
		addr string
		tls  *tls.Config
	}{{*listen, nil}, {*secure, certs}} {
		ln, err := net.Listen("tcp4", l.addr)
		if err != nil {
			return err
		}
		wg.Go(func() {
			errs[i] = httpboot.Serve(ctx, ln, h, httpboot.ServerOptions{PerAddress: 4096, TLS: l.tls, Log: log})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

type oneBoot struct{}

func (oneBoot) Assign(context.Context, boot.Request) (boot.Assignment, error) {
	return boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: benchToken, Kernel: "vmlinuz", Initrd: "initrd", Epoch: 1}, nil
}

type oneFile string

func (f oneFile) Open(context.Context, string, boot.Artefact) (httpboot.File, error) {
	file, err := os.Open(string(f))
	return httpboot.File{ReadSeekCloser: file, ETag: `"bench"`}, err
}
