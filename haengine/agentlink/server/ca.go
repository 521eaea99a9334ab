package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"hotspare/haengine/agentlink"
)

// The files of the CA in the appliance's state directory.
const (
	caCertFile = "agent-ca.crt" // PEM, 0644: it is handed to every node
	caKeyFile  = "agent-ca.key" // PEM, 0600
)

const caLifetime = 20 * 365 * 24 * time.Hour

// CA signs the certificates of the link: its own end's and the nodes'.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// EnsureCA reads the CA in dir, or makes one. Both files are written before it
// returns; a directory with one of the two is an error, never a new CA, since
// every running node has the old one pinned.
func EnsureCA(dir string) (*CA, error) {
	certPath, keyPath := filepath.Join(dir, caCertFile), filepath.Join(dir, caKeyFile)
	certPEM, certErr := os.ReadFile(certPath)
	keyPEM, keyErr := os.ReadFile(keyPath)
	switch {
	case certErr == nil && keyErr == nil:
		return parseCA(certPEM, keyPEM)
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		return makeCA(certPath, keyPath)
	case errors.Is(certErr, fs.ErrNotExist) && keyErr == nil:
		// The key is written first: a crash between the two leaves this, and
		// no node can know a certificate that was never read by anybody.
		if err := os.Remove(keyPath); err != nil {
			return nil, fmt.Errorf("agentlink: remove the key of an unfinished CA: %w", err)
		}
		return makeCA(certPath, keyPath)
	default:
		return nil, fmt.Errorf("agentlink: the CA in %s is not whole: %w", dir, errors.Join(certErr, keyErr))
	}
}

func parseCA(certPEM, keyPEM []byte) (*CA, error) {
	block, _ := pem.Decode(certPEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if block == nil || keyBlock == nil {
		return nil, errors.New("agentlink: the CA's files hold no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("agentlink: read the CA's certificate: %w", err)
	}
	key, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, fmt.Errorf("agentlink: read the CA's key: %w", err)
	}
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(&key.PublicKey) {
		return nil, errors.New("agentlink: the CA's key does not fit its certificate")
	}
	return &CA{cert: cert, key: key, pem: pem.EncodeToMemory(block)}, nil
}

func makeCA(certPath, keyPath string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "hotspare node CA"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
	if err := writeDurably(keyPath, keyPEM, 0o600); err != nil {
		return nil, fmt.Errorf("agentlink: write the CA: %w", err)
	}
	if err := writeDurably(certPath, certPEM, 0o644); err != nil {
		return nil, fmt.Errorf("agentlink: write the CA: %w", err)
	}
	return parseCA(certPEM, keyPEM)
}

// writeDurably writes a whole file or none.
func writeDurably(path string, data []byte, mode fs.FileMode) (err error) {
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path + ".new")
		}
	}()
	if _, err = tmp.Write(data); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err = tmp.Chmod(mode); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err = tmp.Sync(); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err = tmp.Close(); err != nil {
		return err
	}
	if err = os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// PEM gives the CA's certificate, for boot.json.
func (ca *CA) PEM() []byte { return append([]byte(nil), ca.pem...) }

// Fingerprint gives the SHA-256 of the CA's certificate in hexadecimal digits.
func (ca *CA) Fingerprint() string {
	sum := sha256.Sum256(ca.cert.Raw)
	return hex.EncodeToString(sum[:])
}

func (ca *CA) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// serverCertificate makes the appliance's own certificate, with a key that is
// in memory only. It is valid from the CA's first day on, since the clock of a
// node may be behind.
func (ca *CA) serverCertificate(now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: "hotspare appliance"},
		DNSNames:     []string{agentlink.ServerName},
		NotBefore:    ca.cert.NotBefore,
		NotAfter:     earlier(now.Add(5*365*24*time.Hour), ca.cert.NotAfter),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.cert.Raw}, PrivateKey: key}, nil
}

// sign makes a node's certificate from its request. Nothing of the request but
// its key is taken over.
func (ca *CA) sign(csrDER []byte, id agentlink.Identity, now time.Time, lifetime time.Duration) (der []byte, notAfter time.Time, err error) {
	csr, err := parseCSR(csrDER)
	if err != nil {
		return nil, time.Time{}, err
	}
	notAfter = earlier(now.Add(lifetime), ca.cert.NotAfter)
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: id.Node},
		URIs:         []*url.URL{id.URI()},
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     notAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err = x509.CreateCertificate(rand.Reader, template, ca.cert, csr.PublicKey, ca.key)
	return der, notAfter, err
}

func parseCSR(der []byte) (*x509.CertificateRequest, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("agentlink: certificate request: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("agentlink: the certificate request is not for an ECDSA P-256 key")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("agentlink: certificate request: %w", err)
	}
	return csr, nil
}

func keyHash(csr *x509.CertificateRequest) [32]byte {
	return sha256.Sum256(csr.RawSubjectPublicKeyInfo)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
