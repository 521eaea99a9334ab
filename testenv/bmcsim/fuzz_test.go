package bmcsim

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"testing"
	"time"

	"github.com/bougou/go-ipmi/pkg/bmc"
	"github.com/bougou/go-ipmi/pkg/handlers"
	"github.com/bougou/go-ipmi/pkg/server"
)

// pipe is a packet transport without a network.
type pipe struct {
	in     chan []byte
	out    chan []byte
	closed chan struct{}
}

func (p *pipe) ReadFrom(buf []byte) (int, net.Addr, error) {
	select {
	case pkt := <-p.in:
		return copy(buf, pkt), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}, nil
	case <-p.closed:
		return 0, nil, net.ErrClosed
	}
}

func (p *pipe) WriteTo(data []byte, _ net.Addr) (int, error) {
	select {
	case p.out <- bytes.Clone(data):
	case <-p.closed:
	}
	return len(data), nil
}

func (p *pipe) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 623} }

func (p *pipe) Close() error { close(p.closed); return nil }

func fuzzState(f *testing.F) (*controller, *bmc.BMC) {
	f.Helper()
	m := &MemoryMachine{ID: testUUID}
	opts := Options{Listen: "x", User: "admin", Password: testPassword, Machine: m}.withDefaults()
	c := newController(opts)
	guid, err := guidBytes(testUUID)
	if err != nil {
		f.Fatal(err)
	}
	suites, err := cipherSuites(opts.CipherSuites)
	if err != nil {
		f.Fatal(err)
	}
	state, err := newState(opts, guid, suites, c)
	if err != nil {
		f.Fatal(err)
	}
	return c, state
}

// S16: whatever arrives, the BMC goes on answering.
func FuzzPackets(f *testing.F) {
	for _, seed := range []string{
		"0600ff0700000000000000000009" + "2018c88100388e04b5",                                                          // Get Channel Authentication Capabilities, v1.5 framing
		"0600ff070600000000000000000009002018c88100388e04b5",                                                           // the same, v2.0 framing
		"0600ff07061000000000000000002000" + "00000000a4a3a2a0000000080100000001000008010000000200000801000000",        // Open Session, suite 3
		"0600ff07061200000000000000002100" + "0000000001020304000102030405060708090a0b0c0d0e0f140000056164" + "6d696e", // RAKP 1
		"0600ff0706140000000000000000" + "1c00" + "0000000001020304" + "000102030405060708090a0b0c0d0e0f10111213",      // RAKP 3
		"0600ff0706c0010203040100000010000102030405060708090a0b0c0d0e0f10ffff0207",                                     // in-session, unknown
		"0600ff07020000000001020304000102030405060708090a0b0c0d0e0f0920" + "18c88100388e04b5",                          // v1.5, MD5
		"0600ff06000011be80000000", // presence ping
	} {
		raw, err := hex.DecodeString(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	c, state := fuzzState(f)
	p := &pipe{in: make(chan []byte), out: make(chan []byte), closed: make(chan struct{})}
	s := server.NewServer(state, newConn(p, c), server.WithHandlerRegistry(newRegistry(c)))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ctx) }()
	f.Cleanup(func() { cancel(); _ = s.Close(); <-done })
	ping := []byte{0x06, 0x00, 0xff, 0x06, 0x00, 0x00, 0x11, 0xbe, 0x80, 0x5a, 0x00, 0x00}
	f.Fuzz(func(t *testing.T, packet []byte) {
		p.in <- packet
		p.in <- ping
		deadline := time.After(10 * time.Second)
		for {
			select {
			case out := <-p.out:
				if len(out) == 28 && out[9] == 0x5a {
					if on := c.opts.Machine.PowerState(); on || c.stats() != (Stats{}) {
						t.Fatal("a packet without a session reached the machine")
					}
					return
				}
			case <-deadline:
				t.Fatal("the BMC no longer answers")
			}
		}
	})
}

// S16: every command of an authenticated client, with any data.
func FuzzCommands(f *testing.F) {
	f.Add(byte(0x00), byte(0x02), []byte{0x01})
	f.Add(byte(0x00), byte(0x08), []byte{0x05, 0x80, 0x04, 0, 0, 0})
	f.Add(byte(0x00), byte(0x09), []byte{0x05, 0, 0})
	f.Add(byte(0x0a), byte(0x43), []byte{0, 0, 0, 0, 0, 0xff})
	f.Add(byte(0x0a), byte(0x47), []byte{1, 0, 'C', 'L', 'R', 0xaa})
	f.Add(byte(0x06), byte(0x37), []byte{})
	f.Add(byte(0x06), byte(0x54), []byte{0x0e, 0x00, 0x80})
	f.Add(byte(0x0c), byte(0x02), []byte{0x01, 0x03, 0, 0})
	c, state := fuzzState(f)
	c.sel.add(eventPowerOn)
	reg := newRegistry(c)
	session, err := state.Sessions.Allocate(1, 1, 1, 1, bmc.PrivilegeLevelAdministrator, lanChannel)
	if err != nil {
		f.Fatal(err)
	}
	session.PrivilegeLevel = bmc.PrivilegeLevelAdministrator
	channel, err := state.Channels.Get(lanChannel)
	if err != nil {
		f.Fatal(err)
	}
	user, err := state.Users.Get(userSlot)
	if err != nil {
		f.Fatal(err)
	}
	session.User = user
	f.Fuzz(func(t *testing.T, netFn, cmd byte, data []byte) {
		h := &handlers.HandlerContext{BMC: state, Session: session, Channel: channel, User: user}
		out, _, _ := reg.Dispatch(t.Context(), h, netFn, cmd, data)
		if len(out) > 255 {
			t.Errorf("an answer of %d bytes", len(out))
		}
	})
}
