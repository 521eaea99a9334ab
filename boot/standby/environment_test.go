package standby

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotspare"
)

// hostWith makes a host's /boot and /lib/modules.
func hostWith(t *testing.T, versions ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, v := range versions {
		modules := filepath.Join(root, "lib/modules", v)
		for _, dir := range []string{modules, filepath.Join(root, "boot")} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range []string{filepath.Join(root, "boot/vmlinuz-"+v), filepath.Join(root, "boot/config-"+v), filepath.Join(modules, "modules.dep")} {
			if err := os.WriteFile(file, []byte(v), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestKernelsOfTheHostAreFoundNewestFirst(t *testing.T) {
	root := hostWith(t, "6.1.0-9-amd64", "6.1.0-10-amd64", "6.12.107+deb12-amd64", "5.10.0-30-amd64")
	if err := os.Remove(filepath.Join(root, "lib/modules/5.10.0-30-amd64/modules.dep")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "boot/vmlinuz-;rm"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := HostKernels(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	var versions []string
	for _, k := range got {
		versions = append(versions, k.Version)
		if k.Origin != HostOrigin || k.ModulesDigest == "" || k.Config == "" || !strings.HasSuffix(k.Image, k.Version) {
			t.Errorf("%+v", k)
		}
	}
	if want := []string{"6.12.107+deb12-amd64", "6.1.0-10-amd64", "6.1.0-9-amd64"}; !slices.Equal(versions, want) {
		t.Errorf("got %v, want %v", versions, want)
	}
	// A package that changes its modules is seen.
	if err := os.WriteFile(filepath.Join(root, "lib/modules/6.1.0-9-amd64/new.ko"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := HostKernels(t.Context(), root)
	if err != nil || again[2].ModulesDigest == got[2].ModulesDigest || again[1].ModulesDigest != got[1].ModulesDigest {
		t.Errorf("after a change: %v", err)
	}
}

func TestAPoolIsParkedOnTheKernelThatItsApplicationsNeed(t *testing.T) {
	host, old, cloud := Kernel{Version: "6.1.0-10", Origin: HostOrigin}, Kernel{Version: "6.1.0-9", Origin: "orders:1"}, Kernel{Version: "6.12.1", Origin: "web:3"}
	all := []Kernel{host, old, cloud}
	for _, c := range []struct {
		name  string
		needs []Need
		want  string
		says  string
	}{
		{"no application", nil, "6.1.0-10", "no application"},
		{"a kernel that is nowhere", []Need{{"x", "4.19", 9}}, "6.1.0-10", "no application"},
		{"one", []Need{{"orders", "6.1.0-9", 1}}, "6.1.0-9", "orders"},
		{"priority before number", []Need{{"a", "6.12.1", 1}, {"b", "6.12.1", 2}, {"orders", "6.1.0-9", 3}}, "6.1.0-9", "orders can"},
		{"number among equals", []Need{{"b", "6.12.1", 3}, {"a", "6.12.1", 1}, {"orders", "6.1.0-9", 3}}, "6.12.1", "a, b can"},
	} {
		k, why, err := ChooseKernel(c.needs, all)
		if err != nil || k.Version != c.want || !strings.Contains(why, c.says) {
			t.Errorf("%s: %s, %q, %v", c.name, k.Version, why, err)
		}
	}
	if _, _, err := ChooseKernel(nil, nil); hotspare.CodeOf(err) != hotspare.CodeInitramfs {
		t.Errorf("no kernel at all: %v", err)
	}
}

func TestVersionsAreOrderedAsPeopleDo(t *testing.T) {
	in := []string{"6.12.1", "6.1.0-9", "6.1.0-10", "6.1.0-10+b1", "6.1", "5.99"}
	slices.SortFunc(in, compareVersions)
	if want := []string{"5.99", "6.1", "6.1.0-9", "6.1.0-10", "6.1.0-10+b1", "6.12.1"}; !slices.Equal(in, want) {
		t.Errorf("%v", in)
	}
}

// An environment is served only as it was built by this appliance: another
// kernel, another archive, another manifest or another's signature is refused.
func TestOnlyWhatWasBuiltHereIsServed(t *testing.T) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, foreignKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	req := request(t)
	image := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(image, []byte("a kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	k := Kernel{Version: version, Origin: "orders:1", Image: image, ModulesDir: req.ModulesDir}
	dir := t.TempDir()
	build := func(dir string, key ed25519.PrivateKey) Environment {
		t.Helper()
		e, err := BuildEnvironment(t.Context(), k, req, dir, key)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := build(dir, private)
	if err := e.Verify(public); err != nil {
		t.Fatal(err)
	}
	if again := build(dir, private); again.Path != e.Path || !again.Archive.Reused || again.Manifest != e.Manifest {
		t.Errorf("built again: %+v", again)
	}
	if err := e.Verify(foreign); hotspare.CodeOf(err) != hotspare.CodeImageDigest {
		t.Errorf("another's key: %v", err)
	}
	other := build(t.TempDir(), foreignKey)
	for name, file := range map[string]string{"kernel": e.Kernel, "archive": e.Initrd, "manifest": e.Path} {
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		torn := bytes.Clone(whole)
		torn[len(torn)/2] ^= 1
		for _, bad := range [][]byte{torn, whole[:len(whole)-1], nil} {
			if err := os.WriteFile(file, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := e.Verify(public); hotspare.CodeOf(err) != hotspare.CodeImageDigest {
				t.Errorf("a changed %s: %v", name, err)
			}
		}
		if err := os.WriteFile(file, whole, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	swapped, err := os.ReadFile(other.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.Path, swapped, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(public); err == nil {
		t.Error("a manifest of another appliance was accepted")
	}
	if _, err := BuildEnvironment(t.Context(), k, req, dir, nil); err == nil {
		t.Error("an environment without a signature was built")
	}
}

func FuzzParseManifest(f *testing.F) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	text, err := Manifest{Version: formatVersion, Kernel: version}.sign(private)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"manifest":{},"signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := ParseManifest(b, public); err == nil && m.Kernel != version {
			t.Errorf("a manifest that nobody signed: %+v", m)
		}
	})
}

// elfWith makes an object file with one section .modinfo.
func elfWith(info string) []byte {
	names := "\x00.modinfo\x00.shstrtab\x00"
	const head, section = 64, 64
	b := make([]byte, head)
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[16:], 1)
	le.PutUint16(b[18:], 62)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[40:], uint64(head+len(info)+len(names)))
	le.PutUint16(b[52:], head)
	le.PutUint16(b[58:], section)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	b = append(append(b, info...), names...)
	put := func(name, kind, at, size int) {
		s := make([]byte, section)
		le.PutUint32(s, uint32(name))
		le.PutUint32(s[4:], uint32(kind))
		le.PutUint64(s[24:], uint64(at))
		le.PutUint64(s[32:], uint64(size))
		b = append(b, s...)
	}
	put(0, 0, 0, 0)
	put(1, 1, head, len(info))
	put(10, 3, head+len(info), len(names))
	return b
}

// A module's firmware comes along, from a folder with compressed files and links.
func TestFirmwareComesWithItsModules(t *testing.T) {
	req := request(t)
	module := filepath.Join(req.ModulesDir, "kernel/drivers/net/virtio_net.ko")
	info := "license=GPL\x00firmware=card/a.bin\x00firmware=card/b.bin\x00firmware=../../etc/passwd\x00firmware=card/gone.bin\x00"
	if err := os.WriteFile(module, elfWith(info), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "card"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "card/real.bin"), []byte("aaaa"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.bin", filepath.Join(dir, "card/a.bin")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "card/b.bin"), []byte("bbbb"), 0o644); err != nil {
		t.Fatal(err)
	}
	command(t, dir, "xz", "card/b.bin")
	req.FirmwareDir = dir
	cache := t.TempDir()
	res, err := Build(t.Context(), req, cache)
	if err != nil {
		t.Fatal(err)
	}
	got := unpack(t, res)
	if got["/lib/firmware/card/a.bin"] != "aaaa" || got["/lib/firmware/card/b.bin"] != "bbbb" {
		t.Errorf("firmware: %q, %q", got["/lib/firmware/card/a.bin"], got["/lib/firmware/card/b.bin"])
	}
	if !slices.Equal(res.Missing, []string{"card/gone.bin"}) || len(res.Firmware) != 2 {
		t.Errorf("missing %v, there %v", res.Missing, res.Firmware)
	}
	if err := os.WriteFile(filepath.Join(dir, "card/gone.bin"), []byte("cc"), 0o644); err != nil {
		t.Fatal(err)
	}
	if res, err = Build(t.Context(), req, cache); err != nil || res.Reused || len(res.Missing) != 0 {
		t.Errorf("after the file came: %+v, %v", res, err)
	}
}
