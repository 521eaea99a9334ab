// Package server is the appliance's end of the agent link: it accepts nodes,
// lets them join by a one-time token, signs their certificates, hands their
// heartbeats, reports and samples to the Handler and carries orders to them.
//
// It knows who a node is and whether its link is up. It leaves to the Handler
// and to Tokens what a token is worth and who may hold a lease.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// Identity is what a token stands for.
type Identity struct {
	Node  string
	Epoch uint64 // the grant that it was minted for; 0: none
}

// Tokens says what a one-time token is worth.
type Tokens interface {
	// Redeem spends the token whose SHA-256 is given. A second call with the
	// same hash returns an error with CodeTokenReused, any other refusal one
	// with CodeJoinRefused. It must be durable before it returns.
	Redeem(ctx context.Context, tokenHash [32]byte, facts agentlink.Facts) (Identity, error)
}

// Session is one authenticated connection of one boot of a node.
type Session struct {
	ID      uint64 // counts up within this process
	Node    string
	BootID  string
	Remote  string // address and port of the node
	Since   time.Time
	Resumed bool            // it came with its certificate, not with a token
	Epoch   uint64          // of the token; 0 when resumed
	Facts   agentlink.Facts // empty when resumed by a process that did not see the join
}

// Handler gets what nodes say. Its methods are called in the order of arrival
// of one session, concurrently for several; they must return quickly.
type Handler interface {
	Joined(ctx context.Context, s Session)
	Heartbeat(ctx context.Context, s Session, h agentlink.Heartbeat) agentlink.HeartbeatAck
	Report(ctx context.Context, s Session, r agentlink.Report)
	Sample(ctx context.Context, s Session, m agentlink.Sample)
	// Gone says that the session ended and no other of the same boot has
	// taken its place.
	Gone(ctx context.Context, s Session, why string)
}

// Reuse is the second use of a one-time token: somebody copied it.
type Reuse struct {
	TokenHash [32]byte
	Claimed   string // the node's name as the peer gave it
	Facts     agentlink.Facts
	Remote    string
}

// Options are the parts of a Server. CA, Tokens, Handler and one of Listener
// and Addr are needed.
type Options struct {
	Listener net.Listener // taken over by Serve
	Addr     string       // listened on when there is no Listener
	CA       *CA
	Tokens   Tokens
	Handler  Handler
	Reused   func(ctx context.Context, r Reuse) // a token came twice; may be nil

	// Announced is told of a node without a token, at most once per
	// AnnouncePause and address. All that it says is a claim. May be nil; then
	// such a node is refused.
	Announced func(ctx context.Context, a Announcement) agentlink.Noted
	// Progress is told how far a long order is; may be nil. It must return
	// quickly.
	Progress func(ctx context.Context, s Session, p agentlink.Progress)

	CertLifetime   time.Duration // of a node's certificate; default 24 h, renewed over the link
	JoinTimeout    time.Duration // for handshake, hello and join together; default 15 s
	IdleTimeout    time.Duration // without any frame from a node; default 10 s
	ReconnectGrace time.Duration // Send waits this long for an absent session; default 10 s
	AnnouncePause  time.Duration // between announcements of one address; default 5 s
	MaxPending     int           // connections that have not yet proven who they are; default 128
	Log            *slog.Logger
}

func (o Options) withDefaults() Options {
	setDefault(&o.CertLifetime, 24*time.Hour)
	setDefault(&o.JoinTimeout, 15*time.Second)
	setDefault(&o.IdleTimeout, 10*time.Second)
	setDefault(&o.ReconnectGrace, 10*time.Second)
	setDefault(&o.AnnouncePause, 5*time.Second)
	if o.MaxPending == 0 {
		o.MaxPending = 128
	}
	if o.Reused == nil {
		o.Reused = func(context.Context, Reuse) {}
	}
	if o.Progress == nil {
		o.Progress = func(context.Context, Session, agentlink.Progress) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

func (o Options) validate() error {
	if o.CA == nil || o.Tokens == nil || o.Handler == nil {
		return errors.New("agentlink: server needs CA, Tokens and Handler")
	}
	if o.Listener == nil && o.Addr == "" {
		return errors.New("agentlink: server needs Listener or Addr")
	}
	return nil
}

// Server is the appliance's end of the link.
type Server struct {
	opt      Options
	log      *slog.Logger
	tls      *tls.Config
	listener net.Listener

	mu       sync.Mutex
	nextID   uint64
	sessions map[agentlink.Identity]*session
	arrivals chan struct{} // closed and made anew when a session arrives
	facts    map[agentlink.Identity]agentlink.Facts
	joins    joinMemory
	heard    map[netip.Addr]time.Time // when an address last announced a node
	waiting  map[orderKey]*waiting
	closed   bool
}

// New makes a server and opens its port.
func New(opt Options) (*Server, error) {
	opt = opt.withDefaults()
	if err := opt.validate(); err != nil {
		return nil, err
	}
	own, err := opt.CA.serverCertificate(time.Now())
	if err != nil {
		return nil, fmt.Errorf("agentlink: make the appliance's certificate: %w", err)
	}
	s := &Server{
		opt: opt, log: opt.Log, listener: opt.Listener,
		tls: &tls.Config{
			MinVersion:             tls.VersionTLS13,
			Certificates:           []tls.Certificate{own},
			ClientAuth:             tls.VerifyClientCertIfGiven,
			ClientCAs:              opt.CA.pool(),
			SessionTicketsDisabled: true, // a resumed session would not see that a certificate has expired
		},
		sessions: map[agentlink.Identity]*session{},
		arrivals: make(chan struct{}),
		facts:    map[agentlink.Identity]agentlink.Facts{},
		waiting:  map[orderKey]*waiting{},
		heard:    map[netip.Addr]time.Time{},
	}
	if s.listener == nil {
		if s.listener, err = net.Listen("tcp", opt.Addr); err != nil {
			return nil, listenError(opt.Addr, err)
		}
	}
	return s, nil
}

func listenError(addr string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return &hotspare.Error{
			Code: hotspare.CodePortTaken, What: "the port of the agent link is taken", Where: "tcp " + addr,
			Fix: "stop the process that `ss -ltnp` shows there, or set another address", Err: err,
		}
	}
	return fmt.Errorf("agentlink: listen: %w", err)
}

// Addr gives the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve accepts nodes until ctx is done; then it closes all links and returns
// nil when every goroutine has ended.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		_ = s.listener.Close()
	})
	defer stop()

	pending := make(chan struct{}, s.opt.MaxPending)
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				s.log.Warn("accept failed", "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			cancel()
			return fmt.Errorf("agentlink: accept: %w", err)
		}
		select {
		case pending <- struct{}{}:
		default:
			s.log.Warn("too many peers that have not joined", "remote", conn.RemoteAddr(), "limit", s.opt.MaxPending)
			_ = conn.Close()
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			s.handle(ctx, conn, sync.OnceFunc(func() { <-pending }))
		}()
	}
}

// Sessions gives the sessions that are up.
func (s *Server) Sessions() []Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Session, 0, len(s.sessions))
	for _, sess := range s.sessions {
		out = append(out, sess.info)
	}
	return out
}
