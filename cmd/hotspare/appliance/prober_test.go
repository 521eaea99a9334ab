package appliance

import (
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestAnAddressInUseNamesWhoAnswers probes over a real wire: the kernel behind
// the other end of the segment answers for an address that it has.
func TestAnAddressInUseNamesWhoAnswers(t *testing.T) {
	if out, err := exec.Command("ip", "addr", "add", "10.77.0.60/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	other, err := net.InterfaceByName("seg1")
	if err != nil {
		t.Fatal(err)
	}
	p := prober{iface: "seg0", wait: 300 * time.Millisecond}
	silent, by, err := p.AddressSilent(t.Context(), "orders", netip.MustParsePrefix("10.77.0.60/24"))
	if err != nil || silent || by != other.HardwareAddr.String() {
		t.Fatalf("an address in use: silent %v, by %q (want %s), %v", silent, by, other.HardwareAddr, err)
	}
	silent, by, err = p.AddressSilent(t.Context(), "orders", netip.MustParsePrefix("10.77.0.61/24"))
	if err != nil || !silent || by != "" {
		t.Fatalf("a free address: silent %v, by %q, %v", silent, by, err)
	}
	if _, _, err := (prober{iface: "eth99"}).AddressSilent(t.Context(), "orders", netip.MustParsePrefix("10.77.0.61/24")); err == nil {
		t.Fatal("no interface, and yet an answer")
	}
}

// TestACutLinkIsSeen looks at the appliance's own link (SAFETY S5).
func TestACutLinkIsSeen(t *testing.T) {
	link := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", append([]string{"link", "set"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip link set %v: %v: %s", args, err, out)
		}
	}
	if why := isolated("seg0"); why != "" {
		t.Fatalf("a link that is up: %q", why)
	}
	link("seg1", "down") // the cable's other end
	why := isolated("seg0")
	link("seg1", "up")
	if !strings.Contains(why, "no link") {
		t.Fatalf("a cut cable: %q", why)
	}
	link("seg0", "down")
	why = isolated("seg0")
	link("seg0", "up")
	if !strings.Contains(why, "is down") {
		t.Fatalf("an interface that is down: %q", why)
	}
	if why := isolated("eth99"); !strings.Contains(why, "gone") {
		t.Fatalf("no interface: %q", why)
	}
}
