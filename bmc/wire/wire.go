// Package wire talks to BMCs: IPMI v2.0 (lanplus) by the program ipmitool and
// Redfish by gofish, both through bmclib. It implements bmc.Driver and
// bmc.Access and turns what tools and BMCs say into the errors of package bmc.
//
// It leaves the order of commands, epochs and the meaning of what is read to
// package bmc: a driver of this package must have one caller at a time, which
// is a bmc.Queue. Exactly one bmclib provider is registered per driver, by
// name: bmclib divides time-outs by the number of its providers, and leaves the
// IPMI one out without a word when ipmitool is missing.
package wire

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"hotspare"
	"hotspare/bmc"
)

// Protocol names how a BMC is spoken to.
type Protocol string

// The protocols.
const (
	IPMI    Protocol = "ipmi"
	Redfish Protocol = "redfish"
)

// Config describes one BMC.
type Config struct {
	Protocol Protocol
	// Host is a name or an address, without port.
	Host string
	// Port; 0 is 623 for IPMI and 443 for Redfish.
	Port     int
	User     string
	Password hotspare.Secret
	// CipherSuite of IPMI: 17 (HMAC-SHA256) or 3 (HMAC-SHA1). 0 tries 17 first
	// and takes 3 if the BMC does not know 17.
	CipherSuite int
	// EFI asks for a UEFI network boot instead of a legacy one.
	EFI bool
	// Timeout bounds one call. Default 15 s.
	Timeout time.Duration
	// ReachTimeout bounds the question without credentials that comes before
	// each IPMI call, so that a dead BMC is noticed early. Default 4 s.
	ReachTimeout time.Duration
	// PasswordPause is how long a driver sends nothing after the BMC refused
	// its password, because many BMCs lock a user out. Default 1 min.
	PasswordPause time.Duration
	// IPMITool is the program; empty looks for ipmitool on PATH.
	IPMITool string
	// Log receives what bmclib has to say, at debug level. Nil discards.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Port == 0 {
		c.Port = 623
		if c.Protocol == Redfish {
			c.Port = 443
		}
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	if c.ReachTimeout == 0 {
		c.ReachTimeout = 4 * time.Second
	}
	if c.PasswordPause == 0 {
		c.PasswordPause = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	bad := func(why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the BMC is not described properly", Where: c.where(), Why: why,
			Fix: "correct the bmc section of the node"}
	}
	switch {
	case c.Protocol != IPMI && c.Protocol != Redfish:
		return bad(fmt.Sprintf("protocol %q is neither %q nor %q", c.Protocol, IPMI, Redfish))
	case c.Host == "":
		return bad("the host is missing")
	case c.Port < 1 || c.Port > 65535:
		return bad(fmt.Sprintf("port %d is out of range", c.Port))
	case c.User == "":
		return bad("the user is missing")
	case c.Password.IsZero():
		return bad("the password is missing")
	case c.CipherSuite != 0 && c.CipherSuite != 3 && c.CipherSuite != 17:
		return bad(fmt.Sprintf("cipher suite %d is neither 3 nor 17; all others are weak or rare", c.CipherSuite))
	case c.Protocol == IPMI && len(c.User) > 16:
		return bad("IPMI user names have at most 16 bytes")
	case c.Protocol == IPMI && len(c.Password.Reveal()) > 20:
		return bad("IPMI passwords have at most 20 bytes")
	}
	return nil
}

func (c Config) where() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }

// New makes a driver without any traffic; it connects at its first call. It
// fails when the description is wrong or ipmitool is missing.
func New(c Config) (bmc.Driver, error) {
	c = c.withDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Protocol == Redfish {
		return newRedfish(c)
	}
	return newIPMI(c)
}

// Open makes a driver and reads the power state once, so that a nil error says
// that the BMC is there and accepts the password. It ends within Timeout also
// when nothing answers.
func Open(ctx context.Context, c Config) (bmc.Driver, error) {
	d, err := New(c)
	if err != nil {
		return nil, err
	}
	if _, err := d.PowerState(ctx); err != nil {
		_ = d.Close(context.WithoutCancel(ctx)) // the first error is the one to tell
		return nil, err
	}
	return d, nil
}

// Access gives the way to a BMC for bmc.Probe.
func Access(c Config) bmc.Access { return access{c.withDefaults()} }

type access struct{ cfg Config }

func (a access) Resolve(ctx context.Context) (string, error) {
	addrs, err := net.DefaultResolver.LookupHost(ctx, a.cfg.Host)
	if err != nil {
		return "", bmc.NewError(hotspare.CodeBMCUnreachable, a.cfg.where(), "the name does not resolve", err)
	}
	return addrs[0], nil
}

func (a access) Reach(ctx context.Context) (string, error) {
	if a.cfg.Protocol == Redfish {
		return reachRedfish(ctx, a.cfg)
	}
	return reachIPMI(ctx, a.cfg)
}

func (a access) Open(ctx context.Context) (bmc.Driver, error) { return Open(ctx, a.cfg) }
