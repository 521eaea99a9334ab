package appliance

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
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
	x, err := a.park(n1, 4, "orders:1", "6.1 abc")
	if err != nil || x.Mode != forStandby || x.Epoch != 0 {
		t.Fatalf("park: %+v, %v", x, err)
	}
	if again, err := a.park(n1, 4, "orders:1", "6.1 abc"); err != nil || again.BootToken != x.BootToken {
		t.Fatalf("a repeated order: %v", err)
	}
	if err := a.end("n1", "orders", 9); err != nil { // a late end of an old grant
		t.Fatal(err)
	}
	if err := a.endTurn("n1", 3); err != nil {
		t.Fatal(err)
	}
	a = opened(t, path)
	if got, ok := a.byNode("n1"); !ok || got.BootToken != x.BootToken || got.Turn != 4 {
		t.Fatalf("after a late end and a restart: %+v, %v", got, ok)
	}
	if _, err := a.park(n1, 3, "orders:1", "6.1 abc"); hotspare.CodeOf(err) != hotspare.CodeStaleEpoch {
		t.Fatalf("an older turn: %v", err)
	}
	grant, err := a.begin(n1, bootOf(7), "orders:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byToken(x.BootToken); ok {
		t.Fatal("the standby's token lives beside the grant's")
	}
	if _, err := a.park(n1, 5, "orders:1", "6.1 abc"); hotspare.CodeOf(err) != hotspare.CodeStaleEpoch {
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
	if got, err := a.redeem(hashOf(t, first), facts("boot-2"), anybody); err != nil || got.Epoch != 7 {
		t.Fatalf("redeem: %+v, %v", got, err)
	}
	if _, err := a.redeem(hashOf(t, first), facts("boot-3"), anybody); hotspare.CodeOf(err) != hotspare.CodeTokenReused {
		t.Fatalf("the second use: %v", err)
	}
	if err := a.end("n1", "orders", 7); err != nil {
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

// A restart of the appliance while a node executes a kernel draws another secret for
// the repeated order. Whichever comes is the one use; the other is spent with it.
func TestARestartDoesNotVoidTheKernelOnItsWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boots.json")
	kexec := bootOf(7)
	kexec.BootID = "parked"
	a := opened(t, path)
	x, err := a.begin(n1, kexec, "orders:1")
	if err != nil || x.From != "parked" {
		t.Fatalf("begin: %+v, %v", x, err)
	}
	first, err := a.inLink(x)
	if err != nil {
		t.Fatal(err)
	}
	a = opened(t, path)
	second, err := a.inLink(x)
	if err != nil || second.Equal(first) {
		t.Fatalf("after a restart the secret is the same though it was not kept, %v", err)
	}
	if got, err := a.redeem(hashOf(t, first), facts("boot-2"), anybody); err != nil || got.Epoch != 7 {
		t.Fatalf("the kernel that was on its way: %+v, %v", got, err)
	}
	if _, err := a.redeem(hashOf(t, second), facts("boot-3"), anybody); hotspare.CodeOf(err) != hotspare.CodeTokenReused {
		t.Fatalf("the other secret of the same boot: %v", err)
	}
}

func TestABootOfANodeThatIsNotApprovedAnyMoreDoesNotJoin(t *testing.T) {
	a := opened(t, filepath.Join(t.TempDir(), "boots.json"))
	x, err := a.park(n1, 1, "orders:1", "6.1 abc")
	if err != nil {
		t.Fatal(err)
	}
	_, secret, err := a.mint(x.BootToken)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.redeem(hashOf(t, secret), facts("boot-1"), func(string) bool { return false }); hotspare.CodeOf(err) != hotspare.CodeJoinRefused {
		t.Fatalf("redeem: %v", err)
	}
	if err := a.only(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byNode("n1"); ok {
		t.Fatal("the boot of a node that is gone is kept")
	}
}

// Epochs of two applications say nothing about each other.
func TestTheEndOfOneApplicationsBootLeavesAnothers(t *testing.T) {
	a := opened(t, filepath.Join(t.TempDir(), "boots.json"))
	x, err := a.begin(n1, bootOf(3), "orders:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.end("n1", "web", 50); err != nil {
		t.Fatal(err)
	}
	if _, ok := a.byToken(x.BootToken); !ok {
		t.Fatal("the end of web's epoch 50 ended the boot for orders' epoch 3")
	}
}

// What could not be written did not happen: a second try does not find it.
func TestAnAttemptThatCannotBeSavedIsNone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a := opened(t, filepath.Join(dir, "boots.json"))
	x, err := a.begin(n1, bootOf(3), "orders:1")
	if err != nil {
		t.Fatal(err)
	}
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil { // the disk is gone
		t.Fatal(err)
	}
	if _, _, err := a.mint(x.BootToken); err == nil {
		t.Fatal("a token that is nowhere on disk was given away")
	}
	if _, err := a.begin(n1, bootOf(4), "orders:1"); err == nil {
		t.Fatal("a boot that is nowhere on disk was begun")
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	_, secret, err := a.mint(x.BootToken)
	if err != nil {
		t.Fatalf("the disk is back, and the token counts as fetched: %v", err)
	}
	if got, err := a.redeem(hashOf(t, secret), facts("boot-1"), anybody); err != nil || got.Epoch != 3 {
		t.Fatalf("redeem: %+v, %v", got, err)
	}
}

// A kernel that came over the agent's link is the grant's boot. A machine that then
// asks the network is another one, be it after a panic or by hand.
func TestAKexecedBootGetsNothingFromTheNetwork(t *testing.T) {
	a := opened(t, filepath.Join(t.TempDir(), "boots.json"))
	approved := true
	b := &boots{attempts: a, nodes: func(string) (*haengine.NodeState, bool) {
		return &haengine.NodeState{Spec: haengine.Node{Name: "n1", Approved: approved}}, true
	}}
	cold, err := a.begin(n1, bootOf(7), hostImage+"6.1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Assign(t.Context(), boot.Request{MAC: cold.MACs[0]}); err != nil || got.Kind != boot.KindStart || got.Token != cold.BootToken || !got.Approved {
		t.Fatalf("a cold start: %+v, %v", got, err)
	}
	approved = false
	if got, err := b.Assign(t.Context(), boot.Request{MAC: cold.MACs[0]}); err != nil || got.Approved {
		t.Fatalf("a node that is not approved any more: %+v, %v", got, err)
	}
	approved = true
	kexec := bootOf(8)
	kexec.BootID = "parked"
	x, err := a.begin(n1, kexec, hostImage+"6.1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Assign(t.Context(), boot.Request{MAC: x.MACs[0]}); err != nil || got.Kind != boot.KindNone || got.Token != "" {
		t.Fatalf("by its address: %+v, %v", got, err)
	}
	if got, err := b.Assign(t.Context(), boot.Request{Path: boot.Path{Artefact: boot.ArtefactKernel, Token: x.BootToken}}); err != nil || got.Token != x.BootToken {
		t.Fatalf("by the token that went over the link: %+v, %v", got, err)
	}
}
