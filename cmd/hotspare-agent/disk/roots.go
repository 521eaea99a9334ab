package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Overlay mounts a root that is read from lower, which is mounted already, and
// written to memory: target is a fresh root for each start, and lower stays as it
// is. work is a folder for the memory's own mount.
func Overlay(lower, work, target string) error {
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", work, "tmpfs", unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("memory for what the root writes: %w", err)
	}
	upper, scratch := filepath.Join(work, "upper"), filepath.Join(work, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(scratch, 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("overlay", target, "overlay", unix.MS_NOATIME, "lowerdir="+lower+",upperdir="+upper+",workdir="+scratch); err != nil {
		return fmt.Errorf("mount the root over %s: %w", lower, err)
	}
	return nil
}

// MountPristine mounts a device at target so that not a byte of it changes: the
// device itself is made read-only, and a journal is not replayed.
func MountPristine(device, fstype, subvolume, target string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	err = unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 1)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make %s read-only: %w", device, err)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	var more []string
	switch fstype {
	case "ext4":
		more = []string{"noload"}
	case "xfs":
		more = []string{"norecovery", "nouuid"}
	case "btrfs":
		more = []string{"rescue=nologreplay"}
	}
	if err := unix.Mount(device, target, fstype, unix.MS_RDONLY|unix.MS_NOATIME, rootOptions(fstype, subvolume, more...)); err != nil {
		return fmt.Errorf("mount %s (%s) read-only: %w", device, fstype, err)
	}
	return nil
}

const loopControl = "/dev/loop-control"

// Loop makes a block device of a file, read-only if asked, with the partitions
// that are in it.
func Loop(f *os.File, readOnly bool) (string, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("the kernel has no loop devices: %w", err)
	}
	defer control.Close()
	for range 16 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return "", fmt.Errorf("a free loop device: %w", err)
		}
		device := "/dev/loop" + strconv.Itoa(n)
		flag := os.O_RDWR
		config := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_PARTSCAN}}
		if readOnly {
			flag = os.O_RDONLY
			config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		}
		loop, err := os.OpenFile(device, flag|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		_ = loop.Close()
		if errors.Is(err, unix.EBUSY) {
			continue // somebody was faster
		}
		if err != nil {
			return "", fmt.Errorf("configure %s: %w", device, err)
		}
		return device, nil
	}
	return "", errors.New("no loop device stays free")
}
