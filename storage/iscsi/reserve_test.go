package iscsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"hotspare/storage"
)

const conflict = 0x18

// Service actions and types of persistent reservations (SPC-4, 6.16).
const (
	register, reserve, release, clearAll, preempt, registerIgnore = 0, 1, 2, 3, 4, 6

	writeExclusive, writeExclusiveAll = 1, 7
)

// prOut sends PERSISTENT RESERVE OUT.
func prOut(action, kind byte) []byte {
	return []byte{0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0}
}

func keys(key, action uint64, aptpl bool) []byte {
	b := binary.BigEndian.AppendUint64(nil, key)
	b = binary.BigEndian.AppendUint64(b, action)
	b = append(b, make([]byte, 8)...)
	if aptpl {
		b[20] = 1
	}
	return b
}

// prIn sends PERSISTENT RESERVE IN.
func (i *initiator) prIn(action byte) []byte {
	i.t.Helper()
	return i.good([]byte{0x5e, action, 0, 0, 0, 0, 0, 1, 0, 0}, nil, 256)
}

// holder gives key and type of the reservation, 0 and 0 if there is none.
func (i *initiator) holder() (key uint64, kind byte) {
	i.t.Helper()
	b := i.prIn(1)
	if len(b) < 24 {
		return 0, 0
	}
	return binary.BigEndian.Uint64(b[8:]), b[21]
}

func (i *initiator) registered() int {
	i.t.Helper()
	return int(binary.BigEndian.Uint32(i.prIn(0)[4:])) / 8
}

var block = bytes.Repeat([]byte{0xaa}, 512)

func TestReservationsAcrossARestart(t *testing.T) { // APTPL, SPC-4 5.12.3
	for _, c := range []struct {
		name string
		// last is APTPL of the last registration: it decides.
		first, last bool
		kind        byte
	}{
		{"APTPL", true, true, writeExclusive},
		{"APTPL, all registrants", true, true, writeExclusiveAll},
		{"no APTPL", false, false, writeExclusive},
		{"APTPL taken back", true, false, writeExclusive},
		{"APTPL late", false, true, writeExclusive},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "orders")
			g := s.grant(grantOf("orders", 1, "n1"))
			a, b := s.session(g, 1), s.session(g, 2)
			a.good(prOut(registerIgnore, 0), keys(0, 0xa1, c.first), 0)
			b.good(prOut(registerIgnore, 0), keys(0, 0xb2, c.last), 0)
			a.good(prOut(reserve, c.kind), keys(0xa1, 0, false), 0)
			if b.prIn(2)[3]&1 == 1 != c.last {
				t.Error("PTPL_A is wrong")
			}

			s.restart()
			a, b = s.session(g, 1), s.session(g, 2)
			stranger := s.session(g, 3)
			if !c.last {
				for _, i := range []*initiator{a, b, stranger} { // each hears of the loss
					i.fails(testReady, nil, 0, 2, "06/2900")
					i.good(testReady, nil, 0)
				}
				a = s.session(g, 1) // once
				a.good(testReady, nil, 0)
				if n := a.registered(); n != 0 {
					t.Errorf("%d registrations survived", n)
				}
				stranger.good(rw10(0x2a, 0, 1), block, 0)
				return
			}
			if n := a.registered(); n != 2 {
				t.Errorf("%d registrations survived, not 2", n)
			}
			stranger.fails(rw10(0x2a, 0, 1), block, 0, conflict, "")
			a.good(rw10(0x2a, 0, 1), block, 0)
			if key, kind := b.holder(); kind != c.kind || c.kind == writeExclusive && key != 0xa1 {
				t.Errorf("reserved with type %d by %#x", kind, key)
			}
			// What came back is as good as new: it can be taken over, and the
			// taking over survives too.
			b.good(prOut(preempt, writeExclusive), keys(0xb2, 0xa1, false), 0)
			s.restart()
			a, b = s.session(g, 1), s.session(g, 2)
			if n := b.registered(); n != 1 {
				t.Errorf("%d registrations after the preemption, not 1", n)
			}
			if c.kind == writeExclusive {
				a.fails(rw10(0x2a, 0, 1), block, 0, conflict, "")
			}
			b.good(rw10(0x2a, 0, 1), block, 0)
			b.good(prOut(clearAll, 0), keys(0xb2, 0, false), 0)
			s.restart()
			s.session(g, 1).good(rw10(0x2a, 0, 1), block, 0)
		})
	}
}

// TestRevocationTakesReservationsAway: the next owner finds none, with and
// without a restart in between, whatever the last one wanted to last.
func TestRevocationTakesReservationsAway(t *testing.T) { // S2.2
	for _, aptpl := range []bool{false, true} {
		for _, restart := range []bool{false, true} {
			s := newSite(t, "orders")
			g := s.grant(grantOf("orders", 1, "n1"))
			a := s.session(g, 1)
			a.good(prOut(registerIgnore, 0), keys(0, 0xa1, aptpl), 0)
			a.good(prOut(reserve, 3), keys(0xa1, 0, false), 0)
			if _, err := s.exports.Revoke(context.Background(), "orders", 2); err != nil {
				t.Fatal(err)
			}
			if restart {
				s.restart()
			}
			b := s.session(s.grant(grantOf("orders", 2, "n2")), 1)
			if n := b.registered(); n != 0 {
				t.Errorf("APTPL %v, restart %v: the next owner finds %d registrations", aptpl, restart, n)
			}
			if _, kind := b.holder(); kind != 0 {
				t.Errorf("APTPL %v, restart %v: the next owner finds a reservation", aptpl, restart)
			}
			b.good(rw10(0x2a, 0, 1), block, 0)
		}
	}
}

// TestUnreadableReservationsKeepEverybodyOut: who knows whom they excluded. A new
// grant ends them.
func TestUnreadableReservationsKeepEverybodyOut(t *testing.T) {
	for _, kept := range []string{"{", `{"version":99}`} {
		s := newSite(t, "orders")
		g := s.grant(grantOf("orders", 1, "n1"))
		ex, err := s.exports.Find(g.Initiator, s.iqn("orders"))
		if err != nil {
			t.Fatal(err)
		}
		a, err := s.exports.Attach(context.Background(), storage.Login{Export: ex, Initiator: g.Initiator})
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Keep("reservations", []byte(kept)); err != nil {
			t.Fatal(err)
		}
		a.End()
		if err := s.dial().login(g, s.iqn("orders"), false, false); err == nil || !strings.Contains(err.Error(), "unavailable") {
			t.Errorf("with %s: %v", kept, err)
		}
		if _, err := s.exports.Revoke(context.Background(), "orders", 2); err != nil {
			t.Fatal(err)
		}
		s.session(s.grant(grantOf("orders", 2, "n2")), 1).good(testReady, nil, 0)
	}
}

// TestUnsupportedReservationFlags: nothing is promised that would not be held.
func TestUnsupportedReservationFlags(t *testing.T) {
	s := newSite(t, "orders")
	a := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for flag, want := range map[byte]string{0x08: "05/2600", 0x04: "05/2600"} { // SPEC_I_PT, ALL_TG_PT
		p := keys(0, 0xa1, false)
		p[20] = flag
		sense := a.fails(prOut(registerIgnore, 0), p, 0, 2, want)
		if sense[15] != 0x80 || sense[17] != 20 {
			t.Errorf("field pointer %x, not byte 20 of the data", sense[15:18])
		}
	}
	a.fails(prOut(register, 0), keys(0, 1, false)[:20], 0, 2, "05/1a00")
	a.fails(prOut(release, 0), keys(7, 0, false), 0, conflict, "")
}
