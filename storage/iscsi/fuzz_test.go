package iscsi

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"hotspare"
	"hotspare/storage"
)

// bytesVolume is a small volume of bytes.
type bytesVolume struct{ b []byte }

func (d *bytesVolume) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d.b[off:]), nil }
func (d *bytesVolume) WriteAt(p []byte, off int64) (int, error) { return copy(d.b[off:], p), nil }
func (d *bytesVolume) Flush() error                             { return nil }
func (d *bytesVolume) Discard(off, n int64) error               { clear(d.b[off : off+n]); return nil }
func (d *bytesVolume) Size() int64                              { return int64(len(d.b)) }
func (d *bytesVolume) Close() error                             { return nil }

type bytesVolumes map[string]*bytesVolume

func (v bytesVolumes) OpenVolume(n string) (storage.Device, error) { return v[n], nil }
func (v bytesVolumes) VolumeUID(n string) (string, error)          { return "uid-" + n, nil }

// bench gives a target with three volumes, each granted to another initiator,
// one of them for reading only.
func bench(t testing.TB) (*Target, *storage.Exports, bytesVolumes) {
	t.Helper()
	v := bytesVolumes{"mine": {make([]byte, 1<<20)}, "yours": {bytes.Repeat([]byte("yours..."), 1<<17)},
		"fixed": {bytes.Repeat([]byte("fixed..."), 1<<17)}}
	e, err := storage.OpenExports(filepath.Join(t.TempDir(), "exports.db"), storage.Options{Volumes: v})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	for name := range v {
		err := e.Grant(context.Background(), storage.Grant{Volume: name, Epoch: 1, Initiator: "iqn.test:" + name, User: name,
			Secret: hotspare.NewSecret("0123456789abcdef"), ReadOnly: name == "fixed"})
		if err != nil {
			t.Fatal(err)
		}
	}
	return New(Options{Directory: e, LoginTimeout: time.Second}), e, v
}

// feed gives bytes to a connection of the target and waits for its end.
func feed(t *testing.T, target *Target, b []byte) {
	here, there := net.Pipe()
	c, err := target.newConn(there)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		io.Copy(io.Discard, here)
	}()
	go func() {
		here.SetWriteDeadline(time.Now().Add(2 * time.Second))
		here.Write(b)
		here.Close()
	}()
	c.run(context.Background())
}

func FuzzLogin(f *testing.F) { // S16
	target, e, v := bench(f)
	name, err := e.TargetName("mine")
	if err != nil {
		f.Fatal(err)
	}
	first := LoginRequest{Transit: true, Current: StageSecurity, Next: StageOperational, ISID: [6]byte{0x80}, CmdSN: 1}
	text := Pairs{{"InitiatorName", "iqn.test:mine"}, {"TargetName", name}, {"AuthMethod", "CHAP,None"}, {"CHAP_A", "5"}}
	f.Add(AppendPDU(nil, &PDU{Header: first.Header(), Data: text.Encode()}, Digests{}))
	discovery := LoginRequest{Transit: true, Current: StageOperational, Next: StageFullFeature}
	d := AppendPDU(nil, &PDU{Header: discovery.Header(), Data: Pairs{{"InitiatorName", "iqn.test:mine"}, {"SessionType", "Discovery"}}.Encode()}, Digests{})
	var h Header
	h.SetOpcode(OpTextRequest, true)
	h.SetTransferTag(ReservedTag)
	f.Add(AppendPDU(d, &PDU{Header: h, Data: Pairs{{"SendTargets", "All"}}.Encode()}, Digests{}))
	want := bytes.Clone(v["yours"].b)
	f.Fuzz(func(t *testing.T, b []byte) {
		feed(t, target, b)
		if n := len(e.Sessions("mine")) + len(e.Sessions("yours")); n != 0 {
			t.Fatal("somebody got in without a secret")
		}
		if !bytes.Equal(v["yours"].b, want) {
			t.Fatal("a volume changed")
		}
	})
}

// session gives a connection that is logged in to the volume, and its other end.
func session(t testing.TB, target *Target, e *storage.Exports, volume string) (*conn, net.Conn) {
	t.Helper()
	name, err := e.TargetName(volume)
	if err != nil {
		t.Fatal(err)
	}
	here, there := net.Pipe()
	c, err := target.newConn(there)
	if err != nil {
		t.Fatal(err)
	}
	ex, err := e.Find("iqn.test:"+volume, name)
	if err != nil {
		t.Fatal(err)
	}
	c.nexus = nexus{initiator: "iqn.test:" + volume, target: name}
	c.cmdSN = 1
	a, err := e.Attach(context.Background(), storage.Login{Export: ex, Initiator: c.nexus.initiator, Cut: c.revoked})
	if err != nil {
		t.Fatal(err)
	}
	if c.lu, err = newLU(target.unit(ex), a, c); err != nil {
		t.Fatal(err)
	}
	return c, here
}

// FuzzCDB carries out commands with any bytes and any parameter data, for one
// who may write his volume and one who may only read his.
func FuzzCDB(f *testing.F) { // S15, S16
	target, e, v := bench(f)
	for _, o := range buildOperations() {
		cdb := make([]byte, 16)
		cdb[0], cdb[1] = o.opcode, byte(max(0, o.action))
		for _, data := range [][]byte{nil, make([]byte, 24), bytes.Repeat([]byte{1}, 512)} {
			if o.size >= 10 {
				binary.BigEndian.PutUint16(cdb[o.size-3:], uint16(len(data)))
			}
			f.Add(cdb, data, uint16(512))
		}
	}
	var sessions []*conn
	for _, volume := range []string{"mine", "fixed"} {
		c, here := session(f, target, e, volume)
		sessions = append(sessions, c)
		f.Cleanup(func() {
			here.Close()
			c.lu.leave()
			c.lu.att.End()
			c.cut()
			target.forget(c)
		})
	}
	yours, fixed := bytes.Clone(v["yours"].b), bytes.Clone(v["fixed"].b)
	f.Fuzz(func(t *testing.T, cdb, data []byte, expected uint16) {
		for _, c := range sessions {
			k := &task{edtl: max(len(data), int(expected)), in: len(data) == 0, out: len(data) > 0, buf: bytes.Clone(data), done: make(chan struct{})}
			copy(k.cdb[:], cdb)
			switch res := c.lu.execute(k); {
			case res.status != statusGood && res.status != statusCheck && res.status != statusConflict:
				t.Fatalf("status %#x", res.status)
			case res.status == statusCheck && res.sense.key == keyNone:
				t.Fatal("a failure without a reason")
			case res.used < 0 || len(res.data) > maxTransfer:
				t.Fatalf("%d bytes of data, %d used", len(res.data), res.used)
			case bytes.Contains(res.data, []byte("yours...")):
				t.Fatal("a command shows another's volume")
			}
		}
		if !bytes.Equal(v["yours"].b, yours) {
			t.Fatal("a command reached another's volume")
		}
		if !bytes.Equal(v["fixed"].b, fixed) {
			t.Fatal("a volume that is granted for reading changed")
		}
	})
}

// FuzzCopyList reads parameter lists of EXTENDED COPY.
func FuzzCopyList(f *testing.F) {
	f.Add(make([]byte, copyHeader+copyDeviceSize+copySegSize))
	good := make([]byte, copyHeader+copyDeviceSize+copySegSize)
	good[3], good[11], good[16], good[48], good[51] = copyDeviceSize, copySegSize, copyDeviceType, copySegmentType, copySegSize-4
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, bad := parseCopy(b)
		if bad != nil {
			if bad.key != keyIllegal {
				t.Fatalf("sense key %x", bad.key)
			}
			return
		}
		if len(l.devices) > maxCopyDevices || len(l.segments) > maxCopySegs {
			t.Fatalf("%d devices, %d segments", len(l.devices), len(l.segments))
		}
		for _, d := range l.devices {
			if len(d) != copyDeviceSize || d[7] > 20 {
				t.Fatalf("device %x", d)
			}
		}
	})
}

// FuzzKept reads what an earlier target kept.
func FuzzKept(f *testing.F) {
	r := reservations{persists: true, holder: "a", kind: prWriteExclusive, registered: []registration{{"a", 1}, {"b", 2}}}
	b, err := r.kept()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"volatile":true}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, lost, err := parseKept(b)
		if err != nil || lost {
			return
		}
		again, err := r.kept()
		if err != nil {
			t.Fatal(err)
		}
		q, _, err := parseKept(again)
		if err != nil || q.holder != r.holder || q.kind != r.kind || !slices.Equal(q.registered, r.registered) {
			t.Fatalf("%s does not read back: %v", again, err)
		}
	})
}

// FuzzFullFeature sends PDUs into a session that is logged in.
func FuzzFullFeature(f *testing.F) { // S15, S16
	target, e, v := bench(f)
	for _, o := range buildOperations() {
		var h Header
		h.SetOpcode(OpSCSICommand, false)
		h.SetFlags(0xa0)
		h.SetTransferTag(512)
		h.SetCmdSN(1)
		h[32] = o.opcode
		h[33] = byte(max(0, o.action))
		h[41] = 1
		f.Add(AppendPDU(nil, &PDU{Header: h, Data: make([]byte, 512)}, Digests{}))
	}
	want := bytes.Clone(v["yours"].b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, here := session(t, target, e, "mine")
		go io.Copy(io.Discard, here)
		go func() {
			here.SetWriteDeadline(time.Now().Add(2 * time.Second))
			here.Write(b)
			here.Close()
		}()
		_ = c.serve()
		c.cut()
		c.abandon()
		c.running.Wait()
		c.lu.leave()
		c.lu.att.End()
		target.forget(c)
		if !bytes.Equal(v["yours"].b, want) {
			t.Fatal("a command reached another's volume")
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("InitiatorName=iqn.test:a\x00SessionType=Normal\x00"))
	f.Add([]byte("a=b\x00a=c\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ps, err := ParseText(b)
		if err != nil {
			return
		}
		again, err := ParseText(ps.Encode())
		if err != nil || len(again) != len(ps) {
			t.Fatalf("%q does not read back: %v", ps, err)
		}
		for i := range ps {
			if again[i] != ps[i] {
				t.Fatalf("%q became %q", ps[i], again[i])
			}
			ParseNumber(ps[i].Value)
			ParseBinary(ps[i].Value, 1024)
		}
	})
}

func FuzzCHAP(f *testing.F) {
	f.Add("1", "0x00ff", "0x00112233445566778899aabbccddeeff")
	secret := hotspare.NewSecret("a secret nobody guesses")
	f.Fuzz(func(t *testing.T, id, challenge, response string) {
		c, err := ParseChallenge(Pairs{{"CHAP_I", id}, {"CHAP_C", challenge}})
		if err != nil {
			return
		}
		if len(c.Value) > MaxChallenge {
			t.Fatalf("a challenge of %d bytes", len(c.Value))
		}
		if c.Verify(secret, response) {
			t.Fatal("guessed")
		}
		if c.Verify(hotspare.Secret{}, FormatBinary(CHAPResponse(c.ID, hotspare.Secret{}, c.Value))) {
			t.Fatal("an empty secret verifies")
		}
		if r := CHAPResponse(c.ID, secret, c.Value); len(r) != md5.Size || !c.Verify(secret, FormatBinary(r)) {
			t.Fatal("the right answer does not verify")
		}
	})
}

func FuzzReadPDU(f *testing.F) {
	var h Header
	h.SetOpcode(OpNopOut, true)
	f.Add(AppendPDU(nil, &PDU{Header: h, AHS: make([]byte, 8), Data: []byte("hello")}, Digests{Header: true, Data: true}), true)
	f.Fuzz(func(t *testing.T, b []byte, digests bool) {
		d := Digests{Header: digests, Data: digests}
		p, err := ReadPDU(bytes.NewReader(b), d, 1<<16)
		if err != nil {
			return
		}
		out := AppendPDU(nil, p, d)
		q, err := ReadPDU(bytes.NewReader(out), d, 1<<16)
		if err != nil || q.Header != p.Header || !bytes.Equal(q.Data, p.Data) || !bytes.Equal(q.AHS, p.AHS) {
			t.Fatalf("%x does not read back: %v", out, err)
		}
	})
}
