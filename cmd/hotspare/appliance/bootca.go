package appliance

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/boot/httpboot"
	"hotspare/ui/api"
)

// bootCA is the CA of HTTPS boot, apart from that of the agents: it is enrolled in
// firmware, which checks no elliptic curves. Both are made when they are asked for
// first: most sites boot without HTTPS, and an RSA key takes a second.
type bootCA struct {
	dir  string
	mine httpboot.CertificateOptions

	mu     sync.Mutex
	ca     httpboot.Authority // zero until it is read or made
	config *tls.Config        // likewise
}

// The files of the boot CA in the appliance's state folder.
const (
	bootCACert = "boot-ca.crt" // PEM, 0644
	bootCAKey  = "boot-ca.key" // PEM, 0600
)

// authority reads the CA, or makes one.
func (b *bootCA) authority() (httpboot.Authority, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ensure()
}

func (b *bootCA) ensure() (httpboot.Authority, error) {
	if b.ca.Certificate != nil {
		return b.ca, nil
	}
	certPath, keyPath := filepath.Join(b.dir, bootCACert), filepath.Join(b.dir, bootCAKey)
	cert, certErr := os.ReadFile(certPath)
	key, keyErr := os.ReadFile(keyPath)
	var ca httpboot.Authority
	var err error
	switch {
	case certErr == nil && keyErr == nil:
		ca, err = httpboot.ParseAuthority(cert, key)
	case errors.Is(certErr, fs.ErrNotExist) && (keyErr == nil || errors.Is(keyErr, fs.ErrNotExist)):
		// The key is written first: a key alone is of a CA that nobody can have
		// enrolled, for its certificate was never there to be read.
		ca, err = makeBootCA(certPath, keyPath)
	default:
		// Never a new CA beside half of the old one: machines have the old one enrolled.
		err = errors.Join(certErr, keyErr)
	}
	if err != nil {
		return httpboot.Authority{}, fmt.Errorf("boot CA in %s: %w", b.dir, err)
	}
	b.ca = ca
	return ca, nil
}

func makeBootCA(certPath, keyPath string) (httpboot.Authority, error) {
	ca, err := httpboot.NewAuthority(time.Now())
	if err != nil {
		return ca, err
	}
	key, err := ca.KeyPEM()
	if err != nil {
		return ca, err
	}
	if err := writeFile(keyPath, key, 0o600); err != nil {
		return ca, err
	}
	return ca, writeFile(certPath, ca.CertificatePEM(), 0o644)
}

// secure gives the settings of TLS: the certificate is made at the first handshake.
func (b *bootCA) secure() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.config != nil {
				return b.config, nil
			}
			ca, err := b.ensure()
			if err != nil {
				b.mine.Log.Error("HTTPS boot has no certificate", "err", err)
				return nil, err
			}
			certs, err := httpboot.NewCertificates(ca, b.mine)
			if err != nil {
				b.mine.Log.Error("HTTPS boot has no certificate", "err", err)
				return nil, err
			}
			b.config = certs.Config()
			return b.config, nil
		},
	}
}

// defaultHTTPS is where HTTPS boot is served when the configuration does not say.
const defaultHTTPS = 443

// openHTTPS opens the ports of HTTPS boot, and gives the port; 0 when it is not
// served. It is on by default, for it costs nothing until a node's document asks for
// it; so it must not keep an appliance from starting that shares its host: a port
// that the configuration does not name and that somebody else holds is left out.
func (a *Appliance) openHTTPS(ctx context.Context) ([]net.Listener, uint16, error) {
	c := a.cfg.Network.HTTPS
	if c.Off {
		return nil, 0, nil
	}
	port := c.Port
	if port == 0 {
		port = defaultHTTPS
	}
	var open []net.Listener
	for _, l := range a.cfg.Network.links() {
		for _, own := range l.own() {
			ln, err := a.listen(ctx, "tcp", netip.AddrPortFrom(own, port))
			if err == nil {
				open = append(open, ln)
				continue
			}
			for _, x := range open {
				err = errors.Join(err, x.Close())
			}
			if c.Port != 0 || hotspare.CodeOf(err) != hotspare.CodePortTaken {
				return nil, 0, err
			}
			a.log.WarnContext(ctx, "HTTPS boot is not served", "err", err, "fix", "give it another port: network.https.port; or turn it off: network.https.off: true")
			return nil, 0, nil
		}
	}
	return open, port, nil
}

// openBootCA prepares the CA for the addresses of all links.
func (a *Appliance) openBootCA() {
	log := a.log.With("part", "https")
	a.bootCA = &bootCA{dir: filepath.Join(a.cfg.State, "ca"), mine: httpboot.CertificateOptions{Log: log}}
	for _, l := range a.cfg.Network.links() {
		a.bootCA.mine.Addresses = append(a.bootCA.mine.Addresses, l.own()...)
	}
}

// serveHTTPS answers on what openHTTPS has opened.
func (a *Appliance) serveHTTPS(open []net.Listener, h http.Handler) {
	for _, ln := range open {
		o := httpboot.ServerOptions{TLS: a.bootCA.secure(), Log: a.log.With("part", "https")}
		a.parts.run("HTTPS boot at "+ln.Addr().String(), func(ctx context.Context) error { return httpboot.Serve(ctx, ln, h, o) })
	}
}

// BootCA gives the certificate that firmware enrols for HTTPS boot.
func (a *Appliance) BootCA(context.Context) (api.BootCA, error) {
	ca, err := a.bootCA.authority()
	if err != nil {
		return api.BootCA{}, err
	}
	sum := sha256.Sum256(ca.Certificate.Raw)
	var print []string
	for _, x := range sum {
		print = append(print, fmt.Sprintf("%02X", x))
	}
	return api.BootCA{
		Certificate: string(ca.CertificatePEM()), SignatureList: httpboot.SignatureList(ca.Certificate),
		Fingerprint: strings.Join(print, ":"), NotAfter: ca.Certificate.NotAfter,
	}, nil
}
