package iscsi

import (
	"bytes"
	"context"
	"crypto/md5"
	"io"
	"net"
	"path/filepath"
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

// bench gives a target with two volumes, each granted to another initiator.
func bench(t testing.TB) (*Target, *storage.Exports, bytesVolumes) {
	t.Helper()
	v := bytesVolumes{"mine": {make([]byte, 1<<20)}, "yours": {bytes.Repeat([]byte("yours..."), 1<<17)}}
	e, err := storage.OpenExports(filepath.Join(t.TempDir(), "exports.db"), storage.Options{Volumes: v})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	for name := range v {
		err := e.Grant(context.Background(), storage.Grant{Volume: name, Epoch: 1, Initiator: "iqn.test:" + name, User: name,
			Secret: hotspare.NewSecret("0123456789abcdef")})
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

// FuzzFullFeature sends PDUs into a session that is logged in.
func FuzzFullFeature(f *testing.F) { // S15, S16
	target, e, v := bench(f)
	name, err := e.TargetName("mine")
	if err != nil {
		f.Fatal(err)
	}
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
		here, there := net.Pipe()
		c, err := target.newConn(there)
		if err != nil {
			t.Fatal(err)
		}
		ex, err := e.Find("iqn.test:mine", name)
		if err != nil {
			t.Fatal(err)
		}
		c.nexus = nexus{initiator: "iqn.test:mine", target: name}
		c.cmdSN = 1
		a, err := e.Attach(context.Background(), storage.Login{Export: ex, Initiator: "iqn.test:mine", Cut: c.revoked})
		if err != nil {
			t.Fatal(err)
		}
		if c.lu, err = newLU(target.unit(ex), a, c); err != nil {
			t.Fatal(err)
		}
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
		a.End()
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
