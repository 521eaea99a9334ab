package nic

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"

	"hotspare"
)

func TestBootMAC(t *testing.T) {
	for _, c := range []struct{ cmdline, want string }{
		{"console=ttyS0 BOOTIF=01-52-54-00-77-00-01 quiet", "52:54:00:77:00:01"},
		{"BOOTIF=52:54:00:77:00:01", "52:54:00:77:00:01"},
		{"BOOTIF=01-52-54", ""},
		{"BOOTIF=", ""},
		{"console=ttyS0", ""},
	} {
		if got := BootMAC(c.cmdline).String(); got != c.want {
			t.Errorf("%q: %q, want %q", c.cmdline, got, c.want)
		}
	}
}

func TestARPConflicts(t *testing.T) {
	own, other := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	addr, another := netip.MustParseAddr("10.77.0.50"), netip.MustParseAddr("10.77.0.60")
	zero := netip.IPv4Unspecified()
	for _, c := range []struct {
		name string
		p    arp
		want bool
	}{
		{"an answer", arp{op: arpReply, senderMAC: other, senderIP: addr, targetMAC: own, targetIP: zero}, true},
		{"an announcement", arp{op: arpRequest, senderMAC: other, senderIP: addr, targetIP: addr}, true},
		{"another probe for the same", arp{op: arpRequest, senderMAC: other, senderIP: zero, targetIP: addr}, true},
		{"our own probe, come back", arp{op: arpRequest, senderMAC: own, senderIP: zero, targetIP: addr}, false},
		{"somebody asks for it", arp{op: arpRequest, senderMAC: other, senderIP: another, targetIP: addr}, false},
		{"another address", arp{op: arpReply, senderMAC: other, senderIP: another, targetMAC: own, targetIP: zero}, false},
	} {
		p, err := parseARP(c.p.encode())
		if err != nil {
			t.Fatal(err)
		}
		if got := p.conflicts(addr, own); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func FuzzParseARP(f *testing.F) {
	f.Add(arp{op: arpReply, senderMAC: broadcast, senderIP: netip.IPv4Unspecified(), targetMAC: broadcast, targetIP: netip.IPv4Unspecified()}.encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parseARP(in)
		if err != nil {
			return
		}
		if again, err := parseARP(p.encode()); err != nil || again.senderIP != p.senderIP || again.targetIP != p.targetIP || again.op != p.op {
			t.Errorf("a packet changed: %+v, %+v, %v", p, again, err)
		}
	})
}

const insideVar = "HOTSPARE_NIC_TEST_INSIDE"

// inNamespace runs the test again in a network namespace of its own, where a
// wire leads from the NIC "node0" to the NIC "far0". It says whether this is
// that run.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), insideVar+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("in the namespace (root is needed): %v\n%s", err, out)
		}
		return false
	}
	wire := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "far0"}, PeerName: "node0", PeerHardwareAddr: nodeMAC}
	if err := netlink.LinkAdd(wire); err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 1), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(wire, addr); err != nil {
		t.Fatal(err)
	}
	return true
}

var nodeMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// nodeLink sets the node's end up without waiting for Up, which wants a device.
func nodeLink(t *testing.T) Link {
	t.Helper()
	for _, name := range []string{"lo", "far0", "node0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	l, err := netlink.LinkByName("node0")
	if err != nil {
		t.Fatal(err)
	}
	return Link{Index: l.Attrs().Index, MAC: l.Attrs().HardwareAddr}
}

func TestServiceAddressIsProbedSetAnnouncedAndRemoved(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	link := nodeLink(t)
	a, err := NewAddresses(link)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()

	taken := netip.MustParsePrefix("10.9.0.1/24") // the far end has it
	if err := a.Add(t.Context(), taken); hotspare.CodeOf(err) != hotspare.CodeAddressInUse {
		t.Errorf("an address in use: %v", err)
	}
	if has, err := a.Has(taken); has || err != nil {
		t.Errorf("an address in use was set: %v", err)
	}

	far, err := net.InterfaceByName("far0")
	if err != nil {
		t.Fatal(err)
	}
	ear, err := packet.Listen(far, packet.Datagram, etherTypeARP, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ear.Close() }()
	free := netip.MustParsePrefix("10.9.0.50/24")
	start := time.Now()
	if err := a.Add(t.Context(), free); err != nil {
		t.Fatal(err)
	}
	t.Logf("the address was set after %s", time.Since(start))
	if has, err := a.Has(free); !has || err != nil {
		t.Errorf("the address is not set: %v", err)
	}
	probes, requests, replies := listen(t, ear, free.Addr(), 2*time.Second)
	if probes != probeCount || requests < 3 || replies < 3 {
		t.Errorf("%d probes, %d announcements by request, %d by reply", probes, requests, replies)
	}

	if err := a.RemoveAll(); err != nil {
		t.Fatal(err)
	}
	if has, _ := a.Has(free); has {
		t.Error("the address is left")
	}
	if err := a.Remove(free); err != nil {
		t.Errorf("removing what is not there: %v", err)
	}
	if err := a.Add(t.Context(), netip.MustParsePrefix("fd00::1/64")); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("IPv6: %v", err)
	}
}

// listen counts what is said about an address.
func listen(t *testing.T, ear *packet.Conn, addr netip.Addr, limit time.Duration) (probes, requests, replies int) {
	t.Helper()
	_ = ear.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 1500)
	for {
		n, _, err := ear.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return probes, requests, replies
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := parseARP(buf[:n])
		switch {
		case err != nil || p.targetIP != addr:
		case p.senderIP.IsUnspecified():
			probes++
		case p.senderIP == addr && p.op == arpRequest:
			requests++
		case p.senderIP == addr && p.op == arpReply:
			replies++
		}
	}
}

// The boot address comes from a real DHCP server and is renewed.
func TestBootAddressByDHCP(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	link := nodeLink(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "udhcpd.conf")
	if err := os.WriteFile(conf, []byte("start 10.9.0.100\nend 10.9.0.110\ninterface far0\nlease_file "+dir+"/leases\npidfile "+dir+"/pid\n"+
		"option subnet 255.255.255.0\noption router 10.9.0.1\noption lease 60\nmin_lease 5\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "leases"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("busybox", "udhcpd", "-f", conf)
	server.Stdout, server.Stderr = os.Stderr, os.Stderr
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := server.Start(); err != nil {
		t.Fatalf("busybox is needed: %v", err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()

	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	boot, err := Acquire(ctx, link, func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	if !netip.MustParsePrefix("10.9.0.0/24").Contains(boot.Address.Addr()) || boot.Address.Bits() != 24 || boot.Gateway != netip.MustParseAddr("10.9.0.1") {
		t.Errorf("boot address %+v", boot)
	}
	a, err := NewAddresses(link)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if has, err := a.Has(boot.Address); !has || err != nil {
		t.Errorf("the address is not set: %v", err)
	}
	if got := renewAfter(boot); got < 10*time.Second || got > 30*time.Second {
		t.Errorf("renewal after %s of a lease of 60 s", got)
	}
	again, err := request(ctx, link, boot.lease)
	if err != nil || again.Address != boot.Address {
		t.Errorf("renewal: %+v, %v", again.Address, err)
	}
}

func TestUpTellsWhatItWaitsFor(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	var said []string
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := Up(ctx, net.HardwareAddr{2, 9, 9, 9, 9, 9}, func(text string) { said = append(said, text) })
	if !errors.Is(err, context.DeadlineExceeded) || len(said) == 0 {
		t.Errorf("got %v, said %q", err, said)
	}
}
