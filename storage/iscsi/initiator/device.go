package initiator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hotspare"
)

// device is the block device of a session's logical unit.
type device struct {
	path string // "/dev/sda"
	wwid string
}

// attach lets the SCSI layer look for the one logical unit and waits for its
// block device.
func (s *Session) attach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.initiator.opts.DeviceTimeout)
	defer cancel()
	u, err := openUevents() // before the scan: nothing is missed
	if err != nil {
		return s.noDevice("the kernel's device events cannot be read", err)
	}
	defer u.Close()
	// The scan talks to the target and cannot be broken off but by the end of
	// the session, which follows when we return early.
	scanned := make(chan error, 1)
	go func() { scanned <- s.kernel.scan(s.target.LUN) }()
	select {
	case err = <-scanned:
	case <-ctx.Done():
		return s.noDevice("the scan for the logical unit did not end", context.Cause(ctx))
	}
	if err != nil {
		return s.noDevice("the scan for the logical unit failed", err)
	}
	unit, err := s.kernel.unit(s.target.LUN)
	if err != nil {
		return s.noDevice("the target offers no such logical unit", err)
	}
	if kind := readLine(filepath.Join(unit, "type")); kind != "0" {
		return s.noDevice("the logical unit is not a disk", fmt.Errorf("SCSI device type %q", kind))
	}
	name, err := u.wait(ctx, unit)
	if err != nil {
		return s.noDevice("the logical unit did not become a block device", err)
	}
	s.device = device{path: "/dev/" + name, wwid: readLine(filepath.Join(unit, "wwid"))}
	return nil
}

func (s *Session) noDevice(what string, err error) error {
	return &hotspare.Error{
		Code: hotspare.CodeNoDevice, What: what,
		Where: fmt.Sprintf("logical unit %d of %s", s.target.LUN, s.target.IQN),
		Fix:   "check that the kernel module sd_mod is loaded, and the kernel's messages (dmesg)", Err: err,
	}
}

// scan looks for one logical unit behind the session's host.
func (k *kernelSession) scan(lun uint64) error {
	path := fmt.Sprintf("/sys/class/scsi_host/host%d/scan", k.host)
	return os.WriteFile(path, fmt.Appendf(nil, "- - %d", lun), 0)
}

// unit gives the sysfs directory of the logical unit, resolved.
func (k *kernelSession) unit(lun uint64) (string, error) {
	found, err := filepath.Glob(fmt.Sprintf("/sys/class/iscsi_session/session%d/device/target*/%d:*:%d", k.sid, k.host, lun))
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		return "", errors.New("the target did not name it in its answer")
	}
	return filepath.EvalSymlinks(found[0])
}

// readLine gives a sysfs attribute, or "".
func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// uevents is the kernel's stream of device events (NETLINK_KOBJECT_UEVENT).
type uevents struct{ *os.File }

func openUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &uevents{os.NewFile(uintptr(fd), "device events")}, nil
}

// wait gives the name of the whole disk that is added below the sysfs directory
// unit. The kernel sends the event when the disk can be opened and its partitions
// are known: looking into sysfs alone would find it too early.
func (u *uevents) wait(ctx context.Context, unit string) (string, error) {
	stop := context.AfterFunc(ctx, func() { u.Close() })
	defer stop()
	devpath := strings.TrimPrefix(unit, "/sys") + "/block/"
	buf := make([]byte, 16<<10)
	for {
		n, err := u.Read(buf)
		switch {
		case ctx.Err() != nil:
			return "", fmt.Errorf("no event of the kernel: %w", context.Cause(ctx))
		case errors.Is(err, unix.ENOBUFS): // events were dropped, ours may be among them
			if names, _ := filepath.Glob(unit + "/block/*"); len(names) > 0 {
				return filepath.Base(names[0]), nil
			}
		case err != nil:
			return "", err
		default:
			if name, ok := addedDisk(buf[:n], devpath); ok {
				return name, nil
			}
		}
	}
}

// addedDisk reads one event ("add@DEVPATH", then KEY=value, each with a NUL) and
// gives the disk's name when it is the adding of a disk at devpath.
func addedDisk(b []byte, devpath string) (string, bool) {
	head, _, _ := bytes.Cut(b, []byte{0})
	action, path, ok := strings.Cut(string(head), "@")
	if !ok || action != "add" {
		return "", false
	}
	name, ok := strings.CutPrefix(path, devpath)
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", false
	}
	return name, true
}
