package dhcp

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
)

// program runs a program that goes on, in the client's namespace or with "" in the
// server's, until the test ends.
type program struct {
	t   *testing.T
	out lockedBuffer
	cmd *exec.Cmd
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, pid string, args ...string) *program {
	t.Helper()
	if pid != "" {
		args = append([]string{"nsenter", "-t", pid, "-n", "--"}, args...)
	}
	p := &program{t: t, cmd: exec.Command(args[0], args[1:]...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		if t.Failed() {
			t.Logf("%s says\n%s", strings.Join(args, " "), p.out.String())
		}
	})
	return p
}

// eventually waits for what another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// namespace makes a further network namespace and gives the pid that holds it.
func namespace(t *testing.T) string {
	t.Helper()
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	return fmt.Sprint(holder.Process.Pid)
}

func udhcpcScript(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "udhcpc")
	script := "#!/bin/sh\n[ \"$1\" = bound ] || [ \"$1\" = renew ] || exit 0\nip address replace $ip/$mask dev $interface\n[ -z \"$router\" ] || ip route replace default via $router\necho \"udhcpc $1 $ip $subnet $router $dns $domain $ntpsrv $serverid $lease\"\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Behind isc-dhcp-relay, in a namespace of its own: the relay's network has its own
// pool and settings, answers go to the relay, and the client renews past it.
func TestClientBehindARelay(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	relay := namespace(t)
	in := func(pid string, args ...string) string {
		return run(t, "nsenter", append([]string{"-t", pid, "-n", "--"}, args...)...)
	}
	// The client's end of the wire becomes the relay's; the client sits behind it.
	w.client("ip", "link", "set", "hscl0", "netns", relay)
	in(relay, "ip", "address", "add", "10.77.0.2/24", "dev", "hscl0")
	in(relay, "ip", "link", "set", "hscl0", "up")
	in(relay, "ip", "link", "set", "lo", "up")
	in(relay, "ip", "link", "add", "down0", "type", "veth", "peer", "name", "eth0", "address", n2.String(), "netns", w.pid)
	in(relay, "ip", "address", "add", "10.88.0.1/24", "dev", "down0")
	in(relay, "ip", "link", "set", "down0", "up")
	in(relay, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	w.client("ip", "link", "set", "eth0", "up")
	run(t, "ip", "route", "add", "10.88.0.0/24", "via", "10.77.0.2")

	o := segmentOptions(t)
	o.Relayed = []Subnet{{
		Prefix: netip.MustParsePrefix("10.88.0.0/24"), Range: Range{ip("10.88.0.20"), ip("10.88.0.29")}, Gateway: ip("10.88.0.1"),
		DNS: []netip.Addr{ip("10.88.0.53")}, NTP: []netip.Addr{ip("10.88.0.123")}, Domain: "rack.example", LeaseTime: time.Minute,
	}}
	s := w.start(o)
	start(t, relay, "dhcrelay", "-4", "-d", "--no-pid", "-a", "-m", "discard", "-id", "down0", "-iu", "hscl0", "10.77.0.1")

	c := start(t, w.pid, "busybox", "udhcpc", "-i", "eth0", "-f", "-t", "30", "-T", "1", "-s", udhcpcScript(t))
	eventually(t, "the client behind the relay is bound", func() bool { return strings.Contains(c.out.String(), "udhcpc bound") })
	addr, ok := s.AddrOf(n2)
	if !ok || !o.Relayed[0].Range.Contains(addr) {
		t.Fatalf("it has %s %v", addr, ok)
	}
	want := fmt.Sprintf("udhcpc bound %s 255.255.255.0 10.88.0.1 10.88.0.53 rack.example 10.88.0.123 10.77.0.1 60", addr)
	if !strings.Contains(c.out.String(), want) {
		t.Errorf("want %q", want)
	}
	// It renews by itself, from its own address, without the relay.
	before := s.Stats().Answered
	if err := c.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has renewed", func() bool {
		return s.Stats().Answered > before && strings.Contains(c.out.String(), "udhcpc renew "+addr.String())
	})
	if st := s.Stats(); st.Malformed+st.NAKs+st.Failed != 0 {
		t.Errorf("%+v", st)
	}
}

// systemd-networkd, IPv4 and IPv6: addresses of both kinds, and the settings that
// go with them.
func TestNetworkdGetsBothAddresses(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	o.Domain, o.NTP, o.DNS = "lab.example", []netip.Addr{ip("10.77.0.123")}, []netip.Addr{ip("10.77.0.53")}
	o.IPv6 = lab6(t)
	s := w.start(o)
	// Its own /run, and a read-only /sys, by which it sees that no udev is there.
	dir := t.TempDir()
	conf := "[Match]\nName=hscl0\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\nIPv6DuplicateAddressDetection=0\n[DHCPv4]\nClientIdentifier=mac\n"
	if err := os.WriteFile(filepath.Join(dir, "lab.network"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, w.pid, "unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp && chown -R systemd-network /run/systemd/netif && "+
		"cp "+dir+"/lab.network /run/systemd/network/ && mount -t sysfs -o ro sysfs /sys && exec /lib/systemd/systemd-networkd")
	eventually(t, "it has an IPv4 address", func() bool {
		_, ok := s.AddrOf(n1)
		return ok && strings.Contains(w.client("ip", "-4", "-o", "address", "show", "dev", "hscl0"), "10.77.0.10")
	})
	want := s.v6.address(message6{boot: bootOf(n1)}, 0, o.withDefaults().Exclude)
	eventually(t, "it has "+want.String(), func() bool {
		return strings.Contains(w.client("ip", "-6", "-o", "address", "show", "dev", "hscl0"), want.String())
	})
	if !strings.Contains(w.client("ip", "-6", "route"), "fd77::/64 dev hscl0") {
		t.Error("it does not know that the network is on its link")
	}
	if st := s.Stats(); st.Malformed+st.Panics+st.Failed != 0 {
		t.Errorf("%+v", st)
	}
}

// dhclient over IPv6: solicit, request, and the release.
func TestDhclient6(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	o.IPv6 = lab6(t)
	s := w.start(o)
	eventually(t, "the client's link-local address is usable", func() bool {
		out := w.client("ip", "-6", "-o", "address", "show", "dev", "hscl0", "scope", "link")
		return strings.Contains(out, "fe80") && !strings.Contains(out, "tentative")
	})
	dir := t.TempDir()
	args := []string{"dhclient", "-6", "-1", "-v", "-sf", "/bin/true", "-lf", dir + "/leases", "-pf", dir + "/pid", "-cf", "/dev/null", "hscl0"}
	out := w.client(args...)
	want := s.v6.address(message6{boot: bootOf(n1)}, 0, o.withDefaults().Exclude).String()
	if !strings.Contains(out, "IAADDR "+want) {
		t.Errorf("want %s, dhclient says\n%s", want, out)
	}
	args[2] = "-r"
	if out := w.client(args...); !strings.Contains(out, "Release on hscl0") {
		t.Errorf("dhclient says\n%s", out)
	}
}

func lab6(t *testing.T) *IPv6 {
	t.Helper()
	run(t, "ip", "address", "add", "fd77::1/64", "dev", "hsbr0", "nodad")
	return &IPv6{Server: ip("fd77::1"), Prefix: netip.MustParsePrefix("fd77::/64"), Addresses: true, DNS: []netip.Addr{ip("fd77::53")}, Search: []string{"lab.example"}}
}

// dnsmasq on the same segment is noticed before any machine takes its offer, and
// named with what it offers and what to do.
func TestAForeignServerIsNamed(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	w.client("ip", "address", "add", "10.77.0.9/24", "dev", "hscl0")
	dnsmasq(t, w.pid, "hscl0", "--dhcp-range=10.77.0.200,10.77.0.210,1h", "--dhcp-boot=pxelinux.0,,10.77.0.9", "--dhcp-option=3,10.77.0.9")
	o := segmentOptions(t)
	o.Watch = 200 * time.Millisecond // until dnsmasq is up
	alarms := make(chan *hotspare.Error, 16)
	o.Alarm = func(e *hotspare.Error) { alarms <- e }
	o.Vendor = func(boot.MAC) string { return "Example Inc." }
	s := w.start(o)
	eventually(t, "dnsmasq is noticed", func() bool { return len(s.ForeignServers()) == 1 })
	f := s.ForeignServers()[0]
	if f.Server != ip("10.77.0.9") || f.MAC != n1 || f.Vendor != "Example Inc." || !f.Address.IsValid() || f.Router != ip("10.77.0.9") || f.BootFile != "pxelinux.0" || f.NextServer != "10.77.0.9" || f.Fix == "" {
		t.Errorf("%+v", f)
	}
	e := <-alarms
	if e.Code != hotspare.CodeForeignDHCP || !strings.Contains(e.Where, "10.77.0.9 (52:54:00:77:00:01, Example Inc.)") || !strings.Contains(e.Why, "boot file pxelinux.0") || !strings.Contains(e.Fix, "mode: proxy") {
		t.Errorf("%+v", e)
	}
	// Seen many times, told once.
	first := f.Last
	eventually(t, "it is seen again", func() bool { return s.ForeignServers()[0].Last.After(first) })
	select {
	case e := <-alarms:
		t.Errorf("told again: %+v", e)
	default:
	}
}

// dnsmasq runs on one interface of a namespace.
func dnsmasq(t *testing.T, pid, dev string, args ...string) *program {
	t.Helper()
	dir := t.TempDir()
	return start(t, pid, append([]string{
		"dnsmasq", "-k", "-p", "0", "-C", "/dev/null", "-i", dev, "--bind-interfaces", "--dhcp-authoritative", "--no-ping", "-u", "root",
		"--dhcp-leasefile=" + filepath.Join(dir, "leases"), "--pid-file=" + filepath.Join(dir, "pid"), "--log-facility=-", "--log-dhcp",
	}, args...)...)
}

// perfdhcp lets 400 machines ask at once, and ask again until each has an address:
// none is lost, no two have the same one.
func TestARackPoweredOnAtOnce(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	w.client("ip", "address", "add", "10.77.0.2/16", "dev", "hscl0")
	run(t, "ip", "address", "flush", "dev", "hsbr0")
	run(t, "ip", "address", "add", "10.77.0.1/16", "dev", "hsbr0")
	o := segmentOptions(t)
	o.Prefix, o.Range = netip.MustParsePrefix("10.77.0.0/16"), Range{ip("10.77.1.0"), ip("10.77.8.255")}
	s := w.start(o)
	out := w.client("perfdhcp", "-4", "-l", "10.77.0.2", "--scenario", "avalanche", "-R", "400", "-u", "-g", "single", "10.77.0.1")
	bound := map[netip.Addr]bool{}
	for _, l := range s.Leases() {
		if l.Bound {
			bound[l.Addr] = true
		}
	}
	if len(bound) < 400 || !strings.Contains(out, "non unique addresses: 0") {
		t.Errorf("%d addresses are bound\n%s", len(bound), out)
	}
	if u := s.Usage()[0]; u.Used < 400 || u.Size != 2048 {
		t.Errorf("%+v", u)
	}
	if st := s.Stats(); st.Malformed+st.Panics+st.Failed+st.NAKs != 0 {
		t.Errorf("%+v", st)
	}
}
