package iscsi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"hotspare/storage/iscsi"
)

// beginLogin sends the first request of a log-in and takes the answer: from here
// on it is in progress.
func (i *initiator) beginLogin(who, target string) error {
	text := append(identity(who, target), iscsi.Pair{Key: "AuthMethod", Value: "CHAP"})
	_, _, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, false, text)
	return err
}

// eventually tries until try succeeds: what another goroutine gives back, it
// gives back soon.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestLoginsInProgressAreBounded(t *testing.T) { // S16
	s := newSiteWith(t, iscsi.Options{LoginTimeout: time.Minute, MaxLogins: 3, MaxLoginsPerAddress: 2}, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	iqn := s.iqn("orders")
	from := func(ip string) *initiator {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		nc, err := d.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		return &initiator{t: t, nc: nc, isid: 1, cmdSN: 1}
	}
	a, b := from("127.0.0.1"), from("127.0.0.1")
	for _, i := range []*initiator{a, b} {
		if err := i.beginLogin(g.Initiator, iqn); err != nil {
			t.Fatal(err)
		}
	}
	if err := from("127.0.0.1").beginLogin(g.Initiator, iqn); err == nil {
		t.Fatal("one address has three log-ins in progress")
	}
	c := from("127.0.0.2")
	if err := c.beginLogin(g.Initiator, iqn); err != nil {
		t.Fatalf("another address suffers: %v", err)
	}
	if err := from("127.0.0.3").beginLogin(g.Initiator, iqn); err == nil {
		t.Fatal("four log-ins are in progress")
	}
	a.nc.Close()
	eventually(t, "the place of a log-in that ended", func() error { return from("127.0.0.3").beginLogin(g.Initiator, iqn) })
}

func TestConnectionsAreBounded(t *testing.T) { // S16
	s := newSiteWith(t, iscsi.Options{MaxConnections: 2}, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	a := s.session(g, 1)
	s.session(g, 2)
	third := func() error {
		i := s.dial()
		i.isid = 3
		return i.login(g, s.iqn("orders"), false, false)
	}
	if third() == nil {
		t.Fatal("a third connection is served")
	}
	a.nc.Close()
	eventually(t, "the place of a connection that ended", third)
}

// TestWriteDataIsBounded begins writes whose data does not come: those beyond 64
// MiB wait, and go on when others end.
func TestWriteDataIsBounded(t *testing.T) { // S16
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	const size, holds = 1 << 20, 64
	var tags []uint32
	for range holds + 20 {
		h := i.command(rw10(0x2a, 0, size/512), size, false, true)
		tags = append(tags, h.TaskTag())
		i.mustSend(h, nil)
	}
	asked := map[uint32]bool{}
	// until gives the PDU with the opcode, after the R2Ts before it.
	until := func(op iscsi.Opcode) *iscsi.PDU {
		for {
			p, err := i.receive()
			if err != nil {
				t.Fatal(err)
			}
			if p.Header.Opcode() == op {
				return p
			}
			if p.Header.Opcode() != iscsi.OpR2T {
				t.Fatalf("opcode %#x", p.Header.Opcode())
			}
			asked[p.Header.TaskTag()] = true
		}
	}
	i.mustSend(i.request(iscsi.OpNopOut, true, 0, 5000), nil)
	until(iscsi.OpNopIn)
	if len(asked) != holds {
		t.Fatalf("data is asked for of %d writes, not %d", len(asked), holds)
	}
	for n, tag := range tags {
		h := i.request(iscsi.OpTaskRequest, true, abortTask, 6000)
		h.SetTransferTag(tag)
		i.mustSend(h, nil)
		if p := until(iscsi.OpTaskResponse); p.Header[2] != complete {
			t.Fatalf("abort %d: %d", n, p.Header[2])
		}
	}
	if len(asked) != len(tags) {
		t.Errorf("%d of %d writes had their turn", len(asked), len(tags))
	}
	i.good(testReady, nil, 0)
}

// TestReadDataIsBounded asks for far more than it takes.
func TestReadDataIsBounded(t *testing.T) { // S16
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	i.nc.SetDeadline(time.Now().Add(5 * time.Minute))
	const size, reads = 16 << 20, 64
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	runtime.GC()
	before, peak := heap(), uint64(0)
	for range reads {
		i.mustSend(i.command(rw10(0x28, 0, size/512), size, true, false), nil)
	}
	buf := make([]byte, 1<<20)
	for left, n := reads*size, 0; left > 0; n++ { // headers aside: at least so much comes
		got, err := i.nc.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		left -= got
		if n%50 == 0 {
			peak = max(peak, heap())
		}
	}
	if peak > before+reads*size/2 {
		t.Errorf("%d MiB are held for reads of %d MiB", (peak-before)>>20, reads*size>>20)
	}
}

// TestManagementIsBounded sends task management requests and takes no answers.
func TestManagementIsBounded(t *testing.T) { // S16
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	i := s.session(g, 1)
	before, most := runtime.NumGoroutine(), 0
	h := i.request(iscsi.OpTaskRequest, true, abortTask, 77)
	many := bytes.Repeat(iscsi.AppendPDU(nil, &iscsi.PDU{Header: h}, iscsi.Digests{}), 1000)
	for range 500 { // until the target takes no more, which is right
		i.nc.SetWriteDeadline(time.Now().Add(time.Second))
		_, err := i.nc.Write(many)
		most = max(most, runtime.NumGoroutine()-before)
		if err != nil {
			break
		}
	}
	if most > 100 {
		t.Errorf("%d requests are under way", most)
	}
	i.nc.Close()
	s.session(g, 1).good(testReady, nil, 0)
}

func TestSessionsOfAnInitiatorAreBounded(t *testing.T) { // S16
	s := newSiteWith(t, iscsi.Options{MaxSessions: 2}, "orders", "web")
	g := s.grant(grantOf("orders", 1, "n1"))
	other := s.grant(grantOf("web", 1, "n2"))
	a := s.session(g, 1)
	s.session(g, 2)
	third := func() error {
		i := s.dial()
		i.isid = 3
		return i.login(g, s.iqn("orders"), false, false)
	}
	if err := third(); err == nil || !strings.Contains(err.Error(), "out of resources") {
		t.Fatalf("a third session: %v", err)
	}
	s.session(other, 1)
	b := s.session(g, 2) // replaces, and is no further one
	b.good([]byte{0, 0, 0, 0, 0, 0}, nil, 0)
	a.nc.Close()
	eventually(t, "the place of a session that ended", third)
}

func TestDiscoverySessionEnds(t *testing.T) { // S16
	s := newSiteWith(t, iscsi.Options{DiscoveryTimeout: 50 * time.Millisecond})
	i := s.dial()
	text := iscsi.Pairs{{Key: "InitiatorName", Value: "iqn.test:anybody"}, {Key: "SessionType", Value: "Discovery"}}
	if _, _, err := i.step(iscsi.StageOperational, iscsi.StageFullFeature, true, text); err != nil {
		t.Fatal(err)
	}
	if p, err := i.receive(); !errors.Is(err, io.EOF) {
		t.Fatalf("the session stays: %v, %v", p, err)
	}
}

// TestEndlessLoginIsCut keeps a log-in going with requests that lead nowhere,
// and with single bytes.
func TestEndlessLoginIsCut(t *testing.T) { // S16
	s := newSiteWith(t, iscsi.Options{LoginTimeout: 300 * time.Millisecond}, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	t.Run("requests", func(t *testing.T) {
		i := s.dial()
		if err := i.beginLogin(g.Initiator, s.iqn("orders")); err != nil {
			t.Fatal(err)
		}
		for {
			if _, _, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, false, nil); err != nil {
				if netErr := net.Error(nil); errors.As(err, &netErr) && netErr.Timeout() {
					t.Fatal("the target never ends it")
				}
				return
			}
		}
	})
	t.Run("bytes", func(t *testing.T) {
		i := s.dial()
		gone := make(chan error, 1)
		go func() {
			_, err := i.nc.Read(make([]byte, 1))
			gone <- err
		}()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case err := <-gone:
				if netErr := net.Error(nil); errors.As(err, &netErr) && netErr.Timeout() {
					t.Fatal("the target never ends it")
				}
				return
			case <-tick.C:
				i.nc.Write([]byte{0x43})
			}
		}
	})
}

func TestLoginTextIsBounded(t *testing.T) { // S16
	s := newSite(t, "orders")
	s.grant(grantOf("orders", 1, "n1"))
	long := iscsi.Pairs{{Key: "InitiatorName", Value: "iqn.test:n1"}, {Key: "X-a", Value: strings.Repeat("v", 8000)}}
	t.Run("in one request", func(t *testing.T) {
		i := s.dial()
		h := iscsi.LoginRequest{Current: iscsi.StageSecurity, Next: iscsi.StageOperational, ISID: [6]byte{0x80}, CmdSN: 1}
		err := iscsi.WritePDU(i.nc, &iscsi.PDU{Header: h.Header(), Data: make([]byte, 17<<10)}, iscsi.Digests{})
		if err != nil {
			t.Fatal(err)
		}
		if p, err := iscsi.ReadPDU(i.nc, iscsi.Digests{}, 65536); err == nil && iscsi.ParseLoginResponse(&p.Header).Status == iscsi.LoginSuccess {
			t.Fatal("17 KiB are taken")
		}
	})
	t.Run("in many requests", func(t *testing.T) {
		i := s.dial()
		for n := 1; ; n++ {
			h := iscsi.LoginRequest{Continue: true, Current: iscsi.StageSecurity, Next: iscsi.StageSecurity, ISID: [6]byte{0x80}, CmdSN: 1}
			if err := iscsi.WritePDU(i.nc, &iscsi.PDU{Header: h.Header(), Data: long.Encode()}, iscsi.Digests{}); err != nil {
				t.Fatal(err)
			}
			p, err := iscsi.ReadPDU(i.nc, iscsi.Digests{}, 65536)
			if err != nil {
				t.Fatal(err)
			}
			if st := iscsi.ParseLoginResponse(&p.Header).Status; st == iscsi.LoginOutOfResources {
				return
			} else if st != iscsi.LoginSuccess || n > 3 {
				t.Fatalf("request %d: %v", n, st)
			}
		}
	})
}

// TestWindowIsEnforced: commands that the window does not cover, and immediate
// ones, which it never covers, end the session before they fill the memory.
func TestWindowIsEnforced(t *testing.T) { // S16
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	dropped := make(chan struct{})
	go func() {
		defer close(dropped)
		io.Copy(io.Discard, i.nc)
	}()
	for range 100_000 {
		h := i.command(rw10(0x2a, 0, 8), 4096, false, true) // and never its data
		h.SetOpcode(iscsi.OpSCSICommand, true)
		if i.send(h, nil) != nil {
			break
		}
	}
	<-dropped
	if err := s.dial().login(grantOf("orders", 1, "n1"), s.iqn("orders"), false, false); err != nil {
		t.Fatalf("the next session: %v", err)
	}
}

// TestTextInPieces: a request that comes in several PDUs, a key cut in two.
func TestTextInPieces(t *testing.T) {
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	piece := func(flags byte, tag uint32, text string) *iscsi.PDU {
		t.Helper()
		h := i.request(iscsi.OpTextRequest, false, 0, 5)
		h.SetFlags(flags)
		h.SetTransferTag(tag)
		i.mustSend(h, []byte(text))
		return i.next(iscsi.OpTextResponse)
	}
	p := piece(0x40, iscsi.ReservedTag, "SendTar")
	if p.Header.Flags()&0xc0 != 0 || len(p.Data) > 0 || p.Header.TransferTag() == iscsi.ReservedTag {
		t.Fatalf("flags %#x, %d bytes, tag %#x", p.Header.Flags(), len(p.Data), p.Header.TransferTag())
	}
	p = piece(0x40, p.Header.TransferTag(), "gets=\x00")
	p = piece(0x80, p.Header.TransferTag(), "X-com.example.key=1\x00")
	text := string(p.Data)
	if p.Header.Flags()&0x80 == 0 || !strings.Contains(text, "TargetName="+s.iqn("orders")) || !strings.Contains(text, "X-com.example.key=NotUnderstood") {
		t.Fatalf("flags %#x: %q", p.Header.Flags(), text)
	}
	if p = piece(0x80, iscsi.ReservedTag, "SendTargets=\x00"); !strings.Contains(string(p.Data), "TargetName=") {
		t.Fatalf("the next exchange: %q", p.Data)
	}
}

// TestTextIsBounded: requests after the log-in that nobody needs.
func TestTextIsBounded(t *testing.T) { // S16
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	for name, data := range map[string][]byte{
		"too long":       make([]byte, 256<<10+4),
		"no pairs":       []byte("nothing of sense"),
		"too many pairs": []byte(strings.Repeat("a=b\x00", 129)),
		"twice":          []byte("SendTargets=\x00SendTargets=\x00"),
		"too much text":  []byte(strings.Repeat("x", 16<<10+1)),
	} {
		t.Run(name, func(t *testing.T) {
			i := s.session(g, 1)
			var h iscsi.Header
			h.SetOpcode(iscsi.OpTextRequest, true)
			h.SetFlags(0x80)
			h.SetTransferTag(iscsi.ReservedTag)
			h.SetCmdSN(i.cmdSN)
			i.send(h, data)
			for {
				p, err := i.receive()
				if err != nil {
					break
				}
				if p.Header.Opcode() != iscsi.OpReject {
					t.Fatalf("answered by opcode %#x", p.Header.Opcode())
				}
			}
		})
	}
	if n := len(s.exports.Sessions("orders")); n > 1 {
		t.Errorf("%d sessions are left", n)
	}
	if _, err := s.exports.Revoke(context.Background(), "orders", 2); err != nil {
		t.Error(err)
	}
}
