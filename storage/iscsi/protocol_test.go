package iscsi_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"hotspare/storage/iscsi"
)

// request gives a header for a request that is no SCSI command.
func (i *initiator) request(op iscsi.Opcode, immediate bool, flags byte, tag uint32) iscsi.Header {
	var h iscsi.Header
	h.SetOpcode(op, immediate)
	h.SetFlags(0x80 | flags)
	h.SetTaskTag(tag)
	h.SetTransferTag(iscsi.ReservedTag)
	h.SetCmdSN(i.cmdSN)
	if !immediate {
		i.cmdSN++
	}
	return h
}

// next gives the next PDU, which must have the opcode.
func (i *initiator) next(op iscsi.Opcode) *iscsi.PDU {
	i.t.Helper()
	p, err := i.receive()
	if err != nil || p.Header.Opcode() != op {
		i.t.Fatalf("no PDU with opcode %#x: %v, %v", op, p, err)
	}
	return p
}

func (i *initiator) mustSend(h iscsi.Header, data []byte) {
	i.t.Helper()
	if err := i.send(h, data); err != nil {
		i.t.Fatal(err)
	}
}

func (i *initiator) ends() {
	i.t.Helper()
	if p, err := i.receive(); err == nil {
		i.t.Fatalf("the session goes on with opcode %#x", p.Header.Opcode())
	}
}

func TestSilentSessionIsAsked(t *testing.T) { // RFC 7143, 11.19
	t.Parallel() // it is mostly silence
	s := newSiteWith(t, iscsi.Options{PingAfter: time.Second}, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for range 3 { // an answer buys time, again and again: longer than the patience
		p := i.next(iscsi.OpNopIn)
		if p.Header.TaskTag() != iscsi.ReservedTag || p.Header.TransferTag() == iscsi.ReservedTag {
			t.Fatalf("a NOP-In with tags %#x and %#x is no question", p.Header.TaskTag(), p.Header.TransferTag())
		}
		h := i.request(iscsi.OpNopOut, true, 0, iscsi.ReservedTag)
		h.SetTransferTag(p.Header.TransferTag())
		i.mustSend(h, nil)
	}
	i.good([]byte{0, 0, 0, 0, 0, 0}, nil, 0)
	for { // and now without an answer
		if _, err := i.receive(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("a dead initiator keeps its session: %v", err)
		}
	}
}

func TestPingIsEchoed(t *testing.T) { // RFC 7143, 11.18
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for _, immediate := range []bool{true, false} {
		i.mustSend(i.request(iscsi.OpNopOut, immediate, 0, 77), []byte("hello, target"))
		p := i.next(iscsi.OpNopIn)
		if p.Header.TaskTag() != 77 || string(p.Data) != "hello, target" {
			t.Errorf("tag %d, %q", p.Header.TaskTag(), p.Data)
		}
	}
}

// TestPortalsLeadToOneUnit: two ways to a volume see the same data, reservations
// and resets, and each names both.
func TestPortalsLeadToOneUnit(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	a, b := s.session(g, 1), s.dialAt(s.other)
	b.isid = 2
	if err := b.login(g, s.iqn("orders"), true, true); err != nil {
		t.Fatal(err)
	}
	a.good(rw10(0x2a, 7, 1), block, 0)
	if got := b.good(rw10(0x28, 7, 1), nil, 512); !bytes.Equal(got, block) {
		t.Error("the second portal gives other data")
	}
	if id := a.good([]byte{0x12, 1, 0x83, 0, 255, 0}, nil, 255); !bytes.Equal(id, b.good([]byte{0x12, 1, 0x83, 0, 255, 0}, nil, 255)) {
		t.Error("the portals give the unit two names")
	}
	for _, i := range []*initiator{a, b} {
		i.mustSend(i.request(iscsi.OpTextRequest, false, 0, 5), iscsi.Pairs{{Key: "SendTargets", Value: ""}}.Encode())
		text := string(i.next(iscsi.OpTextResponse).Data)
		if !strings.Contains(text, s.addr+",1") || !strings.Contains(text, s.other+",1") || strings.Count(text, "TargetName=") != 1 {
			t.Errorf("SendTargets: %q", text)
		}
	}
	a.good(prOut(registerIgnore, 0), keys(0, 0xa1, false), 0)
	a.good(prOut(reserve, writeExclusive), keys(0xa1, 0, false), 0)
	b.fails(rw10(0x2a, 7, 1), block, 0, conflict, "")
}

// TestOtherUnitsDoNotExist: LUN 1 and beyond answer inquiries alone.
func TestOtherUnitsDoNotExist(t *testing.T) { // S15
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for _, lun := range []uint64{1 << 48, 2 << 48, 0x4001 << 48, 1, 1 << 63} {
		for _, c := range []struct {
			cdb    []byte
			in     int
			status byte
		}{
			{[]byte{0x12, 0, 0, 0, 96, 0}, 96, 0},
			{[]byte{0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0}, 64, 0},
			{[]byte{3, 0, 0, 0, 18, 0}, 18, 0},
			{[]byte{0, 0, 0, 0, 0, 0}, 0, 2},
			{rw10(0x28, 0, 1), 512, 2},
		} {
			h := i.command(c.cdb, c.in, c.in > 0, false)
			h.SetLUN(lun)
			i.mustSend(h, nil)
			p, err := i.receive()
			if err != nil || p.Header[3] != c.status {
				t.Fatalf("LUN %#x, command %x: %v, %v", lun, c.cdb, p, err)
			}
			switch {
			case c.cdb[0] == 0x12 && p.Data[0] != 0x7f:
				t.Errorf("LUN %#x has a device: %#x", lun, p.Data[0])
			case c.cdb[0] == 3 && senseText(p.Data) != "05/2500", c.status == 2 && senseText(p.Data[2:]) != "05/2500":
				t.Errorf("LUN %#x, command %x: %x", lun, c.cdb, p.Data)
			}
		}
	}
}

// TestResiduals: what the initiator expected and what the command moves (RFC
// 7143, 11.4.5).
func TestResiduals(t *testing.T) {
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for _, c := range []struct {
		name        string
		cdb         []byte
		in, out     int
		flags       byte // 02h underflow, 04h overflow
		residual    int
		status      byte
		dataInBytes int
	}{
		{"read as expected", rw10(0x28, 0, 2), 1024, 0, 0, 0, 0, 1024},
		{"read less than expected", rw10(0x28, 0, 2), 4096, 0, 2, 3072, 0, 1024},
		{"read more than expected", rw10(0x28, 0, 8), 1000, 0, 4, 3096, 0, 1000},
		{"read nothing", rw10(0x28, 0, 0), 512, 0, 2, 512, 0, 0},
		{"read without expecting", rw10(0x28, 0, 1), 0, 0, 4, 512, 0, 0},
		{"read beyond the end", rw10(0x28, 32768, 1), 512, 0, 2, 512, 2, 0},
		{"write as expected", rw10(0x2a, 0, 2), 0, 1024, 0, 0, 0, 0},
		{"write less than sent", rw10(0x2a, 0, 1), 0, 1024, 2, 512, 0, 0},
		{"write more than sent", rw10(0x2a, 0, 4), 0, 1024, 4, 1024, 0, 0},
		{"short allocation length", []byte{0x12, 0, 0, 0, 5, 0}, 96, 0, 2, 91, 0, 5},
		{"short expectation", []byte{0x12, 0, 0, 0, 96, 0}, 5, 0, 4, 91, 0, 5},
		{"no data at all", []byte{0, 0, 0, 0, 0, 0}, 512, 0, 2, 512, 0, 0},
		{"refused", []byte{0xff, 0, 0, 0, 0, 0}, 512, 0, 2, 512, 2, 0},
	} {
		h := i.command(c.cdb, max(c.in, c.out), c.in > 0, c.out > 0)
		i.mustSend(h, make([]byte, c.out))
		got := 0
		for {
			p, err := i.receive()
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if p.Header.Opcode() == iscsi.OpDataIn {
				got += len(p.Data)
				if p.Header.Flags()&1 == 0 {
					continue
				}
			}
			if f := p.Header.Flags() & 0x06; f != c.flags || int(p.Header.Uint32(44)) != c.residual || p.Header[3] != c.status || got != c.dataInBytes {
				t.Errorf("%s: flags %#x, residual %d, status %d, %d bytes in", c.name, f, p.Header.Uint32(44), p.Header[3], got)
			}
			break
		}
	}
}

// TestDigestErrors: a damaged header costs the connection, damaged data too,
// after a Reject (RFC 7143, 7.8), and neither is carried out.
func TestDigestErrors(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	for _, c := range []struct {
		name   string
		damage int
	}{{"header", 20}, {"header digest", 48}, {"data", 60}, {"data digest", 52 + 512}} {
		t.Run(c.name, func(t *testing.T) {
			i := s.dial()
			if err := i.login(g, s.iqn("orders"), false, true); err != nil {
				t.Fatal(err)
			}
			pdu := iscsi.AppendPDU(nil, &iscsi.PDU{Header: i.command(rw10(0x2a, 3, 1), 512, false, true), Data: block}, i.digests)
			pdu[c.damage] ^= 1
			if _, err := i.nc.Write(pdu); err != nil {
				t.Fatal(err)
			}
			p, err := i.receive()
			if err == nil && (p.Header.Opcode() != iscsi.OpReject || p.Header[2] != 2) {
				t.Fatalf("answered by %x", p.Header[:4])
			}
			if err == nil {
				i.ends()
			}
			if got := s.session(g, 2).good(rw10(0x28, 3, 1), nil, 512); !bytes.Equal(got, make([]byte, 512)) {
				t.Error("the damaged write landed")
			}
		})
	}
}

// TestCommandsOutOfOrder: a number that is not the next one is not looked at
// (RFC 7143, 4.2.2.1), and the session goes on.
func TestCommandsOutOfOrder(t *testing.T) {
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for _, off := range []uint32{1, 5, 127, 128, 1 << 31, ^uint32(0)} {
		h := i.command(rw10(0x2a, 3, 1), 512, false, true)
		i.cmdSN--
		h.SetCmdSN(i.cmdSN + off)
		i.mustSend(h, block)
	}
	if got := i.good(rw10(0x28, 3, 1), nil, 512); !bytes.Equal(got, make([]byte, 512)) {
		t.Error("a command out of order was carried out")
	}
}

// TestForeignOpcodes are rejected, and the session goes on.
func TestForeignOpcodes(t *testing.T) {
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	for op, reason := range map[iscsi.Opcode]byte{0x1c: 0x05, 0x1f: 0x05, iscsi.OpSNACK: 0x03, 0x07: 0x05, iscsi.OpNopIn: 0x05} {
		bad := i.request(op, true, 0, 9)
		i.mustSend(bad, nil)
		p := i.next(iscsi.OpReject)
		if p.Header[2] != reason || !bytes.Equal(p.Data, bad[:]) {
			t.Errorf("opcode %#x: reason %d, header %x", op, p.Header[2], p.Data)
		}
	}
	i.good([]byte{0, 0, 0, 0, 0, 0}, nil, 0)
}

func TestNegotiation(t *testing.T) { // RFC 7143, 13
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	for _, c := range []struct{ key, offer, answer string }{
		{"HeaderDigest", "None", "None"},
		{"HeaderDigest", "CRC32C,None", "CRC32C"},
		{"DataDigest", "None,CRC32C", "None"},
		{"DataDigest", "Other", "Reject"},
		{"MaxConnections", "8", "1"},
		{"ErrorRecoveryLevel", "2", "0"},
		{"InitialR2T", "Yes", "Yes"},
		{"InitialR2T", "No", "No"},
		{"ImmediateData", "No", "No"},
		{"MaxBurstLength", "16776192", "1048576"},
		{"MaxBurstLength", "65536", "65536"},
		{"FirstBurstLength", "0x100000", "262144"},
		{"MaxOutstandingR2T", "65535", "8"},
		{"DefaultTime2Wait", "3", "3"},
		{"DefaultTime2Retain", "20", "0"},
		{"DataPDUInOrder", "No", "Yes"},
		{"DataSequenceInOrder", "No", "Yes"},
		{"IFMarker", "Yes", "No"},
		{"TaskReporting", "FastAbort,RFC3720", "RFC3720"},
		{"iSCSIProtocolLevel", "2", "1"},
		{"X-com.example.key", "1", "NotUnderstood"},
		{"MaxRecvDataSegmentLength", "4096", "262144"}, // each declares its own
		{"MaxBurstLength", "511", ""},
		{"MaxConnections", "0", ""},
		{"MaxOutstandingR2T", "many", ""},
		{"InitialR2T", "Maybe", ""},
		{"ErrorRecoveryLevel", "3", ""},
		{"MaxRecvDataSegmentLength", "16777216", ""},
	} {
		i := s.dial()
		if err := i.authenticate(g, s.iqn("orders"), false); err != nil {
			t.Fatal(err)
		}
		_, ps, err := i.step(iscsi.StageOperational, iscsi.StageFullFeature, false, iscsi.Pairs{{Key: c.key, Value: c.offer}})
		got, _ := ps.Get(c.key)
		if (err != nil) != (c.answer == "") || err == nil && got != c.answer {
			t.Errorf("%s=%s: %q, %v; not %q", c.key, c.offer, got, err, c.answer)
		}
		i.nc.Close()
	}
}
