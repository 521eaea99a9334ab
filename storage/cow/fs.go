package cow

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// FileSystem is the file layer under a store. The operating system's is the
// default; tests put one in that loses, tears and fails.
type FileSystem interface {
	// Open opens the named file for reading and writing, creating it when create
	// is set. A missing file gives an error that is fs.ErrNotExist.
	Open(name string, create bool) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	// List gives the names of all files.
	List() ([]string, error)
	// SyncDir makes creations, renames and removals durable.
	SyncDir() error
	// Lock takes the store's exclusive lock; ErrLocked when another has it.
	Lock() (io.Closer, error)
}

// File is one open file of a FileSystem.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes the data durable (fdatasync).
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	// Punch gives the space of a range back; it reads as zeros afterwards.
	Punch(off, n int64) error
}

// ErrLocked says that another process has the store open.
var ErrLocked = errors.New("cow: the store is locked")

// osFS is a directory of the operating system.
type osFS struct{ dir string }

// OSFileSystem gives the file layer over a directory.
func OSFileSystem(dir string) FileSystem { return osFS{dir} }

func (o osFS) Open(name string, create bool) (File, error) {
	flags := os.O_RDWR
	if create {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(filepath.Join(o.dir, name), flags, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{File: f, fd: f.Fd(), inMemory: isInMemory(f)}, nil
}

func (o osFS) Rename(from, to string) error {
	return os.Rename(filepath.Join(o.dir, from), filepath.Join(o.dir, to))
}

func (o osFS) Remove(name string) error { return os.Remove(filepath.Join(o.dir, name)) }

func (o osFS) List() ([]string, error) {
	es, err := os.ReadDir(o.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range es {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (o osFS) SyncDir() error {
	d, err := os.Open(o.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (o osFS) Lock() (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(o.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, err
	}
	return f, nil
}

type osFile struct {
	*os.File
	fd       uintptr // of File, which the store keeps open as long as it uses it
	inMemory bool
}

func (f osFile) Sync() error {
	for {
		err := unix.Fdatasync(int(f.fd))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Punch(off, n int64) error {
	return unix.Fallocate(int(f.fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// bootID gives the identity of this boot of the machine: while it stays the
// same, the page cache holds all that a killed process wrote. Unknown is "".
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// isMissing says whether err means that a file does not exist.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// isFull says whether err means that there is no space.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// readFull reads len(p) bytes; what lies beyond the end of the file is zeros,
// as in a hole.
func readFull(f File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}
