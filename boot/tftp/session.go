package tftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hotspare/boot"
)

// peer is who asked, and at which address of ours.
type peer struct {
	client netip.AddrPort
	local  netip.Addr
}

// session is one transfer, from its request on.
type session struct {
	peer    peer
	request request
	raw     string // the request's bytes
	shared  *sharedPort

	acked atomic.Int64 // when the client acknowledged last, in ns since 1970; 0: never

	mu      sync.Mutex
	port    *ownPort // once it is open
	anew    bool     // the client began anew; its port belongs to another session
	asked   bool     // the same request came again
	stopped chan struct{}
	once    sync.Once
}

// stop ends the session soon; its goroutine cleans up.
func (x *session) stop() {
	x.once.Do(func() { close(x.stopped) })
	if x.shared != nil {
		x.shared.stop()
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.port != nil {
		x.port.stop()
	}
}

// replace ends the session without a word to the client.
func (x *session) replace() {
	x.mu.Lock()
	x.anew = true
	x.mu.Unlock()
	x.stop()
}

func (x *session) replaced() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.anew
}

// again says whether a request from the session's own client is the same one
// once more: the client misses the answer, which will be repeated; or its error
// packet is on its way to us; or it asked twice and goes on with the first
// answer. A client that began anew within the second will ask again.
func (x *session) again(raw string, soon time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.raw != raw {
		return false
	}
	last := x.acked.Load()
	if last == 0 {
		x.asked = true
	}
	return last == 0 || time.Since(time.Unix(0, last)) < soon
}

// admit begins a session, or finds that there is one already.
func (s *Server) admit(ctx context.Context, p peer, r request, raw string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.sessions[p]; old != nil {
		if old.again(raw, s.o.Timeout) {
			return
		}
		// Another request from the same port, as firmware does it. One that has
		// not begun was a question for the size. One that has goes on beside the
		// new one, which has a port of its own: what came may be old, delayed on
		// its way (RFC 1123, 4.2.3.1). With a single port there is no beside.
		if old.acked.Load() == 0 || old.shared != nil {
			s.forget(old)
			old.replace()
		}
	}
	full := ""
	switch addr := p.client.Addr(); {
	case s.each[addr] >= s.o.PerAddress:
		full = fmt.Sprintf("%d transfers of this address are open already", s.each[addr])
	case len(s.all) >= s.o.Transfers+s.o.Waiting:
		full = "too many TFTP transfers at once"
	}
	if full != "" {
		s.note(p, r, "error: busy", full)
		s.refuse(p, codeOther, "busy, try again: "+full)
		return
	}
	s.begin(ctx, p, r, raw)
}

// begin starts the goroutine of a session; s.mu is held.
func (s *Server) begin(ctx context.Context, p peer, r request, raw string) {
	x := &session{peer: p, request: r, raw: raw, stopped: make(chan struct{})}
	if s.o.SinglePort {
		x.shared = newSharedPort(s.conn, p.local, p.client)
	}
	s.sessions[p] = x
	s.all[x] = struct{}{}
	s.each[p.client.Addr()]++
	s.wg.Go(func() { s.serve(ctx, x) })
}

// forget takes a session out of the tables; s.mu is held.
func (s *Server) forget(x *session) {
	if _, ok := s.all[x]; !ok {
		return
	}
	delete(s.all, x)
	if s.sessions[x.peer] == x {
		delete(s.sessions, x.peer)
	}
	addr := x.peer.client.Addr()
	if s.each[addr]--; s.each[addr] == 0 {
		delete(s.each, addr)
	}
}

// serve leads one session from its turn to its trace.
func (s *Server) serve(ctx context.Context, x *session) {
	e := s.entry(x.peer, x.request)
	var err error
	defer func() {
		if p := recover(); p != nil {
			s.o.Log.Error("TFTP transfer panicked", "file", boot.RedactFile(x.request.name), "panic", p)
			s.refuse(x.peer, codeOther, "internal error")
			e.Answer, e.Reason = "error: internal", boot.Reason{Rule: boot.RuleTransferFail, Text: "an internal error; the appliance's log says which"}
		}
		s.o.Recorder.Record(e)
		s.mu.Lock()
		defer s.mu.Unlock()
		known := s.sessions[x.peer] == x
		s.forget(x)
		// The client ended this one and asked for the same again before we saw
		// its error packet.
		if ended := (refusal{}); known && x.asked && errors.As(err, &ended) && ctx.Err() == nil {
			s.begin(ctx, x.peer, x.request, x.raw)
		}
	}()
	if !s.turn(x, &e) {
		return
	}
	defer func() { <-s.slots }()
	err = s.transfer(ctx, x, &e)
}

// turn waits for a free slot. A client that is not answered asks again for half
// a minute; then its session is found waiting.
func (s *Server) turn(x *session, e *boot.Entry) bool {
	select {
	case s.slots <- struct{}{}:
		return true
	default:
	}
	t := time.NewTimer(30 * s.o.Timeout)
	defer t.Stop()
	select {
	case s.slots <- struct{}{}:
		return true
	case <-x.stopped:
		e.Answer, e.Reason = "nothing", boot.Reason{Rule: boot.RuleTransferFail, Text: "the transfer was stopped before its turn: the server stops, or the machine asked anew"}
	case <-t.C:
		e.Answer, e.Reason = "error: busy", boot.Reason{Rule: boot.RuleTransferFail, Text: "too many TFTP transfers at once"}
		s.refuse(x.peer, codeOther, "busy, try again")
	}
	return false
}

// transfer finds the file and sends it.
func (s *Server) transfer(ctx context.Context, x *session, e *boot.Entry) error {
	name := strings.TrimPrefix(x.request.name, "/")
	f, err := s.find(ctx, x, name, e)
	if err != nil {
		s.o.Log.Error("TFTP file not available", "file", boot.RedactFile(name), "err", err)
		e.Answer = "error: not available"
		e.Reason = boot.Reason{Rule: boot.RuleTransferFail, Text: "the file cannot be opened; the appliance's log says why"}
		s.refuse(x.peer, codeOther, "the file is not available")
		return err
	}
	if f == nil {
		e.Answer = "error: not found"
		s.refuse(x.peer, codeNotFound, "file not found")
		return nil
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		s.o.Log.Error("TFTP file has no size", "file", boot.RedactFile(name), "err", err)
		s.refuse(x.peer, codeOther, "the file is not available")
		e.Answer, e.Reason = "error: not available", boot.Reason{Rule: boot.RuleTransferFail, Text: "the file's size is not known"}
		return err
	}
	err = s.send(x, readerAt(f), size, e)
	s.told(name, size, err, e, x)
	return err
}

// find opens what was asked for; nil is a refusal that e tells.
func (s *Server) find(ctx context.Context, x *session, name string, e *boot.Entry) (io.ReadSeekCloser, error) {
	if open, ok := s.o.Files[name]; ok {
		return open()
	}
	client := x.peer.client.Addr()
	mac, _ := s.o.MACOf(client)
	r, err := s.o.Resolve(ctx, boot.Request{Protocol: boot.TFTP, Stage: boot.StageFirmware, File: name, MAC: mac, Client: client})
	if err != nil {
		return nil, err
	}
	if e.MAC.IsZero() {
		e.MAC = r.MAC
	}
	e.Node, e.Reason = r.Node, r.Reason
	return r.File, nil
}

// send agrees on the options and sends.
func (s *Server) send(x *session, r io.ReaderAt, size int64, e *boot.Entry) error {
	l, mtu, err := s.open(x)
	if err != nil {
		return err
	}
	if x.port != nil {
		defer x.port.close()
	}
	oack, p := negotiate(x.request, size, limits{window: s.o.Window, mtu: mtu, fragment: s.o.Fragment})
	t := newSender(l, r, size, p, patience{first: s.o.Timeout, most: 8 * s.o.Timeout, tries: s.o.Retries, last: min(3, s.o.Retries)})
	t.acknowledged = x.acked.Store
	err = t.run(oack)
	e.Detail = boot.Detail{Bytes: t.bytes(), Size: size, Resent: t.resent, Took: s.o.Now().Sub(e.At)}
	switch ended := (refusal{}); {
	case err == nil, errors.As(err, &ended), errors.Is(err, errGone), errors.Is(err, errSilent):
	case errors.Is(err, errStopped) && x.replaced():
		err = errAnew
	case errors.Is(err, errStopped):
		_ = l.send([][]byte{errorPacket(codeOther, "the server stops"), nil})
	default:
		_ = l.send([][]byte{errorPacket(codeOther, "the file cannot be read"), nil})
	}
	if errors.Is(err, errSilent) && t.acked+1 == t.blocks() && t.acked > 0 || errors.Is(err, errGone) && t.acked+uint64(p.window) >= t.blocks() && t.acked > 0 {
		return fmt.Errorf("%w: %w", errUnacknowledged, err)
	}
	return err
}

// errUnacknowledged: all was sent, and all but the last block acknowledged. Some
// loaders close their port as soon as they have it all.
var errUnacknowledged = errors.New("the last block was not acknowledged")

var errAnew = errors.New("the machine asked anew")

func (s *Server) open(x *session) (link, int, error) {
	if x.shared != nil {
		return x.shared, pathMTU(x.peer.local, x.peer.client), nil
	}
	p, err := openPort(x.peer.local, x.peer.client)
	if err != nil {
		return nil, 0, err
	}
	x.mu.Lock()
	x.port = p
	x.mu.Unlock()
	select {
	case <-x.stopped: // before there was a port to stop
		p.stop()
	default:
	}
	return p, p.mtu, nil
}

// told writes the outcome of a transfer for people.
func (s *Server) told(name string, size int64, err error, e *boot.Entry, x *session) {
	shown := boot.RedactFile(name)
	e.Answer = fmt.Sprintf("%d bytes in %s", e.Detail.Bytes, e.Detail.Took.Round(time.Millisecond))
	ended := refusal{}
	switch {
	case err == nil:
		e.Reason = boot.Reason{Rule: boot.RuleTransferred, Text: "sent " + shown}
	case errors.Is(err, errUnacknowledged):
		e.Answer = fmt.Sprintf("%d bytes in %s", size, e.Detail.Took.Round(time.Millisecond))
		e.Reason = boot.Reason{Rule: boot.RuleTransferred, Text: "sent " + shown + "; its last block was not acknowledged"}
	case (errors.As(err, &ended) || errors.Is(err, errAnew)) && e.Detail.Bytes == 0 && x.request.asks("tsize"):
		// PXE firmware asks twice: once for the size alone, which it ends with
		// an error packet.
		e.Answer, e.Detail.Probe = "its size", true
		e.Reason = boot.Reason{Rule: boot.RuleTransferred, Text: "the machine asked for the size of " + shown}
	default:
		e.Reason = boot.Reason{Rule: boot.RuleTransferFail, Text: fmt.Sprintf("%s stopped after %d bytes: %v", shown, e.Detail.Bytes, err)}
	}
}

// readerAt reads at offsets, by the file itself if it can.
func readerAt(f io.ReadSeeker) io.ReaderAt {
	if r, ok := f.(io.ReaderAt); ok {
		return r
	}
	return seeking{f}
}

type seeking struct{ io.ReadSeeker }

func (s seeking) ReadAt(b []byte, off int64) (int, error) {
	if _, err := s.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	return io.ReadFull(s, b)
}
