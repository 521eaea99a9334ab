package appliance

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/standby"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
)

func openMachinesOf(t *testing.T, path string) *machines {
	t.Helper()
	m, err := openMachines(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	m.now = func() time.Time { at = at.Add(time.Second); return at }
	return m
}

func strange(i int) boot.MAC { return boot.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func TestMachinesAreBoundedAndDecisionsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "machines.json")
	m := openMachinesOf(t, path)
	m.seen(boot.Request{Protocol: boot.DHCP, MAC: strange(1), UUID: "4c4c4544-0000-0000-0000-000000000001", Arch: boot.ArchUEFI64, Stage: boot.StageFirmware})
	if err := m.ignore("4C4C4544-0000-0000-0000-000000000001", "ann"); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.announced(strange(2), netip.MustParseAddr("10.77.0.110"), agentlink.Facts{MACs: []string{strange(3).String(), "junk", strange(1).String()}, Vendor: "Acme"}); !ok {
		t.Fatal("no room")
	}
	for i := range 3 * maxMachines { // a flood of invented addresses
		m.seen(boot.Request{Protocol: boot.DHCP, MAC: strange(100 + i)})
	}
	if n := len(m.list()); n != maxMachines {
		t.Errorf("%d machines are kept", n)
	}
	for _, mac := range []boot.MAC{strange(1), strange(2), strange(3)} {
		if _, err := m.find(mac.String()); err != nil {
			t.Errorf("the flood pushed out %s: %v", mac, err)
		}
	}
	if x, _ := m.find(strange(3).String()); x.MAC != strange(2) || len(x.MACs) != 2 {
		t.Errorf("a machine's second card, and no other machine's, is its own: %+v", x)
	}
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	again := openMachinesOf(t, path)
	if x, err := again.find(strange(1).String()); err != nil || x.Ignored != "ann" || x.Firmware != "x86-64 UEFI (7)" {
		t.Errorf("after a restart: %+v, %v", x, err)
	}
	if err := again.forget(strange(1).String()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{strange(1).String(), "nobody", ""} {
		if _, err := again.find(name); hotspare.CodeOf(err) != hotspare.CodeNotFound {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := os.WriteFile(path, []byte(`{"version":7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openMachines(path, nil); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
		t.Errorf("a file of another version: %v", err)
	}
}

// finder is a discovery over a host kernel, with one node that is not approved.
func finder(t *testing.T, mode string) (*discovery, *haengine.NodeState) {
	t.Helper()
	n := &haengine.NodeState{Spec: haengine.Node{Name: "n1", MACs: []string{card.String()}}}
	d := &discovery{
		cfg: Config{Discovery: DiscoveryConfig{Mode: mode}}.WithDefaults(), machines: openMachinesOf(t, filepath.Join(t.TempDir(), "machines.json")),
		byMAC:   func(m boot.MAC) (*haengine.NodeState, bool) { return n, m == card },
		leased:  func(a netip.Addr) (boot.MAC, bool) { return strange(5), a == netip.MustParseAddr("10.77.0.105") },
		trouble: func(boot.MAC) string { return "" }, tell: func(boot.Entry) {}, now: time.Now, log: slog.New(slog.DiscardHandler), tokens: map[boot.MAC]discoveryToken{},
	}
	d.cfg.Discovery.Mode = mode
	d.host = func(context.Context) (standby.Kernel, error) { return standby.Kernel{Version: "6.1.0-1-amd64"}, nil }
	return d, n
}

// What a machine that nobody approved is told, over every protocol.
func TestStrangersGetDiscoveryAndNoSecret(t *testing.T) {
	site := boot.Site{Server: netip.MustParseAddr("10.77.0.1"), Loaders: boot.DefaultLoaders()}
	ask := func(d *discovery, r boot.Request) (boot.Offer, boot.Reason, boot.Assignment) {
		a := d.stranger(r)
		if r.Path.Token != "" {
			a, _ = d.byToken(r.Path.Token)
		}
		o, why := site.Plan(r, a)
		return o, why, a
	}
	dhcp := boot.Request{Protocol: boot.DHCP, Stage: boot.StageIPXE, MAC: strange(5), Arch: boot.ArchUEFI64, Features: boot.Features{HTTP: true, EFI: true}}
	d, _ := finder(t, "wait")
	if o, why, _ := ask(d, dhcp); why.Rule != boot.RuleUnknown || !strings.Contains(o.BootFile, "unassigned") {
		t.Errorf("mode wait: %+v %+v", o, why)
	}
	d, n := finder(t, "environment")
	o, why, a := ask(d, dhcp)
	if why.Rule != boot.RuleDiscovery || a.Kind != boot.KindDiscovery || !boot.ValidToken(a.Token) || !strings.HasSuffix(o.BootFile, a.Token) {
		t.Fatalf("%+v %+v", o, why)
	}
	if _, _, again := ask(d, dhcp); again.Token != a.Token {
		t.Error("another token at the second question of one boot")
	}
	get := func(what boot.Artefact) (boot.Offer, boot.Reason) {
		o, why, _ := ask(d, boot.Request{Protocol: boot.HTTP, Stage: boot.StageIPXE, Path: boot.Path{Artefact: what, Token: a.Token}})
		return o, why
	}
	if o, _ := get(boot.ArtefactScript); o.Script.Kind != boot.ScriptStart || len(o.Script.Initrds) != 1 || o.Script.Initrds[0].Once {
		t.Errorf("script %+v", o.Script)
	}
	for _, what := range []boot.Artefact{boot.ArtefactKernel, boot.ArtefactInitrd} {
		if o, why := get(what); o.Kind != boot.OfferContent {
			t.Errorf("%s: %+v", what, why)
		}
	}
	for _, what := range []boot.Artefact{boot.ArtefactJoin, boot.ArtefactSAN} {
		if o, why := get(what); o.Kind != boot.OfferDeny {
			t.Errorf("%s is given to a stranger: %+v", what, why)
		}
	}
	// A decision ends it at once, for a token that is out too.
	if err := d.machines.ignore(strange(5).String(), "ann"); err != nil {
		t.Fatal(err)
	}
	if o, why := get(boot.ArtefactKernel); o.Kind != boot.OfferDeny || why.Rule != boot.RuleToken {
		t.Errorf("an ignored machine still gets the kernel: %+v", why)
	}
	if _, why, a := ask(d, dhcp); why.Rule != boot.RuleUnknown || !strings.Contains(a.Reason, "ignore") {
		t.Errorf("an ignored machine: %+v", why)
	}
	own, ok := d.unapproved(card, "n1")
	if !ok || own.Node != "n1" || own.Approved {
		t.Errorf("an unapproved node: %+v", own)
	}
	n.Spec.Approved = true
	if _, ok := d.byToken(own.Token); ok {
		t.Error("the token of an approved node still opens the discovery environment")
	}
}

func TestDiscoveryTokensAreBounded(t *testing.T) {
	d, _ := finder(t, "environment")
	at := time.Now()
	d.now = func() time.Time { at = at.Add(time.Millisecond); return at }
	for i := range 3 * maxDiscovering {
		d.stranger(boot.Request{Protocol: boot.DHCP, MAC: strange(i + 1)})
	}
	if len(d.tokens) != maxDiscovering {
		t.Errorf("%d tokens live", len(d.tokens))
	}
	if _, ok := d.tokens[strange(3*maxDiscovering)]; !ok {
		t.Error("the machine that asked last has none")
	}
}

func TestAnnouncementsAreClaims(t *testing.T) {
	d, n := finder(t, "environment")
	tell := func(remote string, macs ...string) agentlink.Noted {
		return d.announced(t.Context(), server.Announcement{Remote: remote, Facts: agentlink.Facts{MACs: macs, CPUs: 4, MemoryMiB: 8192, Vendor: "Acme"}})
	}
	// It claims to be a node; its lease says better.
	if x := tell("10.77.0.105:4000", card.String()); x.Boot || !strings.Contains(x.Why, strange(5).String()) {
		t.Errorf("%+v", x)
	}
	if x, err := d.machines.find(strange(5).String()); err != nil || x.Facts == nil || x.Facts.Vendor != "Acme" {
		t.Errorf("%+v %v", x, err)
	}
	n.Spec.Approved = true
	if x := tell("10.77.0.9:4000", card.String()); !x.Boot {
		t.Errorf("an approved machine is not told to boot: %+v", x)
	}
	if x := tell("nowhere"); x.Boot || x.Why == "" {
		t.Errorf("%+v", x)
	}
	if err := d.machines.ignore(strange(5).String(), "ann"); err != nil {
		t.Fatal(err)
	}
	if x := tell("10.77.0.105:4000"); x.Again.D() != announceIgnored {
		t.Errorf("an ignored machine: %+v", x)
	}
}
