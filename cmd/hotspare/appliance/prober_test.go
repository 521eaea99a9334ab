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
	p := prober{link: func(netip.Addr) (string, bool) { return "seg0", true }, wait: 300 * time.Millisecond}
	silent, by, err := p.AddressSilent(t.Context(), "orders", netip.MustParsePrefix("10.77.0.60/24"))
	if err != nil || silent || by != other.HardwareAddr.String() {
		t.Fatalf("an address in use: silent %v, by %q (want %s), %v", silent, by, other.HardwareAddr, err)
	}
	silent, by, err = p.AddressSilent(t.Context(), "orders", netip.MustParsePrefix("10.77.0.61/24"))
	if err != nil || !silent || by != "" {
		t.Fatalf("a free address: silent %v, by %q, %v", silent, by, err)
	}
	if _, _, err := (prober{link: func(netip.Addr) (string, bool) { return "eth99", true }}).AddressSilent(t.Context(), "orders", netip.MustParsePrefix("10.77.0.61/24")); err == nil {
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
	// The kernel gathers changes of carriers for up to a second (linkwatch).
	sees := func(what string, ok func(why string) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			why := isolated("seg0")
			if ok(why) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %q", what, why)
			}
		}
	}
	whole := func(why string) bool { return why == "" }
	sees("a link that is up", whole)
	link("seg1", "down") // the cable's other end
	sees("a cut cable", func(why string) bool { return strings.Contains(why, "no link") })
	link("seg1", "up")
	sees("a mended cable", whole)
	link("seg0", "down")
	sees("an interface that is down", func(why string) bool { return strings.Contains(why, "is down") })
	link("seg0", "up")
	sees("an interface that is up again", whole)
	if why := isolated("eth99"); !strings.Contains(why, "gone") {
		t.Fatalf("no interface: %q", why)
	}
}
