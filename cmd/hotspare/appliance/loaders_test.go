package appliance

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
)

func TestLoadersOfTheConfigurationAreChecked(t *testing.T) {
	for _, c := range []struct {
		name string
		f    FirmwareConfig
		why  string // "" is right
	}{
		{"nothing", FirmwareConfig{}, ""},
		{"by word and by number", FirmwareConfig{Loaders: map[string]string{"uefi-x64": "ipxe.efi", "9": "ipxe.efi", "bios": "ipxe.pxe"}}, ""},
		{"a signed iPXE", FirmwareConfig{SecureBoot: map[string]string{"uefi-x64-http": "snponly-shim.efi"}, More: []string{"ipxe-r210.efi"}}, ""},
		{"no architecture", FirmwareConfig{Loaders: map[string]string{"uefi": "ipxe.efi"}}, "uefi-x64"},
		{"a path", FirmwareConfig{Loaders: map[string]string{"uefi-x64": "../ipxe.efi"}}, "plain file name"},
		{"a path for nodes", FirmwareConfig{More: []string{"a/b.efi"}}, "plain file name"},
		{"for another firmware", FirmwareConfig{Loaders: map[string]string{"bios": "ipxe.efi"}}, "cannot start"},
		{"for another processor", FirmwareConfig{SecureBoot: map[string]string{"uefi-arm64": "shimx64.efi"}}, "cannot start"},
	} {
		err := c.f.validate()
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// The site's folder comes before Debian's; a loader without the one that it
// fetches by itself is as good as none.
func TestLoadersThatAreNotInstalledAreNotOffered(t *testing.T) {
	folder := t.TempDir()
	put := func(names ...string) {
		for _, n := range names {
			if err := os.WriteFile(filepath.Join(folder, n), []byte("own "+n), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	put("undionly.kpxe", "one-shim.efi")
	b := &boots{cfg: Config{Loaders: folder}}
	f, err := b.loader("undionly.kpxe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := make([]byte, 3)
	if _, err := f.Read(text); err != nil || string(text) != "own" {
		t.Errorf("the site's own file does not come first: %q, %v", text, err)
	}
	if missing, ok := b.installed("one-shim.efi"); ok || missing != "one.efi" {
		t.Errorf("half a pair counts as installed: %q", missing)
	}
	a := &Appliance{cfg: Config{Loaders: folder, Firmware: FirmwareConfig{
		Loaders: map[string]string{"uefi-x64": "no-such-loader.efi"}, SecureBoot: map[string]string{"uefi-x64": "one-shim.efi"}, More: []string{"undionly.kpxe"},
	}}, boots: b, log: slog.New(slog.DiscardHandler)}
	site := a.bootSite()
	if site.Loaders[boot.ArchUEFI64] != "" || site.SecureLoaders[boot.ArchUEFI64] != "" || site.Loaders[boot.ArchBIOS] != "undionly.kpxe" {
		t.Errorf("offered: %v %v", site.Loaders, site.SecureLoaders)
	}
	put("one.efi")
	if site = a.bootSite(); site.SecureLoaders[boot.ArchUEFI64] != "one-shim.efi" {
		t.Errorf("offered: %v", site.SecureLoaders)
	}
	var e *hotspare.Error
	if _, err := b.loader("../attempts.json"); !errors.As(err, &e) {
		t.Errorf("a name that leads out: %v", err)
	}
	if _, err := b.loader("no-such-loader.efi"); !errors.As(err, &e) || e.Code != hotspare.CodeMissingTool || e.Fix == "" {
		t.Errorf("a loader that is missing: %v", err)
	}
}

func TestAgentsOfOtherArchitectures(t *testing.T) {
	c := Config{Agent: "/usr/lib/hotspare/hotspare-agent"}
	for arch, want := range map[string]string{"": c.Agent, "riscv64": c.Agent + "-riscv64"} {
		if got := c.agentFor(arch); got != want {
			t.Errorf("%q: %s", arch, got)
		}
	}
}

// The secret of a volume is given away once, also over a restart.
func TestTheVolumesSecretIsSpentOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "attempts.json")
	a, err := openAttempts(path)
	if err != nil {
		t.Fatal(err)
	}
	x, err := a.begin(haengine.Node{Name: "n1", MACs: []string{"52:54:00:77:00:01"}}, haengine.Boot{
		Order: haengine.Order{App: "web", Node: "n1", Epoch: 3}, Way: haengine.WayColdSAN,
	}, "disk:1")
	if err != nil {
		t.Fatal(err)
	}
	other, err := boot.NewToken(strings.NewReader(strings.Repeat("x", 32)))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.spend(other); hotspare.CodeOf(err) != hotspare.CodeBootToken {
		t.Errorf("another token: %v", err)
	}
	if err := a.spend(x.BootToken); err != nil {
		t.Fatal(err)
	}
	if err := a.spend(x.BootToken); !errors.Is(err, boot.ErrSpent) {
		t.Errorf("the second time: %v", err)
	}
	again, err := openAttempts(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.spend(x.BootToken); !errors.Is(err, boot.ErrSpent) {
		t.Errorf("after a restart: %v", err)
	}
}
