package httpboot

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"hotspare"
)

// authorityLifetime is long: a certificate that is enrolled in the firmware of each
// machine is not changed often.
const authorityLifetime = 20 * 365 * 24 * time.Hour

// NewAuthority makes a boot CA. Its key is RSA: Debian's iPXE checks no other kind of
// signature, and much firmware is built without elliptic curves.
func NewAuthority(now time.Time) (Authority, error) {
	key, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return Authority{}, fmt.Errorf("key of the boot CA: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Authority{}, fmt.Errorf("boot CA: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "hotspare boot CA"}, NotBefore: now.Add(-early), NotAfter: now.Add(authorityLifetime),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return Authority{}, fmt.Errorf("boot CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return Authority{}, fmt.Errorf("boot CA: %w", err)
	}
	return Authority{Certificate: cert, Key: key}, nil
}

// CertificatePEM gives the certificate as a file.
func (a Authority) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate.Raw})
}

// KeyPEM gives the key as a file (PKCS #8, RFC 5958). It is a secret.
func (a Authority) KeyPEM() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.Key)
	if err != nil {
		return nil, fmt.Errorf("key of the boot CA: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseAuthority reads both files. An operator's own CA may stand in them: its key
// is PKCS #8 or PKCS #1.
func ParseAuthority(certificate, key []byte) (Authority, error) {
	bad := func(why string, err error) (Authority, error) {
		return Authority{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the boot CA cannot be read", Why: why, Err: err, Fix: "put a CA certificate and its key there in PEM, or take both files away: a new CA is made, which machines must enrol"}
	}
	block, _ := pem.Decode(certificate)
	if block == nil || block.Type != "CERTIFICATE" {
		return bad("the certificate's file holds no PEM certificate", nil)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return bad("the certificate is damaged", err)
	}
	block, _ = pem.Decode(key)
	if block == nil {
		return bad("the key's file holds no PEM", nil)
	}
	signer, err := parseKey(block.Bytes)
	if err != nil {
		return bad("the key is damaged or of an unknown kind", err)
	}
	a := Authority{Certificate: cert, Key: signer}
	return a, a.validate()
}

func parseKey(der []byte) (crypto.Signer, error) {
	any, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return x509.ParsePKCS1PrivateKey(der)
	}
	signer, ok := any.(crypto.Signer)
	if !ok {
		return nil, errors.New("it cannot sign")
	}
	return signer, nil
}

// The GUIDs of a signature list, as they lie in memory: EFI_CERT_X509_GUID
// a5c059a1-94e4-4aa7-87b5-ab155c2bf072, and one of ours that names the owner,
// b7bd2d4e-6a4f-4c55-9a3c-1d1c2f6f0e11.
var (
	guidX509  = [16]byte{0xa1, 0x59, 0xc0, 0xa5, 0xe4, 0x94, 0xa7, 0x4a, 0x87, 0xb5, 0xab, 0x15, 0x5c, 0x2b, 0xf0, 0x72}
	guidOwner = [16]byte{0x4e, 0x2d, 0xbd, 0xb7, 0x4f, 0x6a, 0x55, 0x4c, 0x9a, 0x3c, 0x1d, 0x1c, 0x2f, 0x6f, 0x0e, 0x11}
)

// SignatureList gives a certificate the form of the UEFI variable TlsCaCertificate:
// an EFI_SIGNATURE_LIST (UEFI specification 2.10, sections 32.4.1 and 28.10.2).
func SignatureList(c *x509.Certificate) []byte {
	const head = 16 + 4 + 4 + 4 // type, size of the list, of its header, of each signature
	size := 16 + len(c.Raw)     // owner and certificate
	var b bytes.Buffer
	b.Write(guidX509[:])
	for _, n := range []int{head + size, 0, size} {
		_ = binary.Write(&b, binary.LittleEndian, uint32(n))
	}
	b.Write(guidOwner[:])
	b.Write(c.Raw)
	return b.Bytes()
}
