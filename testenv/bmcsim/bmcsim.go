// Package bmcsim is a virtual BMC that third-party tools speak to: IPMI v2.0
// (lanplus, cipher suites 3 and 17) over UDP and, on request, Redfish over
// HTTPS, in front of a Machine that the caller gives. It can be told at any
// time to misbehave in the ways that BMCs in the field do (Fault).
//
// Sessions, authentication and framing are those of go-ipmi's reference server;
// this package adds the chassis, the boot options, the event log, the UUID, the
// faults, and the rule that power commands answer at once and never run twice:
// the machine is moved towards the wanted state by one worker, so that a
// retransmitted off finds the machine off.
//
// It follows IPMI v2.0 rev. 1.1 (sections 13, 20-22, 28, 31) and DMTF DSP0266.
// It is for labs and tests; nothing of the product imports it.
package bmcsim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/server"
	"golang.org/x/sync/errgroup"
)

// Machine is what the BMC controls. Its methods may be called concurrently.
type Machine interface {
	// PowerState says whether the machine has power now.
	PowerState() (on bool)
	// PowerOn and PowerOff do nothing to a machine that is in that state.
	PowerOn(ctx context.Context) error
	PowerOff(ctx context.Context) error
	// SetNextBoot names the boot device: "pxe", "disk", "cdrom", "bios", or ""
	// for none; once means for the next start only.
	SetNextBoot(device string, once bool)
	// UUID is the system UUID (SMBIOS type 1) in RFC 4122 text form.
	UUID() string
}

// SoftOff is what a Machine has in addition when it can ask its operating
// system to shut down (ACPI power button); without it a soft off is ignored.
type SoftOff interface {
	PowerSoft(ctx context.Context) error
}

// POSTDelayer is what a Machine has in addition when it can spend a while in
// firmware before it boots; it is told the delay by Fault.POSTDelay.
type POSTDelayer interface {
	SetPOSTDelay(d time.Duration)
}

// Privilege is the level that the one user of the BMC has.
type Privilege uint8

// The levels; the zero value is Administrator.
const (
	Administrator Privilege = iota
	Operator
	User
)

// Options describe a BMC.
type Options struct {
	// Listen is the UDP address for IPMI, e.g. "10.78.0.11:623".
	Listen string
	// RedfishListen is the TCP address for Redfish over HTTPS with a
	// self-signed certificate. Empty: no Redfish.
	RedfishListen string
	// User and Password: at most 16 and 20 bytes (IPMI v2.0 section 22.28).
	User, Password string
	// Privilege of the user.
	Privilege Privilege
	// CipherSuites that are offered. Default 3 and 17.
	CipherSuites []uint8
	// Machine that is controlled.
	Machine Machine
	// Fault to begin with.
	Fault Fault
	// Log receives commands. Nil discards.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if len(o.CipherSuites) == 0 {
		o.CipherSuites = []uint8{3, 17}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	switch {
	case o.Machine == nil:
		return errors.New("bmcsim: no machine given")
	case o.Listen == "" && o.RedfishListen == "":
		return errors.New("bmcsim: no address given")
	case o.User == "" || len(o.User) > bmc.MaxUserNameLen:
		return fmt.Errorf("bmcsim: user name must have 1 to %d bytes", bmc.MaxUserNameLen)
	case o.Password == "" || len(o.Password) > bmc.MaxPasswordLen:
		return fmt.Errorf("bmcsim: password must have 1 to %d bytes", bmc.MaxPasswordLen)
	}
	return nil
}

// BMC is one virtual controller.
type BMC struct {
	opts    Options
	chassis *controller
	ipmi    *server.Server // nil without IPMI
	state   *bmc.BMC       // users and sessions behind ipmi
	conn    *conn
	redfish *redfishServer // nil without Redfish
}

// New binds the addresses, so that a client that connects right after it is
// heard; Serve answers.
func New(opts Options) (*BMC, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	guid, err := guidBytes(opts.Machine.UUID())
	if err != nil {
		return nil, err
	}
	b := &BMC{opts: opts, chassis: newController(opts)}
	if opts.Listen != "" {
		if err := b.bindIPMI(guid); err != nil {
			return nil, err
		}
	}
	if opts.RedfishListen != "" {
		if b.redfish, err = newRedfish(b.chassis, opts); err != nil {
			b.close()
			return nil, err
		}
	}
	b.SetFault(opts.Fault)
	return b, nil
}

func (b *BMC) bindIPMI(guid [16]byte) error {
	suites, err := cipherSuites(b.opts.CipherSuites)
	if err != nil {
		return err
	}
	addr, err := net.ResolveUDPAddr("udp", b.opts.Listen)
	if err != nil {
		return fmt.Errorf("bmcsim: %w", err)
	}
	sock, err := net.ListenUDP("udp", addr)
	if err != nil {
		return fmt.Errorf("bmcsim: %w", err)
	}
	state, err := newState(b.opts, guid, suites, b.chassis)
	if err != nil {
		_ = sock.Close()
		return err
	}
	b.state, b.conn = state, newConn(sock, b.chassis)
	b.ipmi = server.NewServer(state, b.conn, server.WithHandlerRegistry(newRegistry(b.chassis)))
	return nil
}

func newRegistry(c *controller) *handlers.Registry {
	r := handlers.NewRegistry() // middleware comes before the handlers it wraps
	r.Use(onlyOnce())
	r.Use(keepFlags(c))
	handlers.RegisterAllHandlers(r)
	registerOwn(r, c.sel)
	return r
}

// Addr gives the UDP address of IPMI ("" without), with the real port if
// Options asked for port 0.
func (b *BMC) Addr() string {
	if b.conn == nil {
		return ""
	}
	return b.conn.LocalAddr().String()
}

// RedfishAddr gives the TCP address of Redfish, or "".
func (b *BMC) RedfishAddr() string {
	if b.redfish == nil {
		return ""
	}
	return b.redfish.listener.Addr().String()
}

// Serve answers until ctx ends, then closes the sockets and returns nil once
// everything that it began has ended.
func (b *BMC) Serve(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	var worker sync.WaitGroup
	worker.Go(func() { b.chassis.work(gctx) })
	if b.ipmi != nil {
		g.Go(func() error {
			if err := b.ipmi.Serve(gctx); err != nil && gctx.Err() == nil {
				return fmt.Errorf("bmcsim: ipmi: %w", err)
			}
			return nil
		})
	}
	if b.redfish != nil {
		g.Go(b.redfish.serve)
	}
	g.Go(func() error {
		<-gctx.Done()
		b.close()
		return nil
	})
	err := g.Wait()
	worker.Wait()
	return err
}

func (b *BMC) close() {
	if b.ipmi != nil {
		_ = b.ipmi.Close()
	}
	if b.redfish != nil {
		b.redfish.close()
	}
}

// SetFault replaces the fault; the zero Fault is a healthy BMC.
func (b *BMC) SetFault(f Fault) {
	b.chassis.setFault(f)
	if b.state == nil {
		return
	}
	password := b.opts.Password
	if f.WrongPassword {
		password = rand.Text()[:bmc.MaxPasswordLen]
	}
	_ = b.state.Users.Update(userSlot, func(u *bmc.User) error { // the user is there since New
		u.SetPassword([]byte(password))
		return nil
	})
}

// Fault gives the fault that is set.
func (b *BMC) Fault() Fault { return b.chassis.getFault() }

// ForgetSessions ends all Redfish sessions, as a restart of a BMC does. (IPMI
// clients open a session for each command.)
func (b *BMC) ForgetSessions() {
	if b.redfish != nil {
		b.redfish.forgetSessions()
	}
}

// Stats give what the BMC has seen.
func (b *BMC) Stats() Stats { return b.chassis.stats() }
