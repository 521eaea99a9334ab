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
			h.note("data", lost, 10*s)
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
		why, drop := h.verdict(c.now, lease, c.granted)
		if drop != c.drop || drop != (why != "") {
			t.Errorf("%s: %q, %v", c.name, why, drop)
		}
		if drop && !strings.Contains(why, "volume") {
			t.Errorf("%s: the reason names no volume: %q", c.name, why)
		}
	}
}
