package pid1

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestModulesListIsRead(t *testing.T) {
	got, err := parseModules(strings.NewReader("# in order\n/lib/modules/6.1/a.ko\n\nlib/modules/6.1/b.ko\n"))
	if want := []string{"/lib/modules/6.1/a.ko", "/lib/modules/6.1/b.ko"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestModulesThatAreNotThereAreTold(t *testing.T) {
	loaded, failures := LoadModules(t.TempDir() + "/none")
	if loaded != 0 || len(failures) != 1 {
		t.Errorf("%d loaded, %v", loaded, failures)
	}
}

func TestPID1UnderstandsTheAgentsWord(t *testing.T) {
	for _, c := range []struct {
		line string
		want switchRequest
		ok   bool
	}{
		{"switch\t/newroot\t/sbin/init\n", switchRequest{root: "/newroot", init: "/sbin/init"}, true},
		{"switch\t/newroot\n", switchRequest{}, false},
		{"reboot\t/newroot\t/sbin/init\n", switchRequest{}, false},
		{"switch\t/newroot\t/sbin/init", switchRequest{}, false}, // the agent died in the middle
		{"", switchRequest{}, false},
	} {
		got, err := readRequest(strings.NewReader(c.line))
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("%q: %+v, %v", c.line, got, err)
		}
	}
}

// The check of what is an initramfs comes before anything is deleted.
func TestOnlyFileSystemsInMemoryAreEmptied(t *testing.T) {
	for kind, want := range map[int64]bool{unix.RAMFS_MAGIC: true, unix.TMPFS_MAGIC: true, unix.EXT4_SUPER_MAGIC: false, unix.XFS_SUPER_MAGIC: false, 0: false} {
		if got := inMemory(kind); got != want {
			t.Errorf("%#x: %v", kind, got)
		}
	}
}

func TestRemovingStaysOnItsFileSystem(t *testing.T) {
	root := t.TempDir()
	other := filepath.Join(root, "newroot")
	for _, dir := range []string{other, filepath.Join(root, "lib/modules")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", other, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(other, unix.MNT_DETACH) }()
	for _, file := range []string{filepath.Join(root, "init"), filepath.Join(root, "lib/modules/a.ko"), filepath.Join(other, "etc")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(other, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		t.Fatal(err)
	}
	removeBelow(root, st.Dev)
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != "newroot" {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(other, "etc")); err != nil {
		t.Error("a file of the new root was deleted")
	}
}
