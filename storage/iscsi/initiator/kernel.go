package initiator

import (
	"fmt"
	"syscall"

	"hotspare/storage/iscsi"
)

// Sizes of the kernel's command tables, as iscsid sets them. The first must be
// a power of two.
const (
	commandsMax  = 128
	queueDepth   = 32
	firstCmdSN   = 1
	connectionID = 0 // one connection per session
)

// channel carries requests to the kernel and routes its notices.
type channel interface {
	do(uevent, []byte) (uevent, error)
	subscribe(sid uint32, m *mailbox)
	unsubscribe(sid uint32)
}

// kernelSession is one session of the kernel's initiator.
type kernelSession struct {
	control channel
	sid     uint32
	host    uint32 // scsi_host number
}

// createSession creates a session with its connection, unbound. Its events go
// to m.
func createSession(c channel, m *mailbox) (*kernelSession, error) {
	e := uevent{Type: ueventCreateSession}
	e.putRequest32(0, firstCmdSN)
	native.PutUint16(e.Request[4:], commandsMax)
	native.PutUint16(e.Request[6:], queueDepth)
	r, err := c.do(e, nil)
	if err != nil {
		return nil, err
	}
	k := &kernelSession{control: c, sid: r.reply32(0), host: r.reply32(4)}
	c.subscribe(k.sid, m)
	e = uevent{Type: ueventCreateConn}
	e.putRequest32(0, k.sid)
	e.putRequest32(4, connectionID)
	if _, err := c.do(e, nil); err != nil {
		return nil, fmt.Errorf("%w (and %w)", err, k.destroySession())
	}
	return k, nil
}

// simple sends a request whose body is session and connection, then checks the
// return code.
func (k *kernelSession) simple(t eventType, more func(*uevent), payload []byte) error {
	e := uevent{Type: t}
	e.putRequest32(0, k.sid)
	e.putRequest32(4, connectionID)
	if more != nil {
		more(&e)
	}
	r, err := k.control.do(e, payload)
	if err != nil {
		return err
	}
	if code := int32(r.reply32(0)); code < 0 {
		return fmt.Errorf("%s: %w", t, syscall.Errno(-code))
	} else if code > 0 {
		return fmt.Errorf("%s: %s", t, kernelError(uint32(code)))
	}
	return nil
}

// bind gives the kernel the connected TCP socket fd. The kernel takes a
// reference of its own, so fd may be closed afterwards.
func (k *kernelSession) bind(fd int) error {
	return k.simple(ueventBindConn, func(e *uevent) {
		native.PutUint64(e.Request[8:], uint64(fd))
		e.putRequest32(16, 1) // leading connection
	}, nil)
}

// sendPDU lets the kernel send a log-in or log-out PDU. The kernel writes its
// own task tag and CmdSN into the header.
func (k *kernelSession) sendPDU(p *iscsi.PDU) error {
	p.Header.SetDataLength(len(p.Data))
	payload := append(p.Header[:len(p.Header):len(p.Header)], p.Data...)
	return k.simple(ueventSendPDU, func(e *uevent) {
		e.putRequest32(8, iscsi.HeaderSize)
		e.putRequest32(12, uint32(len(p.Data)))
	}, payload)
}

// setParam sets one parameter; the kernel reads it as text.
func (k *kernelSession) setParam(p param, value string) error {
	payload := append([]byte(value), 0)
	err := k.simple(ueventSetParam, func(e *uevent) {
		e.putRequest32(8, uint32(p))
		e.putRequest32(12, uint32(len(payload)))
	}, payload)
	if err != nil {
		return fmt.Errorf("parameter %d: %w", p, err)
	}
	return nil
}

// start lets commands flow.
func (k *kernelSession) start() error { return k.simple(ueventStartConn, nil, nil) }

// stop lets go of the socket. With stopRecover the I/O under way is kept for
// the next connection; with stopTerminate it fails.
func (k *kernelSession) stop(flag uint32) error {
	return k.simple(ueventStopConn, func(e *uevent) { e.putRequest32(16, flag) }, nil)
}

// unbind removes the session's devices; the kernel sends keventUnbindSession
// when it has done so.
func (k *kernelSession) unbind() error { return k.simple(ueventUnbindSession, nil, nil) }

// destroyConn and destroySession remove what createSession made. The connection
// must be stopped.
func (k *kernelSession) destroyConn() error { return k.simple(ueventDestroyConn, nil, nil) }

func (k *kernelSession) destroySession() error {
	k.control.unsubscribe(k.sid)
	return k.simple(ueventDestroySession, nil, nil)
}
