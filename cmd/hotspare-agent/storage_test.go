package main

import (
	"strings"
	"testing"
	"time"
)

// SAFETY S2: when a session that is lost or refused ends the service.
func TestVerdictOverTheVolumes(t *testing.T) {
	const s, lease = time.Second, 15 * time.Second
	lost, back, refused := DiskEvent{Change: DiskLost, Why: "cut"}, DiskEvent{Change: DiskRecovered}, DiskEvent{Change: DiskRefused, Why: "not found"}
	for _, c := range []struct {
		name    string
		play    func(h *diskHealth)
		now     time.Duration
		granted time.Duration // the last granted heartbeat was sent then
		drop    bool
	}{
		{"all is well", func(*diskHealth) {}, 100 * s, 99 * s, false},
		{"a short cut", func(h *diskHealth) { h.note("data", lost, 10*s) }, 24 * s, 24 * s, false},
		{"lost for the lease", func(h *diskHealth) { h.note("data", lost, 10*s) }, 25 * s, 24 * s, true},
		{"recovered in time", func(h *diskHealth) { h.note("data", lost, 10*s); h.note("data", back, 20*s) }, 60 * s, 59 * s, false},
		{"lost again counts anew", func(h *diskHealth) {
			h.note("data", DiskEvent{Change: DiskLost, Why: "cut"}, 10*s)
			h.note("data", back, 20*s)
			h.note("data", lost, 21*s)
		}, 30 * s, 29 * s, false},
		{"refused, the appliance is silent", func(h *diskHealth) { h.note("data", lost, 10*s); h.note("data", refused, 11*s) }, 13 * s, 10 * s, true},
		{"refused a moment ago", func(h *diskHealth) { h.note("data", refused, 11*s) }, 12 * s, 10 * s, false},
		{"refused, but the grant was confirmed since", func(h *diskHealth) { h.note("data", refused, 11*s) }, 14 * s, 12 * s, false},
		{"confirmed, but refused for the lease", func(h *diskHealth) { h.note("data", refused, 11*s) }, 26 * s, 25 * s, true},
		{"refused again and again is one refusal", func(h *diskHealth) { h.note("data", refused, 11*s); h.note("data", refused, 16*s) }, 26 * s, 25 * s, true},
		{"admitted again", func(h *diskHealth) { h.note("data", refused, 11*s); h.note("data", back, 12*s) }, 60 * s, 10 * s, false},
		{"another volume", func(h *diskHealth) { h.note("root", lost, 10*s); h.note("data", back, 20*s) }, 25 * s, 24 * s, true},
		{"logged out in good order", func(h *diskHealth) { h.note("data", lost, 10*s); h.forget("data") }, 60 * s, 59 * s, false},
	} {
		h := newDiskHealth()
		c.play(h)
		why, drop := h.verdict(c.now, lease, lease, c.granted)
		if drop != c.drop || drop != (why != "") {
			t.Errorf("%s: %q, %v", c.name, why, drop)
		}
		if drop && !strings.Contains(why, "volume") {
			t.Errorf("%s: the reason names no volume: %q", c.name, why)
		}
	}
}

// Before an announced restart the appliance grants a longer lease; its target is away
// with it. The longer lease bounds the loss too, and no other one does.
func TestALossLastsAsLongAsTheLongerLease(t *testing.T) {
	const s = time.Second
	h := newDiskHealth()
	h.note("data", DiskEvent{Change: DiskLost, Why: "cut"}, 10*s)
	for _, c := range []struct {
		now, span time.Duration
		drop      bool
	}{
		{100 * s, 150 * s, false},
		{159 * s, 150 * s, false},
		{160 * s, 150 * s, true},
		{25 * s, 0, true},      // nothing was granted yet: the policy's
		{25 * s, 5 * s, true},  // a shorter one does not shorten it
		{24 * s, 5 * s, false}, //
	} {
		if why, drop := h.verdict(c.now, 15*s, c.span, 9*s); drop != c.drop {
			t.Errorf("at %s with a lease of %s: %v %q", c.now, c.span, drop, why)
		}
	}
}
