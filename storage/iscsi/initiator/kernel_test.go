package initiator

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare"
)

// TestKernel drives a real kernel in a virtual machine against Debian's tgtd:
// log-in with CHAP, I/O, refusals, a target that dies in the middle of writes, a
// target that hangs, a target that no longer admits us, digests, log-out.
func TestKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	g := newTGT(t)
	one := g.add(tgtTarget{iqn: "iqn.2026-11.io.hotspare:test:one", user: "node", secret: "secret of the node"}, 64<<20)
	two := g.add(tgtTarget{iqn: "iqn.2026-11.io.hotspare:test:two", user: "other", secret: "secret of two", digests: true}, 64<<20)
	g.start()
	begin := time.Now()
	v := bootVM(t)
	t.Logf("guest ready after %s", time.Since(begin).Round(time.Millisecond))
	portal := fmt.Sprintf("10.0.2.2:%d", g.portal.Port())
	login := func(name string, x tgtTarget, secret string) order {
		return order{
			"op": "login", "name": name, "portal": portal, "iqn": x.iqn, "lun": 1,
			"initiator": "iqn.2026-11.io.hotspare:test-node", "user": x.user, "secret": secret,
		}
	}

	refused := func(o order, status string) {
		t.Helper()
		l := v.answer(v.send(o), 20*time.Second)
		if l.Code != string(hotspare.CodeLoginRefused) || !bytes.Contains([]byte(l.Error), []byte(status)) {
			t.Fatalf("%v: got %s %q, want a refusal with %q", o, l.Code, l.Error, status)
		}
	}
	refused(login("one", one, "a wrong secret"), "0x0201")
	refused(login("one", tgtTarget{iqn: one.iqn + "x", user: "node"}, one.secret), "0x0203")

	l := v.do(login("one", one, one.secret), 30*time.Second)
	t.Logf("log-in to block device: %d ms, %v", l.Millis, l.Values)
	if l.Values["sectors"] != fmt.Sprint(64<<20/512) {
		t.Fatalf("the device has %s sectors", l.Values["sectors"])
	}
	if l.Values["recovery"] != "86400" || strings.Contains(l.Values["password"], one.secret) {
		t.Fatalf("the kernel shows %v", l.Values)
	}
	l = v.do(order{"op": "write", "name": "one", "seed": 1, "blocks": 64}, 30*time.Second)
	t.Logf("4 MiB written in %d ms", l.Millis)
	v.do(order{"op": "verify", "name": "one", "seed": 1, "blocks": 64}, 30*time.Second)

	o := login("two", two, two.secret)
	o["digests"] = true
	l = v.do(o, 30*time.Second)
	if l.Values["digests"] != "0 1" {
		t.Fatalf("header digests of the connections: %q", l.Values["digests"])
	}
	v.do(order{"op": "write", "name": "two", "seed": 2, "blocks": 32}, 30*time.Second)

	// The target dies in the middle of writes and comes back.
	// Four writers at once, so that commands queue up.
	var writing []string
	for n := range int64(4) {
		writing = append(writing, v.send(order{"op": "write", "name": "one", "seed": 3, "first": n * 256, "blocks": 256}))
	}
	written := func() bool { // some of it is in the target's file
		b, err := os.ReadFile(one.disk)
		return err == nil && blockIs(b[70*guestBlock:][:guestBlock], 3, 70) // the first blocks hold an older pattern
	}
	for begin := time.Now(); !written(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("nothing is written")
		}
	}
	g.kill()
	v.event("lost", "one", 10*time.Second)
	v.event("lost", "two", 10*time.Second)
	outage := outageTime(t)
	time.Sleep(outage)
	v.idle(writing[0]) // killed in the middle, and no write was failed
	g.start()
	up := time.Now()
	v.event("recovered", "one", 30*time.Second)
	t.Logf("recovered %s after the target was back from %s of outage", time.Since(up).Round(time.Millisecond), outage)
	v.event("recovered", "two", 30*time.Second)
	for range 3 { // and dies again while it is caught up with
		g.kill()
		v.event("lost", "one", 10*time.Second)
		v.event("lost", "two", 10*time.Second)
		g.start()
		v.event("recovered", "one", 30*time.Second)
		v.event("recovered", "two", 30*time.Second)
	}
	for _, id := range writing {
		if l := v.answer(id, 60*time.Second); l.Error != "" {
			t.Fatalf("writing through the outage: %s", l.Error)
		}
	}
	v.do(order{"op": "verify", "name": "one", "seed": 3, "blocks": 1024}, 60*time.Second)
	v.do(order{"op": "verify", "name": "two", "seed": 2, "blocks": 32}, 30*time.Second)
	checkDisk(t, one.disk, 3, 1024)

	// The target hangs: the kernel's pings find out.
	begin = time.Now()
	g.signal(syscall.SIGSTOP)
	v.event("lost", "one", 20*time.Second)
	t.Logf("a silent target was noticed after %s", time.Since(begin).Round(time.Millisecond))
	v.event("lost", "two", 20*time.Second)
	g.signal(syscall.SIGCONT)
	v.event("recovered", "one", 30*time.Second)
	v.event("recovered", "two", 30*time.Second)
	v.do(order{"op": "verify", "name": "two", "seed": 2, "blocks": 32}, 30*time.Second)

	// The grant is revoked: the same credentials are refused, I/O waits.
	g.kill()
	g.targets[0].secret = "another secret"
	g.start()
	v.event("lost", "one", 10*time.Second)
	v.event("refused", "one", 20*time.Second)
	v.event("recovered", "two", 20*time.Second)
	waiting := v.send(order{"op": "write", "name": "one", "seed": 4, "blocks": 1})
	if l := v.do(order{"op": "state", "name": "one"}, 5*time.Second); l.Values["state"] != "refused" {
		t.Fatalf("state %v", l.Values)
	}
	g.kill()
	g.targets[0].secret = one.secret
	g.start()
	v.event("recovered", "one", 30*time.Second)
	if l := v.answer(waiting, 30*time.Second); l.Error != "" {
		t.Fatalf("the write that waited: %s", l.Error)
	}
	v.event("recovered", "two", 20*time.Second)

	// Log-out: not while the device is held, then completely.
	v.do(order{"op": "hold", "name": "two"}, 10*time.Second)
	if l := v.answer(v.send(order{"op": "logout", "name": "two"}), 10*time.Second); l.Code != string(hotspare.CodeVolumeBusy) {
		t.Fatalf("log-out of a held device: %s %q", l.Code, l.Error)
	}
	v.do(order{"op": "release", "name": "two"}, 10*time.Second)
	for n, name := range []string{"two", "one"} {
		l := v.do(order{"op": "logout", "name": name}, 30*time.Second)
		if l.Values["gone"] != "true" || l.Values["sessions"] != fmt.Sprint(1-n) {
			t.Fatalf("after the log-out of %s: %v", name, l.Values)
		}
	}
	if out := g.adm(0, "--op", "show", "--mode", "conn", "--tid", "1"); bytes.Contains([]byte(out), []byte("Session")) {
		t.Fatalf("the target still has a session:\n%s", out)
	}
}

// outageTime is how long the target stays away; HOTSPARE_TEST_OUTAGE makes it
// longer.
func outageTime(t *testing.T) time.Duration {
	t.Helper()
	d := 6 * time.Second
	if s := os.Getenv("HOTSPARE_TEST_OUTAGE"); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// guestBlock is the size of one write of the guest.
const guestBlock = 64 << 10

// checkDisk compares the target's own file with the guest's pattern.
func checkDisk(t *testing.T, path string, seed uint64, blocks int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range blocks {
		if !blockIs(b[n*guestBlock:][:guestBlock], seed, uint64(n)) {
			t.Fatalf("block %d of the target's file differs", n)
		}
	}
}

// blockIs says whether b holds the guest's pattern of block n.
func blockIs(b []byte, seed, n uint64) bool {
	for i := 0; i < len(b); i += 16 {
		if binary.LittleEndian.Uint64(b[i:]) != seed+uint64(i) || binary.LittleEndian.Uint64(b[i+8:]) != n {
			return false
		}
	}
	return true
}
