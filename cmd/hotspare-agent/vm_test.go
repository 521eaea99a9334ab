package main_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"

	"hotspare"
)

// The network of the machine under test. It exists in a namespace of the test's
// own: inNamespace runs the test again inside.
var (
	hostAddr = netip.MustParsePrefix("10.77.0.1/24")
	nodeAddr = netip.MustParseAddr("10.77.0.100")
	nodeMAC  = "52:54:00:77:00:01"
)

const (
	insideVar = "HOTSPARE_AGENT_TEST_INSIDE"
	nodeUUID  = "00000000-0000-4000-8000-525400770001"
	tapName   = "hstap0"
)

// inNamespace runs the test once more in a network namespace of its own, and
// says whether this is that run.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) != "" {
		setUpTap(t)
		return true
	}
	if os.Getuid() != 0 {
		t.Fatal(&hotspare.Error{Code: hotspare.CodeNotRoot, What: "this test makes a network namespace", Fix: "run it as root"})
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=14m")
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out := &prefixed{t: t}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		t.Fatalf("the run in the namespace failed: %v", err)
	}
	return false
}

type prefixed struct{ t *testing.T }

func (p *prefixed) Write(b []byte) (int, error) {
	_, err := os.Stderr.Write(b)
	return len(b), err
}

func setUpTap(t *testing.T) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	must(err)
	must(netlink.LinkSetUp(lo))
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o600)
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP}
	must(netlink.LinkAdd(tap))
	must(netlink.AddrAdd(tap, &netlink.Addr{IPNet: &net.IPNet{IP: hostAddr.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	must(netlink.LinkSetUp(tap))
}

// serveDHCP gives the node its boot address.
func serveDHCP(t *testing.T) {
	t.Helper()
	handler := func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		reply, err := dhcpv4.NewReplyFromRequest(m,
			dhcpv4.WithYourIP(nodeAddr.AsSlice()), dhcpv4.WithServerIP(hostAddr.Addr().AsSlice()),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(hostAddr.Addr().AsSlice())),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(600))
		if err != nil {
			return
		}
		switch m.MessageType() {
		case dhcpv4.MessageTypeDiscover:
			reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer))
		case dhcpv4.MessageTypeRequest:
			reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
		default:
			return
		}
		_, _ = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
	}
	s, err := server4.NewServer(tapName, &net.UDPAddr{Port: 67}, handler)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve() }()
	t.Cleanup(func() { _ = s.Close(); <-done })
}
