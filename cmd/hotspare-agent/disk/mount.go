package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
)

// deviceWait is how long a device may take from its node to its first answer.
const deviceWait = 10 * time.Second

// Partition gives the path of a partition's node: /dev/sda and 2 give /dev/sda2,
// /dev/nvme0n1 and 2 give /dev/nvme0n1p2. 0 is the whole disk.
func Partition(device string, number int) string {
	if number == 0 {
		return device
	}
	if last := device[len(device)-1]; last >= '0' && last <= '9' {
		return device + "p" + strconv.Itoa(number)
	}
	return device + strconv.Itoa(number)
}

// MountRoot mounts the image's root, waiting for its device. subvolume is of a
// btrfs; empty is its default one.
func MountRoot(ctx context.Context, device, fstype, subvolume, target string) error {
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	err := until(ctx, notYet, func() error {
		return unix.Mount(device, target, fstype, unix.MS_NOATIME, rootOptions(fstype, subvolume))
	})
	if err != nil {
		return fmt.Errorf("mount root %s (%s): %w", device, fstype, err)
	}
	return nil
}

// rootOptions are the mount options of a root.
func rootOptions(fstype, subvolume string, more ...string) string {
	if fstype == "btrfs" && subvolume != "" {
		more = append(more, "subvol="+subvolume)
	}
	return strings.Join(more, ",")
}

// notYet says whether a device may only need a little longer.
func notYet(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.ENXIO, unix.ENODEV, unix.EIO, unix.ENOMEDIUM, unix.EBUSY, unix.ENOTBLK} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Volume is a volume to be mounted.
type Volume struct {
	Name   string
	Device string
	Format string // made when the volume is blank; empty: never
	Target string
	Owner  string // user[:group] of a fresh file system's top folder
	Ro     bool
}

// Mount formats a blank volume if it is to be formatted, checks an unclean file
// system and mounts it. A volume that is to be formatted and holds something
// else than a file system is refused with CodeNotBlank.
func Mount(ctx context.Context, v Volume) error {
	var fs Filesystem
	wait, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	err := until(wait, notYet, func() (err error) {
		fs, err = probeDevice(v.Device)
		return err
	})
	if err != nil {
		return fmt.Errorf("volume %s: %w", v.Name, err)
	}
	action, err := plan(v, fs)
	if err != nil {
		return err
	}
	switch action {
	case actFormat:
		if err := run(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-L", label(v.Name), v.Device); err != nil {
			return fmt.Errorf("format volume %s: %w", v.Name, err)
		}
		fs.Type = "ext4"
	case actCheck:
		if err := check(ctx, v); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(v.Target, 0o755); err != nil {
		return err
	}
	flags := uintptr(unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID)
	if v.Ro {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(v.Device, v.Target, fs.Type, flags, ""); err != nil {
		return fmt.Errorf("mount volume %s (%s) at %s: %w", v.Name, fs.Type, v.Target, err)
	}
	if v.Ro {
		return nil
	}
	return own(v)
}

type action int

const (
	actMount action = iota
	actFormat
	actCheck
)

// plan decides what a volume needs before it is mounted.
func plan(v Volume, fs Filesystem) (action, error) {
	where := fmt.Sprintf("volume %s (%s)", v.Name, v.Device)
	switch {
	case fs.Type != "" && fs.Unclean && !v.Ro:
		return actCheck, nil
	case fs.Type != "":
		return actMount, nil
	case v.Format == "":
		return 0, &hotspare.Error{
			Code: hotspare.CodeOnlineFailed, What: "the volume holds no known file system", Where: where,
			Fix: "give the volume a format, or put a file system on it",
		}
	case v.Format != "ext4":
		return 0, &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "volumes are formatted with ext4 only", Where: where, Why: "the format is " + v.Format,
			Fix: "set format: ext4",
		}
	case v.Ro:
		return 0, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a read-only volume cannot be formatted", Where: where, Fix: "drop readOnly or format"}
	case !fs.Blank:
		return 0, &hotspare.Error{
			Code: hotspare.CodeNotBlank, What: "the volume is to be formatted and is not blank", Where: where,
			Why: "its first or last MiB holds data, but no known file system",
			Fix: "look at the data; delete the volume if nothing in it is wanted",
		}
	default:
		return actFormat, nil
	}
}

// check runs e2fsck. Its exit status is a set of bits: 1 means mended.
func check(ctx context.Context, v Volume) error {
	err := run(ctx, "e2fsck", "-p", v.Device)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil
	}
	if err != nil {
		return &hotspare.Error{
			Code: hotspare.CodeOnlineFailed, What: "the file system has errors that e2fsck does not mend by itself", Where: v.Device,
			Fix: "run e2fsck on the volume by hand", Err: err,
		}
	}
	return nil
}

// label cuts a name to what ext4 can hold.
func label(name string) string {
	if len(name) > 16 {
		return name[:16]
	}
	return name
}

// run runs a program of the image and gives its words when it fails.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := StartPlain(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return &hotspare.Error{
			Code: hotspare.CodeMissingTool, What: "the image lacks the program " + name, Fix: "install the package e2fsprogs in the image", Err: err,
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// StartPlain starts a command without what the agent has for itself: real-time
// scheduling, the memory of an I/O flusher, and the out-of-memory killer's mercy.
func StartPlain(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attr, err := unix.SchedGetAttr(0, 0)
	if err == nil && unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0) == nil {
		defer func() { _ = unix.SchedSetAttr(0, attr, 0) }()
	}
	if unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0) == nil {
		defer func() { _ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) }()
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("0"), 0)
	return nil
}

// own gives the top folder to its owner when the file system is fresh: owned by
// root and empty but for lost+found. A crash between format and own is mended
// by the next mount.
func own(v Volume) error {
	if v.Owner == "" {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(v.Target, &st); err != nil {
		return err
	}
	if st.Uid != 0 {
		return nil
	}
	entries, err := os.ReadDir(v.Target)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != "lost+found" {
			return nil
		}
	}
	uid, gid, err := owner("/", v.Owner)
	if err != nil {
		return err
	}
	return os.Chown(v.Target, uid, gid)
}

// owner looks user[:group] up in the image's own files below root; without a
// group it is the user's own.
func owner(root, text string) (uid, gid int, err error) {
	user, group, hasGroup := strings.Cut(text, ":")
	entry, err := lookup(filepath.Join(root, "etc/passwd"), user, 4)
	if err != nil {
		return 0, 0, err
	}
	if uid, err = strconv.Atoi(entry[2]); err != nil {
		return 0, 0, fmt.Errorf("user %s: %w", user, err)
	}
	if gid, err = strconv.Atoi(entry[3]); err != nil {
		return 0, 0, fmt.Errorf("user %s: %w", user, err)
	}
	if !hasGroup {
		return uid, gid, nil
	}
	if entry, err = lookup(filepath.Join(root, "etc/group"), group, 3); err != nil {
		return 0, 0, err
	}
	if gid, err = strconv.Atoi(entry[2]); err != nil {
		return 0, 0, fmt.Errorf("group %s: %w", group, err)
	}
	return uid, gid, nil
}

func lookup(file, name string, fields int) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		entry := strings.Split(strings.TrimSpace(line), ":")
		if entry[0] == name && len(entry) >= fields {
			return entry, nil
		}
	}
	return nil, fmt.Errorf("%s has no %q", file, name)
}

// Mounted says whether target is a mount point.
func Mounted(target string) (bool, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	return mountedIn(string(text), target), nil
}

func mountedIn(mountinfo, target string) bool {
	target = filepath.Clean(target)
	for line := range strings.Lines(mountinfo) {
		if fields := strings.Fields(line); len(fields) > 4 && unescape(fields[4]) == target {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Unmount unmounts target, trying again while it is busy, until ctx is done.
// One that is not mounted is no failure. It is never detached lazily: a release
// attests that nothing writes any more.
func Unmount(ctx context.Context, target string) error {
	for {
		err := unix.Unmount(target, 0)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", target, err)
		case <-time.After(100 * time.Millisecond): // the kernel tells nobody when it is no longer busy
		}
	}
}
