package appliance

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
)

func opened(t *testing.T, path string) *attempts {
	t.Helper()
	a, err := openAttempts(path)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The boot into standby outlives what ends grants, and a grant takes its place.
func TestABootIntoStandbyIsEndedByItsTurnOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boots.json")
	a := opened(t, path)
	x, err := a.park(n1, 4, "orders:1")
	if err != nil || x.Mode != forStandby || x.Epoch != 0 {
		t.Fatalf("park: %+v, %v", x, err)
	}
	if again, err := a.park(n1, 4, "orders:1"); err != nil || again.BootToken != x.BootToken {
		t.Fatalf("a repeated order: %v", err)
	}
	if err := a.end("n1", 9); err != nil { // a late end of an old grant
		t.Fatal(err)
	}
	if err := a.endTurn("n1", 3); err != nil {
		t.Fatal(err)
	}
	a = opened(t, path)
	if got, ok := a.byNode("n1"); !ok || got.BootToken != x.BootToken || got.Turn != 4 {
		t.Fatalf("after a late end and a restart: %+v, %v", got, ok)
	}
	if _, err := a.park(n1, 3, "orders:1"); hotspare.CodeOf(err) != hotspare.CodeStaleEpoch {
		t.Fatalf("an older turn: %v", err)
	}
	grant, err := a.begin(n1, bootOf(7), "orders:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byToken(x.BootToken); ok {
		t.Fatal("the standby's token lives beside the grant's")
	}
	if _, err := a.park(n1, 5, "orders:1"); hotspare.CodeOf(err) != hotspare.CodeStaleEpoch {
		t.Fatalf("standby while it boots for a grant: %v", err)
	}
	if err := a.endTurn("n1", 9); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byToken(grant.BootToken); !ok {
		t.Fatal("the end of a turn ended a grant's boot")
	}
}

// What goes over the agent's link may have to be sent twice, and is worth one use.
func TestAJoinSecretOfTheLinkIsTheSameForASecondTry(t *testing.T) {
	a := opened(t, filepath.Join(t.TempDir(), "boots.json"))
	x, err := a.begin(n1, bootOf(7), "orders:1")
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.inLink(x)
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.inLink(x)
	if err != nil || !second.Equal(first) {
		t.Fatalf("the second try has another secret, %v", err)
	}
	if _, _, err := a.mint(x.BootToken); !errors.Is(err, boot.ErrSpent) {
		t.Fatalf("whoever has the boot token fetched a secret of its own: %v", err)
	}
	if got, err := a.redeem(hashOf(t, first), facts("boot-2")); err != nil || got.Epoch != 7 {
		t.Fatalf("redeem: %+v, %v", got, err)
	}
	if _, err := a.redeem(hashOf(t, first), facts("boot-3")); hotspare.CodeOf(err) != hotspare.CodeTokenReused {
		t.Fatalf("the second use: %v", err)
	}
	if err := a.end("n1", 7); err != nil {
		t.Fatal(err)
	}
	if _, err := a.inLink(x); hotspare.CodeOf(err) != hotspare.CodeStaleEpoch {
		t.Fatalf("a boot that was taken back: %v", err)
	}
}

// A preload opens kernel and initramfs; it is no boot, so nothing joins with it.
func TestAPreloadTokenIsNoBoot(t *testing.T) {
	a := opened(t, filepath.Join(t.TempDir(), "boots.json"))
	now := time.Now()
	a.now = func() time.Time { return now }
	x, err := a.load(n1, "web:1")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.load(n1, "web:1"); err != nil || again.BootToken != x.BootToken {
		t.Fatalf("the same again: %v", err)
	}
	if got, ok := a.byToken(x.BootToken); !ok || got.Mode != forPreload || got.Image != "web:1" {
		t.Fatalf("by token: %+v, %v", got, ok)
	}
	if _, _, err := a.mint(x.BootToken); hotspare.CodeOf(err) != hotspare.CodeBootToken {
		t.Fatalf("a join archive for a preload: %v", err)
	}
	if _, ok := a.byMAC(x.MACs[0]); ok {
		t.Fatal("the machine would boot what it only keeps ready")
	}
	now = now.Add(joinLife + time.Second)
	if _, err := a.load(n1, "orders:1"); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byToken(x.BootToken); ok {
		t.Fatal("the token lives for ever")
	}
}
