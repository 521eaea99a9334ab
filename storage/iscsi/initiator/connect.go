package initiator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/storage/iscsi"
)

// connect makes one try: dial, bind, log in, set parameters, start. After a
// failure the connection is stopped and what it sent is cleared, so that the
// next try begins clean.
func (s *Session) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.initiator.opts.LoginTimeout)
	defer cancel()
	fd, err := dial(ctx, s.target.Portal.String())
	if err != nil {
		return err
	}
	defer unix.Close(fd) // the kernel holds a reference of its own
	if err = s.kernel.bind(fd); err != nil {
		return err
	}
	if err = closedByPeer(fd); err == nil {
		err = s.logInAndStart(ctx)
	}
	if err == nil {
		return nil
	}
	if e := s.stopForRecovery(); e != nil {
		err = errors.Join(err, e)
	}
	return err
}

func (s *Session) logInAndStart(ctx context.Context) error {
	n, err := logIn(ctx, s, &s.target)
	if err != nil {
		return err
	}
	for _, p := range settings(&s.target, n) {
		if err := s.kernel.setParam(p.param, p.value); err != nil {
			return err
		}
	}
	return s.kernel.start()
}

// stopForRecovery lets go of the socket and keeps the I/O. All events of the
// old connection have been read when the kernel's reply is: drop them.
func (s *Session) stopForRecovery() error {
	err := s.kernel.stop(stopRecover)
	s.box.clear()
	return err
}

// dial connects and gives a socket that Go's poller knows nothing of. No name
// is looked up: the portal is an address.
func dial(ctx context.Context, portal string) (int, error) {
	d := net.Dialer{KeepAlive: -1} // the kernel's NOPs watch the connection
	d.SetMultipathTCP(false)       // the kernel takes plain TCP only
	c, err := d.DialContext(ctx, "tcp", portal)
	if err != nil {
		return -1, err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(err, dupErr)
}

// closedByPeer says whether the peer closed the connection before the kernel
// took it over. The kernel reports what happens to a socket after it was bound
// and does not look at what happened before: a FIN that came in between, from a
// target that dies while we connect, would go unnoticed (seen with Linux 6.1).
func closedByPeer(fd int) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for {
		_, err := unix.Poll(p, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case p[0].Revents != 0:
			return errors.New("the target closed the connection at once")
		}
		return nil
	}
}

// exchange sends a log-in PDU through the kernel and waits for the answer.
func (s *Session) exchange(ctx context.Context, p *iscsi.PDU) (*iscsi.PDU, error) {
	if err := s.kernel.sendPDU(p); err != nil {
		return nil, err
	}
	n, err := s.await(ctx, keventRecvPDU)
	if err != nil {
		return nil, err
	}
	return n.pdu, nil
}

// await gives the next notice of the kind. A failure of the connection ends the
// wait.
func (s *Session) await(ctx context.Context, kind eventType) (notice, error) {
	for {
		for n, ok := s.box.take(); ok; n, ok = s.box.take() {
			switch {
			case n.kind == kind:
				return n, n.err
			case n.kind == keventConnError:
				return n, fmt.Errorf("the connection failed: %s", kernelError(n.code))
			case n.kind == noticeOverrun:
				return n, errOverrun
			}
		}
		select {
		case <-s.box.wake:
		case <-ctx.Done():
			return notice{}, fmt.Errorf("no answer: %w", context.Cause(ctx))
		}
	}
}

// failure reads the notices of a running session and says why it must be
// recovered, or "".
func (s *Session) failure() string {
	why := ""
	for n, ok := s.box.take(); ok; n, ok = s.box.take() {
		switch {
		case n.kind == keventConnError:
			why = kernelError(n.code)
		case n.kind == noticeOverrun && !s.kernel.up():
			why = "the connection failed while messages were lost"
		case n.kind == keventRecvPDU && n.err == nil:
			if w := asyncReason(n.pdu); w != "" {
				why = w
			}
		}
	}
	return why
}

// asyncReason says why an asynchronous message asks us to leave (RFC 7143,
// 11.9.1). A log-out that the target asks for is answered by logging in again:
// the new log-in reinstates the session.
func asyncReason(p *iscsi.PDU) string {
	if p.Header.Opcode() != iscsi.OpAsync {
		return ""
	}
	switch p.Header[36] {
	case 1:
		return "the target asks for a log-out"
	case 2:
		return "the target drops the connection"
	case 3:
		return "the target drops the session"
	}
	return ""
}

// up reads the connection's state from sysfs.
func (k *kernelSession) up() bool {
	b, err := os.ReadFile(filepath.Join("/sys/class/iscsi_session", fmt.Sprintf("session%d", k.sid), "state"))
	return err == nil && strings.TrimSpace(string(b)) == "LOGGED_IN"
}

// recover logs in again until it succeeds or ctx ends (RFC 7143, 6.3.5: session
// reinstatement). The kernel keeps the I/O meanwhile.
func (s *Session) recover(ctx context.Context, why string) {
	s.teller.lost(why)
	s.log.Warn("iscsi: session lost", "why", why)
	begin := time.Now()
	if err := s.stopForRecovery(); err != nil {
		s.log.Error("iscsi: the kernel did not stop the connection", "err", err)
	}
	wait := s.initiator.opts.RetryMax / 10
	for try := 1; ; try++ {
		err := s.connect(ctx)
		if err == nil {
			s.teller.recovered()
			s.log.Info("iscsi: session recovered", "tries", try, "after", time.Since(begin).Round(time.Millisecond))
			return
		}
		if ctx.Err() != nil {
			return
		}
		if isRefusal(err) {
			if s.teller.now().State != StateRefused {
				s.log.Error("iscsi: the target refuses the session", "err", err)
			}
			s.teller.refused(err.Error())
			if s.initiator.opts.RefusedRetry < 0 {
				<-ctx.Done()
				return
			}
			if !pause(ctx, s.initiator.opts.RefusedRetry) {
				return
			}
			continue
		}
		s.log.Debug("iscsi: try failed", "try", try, "err", err)
		if !pause(ctx, wait) {
			return
		}
		wait = min(wait*2, s.initiator.opts.RetryMax)
	}
}
