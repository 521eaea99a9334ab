package diskimage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// file is a file without a name until it is whole. Where the file system cannot
// do that (NFS), it has a name of its own that begins with a dot and ends in
// ".partial".
type file struct {
	*os.File
	path string
	dir  *os.File
	temp string // its name meanwhile, in dir; "" for none
}

// create begins the file at path, which must not exist.
func create(path string) (*file, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, unix.EEXIST
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	f := &file{path: path, dir: dir}
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil && !isFull(err) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EROFS) {
		f.temp = "." + filepath.Base(path) + "." + strings.ToLower(rand.Text()[:8]) + ".partial"
		fd, err = unix.Openat(int(dir.Fd()), f.temp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	f.File = os.NewFile(uintptr(fd), path)
	return f, nil
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// free gives the bytes that are free on the file system.
func (f *file) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("free space: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// commit makes the file durable and gives it its name, unless something has
// that name by now. It gives the bytes that the file occupies.
func (f *file) commit() (int64, error) {
	if err := f.Sync(); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	name, dir := filepath.Base(f.path), int(f.dir.Fd())
	var err error
	if f.temp == "" {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), dir, name, unix.AT_SYMLINK_FOLLOW)
	} else {
		err = unix.Linkat(dir, f.temp, dir, name, 0)
	}
	if err != nil {
		return 0, err
	}
	err = f.dir.Sync()
	if err != nil { // it may not be there after a power loss: then it is not there now
		return 0, errors.Join(err, unix.Unlinkat(dir, name, 0))
	}
	return st.Blocks * 512, f.discard()
}

// discard closes what is open and removes the name that the file had meanwhile.
func (f *file) discard() error {
	var errs []error
	if f.temp != "" {
		errs = append(errs, unix.Unlinkat(int(f.dir.Fd()), f.temp, 0))
		f.temp = ""
	}
	if f.dir != nil {
		errs = append(errs, f.File.Close(), f.dir.Close())
		f.dir = nil
	}
	return errors.Join(errs...)
}
