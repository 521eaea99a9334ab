package httpboot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// ServerOptions bound what clients may take of the appliance. All may be left
// out.
type ServerOptions struct {
	Connections int           // open at once, 0: 4096; more wait to be accepted
	PerAddress  int           // of one address, 0: 64; more are closed
	Header      time.Duration // for a request to come and for the TLS handshake, 0: 10 s
	Idle        time.Duration // between two requests, 0: 5 min; firmware fails when its connection is gone (tianocore/edk2#9920)
	TLS         *tls.Config   // nil: plain HTTP; Certificates.Config
	Log         *slog.Logger  // nil: discard
}

func (o ServerOptions) withDefaults() ServerOptions {
	if o.Connections <= 0 {
		o.Connections = 4096
	}
	if o.PerAddress <= 0 {
		o.PerAddress = 64
	}
	if o.Header <= 0 {
		o.Header = 10 * time.Second
	}
	if o.Idle <= 0 {
		o.Idle = 5 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Serve answers on the listener until ctx ends, and closes it. HTTP/1.1 only:
// no firmware speaks more, and files go out by sendfile(2). How long an answer
// may take is the handler's: Options.Stall.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, o ServerOptions) error {
	o = o.withDefaults()
	limited := &listener{Listener: ln, o: o, slots: make(chan struct{}, o.Connections), done: make(chan struct{}), each: map[netip.Addr]int{}}
	ln = limited
	if o.TLS != nil {
		ln = tls.NewListener(ln, o.TLS)
	}
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: o.Header, IdleTimeout: o.Idle, MaxHeaderBytes: 16 << 10,
		// What net/http complains of is a client's mistake.
		ErrorLog: slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(fmt.Errorf("serve boot files: %w", err), limited.Close())
	}
	return nil
}

// listener counts connections.
type listener struct {
	net.Listener
	o     ServerOptions
	slots chan struct{}
	done  chan struct{}
	once  sync.Once

	mu   sync.Mutex
	each map[netip.Addr]int
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.slots
			return nil, err
		}
		addr := remote(c)
		if !l.enter(addr) {
			l.o.Log.Warn("too many HTTP connections of one address", "client", addr, "limit", l.o.PerAddress)
			_ = c.Close()
			continue
		}
		leave := func() {
			l.leave(addr)
			<-l.slots
		}
		if t, ok := c.(*net.TCPConn); ok {
			return &tcpConn{TCPConn: t, leave: leave}, nil
		}
		return &anyConn{Conn: c, leave: leave}, nil
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

func (l *listener) enter(a netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.each[a] >= l.o.PerAddress {
		return false
	}
	l.each[a]++
	return true
}

func (l *listener) leave(a netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.each[a]--; l.each[a] <= 0 {
		delete(l.each, a)
	}
}

func remote(c net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// tcpConn keeps the methods of a TCP connection: without its ReadFrom there is
// no sendfile(2).
type tcpConn struct {
	*net.TCPConn
	once  sync.Once
	leave func()
}

func (c *tcpConn) Close() error {
	defer c.once.Do(c.leave)
	return c.TCPConn.Close()
}

type anyConn struct {
	net.Conn
	once  sync.Once
	leave func()
}

func (c *anyConn) Close() error {
	defer c.once.Do(c.leave)
	return c.Conn.Close()
}
