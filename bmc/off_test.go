package bmc

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hotspare"
)

const uuid1 = "8f7c1a52-9a3b-4c1d-8e2f-525400770001"

func refused(why string) error { return NewError(hotspare.CodeBMCRefused, "bmc", why, nil) }

// S2(1): what counts as proof that a machine is off, and what does not.
func TestOffEvidence(t *testing.T) {
	unreachable := NewError(hotspare.CodeBMCUnreachable, "bmc", "", nil)
	for _, c := range []struct {
		name   string
		m      *machine
		opts   OffOptions
		proven bool
		code   hotspare.Code // of the cause within HA-040
		calls  []string      // if given, exactly these
		within time.Duration // if given, the end comes by then
	}{
		{name: "off already counts, nothing is sent", m: &machine{}, proven: true, calls: []string{"read", "read"}},
		{name: "on: commanded, then read off twice", m: &machine{on: true}, proven: true, calls: []string{"read", "off", "read", "read"}},
		{name: "accepted and not done proves nothing", m: &machine{on: true, deaf: true}, code: hotspare.CodeBMCRefused},
		{name: "a refused command is no end: off reads decide", m: &machine{offErr: refused("409"), reported: []PowerState{PowerOn}},
			proven: true, calls: []string{"read", "off", "read", "read"}},
		{name: "a refused command proves nothing", m: &machine{on: true, offErr: refused("409")}, code: hotspare.CodeBMCRefused},
		{name: "a silent BMC proves nothing", m: &machine{readErr: unreachable}, code: hotspare.CodeBMCUnreachable},
		{name: "a state in between proves nothing", m: &machine{reported: slices.Repeat([]PowerState{PowerUnknown}, 100)}, code: hotspare.CodeBMCRefused},
		{name: "one off between two on proves nothing", m: &machine{on: true, deaf: true,
			reported: []PowerState{PowerOff, PowerOn, PowerOff, PowerUnknown, PowerOff}}, code: hotspare.CodeBMCRefused},
		{name: "off, unknown, off, off", m: &machine{reported: []PowerState{PowerOff, PowerUnknown}}, proven: true,
			calls: []string{"read", "read", "off", "read", "read"}},
		{name: "silence between two off breaks the row", m: &machine{reported: []PowerState{PowerOff, silence}}, proven: true,
			calls: []string{"read", "read", "read", "read"}},
		{name: "wrong password ends it at once", m: &machine{readErr: NewError(hotspare.CodeBMCPassword, "bmc", "", nil)},
			code: hotspare.CodeBMCPassword, calls: []string{"read"}, within: time.Second},
		{name: "missing privilege ends it at once", m: &machine{on: true, offErr: NewError(hotspare.CodeBMCPrivilege, "bmc", "", nil)},
			code: hotspare.CodeBMCPrivilege, calls: []string{"read", "off"}, within: time.Second},
		{name: "another machine's BMC is never commanded", m: &machine{on: true, uuid: "11111111-2222-3333-4444-555555555555"},
			opts: OffOptions{ExpectUUID: uuid1}, code: hotspare.CodeBMCWrongNode, calls: []string{"uuid"}, within: time.Second},
		{name: "its own BMC is", m: &machine{on: true, uuid: uuid1}, opts: OffOptions{ExpectUUID: uuid1}, proven: true,
			calls: []string{"uuid", "read", "off", "read", "read"}},
		{name: "a call that never ends", m: &machine{took: time.Hour}, code: hotspare.CodeFenceUnproven, within: time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			story(t, c.m, func(t *testing.T, q *Queue) {
				start := time.Now()
				ev, err := Off(t.Context(), q, epoch7, c.opts)
				if ev.Proven != c.proven || (err == nil) != c.proven {
					t.Fatalf("proven %v, error %v, want proven %v", ev.Proven, err, c.proven)
				}
				if c.proven {
					checkProof(t, ev)
				} else if !errors.Is(err, ErrUnproven) || !errors.Is(err, &hotspare.Error{Code: c.code}) {
					t.Errorf("error %v, want %s around %s", err, hotspare.CodeFenceUnproven, c.code)
				}
				if c.calls != nil && !slices.Equal(c.m.seen(), c.calls) {
					t.Errorf("the BMC saw %v, want %v", c.m.seen(), c.calls)
				}
				if d := time.Since(start); c.within > 0 && d > c.within {
					t.Errorf("took %s, want at most %s", d, c.within)
				}
			})
		})
	}
}

func checkProof(t *testing.T, ev OffEvidence) {
	t.Helper()
	n := len(ev.Reads)
	if n < 2 {
		t.Fatalf("proof from %d reads", n)
	}
	a, b := ev.Reads[n-2], ev.Reads[n-1]
	if a.State != PowerOff || b.State != PowerOff || b.At.Sub(a.At) < time.Second {
		t.Errorf("last reads %+v and %+v do not prove", a, b)
	}
	if ev.Right != epoch7 || ev.BMC != "node-1" || !ev.At.Equal(b.At) {
		t.Errorf("evidence is not labelled: %+v", ev)
	}
}

// A BMC that accepts "on" and does it later: off read before that is not off.
func TestOffWaitsOutALatePowerOn(t *testing.T) {
	m := &machine{onDelay: 6 * time.Second}
	story(t, m, func(t *testing.T, q *Queue) {
		if err := q.Do(t.Context(), Right{"orders", 6}, CommandOn); err != nil {
			t.Fatal(err)
		}
		ev, err := Off(t.Context(), q, epoch7, OffOptions{})
		if err != nil {
			t.Fatal(err)
		}
		checkProof(t, ev)
		if m.isOn() {
			t.Fatal("proven off, and the machine is on")
		}
		time.Sleep(time.Minute)
		if m.isOn() {
			t.Fatal("the machine came on after the proof")
		}
		if len(ev.Sent) == 0 {
			t.Error("the machine came on in between and was not commanded off")
		}
	})
}

// The same across a restart of the process: nobody knows what was sent before.
func TestOffAfterARestartWaitsOutWhatWasSentBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &machine{t: t, onDelay: 6 * time.Second}
		if err := m.PowerOn(t.Context()); err != nil { // by the process that died
			t.Fatal(err)
		}
		q := NewQueue(m, QueueOptions{Name: "node-1"})
		if _, err := Off(t.Context(), q, epoch7, OffOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if m.isOn() {
			t.Fatal("the machine came on after the proof")
		}
		m.late.Wait()
	})
}

// One "on" whose answer was lost and that happens late, a second one that works:
// that on was read then says nothing about the first.
func TestOffWaitsOutALostPowerOn(t *testing.T) {
	m := &machine{onDelay: 8 * time.Second, lossy: true, lost: 1}
	story(t, m, func(t *testing.T, q *Queue) {
		six := Right{"orders", 6}
		if err := q.Do(t.Context(), six, CommandOn); !errors.Is(err, ErrUnreachable) {
			t.Fatalf("%v, want a lost answer", err)
		}
		if _, err := On(t.Context(), q, six, OnOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := Off(t.Context(), q, epoch7, OffOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if m.isOn() {
			t.Fatal("the machine came on after the proof")
		}
	})
}

// A power-on that is sent while a read of the proof waits for its turn.
func TestOffIsVoidWhenPowerOnOvertakesTheRead(t *testing.T) {
	m := &machine{took: time.Second, onDelay: 5 * time.Second}
	story(t, m, func(t *testing.T, q *Queue) {
		var other sync.WaitGroup
		other.Go(func() {
			time.Sleep(1500 * time.Millisecond) // after the first read, before the second
			_, _ = q.fresh(t.Context())
		})
		other.Go(func() {
			time.Sleep(1600 * time.Millisecond)
			_ = q.Do(t.Context(), epoch7, CommandOn)
		})
		if _, err := Off(t.Context(), q, epoch7, OffOptions{}); err != nil {
			t.Fatal(err)
		}
		other.Wait()
		time.Sleep(time.Minute)
		if m.isOn() {
			t.Fatal("the machine came on after the proof")
		}
	})
}

// An "on" that was seen to work costs the next fence no time.
func TestOffAfterAProvenPowerOnIsQuick(t *testing.T) {
	m := &machine{}
	story(t, m, func(t *testing.T, q *Queue) {
		if _, err := On(t.Context(), q, Right{"orders", 6}, OnOptions{}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if _, err := Off(t.Context(), q, epoch7, OffOptions{}); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("took %s, want at most 2s", d)
		}
	})
}

// A power-on in the middle of the proof voids it; so does a newer epoch.
func TestOffIsVoidWhenSomeoneElseActs(t *testing.T) {
	t.Run("power on by the same right", func(t *testing.T) {
		m := &machine{}
		story(t, m, func(t *testing.T, q *Queue) {
			var other sync.WaitGroup
			other.Go(func() {
				time.Sleep(500 * time.Millisecond) // between the two reads
				_ = q.Do(t.Context(), epoch7, CommandOn)
				m.set(false) // what reads off now may be on in a moment
			})
			ev, err := Off(t.Context(), q, epoch7, OffOptions{})
			other.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if d := ev.At.Sub(ev.Reads[0].At); d < 15*time.Second {
				t.Errorf("proven %s after the first read although an on was sent in between", d)
			}
		})
	})
	t.Run("a newer epoch", func(t *testing.T) {
		m := &machine{}
		story(t, m, func(t *testing.T, q *Queue) {
			var other sync.WaitGroup
			other.Go(func() {
				time.Sleep(500 * time.Millisecond)
				if err := q.Raise(Right{"orders", 8}); err != nil {
					t.Error(err)
				}
			})
			ev, err := Off(t.Context(), q, epoch7, OffOptions{})
			other.Wait()
			if ev.Proven || !errors.Is(err, ErrStaleEpoch) {
				t.Errorf("proven %v, %v, want ErrStaleEpoch", ev.Proven, err)
			}
		})
	})
}

func TestOn(t *testing.T) {
	for _, c := range []struct {
		name  string
		m     *machine
		opts  OnOptions
		code  hotspare.Code
		wasOn bool
		calls []string
	}{
		{name: "off: boot device, power, read", m: &machine{}, opts: OnOptions{Network: NetworkOnce}, calls: []string{"read", "pxe", "on", "read"}},
		{name: "a running machine is left alone", m: &machine{on: true}, opts: OnOptions{Network: NetworkOnce}, wasOn: true, calls: []string{"read"}},
		{name: "wrong machine", m: &machine{uuid: "11111111-2222-3333-4444-555555555555"}, opts: OnOptions{ExpectUUID: uuid1},
			code: hotspare.CodeBMCWrongNode, calls: []string{"uuid"}},
		{name: "in between is waited for", m: &machine{reported: []PowerState{PowerUnknown, PowerUnknown}}, calls: []string{"read", "read", "read", "on", "read"}},
		{name: "refused", m: &machine{onErr: refused("409")}, code: hotspare.CodeBMCRefused},
		{name: "silent", m: &machine{readErr: NewError(hotspare.CodeBMCUnreachable, "bmc", "", nil)}, code: hotspare.CodeBMCUnreachable},
		{name: "password", m: &machine{readErr: NewError(hotspare.CodeBMCPassword, "bmc", "", nil)}, code: hotspare.CodeBMCPassword, calls: []string{"read"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			story(t, c.m, func(t *testing.T, q *Queue) {
				res, err := On(t.Context(), q, epoch7, c.opts)
				if got := hotspare.CodeOf(err); got != c.code {
					t.Fatalf("error %v, want code %q", err, c.code)
				}
				if res.WasOn != c.wasOn {
					t.Errorf("WasOn %v, want %v", res.WasOn, c.wasOn)
				}
				if c.code == "" && !c.m.isOn() {
					t.Error("no error, and the machine is off")
				}
				if c.calls != nil && !slices.Equal(c.m.seen(), c.calls) {
					t.Errorf("the BMC saw %v, want %v", c.m.seen(), c.calls)
				}
			})
		})
	}
}

func TestSameUUID(t *testing.T) {
	for _, c := range []struct {
		name, a, b string
		want       bool
	}{
		{"equal", uuid1, uuid1, true},
		{"case and braces", uuid1, "{8F7C1A52-9A3B-4C1D-8E2F-525400770001}", true},
		{"SMBIOS order", uuid1, "521a7c8f-3b9a-1d4c-8e2f-525400770001", true},
		{"IPMI order", uuid1, "01007700-5452-2f8e-1d4c-3b9a521a7c8f", true},
		{"IPMI order as freeipmi prints SMBIOS bytes", uuid1, "01007700-5452-2f8e-4c1d-9a3b8f7c1a52", true},
		{"another", uuid1, "8f7c1a52-9a3b-4c1d-8e2f-525400770002", false},
		{"empty", "", "", false},
		{"all zero is nobody", "00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000", false},
		{"not hex", "zf7c1a52-9a3b-4c1d-8e2f-525400770001", uuid1, false},
	} {
		if got := SameUUID(c.a, c.b); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPowerStateWords(t *testing.T) {
	for word, want := range map[string]PowerState{"on": PowerOn, "Off": PowerOff, " on\n": PowerOn, "PoweringOff": PowerUnknown,
		"PoweringOn": PowerUnknown, "Paused": PowerUnknown, "": PowerUnknown, "off?": PowerUnknown, "not off": PowerUnknown} {
		if got := ParsePowerState(word); got != want {
			t.Errorf("%q: %v, want %v", word, got, want)
		}
	}
}
