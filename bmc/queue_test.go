package bmc

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"hotspare"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a driver with a machine behind it, in virtual time. It fails the
// test when two calls overlap.
type machine struct {
	t *testing.T

	mu       sync.Mutex
	on       bool
	inside   int
	calls    []string
	took     time.Duration // each call
	onDelay  time.Duration // an accepted "on" happens this much later
	lossy    bool          // onDelay is for the next lost commands only, whose answers are lost
	lost     int
	readErr  error
	offErr   error
	onErr    error
	deaf     bool         // off is accepted and not done
	reported []PowerState // what the next reads say instead of the truth; silence: no answer
	uuid     string
	late     sync.WaitGroup
	closed   bool

	order        BootOrder
	orderTo      *BootOrder    // what a request for the network at every boot makes of it, if not that
	orderDelay   time.Duration // the request is shown this much later
	orderErr     error         // the next orderErrs requests are refused with it
	orderErrs    int
	orderReadErr error
}

const silence PowerState = 99

func (m *machine) enter(ctx context.Context, name string) error {
	m.mu.Lock()
	m.inside++
	if m.inside > 1 {
		m.t.Errorf("%s: two commands at once on one BMC", name)
	}
	m.calls = append(m.calls, name)
	m.mu.Unlock()
	err := pause(ctx, m.took)
	m.mu.Lock()
	m.inside--
	m.mu.Unlock()
	return err
}

func (m *machine) PowerState(ctx context.Context) (PowerState, error) {
	if err := m.enter(ctx, "read"); err != nil {
		return PowerUnknown, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.readErr != nil {
		return PowerUnknown, m.readErr
	}
	if len(m.reported) > 0 {
		s := m.reported[0]
		m.reported = m.reported[1:]
		if s == silence {
			return PowerUnknown, NewError(hotspare.CodeBMCUnreachable, "bmc", "", nil)
		}
		return s, nil
	}
	if m.on {
		return PowerOn, nil
	}
	return PowerOff, nil
}

func (m *machine) PowerOff(ctx context.Context) error {
	if err := m.enter(ctx, "off"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.offErr == nil && !m.deaf {
		m.on = false
	}
	return m.offErr
}

func (m *machine) PowerOn(ctx context.Context) error {
	err := errors.Join(m.enter(ctx, "on"), m.onErr)
	m.mu.Lock()
	defer m.mu.Unlock()
	delay := m.onDelay
	if m.lossy && m.lost == 0 {
		delay = 0
	} else if m.lossy {
		m.lost--
		err = NewError(hotspare.CodeBMCUnreachable, "bmc", "", nil)
	}
	if delay > 0 {
		m.late.Go(func() {
			time.Sleep(delay)
			m.set(true)
		})
	} else if err == nil {
		m.on = true
	}
	return err
}

func (m *machine) SetNextBootPXE(ctx context.Context, uefi bool) error {
	err := m.enter(ctx, "pxe")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.order = BootOrder{Device: DevicePXE}
	if uefi {
		m.order.Mode = ModeUEFI
	}
	return err
}

// SetNetworkFirst does what the order field of the machine's story says.
func (m *machine) SetNetworkFirst(ctx context.Context, uefi bool) error {
	if err := m.enter(ctx, "every"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.orderErrs > 0 {
		m.orderErrs--
		return m.orderErr
	}
	o := BootOrder{Device: DevicePXE, Every: true, Mode: ModeLegacy}
	if uefi {
		o.Mode = ModeUEFI
	}
	if m.orderTo != nil {
		o = *m.orderTo
	}
	if m.orderDelay == 0 {
		m.order = o
		return nil
	}
	m.late.Go(func() {
		time.Sleep(m.orderDelay)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.order = o
	})
	return nil
}

func (m *machine) BootOrder(ctx context.Context) (BootOrder, error) {
	if err := m.enter(ctx, "order"); err != nil {
		return BootOrder{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.order, m.orderReadErr
}

func (m *machine) SystemUUID(ctx context.Context) (string, error) {
	return m.uuid, m.enter(ctx, "uuid")
}

func (m *machine) Close(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	return nil
}

func (m *machine) set(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = on
}

func (m *machine) isOn() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}

func (m *machine) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.calls)
}

// story runs f in virtual time with a queue whose start-up uncertainty is over.
func story(t *testing.T, m *machine, f func(t *testing.T, q *Queue)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m.t = t
		q := NewQueue(m, QueueOptions{Name: "node-1", Timeout: 20 * time.Second, Settle: 15 * time.Second})
		time.Sleep(15 * time.Second)
		f(t, q)
		if err := q.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.late.Wait()
	})
}

var epoch7 = Right{Owner: "orders", Epoch: 7}

func TestNeverTwoCommandsAtOnce(t *testing.T) {
	m := &machine{took: 300 * time.Millisecond}
	story(t, m, func(t *testing.T, q *Queue) {
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if err := q.Do(t.Context(), epoch7, CommandOff); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() {
				if _, err := q.fresh(t.Context()); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() {
				if _, err := q.SystemUUID(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Go(func() {
			err := q.Exclusive(t.Context(), func(ctx context.Context) error { return m.enter(ctx, "probe") })
			if err != nil {
				t.Error(err)
			}
		})
		all.Wait()
		if n := len(m.seen()); n != 16 {
			t.Errorf("%d calls reached the BMC, want 16", n)
		}
	})
}

// S4: a command that waits while its epoch is superseded is never sent.
func TestStaleCommandsAreNotSent(t *testing.T) {
	m := &machine{took: time.Second, on: true}
	story(t, m, func(t *testing.T, q *Queue) {
		var all sync.WaitGroup
		all.Go(func() { _, _ = q.fresh(t.Context()) }) // keeps the BMC busy for a second
		synctest.Wait()
		waiting := make(chan error, 1)
		all.Go(func() { waiting <- q.Do(t.Context(), epoch7, CommandOn) })
		synctest.Wait()
		if err := q.Raise(Right{"orders", 8}); err != nil {
			t.Fatal(err)
		}
		if err := <-waiting; !errors.Is(err, ErrStaleEpoch) {
			t.Errorf("waiting command of epoch 7: %v, want ErrStaleEpoch", err)
		}
		if err := q.Do(t.Context(), epoch7, CommandOn); !errors.Is(err, ErrStaleEpoch) {
			t.Errorf("late command of epoch 7: %v, want ErrStaleEpoch", err)
		}
		if err := q.Raise(epoch7); !errors.Is(err, ErrStaleEpoch) {
			t.Errorf("raise to epoch 7: %v, want ErrStaleEpoch", err)
		}
		all.Wait()
		if got := m.seen(); !slices.Equal(got, []string{"read"}) {
			t.Errorf("the BMC saw %v, want one read only", got)
		}
	})
}

// S12: a node has one owner; another gets it after release and draining.
func TestReleaseWaitsForTheLongestDelay(t *testing.T) {
	m := &machine{on: true}
	story(t, m, func(t *testing.T, q *Queue) {
		if err := q.Do(t.Context(), epoch7, CommandOff); err != nil {
			t.Fatal(err)
		}
		web := Right{Owner: "web", Epoch: 1}
		if err := q.Do(t.Context(), web, CommandOn); !errors.Is(err, ErrStaleEpoch) {
			t.Fatalf("command of another owner: %v, want ErrStaleEpoch", err)
		}
		if q.Drained() {
			t.Error("drained right after a command")
		}
		if err := q.Release(t.Context(), Right{"orders", 6}); !errors.Is(err, ErrStaleEpoch) {
			t.Errorf("release by an old epoch: %v, want ErrStaleEpoch", err)
		}
		if err := q.Do(t.Context(), epoch7, CommandOff); err != nil { // the failed release has waited; command again
			t.Fatal(err)
		}
		start := time.Now()
		if err := q.Release(t.Context(), epoch7); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 15*time.Second {
			t.Errorf("released after %s, want 15s", d)
		}
		if err := q.Do(t.Context(), web, CommandOn); err != nil {
			t.Errorf("command of the new owner: %v", err)
		}
	})
}

func TestReleaseEndsWithItsContext(t *testing.T) {
	m := &machine{on: true}
	story(t, m, func(t *testing.T, q *Queue) {
		if err := q.Do(t.Context(), epoch7, CommandOff); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.Release(ctx, epoch7); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("release: %v, want the deadline", err)
		}
		if r := q.Status().Right; r != epoch7 {
			t.Errorf("the queue belongs to %v, want %v still", r, epoch7)
		}
	})
}

func TestReadsAreShared(t *testing.T) {
	m := &machine{took: time.Second, on: true}
	story(t, m, func(t *testing.T, q *Queue) {
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				r, err := q.PowerState(t.Context())
				if err != nil || r.State != PowerOn || r.Took != time.Second {
					t.Errorf("read %+v, %v", r, err)
				}
			})
		}
		all.Wait()
		if n := len(m.seen()); n != 1 {
			t.Errorf("%d reads reached the BMC, want 1", n)
		}
	})
}

// The caller that begins a shared read may go; the others get their answer.
func TestSharedReadOutlivesItsFirstCaller(t *testing.T) {
	m := &machine{took: time.Second, on: true}
	story(t, m, func(t *testing.T, q *Queue) {
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := q.PowerState(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("first caller: %v, want canceled", err)
			}
		})
		synctest.Wait()
		all.Go(func() {
			if r, err := q.PowerState(t.Context()); err != nil || r.State != PowerOn {
				t.Errorf("second caller: %+v, %v", r, err)
			}
		})
		synctest.Wait()
		cancel()
		all.Wait()
	})
}

func TestCallsAreBounded(t *testing.T) {
	m := &machine{took: time.Hour}
	story(t, m, func(t *testing.T, q *Queue) {
		start := time.Now()
		if _, err := q.PowerState(t.Context()); err == nil {
			t.Error("a read of an hour succeeded")
		}
		if d := time.Since(start); d != 20*time.Second {
			t.Errorf("gave up after %s, want 20s", d)
		}
	})
}

func TestCloseWaitsAndRefuses(t *testing.T) {
	m := &machine{took: time.Second, on: true}
	story(t, m, func(t *testing.T, q *Queue) {
		var all sync.WaitGroup
		all.Go(func() {
			if err := q.Do(t.Context(), epoch7, CommandOff); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if err := q.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if m.isOn() || !m.closed {
			t.Error("close did not wait for the command in flight, or did not close the driver")
		}
		if err := q.Do(t.Context(), epoch7, CommandOn); !errors.Is(err, errClosed) {
			t.Errorf("command after close: %v", err)
		}
		if _, err := q.PowerState(t.Context()); !errors.Is(err, errClosed) {
			t.Errorf("read after close: %v", err)
		}
		all.Wait()
	})
}

func TestUnknownCommandAndOwner(t *testing.T) {
	m := &machine{}
	story(t, m, func(t *testing.T, q *Queue) {
		if err := q.Do(t.Context(), epoch7, Command(99)); hotspare.CodeOf(err) != hotspare.CodeInternal {
			t.Errorf("unknown command: %v", err)
		}
		if err := q.Do(t.Context(), Right{Epoch: 1}, CommandOn); !errors.Is(err, ErrStaleEpoch) {
			t.Errorf("no owner: %v", err)
		}
		if n := len(m.seen()); n != 0 {
			t.Errorf("%d calls reached the BMC", n)
		}
	})
}
