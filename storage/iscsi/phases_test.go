package iscsi_test

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"

	"hotspare/storage/iscsi"
)

// terms are what a session negotiated.
type terms struct {
	initialR2T, immediate          bool
	firstBurst, maxBurst, segments int // segments: of ours, for Data-In
	outstanding                    int
	digests                        bool
}

func yes(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}

// sessionOn logs in on the terms.
func (s *site) sessionOn(c terms) *initiator {
	s.t.Helper()
	g := grantOf("orders", 1, "n1")
	i := s.dial()
	if err := i.authenticate(g, s.iqn("orders"), false); err != nil {
		s.t.Fatal(err)
	}
	text := iscsi.Pairs{{Key: "InitialR2T", Value: yes(c.initialR2T)}, {Key: "ImmediateData", Value: yes(c.immediate)},
		{Key: "FirstBurstLength", Value: strconv.Itoa(c.firstBurst)}, {Key: "MaxBurstLength", Value: strconv.Itoa(c.maxBurst)},
		{Key: "MaxRecvDataSegmentLength", Value: strconv.Itoa(c.segments)}, {Key: "MaxOutstandingR2T", Value: strconv.Itoa(c.outstanding)}}
	if c.digests {
		text = append(text, iscsi.Pair{Key: "HeaderDigest", Value: "CRC32C"}, iscsi.Pair{Key: "DataDigest", Value: "CRC32C"})
	}
	_, ps, err := i.step(iscsi.StageOperational, iscsi.StageFullFeature, true, text)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, kv := range text[:4] {
		if got, _ := ps.Get(kv.Key); got != kv.Value {
			s.t.Fatalf("%s=%s was answered by %q", kv.Key, kv.Value, got)
		}
	}
	i.digests = iscsi.Digests{Header: c.digests, Data: c.digests}
	return i
}

// dataOut sends out[off:end] in PDUs of at most size bytes.
func (i *initiator) dataOut(tag, transfer uint32, out []byte, off, end, size int) {
	i.t.Helper()
	for sn := uint32(0); off < end; sn++ {
		n := min(size, end-off)
		var d iscsi.Header
		d.SetOpcode(iscsi.OpDataOut, false)
		if off+n == end {
			d.SetFlags(0x80)
		}
		d.SetTaskTag(tag)
		d.SetTransferTag(transfer)
		d.PutUint32(36, sn)
		d.PutUint32(40, uint32(off))
		i.mustSend(d, out[off:off+n])
		off += n
	}
}

// TestDataPhases writes and reads on all kinds of terms, to the letter: as much
// immediate and unsolicited data as was agreed on, no more R2Ts at once, no
// longer bursts and segments (RFC 7143, 4.2.5 and 11.7 to 11.8).
func TestDataPhases(t *testing.T) {
	s := newSite(t, "orders")
	s.grant(grantOf("orders", 1, "n1"))
	for _, c := range []terms{
		{true, true, 65536, 262144, 262144, 1, false},
		{true, false, 65536, 262144, 8192, 1, true},
		{false, true, 65536, 262144, 65536, 8, false},
		{false, false, 65536, 262144, 512, 4, false},
		{false, true, 512, 512, 512, 8, true},
		{false, true, 4096, 12288, 1000, 3, true},
		{true, true, 1000, 5000, 5000, 2, false},
		{false, true, 262144, 1048576, 262144, 8, false},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			i := s.sessionOn(c)
			i.t = t
			for _, blocks := range []int{1, 2, 7, 128, 129, 700} {
				want := random(blocks * 512)
				i.writeOn(c, want)
				i.readOn(c, want)
			}
			i.nc.Close()
		})
	}
}

// writeOn writes to block 9 with as little waiting as the terms allow.
func (i *initiator) writeOn(c terms, out []byte) {
	i.t.Helper()
	h := i.command(rw10(0x2a, 9, len(out)/512), len(out), false, true)
	first := min(len(out), c.firstBurst)
	now := 0
	if c.immediate {
		now = min(first, c.firstBurst/2+1)
	}
	unsolicited := now
	if !c.initialR2T {
		unsolicited = first
	}
	if unsolicited > now {
		h.SetFlags(0x20) // more comes unasked
	}
	i.mustSend(h, out[:now])
	i.dataOut(h.TaskTag(), iscsi.ReservedTag, out, now, unsolicited, 3000)
	asked, r2tSN := unsolicited, uint32(0)
	var open []*iscsi.PDU // R2Ts that are not answered yet
	for {
		p, err := i.receive()
		if err != nil {
			i.t.Fatal(err)
		}
		if p.Header.Opcode() == iscsi.OpSCSIResponse {
			if p.Header[3] != 0 || asked != len(out) || len(open) > 0 {
				i.t.Fatalf("status %d after %d of %d bytes, %d R2Ts open", p.Header[3], asked, len(out), len(open))
			}
			return
		}
		off, n := int(p.Header.Uint32(40)), int(p.Header.Uint32(44))
		if p.Header.Opcode() != iscsi.OpR2T || off != asked || n == 0 || n > c.maxBurst || off+n > len(out) || p.Header.Uint32(36) != r2tSN {
			i.t.Fatalf("opcode %#x: R2T %d for %d bytes at %d, after %d", p.Header.Opcode(), p.Header.Uint32(36), n, off, asked)
		}
		asked, r2tSN = off+n, r2tSN+1
		open = append(open, p)
		if len(open) > c.outstanding {
			i.t.Fatalf("%d R2Ts at once", len(open))
		}
		if len(open) < c.outstanding && asked < len(out) {
			continue // the target may send more at once, and does
		}
		q := open[0]
		open = open[1:]
		off, n = int(q.Header.Uint32(40)), int(q.Header.Uint32(44))
		i.dataOut(h.TaskTag(), q.Header.TransferTag(), out, off, off+n, 3000)
		for asked == len(out) && len(open) > 0 {
			q, open = open[0], open[1:]
			off, n = int(q.Header.Uint32(40)), int(q.Header.Uint32(44))
			i.dataOut(h.TaskTag(), q.Header.TransferTag(), out, off, off+n, 3000)
		}
	}
}

// readOn reads block 9 and what follows, and looks at every PDU.
func (i *initiator) readOn(c terms, want []byte) {
	i.t.Helper()
	i.mustSend(i.command(rw10(0x28, 9, len(want)/512), len(want), true, false), nil)
	burst := 0
	var got []byte
	for sn := uint32(0); ; sn++ {
		p := i.next(iscsi.OpDataIn)
		burst += len(p.Data)
		if len(p.Data) > c.segments || burst > c.maxBurst || p.Header.Uint32(36) != sn || int(p.Header.Uint32(40)) != len(got) {
			i.t.Fatalf("Data-In %d of %d bytes at %d, burst %d", p.Header.Uint32(36), len(p.Data), p.Header.Uint32(40), burst)
		}
		got = append(got, p.Data...)
		if p.Header.Final() {
			burst = 0
		}
		if p.Header.Flags()&1 != 0 {
			break
		}
	}
	if !bytes.Equal(got, want) {
		i.t.Fatalf("%d bytes read, not what was written", len(got))
	}
}

// TestDataOutOfOrder: data that is not what comes next ends the command, or the
// session where the fault is one of the connection, and does not land.
func TestDataOutOfOrder(t *testing.T) {
	s := newSite(t, "orders")
	s.grant(grantOf("orders", 1, "n1"))
	c := terms{false, true, 4096, 8192, 65536, 1, false}
	out := random(16 * 512)
	type wrong struct {
		sn, off, transfer int
		size              int
		final             bool
	}
	for name, w := range map[string]wrong{
		"a sequence number is left out":   {1, 512, 0, 512, true},
		"an offset is left out":           {0, 1024, 0, 512, true},
		"an offset comes again":           {0, 0, 0, 512, true},
		"beyond the first burst":          {0, 512, 0, 4096, true},
		"beyond the expected length":      {0, 512, 0, 16 * 512, true},
		"an answer to no R2T":             {0, 512, 5, 512, true},
		"an offset far beyond the memory": {0, 1 << 30, 0, 512, true},
	} {
		t.Run(name, func(t *testing.T) {
			i := s.sessionOn(c)
			h := i.command(rw10(0x2a, 0, 16), len(out), false, true)
			h.SetFlags(0x20)
			i.mustSend(h, out[:512])
			var d iscsi.Header
			d.SetOpcode(iscsi.OpDataOut, false)
			if w.final {
				d.SetFlags(0x80)
			}
			d.SetTaskTag(h.TaskTag())
			d.SetTransferTag(iscsi.ReservedTag)
			if w.transfer != 0 {
				d.SetTransferTag(uint32(w.transfer))
			}
			d.PutUint32(36, uint32(w.sn))
			d.PutUint32(40, uint32(w.off))
			i.mustSend(d, make([]byte, w.size))
			if p := i.next(iscsi.OpSCSIResponse); p.Header[3] != 2 || senseText(p.Data[2:]) != "0b/4b00" {
				t.Fatalf("status %d, %x", p.Header[3], p.Data)
			}
			if got := i.good(rw10(0x28, 0, 16), nil, len(out)); !bytes.Equal(got, make([]byte, len(out))) {
				t.Error("something landed")
			}
			i.nc.Close()
		})
	}
	for name, f := range map[string]func(i *initiator) (iscsi.Header, []byte){
		"more immediate data than expected": func(i *initiator) (iscsi.Header, []byte) {
			return i.command(rw10(0x2a, 0, 1), 512, false, true), make([]byte, 1024)
		},
		"more immediate data than a burst": func(i *initiator) (iscsi.Header, []byte) {
			return i.command(rw10(0x2a, 0, 16), 8192, false, true), make([]byte, 8192)
		},
		"data with a read": func(i *initiator) (iscsi.Header, []byte) {
			return i.command(rw10(0x28, 0, 1), 512, true, false), make([]byte, 512)
		},
		"both directions": func(i *initiator) (iscsi.Header, []byte) {
			return i.command(rw10(0x2a, 0, 1), 512, true, true), make([]byte, 512)
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := s.sessionOn(c)
			h, data := f(i)
			i.mustSend(h, data)
			i.next(iscsi.OpReject)
			i.ends()
			if got := s.sessionOn(c).good(rw10(0x28, 0, 16), nil, len(out)); !bytes.Equal(got, make([]byte, len(out))) {
				t.Error("something landed")
			}
		})
	}
}
