package units

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// SAFETY S2a: a unit that the image enables waits for the mark of a live grant.
func TestGateHoldsEveryUnitOfTheGroup(t *testing.T) {
	root := t.TempDir()
	g := NewGate(root, "orders")
	live := filepath.Join(root, "run/hotspare/live/orders")
	if err := os.MkdirAll(filepath.Dir(live), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(live, nil, 0o600); err != nil { // left by something else: a closed gate is closed
		t.Fatal(err)
	}
	if err := g.Close([]string{"postgresql@15-main.service", "postgresql.service", "orders.timer"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(live); err == nil {
		t.Error("the gate is open after it was closed")
	}
	for _, unit := range []string{"postgresql@15-main.service", "postgresql.service", "orders.timer"} {
		text := read(t, filepath.Join(root, "run/systemd/system", unit+".d", "50-hotspare.conf"))
		if !strings.Contains(text, "\nConditionPathExists=/run/hotspare/live/orders\n") {
			t.Errorf("%s has no condition:\n%s", unit, text)
		}
		if got := strings.Contains(text, "[Service]\nSlice=hotspare-orders.slice\n"); got != strings.HasSuffix(unit, ".service") {
			t.Errorf("%s: slice %v:\n%s", unit, got, text)
		}
	}
	if err := g.Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(live); err != nil {
		t.Error("the gate is not open")
	}
	for range 2 {
		if err := g.Revoke(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(live); err == nil {
		t.Error("the gate is open after the revocation")
	}
}

func TestGateRefusesNamesThatLeaveItsFolder(t *testing.T) {
	for _, unit := range []string{"", "..", "../x.service", "a/b.service", "x", "x.conf", "a b.service", "a\nb.service", ".x.service", "%i.service"} {
		if err := NewGate(t.TempDir(), "orders").Close([]string{unit}); err == nil {
			t.Errorf("unit %q is taken", unit)
		}
	}
	for _, app := range []string{"", "..", "a/b", "a\nb", ".x"} {
		if err := NewGate(t.TempDir(), app).Close(nil); err == nil {
			t.Errorf("application %q is taken", app)
		}
	}
}

func TestNamesOfUnitsAreEscaped(t *testing.T) {
	if got := NewGate("/", "my-app").Slice(); got != `hotspare-my\x2dapp.slice` {
		t.Errorf("slice %q: a dash would make another level", got)
	}
	if got := CommandName("orders", "data base", "run"); got != `hotspare-orders-data\x20base-run.service` || checkUnit(got) != nil {
		t.Errorf("command %q", got)
	}
}

func TestTheRootsNetworkCardIsReserved(t *testing.T) {
	root := t.TempDir()
	mac, err := net.ParseMAC("52:54:00:77:00:01")
	if err != nil {
		t.Fatal(err)
	}
	if err := ReserveNIC(root, mac); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"run/systemd/network/00-hotspare.network":                                    "[Match]\nMACAddress=52:54:00:77:00:01\n[Link]\nUnmanaged=yes\n",
		"run/NetworkManager/conf.d/00-hotspare.conf":                                 "unmanaged-devices=mac:52:54:00:77:00:01",
		"run/systemd/system/networking.service.d/50-hotspare.conf":                   "ConditionPathExists=!/run/hotspare/agent",
		"run/systemd/system/systemd-networkd-wait-online.service.d/50-hotspare.conf": "ConditionPathExists=!/run/hotspare/agent",
	} {
		if text := read(t, filepath.Join(root, path)); !strings.Contains(text, want) {
			t.Errorf("%s:\n%s", path, text)
		}
	}
}

func TestWaitForAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := WaitFor(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- WaitFor(t.Context(), path) }()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the file was not noticed")
	}
}
