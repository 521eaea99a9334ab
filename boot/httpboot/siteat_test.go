package httpboot_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"hotspare/boot"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
)

// What a script names is at the address that was asked, over either IP, and over TLS
// for a node that fetches everything so; without TLS such a node gets nothing.
func TestAnswersNameTheAddressThatWasAsked(t *testing.T) {
	assigned := boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: goodToken, Kernel: "vmlinuz", Initrd: "initrd", Epoch: 9}
	site := boot.Site{Server: netip.MustParseAddr("10.77.0.1"), HTTPPort: 8080, HTTPSPort: 8443, Loaders: boot.DefaultLoaders()}
	var mu sync.Mutex
	h, err := httpboot.New(httpboot.Options{
		Site:   site,
		SiteAt: func(own netip.Addr) boot.Site { s := site; s.Server = own; return s },
		Director: directorFunc(func(boot.Request) (boot.Assignment, error) {
			mu.Lock()
			defer mu.Unlock()
			return assigned, nil
		}),
		Source: sourceFunc(func(string, boot.Artefact) (httpboot.File, error) { return httpboot.File{}, io.EOF }),
		Script: ipxe.Write, Loader: func(string) (io.ReadSeekCloser, error) { return nil, io.EOF },
	})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := httpboot.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	certs, err := httpboot.NewCertificates(ca, httpboot.CertificateOptions{Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	for _, c := range []struct {
		listen string
		https  boot.HTTPS
		secure bool
		want   string
	}{
		{"127.0.0.1:0", boot.HTTPSNone, false, "http://127.0.0.1:8080/boot/"},
		{"127.0.0.1:0", boot.HTTPSLoader, true, "http://127.0.0.1:8080/boot/"},
		{"127.0.0.1:0", boot.HTTPSAll, true, "https://127.0.0.1:8443/boot/"},
		{"127.0.0.1:0", boot.HTTPSAll, false, "this request came without TLS"},
		{"[::1]:0", boot.HTTPSNone, false, "http://[::1]:8080/boot/"},
		{"[::1]:0", boot.HTTPSAll, true, "https://[::1]:8443/boot/"},
	} {
		mu.Lock()
		assigned.HTTPS = c.https
		mu.Unlock()
		ln, err := net.Listen("tcp", c.listen)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		o, scheme := httpboot.ServerOptions{}, "http://"
		if c.secure {
			o.TLS, scheme = certs.Config(), "https://"
		}
		go func() { ended <- httpboot.Serve(ctx, ln, h, o) }()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, scheme+ln.Addr().String()+"/ipxe/"+goodToken, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("User-Agent", "iPXE/1.21.1")
		res, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !strings.Contains(string(b), c.want) {
			t.Errorf("%+v: %v\n%s", c, err, b)
		}
		if c.https == boot.HTTPSAll && !c.secure && strings.Contains(string(b), "/boot/") {
			t.Errorf("it was told where its files are:\n%s", b)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
