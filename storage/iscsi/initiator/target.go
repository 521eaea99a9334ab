package initiator

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"hotspare"
)

// Options of an Initiator.
type Options struct {
	// Log gets what happens to sessions; nil discards it.
	Log *slog.Logger
	// LoginTimeout bounds one try: connect, log in, start. Default 10 s.
	LoginTimeout time.Duration
	// DeviceTimeout bounds the wait for the block device after the first
	// log-in. Default 30 s.
	DeviceTimeout time.Duration
	// RetryMax is the longest pause between two tries to recover a session; the
	// first pause is a tenth of it. Default 1 s.
	RetryMax time.Duration
	// RefusedRetry is the pause after a refusal (authentication, authorisation,
	// unknown target). Default 5 s; below zero, no further try is made.
	RefusedRetry time.Duration
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&o.LoginTimeout, 10*time.Second)
	setDefault(&o.DeviceTimeout, 30*time.Second)
	setDefault(&o.RetryMax, time.Second)
	setDefault(&o.RefusedRetry, 5*time.Second)
	return o
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

// Target says where to log in, to what, and as whom.
type Target struct {
	Portal        netip.AddrPort
	IQN           string // the target's name
	LUN           uint64 // as Linux counts them; volumes of the appliance have 0
	InitiatorName string

	// User and Secret are for CHAP; without a secret no authentication is
	// offered. With one, a target that does not ask for it is refused.
	User   string
	Secret hotspare.Secret
	// TargetUser and TargetSecret make the target prove itself too (mutual
	// CHAP). An empty TargetUser accepts any name with the right secret.
	TargetUser   string
	TargetSecret hotspare.Secret

	// Digests asks for CRC32C over headers and data. The target may decline.
	Digests bool
	// ReplacementTimeout is how long the kernel holds I/O back while the
	// session is lost, before it fails it. Default 24 h; below zero for ever.
	ReplacementTimeout time.Duration
	// IdleTime is the silence after which the kernel asks the target for a sign
	// of life (default 2 s), PingTimeout how long it waits for it (default 3 s).
	// Whole seconds.
	IdleTime, PingTimeout time.Duration
}

func (t Target) withDefaults() Target {
	setDefault(&t.ReplacementTimeout, 24*time.Hour)
	setDefault(&t.IdleTime, 2*time.Second)
	setDefault(&t.PingTimeout, 3*time.Second)
	return t
}

func (t *Target) validate() error {
	switch {
	case !t.Portal.IsValid() || t.Portal.Port() == 0:
		return t.invalid("the portal is not an address with a port", errors.New(t.Portal.String()))
	case t.TargetSecret.Reveal() != "" && t.Secret.IsZero():
		return t.invalid("the target's secret is given without the initiator's", nil)
	case !t.Secret.IsZero() && t.User == "":
		return t.invalid("the secret is given without a user", nil)
	case !t.Secret.IsZero() && t.Secret.Equal(t.TargetSecret):
		return t.invalid("both directions of CHAP have the same secret", nil)
	case t.LUN > 0x3fff:
		return t.invalid("the logical unit number is above 16383", nil)
	case t.IdleTime < 0 || t.PingTimeout < 0:
		return t.invalid("a time is negative", nil)
	}
	for _, name := range []string{t.IQN, t.InitiatorName} {
		if err := checkName(name); err != nil {
			return t.invalid("an iSCSI name is not valid", err)
		}
	}
	if strings.ContainsRune(t.User, 0) {
		return t.invalid("the user has a NUL byte", nil)
	}
	return nil
}

// checkName holds names to RFC 7143, section 4.2.7: type, 223 bytes, lower case
// letters, digits, dot, hyphen and colon.
func checkName(n string) error {
	if len(n) == 0 || len(n) > 223 {
		return fmt.Errorf("%.40q has %d bytes, 1 to 223 are allowed", n, len(n))
	}
	if !strings.HasPrefix(n, "iqn.") && !strings.HasPrefix(n, "eui.") && !strings.HasPrefix(n, "naa.") {
		return fmt.Errorf("%.40q begins with none of iqn., eui., naa. as a name must", n)
	}
	for i := range len(n) {
		c := n[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c < 'A' || c > 'F') && c != '.' && c != '-' && c != ':' {
			return fmt.Errorf("%.40q has the byte %q", n, c)
		}
	}
	return nil
}

func (t *Target) invalid(what string, err error) error {
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: what, Where: "log-in to " + t.IQN,
		Fix: "correct the claim", Err: err,
	}
}

// isid gives the initiator's part of the session's identifier (RFC 7143,
// 11.12.5): of the random type, but drawn from the names and the portal, so that
// every log-in of one grant reinstates the same session at the target, also
// after a crash of the process.
func (t *Target) isid() [6]byte {
	sum := sha256.Sum256([]byte(t.InitiatorName + "\x00" + t.IQN + "\x00" + t.Portal.String()))
	isid := [6]byte{0x80}
	copy(isid[1:], sum[:5])
	return isid
}
