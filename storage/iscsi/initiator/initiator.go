package initiator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"hotspare"
)

// Initiator drives the kernel's iSCSI initiator. One per process is enough.
type Initiator struct {
	opts    Options
	control channel
	shut    func()          // closes the control channel
	ctx     context.Context // of all sessions' recovery
	cancel  context.CancelFunc

	mu      sync.Mutex
	closed  bool
	open    map[[6]byte]bool // sessions by ISID
	running sync.WaitGroup   // sessions
}

// New opens the kernel's control channel. It fails with CodeNoInitiator when
// the module iscsi_tcp is not loaded or rights are missing.
func New(o Options) (*Initiator, error) {
	o = o.withDefaults()
	c, err := openControl(o.Log)
	if err != nil {
		return nil, err
	}
	return newInitiator(o, c, c.close), nil
}

func newInitiator(o Options, c channel, shut func()) *Initiator {
	i := &Initiator{opts: o, control: c, shut: shut, open: make(map[[6]byte]bool)}
	i.ctx, i.cancel = context.WithCancel(context.Background())
	return i
}

// Close ends the management of all sessions and leaves them running in the
// kernel, as the death of the process would: nobody recovers them any more. Log
// out first for an orderly end.
func (i *Initiator) Close() {
	i.mu.Lock()
	i.closed = true
	i.mu.Unlock()
	i.cancel()
	i.running.Wait()
	i.shut()
}

// Login logs in, waits for the block device and keeps the session alive until
// Logout or Close. ctx bounds the log-in only. Errors: CodeInvalid (a wrong
// Target), CodeLoginRefused (by the target, or of a target that does not prove
// itself), CodeNoSession (not reached), CodeNoDevice, CodeNoInitiator.
func (i *Initiator) Login(ctx context.Context, t Target) (*Session, error) {
	begin := time.Now()
	s, err := i.start(ctx, t)
	if err != nil {
		return nil, err
	}
	opened := time.Since(begin)
	if err := s.attach(ctx); err != nil {
		if e := s.Close(); e != nil {
			err = errors.Join(err, e)
		}
		return nil, err
	}
	s.log.Info("iscsi: logged in", "device", s.device.path, "wwid", s.device.wwid,
		"login", opened.Round(time.Millisecond), "total", time.Since(begin).Round(time.Millisecond))
	return s, nil
}

// start logs in and starts the session's recovery; there is no device yet.
func (i *Initiator) start(ctx context.Context, t Target) (*Session, error) {
	t = t.withDefaults()
	if err := t.validate(); err != nil {
		return nil, err
	}
	if err := i.reserve(&t); err != nil {
		return nil, err
	}
	s := &Session{
		initiator: i, target: t, box: newMailbox(), teller: newTeller(),
		ends: make(chan ending), ended: make(chan struct{}),
		log: i.opts.Log.With("target", t.IQN, "portal", t.Portal.String()),
	}
	var err error
	if s.kernel, err = createSession(i.control, s.box); err != nil {
		i.release(&t)
		return nil, kernelRefused(&t, err)
	}
	if err := s.connect(ctx); err != nil {
		if e := s.destroy(); e != nil {
			err = errors.Join(err, e)
		}
		i.release(&t)
		return nil, loginError(&t, err)
	}
	s.teller.up()
	if !i.manage(s) {
		return nil, errors.Join(errClosed, s.destroy())
	}
	return s, nil
}

// reserve admits one session per initiator name, target and portal. A second
// one would have the same ISID: the two would throw each other out for ever.
func (i *Initiator) reserve(t *Target) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return errClosed
	}
	if i.open[t.isid()] {
		return &hotspare.Error{
			Code: hotspare.CodeVolumeBusy, What: "this node is logged in there already",
			Where: fmt.Sprintf("%s at %s as %s", t.IQN, t.Portal, t.InitiatorName),
			Fix:   "use the session that exists, or log out first",
		}
	}
	i.open[t.isid()] = true
	return nil
}

func (i *Initiator) release(t *Target) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.open, t.isid())
}

// manage starts the goroutine that owns s, unless the initiator is closed.
func (i *Initiator) manage(s *Session) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return false
	}
	ctx, cancel := context.WithCancel(i.ctx)
	i.running.Go(func() {
		defer cancel()
		s.run(ctx, cancel)
	})
	return true
}

// kernelRefused is the error of a step that the kernel did not take.
func kernelRefused(t *Target, err error) error {
	return &hotspare.Error{
		Code: hotspare.CodeNoInitiator, What: "the kernel's iSCSI initiator refused a step",
		Where: fmt.Sprintf("session to %s", t.IQN), Fix: "see the kernel's messages (dmesg)", Err: err,
	}
}
