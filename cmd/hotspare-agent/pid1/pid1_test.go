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
		{"switch\t/newroot\t\n", switchRequest{}, false}, // an empty init is not the word to stay
		{"stay\t/newroot\n", switchRequest{root: "/newroot"}, true},
		{"stay\t/newroot\t/sbin/init\n", switchRequest{}, false},
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
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	removeBelow(fd, st.Dev)
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != "newroot" {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(other, "etc")); err != nil {
		t.Error("a file of the new root was deleted")
	}
}

// What udev would load is loaded without it: the module whose alias fits a
// device's modalias, after those that it needs.
func TestDevicesFindTheirModules(t *testing.T) {
	d := parseDrivers(`alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias virtio:d00000002v* virtio_blk
alias pci:v*d*sv*sd*bc01sc06i01* ahci
alias pci:v00001234d*sv*sd*bc*sc*i* not_in_the_archive
alias acpi*:PNP0[ABC]00:* bracket
`, `/lib/modules/6.1/kernel/e1000e/e1000e.ko: /lib/modules/6.1/kernel/ptp.ko
/lib/modules/6.1/kernel/virtio_blk.ko:
/lib/modules/6.1/kernel/ahci.ko: /lib/modules/6.1/kernel/libata.ko /lib/modules/6.1/kernel/libahci.ko
/lib/modules/6.1/kernel/bracket.ko:
`)
	for name, want := range map[string][]string{
		"pci:v00008086d000010D3sv00008086sd0000A01Fbc02sc00i00": {"e1000e"},
		"virtio:d00000002v00001AF4":                             {"virtio_blk"},
		"pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01": {"ahci"},
		"pci:v00001234d00001111sv00001AF4sd00001100bc03sc00i00": nil,
		"acpi:PNP0B00:":             {"bracket"},
		"virtio:d00000001v00001AF4": nil,
	} {
		if got := d.wanted(map[string]bool{name: true}); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if got := d.before["ahci"]; len(got) != 2 || got[0] != "/lib/modules/6.1/kernel/libata.ko" {
		t.Errorf("before ahci: %v", got)
	}
}

func TestModaliasesAreReadFromSysfs(t *testing.T) {
	root := t.TempDir()
	for at, text := range map[string]string{
		"pci/devices/0000:00:03.0/modalias": "pci:v1\n", "virtio/devices/virtio0/modalias": "virtio:d1\n", "acpi/devices/X/modalias": "acpi:X:\n",
		"usb/devices/1-1/modalias": "usb:v1\n", "pci/devices/none/other": "x",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, at)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, at), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := drivers{aliases: []alias{{"pci:v*", "a"}, {"virtio:d*", "b"}, {"acpi*:X:*", "c"}, {"pci:w*", "d"}, {"nobus:*", "e"}}}
	if got := d.modaliases(root); len(got) != 3 || !got["pci:v1"] || !got["virtio:d1"] || !got["acpi:X:"] {
		t.Errorf("got %v", got)
	}
}
