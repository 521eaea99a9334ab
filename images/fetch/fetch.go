// Package fetch brings image files from elsewhere: by HTTP(S), and from OCI
// registries. A download goes on where it was interrupted (RFC 9110 section 14,
// Range and If-Range), also after a restart, as long as the source still has the
// same file.
//
// Whoever may import an image lets this process open connections. So the address
// of every connection is checked when it is dialled, after the name was resolved
// and after each redirect: this machine, link-local addresses (where clouds keep
// secrets) and private networks are refused unless the configuration allows them.
// No proxy is taken from the environment.
//
// The package leaves to others: what is in the files (package images), and whether
// they are the right ones: it checks digests only where the protocol has them.
//
// Protocols: HTTP/1.1 and 2; OCI Distribution Specification 1.1 (pull), OCI Image
// Specification 1.1; the token authentication of the Docker registry.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"hotspare"
)

// Options of a Fetcher.
type Options struct {
	// Allow lists networks that may be fetched from although they are refused by
	// default; Deny is refused in any case.
	Allow, Deny []netip.Prefix
	// Proxy takes all requests, e.g. http://proxy.example:3128. It then resolves
	// the names, and the check of addresses is its own, but for hosts that are
	// given as addresses.
	Proxy string
	// CAs are trusted beside the host's own.
	CAs *x509.CertPool
	// Credentials by host, as in the URL: name or name:port.
	Credentials map[string]Credential
	// MaxBytes bounds one file. Default 1 TiB.
	MaxBytes int64
	// Timeout bounds one file's time. Default 12 h.
	Timeout time.Duration
	// Idle is how long a connection may bring nothing. Default 1 min.
	Idle time.Duration
	// Tries is how often one download begins without bringing anything. Default 8.
	Tries int
	// Wait is the pause before the second try; it doubles up to 30 s. Default 1 s.
	Wait time.Duration
	Log  *slog.Logger // nil: discard
	// Addresses gives this machine's own. Default: those of its interfaces.
	Addresses func() ([]netip.Addr, error)
}

// Credential is sent to one host only.
type Credential struct {
	User     string
	Password hotspare.Secret
}

func (o Options) withDefaults() Options {
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 40
	}
	if o.Timeout == 0 {
		o.Timeout = 12 * time.Hour
	}
	if o.Idle == 0 {
		o.Idle = time.Minute
	}
	if o.Tries == 0 {
		o.Tries = 8
	}
	if o.Wait == 0 {
		o.Wait = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Addresses == nil {
		o.Addresses = ownAddresses
	}
	return o
}

// Fetcher downloads files. It is safe for concurrent use.
type Fetcher struct {
	opts  Options
	proxy *url.URL
	http  *http.Client
}

// New makes a Fetcher. Nothing is sent yet.
func New(o Options) (*Fetcher, error) {
	f := &Fetcher{opts: o.withDefaults()}
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 20 * time.Second, ControlContext: f.control}).DialContext,
		TLSClientConfig:       &tls.Config{RootCAs: o.CAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: f.opts.Idle,
		DisableCompression:    true, // a range of a packed answer is no range of the file
		ForceAttemptHTTP2:     true,
		IdleConnTimeout:       30 * time.Second,
	}
	if o.Proxy != "" {
		u, err := url.Parse(o.Proxy)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the proxy is not a URL of http or https", Where: "images.sources.proxy", Fix: "write http://HOST:PORT"}
		}
		f.proxy, t.Proxy = u, http.ProxyURL(u)
	}
	f.http = &http.Client{Transport: t, CheckRedirect: f.redirect}
	return f, nil
}

// Close drops idle connections.
func (f *Fetcher) Close() { f.http.CloseIdleConnections() }

const maxRedirects = 5

// redirect checks where an answer leads. Its address is checked when it is
// dialled.
func (f *Fetcher) redirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return refused(req.URL, fmt.Sprintf("more than %d redirects", maxRedirects))
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return refused(req.URL, "it leads from https to "+req.URL.Scheme)
	}
	return f.check(req.URL)
}

// check looks at a URL before anything is sent.
func (f *Fetcher) check(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return refused(u, fmt.Sprintf("the scheme %q is not taken", u.Scheme))
	case u.Hostname() == "":
		return refused(u, "it names no host")
	case u.User != nil:
		return refused(u, "it carries a password, which would be shown and logged: name it in the configuration")
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		return f.guard(a, u.Host)
	}
	return nil
}

// control sees every address that is dialled, after the name was resolved: a name
// that leads to another address the second time is no way around.
func (f *Fetcher) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	if f.proxy != nil {
		return nil // all connections go to it
	}
	if !strings.HasPrefix(network, "tcp") {
		return refusedHost(address, "it is not reached by TCP")
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return refusedHost(address, "it is no address")
	}
	return f.guard(a.Addr(), address)
}

// guard says whether an address may be fetched from.
func (f *Fetcher) guard(a netip.Addr, shown string) error {
	a = a.Unmap().WithZone("")
	in := func(all []netip.Prefix) bool {
		for _, p := range all {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	if in(f.opts.Deny) {
		return refusedHost(shown, "it is in images.sources.deny")
	}
	if in(f.opts.Allow) {
		return nil
	}
	own, err := f.opts.Addresses()
	if err != nil {
		return fmt.Errorf("fetch: this machine's addresses: %w", err)
	}
	for _, o := range own {
		if o.Unmap().WithZone("") == a {
			return refusedHost(shown, "it is an address of the appliance itself")
		}
	}
	if why := special(a); why != "" {
		return refusedHost(shown, why)
	}
	return nil
}

// nets are addresses that do not lead to the public Internet (IANA special-purpose
// registries, RFC 6890).
var nets = []struct{ prefix, is string }{
	{"0.0.0.0/8", "of this network"}, {"10.0.0.0/8", "private"}, {"100.64.0.0/10", "of a provider's inside"}, {"127.0.0.0/8", "of this machine"},
	{"169.254.0.0/16", "link-local"}, {"172.16.0.0/12", "private"}, {"192.0.0.0/24", "reserved"}, {"192.168.0.0/16", "private"}, {"198.18.0.0/15", "reserved"},
	{"224.0.0.0/4", "multicast"}, {"240.0.0.0/4", "reserved"}, {"::/127", "of this machine"}, {"fc00::/7", "private"}, {"fe80::/10", "link-local"},
	{"ff00::/8", "multicast"}, {"64:ff9b::/96", "a translated one"}, {"64:ff9b:1::/48", "a translated one"}, {"2002::/16", "a tunnelled one"}, {"2001::/32", "a tunnelled one"},
}

func special(a netip.Addr) string {
	for _, n := range nets {
		if netip.MustParsePrefix(n.prefix).Contains(a) {
			return "its address is " + n.is
		}
	}
	return ""
}

func ownAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

func refused(u *url.URL, why string) error { return refusedHost(shown(u), why) }

func refusedHost(where, why string) error {
	return &hotspare.Error{Code: hotspare.CodeImageSource, What: "images are not taken from there", Where: where, Why: why,
		Fix: "if it is meant, add its network to images.sources.allow in the configuration"}
}

// shown gives a URL without what may be secret in it.
func shown(u *url.URL) string {
	c := *u
	c.User = nil
	if c.RawQuery != "" {
		c.RawQuery = "..."
	}
	c.Fragment = ""
	return c.String()
}

func failed(where, why string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeImageFetch, What: "the download failed", Where: where, Why: why, Fix: "look at the source; the same import goes on where this one ended", Err: err}
}

// lasting says whether another try cannot help.
func lasting(err error) bool {
	var mine *hotspare.Error
	return errors.As(err, &mine) || errors.Is(err, context.Canceled)
}
