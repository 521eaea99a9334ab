package boot

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

// tokenLen is the length of a token's text: 32 bytes in base64url.
const tokenLen = 43

// NewToken reads 256 bits from random (crypto/rand.Reader in production) and
// gives them as 43 characters that need no quoting in a URL or script. A boot
// token opens the boot files of one boot attempt; it is not the join secret.
func NewToken(random io.Reader) (string, error) {
	var b [32]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return "", fmt.Errorf("read random bytes for a boot token: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(b[:]), nil
}

// ValidToken says whether s has the form of a token.
func ValidToken(s string) bool {
	if len(s) != tokenLen {
		return false
	}
	_, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil
}

// TokenDigest is what to store and to look tokens up by: a look-up by digest
// leaks nothing about the token through its timing.
func TokenDigest(token string) [sha256.Size]byte { return sha256.Sum256([]byte(token)) }

// SameToken compares in constant time; an empty or malformed token equals none.
func SameToken(a, b string) bool {
	if !ValidToken(a) || !ValidToken(b) {
		return false
	}
	da, db := TokenDigest(a), TokenDigest(b)
	return subtle.ConstantTimeCompare(da[:], db[:]) == 1
}

// ShortToken gives the few characters of a token that logs and traces may show.
func ShortToken(token string) string {
	if len(token) < 12 {
		return "…"
	}
	return token[:6] + "…"
}

// ErrSpent is what a source of artefacts returns for a join archive that was
// taken before.
var ErrSpent = errors.New("the join archive of this boot was fetched before")
