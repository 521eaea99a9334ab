package storage

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

// namingAuthority is the prefix of all iSCSI names of this product (RFC 7143,
// 4.2.7.4).
const namingAuthority = "iqn.2026-11.io.hotspare"

// NewUID draws an identity of 100 random bits in lower-case letters and digits
// that iSCSI names allow.
func NewUID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails since Go 1.24: it ends the process instead
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))[:20]
}

// TargetName gives the iSCSI name of the target that serves the volume with
// this uid in this installation.
func TargetName(installID, uid string) string {
	return namingAuthority + ":" + installID + ":" + uid
}

// NAA gives the 8-byte name of a volume's logical unit: type 3h, locally
// assigned (SPC-4, 7.8.6.6.5), 60 bits of a hash over installation and uid.
func NAA(installID, uid string) [8]byte {
	h := sha256.Sum256([]byte(installID + "\x00" + uid))
	var n [8]byte
	copy(n[:], h[:8])
	n[0] = 0x30 | n[0]&0x0f
	return n
}
