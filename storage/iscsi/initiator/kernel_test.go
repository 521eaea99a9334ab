package initiator

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare"
)

const (
	guestBlock = 64 << 10 // one write of the guest
	diskSize   = 64 << 20
)

// peer is a target with the disks "one" and "two"; "two" prefers digests where
// it has a preference.
type peer interface {
	start()
	kill()                 // as a power failure would
	signal(syscall.Signal) // SIGSTOP and SIGCONT
	setSecret(string)      // of disk "one", from the next start on
	login(name string) order
	check(name string, seed uint64, blocks int) // the target's own file
}

// TestKernel drives a real kernel in a virtual machine against Debian's tgtd and
// against our own target: log-in with CHAP, I/O, refusals, a target that dies in
// the middle of writes, one that hangs, one that no longer admits us, digests,
// log-out.
func TestKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	begin := time.Now()
	v := bootVM(t)
	t.Logf("guest ready after %s", time.Since(begin).Round(time.Millisecond))
	t.Run("own target", func(t *testing.T) { v.story(t, newOwnTarget(t)) })
	t.Run("tgtd", func(t *testing.T) {
		g := newTGT(t)
		g.add(tgtTarget{iqn: "iqn.2026-11.io.hotspare:test:one", user: "node", secret: nodeSecret.Reveal()}, diskSize)
		g.add(tgtTarget{iqn: "iqn.2026-11.io.hotspare:test:two", user: "node2", secret: nodeSecret.Reveal(), digests: true}, diskSize)
		v.story(t, g)
		// The last sessions were closed while tgtd was stopped: it reads the end of
		// their connections when it gets to it, and tells nobody.
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			out := g.adm(0, "--op", "show", "--mode", "conn", "--tid", "1")
			if !strings.Contains(out, "Session") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the target still has a session:\n%s", out)
			}
		}
	})
}

// vmLogin is the order to log in to a portal of the host.
func vmLogin(name string, portal netip.AddrPort, iqn string, lun int) order {
	return order{
		"op": "login", "name": name, "portal": fmt.Sprintf("10.0.2.2:%d", portal.Port()), "iqn": iqn, "lun": lun,
		"initiator": "iqn.2026-11.io.hotspare:test-node", "user": "node", "secret": nodeSecret.Reveal(),
	}
}

func (v *vm) story(t *testing.T, p peer) {
	v.t = t
	p.start()
	v.refused(p.login("one"), "secret", "a wrong secret", "0x0201")
	v.refused(p.login("one"), "iqn", "iqn.2026-11.io.hotspare:nothing", "0x020")
	v.firstLogins(p)
	v.dyingTarget(p)
	v.hangingTarget(p)
	v.revokedGrant(p)
	v.logouts()
	v.deadTarget(p)
}

// refused: one field of the log-in is wrong.
func (v *vm) refused(o order, field, value, status string) {
	v.t.Helper()
	o[field] = value
	l := v.answer(v.send(o), 20*time.Second)
	if l.Code != string(hotspare.CodeLoginRefused) || !strings.Contains(l.Error, status) {
		v.t.Fatalf("%v: got %s %q, want a refusal with %q", o, l.Code, l.Error, status)
	}
}

// firstLogins logs in to both disks and writes.
func (v *vm) firstLogins(p peer) {
	v.t.Helper()
	l := v.do(p.login("one"), 30*time.Second)
	v.t.Logf("log-in to block device: %d ms, %v", l.Millis, l.Values)
	if l.Values["sectors"] != fmt.Sprint(diskSize/512) || l.Values["recovery"] != "86400" || l.Values["wwid"] == "" {
		v.t.Fatalf("the kernel shows %v", l.Values)
	}
	if strings.Contains(l.Values["password"], nodeSecret.Reveal()) {
		v.t.Fatal("the kernel shows the secret")
	}
	l = v.do(order{"op": "write", "name": "one", "seed": 1, "blocks": 64}, 30*time.Second)
	v.t.Logf("4 MiB written in %d ms", l.Millis)
	v.do(order{"op": "verify", "name": "one", "seed": 1, "blocks": 64}, 30*time.Second)
	o := p.login("two")
	o["digests"] = true
	l = v.do(o, 30*time.Second)
	if d := l.Values["digests"]; d != "0 1" && d != "1 0" { // connection10 comes before connection9
		v.t.Fatalf("header digests of the connections: %q", l.Values["digests"])
	}
	v.do(order{"op": "write", "name": "two", "seed": 2, "blocks": 32}, 30*time.Second)
}

// both waits for an event of both sessions.
func (v *vm) both(event string) {
	v.t.Helper()
	v.event(event, "one", 30*time.Second)
	v.event(event, "two", 30*time.Second)
}

// dyingTarget kills the target in the middle of writes, several times.
func (v *vm) dyingTarget(p peer) {
	v.t.Helper()
	var writing []string // four writers, so that commands queue up
	for n := range int64(4) {
		writing = append(writing, v.send(order{"op": "write", "name": "one", "seed": 3, "first": n * 256, "blocks": 256}))
	}
	v.event("quarter", "one", 60*time.Second)
	p.kill()
	v.both("lost")
	outage := outageTime(v.t)
	time.Sleep(outage)
	p.start()
	up := time.Now()
	v.both("recovered")
	v.t.Logf("recovered %s after the target was back from %s of outage", time.Since(up).Round(time.Millisecond), outage)
	for range 3 { // and it dies again while it is caught up with
		p.kill()
		v.both("lost")
		p.start()
		v.both("recovered")
	}
	for _, id := range writing {
		if l := v.answer(id, 90*time.Second); l.Error != "" {
			v.t.Fatalf("writing through the outage: %s", l.Error)
		} else if l.Millis < outage.Milliseconds() {
			v.t.Fatalf("%s ended after %d ms: it did not meet the outage", id, l.Millis)
		}
	}
	v.do(order{"op": "verify", "name": "one", "seed": 3, "blocks": 1024}, 60*time.Second)
	v.do(order{"op": "verify", "name": "two", "seed": 2, "blocks": 32}, 30*time.Second)
	p.check("one", 3, 1024)
}

// hangingTarget: the kernel's pings find out.
func (v *vm) hangingTarget(p peer) {
	v.t.Helper()
	begin := time.Now()
	p.signal(syscall.SIGSTOP)
	v.event("lost", "one", 20*time.Second)
	v.t.Logf("a silent target was noticed after %s", time.Since(begin).Round(time.Millisecond))
	v.event("lost", "two", 20*time.Second)
	p.signal(syscall.SIGCONT)
	v.both("recovered")
	v.do(order{"op": "verify", "name": "two", "seed": 2, "blocks": 32}, 30*time.Second)
}

// revokedGrant: the same credentials are refused, I/O waits; then they are
// admitted again.
func (v *vm) revokedGrant(p peer) {
	v.t.Helper()
	p.kill()
	v.both("lost")
	p.setSecret("another secret")
	p.start()
	v.event("refused", "one", 20*time.Second)
	waiting := v.send(order{"op": "write", "name": "one", "seed": 4, "blocks": 1})
	if l := v.do(order{"op": "state", "name": "one"}, 5*time.Second); l.Values["state"] != "refused" {
		v.t.Fatalf("state %v", l.Values)
	}
	v.idle(waiting)
	p.kill()
	p.setSecret(nodeSecret.Reveal())
	p.start()
	v.event("recovered", "one", 30*time.Second)
	if l := v.answer(waiting, 30*time.Second); l.Error != "" {
		v.t.Fatalf("the write that waited: %s", l.Error)
	}
	v.do(order{"op": "verify", "name": "two", "seed": 2, "blocks": 32}, 30*time.Second) // recovered too, however often
}

// logouts: not while the device is held, then completely.
func (v *vm) logouts() {
	v.t.Helper()
	v.do(order{"op": "hold", "name": "two"}, 10*time.Second)
	if l := v.answer(v.send(order{"op": "logout", "name": "two"}), 10*time.Second); l.Code != string(hotspare.CodeVolumeBusy) {
		v.t.Fatalf("log-out of a held device: %s %q", l.Code, l.Error)
	}
	v.do(order{"op": "release", "name": "two"}, 10*time.Second)
	for n, name := range []string{"two", "one"} {
		l := v.do(order{"op": "logout", "name": name}, 30*time.Second)
		if l.Values["gone"] != "true" || l.Values["sessions"] != fmt.Sprint(1-n) {
			v.t.Fatalf("after the log-out of %s: %v", name, l.Values)
		}
	}
	v.forget()
}

// deadTarget: a session to a silent target can be ended at once, before and
// after the kernel noticed; I/O that waits fails, nothing is left.
func (v *vm) deadTarget(p peer) {
	v.t.Helper()
	for _, noticed := range []bool{false, true} {
		v.do(p.login("one"), 30*time.Second)
		p.signal(syscall.SIGSTOP)
		waiting := v.send(order{"op": "write", "name": "one", "seed": 5, "blocks": 4})
		if noticed {
			v.event("lost", "one", 20*time.Second)
		}
		l := v.do(order{"op": "close", "name": "one"}, 20*time.Second)
		if l.Values["gone"] != "true" || l.Values["sessions"] != "0" || l.Millis > 5000 {
			v.t.Fatalf("after closing (loss noticed: %v) in %d ms: %v", noticed, l.Millis, l.Values)
		}
		v.t.Logf("closed with a silent target (loss noticed: %v) in %d ms", noticed, l.Millis)
		if l := v.answer(waiting, 10*time.Second); l.Error == "" {
			v.t.Fatal("the write to a closed session succeeded")
		}
		p.signal(syscall.SIGCONT)
		v.forget()
	}
}

// outageTime is how long the target stays away; HOTSPARE_TEST_OUTAGE makes it
// longer.
func outageTime(t *testing.T) time.Duration {
	t.Helper()
	d := 4 * time.Second
	if s := os.Getenv("HOTSPARE_TEST_OUTAGE"); s != "" {
		var err error
		if d, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// checkDisk compares the target's own file with the guest's pattern.
func checkDisk(t *testing.T, path string, seed uint64, blocks int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range blocks {
		block := b[n*guestBlock:][:guestBlock]
		for i := 0; i < len(block); i += 16 {
			if binary.LittleEndian.Uint64(block[i:]) != seed+uint64(i) || binary.LittleEndian.Uint64(block[i+8:]) != uint64(n) {
				t.Fatalf("block %d of the target's file differs at byte %d", n, i)
			}
		}
	}
}
