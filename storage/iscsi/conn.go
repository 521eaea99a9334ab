package iscsi

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is one connection and, with MaxConnections=1, its session.
type conn struct {
	t    *Target
	nc   net.Conn
	r    *bufio.Reader
	raw  syscall.RawConn // of nc; nil if it has none
	done chan struct{}   // closed when nothing of the connection runs any more

	nexus     nexus
	discovery bool
	cid, tsih uint16
	params    params
	lu        *lu // nil in a discovery session

	heard     atomic.Int64 // when the peer was last heard, unix nanoseconds
	textAsked []byte       // of text requests with the C bit; reader only
	textRest  []byte       // of a text answer that did not fit; reader only

	tx    sender
	eager eager  // receiving goroutine only
	out   *batch // answers of the hot path that are not sent yet; receiving goroutine only
	// missed are small reads that have to wait for the disk; receiving goroutine only.
	missed []*task

	// hot is held while the receiving goroutine carries out a command itself.
	hot sync.Mutex

	mu       sync.Mutex
	cmdSN    uint32 // next one expected
	active   uint32 // commands that hold a place in the window
	tasks    map[uint32]*task
	held     int     // bytes of write data that started tasks hold
	waiting  []*task // for held to go down
	nextTag  uint32
	pinger   *time.Timer    // nil outside the full feature phase
	running  sync.WaitGroup // commands and task management under way, and the sender's goroutine
	big      chan struct{}  // one place per long read under way
	managing chan struct{}  // one place per task management request under way

	statSN uint32 // during log-in; afterwards tx has it
}

func newConn(t *Target, nc net.Conn) *conn {
	c := &conn{
		t: t, nc: nc, done: make(chan struct{}),
		params: defaultParams(), tasks: map[uint32]*task{}, big: make(chan struct{}, bigReads), managing: make(chan struct{}, maxManaging),
	}
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	c.eager = eager{raw: c.raw, places: t.places}
	c.r = t.mem.reader(source{c})
	c.tx.cond.L = &c.tx.mu
	c.tx.mem, c.tx.nc, c.tx.drained = &t.mem, nc, make(chan struct{})
	return c
}

// cut ends the connection at once.
func (c *conn) cut() {
	c.nc.Close() // whoever writes holds up nobody
	c.tx.stop()
}

// revoked ends the session because its grant is gone: the initiator is told, if
// it listens, and then cut. It does not block.
func (c *conn) revoked() {
	var h Header
	h.SetOpcode(OpAsync, false)
	h.SetFlags(0x80)
	h.SetTaskTag(ReservedTag)
	h[36] = 3 // the target drops all connections of this session
	exp, limit := c.window()
	h.SetWindow(exp, limit)
	c.tx.putNow(&h, true)
	c.finish()
}

// finish cuts the connection once all that is queued was sent, at most a moment
// later.
func (c *conn) finish() {
	c.nc.SetWriteDeadline(time.Now().Add(250 * time.Millisecond))
	c.tx.finish()
}

// run serves the connection to its end.
func (c *conn) run(ctx context.Context) {
	defer close(c.done)
	defer c.t.forget(c)
	err := c.login(ctx)
	if err != nil {
		if !isGone(err) {
			c.t.opts.Log.Warn("iscsi: log-in refused", "address", c.nc.RemoteAddr().String(), "initiator", c.nexus.initiator, "err", err)
		}
	} else {
		err = c.serve()
		if err != nil && !isGone(err) {
			c.t.opts.Log.Warn("iscsi: session dropped", "initiator", c.nexus.initiator, "target", c.nexus.target, "err", err)
		}
	}
	c.cut()
	c.abandon()
	c.running.Wait()
	c.t.mem.freeReader(c.r)
	if c.lu != nil {
		c.lu.leave()
		c.lu.att.End()
	}
}

// isGone says whether the peer merely went away.
func isGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, errLoggedOut)
}

var errLoggedOut = errors.New("iscsi: logged out")

// serve is the full feature phase.
func (c *conn) serve() error {
	c.tx.start(c.statSN, c.params.digests, c.raw, func() { c.running.Go(c.tx.run) })
	c.watch()
	err := c.receive()
	c.runMissed()
	c.sendBatch()
	c.finish() // a Reject or the answer to a log-out still goes out
	c.unwatch()
	<-c.tx.drained
	return err
}

// watch begins to ask a silent peer whether it lives.
func (c *conn) watch() {
	c.heard.Store(time.Now().UnixNano())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pinger = time.AfterFunc(c.t.opts.PingAfter, c.ping)
}

func (c *conn) unwatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pinger.Stop()
	c.pinger = nil
}

// ping asks a silent peer whether it lives, and cuts one that does not answer.
func (c *conn) ping() {
	every := c.t.opts.PingAfter
	silent := time.Since(time.Unix(0, c.heard.Load()))
	if silent > 3*every {
		c.t.opts.Log.Warn("iscsi: silent session dropped", "initiator", c.nexus.initiator, "target", c.nexus.target, "silent", silent)
		c.cut()
		return
	}
	if silent > every {
		var h Header
		h.SetOpcode(OpNopIn, false)
		h.SetFlags(0x80)
		h.SetTaskTag(ReservedTag)
		h.SetTransferTag(c.newTag())
		exp, limit := c.window()
		h.SetWindow(exp, limit)
		c.tx.putNow(&h, false)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pinger != nil {
		c.pinger.Reset(every)
	}
}

func (c *conn) newTag() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextTag++
	if c.nextTag == ReservedTag {
		c.nextTag = 0
	}
	return c.nextTag
}

// idle says whether no command waits for the disk or for data.
func (c *conn) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.tasks) == 0
}

// window gives ExpCmdSN and MaxCmdSN.
func (c *conn) window() (exp, limit uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cmdSN, c.cmdSN + commandWindow - 1 - c.active
}

// send queues a PDU with window, which takes a status number.
func (c *conn) send(h *Header, data []byte) {
	exp, limit := c.window()
	h.SetWindow(exp, limit)
	c.tx.put(h, data, true)
}

// receive reads and dispatches PDUs until the connection ends.
func (c *conn) receive() error {
	var h Header
	ahs := make([]byte, 0, 1024)
	for {
		p, err := c.r.Peek(HeaderSize)
		if err != nil && len(p) > 0 {
			return noEOF(err)
		}
		if err != nil {
			return err
		}
		h = Header(p)
		if h.Opcode() == OpSCSICommand && c.hotCommand(&h) {
			continue
		}
		if _, err := c.r.Discard(HeaderSize); err != nil {
			return err
		}
		ahs = ahs[:h.AHSLength()]
		if _, err := io.ReadFull(c.r, ahs); err != nil {
			return noEOF(err)
		}
		if c.params.digests.Header {
			var b [4]byte
			if _, err := io.ReadFull(c.r, b[:]); err != nil {
				return noEOF(err)
			}
			if binary.LittleEndian.Uint32(b[:]) != Digest(h[:], ahs) {
				return ErrHeaderDigest
			}
		}
		if n := h.DataLength(); n > maxRecvSegment {
			return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLong, n, maxRecvSegment)
		}
		if err := c.dispatch(&h, len(ahs)); err != nil {
			return err
		}
	}
}

// dispatch handles one PDU whose data segment is still to be read.
func (c *conn) dispatch(h *Header, ahs int) error {
	op := h.Opcode()
	if op == OpDataOut {
		return c.dataOut(h)
	}
	data := c.dataBuffer(h)
	if err := c.readData(data); err != nil {
		if errors.Is(err, ErrDataDigest) {
			c.reject(h, rejectDataDigest)
		}
		return err
	}
	if ok, err := c.inOrder(h); !ok {
		return err
	}
	if op != OpSCSICommand {
		c.sendBatch()
	}
	switch op {
	case OpSCSICommand:
		if c.discovery {
			return c.protocolError(h, "a SCSI command in a discovery session")
		}
		return c.command(h, ahs, data)
	case OpNopOut:
		c.nopOut(h, data)
	case OpTextRequest:
		return c.text(h, data)
	case OpTaskRequest:
		c.taskRequest(h)
	case OpLogout:
		return c.logout(h)
	case OpSNACK:
		c.reject(h, rejectSNACK)
	case OpLoginRequest:
		return c.protocolError(h, "a log-in in the full feature phase")
	default:
		c.reject(h, rejectCommand)
	}
	return nil
}

// dataBuffer gives the place of the data segment of h. That of a write has room
// for all of the write's data.
func (c *conn) dataBuffer(h *Header) []byte {
	n := h.DataLength()
	if h.Opcode() != OpSCSICommand || h.Flags()&0x20 == 0 || n == 0 {
		return make([]byte, n)
	}
	switch h.CDB()[0] {
	case 0x2a, 0x8a, 0xaa:
		all := int(h.TransferTag())
		c.mu.Lock()
		fits := n <= all && c.held+all <= outstandingData // else it waits, with no more than what came
		c.mu.Unlock()
		if !fits {
			break
		}
		if b := c.t.mem.buffer(all); b != nil {
			return b[:n]
		}
	}
	return make([]byte, n)
}

// readData reads a data segment into dst, with padding and digest.
func (c *conn) readData(dst []byte) error {
	if len(dst) == 0 {
		return nil
	}
	if _, err := io.ReadFull(c.r, dst); err != nil {
		return noEOF(err)
	}
	var tail [8]byte // padding, digest
	p := pad(len(dst))
	n := p
	if c.params.digests.Data {
		n += 4
	}
	if _, err := io.ReadFull(c.r, tail[:n]); err != nil {
		return noEOF(err)
	}
	if c.params.digests.Data && binary.LittleEndian.Uint32(tail[p:]) != Digest(dst, tail[:p]) {
		return ErrDataDigest
	}
	return nil
}

// inOrder says whether a request is to be looked at: one for immediate delivery
// is, any other only with the number that is expected (RFC 7143, 4.2.2.1). On a
// single connection nothing can fill a gap, so what is out of order is ignored.
func (c *conn) inOrder(h *Header) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tasks) >= 2*commandWindow {
		return false, errors.New("iscsi: the initiator ignores the command window")
	}
	if h.Immediate() {
		return true, nil
	}
	if h.CmdSN() != c.cmdSN {
		return false, nil
	}
	c.cmdSN++
	if h.Opcode() == OpSCSICommand {
		c.active++ // together with the number: the window never looks wider than it is
	}
	return true, nil
}

// Reasons of a Reject (RFC 7143, 11.17.1).
const (
	rejectDataDigest = 0x02
	rejectSNACK      = 0x03
	rejectProtocol   = 0x04
	rejectCommand    = 0x05
	rejectInvalid    = 0x09
)

func (c *conn) reject(bad *Header, reason byte) {
	var h Header
	h.SetOpcode(OpReject, false)
	h.SetFlags(0x80)
	h[2] = reason
	h.SetTaskTag(ReservedTag)
	c.send(&h, append([]byte(nil), bad[:]...))
}

// protocolError rejects a PDU and ends the connection.
func (c *conn) protocolError(h *Header, format string, a ...any) error {
	c.reject(h, rejectProtocol)
	return fmt.Errorf("iscsi: protocol error: "+format, a...)
}
