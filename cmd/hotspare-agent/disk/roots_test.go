package disk

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// The root of a btrfs may lie in a subvolume, and the default one be another.
func TestTheRootIsTheSubvolumeThatIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.raw")
	command(t, "truncate", "-s", "160M", file)
	command(t, "mkfs.btrfs", "-q", file)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	device, err := Loop(f, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the kernel gives the device to others as it is
		command(t, "blockdev", "--setrw", device)
		command(t, "losetup", "-d", device)
	})
	dir := t.TempDir()
	inside := func(mount func() error, do func()) {
		t.Helper()
		if err := mount(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Fatal(err)
			}
		}()
		do()
	}
	inside(func() error { return MountRoot(t.Context(), device, "btrfs", "", dir) }, func() {
		command(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@"))
		command(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@home"))
		if err := os.WriteFile(filepath.Join(dir, "@", "here"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	found := func() {
		t.Helper()
		if _, err := os.Stat(filepath.Join(dir, "here")); err != nil {
			t.Error("another subvolume is mounted:", err)
		}
	}
	inside(func() error { return MountRoot(t.Context(), device, "btrfs", "@", dir) }, found)
	inside(func() error { return MountPristine(device, "btrfs", "@", dir) }, func() {
		found()
		if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err == nil {
			t.Error("a pristine root can be written")
		}
	})
	if got := rootOptions("ext4", "@", "noload"); got != "noload" {
		t.Errorf("an ext4 has no subvolumes: %q", got)
	}
}
