package disk

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// uevents wakes those who wait for devices: each event of the kernel's uevent
// socket is a reason to look again.
type uevents struct{ f *os.File }

func openUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	return &uevents{f: os.NewFile(uintptr(fd), "uevent")}, nil
}

func (u *uevents) close() { _ = u.f.Close() }

// next returns at the next event, or after limit: a device that is there but
// does not open yet sends no further event.
func (u *uevents) next(limit time.Duration) {
	_ = u.f.SetReadDeadline(time.Now().Add(limit))
	var buf [4096]byte
	_, _ = u.f.Read(buf[:])
}

// until calls try at once and at each event, until it returns no error or one
// that again does not accept, or ctx is done; then it gives the last error.
func until(ctx context.Context, again func(error) bool, try func() error) error {
	u, err := openUevents()
	if err != nil {
		return err
	}
	defer u.close()
	for {
		err := try()
		if err == nil || !again(err) {
			return err
		}
		if ctx.Err() != nil {
			return err
		}
		u.next(50 * time.Millisecond)
	}
}
