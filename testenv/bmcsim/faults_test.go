package bmcsim

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestFaults(t *testing.T) {
	t.Parallel()
	m := &MemoryMachine{}
	b := start(t, m, nil)
	power := func(args ...string) string {
		t.Helper()
		out, _ := ipmitool(t, b, append([]string{"-C", "17", "chassis", "power"}, args...)...)
		until(t, "idle", b.idle)
		return strings.TrimSpace(out)
	}
	expect := func(what, got, want string) {
		t.Helper()
		if !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	reset := func(on bool, f Fault) {
		b.SetFault(Fault{})
		m.Set(on)
		b.SetFault(f)
		if b.Fault() != f {
			t.Errorf("fault %+v, want %+v", b.Fault(), f)
		}
	}

	reset(true, Fault{LyingOff: true})
	expect("lying off", power("off"), "Down/Off")
	expect("lying off", power("status"), "is off")
	if !m.PowerState() {
		t.Error("lying off: the machine was switched off")
	}
	expect("lying off, then on", power("on"), "Up/On")
	expect("lying off, then on", power("status"), "is on")

	reset(true, Fault{LyingSuccess: true})
	expect("lying success", power("off"), "Down/Off")
	expect("lying success", power("status"), "is on")

	reset(true, Fault{Refuse: true})
	expect("refuse", power("off"), "not supported in present state")
	expect("refuse", power("status"), "is on")

	reset(false, Fault{WrongPassword: true})
	expect("wrong password", power("status"), "Unable to establish")

	reset(false, Fault{DiesWithHost: true})
	expect("dies with host, off", power("status"), "Unable to establish")
	m.Set(true)
	expect("dies with host, on", power("status"), "is on")

	reset(true, Fault{Dead: true})
	expect("dead", power("status"), "Unable to establish")

	reset(false, Fault{POSTDelay: 3 * time.Second})
	if m.POSTDelay() != 3*time.Second {
		t.Errorf("the machine's POST delay is %s", m.POSTDelay())
	}

	reset(true, Fault{SlowPower: 300 * time.Millisecond})
	began := time.Now()
	expect("slow power", power("off"), "Down/Off")
	if d := time.Since(began); d < 300*time.Millisecond || m.PowerState() {
		t.Errorf("slow power: on=%v after %s", m.PowerState(), d)
	}

	reset(false, Fault{})
	expect("healed", power("status"), "is off")
}

// What BMCs do to a boot order for every start, seen by ipmitool.
func TestBootOrderFaults(t *testing.T) {
	t.Parallel()
	const every, once, none = "Boot parameter data: c004000000", "Boot parameter data: 8004000000", "Boot parameter data: 0000000000"
	for _, c := range []struct {
		name   string
		fault  Fault
		keep   bool // parameter 3 is set first
		after  string
		start  string // what the next start is from
		second string // and what is read after it
	}{
		{name: "healthy", after: every, start: "pxe", second: every},
		{name: "keeps the old one", fault: Fault{KeepsBootOrder: true}, after: none, second: none},
		{name: "forgets it", fault: Fault{ForgetsBootOrder: true}, after: every, start: "pxe", second: none},
		{name: "knows once only", fault: Fault{OnceOnly: true}, after: once, start: "pxe", second: none},
		{name: "lets it expire", fault: Fault{ExpireBootFlags: time.Nanosecond}, after: "Boot parameter data: 4004000000",
			second: "Boot parameter data: 4004000000"},
		{name: "does not when told so", fault: Fault{ExpireBootFlags: time.Nanosecond}, keep: true, after: every, start: "pxe", second: every},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := &MemoryMachine{}
			b := start(t, m, func(o *Options) { o.Fault = c.fault })
			run := func(want string, args ...string) {
				t.Helper()
				if out, _ := ipmitool(t, b, append([]string{"-C", "17"}, args...)...); !strings.Contains(out, want) {
					t.Errorf("%v: want %q in\n%s", args, want, out)
				}
			}
			if c.keep {
				run("", "raw", "0x00", "0x08", "0x03", "0x1f")
			}
			run("Set Boot Device to pxe", "chassis", "bootdev", "pxe", "options=persistent")
			run(c.after, "chassis", "bootparam", "get", "5")
			run("Up/On", "chassis", "power", "on")
			until(t, "on", func() bool { return m.PowerState() && b.idle() })
			run(c.second, "chassis", "bootparam", "get", "5")
			if got := m.Starts(); len(got) != 1 || got[0] != c.start {
				t.Errorf("started from %q, want %q", got, c.start)
			}
		})
	}
}

func TestStaleState(t *testing.T) {
	t.Parallel()
	m := &MemoryMachine{}
	m.Set(true)
	b := start(t, m, func(o *Options) { o.Fault = Fault{StaleState: 2 * time.Second} })
	status := func() string {
		out, _ := ipmitool(t, b, "-C", "17", "chassis", "power", "status")
		return strings.TrimSpace(out)
	}
	began := time.Now()
	if out, _ := ipmitool(t, b, "-C", "17", "chassis", "power", "off"); !strings.Contains(out, "Down/Off") {
		t.Fatal(out)
	}
	until(t, "power off", func() bool { return !m.PowerState() })
	if got := status(); got != "Chassis Power is on" && time.Since(began) < 2*time.Second {
		t.Errorf("right after off: %q, want the old state", got)
	}
	until(t, "the new state is told", func() bool { return status() == "Chassis Power is off" })
	if d := time.Since(began); d < 2*time.Second {
		t.Errorf("the new state was told after %s", d)
	}
}

// duplicator stands between client and BMC and delivers every packet of a
// session twice, as a network may, and as clients do whose answers are late.
func duplicator(t *testing.T, b *BMC) *net.UDPAddr {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp", nil, b.conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	var client atomic.Pointer[net.UDPAddr]
	var both sync.WaitGroup
	both.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := front.ReadFromUDP(buf)
			if err != nil {
				return
			}
			client.Store(from)
			_, _ = back.Write(buf[:n])
			if n > 10 && buf[4] == 0x06 && !bytes.Equal(buf[6:10], make([]byte, 4)) {
				_, _ = back.Write(buf[:n])
			}
		}
	})
	both.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			_, _ = front.WriteToUDP(buf[:n], client.Load())
		}
	})
	t.Cleanup(func() { front.Close(); back.Close(); both.Wait() })
	return front.LocalAddr().(*net.UDPAddr)
}

func TestDuplicatedCommandsRunOnce(t *testing.T) {
	t.Parallel()
	m := &MemoryMachine{Delay: 100 * time.Millisecond}
	m.Set(true)
	b := start(t, m, nil)
	addr := duplicator(t, b)
	for _, c := range []struct{ command, want string }{{"off", "Down/Off"}, {"on", "Up/On"}, {"cycle", "Cycle"}, {"reset", "Reset"}} {
		out, _ := ipmitool(t, b, "-p", fmt.Sprint(addr.Port), "-C", "17", "chassis", "power", c.command)
		if !strings.Contains(out, c.want) {
			t.Fatalf("%s: %s", c.command, out)
		}
		until(t, "idle", b.idle)
	}
	s := b.Stats()
	if s.Offs < 2 || s.Ons < 2 {
		t.Fatalf("the duplicates did not arrive: %+v", s)
	}
	if s.MachineOffs != 3 || s.MachineOns != 3 { // off, on, cycle, reset
		t.Errorf("the machine was switched off %d and on %d times, want 3 and 3 (%+v)", s.MachineOffs, s.MachineOns, s)
	}
}
