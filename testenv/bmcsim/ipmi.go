package bmcsim

import (
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/clock"
	"github.com/bougou/go-ipmi/pkg/command/chassis"
	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/types"
)

const (
	lanChannel = 1  // the LAN channel of go-ipmi's channel store
	userSlot   = 2  // slot 1 is the anonymous user (IPMI v2.0 section 22.28), which stays off
	sessions   = 16 // clients that are killed leave sessions behind for a minute
)

// newState builds what go-ipmi's server serves: the device, the user, the
// sessions.
func newState(opts Options, guid [16]byte, suites []types.CipherSuiteID, c *controller) (*bmc.BMC, error) {
	b := bmc.New(bmc.DeviceInfo{
		DeviceID: 0x20, DeviceRevision: 1, FirmwareMajor: 1,
		IPMIVersion:             0x02, // 2.0: the major version is in the low nibble (Table 20-2)
		AdditionalDeviceSupport: 0x84, // chassis device, SEL device (Table 20-2)
	}, guid, hardware{chassis: c}, bmc.WithCipherSuites(suites))
	b.Sessions = bmc.NewSessionStoreWithOptions(clock.Real, bmc.WithMaxSessions(sessions))
	user, err := b.Users.Add(userSlot, opts.User)
	if err != nil {
		return nil, fmt.Errorf("bmcsim: user: %w", err)
	}
	level := map[Privilege]bmc.PrivilegeLevel{
		Administrator: bmc.PrivilegeLevelAdministrator,
		Operator:      bmc.PrivilegeLevelOperator,
		User:          bmc.PrivilegeLevelUser,
	}[opts.Privilege]
	user.Enabled = true
	user.SetPassword([]byte(opts.Password))
	user.ChannelAccess[lanChannel] = bmc.UserChannelAccess{MaxPrivilege: level, Enabled: true}
	return b, nil
}

func cipherSuites(ids []uint8) ([]types.CipherSuiteID, error) {
	out := make([]types.CipherSuiteID, 0, len(ids))
	for _, id := range ids {
		s := types.CipherSuiteID(id)
		if !bmc.SupportedCipherSuite(s) {
			return nil, fmt.Errorf("bmcsim: cipher suite %d is not supported", id)
		}
		out = append(out, s)
	}
	return out, nil
}

// guidBytes gives the UUID in the order in which most BMCs send it: as SMBIOS
// holds it, with the first three fields byte-swapped (SMBIOS specification,
// section 7.2.1; ipmitool calls it "smbios" and recognises it by itself).
func guidBytes(text string) (g [16]byte, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(raw) != len(g) {
		return g, fmt.Errorf("bmcsim: %q is not a UUID", text)
	}
	copy(g[:], raw)
	g[0], g[1], g[2], g[3] = g[3], g[2], g[1], g[0]
	g[4], g[5] = g[5], g[4]
	g[6], g[7] = g[7], g[6]
	return g, nil
}

// conn is the UDP socket with the faults that concern whole packets.
type conn struct {
	socket
	faults faults

	mu     sync.Mutex
	closed bool
	late   map[*time.Timer]struct{} // answers that Stall holds back
}

// socket is the part of net.UDPConn that is needed.
type socket interface {
	ReadFrom(buf []byte) (int, net.Addr, error)
	WriteTo(data []byte, addr net.Addr) (int, error)
	LocalAddr() net.Addr
	Close() error
}

// faults is what the socket asks before each packet.
type faults interface {
	silent() bool
	getFault() Fault
}

func newConn(sock socket, f faults) *conn {
	return &conn{socket: sock, faults: f, late: map[*time.Timer]struct{}{}}
}

// ReadFrom gives the next packet that the BMC is to see.
func (c *conn) ReadFrom(buf []byte) (int, net.Addr, error) {
	for {
		n, addr, err := c.socket.ReadFrom(buf)
		if err != nil || !c.faults.silent() && !overlongName(buf[:n]) {
			return n, addr, err
		}
	}
}

// overlongName finds RAKP message 1 with a user name of more than 16 bytes
// (IPMI v2.0 table 13-11), which no client sends and at which go-ipmi v0.9.1
// panics: it adds the length to the offset in 8 bits.
func overlongName(p []byte) bool {
	const rakp1, header, length = 0x12, 16, 27
	return len(p) > header+length && p[3]&0x1f == 0x07 && p[4] == 0x06 && p[5]&0x3f == rakp1 &&
		p[header+length] > bmc.MaxUserNameLen
}

// WriteTo sends an answer, now or after Stall.
func (c *conn) WriteTo(data []byte, addr net.Addr) (int, error) {
	if c.faults.silent() {
		return len(data), nil
	}
	d := c.faults.getFault().Stall
	if d == 0 {
		return c.socket.WriteTo(data, addr)
	}
	data = append([]byte(nil), data...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		c.mu.Lock()
		delete(c.late, t)
		closed := c.closed
		c.mu.Unlock()
		if !closed {
			_, _ = c.socket.WriteTo(data, addr) // a lost datagram is what UDP may do
		}
	})
	c.late[t] = struct{}{}
	return len(data), nil
}

// Close drops what is held back.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closed = true
	for t := range c.late {
		t.Stop()
	}
	c.late = nil
	c.mu.Unlock()
	return c.socket.Close()
}

// hardware shows the chassis to go-ipmi's handlers. A BMC without sensors, FRU,
// GPIO or console answers their commands with an error by itself.
type hardware struct{ chassis *controller }

func (h hardware) Chassis() hal.ChassisHAL { return chassisHAL{h.chassis} }
func (h hardware) Sensors() hal.SensorHAL  { return nil }
func (h hardware) Storage() hal.StorageHAL { return nil }
func (h hardware) Network() hal.NetworkHAL { return nil }
func (h hardware) GPIO() hal.GPIOHAL       { return nil }
func (h hardware) I2C() hal.I2CHAL         { return nil }
func (h hardware) Console() hal.ConsoleHAL { return nil }
func (h hardware) Close() error            { return nil }

type chassisHAL struct{ c *controller }

func (h chassisHAL) PowerState(context.Context) (bool, error) { return h.c.powered(), nil }

func (h chassisHAL) SetPower(_ context.Context, on bool) error {
	if on {
		return completion(h.c.accept(actOn))
	}
	return completion(h.c.accept(actOff))
}

func (h chassisHAL) PowerCycle(context.Context) error { return completion(h.c.accept(actCycle)) }

// ColdReset is chassis control 3 (hard reset) and, in go-ipmi's handlers, also
// the command Cold Reset of the BMC itself, which registerOwn replaces.
func (h chassisHAL) ColdReset(context.Context) error { return completion(h.c.accept(actCycle)) }

// WarmReset is what go-ipmi calls for chassis control 5, the soft shutdown.
func (h chassisHAL) WarmReset(context.Context) error { return completion(h.c.accept(actSoft)) }

func (h chassisHAL) Identify(context.Context, uint8) error        { return nil }
func (h chassisHAL) IntrusionState(context.Context) (bool, error) { return false, nil }

func (h chassisHAL) SetBootFlags(_ context.Context, f *types.BootOptionParam_BootFlags) error {
	h.c.setBoot(*f, true)
	return nil
}

func (h chassisHAL) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	f := h.c.bootFlags()
	return &f, nil
}

func (h chassisHAL) SetBootInfoAcknowledge(_ context.Context, a *types.BootOptionParam_BootInfoAcknowledge) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.c.boot.ack = a
	return nil
}

func (h chassisHAL) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if h.c.boot.ack == nil {
		return &types.BootOptionParam_BootInfoAcknowledge{}, nil
	}
	return h.c.boot.ack, nil
}

// completion turns a completion code into the error that go-ipmi's handlers
// translate back; OK is no error.
func completion(cc types.CompletionCode) error {
	if cc == types.CodeOK {
		return nil
	}
	return cc
}

// onlyOnce keeps a retransmitted cycle or reset from running twice: within one
// session the same chassis control is taken once in 10 s. (Off and on need no
// such care: they are no-ops in the state that they ask for.)
func onlyOnce() handlers.Middleware {
	const window = 10 * time.Second
	type key struct {
		session uint32
		control byte
	}
	var mu sync.Mutex
	seen := map[key]time.Time{}
	repeated := func(k key) bool {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		for old, at := range seen {
			if now.Sub(at) > window {
				delete(seen, old)
			}
		}
		_, again := seen[k]
		seen[k] = now
		return again
	}
	return func(next handlers.Handler) handlers.Handler {
		return handlers.HandlerFunc(func(ctx context.Context, h *handlers.HandlerContext, req []byte) ([]byte, types.CompletionCode, error) {
			control := h.Session != nil && h.Command.NetFn == types.NetFnChassisRequest && h.Command.ID == handlers.CmdChassisControl
			if control && len(req) > 0 && hard(req[0]) && repeated(key{h.Session.BMCID, req[0]}) {
				return nil, types.CodeOK, nil
			}
			return next.Handle(ctx, h, req)
		})
	}
}

func hard(control byte) bool {
	switch chassis.ChassisControl(control & 0x0f) {
	case chassis.ChassisControlPowerCycle, chassis.ChassisControlHardReset:
		return true
	default:
		return false
	}
}
