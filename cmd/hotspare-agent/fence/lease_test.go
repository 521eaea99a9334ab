package fence

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLeaseCountsFromTheMomentTheHeartbeatWasSent(t *testing.T) {
	const s = time.Second
	var l Lease
	if _, ok := l.Grant("orders", 7, 0, 15*s); ok {
		t.Error("a lease was granted before any claim")
	}
	l.Begin("orders", 7, 20*s)
	if _, ok := l.Held(5 * s); ok {
		t.Error("a claim alone gives a lease")
	}
	for _, c := range []struct {
		name       string
		app        string
		epoch      uint64
		sent, life time.Duration
		ok         bool
		end        time.Duration
	}{
		{"first grant", "orders", 7, 10 * s, 15 * s, true, 25 * s},
		{"renewal", "orders", 7, 12 * s, 15 * s, true, 27 * s},
		{"late answer to an older heartbeat", "orders", 7, 11 * s, 15 * s, true, 27 * s},
		{"another epoch", "orders", 8, 30 * s, 15 * s, false, 0},
		{"another application", "web", 7, 30 * s, 15 * s, false, 0},
		{"no duration", "orders", 7, 30 * s, 0, false, 0},
	} {
		if end, ok := l.Grant(c.app, c.epoch, c.sent, c.life); ok != c.ok || end != c.end {
			t.Errorf("%s: until %s, %v; want %s, %v", c.name, end, ok, c.end, c.ok)
		}
	}
	if left, ok := l.Held(26 * s); !ok || left != s {
		t.Errorf("at 26 s: %s, %v", left, ok)
	}
	if _, ok := l.Held(27 * s); ok {
		t.Error("the lease is held at its very end")
	}
	l.Stop()
	if _, ok := l.Held(13 * s); ok {
		t.Error("the lease is held after the term was stopped")
	}
}

// clock is the boot clock inside a synctest bubble.
func clock() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}

func TestWatchEndsWhenTheLeaseDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock()
		var l Lease
		ended := make(chan time.Duration, 1)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			if l.Watch(ctx, now) {
				ended <- now()
			}
		}()
		time.Sleep(100 * time.Second) // nothing is carried: nothing ends
		begin := now()
		l.Begin("orders", 7, begin+15*time.Second)
		var last time.Duration
		for range 60 { // a heartbeat each second, answered 300 ms later
			sent := now()
			time.Sleep(300 * time.Millisecond)
			l.Grant("orders", 7, sent, 15*time.Second)
			last = sent
			time.Sleep(700 * time.Millisecond)
		}
		at := <-ended
		if want := last + 15*time.Second; at != want {
			t.Errorf("the lease ended at %s, want %s: 15 s after the last granted heartbeat was sent", at, want)
		}
	})
}

func TestWatchGivesUpAClaimThatGetsNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock()
		var l Lease
		l.Begin("orders", 7, 15*time.Second)
		if !l.Watch(t.Context(), now) || now() != 15*time.Second {
			t.Errorf("ended at %s", now())
		}
	})
}

func TestWatchIsNotConcernedAfterARelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock()
		var l Lease
		l.Begin("orders", 7, 15*time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		go func() {
			time.Sleep(10 * time.Second)
			l.Stop()
		}()
		if l.Watch(ctx, now) {
			t.Errorf("a released term ended in a drop at %s", now())
		}
	})
}

// The boot clock goes on while the machine is suspended, Go's timers may not.
func TestWatchFollowsTheBootClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock()
		var slept atomic.Int64
		boot := func() time.Duration { return now() + time.Duration(slept.Load()) }
		var l Lease
		l.Begin("orders", 7, 15*time.Second)
		go func() {
			time.Sleep(2500 * time.Millisecond)
			slept.Store(int64(time.Minute))
		}()
		if !l.Watch(t.Context(), boot) || now() > 4*time.Second {
			t.Errorf("noticed %s after the begin", now())
		}
	})
}

func TestNothingComesOnlineWithoutALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock()
		var l Lease
		l.Begin("orders", 7, 15*time.Second)
		late := errors.New("no lease")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, late)
		defer cancel()
		if err := l.Wait(ctx, now); !errors.Is(err, late) {
			t.Errorf("got %v", err)
		}
		go func() {
			time.Sleep(time.Second)
			l.Grant("orders", 7, now(), 15*time.Second)
		}()
		if err := l.Wait(t.Context(), now); err != nil || now() != 6*time.Second {
			t.Errorf("got %v at %s", err, now())
		}
	})
}
