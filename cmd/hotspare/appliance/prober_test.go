package appliance

import (
	"net"
	"net/netip"
	"os/exec"
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
