package appliance

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"hotspare"
	"hotspare/boot/standby"
)

func TestTheKeyOfTheEnvironmentsIsDrawnOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "environment.key")
	first, err := environmentKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := environmentKey(path)
	if err != nil || !bytes.Equal(first, again) {
		t.Fatalf("after a restart it is another key, %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("nothing of sense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := environmentKey(path); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
		t.Fatalf("a damaged key: %v", err)
	}
}

func TestAHostWithoutAKernelSaysWhatToDo(t *testing.T) {
	h, err := openHostEnvironment(Config{State: t.TempDir()}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h.root = t.TempDir()
	if _, err := h.newest(t.Context()); hotspare.CodeOf(err) != hotspare.CodeMissingTool {
		t.Fatalf("newest: %v", err)
	}
	if _, err := h.get(t.Context(), "6.1.0-1-amd64"); hotspare.CodeOf(err) != hotspare.CodeMissingTool {
		t.Fatalf("a release that is gone: %v", err)
	}
}

// What is served is what was signed here: a manifest that somebody else wrote, or
// none, opens nothing.
func TestAnEnvironmentThatSomebodyChangedIsNotServed(t *testing.T) {
	h, err := openHostEnvironment(Config{State: t.TempDir()}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.manifest")
	h.built["6.1"] = standby.Environment{Path: path}
	if _, err := h.get(t.Context(), "6.1"); err == nil {
		t.Fatal("an environment without its manifest is served")
	}
	if err := os.WriteFile(path, []byte(`{"manifest":{"version":1,"kernel":"6.1"},"signature":"AAAA"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.get(t.Context(), "6.1"); err == nil {
		t.Fatal("a manifest with a foreign signature is believed")
	}
}

// The newest kernel that has its modules is taken, by the numbers of its release.
func TestTheHostsNewestKernelIsTaken(t *testing.T) {
	h, err := openHostEnvironment(Config{State: t.TempDir()}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h.root = t.TempDir()
	for _, v := range []string{"6.1.0-9-amd64", "6.9.1", "6.10.0-1-amd64", "6.11.0"} {
		modules := filepath.Join(h.root, "lib/modules", v)
		for _, dir := range []string{modules, filepath.Join(h.root, "boot")} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		files := []string{filepath.Join(h.root, "boot", "vmlinuz-"+v)}
		if v != "6.11.0" { // without modules
			files = append(files, filepath.Join(modules, "modules.dep"))
		}
		for _, f := range files {
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if k, err := h.newest(t.Context()); err != nil || k.Version != "6.10.0-1-amd64" {
		t.Fatalf("%+v, %v", k, err)
	}
}
