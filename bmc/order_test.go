package bmc

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare"
)

var everyPXE = BootOrder{Device: DevicePXE, Every: true, Mode: ModeLegacy}

// S2a: the power of a machine whose disk must not be started goes on only after
// its BMC said that every boot begins with the network.
func TestOnWithTheNetworkAtEveryBoot(t *testing.T) {
	unreachable := NewError(hotspare.CodeBMCUnreachable, "bmc", "", nil)
	once := BootOrder{Device: DevicePXE, Mode: ModeLegacy}
	disk := BootOrder{Device: "disk", Every: true, Mode: ModeLegacy}
	for _, c := range []struct {
		name  string
		m     *machine
		uefi  bool
		code  hotspare.Code
		says  string // in the error
		wasOn bool
		calls []string
	}{
		{name: "set, read back, and only then on", m: &machine{}, calls: []string{"read", "every", "order", "on", "read"}},
		{name: "shown a while later", m: &machine{orderDelay: 2500 * time.Millisecond},
			calls: []string{"read", "every", "order", "order", "order", "order", "on", "read"}},
		{name: "a running machine is left alone", m: &machine{on: true}, wasOn: true, calls: []string{"read"}},
		{name: "the old order is kept", m: &machine{order: disk, orderTo: &disk}, code: hotspare.CodeBMCBootOrder,
			says: `it took "pxe, every boot" and shows "disk, every boot, legacy"`},
		{name: "nothing is kept", m: &machine{orderTo: &BootOrder{}}, code: hotspare.CodeBMCBootOrder, says: `shows "nothing asked for"`},
		{name: "once is made of it", m: &machine{orderTo: &once}, code: hotspare.CodeBMCBootOrder, says: `shows "pxe, once, legacy"`},
		{name: "UEFI is asked for", m: &machine{}, uefi: true, calls: []string{"read", "every", "order", "on", "read"}},
		{name: "legacy is made of UEFI", m: &machine{orderTo: &everyPXE}, uefi: true, code: hotspare.CodeBMCBootOrder,
			says: `it took "pxe, every boot, uefi" and shows "pxe, every boot, legacy"`},
		{name: "a BMC that does not say the mode", m: &machine{orderTo: &BootOrder{Device: DevicePXE, Every: true}}, uefi: true,
			calls: []string{"read", "every", "order", "on", "read"}},
		{name: "shown after the time for it", m: &machine{orderDelay: 15 * time.Second}, code: hotspare.CodeBMCBootOrder, says: "nothing asked for"},
		{name: "refused twice, as after a power off", m: &machine{orderErr: refused("HTTP 409"), orderErrs: 2},
			calls: []string{"read", "every", "read", "every", "read", "every", "order", "on", "read"}},
		{name: "refused for good", m: &machine{orderErr: refused("HTTP 400"), orderErrs: 1000}, code: hotspare.CodeBMCRefused,
			says: "asked to boot from the network at every start: HTTP 400"},
		{name: "not offered at all", m: &machine{orderErr: NewError(hotspare.CodeBMCBootOrder, "bmc", "it has Once", nil), orderErrs: 1000},
			code: hotspare.CodeBMCBootOrder, calls: []string{"read", "every"}},
		{name: "not to be read", m: &machine{orderReadErr: refused("unsupported parameter")}, code: hotspare.CodeBMCRefused,
			says: "its boot order was to be read: unsupported parameter"},
		{name: "silent in between", m: &machine{orderReadErr: unreachable}, code: hotspare.CodeBMCUnreachable},
	} {
		t.Run(c.name, func(t *testing.T) {
			story(t, c.m, func(t *testing.T, q *Queue) {
				res, err := On(t.Context(), q, epoch7, OnOptions{Network: NetworkEvery, UEFI: c.uefi})
				if got := hotspare.CodeOf(err); got != c.code || err != nil && !strings.Contains(err.Error(), c.says) {
					t.Fatalf("error %v, want code %q with %q", err, c.code, c.says)
				}
				if c.m.isOn() != (c.code == "") {
					t.Errorf("the machine is on: %v, error %v", c.m.isOn(), err)
				}
				if c.code == hotspare.CodeBMCBootOrder && (!Permanent(err) || !errors.Is(err, ErrBootOrder)) {
					t.Errorf("%v would be tried again", err)
				}
				if res.WasOn != c.wasOn {
					t.Errorf("WasOn %v, want %v", res.WasOn, c.wasOn)
				}
				if c.code == "" && !c.wasOn && (res.Order == nil || !res.Order.NetworkFirst(c.uefi)) {
					t.Errorf("the record says order %v", res.Order)
				}
				if c.calls != nil && !slices.Equal(c.m.seen(), c.calls) {
					t.Errorf("the BMC saw %v, want %v", c.m.seen(), c.calls)
				}
			})
		})
	}
}

// A machine that is to stay as it is: its power is never touched.
func TestBootNetworkFirst(t *testing.T) {
	once := BootOrder{Device: DevicePXE, Mode: ModeLegacy}
	for _, c := range []struct {
		name   string
		m      *machine
		opts   OnOptions
		code   hotspare.Code
		before BootOrder
		calls  []string
	}{
		{name: "it is so already", m: &machine{order: everyPXE}, before: everyPXE, calls: []string{"order"}},
		{name: "nothing was asked for", m: &machine{}, calls: []string{"order", "every", "order"}},
		{name: "once is not every", m: &machine{order: once}, before: once, calls: []string{"order", "every", "order"}},
		{name: "a legacy order of a UEFI machine", m: &machine{order: everyPXE}, opts: OnOptions{UEFI: true}, before: everyPXE,
			calls: []string{"order", "every", "order"}},
		{name: "its own machine", m: &machine{uuid: uuid1}, opts: OnOptions{ExpectUUID: uuid1}, calls: []string{"uuid", "order", "every", "order"}},
		{name: "another machine", m: &machine{uuid: "11111111-2222-3333-4444-555555555555"}, opts: OnOptions{ExpectUUID: uuid1},
			code: hotspare.CodeBMCWrongNode, calls: []string{"uuid"}},
		{name: "the old order is kept", m: &machine{order: once, orderTo: &once}, before: once, code: hotspare.CodeBMCBootOrder},
		{name: "refused once, done all the same", m: &machine{orderErr: refused("busy"), orderErrs: 1}, calls: []string{"order", "every", "order", "every", "order"}},
		{name: "not to be read", m: &machine{orderReadErr: refused("unsupported parameter")}, code: hotspare.CodeBMCRefused},
		{name: "no password", m: &machine{orderReadErr: NewError(hotspare.CodeBMCPassword, "bmc", "", nil)}, code: hotspare.CodeBMCPassword, calls: []string{"order"}},
		{name: "a call that never ends", m: &machine{took: time.Hour}, code: hotspare.CodeBMCRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.m.on = true
			story(t, c.m, func(t *testing.T, q *Queue) {
				start := time.Now()
				res, err := BootNetworkFirst(t.Context(), q, epoch7, c.opts)
				if got := hotspare.CodeOf(err); got != c.code {
					t.Fatalf("error %v, want code %q", err, c.code)
				}
				if d := time.Since(start); d > time.Minute {
					t.Errorf("took %s", d)
				}
				if err == nil && !res.Order.NetworkFirst(c.opts.UEFI) || res.Before != c.before {
					t.Errorf("from %v to %v, want from %v to the network", res.Before, res.Order, c.before)
				}
				if res.BMC != "node-1" || res.Right != epoch7 {
					t.Errorf("the record is not labelled: %+v", res)
				}
				if c.calls != nil && !slices.Equal(c.m.seen(), c.calls) {
					t.Errorf("the BMC saw %v, want %v", c.m.seen(), c.calls)
				}
				if slices.ContainsFunc(c.m.seen(), func(call string) bool { return call == "on" || call == "off" || call == "read" }) || !c.m.isOn() {
					t.Errorf("the power was touched: %v", c.m.seen())
				}
			})
		})
	}
}

// A stale request reaches no BMC, neither for reading nor for setting.
func TestBootNetworkFirstIsRefusedToAStaleRight(t *testing.T) {
	m := &machine{}
	story(t, m, func(t *testing.T, q *Queue) {
		if err := q.Raise(Right{"orders", 8}); err != nil {
			t.Fatal(err)
		}
		for _, r := range []Right{epoch7, {"web", 9}} {
			if _, err := BootNetworkFirst(t.Context(), q, r, OnOptions{}); !errors.Is(err, ErrStaleEpoch) {
				t.Errorf("%v: %v, want ErrStaleEpoch", r, err)
			}
		}
		if calls := m.seen(); len(calls) > 0 {
			t.Errorf("the BMC saw %v", calls)
		}
	})
}

// The caller's end of a wait is no statement about the BMC.
func TestBootNetworkFirstEndsWithItsCaller(t *testing.T) {
	m := &machine{orderReadErr: refused("busy")}
	story(t, m, func(t *testing.T, q *Queue) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if _, err := BootNetworkFirst(ctx, q, epoch7, OnOptions{}); err == nil {
			t.Error("no error")
		}
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("went on for %s", d)
		}
	})
}

// A machine that is known to be UEFI is asked for a UEFI start, once as well as for
// every start: it may pass over a legacy one.
func TestAUEFIMachineIsAskedForAUEFIStart(t *testing.T) {
	for _, uefi := range []bool{false, true} {
		m := &machine{}
		story(t, m, func(t *testing.T, q *Queue) {
			if _, err := On(t.Context(), q, epoch7, OnOptions{Network: NetworkOnce, UEFI: uefi}); err != nil {
				t.Fatal(err)
			}
			if got, err := m.BootOrder(t.Context()); err != nil || (got.Mode == ModeUEFI) != uefi || got.Every {
				t.Errorf("UEFI %v: asked for %q, %v", uefi, got, err)
			}
		})
	}
}
