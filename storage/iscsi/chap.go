package iscsi

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"

	"hotspare"
)

// CHAP in iSCSI (RFC 7143, 12.1.3; RFC 1994). The one algorithm that all
// initiators speak is MD5, number 5.
const (
	CHAPAlgorithmMD5 = "5"
	// ChallengeSize is the length of the challenges that we send.
	ChallengeSize = 16
	// MaxChallenge is the longest challenge that the standard allows.
	MaxChallenge = 1024
)

// ErrCHAP is wrapped by every refusal of an authentication exchange.
var ErrCHAP = errors.New("iscsi: CHAP")

// CHAPResponse computes the response to a challenge: MD5 over identifier,
// secret and challenge.
func CHAPResponse(id byte, secret hotspare.Secret, challenge []byte) []byte {
	h := md5.New()
	h.Write([]byte{id})
	h.Write([]byte(secret.Reveal()))
	h.Write(challenge)
	return h.Sum(nil)
}

// Challenge is one challenge that we sent and await the answer of.
type Challenge struct {
	ID    byte
	Value []byte
}

// NewChallenge draws identifier and value from crypto/rand.
func NewChallenge() (Challenge, error) {
	b := make([]byte, 1+ChallengeSize)
	if _, err := rand.Read(b); err != nil {
		return Challenge{}, fmt.Errorf("%w: no randomness: %w", ErrCHAP, err)
	}
	return Challenge{ID: b[0], Value: b[1:]}, nil
}

// Add appends CHAP_I and CHAP_C to ps.
func (c Challenge) Add(ps *Pairs) {
	ps.Add("CHAP_I", fmt.Sprint(c.ID))
	ps.Add("CHAP_C", FormatBinary(c.Value))
}

// ParseChallenge reads CHAP_I and CHAP_C of the peer.
func ParseChallenge(ps Pairs) (Challenge, error) {
	i, okI := ps.Get("CHAP_I")
	v, okC := ps.Get("CHAP_C")
	if !okI || !okC {
		return Challenge{}, fmt.Errorf("%w: challenge lacks CHAP_I or CHAP_C", ErrCHAP)
	}
	id, err := ParseNumber(i)
	if err != nil || id > 255 {
		return Challenge{}, fmt.Errorf("%w: identifier %.20q", ErrCHAP, i)
	}
	value, err := ParseBinary(v, MaxChallenge)
	if err != nil {
		return Challenge{}, fmt.Errorf("%w: challenge: %w", ErrCHAP, err)
	}
	return Challenge{ID: byte(id), Value: value}, nil
}

// Verify says whether the peer's response (CHAP_R) answers c under secret, in
// constant time. An empty secret never verifies.
func (c Challenge) Verify(secret hotspare.Secret, response string) bool {
	got, err := ParseBinary(response, md5.Size)
	if err != nil || secret.IsZero() {
		return false
	}
	return subtle.ConstantTimeCompare(got, CHAPResponse(c.ID, secret, c.Value)) == 1
}

// Answer appends CHAP_N and CHAP_R, our answer to the peer's challenge c. It
// refuses to answer a challenge that equals one of ours (reflection, RFC 7143,
// 9.2.1) and a pair of equal secrets in mutual authentication.
func (c Challenge) Answer(ps *Pairs, name string, secret hotspare.Secret, ours *Challenge, theirs hotspare.Secret) error {
	if ours != nil {
		if subtle.ConstantTimeCompare(ours.Value, c.Value) == 1 {
			return fmt.Errorf("%w: the peer reflected our challenge", ErrCHAP)
		}
		if secret.Equal(theirs) {
			return fmt.Errorf("%w: both directions have the same secret", ErrCHAP)
		}
	}
	ps.Add("CHAP_N", name)
	ps.Add("CHAP_R", FormatBinary(CHAPResponse(c.ID, secret, c.Value)))
	return nil
}
