package pid1

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Paths that the agent and its parent share.
const (
	RunDir    = "/run/hotspare"
	AgentPath = RunDir + "/agent"
	NewRoot   = "/newroot"
)

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// The kernel's file systems, and /run. /run is executable, since the agent
// itself lies there.
var kernelMounts = []mount{
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
	{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
}

// Mount mounts the kernel's file systems and makes the agent's own folders.
func Mount() error {
	for _, m := range kernelMounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	for _, dir := range []string{NewRoot, RunDir, RunDir + "/live"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// SwitchRoot moves the kernel's file systems below newRoot, makes newRoot the
// root and enters it. It returns in the new root; the caller executes the image's
// init, and the agent empties the initramfs.
func SwitchRoot(newRoot string) error {
	for _, m := range kernelMounts {
		target := newRoot + m.target
		if err := os.MkdirAll(target, 0o755); err != nil {
			return fmt.Errorf("the image's root lacks %s: %w", m.target, err)
		}
		if err := unix.Mount(m.target, target, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m.target, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// holdInitramfs opens the initramfs and gives what empties it, which also works
// when it is the root no more. Nothing is deleted when the root is not a file
// system in memory, and never anything outside it.
func holdInitramfs() (empty func(), err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return nil, err
	}
	if !inMemory(int64(fs.Type)) {
		return nil, fmt.Errorf("the root is no initramfs (type %#x): not emptied", fs.Type)
	}
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, errors.Join(err, unix.Close(root))
	}
	return func() { removeBelow(root, st.Dev) }, nil
}

// inMemory says whether a file system's magic number is that of an initramfs.
func inMemory(magic int64) bool { return magic == unix.RAMFS_MAGIC || magic == unix.TMPFS_MAGIC }

// removeBelow deletes what lies below the directory dir on the device dev, and
// closes dir.
func removeBelow(dir int, dev uint64) {
	f := os.NewFile(uintptr(dir), "initramfs")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Dev != dev {
			continue
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			_ = unix.Unlinkat(dir, name, 0)
			continue
		}
		if sub, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			removeBelow(sub, dev)
		}
		_ = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
}
