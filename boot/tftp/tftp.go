// Package tftp serves boot loaders over TFTP, read-only, from a map of names.
//
// There is no file system behind it: a name is in the map or it is not, so no
// path can lead out (CVE-2006-1951, CVE-2009-1730). Transfers follow RFC 1350
// with blksize (RFC 2348) and tsize (RFC 2349), over pin/tftp. That library has
// no windowsize (RFC 7440), so only the small loader goes this way; all that is
// big goes over HTTP. Writing is refused.
//
// Which file a firmware is told to fetch is decided in package boot.
package tftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pin/tftp/v3"
	"golang.org/x/net/ipv4"

	"hotspare"
	"hotspare/boot"
)

// Opener opens one file anew for each transfer.
type Opener func() (io.ReadSeekCloser, error)

// Options of a Server. All but Files may be left out.
type Options struct {
	Listen    string            // address and port, "10.77.0.1:69"; "" means ":69"
	Files     map[string]Opener // the whole of what is served, by exact name
	Transfers int               // at most this many at once, 0: 64
	Timeout   time.Duration     // for one acknowledgement, 0: 2 s; five are waited for

	MACOf    func(netip.Addr) (boot.MAC, bool)                 // by lease, for traces only
	Holder   func(network string, port uint16) (string, error) // names who has the port: dhcp.PortHolder
	Recorder *boot.Recorder
	Log      *slog.Logger
	Now      func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Listen == "" {
		o.Listen = ":69"
	}
	if o.Transfers <= 0 {
		o.Transfers = 64
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Second
	}
	if o.MACOf == nil {
		o.MACOf = func(netip.Addr) (boot.MAC, bool) { return boot.MAC{}, false }
	}
	if o.Holder == nil {
		o.Holder = func(string, uint16) (string, error) { return "another process", nil }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	for name := range o.Files {
		if !boot.ValidName(name) {
			return &hotspare.Error{Code: hotspare.CodeInvalid, What: "a file cannot be served over TFTP", Where: fmt.Sprintf("%q", name), Why: "the name is not a plain file name"}
		}
	}
	return nil
}

// Server serves the files. It has its port from New on; Serve answers.
type Server struct {
	o     Options
	conn  net.PacketConn
	inner *tftp.Server
	slots chan struct{}

	mu  sync.Mutex
	ctx context.Context // of Serve: ends the transfers
}

// New takes the port. A port that is taken is a *hotspare.Error with
// CodePortTaken that names the holder.
func New(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	conn, err := net.ListenPacket("udp4", o.Listen)
	if err != nil {
		return nil, listenError(o, err)
	}
	// The library asks for the interface of each request, from which it takes
	// the block size, only when it begins to serve; a request that is there
	// before would get 512.
	if err := ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the TFTP socket: %w", err), conn.Close())
	}
	s := &Server{o: o, conn: conn, slots: make(chan struct{}, o.Transfers), ctx: context.Background()}
	s.inner = tftp.NewServer(s.read, nil)
	s.inner.SetTimeout(o.Timeout)
	s.inner.SetRetries(5)
	// The library would wait a random time of up to a second more before every
	// repeat; the timeout was the wait.
	s.inner.SetBackoff(func(int) time.Duration { return 0 })
	return s, nil
}

func listenError(o Options, err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("listen for TFTP on %s: %w", o.Listen, err)
	}
	ap, perr := netip.ParseAddrPort(o.Listen)
	port := uint16(69)
	if perr == nil {
		port = ap.Port()
	}
	who, herr := o.Holder("udp", port)
	if herr != nil || who == "" {
		who = "another process"
	}
	return &hotspare.Error{
		Code: hotspare.CodePortTaken, What: fmt.Sprintf("UDP port %d (TFTP) is taken", port), Where: o.Listen,
		Why: "held by " + who, Fix: "stop that service, or give it another address", Err: err,
	}
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close gives the port back without serving; after Serve it has no effect.
func (s *Server) Close() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close the TFTP socket: %w", err)
	}
	return nil
}

// Serve answers until ctx ends, and returns when all transfers have ended: they
// are cut at their next block.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- s.inner.Serve(s.conn) }()
	select {
	case err := <-done:
		s.inner.Shutdown()
		if err != nil {
			return fmt.Errorf("serve TFTP on %s: %w", s.o.Listen, err)
		}
		return nil
	case <-ctx.Done():
	}
	s.inner.Shutdown()
	return <-done
}

// read answers one request. The library calls it on a goroutine of its own and
// does not recover.
func (s *Server) read(name string, rf io.ReaderFrom) (err error) {
	e := boot.Entry{At: s.o.Now(), Protocol: boot.TFTP, Request: fmt.Sprintf("read %.80q", name)}
	if out, ok := rf.(tftp.OutgoingTransfer); ok {
		addr := out.RemoteAddr()
		e.MAC, _ = s.o.MACOf(addr.AddrPort().Addr().Unmap())
	}
	defer func() {
		if p := recover(); p != nil {
			s.o.Log.Error("TFTP transfer panicked", "file", name, "panic", p)
			err = errors.New("internal error")
		}
		s.o.Recorder.Record(e)
	}()
	open, ok := s.o.Files[strings.TrimPrefix(name, "/")]
	if !ok {
		e.Answer = "error: not found"
		e.Reason = boot.Reason{Rule: boot.RuleNoSuchFile, Text: fmt.Sprintf("no such file over TFTP: %.80q", name)}
		return errors.New("file not found")
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		e.Answer = "error: busy"
		e.Reason = boot.Reason{Rule: boot.RuleTransferFail, Text: "too many TFTP transfers at once"}
		return errors.New("busy, try again")
	}
	s.transfer(name, open, rf, &e)
	if e.Reason.Rule != boot.RuleTransferred {
		return errors.New("transfer failed")
	}
	return nil
}

func (s *Server) transfer(name string, open Opener, rf io.ReaderFrom, e *boot.Entry) {
	f, err := open()
	if err != nil {
		s.o.Log.Error("TFTP file not available", "file", name, "err", err)
		e.Answer = "error: not available"
		e.Reason = boot.Reason{Rule: boot.RuleTransferFail, Text: "the file cannot be opened; the appliance's log says why"}
		return
	}
	defer f.Close()
	s.mu.Lock()
	ctx := s.ctx
	s.mu.Unlock()
	n, err := rf.ReadFrom(&cut{ctx: ctx, ReadSeeker: f})
	e.Answer = fmt.Sprintf("%d bytes in %s", n, s.o.Now().Sub(e.At).Round(time.Millisecond))
	if err != nil && strings.HasPrefix(err.Error(), "sending block 0: code=") {
		// PXE firmware asks twice: once for the size alone, which it ends with
		// an error packet.
		e.Answer, e.Reason = "its size", boot.Reason{Rule: boot.RuleTransferred, Text: "the machine asked for the size of " + name}
		return
	}
	if err != nil {
		e.Reason = boot.Reason{Rule: boot.RuleTransferFail, Text: fmt.Sprintf("%s stopped after %d bytes: %v", name, n, err)}
		return
	}
	e.Reason = boot.Reason{Rule: boot.RuleTransferred, Text: "sent the loader " + name}
}

// cut ends a transfer when the server stops. It stays a Seeker, from which the
// library takes tsize.
type cut struct {
	ctx context.Context
	io.ReadSeeker
}

func (c *cut) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, errors.New("the server stops")
	}
	return c.ReadSeeker.Read(b)
}
