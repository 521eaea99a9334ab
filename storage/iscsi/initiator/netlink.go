package initiator

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
)

const (
	// netlinkISCSI is NETLINK_ISCSI, and its multicast group of iscsid.
	netlinkISCSI      = unix.NETLINK_ISCSI
	groupISCSID       = 1
	transportHandle   = "/sys/class/iscsi_transport/tcp/handle"
	socketBuffer      = 4 << 20
	replyTimeout      = 60 * time.Second
	largestKernelData = 64 << 10
)

// errOverrun: the socket's buffer overflowed and messages were dropped.
var errOverrun = errors.New("the kernel's messages overran the socket's buffer")

// errClosed: the control channel was closed.
var errClosed = errors.New("the initiator is closed")

// control is the kernel's control channel: one netlink socket that carries the
// requests with their replies and the events of all sessions. Both come over
// the one socket on purpose: so an event of a connection that was stopped is
// known to be read before the reply to the stop request.
type control struct {
	log    *slog.Logger
	file   *os.File
	raw    syscall.RawConn
	handle uint64 // of the tcp transport

	request sync.Mutex // one request at a time: replies carry no sequence number
	replies chan reply
	done    chan struct{} // closed when the reader ended

	mu       sync.Mutex
	sessions map[uint32]*mailbox
}

// reply is the answer to the one request under way.
type reply struct {
	request eventType // which request it repeats
	event   uevent
	err     error
}

// openControl opens the control channel and starts its reader.
func openControl(log *slog.Logger) (*control, error) {
	text, err := os.ReadFile(transportHandle)
	if err != nil {
		return nil, noKernel("the kernel has no iSCSI transport over TCP", err)
	}
	handle, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, noKernel("the handle of the kernel's iSCSI transport is not a number", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, netlinkISCSI)
	if err != nil {
		return nil, noKernel("the kernel's iSCSI control channel does not open", err)
	}
	// The forced size needs CAP_NET_ADMIN, which every user of this channel has;
	// without it the default is enough for all but storms.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (groupISCSID - 1)}); err != nil {
		unix.Close(fd)
		return nil, noKernel("the kernel's iSCSI control channel cannot be bound", err)
	}
	return startControl(log, fd, handle)
}

// startControl starts the reader of an open socket, which it then owns.
func startControl(log *slog.Logger, fd int, handle uint64) (*control, error) {
	file := os.NewFile(uintptr(fd), "iscsi control channel")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("iSCSI control channel: %w", err)
	}
	c := &control{
		log: log, file: file, raw: raw, handle: handle,
		replies:  make(chan reply, 4),
		done:     make(chan struct{}),
		sessions: make(map[uint32]*mailbox),
	}
	go c.read()
	return c, nil
}

// noKernel is the error of a machine whose kernel cannot log in.
func noKernel(what string, err error) error {
	return &hotspare.Error{
		Code: hotspare.CodeNoInitiator, What: what, Where: transportHandle,
		Fix: "load the kernel modules iscsi_tcp and sd_mod, and run with CAP_SYS_ADMIN and CAP_NET_ADMIN in the first network namespace",
		Err: err,
	}
}

// close ends the reader; sessions stay in the kernel.
func (c *control) close() {
	c.file.Close()
	<-c.done
}

// subscribe routes the events of session sid to m.
func (c *control) subscribe(sid uint32, m *mailbox) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sessions[sid] = m
}

func (c *control) unsubscribe(sid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, sid)
}

// do sends one request and gives the kernel's answer. The kernel works while we
// send: the answer lies in the socket when the send returns, so there is nothing
// to cancel. A refusal comes back as the errno.
func (c *control) do(e uevent, payload []byte) (uevent, error) {
	c.request.Lock()
	defer c.request.Unlock()
	for len(c.replies) > 0 { // of a request that was given up
		<-c.replies
	}
	e.Handle = c.handle
	if err := c.send(appendMessage(nil, &e, payload)); err != nil {
		return uevent{}, fmt.Errorf("%s: %w", e.Type, err)
	}
	timeout := time.NewTimer(replyTimeout)
	defer timeout.Stop()
	for {
		select {
		case r := <-c.replies:
			if r.err != nil {
				return uevent{}, fmt.Errorf("%s: %w", e.Type, r.err)
			}
			if r.request != e.Type {
				continue
			}
			if r.event.Type == keventIfError {
				return uevent{}, fmt.Errorf("%s: %w", e.Type, syscall.Errno(-r.event.IfError))
			}
			return r.event, nil
		case <-c.done:
			return uevent{}, fmt.Errorf("%s: %w", e.Type, errClosed)
		case <-timeout.C:
			return uevent{}, fmt.Errorf("%s: the kernel did not answer within %s", e.Type, replyTimeout)
		}
	}
}

func (c *control) send(b []byte) error {
	var sendErr error
	err := c.raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return !errors.Is(sendErr, unix.EAGAIN)
	})
	if err != nil {
		return errClosed
	}
	return sendErr
}

// read takes datagrams until the socket is closed.
func (c *control) read() {
	defer close(c.done)
	buf := make([]byte, largestKernelData)
	for {
		var n int
		var from unix.Sockaddr
		var recvErr error
		err := c.raw.Read(func(fd uintptr) bool {
			n, from, recvErr = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(recvErr, unix.EAGAIN) && !errors.Is(recvErr, unix.EINTR)
		})
		switch {
		case err != nil:
			return // closed
		case recvErr != nil:
			c.overrun(recvErr)
		default:
			if k, ok := from.(*unix.SockaddrNetlink); ok && k.Pid == 0 {
				c.dispatch(buf[:n], k.Groups != 0)
			}
		}
	}
}

// dispatch hands one message to the request that waits or to its session.
func (c *control) dispatch(b []byte, multicast bool) {
	msgType, e, payload, err := parseMessage(b)
	if err != nil {
		c.log.Warn("iscsi: message of the kernel ignored", "err", err)
		return
	}
	if !multicast {
		select {
		case c.replies <- reply{request: eventType(msgType), event: e}:
		default:
			c.log.Warn("iscsi: reply of the kernel that nobody waits for", "request", eventType(msgType).String())
		}
		return
	}
	if e.Handle != c.handle {
		return // another transport
	}
	n := notice{kind: e.Type}
	switch e.Type {
	case keventRecvPDU:
		n.pdu, n.err = parsePDU(payload)
	case keventConnError:
		n.code = e.reply32(8)
	case keventUnbindSession:
	default:
		return
	}
	c.mu.Lock()
	m := c.sessions[e.reply32(0)]
	c.mu.Unlock()
	if m != nil {
		m.post(n)
	}
}

// overrun tells everybody that messages may be missing.
func (c *control) overrun(err error) {
	c.log.Warn("iscsi: reading the control channel failed", "err", err)
	select {
	case c.replies <- reply{err: fmt.Errorf("%w: %w", errOverrun, err)}:
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.sessions {
		m.post(notice{kind: noticeOverrun})
	}
}
