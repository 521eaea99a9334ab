package iscsi_test

import (
	"bytes"
	"context"
	"testing"

	"hotspare/storage/iscsi"
)

// Task management functions and answers (RFC 7143, 11.5 and 11.6).
const (
	abortTask, abortTaskSet, clearACA, clearTaskSet   = 1, 2, 3, 4
	lunReset, warmReset, coldReset, reassign, unknown = 5, 6, 7, 8, 9

	complete, noTask, noLUN, noReassign, unsupported = 0, 1, 2, 4, 5
)

// manage sends a task management request and gives its answer.
func (i *initiator) manage(fn byte, lun uint64, ref uint32) byte {
	i.t.Helper()
	h := i.request(iscsi.OpTaskRequest, true, fn, 900)
	h.SetLUN(lun)
	h.SetTransferTag(ref)
	i.mustSend(h, nil)
	return i.next(iscsi.OpTaskResponse).Header[2]
}

// hang begins a write whose data never comes, and gives its task tag.
func (i *initiator) hang() uint32 {
	i.t.Helper()
	h := i.command(rw10(0x2a, 0, 1024), 1024*512, false, true)
	i.mustSend(h, block)
	i.next(iscsi.OpR2T)
	return h.TaskTag()
}

var testReady = []byte{0, 0, 0, 0, 0, 0}

func TestTaskManagement(t *testing.T) {
	for _, c := range []struct {
		name       string
		fn         byte
		mine, his  bool   // whose hanging write is aborted
		hisSense   string // what the other session hears of it, "" nothing
		mineSense  string
		connection bool // all connections end
	}{
		{name: "abort task", fn: abortTask, mine: true},
		{name: "abort task set", fn: abortTaskSet, mine: true},
		{name: "clear task set", fn: clearTaskSet, mine: true, his: true, hisSense: "06/2f00"},
		{name: "LUN reset", fn: lunReset, mine: true, his: true, hisSense: "06/2903", mineSense: "06/2903"},
		{name: "target warm reset", fn: warmReset, mine: true, his: true, hisSense: "06/2903", mineSense: "06/2903"},
		{name: "target cold reset", fn: coldReset, mine: true, his: true, connection: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "orders")
			g := s.grant(grantOf("orders", 1, "n1"))
			a, b := s.session(g, 1), s.session(g, 2)
			mine, his := a.hang(), b.hang()
			if code := a.manage(c.fn, 0, mine); code != complete {
				t.Fatalf("answer %d", code)
			}
			if c.connection {
				for _, i := range []*initiator{a, b} {
					if p := i.next(iscsi.OpAsync); p.Header[36] != 3 {
						t.Errorf("event %d", p.Header[36])
					}
					i.ends()
				}
				return
			}
			// An aborted task is gone: aborting it again finds nothing.
			if code := a.manage(abortTask, 0, mine); code != noTask {
				t.Errorf("my write is still there: %d", code)
			}
			want := byte(complete)
			if c.his {
				want = noTask
			}
			if code := b.manage(abortTask, 0, his); code != want {
				t.Errorf("the other's write: %d, not %d", code, want)
			}
			for i, sense := range map[*initiator]string{a: c.mineSense, b: c.hisSense} {
				if sense != "" {
					i.fails(testReady, nil, 0, 2, sense)
				}
				i.good(testReady, nil, 0) // once told is enough
			}
			if got := a.good(rw10(0x28, 0, 1), nil, 512); !bytes.Equal(got, make([]byte, 512)) {
				t.Error("a part of an aborted write landed")
			}
		})
	}
}

func TestTaskManagementRefusals(t *testing.T) {
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for _, c := range []struct {
		name string
		fn   byte
		lun  uint64
		want byte
	}{
		{"no such task", abortTask, 0, noTask},
		{"task set of another unit", abortTaskSet, 1 << 48, noLUN},
		{"another unit", lunReset, 1 << 48, noLUN},
		{"clear ACA", clearACA, 0, unsupported},
		{"reassign", reassign, 0, noReassign},
		{"unknown", unknown, 0, unsupported},
	} {
		if code := i.manage(c.fn, c.lun, 12345); code != c.want {
			t.Errorf("%s: %d, not %d", c.name, code, c.want)
		}
	}
	i.good(testReady, nil, 0)
}

// TestResetSpares what must outlast it: persistent reservations.
func TestResetSparesPersistentReservations(t *testing.T) { // SPC-4, 5.12
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	a, b := s.session(g, 1), s.session(g, 2)
	a.good(prOut(registerIgnore, 0), keys(0, 0xa1, false), 0)
	a.good(prOut(reserve, writeExclusive), keys(0xa1, 0, false), 0)
	b.manage(lunReset, 0, 0)
	b.fails(testReady, nil, 0, 2, "06/2903")
	b.fails(rw10(0x2a, 0, 1), block, 0, conflict, "")
	b.manage(coldReset, 0, 0)
	b = s.session(g, 2)
	b.good(rw10(0x2a, 0, 1), block, 0) // it was not to outlast a power cycle
}

// TestAttentions: every other session hears once of what one does.
func TestAttentions(t *testing.T) { // SAM-5, 5.14; SPC-4, 5.12
	swp := append([]byte{0, 0, 0, 0, 0x0a, 10, 0, 0, 0x08}, make([]byte, 7)...)
	for _, c := range []struct {
		name string
		do   func(s *site, a, b *initiator)
		want string // what b hears
	}{
		{"mode pages", func(_ *site, a, _ *initiator) {
			a.good([]byte{0x15, 0x10, 0, 0, byte(len(swp)), 0}, swp, 0)
		}, "06/2a01"},
		{"the volume grew", func(s *site, _, _ *initiator) {
			if err := s.store.Resize(context.Background(), "orders", 32<<20); err != nil {
				s.t.Fatal(err)
			}
		}, "06/2a09"},
		{"preempted", func(_ *site, a, b *initiator) {
			a.good(prOut(registerIgnore, 0), keys(0, 0xa1, false), 0)
			b.good(prOut(registerIgnore, 0), keys(0, 0xb2, false), 0)
			a.good(prOut(preempt, writeExclusive), keys(0xa1, 0xb2, false), 0)
		}, "06/2a05"},
		{"cleared", func(_ *site, a, b *initiator) {
			a.good(prOut(registerIgnore, 0), keys(0, 0xa1, false), 0)
			b.good(prOut(registerIgnore, 0), keys(0, 0xb2, false), 0)
			a.good(prOut(clearAll, 0), keys(0xa1, 0, false), 0)
		}, "06/2a03"},
		{"released", func(_ *site, a, b *initiator) {
			a.good(prOut(registerIgnore, 0), keys(0, 0xa1, false), 0)
			b.good(prOut(registerIgnore, 0), keys(0, 0xb2, false), 0)
			a.good(prOut(reserve, 5), keys(0xa1, 0, false), 0) // registrants only
			a.good(prOut(release, 5), keys(0xa1, 0, false), 0)
		}, "06/2a04"},
		{"reset", func(_ *site, a, _ *initiator) { a.manage(lunReset, 0, 0) }, "06/2903"},
	} {
		for _, how := range []string{"any command", "a plain read", "REQUEST SENSE", "after INQUIRY"} {
			s := newSite(t, "orders")
			g := s.grant(grantOf("orders", 1, "n1"))
			a, b := s.session(g, 1), s.session(g, 2)
			c.do(s, a, b)
			switch how {
			case "a plain read":
				b.fails(rw10(0x28, 0, 1), nil, 512, 2, c.want)
			case "REQUEST SENSE":
				if got := senseText(b.good([]byte{3, 0, 0, 0, 18, 0}, nil, 18)); got != c.want {
					t.Errorf("%s: REQUEST SENSE gives %s, not %s", c.name, got, c.want)
				}
			case "after INQUIRY": // which never meets an attention, and takes none away
				b.good([]byte{0x12, 0, 0, 0, 36, 0}, nil, 36)
				b.good([]byte{0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0}, nil, 16)
				fallthrough
			default:
				b.fails(testReady, nil, 0, 2, c.want)
			}
			b.good(testReady, nil, 0)
		}
	}
}
