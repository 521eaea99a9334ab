package iscsi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"hotspare"
	"hotspare/storage"
	"hotspare/storage/iscsi"
)

func random(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(rand.Uint32()), byte(rand.Uint32())}).Read(p)
	return p
}

func TestReadBackThroughEveryNegotiation(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	for _, c := range []struct {
		name            string
		mutual, digests bool
	}{{"plain CHAP", false, false}, {"mutual CHAP", true, false}, {"digests", true, true}} {
		t.Run(c.name, func(t *testing.T) {
			i := s.dial()
			if err := i.login(g, s.iqn("orders"), c.mutual, c.digests); err != nil {
				t.Fatal(err)
			}
			want := random(300 * 512)
			if st, sense, err := i.do(rw10(0x2a, 100, 300), want, 0); err != nil || st != 0 {
				t.Fatalf("write: status %d, %x, %v", st, sense, err)
			}
			if st, got, err := i.do(rw10(0x28, 100, 300), nil, 300*512); err != nil || st != 0 || !bytes.Equal(got, want) {
				t.Fatalf("read: status %d, %d bytes, %v", st, len(got), err)
			}
			if st, _, err := i.do(rw10(0x35, 0, 0), nil, 0); err != nil || st != 0 {
				t.Fatalf("synchronize cache: %d, %v", st, err)
			}
			if st, sense, err := i.do(rw10(0x28, 32768, 1), nil, 512); err != nil || st != 2 || sense[2] != 5 || sense[12] != 0x21 {
				t.Fatalf("read beyond the end: %d, %x, %v", st, sense, err)
			}
		})
	}
}

func TestLoginRefusals(t *testing.T) { // S2, S15; CVE-2024-45751
	s := newSite(t, "orders", "web")
	g := s.grant(grantOf("orders", 1, "n1"))
	s.grant(grantOf("web", 1, "n2"))
	orders, web := s.iqn("orders"), s.iqn("web")
	wrong := func(change func(*storage.Grant)) storage.Grant {
		c := g
		change(&c)
		return c
	}
	for _, c := range []struct {
		name   string
		g      storage.Grant
		target string
		status string
	}{
		{"wrong secret", wrong(func(g *storage.Grant) { g.Secret = hotspare.NewSecret("secret-of-somebody") }), orders, "authentication failure"},
		{"wrong user", wrong(func(g *storage.Grant) { g.User = "user-n2" }), orders, "authentication failure"},
		{"stranger", wrong(func(g *storage.Grant) { g.Initiator = "iqn.test:stranger" }), orders, "not found"},
		{"another's target", g, web, "not found"},
		{"no such target", g, orders + "x", "not found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := s.dial().login(c.g, c.target, false, false); err == nil || !strings.Contains(err.Error(), c.status) {
				t.Fatalf("log-in: %v, not %q", err, c.status)
			}
		})
	}
	t.Run("security stage skipped", func(t *testing.T) {
		_, _, err := s.dial().step(iscsi.StageOperational, iscsi.StageFullFeature, true, identity(g.Initiator, orders))
		if err == nil || !strings.Contains(err.Error(), "authentication failure") {
			t.Fatal(err)
		}
	})
	t.Run("transit without an answer", func(t *testing.T) {
		i := s.dial()
		text := append(identity(g.Initiator, orders), iscsi.Pair{Key: "AuthMethod", Value: "CHAP"})
		if r, _, err := i.step(iscsi.StageSecurity, iscsi.StageFullFeature, true, text); err != nil || r.Transit {
			t.Fatalf("transit %v, %v", r.Transit, err)
		}
		if _, _, err := i.step(iscsi.StageSecurity, iscsi.StageFullFeature, true, nil); err == nil {
			t.Fatal("let in without an answer to the challenge")
		}
	})
	t.Run("AuthMethod=None", func(t *testing.T) {
		text := append(identity(g.Initiator, orders), iscsi.Pair{Key: "AuthMethod", Value: "None"})
		if _, _, err := s.dial().step(iscsi.StageSecurity, iscsi.StageFullFeature, true, text); err == nil {
			t.Fatal("let in without authentication")
		}
	})
	t.Run("reflected challenge", func(t *testing.T) {
		i := s.dial()
		text := append(identity(g.Initiator, orders), iscsi.Pair{Key: "AuthMethod", Value: "CHAP"})
		i.step(iscsi.StageSecurity, iscsi.StageOperational, false, text)
		_, ps, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, false, iscsi.Pairs{{Key: "CHAP_A", Value: "5"}})
		if err != nil {
			t.Fatal(err)
		}
		ch, err := iscsi.ParseChallenge(ps)
		if err != nil {
			t.Fatal(err)
		}
		var answer iscsi.Pairs
		if err := ch.Answer(&answer, g.User, g.Secret, nil, hotspare.Secret{}); err != nil {
			t.Fatal(err)
		}
		ch.Add(&answer) // the target's own challenge, thrown back
		if _, _, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, true, answer); err == nil {
			t.Fatal("the target answered its own challenge")
		}
	})
	t.Run("second answer to one challenge", func(t *testing.T) {
		i := s.dial()
		text := append(identity(g.Initiator, orders), iscsi.Pair{Key: "AuthMethod", Value: "CHAP"})
		i.step(iscsi.StageSecurity, iscsi.StageOperational, false, text)
		i.step(iscsi.StageSecurity, iscsi.StageOperational, false, iscsi.Pairs{{Key: "CHAP_A", Value: "5"}})
		bad := iscsi.Pairs{{Key: "CHAP_N", Value: g.User}, {Key: "CHAP_R", Value: "0x" + strings.Repeat("00", 16)}}
		if _, _, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, true, bad); err == nil {
			t.Fatal("a wrong answer is taken")
		}
		if _, _, err := i.step(iscsi.StageSecurity, iscsi.StageOperational, true, bad); err == nil {
			t.Fatal("the connection goes on after a wrong answer")
		}
	})
}

func TestChallengesNeverRepeat(t *testing.T) {
	seen := map[string]bool{}
	for range 100_000 {
		c, err := iscsi.NewChallenge()
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(c.Value)] {
			t.Fatal("a challenge came twice")
		}
		seen[string(c.Value)] = true
	}
}

func TestSlowLoginIsCut(t *testing.T) { // S16
	t.Parallel()
	s := newSite(t, "orders")
	i := s.dial()
	i.nc.Write(make([]byte, 20)) // and never the rest
	if _, err := io.ReadAll(i.nc); err != nil {
		t.Fatalf("the target did not cut the log-in: %v", err)
	}
}

// TestRevokedSessionIsCutAndCannotComeBack replays a ghost: the old node writes
// at full speed, is revoked, and tries its exact credentials again.
func TestRevokedSessionIsCutAndCannotComeBack(t *testing.T) { // S2.2
	s := newSite(t, "orders")
	ctx := context.Background()
	const rounds = 25
	for epoch := uint64(1); epoch <= rounds; epoch++ {
		g := s.grant(grantOf("orders", epoch, storage.NewUID()))
		i := s.dial()
		if err := i.login(g, s.iqn("orders"), true, false); err != nil {
			t.Fatal(err)
		}
		var wrote sync.WaitGroup
		acked, started := 0, make(chan struct{})
		wrote.Go(func() {
			p := bytes.Repeat([]byte{byte(epoch)}, 65536)
			for {
				st, _, err := i.do(rw10(0x2a, 0, 128), p, 0)
				if err != nil || st != 0 {
					return
				}
				if acked++; acked == 3 {
					close(started)
				}
			}
		})
		<-started
		rev, err := s.exports.Revoke(ctx, "orders", epoch+1)
		if err != nil || rev.Sessions != 1 {
			t.Fatalf("revocation: %+v, %v", rev, err)
		}
		dev, err := s.store.OpenVolume("orders")
		if err != nil {
			t.Fatal(err)
		}
		mark := bytes.Repeat([]byte{0xff}, 65536)
		if _, err := dev.WriteAt(mark, 0); err != nil {
			t.Fatal(err)
		}
		wrote.Wait()
		have := make([]byte, len(mark))
		if _, err := dev.ReadAt(have, 0); err != nil {
			t.Fatal(err)
		}
		dev.Close()
		if !bytes.Equal(have, mark) {
			t.Fatalf("epoch %d wrote after its revocation", epoch)
		}
		if err := s.dial().login(g, s.iqn("orders"), true, false); err == nil {
			t.Fatal("the revoked node logs in with its old credentials")
		}
		if n := len(s.exports.Sessions("orders")); n != 0 {
			t.Fatalf("%d sessions after the revocation", n)
		}
	}
}

func TestRevokedInitiatorIsTold(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	i := s.dial()
	if err := i.login(g, s.iqn("orders"), false, true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.exports.Revoke(context.Background(), "orders", 2); err != nil {
		t.Fatal(err)
	}
	p, err := i.receive()
	if err != nil || p.Header.Opcode() != iscsi.OpAsync || p.Header[36] != 3 {
		t.Fatalf("no asynchronous message: %v, %v", p, err)
	}
	if _, err := i.receive(); !errors.Is(err, io.EOF) {
		t.Fatalf("the connection stays: %v", err)
	}
}

// TestSecondLoginReplacesTheSession is what an initiator does after its network
// or the target was away: it must succeed at once.
func TestSecondLoginReplacesTheSession(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	old := s.dial()
	if err := old.login(g, s.iqn("orders"), false, false); err != nil {
		t.Fatal(err)
	}
	now := s.dial()
	began := time.Now()
	if err := now.login(g, s.iqn("orders"), false, false); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > time.Second {
		t.Errorf("it took %v", d)
	}
	if _, err := old.receive(); err == nil {
		t.Fatal("the old session lives")
	}
	if n := len(s.exports.Sessions("orders")); n != 1 {
		t.Fatalf("%d sessions", n)
	}
	if st, _, err := now.do([]byte{0, 0, 0, 0, 0, 0}, nil, 0); err != nil || st != 0 {
		t.Fatalf("the new session: %d, %v", st, err)
	}
	other := s.dial()
	other.isid = 2 // another port of the same initiator: a second session
	if err := other.login(g, s.iqn("orders"), false, false); err != nil {
		t.Fatal(err)
	}
	if n := len(s.exports.Sessions("orders")); n != 2 {
		t.Fatalf("%d sessions", n)
	}
}

func TestSendTargetsShowsOwnOnly(t *testing.T) { // S15
	s := newSite(t, "orders", "web")
	s.grant(grantOf("orders", 1, "n1"))
	s.grant(grantOf("web", 1, "n2"))
	for who, want := range map[string]string{"iqn.test:n1": s.iqn("orders"), "iqn.test:n2": s.iqn("web"), "iqn.test:stranger": ""} {
		i := s.dial()
		text := iscsi.Pairs{{Key: "InitiatorName", Value: who}, {Key: "SessionType", Value: "Discovery"}}
		if _, _, err := i.step(iscsi.StageOperational, iscsi.StageFullFeature, true, text); err != nil {
			t.Fatal(err)
		}
		var h iscsi.Header
		h.SetOpcode(iscsi.OpTextRequest, false)
		h.SetFlags(0x80)
		h.SetTaskTag(1)
		h.SetTransferTag(iscsi.ReservedTag)
		h.SetCmdSN(i.cmdSN)
		if err := i.send(h, iscsi.Pairs{{Key: "SendTargets", Value: "All"}}.Encode()); err != nil {
			t.Fatal(err)
		}
		p, err := i.receive()
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Count(string(p.Data), "TargetName=")
		if want == "" && got != 0 || want != "" && (got != 1 || !strings.Contains(string(p.Data), want)) {
			t.Errorf("%s sees %q", who, p.Data)
		}
	}
}

func TestAbortedWriteLeavesNoTrace(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	i := s.dial()
	if err := i.login(g, s.iqn("orders"), false, false); err != nil {
		t.Fatal(err)
	}
	h := i.command(rw10(0x2a, 0, 1024), 1024*512, false, true)
	if err := i.send(h, random(4096)); err != nil {
		t.Fatal(err)
	}
	p, err := i.receive()
	if err != nil || p.Header.Opcode() != iscsi.OpR2T {
		t.Fatalf("no R2T: %v, %v", p, err)
	}
	var a iscsi.Header
	a.SetOpcode(iscsi.OpTaskRequest, true)
	a.SetFlags(0x81)
	a.SetTaskTag(999)
	a.SetTransferTag(h.TaskTag())
	a.SetCmdSN(i.cmdSN)
	if err := i.send(a, nil); err != nil {
		t.Fatal(err)
	}
	if p, err = i.receive(); err != nil || p.Header.Opcode() != iscsi.OpTaskResponse || p.Header[2] != 0 {
		t.Fatalf("abort: %v, %v", p, err)
	}
	if st, got, err := i.do(rw10(0x28, 0, 8), nil, 4096); err != nil || st != 0 || !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatalf("the aborted write landed, or the session is broken: %d, %v", st, err)
	}
}

// TestManyCommandsAtOnce fills the window again and again.
func TestManyCommandsAtOnce(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	i := s.dial()
	if err := i.login(g, s.iqn("orders"), false, false); err != nil {
		t.Fatal(err)
	}
	const n = 3000
	limit := i.cmdSN + 127
	sent, done := 0, 0
	for done < n {
		for sent < n && i.cmdSN <= limit {
			if err := i.send(i.command(rw10(0x2a, sent%2048, 1), 512, false, true), make([]byte, 512)); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		p, err := i.receive()
		if err != nil {
			t.Fatalf("after %d of %d: %v", done, sent, err)
		}
		if p.Header.Opcode() != iscsi.OpSCSIResponse || p.Header[3] != 0 {
			t.Fatalf("answer %x", p.Header[:4])
		}
		limit = max(limit, p.Header.MaxCmdSN())
		done++
	}
}

// TestHostileConnectionsHarmNobody throws garbage at a target while another
// initiator works.
func TestHostileConnectionsHarmNobody(t *testing.T) { // S16
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	i := s.dial()
	if err := i.login(g, s.iqn("orders"), false, false); err != nil {
		t.Fatal(err)
	}
	for n := range 200 {
		h := s.dial()
		p := random(48 + n*7)
		p[0] = 0x43 // a log-in, mostly
		h.nc.Write(p)
		h.nc.Close()
		if n%20 == 0 {
			if st, _, err := i.do([]byte{0, 0, 0, 0, 0, 0}, nil, 0); err != nil || st != 0 {
				t.Fatalf("the other session: %d, %v", st, err)
			}
		}
	}
}
