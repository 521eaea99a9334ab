package initiator

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage/iscsi"
)

// bench is tgtd with one target, and an initiator over the fake kernel.
type bench struct {
	t         *testing.T
	tgt       *tgt
	kernel    *fakeKernel
	initiator *Initiator
	target    Target
}

func newBench(t *testing.T, o Options) *bench {
	t.Helper()
	b := &bench{t: t, tgt: newTGT(t), kernel: newFakeKernel(t)}
	x := b.tgt.add(tgtTarget{
		iqn: "iqn.2026-11.io.hotspare:test:one", user: "node", secret: nodeSecret.Reveal(),
		tuser: "appliance", tsecret: targetSecret.Reveal(),
	}, 1<<20)
	b.tgt.start()
	if o.RetryMax == 0 {
		o.RetryMax = 100 * time.Millisecond
	}
	if o.RefusedRetry == 0 {
		o.RefusedRetry = 50 * time.Millisecond
	}
	b.initiator = newInitiator(o.withDefaults(), b.kernel, func() {})
	t.Cleanup(b.initiator.Close)
	b.target = Target{
		Portal: b.tgt.portal, IQN: x.iqn, LUN: 1, InitiatorName: "iqn.2026-11.io.hotspare:node",
		User: "node", Secret: nodeSecret, TargetUser: "appliance", TargetSecret: targetSecret,
	}
	return b
}

func (b *bench) open() *Session {
	b.t.Helper()
	s, err := b.initiator.start(context.Background(), b.target)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = s.Close() })
	return s
}

// expect takes the next event, which must be of the kind.
func (b *bench) expect(s *Session, k EventKind) Event {
	b.t.Helper()
	select {
	case e, ok := <-s.Events():
		if !ok || e.Kind != k {
			b.t.Fatalf("event %v %q (open %v), want %v", e.Kind, e.Why, ok, k)
		}
		return e
	case <-time.After(20 * time.Second):
		b.t.Fatalf("no event %v; the session is %+v", k, s.Status())
		return Event{}
	}
}

// TestLoginToTGT logs in to a foreign target in every way that is offered.
func TestLoginToTGT(t *testing.T) {
	b := newBench(t, Options{})
	for _, c := range []struct {
		name  string
		spoil func(*Target)
		words string // of the refusal, or "" for success
	}{
		{"mutual CHAP", func(*Target) {}, ""},
		{"CHAP", func(x *Target) { x.TargetUser, x.TargetSecret = "", hotspare.Secret{} }, ""},
		{"digests", func(x *Target) { x.Digests = true }, ""},
		{"wrong secret", func(x *Target) { x.Secret = hotspare.NewSecret("wrong") }, "0x0201"},
		{"wrong user", func(x *Target) { x.User = "nobody" }, "0x0201"},
		{"no secret", func(x *Target) { x.Secret, x.TargetSecret, x.TargetUser = hotspare.Secret{}, hotspare.Secret{}, "" }, "0x020"},
		{"no such target", func(x *Target) { x.IQN += "x" }, "0x0203"},
		{"the target's secret differs", func(x *Target) { x.TargetSecret = hotspare.NewSecret("wrong") }, "did not prove"},
		{"the target's name differs", func(x *Target) { x.TargetUser = "another" }, "did not prove"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := b.target
			c.spoil(&x)
			s, err := b.initiator.start(context.Background(), x)
			if c.words == "" {
				if err != nil {
					t.Fatal(err)
				}
				if v := b.kernel.param(s.kernel.sid, paramTargetName); v != x.IQN {
					t.Errorf("the kernel knows the target as %q", v)
				}
				if err := s.Logout(context.Background()); err != nil {
					t.Error(err)
				}
			} else if hotspare.CodeOf(err) != hotspare.CodeLoginRefused || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v", err)
			}
			if n := b.kernel.left(); n != 0 {
				t.Errorf("%d sessions left in the kernel", n)
			}
		})
	}
	if out := b.tgt.adm(0, "--op", "show", "--mode", "conn", "--tid", "1"); strings.Contains(out, "Session") {
		t.Errorf("the target still has a session:\n%s", out)
	}
}

// TestRecovery: the target dies, comes back, and the session is the same.
func TestRecovery(t *testing.T) {
	b := newBench(t, Options{})
	s := b.open()
	b.tgt.kill()
	lost := b.expect(s, Lost)
	if st := s.Status(); st.State != StateLost || lost.Why == "" || st.Why != lost.Why {
		t.Fatalf("status %+v after %+v", st, lost)
	}
	b.kernel.mu.Lock()
	b.kernel.story = nil
	b.kernel.mu.Unlock()
	b.tgt.start()
	for e := range s.Events() { // tgtd listens before it knows its targets: refusals may come in between
		if e.Kind == Recovered {
			break
		}
	}
	if s.State() != StateUp {
		t.Fatalf("state %v", s.State())
	}
	b.kernel.mu.Lock()
	story := b.kernel.story
	b.kernel.mu.Unlock()
	for i, e := range story { // nothing is set before the socket is bound, nothing starts before all is set
		if e == ueventCreateSession || e == ueventDestroySession || e == ueventStartConn && i != len(story)-1 {
			t.Fatalf("step %d of %v is %v", i, story, e)
		}
	}
	if err := s.Logout(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, open := <-s.Events(); open || s.State() != StateClosed {
		t.Fatalf("after the log-out: %v, events open %v", s.State(), open)
	}
}

// TestManyFailures cuts the connection again and again.
func TestManyFailures(t *testing.T) {
	b := newBench(t, Options{})
	s := b.open()
	for range 30 {
		b.kernel.cut(s.kernel.sid)
		b.expect(s, Lost)
		b.expect(s, Recovered)
	}
	if err := s.Logout(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestRefused: a revoked grant is told once, with the time of the loss, and is
// taken up again when it is granted anew.
func TestRefused(t *testing.T) {
	b := newBench(t, Options{})
	s := b.open()
	b.tgt.kill()
	lost := b.expect(s, Lost)
	b.tgt.targets[0].secret = "another secret"
	b.tgt.start()
	e := b.expect(s, Refused)
	b.kernel.await(ueventBindConn, 3) // further tries, which change nothing
	select {
	case e := <-s.Events():
		t.Fatalf("told again: %+v", e)
	default:
	}
	st := s.Status()
	if st.State != StateRefused || st.Since.Sub(lost.At).Abs() > 50*time.Millisecond || e.Why == "" {
		t.Fatalf("status %+v, lost at %v", st, lost.At)
	}
	b.tgt.kill()
	b.tgt.targets[0].secret = nodeSecret.Reveal()
	b.tgt.start()
	b.expect(s, Recovered)
}

// TestRefusedForGood: with the option to stop, a refusal is the last try, and
// the session can still be ended.
func TestRefusedForGood(t *testing.T) {
	b := newBench(t, Options{RefusedRetry: -1})
	s := b.open()
	b.tgt.adm(0, "--op", "unbind", "--mode", "account", "--tid", "1", "--user", "node")
	b.tgt.adm(0, "--op", "delete", "--mode", "account", "--user", "node")
	b.kernel.cut(s.kernel.sid)
	b.expect(s, Lost)
	b.expect(s, Refused)
	tries := b.kernel.count(ueventBindConn)
	time.Sleep(100 * time.Millisecond)
	if n := b.kernel.count(ueventBindConn); n != tries {
		t.Fatalf("%d more tries", n-tries)
	}
	err := s.Logout(context.Background())
	if hotspare.CodeOf(err) != hotspare.CodeNoSession || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("log-out: %v", err)
	}
	if n := b.kernel.left(); n != 0 {
		t.Fatalf("%d sessions left", n)
	}
}

// TestLogoutWhileLost: the end does not wait for a dead target, and says that
// the target did not see it.
func TestLogoutWhileLost(t *testing.T) {
	b := newBench(t, Options{})
	s := b.open()
	b.tgt.kill()
	b.expect(s, Lost)
	begin := time.Now()
	if err := s.Logout(context.Background()); hotspare.CodeOf(err) != hotspare.CodeNoSession {
		t.Fatalf("log-out: %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Fatalf("the log-out took %s", d)
	}
	if n := b.kernel.left(); n != 0 || s.State() != StateClosed {
		t.Fatalf("%d sessions left, state %v", n, s.State())
	}
	if err := s.Close(); err != nil {
		t.Fatalf("closing twice: %v", err)
	}
}

// TestNotices: lost messages and a target that asks to leave lead to a
// reinstated session; a NOP or a text that we did not ask for does not.
func TestNotices(t *testing.T) {
	b := newBench(t, Options{})
	s := b.open()
	async := func(event byte) notice {
		p := &iscsi.PDU{}
		p.Header.SetOpcode(iscsi.OpAsync, false)
		p.Header[36] = event
		return notice{kind: keventRecvPDU, pdu: p}
	}
	b.kernel.post(s.kernel.sid, async(0)) // a SCSI event
	b.kernel.post(s.kernel.sid, notice{kind: keventRecvPDU, pdu: &iscsi.PDU{}})
	for _, n := range []notice{{kind: noticeOverrun}, async(1), async(2), async(3)} {
		b.kernel.post(s.kernel.sid, n)
		if e := b.expect(s, Lost); e.Why == "" {
			t.Errorf("no reason for %+v", n)
		}
		b.expect(s, Recovered)
	}
	select {
	case e := <-s.Events():
		t.Fatalf("event %+v", e)
	default:
	}
}

// TestHangingTarget: a log-in to a target that accepts and says nothing ends
// with the caller's patience and leaves nothing behind.
func TestHangingTarget(t *testing.T) {
	b := newBench(t, Options{})
	b.tgt.signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := b.initiator.start(ctx, b.target)
	if hotspare.CodeOf(err) != hotspare.CodeNoSession || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if n := b.kernel.left(); n != 0 {
		t.Fatalf("%d sessions left", n)
	}
}

// TestDyingTarget: a target that closes between the connect and the kernel's
// take-over is noticed at once, although no event tells it.
func TestDyingTarget(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if c, err := l.Accept(); err == nil {
			_ = c.(*net.TCPConn).CloseWrite()
			defer c.Close()
			_, _ = c.Read(make([]byte, 1)) // until the other side gives up
		}
	}()
	fd, err := dial(context.Background(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	if _, err := unix.Poll(p, 5000); err != nil {
		t.Fatal(err)
	}
	if err := closedByPeer(fd); err == nil {
		t.Error("a closed connection looks open")
	}
	unix.Close(fd)
	<-closed
	b := newBench(t, Options{})
	if fd, err = dial(context.Background(), b.target.Portal.String()); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := closedByPeer(fd); err != nil {
		t.Errorf("an open connection: %v", err)
	}
}

// TestCloseLeavesSessions: the end of the process leaves the session in the
// kernel.
func TestCloseLeavesSessions(t *testing.T) {
	b := newBench(t, Options{})
	s := b.open()
	x := b.target
	x.InitiatorName += "2"
	lost, err := b.initiator.start(context.Background(), x)
	if err != nil {
		t.Fatal(err)
	}
	b.kernel.cut(lost.kernel.sid)
	b.initiator.Close()
	if n := b.kernel.left(); n != 2 || s.State() != StateClosed {
		t.Fatalf("%d sessions left, state %v", n, s.State())
	}
	if _, err := b.initiator.start(context.Background(), b.target); err == nil {
		t.Fatal("a closed initiator logs in")
	}
	b.kernel.stopAll()
}

// TestOneSessionEach: a second log-in as the same initiator is refused while the
// first lives; another name is another session.
func TestOneSessionEach(t *testing.T) {
	b := newBench(t, Options{})
	s := b.open()
	if _, err := b.initiator.start(context.Background(), b.target); hotspare.CodeOf(err) != hotspare.CodeVolumeBusy {
		t.Fatalf("second log-in: %v", err)
	}
	x := b.target
	x.InitiatorName += "2"
	other, err := b.initiator.start(context.Background(), x)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Session{other, s} {
		if err := s.Logout(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	b.target.Secret = hotspare.NewSecret("wrong")
	if _, err := b.initiator.start(context.Background(), b.target); hotspare.CodeOf(err) != hotspare.CodeLoginRefused {
		t.Fatalf("log-in with a wrong secret: %v", err)
	}
	b.target.Secret = nodeSecret
	if s = b.open(); s.State() != StateUp {
		t.Fatalf("state %v", s.State())
	}
}

// TestSlowReader: a reader that sleeps through many changes finds the newest.
func TestSlowReader(t *testing.T) {
	x := newTeller()
	x.up()
	for range eventBuffer {
		x.lost("cut")
		x.recovered()
	}
	x.lost("the last time")
	var last Event
	for len(x.events) > 0 {
		last = <-x.events
	}
	if last.Why != "the last time" || x.now().State != StateLost {
		t.Fatalf("last event %+v, status %+v", last, x.now())
	}
	x.close("done")
	x.recovered()
	if x.now().State != StateClosed {
		t.Fatal("a closed session changes")
	}
}
