package initiator

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare/storage/iscsi"
)

// little skips golden bytes on machines of the other byte order; the kernel's
// structs are in the machine's own.
func little(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("golden bytes are those of little-endian machines")
	}
}

// recorder is a channel that keeps the messages and answers all with success.
type recorder struct {
	sent [][]byte
	sid  uint32
}

func (r *recorder) do(e uevent, payload []byte) (uevent, error) {
	e.Handle = 0xffffffffc0a81234
	r.sent = append(r.sent, appendMessage(nil, &e, payload))
	if e.Type == ueventCreateSession || e.Type == ueventCreateConn {
		native.PutUint32(e.Reply[0:], r.sid)
		native.PutUint32(e.Reply[4:], 5)
	}
	return e, nil
}
func (r *recorder) subscribe(uint32, *mailbox) {}
func (r *recorder) unsubscribe(uint32)         {}

// TestMessages compares every request with the bytes that the kernel's header
// file asks for: nlmsghdr (16), type, iferror, handle (16), request (24), reply
// (16), payload.
func TestMessages(t *testing.T) {
	little(t)
	handle := "3412a8c0ffffffff"
	none := strings.Repeat("00", 16)
	message := func(length, kind, request string, payload string) string {
		return length + "000000" + kind + "00" + "0000" + "00000000" + "00000000" +
			kind + "000000" + "00000000" + handle + request + strings.Repeat("00", 24-len(request)/2) + none + payload
	}
	r := &recorder{sid: 7}
	k, err := createSession(r, newMailbox())
	if err != nil || k.sid != 7 || k.host != 5 {
		t.Fatalf("session %+v, %v", k, err)
	}
	pdu := &iscsi.PDU{Header: iscsi.LoginRequest{}.Header(), Data: []byte("ab=c\x00")}
	steps := []struct {
		name string
		do   func() error
		want string
	}{
		{"create session", nil, message("48", "0b", "01000000"+"8000"+"2000", "")},
		{"create connection", nil, message("48", "0d", "07000000"+"00000000", "")},
		{"bind", func() error { return k.bind(9) }, message("48", "0f", "0700000000000000"+"0900000000000000"+"01000000", "")},
		{"parameter", func() error { return k.setParam(paramFirstBurst, "512") }, message("4c", "10", "0700000000000000"+"07000000"+"04000000", "35313200")},
		{"start", k.start, message("48", "11", "0700000000000000", "")},
		{"stop", func() error { return k.stop(stopRecover) }, message("48", "12", "0700000000000000"+"0000000000000000"+"03000000", "")},
		{"PDU", func() error { return k.sendPDU(pdu) }, message("7d", "13", "0700000000000000"+"30000000"+"05000000",
			"4300000000000005"+strings.Repeat("00", 40)+"61623d6300")},
		{"unbind", k.unbind, message("48", "1b", "0700000000000000", "")},
		{"destroy connection", k.destroyConn, message("48", "0e", "0700000000000000", "")},
		{"destroy session", k.destroySession, message("48", "0c", "0700000000000000", "")},
	}
	for n, s := range steps {
		if s.do != nil {
			if err := s.do(); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
		}
		if got := hex.EncodeToString(r.sent[n]); got != s.want {
			t.Errorf("%s:\n got %s\nwant %s", s.name, got, s.want)
		}
	}
}

// TestReturnCodes: what the kernel answers is told, as errno or as its own code.
func TestReturnCodes(t *testing.T) {
	for code, want := range map[int32]string{0: "", -107: "transport endpoint is not connected", 1020: "TCP connection closed"} {
		k := &kernelSession{control: answering(code)}
		err := k.start()
		if (want == "") != (err == nil) || err != nil && err.Error() != "start connection: "+want {
			t.Errorf("code %d: %v", code, err)
		}
	}
}

// answering is a channel that answers everything with one code.
type answering int32

func (a answering) do(e uevent, _ []byte) (uevent, error) {
	native.PutUint32(e.Reply[0:], uint32(a))
	return e, nil
}
func (answering) subscribe(uint32, *mailbox) {}
func (answering) unsubscribe(uint32)         {}

// TestSettings is everything that the kernel is told about one session.
func TestSettings(t *testing.T) {
	target := someTarget()
	n := negotiated{maxRecv: 1, maxXmit: 2, firstBurst: 3, maxBurst: 4, immediateData: true, dataDigest: true, portalGroup: 5, expStatSN: 6}
	want := map[param]string{
		0: "1", 1: "2", 2: "0", 3: "1", 4: "0", 5: "1", 6: "1", 7: "3", 8: "4", 9: "1", 10: "1", 11: "0", 14: "6",
		15: target.IQN, 16: "5", 17: "10.77.0.1", 18: "3260", 19: "86400", 26: "1", 27: "15", 28: "30",
		30: "3", 31: "2", 34: target.InitiatorName, 35: "30",
	}
	got := make(map[param]string)
	for _, x := range settings(&target, n) {
		got[x.param] = x.value
	}
	if !maps.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	target.ReplacementTimeout, target.IdleTime = -1, 1500*time.Millisecond
	for _, x := range settings(&target, n) {
		if x.param == paramRecoveryTimeout && x.value != "-1" || x.param == paramRecvTimeout && x.value != "2" {
			t.Errorf("parameter %d is %s", x.param, x.value)
		}
	}
}

// TestLogoutAnswer: only a response that says success is a log-out.
func TestLogoutAnswer(t *testing.T) {
	p := &iscsi.PDU{}
	p.Header.SetOpcode(iscsi.OpLogoutResponse, false)
	if err := checkLogout(p); err != nil {
		t.Error(err)
	}
	p.Header[2] = 1 // CID not found
	if checkLogout(p) == nil {
		t.Error("a refused log-out is taken for one")
	}
	p.Header.SetOpcode(iscsi.OpNopIn, false)
	p.Header[2] = 0
	if checkLogout(p) == nil {
		t.Error("a NOP is taken for a log-out")
	}
}

// kernelMessage is a message as the kernel sends it: padded to four bytes.
func kernelMessage(msgType eventType, e uevent, payload []byte) []byte {
	for len(payload)%4 != 0 {
		payload = append(payload, 0xee)
	}
	b := appendMessage(nil, &e, payload)
	native.PutUint16(b[4:], uint16(msgType))
	return b
}

// TestReplies: replies reach the request that waits, events their session only.
func TestReplies(t *testing.T) {
	c := &control{
		log: slog.New(slog.DiscardHandler), handle: 1,
		replies: make(chan reply, 4), done: make(chan struct{}), sessions: make(map[uint32]*mailbox),
	}
	mine, other := newMailbox(), newMailbox()
	c.subscribe(3, mine)
	c.subscribe(4, other)

	refusal := uevent{Type: keventIfError, IfError: -int32(syscall.ENOTCONN), Handle: 1}
	c.dispatch(kernelMessage(ueventSetParam, refusal, nil), false)
	r := <-c.replies
	if r.request != ueventSetParam || r.event.Type != keventIfError || !errors.Is(syscall.Errno(-r.event.IfError), syscall.ENOTCONN) {
		t.Fatalf("refusal: %+v", r)
	}

	failed := uevent{Type: keventConnError, Handle: 1}
	native.PutUint32(failed.Reply[0:], 3)
	native.PutUint32(failed.Reply[8:], 1020)
	c.dispatch(kernelMessage(0, failed, nil), true)
	n, ok := mine.take()
	if !ok || n.kind != keventConnError || kernelError(n.code) != "TCP connection closed" {
		t.Fatalf("event: %+v, %v", n, ok)
	}

	pdu := uevent{Type: keventRecvPDU, Handle: 1}
	native.PutUint32(pdu.Reply[0:], 3)
	answer := &iscsi.PDU{Header: iscsi.LoginResponse{TSIH: 9}.Header(), Data: []byte("a=b\x00c")}
	wire := iscsi.AppendPDU(nil, answer, iscsi.Digests{})
	c.dispatch(kernelMessage(0, pdu, wire[:iscsi.HeaderSize+5]), true)
	if n, ok = mine.take(); !ok || n.err != nil || !bytes.Equal(n.pdu.Data, answer.Data) || n.pdu.Header != answer.Header {
		t.Fatalf("PDU: %+v, %v", n, ok)
	}
	c.dispatch(kernelMessage(0, pdu, wire[:iscsi.HeaderSize]), true) // data missing
	if n, ok = mine.take(); !ok || n.err == nil {
		t.Fatalf("short PDU: %+v, %v", n, ok)
	}

	foreign := failed
	foreign.Handle = 2 // another transport, e.g. an offload card
	c.dispatch(kernelMessage(0, foreign, nil), true)
	c.dispatch([]byte("short"), true)
	if n, ok = mine.take(); ok {
		t.Fatalf("foreign event: %+v", n)
	}
	if n, ok = other.take(); ok {
		t.Fatalf("event of another session: %+v", n)
	}
	c.overrun(errors.New("no buffer space"))
	if n, ok = other.take(); !ok || n.kind != noticeOverrun {
		t.Fatalf("overrun: %+v, %v", n, ok)
	}
}

// TestAddedDisk: only the whole disk of our own logical unit counts.
func TestAddedDisk(t *testing.T) {
	const path = "/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/"
	for _, c := range []struct{ event, want string }{
		{"add@" + path + "sda\x00ACTION=add\x00", "sda"},
		{"add@" + path + "sda/sda1\x00ACTION=add\x00", ""},
		{"remove@" + path + "sda\x00", ""},
		{"add@/devices/platform/host2/session1/target2:0:0/2:0:0:10/block/sdb\x00", ""},
		{"add@" + path + "\x00", ""},
		{"libudev\x00\xfe\xed\xca\xfe", ""},
		{"", ""},
	} {
		if got, ok := addedDisk([]byte(c.event), path); got != c.want || ok != (c.want != "") {
			t.Errorf("%q: got %q, %v", c.event, got, ok)
		}
	}
}

// FuzzKernelMessage: no message of the control channel panics, and what is read
// is inside what came.
func FuzzKernelMessage(f *testing.F) {
	f.Add(kernelMessage(0, uevent{Type: keventRecvPDU}, make([]byte, 60)))
	f.Add([]byte{72})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, payload, err := parseMessage(b)
		if err != nil {
			return
		}
		if len(payload) > len(b)-netlinkHeaderSize-ueventSize {
			t.Fatal("payload longer than the message")
		}
		if p, err := parsePDU(payload); err == nil && len(p.Data) != p.Header.DataLength() {
			t.Fatal("data of another length than the header says")
		}
		addedDisk(b, "/devices/")
	})
}
