package cow

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"hotspare/storage"
)

// passingFile is a File that can write what nobody is expected to read soon. A
// file layer that lacks it keeps such data in memory as any other.
type passingFile interface {
	// WriteAtPassing is WriteAt, and as durable as that before a Sync: not at
	// all. The data leaves the page cache when it is on the disk.
	WriteAtPassing(p []byte, off int64) (int, error)
}

// WriteAtPassing is pwritev2 with RWF_DONTCACHE, where kernel and file system
// know that (recent ones do: ext4, XFS); elsewhere it is WriteAt.
func (f osFile) WriteAtPassing(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		rest := p[done:]
		iov := unix.Iovec{Base: unsafe.SliceData(rest), Len: uint64(len(rest))}
		n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, f.fd, uintptr(unsafe.Pointer(&iov)), 1, uintptr(off+int64(done)), 0, unix.RWF_DONTCACHE)
		switch {
		case errno == unix.EINTR:
		case errno == unix.EOPNOTSUPP || errno == unix.EINVAL || errno == unix.ENOSYS || errno == 0 && n == 0:
			m, err := f.WriteAt(rest, off+int64(done))
			return done + m, err
		case errno != 0:
			return done, errno
		default:
			done += int(n)
		}
	}
	return done, nil
}

// OpenToFill is OpenVolume for who writes a whole volume that nobody waits for,
// an import. What it writes does not stay in memory, where gigabytes of it would
// push out what running nodes read, and it goes to the disk at once: written back
// in one go later, it would hold up their flushes. All else is as with OpenVolume.
func (s *Store) OpenToFill(name string) (storage.Device, error) {
	d, err := s.openDevice(name)
	if err != nil {
		return nil, err
	}
	d.passing = true
	return d, nil
}

// writeData writes to the data file.
func (s *Store) writeData(p []byte, off int64, passing bool) (int, error) {
	if f, ok := s.data.(passingFile); ok && passing {
		return f.WriteAtPassing(p, off)
	}
	return s.data.WriteAt(p, off)
}
