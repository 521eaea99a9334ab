package httpboot

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"sync"
	"time"

	"hotspare"
)

// Authority signs the boot server's certificate. Its certificate is what an
// operator enrols in the firmware.
type Authority struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// CertificateOptions say for whom a certificate is. Addresses or Names must be
// given.
type CertificateOptions struct {
	Names     []string
	Addresses []netip.Addr  // firmware is told an address, not a name
	Lifetime  time.Duration // 0: 90 days; renewed when a third is left
	// ECDSA makes a P-256 key. The default is RSA with 2048 bits, which every
	// firmware and iPXE can check.
	ECDSA bool

	Log *slog.Logger     // nil: discard
	Now func() time.Time // nil: time.Now
}

func (o CertificateOptions) withDefaults() CertificateOptions {
	if o.Lifetime <= 0 {
		o.Lifetime = 90 * 24 * time.Hour
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// early is how far certificates begin in the past: a machine's clock may be
// behind, in its own time zone for one.
const early = 48 * time.Hour

// Certificates keeps a certificate of the boot server that is always good: it
// makes a new one before the old one ends. It keeps nothing on disk.
type Certificates struct {
	a Authority
	o CertificateOptions

	mu      sync.Mutex
	current *tls.Certificate
	tried   time.Time // the last renewal that failed
}

// NewCertificates makes the first certificate.
func NewCertificates(a Authority, o CertificateOptions) (*Certificates, error) {
	o = o.withDefaults()
	if err := a.validate(); err != nil {
		return nil, err
	}
	if len(o.Names)+len(o.Addresses) == 0 {
		return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the boot server has no certificate", Where: "httpboot.CertificateOptions", Why: "it is for no address and no name"}
	}
	c := &Certificates{a: a, o: o}
	first, err := a.issue(o)
	if err != nil {
		return nil, err
	}
	c.current = first
	return c, nil
}

// Config gives the TLS settings: 1.2 and 1.3, with the key exchanges and ciphers
// of older firmware behind the good ones. HTTP/1.1 only.
func (c *Certificates) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		GetCertificate: c.get,
		// Go sorts them by its own preference and leaves TLS 1.3 alone. Those with
		// RSA key exchange or CBC are all that an iPXE before 2024 or an old edk2
		// has.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
		},
	}
}

// get gives the certificate, a new one when a third of its life is left. When
// that fails the old one is used to its end, and it is tried again each minute.
func (c *Certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.o.Now()
	leaf := c.current.Leaf
	if now.Add(c.o.Lifetime/3).Before(leaf.NotAfter) || now.Sub(c.tried) < time.Minute {
		return c.current, nil
	}
	next, err := c.a.issue(c.o)
	if err != nil {
		c.tried = now
		c.o.Log.Error("the boot server's certificate cannot be renewed", "ends", leaf.NotAfter, "err", err)
		return c.current, nil
	}
	if !next.Leaf.NotAfter.After(leaf.NotAfter) { // the authority itself ends
		c.tried = now
		c.o.Log.Error("the boot server's certificate cannot be renewed: its authority ends", "ends", leaf.NotAfter)
		return c.current, nil
	}
	c.current = next
	return next, nil
}

func (a Authority) validate() error {
	bad := func(why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the boot server has no certificate", Where: "httpboot.Authority", Why: why}
	}
	if a.Certificate == nil || a.Key == nil {
		return bad("its authority is missing")
	}
	if !a.Certificate.IsCA {
		return bad("its authority's certificate is no authority's")
	}
	if k, ok := a.Certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(a.Key.Public()) {
		return bad("its authority's key does not fit the certificate")
	}
	return nil
}

// issue makes a key and signs its certificate.
func (a Authority) issue(o CertificateOptions) (*tls.Certificate, error) {
	key, err := newKey(o.ECDSA)
	if err != nil {
		return nil, fmt.Errorf("key of the boot server: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("certificate of the boot server: %w", err)
	}
	now := o.Now()
	t := &x509.Certificate{
		SerialNumber: serial, DNSNames: o.Names, NotBefore: now.Add(-early), NotAfter: now.Add(o.Lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	if !o.ECDSA {
		t.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	for _, ip := range o.Addresses {
		t.IPAddresses = append(t.IPAddresses, ip.AsSlice())
	}
	if len(o.Names) > 0 {
		t.Subject = pkix.Name{CommonName: o.Names[0]}
	} else {
		t.Subject = pkix.Name{CommonName: o.Addresses[0].String()}
	}
	if ca := a.Certificate; t.NotBefore.Before(ca.NotBefore) {
		t.NotBefore = ca.NotBefore
	}
	if ca := a.Certificate; t.NotAfter.After(ca.NotAfter) {
		t.NotAfter = ca.NotAfter
	}
	if !t.NotAfter.After(now) {
		return nil, errors.New("certificate of the boot server: its authority has ended")
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.Certificate, key.Public(), a.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate of the boot server: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate of the boot server: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.Certificate.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func newKey(ec bool) (crypto.Signer, error) {
	if ec {
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return rsa.GenerateKey(rand.Reader, 2048)
}
