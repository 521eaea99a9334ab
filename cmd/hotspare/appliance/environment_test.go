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
