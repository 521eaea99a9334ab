package appliance

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

var n1 = haengine.Node{Name: "n1", UUID: "00000000-0000-4000-8000-525400770001", MACs: []string{"52:54:00:77:00:01"}}

func facts(boot string) agentlink.Facts {
	return agentlink.Facts{UUID: n1.UUID, MACs: []string{"52:54:00:77:00:01"}, BootID: boot}
}

func bootOf(epoch haengine.Epoch) haengine.Boot {
	return haengine.Boot{Order: haengine.Order{App: "orders", Node: "n1", Epoch: epoch}, Way: haengine.WayColdISCSI}
}

func anybody(string) bool { return true }

func hashOf(t *testing.T, s hotspare.Secret) [sha256.Size]byte {
	t.Helper()
	raw, err := hex.DecodeString(s.Reveal())
	if err != nil || len(raw) != 32 {
		t.Fatalf("a join token of %d bytes, %v", len(raw), err)
	}
	return sha256.Sum256(raw)
}

func TestAJoinTokenIsFetchedOnceAndUsedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boots.json")
	a, err := openAttempts(path)
	if err != nil {
		t.Fatal(err)
	}
	x, err := a.begin(n1, bootOf(3), "orders:1")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := a.begin(n1, bootOf(3), "orders:1"); again.BootToken != x.BootToken {
		t.Fatal("a repeated order changed the boot token")
	}
	_, secret, err := a.mint(x.BootToken)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.mint(x.BootToken); !errors.Is(err, boot.ErrSpent) {
		t.Fatalf("the second fetch: %v", err)
	}
	stored, err := os.ReadFile(path)
	if err != nil || strings.Contains(string(stored), secret.Reveal()) {
		t.Fatalf("the token itself is on disk, or the file is missing: %v", err)
	}

	a, err = openAttempts(path) // the appliance restarts between fetch and join
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.mint(x.BootToken); !errors.Is(err, boot.ErrSpent) {
		t.Fatalf("a fetch after the restart: %v", err)
	}
	got, err := a.redeem(hashOf(t, secret), facts("boot-1"), anybody)
	if err != nil || got.Epoch != 3 || got.Node != "n1" {
		t.Fatalf("redeem: %+v, %v", got, err)
	}
	a, err = openAttempts(path)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.redeem(hashOf(t, secret), facts("boot-1"), anybody); err != nil || again.Epoch != 3 {
		t.Fatalf("the same boot, whose answer was lost: %v", err)
	}
	if _, err := a.redeem(hashOf(t, secret), facts("boot-2"), anybody); hotspare.CodeOf(err) != hotspare.CodeTokenReused {
		t.Fatalf("the second use after a restart: %v", err)
	}
	if node := a.owner(hashOf(t, secret)); node != "n1" {
		t.Fatalf("the reused token belongs to %q", node)
	}
}

func TestATokenServesItsOwnMachineOnly(t *testing.T) {
	for _, c := range []struct {
		name  string
		facts agentlink.Facts
		after time.Duration
	}{
		{"another UUID", agentlink.Facts{UUID: "00000000-0000-4000-8000-525400770002", MACs: n1.MACs, BootID: "b"}, 0},
		{"another MAC", agentlink.Facts{UUID: n1.UUID, MACs: []string{"52:54:00:77:00:02"}, BootID: "b"}, 0},
		{"no MAC", agentlink.Facts{UUID: n1.UUID, BootID: "b"}, 0},
		{"too late", facts("b"), joinLife + time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := openAttempts(filepath.Join(t.TempDir(), "boots.json"))
			if err != nil {
				t.Fatal(err)
			}
			x, err := a.begin(n1, bootOf(1), "orders:1")
			if err != nil {
				t.Fatal(err)
			}
			_, secret, err := a.mint(x.BootToken)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now().Add(c.after)
			a.now = func() time.Time { return now }
			if _, err := a.redeem(hashOf(t, secret), c.facts, anybody); hotspare.CodeOf(err) != hotspare.CodeJoinRefused {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestANewEpochEndsTheOldOnesPaths(t *testing.T) {
	a, err := openAttempts(filepath.Join(t.TempDir(), "boots.json"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := a.begin(n1, bootOf(1), "orders:1")
	if err != nil {
		t.Fatal(err)
	}
	_, secret, err := a.mint(old.BootToken)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.begin(n1, bootOf(2), "orders:1"); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byToken(old.BootToken); ok {
		t.Fatal("the boot token of epoch 1 still opens paths")
	}
	if _, err := a.redeem(hashOf(t, secret), facts("b"), anybody); hotspare.CodeOf(err) != hotspare.CodeJoinRefused {
		t.Fatalf("the join token of epoch 1: %v", err)
	}
	if _, err := a.begin(n1, bootOf(1), "orders:1"); hotspare.CodeOf(err) != hotspare.CodeStaleEpoch {
		t.Fatalf("a late order of epoch 1: %v", err)
	}
	if err := a.end("n1", "orders", 1); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byNode("n1"); !ok {
		t.Fatal("the end of epoch 1 took epoch 2 away")
	}
}
