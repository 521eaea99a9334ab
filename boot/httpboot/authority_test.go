package httpboot_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot/httpboot"
)

// A boot CA survives its files, signs what OpenSSL believes, and refuses a key that
// is not its own.
func TestBootCA(t *testing.T) {
	a, err := httpboot.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := a.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	b, err := httpboot.ParseAuthority(a.CertificatePEM(), key)
	if err != nil || !b.Certificate.Equal(a.Certificate) {
		t.Fatalf("read again: %v", err)
	}
	certs, err := httpboot.NewCertificates(b, httpboot.CertificateOptions{Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")}})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := certs.Config().GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	ca, server := write("ca.pem", a.CertificatePEM()), write("leaf.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}))
	for _, ip := range []string{"10.77.0.1", "fd77::1"} {
		out, err := exec.Command("openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", ip, "-CAfile", ca, server).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", ip, err, out)
		}
	}
	if out, err := exec.Command("openssl", "verify", "-verify_ip", "10.77.0.2", "-CAfile", ca, server).CombinedOutput(); err == nil {
		t.Fatalf("it is good for another address: %s", out)
	}

	other, err := httpboot.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	strange, err := other.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2][]byte{
		"another CA's key": {a.CertificatePEM(), strange},
		"no certificate":   {key, key},
		"no key":           {a.CertificatePEM(), nil},
		"cut off":          {a.CertificatePEM(), key[:len(key)/2]},
		"no CA":            {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}), key},
	} {
		if _, err := httpboot.ParseAuthority(c[0], c[1]); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), strings.Split(string(key), "\n")[2]) {
			t.Errorf("%s: the error shows the key", name)
		}
	}
}

// An operator's own CA may have an older form of key, or an elliptic one.
func TestAnOperatorsOwnCA(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := httpboot.ParseAuthority(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		t.Fatal(err)
	}
}

// The list is what the firmware's variable wants: efitools' and edk2's layout, byte
// for byte around the certificate.
func TestSignatureList(t *testing.T) {
	c := &x509.Certificate{Raw: []byte("certificate")}
	got := hex.EncodeToString(httpboot.SignatureList(c))
	want := "a159c0a5e494a74a87b5ab155c2bf072" + "37000000" + "00000000" + "1b000000" + "4e2dbdb74f6a554c9a3c1d1c2f6f0e11" + hex.EncodeToString(c.Raw)
	if got != want {
		t.Fatalf("\n%s\n%s", got, want)
	}
}
