// Package tftp serves boot loaders over TFTP, read-only.
//
// There is no file system behind it: a name is in the map, or the injected
// Resolve knows it, or it is not there; so no path can lead out (CVE-2006-1951,
// CVE-2009-1730). Transfers follow RFC 1350 with option negotiation (RFC 2347):
// blksize (RFC 2348), tsize and timeout (RFC 2349), windowsize (RFC 7440). Block
// numbers roll over to 0, so a file may be of any size. Writing is refused, and
// so is netascii, which would damage a loader.
//
// Server and sender are our own: see the comment at sender for what pin/tftp
// lacks. Probe, the client that asks as a firmware does, is pin/tftp's.
//
// A client that spoofs another's address gets nothing sent there but one short
// answer, a few times: data flows after the first acknowledgement only, or block
// by block. Sessions are bounded in total and per address.
//
// Which file a firmware is told to fetch is decided in package boot.
package tftp

import (
	"context"
	"encoding/binary"
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

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/boot"
)

// Opener opens one file anew for each transfer.
type Opener func() (io.ReadSeekCloser, error)

// Resolved is the answer to a name that is not in Options.Files.
type Resolved struct {
	File   io.ReadSeekCloser // nil: refused, for Reason
	Node   string            // for the trace, "" if unknown
	MAC    boot.MAC          // likewise
	Reason boot.Reason
}

// Options of a Server. All but Files may be left out.
type Options struct {
	Listen string            // address and port, "10.77.0.1:69" or "[fd77::1]:69"; "" means ":69" of IPv4
	Files  map[string]Opener // what everybody is served, by exact name

	// Resolve is asked for every other name, with the name as it came but for
	// one leading slash: it may hold anything.
	Resolve func(context.Context, boot.Request) (Resolved, error)

	Transfers  int           // at most this many at once, 0: 256; more wait for their turn
	Waiting    int           // at most this many, 0: 2048
	PerAddress int           // transfers of one address, running and waiting, 0: 16
	Timeout    time.Duration // for the first acknowledgement of a packet, 0: 1 s; doubles up to eight times that
	Retries    int           // of a packet, 0: 5
	Window     int           // most blocks before an acknowledgement, 0: 64
	SinglePort bool          // send from the port that was asked, for firewalls and load balancers
	Fragment   bool          // allow blocks that do not fit into a packet of the path

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
	for _, d := range []struct {
		field *int
		value int
	}{{&o.Transfers, 256}, {&o.Waiting, 2048}, {&o.PerAddress, 16}, {&o.Retries, 5}, {&o.Window, 64}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if o.Timeout <= 0 {
		o.Timeout = time.Second
	}
	if o.Resolve == nil {
		o.Resolve = func(_ context.Context, r boot.Request) (Resolved, error) {
			return Resolved{Reason: boot.Reason{Rule: boot.RuleNoSuchFile, Text: fmt.Sprintf("no such file over TFTP: %.80q", boot.RedactFile(r.File))}}, nil
		}
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
	bad := func(what, where, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: where, Why: why}
	}
	for name := range o.Files {
		if !boot.ValidName(name) {
			return bad("a file cannot be served over TFTP", fmt.Sprintf("%q", name), "the name is not a plain file name")
		}
	}
	if o.Timeout != 0 && o.Timeout < time.Millisecond {
		return bad("the TFTP server is not configured", "tftp.Options.Timeout", "it is under a millisecond")
	}
	return nil
}

// Server serves the files. It has its port from New on; Serve answers.
type Server struct {
	o     Options
	conn  *net.UDPConn
	slots chan struct{}

	mu       sync.Mutex
	sessions map[peer]*session     // the latest of each client's port
	all      map[*session]struct{} // those too that it goes on with beside them
	each     map[netip.Addr]int    // sessions of an address
	wg       sync.WaitGroup
}

// New takes the port. A port that is taken is a *hotspare.Error with
// CodePortTaken that names the holder.
func New(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	conn, six, err := listen(o.Listen)
	if err != nil {
		return nil, listenError(o, err)
	}
	s := &Server{o: o, conn: conn.(*net.UDPConn), slots: make(chan struct{}, o.Transfers), sessions: map[peer]*session{}, all: map[*session]struct{}{}, each: map[netip.Addr]int{}}
	// Answers go from the address that was asked: a machine drops others.
	if six {
		err = ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	} else {
		err = ipv4.NewPacketConn(conn).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the TFTP socket: %w", err), conn.Close())
	}
	// A thousand machines that start at once ask within one moment.
	_ = s.conn.SetReadBuffer(4 << 20)
	return s, nil
}

// listen opens the port: of IPv4, unless the address is one of IPv6.
func listen(where string) (_ net.PacketConn, six bool, err error) {
	ap, err := netip.ParseAddrPort(where)
	if err != nil || !ap.Addr().Is6() || ap.Addr().Is4In6() {
		conn, err := net.ListenPacket("udp4", where)
		return conn, false, err
	}
	// For a second or two after a link came up the kernel still checks that nobody
	// else has the address, and refuses to bind it.
	c := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var opt error
		err := rc.Control(func(fd uintptr) { opt = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1) })
		return errors.Join(err, opt)
	}}
	conn, err := c.ListenPacket(context.Background(), "udp6", where)
	return conn, true, err
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
// are cut where they are.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Now()) })
	defer stop()
	err := s.listen(ctx)
	s.mu.Lock()
	for x := range s.all {
		x.stop()
	}
	s.mu.Unlock()
	s.wg.Wait()
	if ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, s.Close())
}

// listen takes what comes to the port.
func (s *Server) listen(ctx context.Context) error {
	buf, oob := make([]byte, 2048), make([]byte, 256)
	for {
		n, on, _, from, err := s.conn.ReadMsgUDPAddrPort(buf, oob)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECONNREFUSED): // of an answer from this port
			continue
		case err != nil:
			return fmt.Errorf("serve TFTP on %s: %w", s.o.Listen, err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		s.packet(ctx, peer{client: from, local: destination(oob[:on])}, buf[:n])
	}
}

// destination gives the address of ours that a packet was sent to.
func destination(oob []byte) netip.Addr {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range ms {
		if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo {
			return netip.AddrFrom4([4]byte(m.Data[4:8])) // Spec_dst, also for broadcasts
		}
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo {
			return netip.AddrFrom16([16]byte(m.Data[:16]))
		}
	}
	return netip.Addr{}
}

// packet looks at one packet. It never blocks.
func (s *Server) packet(ctx context.Context, p peer, b []byte) {
	if len(b) < 4 || p.client.Port() == 0 {
		return
	}
	switch binary.BigEndian.Uint16(b) {
	case opRead:
	case opWrite:
		s.refuse(p, codeAccess, "writing is not allowed: this server only gives")
		return
	default:
		s.mu.Lock()
		x := s.sessions[p]
		s.mu.Unlock()
		if x != nil && x.shared != nil {
			x.shared.deliver(append([]byte(nil), b...))
		}
		return
	}
	r, err := parseRequest(b)
	switch {
	case err != nil:
		s.refuse(p, codeIllegal, err.Error())
	case r.mode == "netascii":
		s.note(p, r, "error: netascii", "netascii would damage a loader; the machine has to ask for octet")
		s.refuse(p, codeOther, "netascii is not served, it would damage the file; use octet (binary) mode")
	case r.mode != "octet":
		s.refuse(p, codeIllegal, fmt.Sprintf("mode %.20q is not served; use octet", r.mode))
	default:
		s.admit(ctx, p, r, string(b))
	}
}

// refuse answers from the port that was asked.
func (s *Server) refuse(p peer, code uint16, text string) {
	_, _, _ = s.conn.WriteMsgUDPAddrPort(errorPacket(code, text), sourceMessage(p.local), p.client)
}

// note records a request that led to no transfer.
func (s *Server) note(p peer, r request, answer, text string) {
	e := s.entry(p, r)
	e.Answer, e.Reason = answer, boot.Reason{Rule: boot.RuleTransferFail, Text: text}
	s.o.Recorder.Record(e)
}

func (s *Server) entry(p peer, r request) boot.Entry {
	e := boot.Entry{At: s.o.Now(), Protocol: boot.TFTP, Step: stepOf(r.name), Request: fmt.Sprintf("read %.120q", boot.RedactFile(r.name))}
	e.MAC, _ = s.o.MACOf(p.client.Addr())
	return e
}

// stepOf takes what looks like a loader for one.
func stepOf(name string) boot.Step {
	if p, ok := boot.ParsePath("/" + name); ok {
		return boot.StepOf(p.Artefact) // what GRUB fetches
	}
	for _, end := range []string{".efi", ".kpxe", ".pxe", ".kkpxe", ".0"} {
		if strings.HasSuffix(name, end) {
			return boot.StepLoader
		}
	}
	return boot.StepFile
}
