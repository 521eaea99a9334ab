package kexec

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLockdownModeIsTheBracketedWord(t *testing.T) {
	for text, want := range map[string]string{
		"[none] integrity confidentiality": "none", "none [integrity] confidentiality": "integrity", "": "", "none": "", "[]": "",
	} {
		if got := chosen(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// Every virtio device but the console is taken from its driver.
func TestVirtioDevicesAreReset(t *testing.T) {
	root := t.TempDir()
	bus := filepath.Join(root, "devices")
	for device, driver := range map[string]string{"virtio0": "virtio_net", "virtio1": "virtio_console", "virtio2": "", "virtio3": "virtio_rng"} {
		if err := os.MkdirAll(filepath.Join(bus, device), 0o755); err != nil {
			t.Fatal(err)
		}
		if driver == "" {
			continue
		}
		at := filepath.Join(root, "drivers", driver)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "unbind"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(at, filepath.Join(bus, device, "driver")); err != nil {
			t.Fatal(err)
		}
	}
	if err := quiesce(bus); err != nil {
		t.Fatal(err)
	}
	for driver, want := range map[string]string{"virtio_net": "virtio0", "virtio_rng": "virtio3", "virtio_console": ""} {
		got, err := os.ReadFile(filepath.Join(root, "drivers", driver, "unbind"))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", driver, got, err)
		}
	}
	if err := quiesce(filepath.Join(root, "none")); err != nil {
		t.Errorf("without virtio: %v", err)
	}
}
