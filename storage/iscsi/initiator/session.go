package initiator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
)

// Session is one session of the kernel with one block device. Its methods may
// be called from any goroutine.
type Session struct {
	initiator *Initiator
	target    Target
	kernel    *kernelSession
	box       *mailbox
	device    device
	log       *slog.Logger
	*teller

	ends  chan ending   // how to end, to the session's goroutine
	ended chan struct{} // closed when the session is gone
}

// ending is a request to end the session.
type ending struct {
	ctx     context.Context
	orderly bool
	done    chan error
}

// Device gives the block device, e.g. "/dev/sda". It stays the same while the
// session lives, through every recovery.
func (s *Session) Device() string { return s.device.path }

// WWID gives the identity that the target states for the logical unit, e.g.
// "naa.6001405...", or "" when it states none.
func (s *Session) WWID() string { return s.device.wwid }

// Target gives the target's name.
func (s *Session) Target() string { return s.target.IQN }

// State gives the present state.
func (s *Session) State() State { return s.teller.now().State }

// Status gives the present state, since when, and why.
func (s *Session) Status() Status { return s.teller.now() }

// Events gives the changes of the session, one reader's worth. The channel is
// closed when the session ends. A reader that falls 64 events behind loses the
// oldest ones.
func (s *Session) Events() <-chan Event { return s.teller.events }

// Logout ends the session in order: the device is flushed and removed, then the
// target is told and answers. It refuses with CodeVolumeBusy while the device is
// mounted or held exclusively, and leaves the session as it was. When the
// connection is lost, or ctx ends first, the session is ended on this side alone
// and the error says that the target did not see a log-out; what was not flushed
// is lost then, so unmount first.
func (s *Session) Logout(ctx context.Context) error {
	if err := s.device.idle(); err != nil {
		return err
	}
	return s.end(ctx, true)
}

// Close ends the session on this side alone and at once: I/O under way fails.
func (s *Session) Close() error { return s.end(context.Background(), false) }

func (s *Session) end(ctx context.Context, orderly bool) error {
	e := ending{ctx: ctx, orderly: orderly, done: make(chan error, 1)}
	select {
	case s.ends <- e:
	case <-s.ended:
		return nil
	}
	select {
	case err := <-e.done:
		return err
	case <-s.ended:
	}
	select { // it may have been answered just before
	case err := <-e.done:
		return err
	default:
		return errClosed // the initiator was closed in the same moment
	}
}

// run owns the session after the first log-in: it recovers and ends it.
func (s *Session) run(ctx context.Context, cancel context.CancelFunc) {
	defer close(s.ended)
	var asked *ending
	relayed := make(chan struct{})
	go func() { // an ending breaks off a recovery under way
		defer close(relayed)
		select {
		case e := <-s.ends:
			asked = &e
			cancel()
		case <-ctx.Done():
		}
	}()
	for ctx.Err() == nil {
		if why := s.failure(); why != "" {
			s.recover(ctx, why)
			continue
		}
		select {
		case <-s.box.wake:
		case <-ctx.Done():
		}
	}
	<-relayed
	if asked == nil { // the initiator was closed
		s.initiator.control.unsubscribe(s.kernel.sid)
		s.teller.close("the initiator was closed")
		return
	}
	err := s.finish(*asked)
	s.initiator.release(&s.target) // before the answer: the caller may log in again
	asked.done <- err
}

// finish ends the session and tells so.
func (s *Session) finish(e ending) error {
	var err error
	if e.orderly {
		err = s.logOut(e.ctx)
	}
	if e2 := s.destroy(); e2 != nil {
		err = errors.Join(err, e2)
	}
	why := "logged out"
	if err != nil || !e.orderly {
		why = "closed without a log-out"
	}
	s.teller.close(why)
	s.log.Info("iscsi: session ended", "how", why)
	if err == nil {
		return nil
	}
	return &hotspare.Error{
		Code: hotspare.CodeNoSession, What: "the log-out did not complete",
		Where: fmt.Sprintf("%s at %s", s.target.IQN, s.target.Portal),
		Why:   "the target may still hold the session",
		Fix:   "nothing on the node; the appliance revokes the volume with evidence of its own", Err: err,
	}
}

// destroy removes the session from the kernel, whatever its state. A device
// that is still there disappears and its I/O fails.
func (s *Session) destroy() error {
	var errs []error
	if err := s.kernel.stop(stopTerminate); err != nil {
		errs = append(errs, err)
	}
	if err := s.kernel.destroyConn(); err != nil {
		errs = append(errs, err)
	}
	if err := s.kernel.destroySession(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// logOut removes the devices, which flushes them, and exchanges the log-out.
func (s *Session) logOut(ctx context.Context) error {
	if st := s.teller.now(); st.State != StateUp {
		return fmt.Errorf("the session is %s: %s", st.State, st.Why)
	}
	if err := s.kernel.unbind(); err != nil {
		return err
	}
	if _, err := s.await(ctx, keventUnbindSession); err != nil {
		return fmt.Errorf("removing the device: %w", err)
	}
	if err := s.kernel.sendPDU(logoutRequest()); err != nil {
		return err
	}
	n, err := s.await(ctx, keventRecvPDU)
	if err != nil {
		return fmt.Errorf("log-out: %w", err)
	}
	return checkLogout(n.pdu)
}

// idle says whether nothing holds the device: no mount, no mapping, no
// exclusive opener.
func (d device) idle() error {
	fd, err := unix.Open(d.path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		return unix.Close(fd)
	}
	if errors.Is(err, unix.EBUSY) {
		return &hotspare.Error{
			Code: hotspare.CodeVolumeBusy, What: "the volume is in use on this node", Where: d.path,
			Fix: "unmount it first", Err: err,
		}
	}
	return nil // gone or failing: nothing to protect
}

// pause waits d or until ctx ends.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
