package hotspare

import (
	"crypto/subtle"
	"fmt"
	"io"
)

// redacted is what every printed or marshalled Secret shows.
const redacted = "[secret]"

// Secret is a password, key or token. It never leaves the process by accident:
// fmt, slog, JSON, YAML and text encoders all see "[secret]". Code that needs
// the value calls Reveal, which makes each such place easy to find.
type Secret struct{ value string }

// NewSecret wraps a clear value.
func NewSecret(clear string) Secret { return Secret{value: clear} }

// Reveal gives the clear value.
func (s Secret) Reveal() string { return s.value }

// IsZero says whether no secret is set.
func (s Secret) IsZero() bool { return s.value == "" }

// Equal compares in constant time for equal lengths.
func (s Secret) Equal(o Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.value), []byte(o.value)) == 1
}

// String gives "[secret]", or "" when no secret is set.
func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return redacted
}

// Format keeps every verb of fmt from printing the value, those that do not
// ask for String (such as %d) too.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText keeps encoders of text, JSON and YAML from printing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes a clear value, as configuration files hold it.
func (s *Secret) UnmarshalText(b []byte) error {
	s.value = string(b)
	return nil
}
