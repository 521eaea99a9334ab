package iscsi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"hotspare/storage"
)

// Directory says who may see what; storage.Exports is one. An initiator never
// learns of, or reaches, anything that the directory does not give it.
type Directory interface {
	// Visible gives the target names that SendTargets shows the initiator.
	Visible(initiator string) []string
	// Find gives what the initiator must prove to use the target, or an error.
	Find(initiator, target string) (storage.Export, error)
	// Attach opens a session after the proof.
	Attach(ctx context.Context, l storage.Login) (*storage.Attachment, error)
}

// Options of New.
type Options struct {
	Directory Directory // required
	// Log gets one line per log-in, refusal and lost session; nil discards.
	Log *slog.Logger
	// Asked is told of every log-in to a target that ended: err says why it was
	// refused, nil that a session began. It must not block. May be nil.
	Asked func(LoginAsked, error)
	// LoginTimeout bounds the time from connection to full feature phase;
	// default 15 s.
	LoginTimeout time.Duration
	// PingAfter is how long a connection may be silent before the target sends
	// a NOP-In; after three times that without a word it is dropped. Default
	// 20 s.
	PingAfter time.Duration
	// MaxConnections bounds the connections, those that log in included;
	// default 4096.
	MaxConnections int
	// MaxLogins bounds the log-ins in progress; default 256.
	MaxLogins int
	// MaxLoginsPerAddress bounds those that come from one address, so that one
	// host cannot keep the others out; default 64.
	MaxLoginsPerAddress int
	// MaxSessions bounds the sessions of one initiator name; default 64.
	MaxSessions int
	// DiscoveryTimeout bounds a discovery session, which anybody may open;
	// default 60 s.
	DiscoveryTimeout time.Duration
}

// LoginAsked names a log-in: what the initiator said, which nothing proves until
// it succeeded.
type LoginAsked struct {
	Initiator, Target string
	Address           string // of the initiator, with its port
	Began             time.Time
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.LoginTimeout == 0 {
		o.LoginTimeout = 15 * time.Second
	}
	if o.PingAfter == 0 {
		o.PingAfter = 20 * time.Second
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 4096
	}
	if o.MaxLogins == 0 {
		o.MaxLogins = 256
	}
	if o.MaxLoginsPerAddress == 0 {
		o.MaxLoginsPerAddress = 64
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = 64
	}
	if o.DiscoveryTimeout == 0 {
		o.DiscoveryTimeout = time.Minute
	}
	return o
}

// Target serves volumes to initiators. Its methods are safe for concurrent use.
type Target struct {
	opts       Options
	operations []operation
	mem        memory
	places     *places

	mu       sync.Mutex
	portals  []net.Listener
	logins   map[string]int // in progress, by address; inLogin is their sum
	inLogin  int
	conns    map[*conn]struct{}
	sessions map[nexus]*conn
	held     map[string]int   // sessions by initiator name
	units    map[string]*unit // by volume uid
	tsih     uint16
	closed   bool
}

// nexus names a session: the initiator port (name and ISID) and the target. A
// log-in with the same nexus replaces the session (RFC 7143, 6.3.5).
type nexus struct {
	initiator string
	isid      [6]byte
	target    string
}

// New makes a target. It panics without a directory: that is a fault of the
// program.
func New(opts Options) *Target {
	if opts.Directory == nil {
		panic("iscsi: Options.Directory is missing")
	}
	opts = opts.withDefaults()
	return &Target{
		opts: opts, operations: buildOperations(), places: newPlaces(), logins: map[string]int{},
		conns: map[*conn]struct{}{}, sessions: map[nexus]*conn{}, held: map[string]int{}, units: map[string]*unit{},
	}
}

// Serve accepts connections on ln until ctx ends or Close is called; then it
// closes ln, cuts the connections that came through it, waits for their
// commands and returns nil. Several portals are several calls.
func (t *Target) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	t.mu.Lock()
	t.portals = append(t.portals, ln)
	t.mu.Unlock()
	defer t.forgetPortal(ln)
	var open sync.WaitGroup
	var next func()
	next = func() {
		nc, err := t.accept(ctx, ln)
		if err != nil {
			cancel()
			return
		}
		open.Go(next) // somebody else waits for the next one: this one is served at once, where it was accepted
		c, err := t.newConn(nc)
		if err != nil {
			nc.Close()
			return
		}
		stop := context.AfterFunc(ctx, c.cut)
		defer stop()
		c.run(ctx)
	}
	open.Go(next)
	open.Wait()
	return nil
}

// accept gives the next connection; an error means that there will be none.
func (t *Target) accept(ctx context.Context, ln net.Listener) (net.Conn, error) {
	var backoff time.Duration
	for {
		nc, err := ln.Accept()
		if err == nil || ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nc, err
		}
		// Out of descriptors, most likely: others may still end.
		backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
		t.opts.Log.Warn("iscsi: accept failed", "listener", ln.Addr().String(), "err", err)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (t *Target) forgetPortal(ln net.Listener) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.portals = slices.DeleteFunc(t.portals, func(l net.Listener) bool { return l == ln })
}

// addresses gives the portals as SendTargets names them: the one that the
// connection came to, then the others. A listener on all addresses is known by
// the address that was used alone.
func (t *Target) addresses(local net.Addr) []string {
	as := []string{local.String()}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ln := range t.portals {
		a, ok := ln.Addr().(*net.TCPAddr)
		if ok && !a.IP.IsUnspecified() && !slices.Contains(as, a.String()) {
			as = append(as, a.String())
		}
	}
	return as
}

// Close cuts all connections. Serve returns when its listener is closed too.
func (t *Target) Close() error {
	t.mu.Lock()
	t.closed = true
	cs := make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		cs = append(cs, c)
	}
	t.mu.Unlock()
	for _, c := range cs {
		c.cut()
	}
	for _, c := range cs {
		<-c.done
	}
	return nil
}

func (t *Target) newConn(nc net.Conn) (*conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.conns) >= t.opts.MaxConnections {
		return nil, errors.New("iscsi: no connections are accepted")
	}
	c := newConn(t, nc)
	t.conns[c] = struct{}{}
	return c, nil
}

// forget removes an ended connection.
func (t *Target) forget(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	if t.sessions[c.nexus] == c {
		delete(t.sessions, c.nexus)
		countDown(t.held, c.nexus.initiator)
	}
}

func countDown(m map[string]int, key string) {
	if m[key]--; m[key] <= 0 {
		delete(m, key)
	}
}

// beginLogin takes a place among the log-ins in progress; the returned func
// gives it back.
func (t *Target) beginLogin(c *conn) (end func(), err error) {
	addr := c.nc.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		addr = host
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.inLogin >= t.opts.MaxLogins:
		return nil, errors.New("iscsi: too many log-ins in progress")
	case t.logins[addr] >= t.opts.MaxLoginsPerAddress:
		return nil, fmt.Errorf("iscsi: too many log-ins in progress from %s", addr)
	}
	t.logins[addr]++
	t.inLogin++
	c.eager.resting = t.inLogin > 1 // several at once have enough to do
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		countDown(t.logins, addr)
		t.inLogin--
	}, nil
}

// register makes c the session of its nexus, after the session that was it has
// ended completely: none of its commands runs any more.
func (t *Target) register(ctx context.Context, c *conn) error {
	for {
		t.mu.Lock()
		old := t.sessions[c.nexus]
		if old == nil {
			if t.held[c.nexus.initiator] >= t.opts.MaxSessions {
				t.mu.Unlock()
				return fmt.Errorf("iscsi: more than %d sessions of one initiator", t.opts.MaxSessions)
			}
			t.held[c.nexus.initiator]++
			t.tsih++
			if t.tsih == 0 {
				t.tsih = 1
			}
			c.tsih = t.tsih
			t.sessions[c.nexus] = c
			t.mu.Unlock()
			return nil
		}
		t.mu.Unlock()
		t.opts.Log.Info("iscsi: session replaced", "initiator", c.nexus.initiator, "target", c.nexus.target)
		old.cut()
		select {
		case <-old.done:
		case <-ctx.Done():
			return fmt.Errorf("iscsi: the session to be replaced does not end: %w", ctx.Err())
		}
	}
}

// knows says whether a session has this number.
func (t *Target) knows(tsih uint16) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.sessions {
		if c.tsih == tsih {
			return true
		}
	}
	return false
}

// unit gives the shared state of a volume under an epoch. Another epoch begins
// afresh: reservations and attentions of the old grant are gone with it.
func (t *Target) unit(e storage.Export) *unit {
	t.mu.Lock()
	defer t.mu.Unlock()
	u := t.units[e.UID]
	if u == nil || u.epoch != e.Epoch {
		u = newUnit(e.Epoch)
		t.units[e.UID] = u
	}
	return u
}
