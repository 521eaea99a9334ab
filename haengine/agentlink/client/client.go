// Package client is the node's end of the agent link: it joins with the
// one-time token, keeps the link up for ever, renews its certificate, sends
// heartbeats, reports and samples, and hands orders over, each of them once.
//
// It knows nothing of what an order does and holds no lease: Options.Acked gets
// the moment at which the acknowledged heartbeat was sent, which is what a lease
// counts from.
package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// State is a change of the link's state, for the node's console.
type State struct {
	Up  bool
	Why string // why it is down, or how it came up
	Err error  // the cause, when it is down

	ServerTime time.Time // the appliance's clock when the link came up; zero when it is down
}

// Options are the parts of a Client. All without a default are needed.
type Options struct {
	Addr     string          // host:port of the appliance
	CA       []byte          // PEM, pinned
	Node     string          // as boot.json says
	Token    hotspare.Secret // hexadecimal digits
	Facts    agentlink.Facts // Facts.BootID is the boot that orders must name
	Software string          // version, for display

	Beat  func() agentlink.Heartbeat                                        // called for every heartbeat; Seq is filled in by the client
	Acked func(sent time.Duration, ack agentlink.HeartbeatAck)              // sent: Now() before the heartbeat was written
	Order func(ctx context.Context, o agentlink.Order) agentlink.Result     // called once per order id, each in a goroutine of its own
	State func(State)                                                       // may be nil
	Now   func() time.Duration                                              // the node's CLOCK_BOOTTIME
	Dial  func(ctx context.Context, network, addr string) (net.Conn, error) // default: net.Dialer

	Every       time.Duration // between heartbeats; default 1 s
	AckTimeout  time.Duration // without any frame from the appliance; default 6 s
	DialTimeout time.Duration // for connection, handshake and answer; default 10 s
	MaxBackoff  time.Duration // between attempts; default 1 s
	Log         *slog.Logger
}

func (o Options) withDefaults() Options {
	for _, d := range []struct {
		at *time.Duration
		v  time.Duration
	}{{&o.Every, time.Second}, {&o.AckTimeout, 6 * time.Second}, {&o.DialTimeout, 10 * time.Second}, {&o.MaxBackoff, time.Second}} {
		if *d.at == 0 {
			*d.at = d.v
		}
	}
	if o.State == nil {
		o.State = func(State) {}
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	if o.Addr == "" || len(o.CA) == 0 || o.Facts.BootID == "" {
		return errors.New("agentlink: client needs Addr, CA and Facts.BootID")
	}
	if o.Beat == nil || o.Acked == nil || o.Order == nil || o.Now == nil {
		return errors.New("agentlink: client needs Beat, Acked, Order and Now")
	}
	return nil
}

// Client is the node's end of the link.
type Client struct {
	opt    Options
	log    *slog.Logger
	roots  *x509.CertPool
	floor  time.Time // no earlier time is believed: the CA was not valid yet
	key    *ecdsa.PrivateKey
	gate   *agentlink.Gate
	orders orderBook

	mu      sync.Mutex
	cert    [][]byte      // the node's certificate, DER; nil before the join
	life    time.Duration // of the certificate, by the appliance's clock: the node's may be wrong
	renewed time.Time     // when it came
	node    string
	conn    *link // the live connection, or nil
	reports []agentlink.Report
	nextRep uint64
	poke    chan struct{} // asks for a heartbeat at once
	acked   chan struct{} // closed and made anew when reports were acknowledged
	leaving bool          // Leave was called: the link is not opened again
}

// New makes a client. The key is made here and never leaves memory.
func New(opt Options) (*Client, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(opt.CA) {
		return nil, errors.New("agentlink: the pinned CA is no PEM certificate")
	}
	floor, err := notBefore(opt.CA)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &Client{
		opt: opt, log: opt.Log, roots: roots, floor: floor, key: key, node: opt.Node,
		gate:   agentlink.NewGate(opt.Facts.BootID),
		orders: orderBook{done: map[string]agentlink.Result{}, running: map[string]bool{}},
		poke:   make(chan struct{}, 1),
		acked:  make(chan struct{}),
	}, nil
}

// notBefore gives the first day of the pinned CA.
func notBefore(pinned []byte) (time.Time, error) {
	block, _ := pem.Decode(pinned)
	if block == nil {
		return time.Time{}, errors.New("agentlink: the pinned CA is no PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, fmt.Errorf("agentlink: the pinned CA: %w", err)
	}
	return cert.NotBefore, nil
}

// now is the time for the check of certificates. The clock of a node whose
// battery is dead is years behind; it is at least the time of the pinned CA.
func (c *Client) now() time.Time {
	if now := time.Now(); now.After(c.floor) {
		return now
	}
	return c.floor
}

// Gate gives the gate that the client's orders pass.
func (c *Client) Gate() *agentlink.Gate { return c.gate }

// Node gives the node's name: the appliance's word after the join.
func (c *Client) Node() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.node
}

// Run keeps the link up until ctx is done. It returns earlier only when the
// appliance refused the join for good; the error then carries the code.
func (c *Client) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	backoff := 50 * time.Millisecond
	for {
		start := c.opt.Now()
		err := c.session(ctx, &wg)
		if c.hasLeft() {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			return nil
		}
		c.opt.State(State{Why: err.Error(), Err: err})
		var refused *refusedError
		if errors.As(err, &refused) && !refused.Retry && !c.joined() {
			return &hotspare.Error{
				Code: refused.Code, What: "the appliance refused the join", Where: c.opt.Addr, Why: refused.Why,
				Fix: "see `hotspare explain` for this node on the appliance; boot it again to get a new token",
			}
		}
		if c.opt.Now()-start > 5*time.Second {
			backoff = 50 * time.Millisecond // it was up
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + mathrand.N(backoff/2)):
		}
		backoff = min(2*backoff, c.opt.MaxBackoff)
	}
}

func (c *Client) joined() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cert != nil
}

func (c *Client) hasLeft() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving
}

// IsRefusal says whether a State's error is the appliance's own word that it
// does not know this boot, as opposed to a link that is down.
func IsRefusal(err error) bool {
	var refused *refusedError
	var alert tls.AlertError
	return errors.As(err, &refused) && !refused.Retry || errors.As(err, &alert)
}

// refusedError is the appliance's Refused.
type refusedError struct{ agentlink.Refused }

func (e *refusedError) Error() string { return string(e.Code) + ": " + e.Why }

// connect opens the link: TLS with the pinned CA, hello, and join or welcome.
func (c *Client) connect(ctx context.Context) (*tls.Conn, time.Time, error) {
	conn, e, err := c.open(ctx, func(conn net.Conn) error {
		if c.joined() {
			return nil
		}
		return c.sendJoin(conn)
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	clock, err := c.admitted(e)
	if err != nil {
		_ = conn.Close()
		return nil, time.Time{}, err
	}
	return conn, clock, nil
}

// open connects, says hello, asks and reads the answer.
func (c *Client) open(ctx context.Context, ask func(net.Conn) error) (conn *tls.Conn, answer agentlink.Envelope, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opt.DialTimeout)
	defer cancel()
	raw, err := c.opt.Dial(ctx, "tcp", c.opt.Addr)
	if err != nil {
		return nil, answer, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	conn = tls.Client(raw, c.tlsConfig())
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, answer, fmt.Errorf("tls: %w", err)
	}
	hello := agentlink.Hello{Software: c.opt.Software, Node: c.Node(), BootID: c.opt.Facts.BootID}
	if err := write(conn, agentlink.KindHello, hello); err != nil {
		return nil, answer, err
	}
	if err := ask(conn); err != nil {
		return nil, answer, err
	}
	answer, err = agentlink.Read(conn, agentlink.MaxJoinFrame)
	return conn, answer, err
}

func (c *Client) tlsConfig() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots, ServerName: agentlink.ServerName, Time: c.now}
	if c.cert != nil {
		cfg.Certificates = []tls.Certificate{{Certificate: c.cert, PrivateKey: c.key}}
	}
	return cfg
}

func (c *Client) csr() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, c.key)
}

func (c *Client) sendJoin(conn net.Conn) error {
	csr, err := c.csr()
	if err != nil {
		return err
	}
	return write(conn, agentlink.KindJoin, agentlink.Join{Token: c.opt.Token.Reveal(), Facts: c.opt.Facts, CSR: csr})
}

// admitted reads the answer to hello or join, and gives the appliance's clock.
func (c *Client) admitted(e agentlink.Envelope) (time.Time, error) {
	switch e.Kind {
	case agentlink.KindWelcome:
		w, err := agentlink.Decode[agentlink.Welcome](e)
		return w.ServerTime, err
	case agentlink.KindJoined:
		j, err := agentlink.Decode[agentlink.Joined](e)
		if err != nil {
			return time.Time{}, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cert, c.life, c.node = [][]byte{j.Certificate}, j.NotAfter.Sub(j.ServerTime), j.Node
		c.renewed = time.Now()
		return j.ServerTime, nil
	case agentlink.KindRefused:
		r, err := agentlink.Decode[agentlink.Refused](e)
		if err != nil {
			return time.Time{}, err
		}
		return time.Time{}, &refusedError{r}
	default:
		return time.Time{}, fmt.Errorf("%w: unexpected %q", agentlink.ErrFrameBody, e.Kind)
	}
}

func write(conn net.Conn, kind agentlink.Kind, body any) error {
	frame, err := agentlink.Encode(kind, body)
	if err != nil {
		return err
	}
	_, err = conn.Write(frame)
	return err
}
