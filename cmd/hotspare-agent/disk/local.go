package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directAlign is what O_DIRECT asks of offsets, lengths and memory.
const directAlign = 4096

// Local is a local disk, opened for itself alone: one that is mounted or part of
// an array does not open.
type Local struct {
	Path  string
	Size  int64
	Block int64 // bytes of a logical sector

	plain, direct *os.File
}

// OpenLocal opens a disk. What is written with WriteAt passes the page cache
// only where O_DIRECT cannot be.
func OpenLocal(path string) (*Local, error) {
	plain, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	direct, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.Join(err, plain.Close())
	}
	l := &Local{Path: path, plain: plain, direct: direct}
	if l.Size, err = plain.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	sector, err := unix.IoctlGetInt(int(plain.Fd()), unix.BLKSSZGET)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sector size of %s: %w", path, err), l.Close())
	}
	l.Block = int64(sector)
	return l, nil
}

// Close closes the disk.
func (l *Local) Close() error { return errors.Join(l.direct.Close(), l.plain.Close()) }

// ReadAt reads from the disk itself where offsets and memory allow it.
func (l *Local) ReadAt(b []byte, at int64) (int, error) {
	if takesDirect(b, at) {
		return l.direct.ReadAt(b, at)
	}
	return l.plain.ReadAt(b, at)
}

// WriteAt writes to the disk itself where offsets and memory allow it.
func (l *Local) WriteAt(b []byte, at int64) (int, error) {
	if takesDirect(b, at) {
		return l.direct.WriteAt(b, at)
	}
	return l.plain.WriteAt(b, at)
}

// Sync makes durable what was written.
func (l *Local) Sync() error { return l.plain.Sync() }

// Zero makes a range read as zeros, by the disk itself if it can.
func (l *Local) Zero(at, length int64) error {
	if at%l.Block == 0 && length%l.Block == 0 {
		span := [2]uint64{uint64(at), uint64(length)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, l.plain.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
		if errno == 0 {
			return nil
		}
		if errno != unix.EOPNOTSUPP && errno != unix.ENOTTY {
			return errno
		}
	}
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if _, err := l.plain.WriteAt(zeros[:n], at); err != nil {
			return err
		}
		at, length = at+n, length-n
	}
	return nil
}

var zeros [1 << 20]byte

// Reread lets the kernel look for partitions anew.
func (l *Local) Reread() error {
	return unix.IoctlSetInt(int(l.plain.Fd()), unix.BLKRRPART, 0)
}

// AddPartition gives the kernel a partition that no table on the disk tells of. One
// that it has already is left as it is.
func (l *Local) AddPartition(number int, at, length int64) error {
	p := unix.BlkpgPartition{Start: at, Length: length, Pno: int32(number)}
	arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(p)), Data: (*byte)(unsafe.Pointer(&p))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, l.plain.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 && errno != unix.EBUSY {
		return fmt.Errorf("partition %d of %s: %w", number, l.Path, errno)
	}
	return nil
}

func takesDirect(b []byte, at int64) bool {
	return len(b) > 0 && at%directAlign == 0 && len(b)%directAlign == 0 && uintptr(unsafe.Pointer(&b[0]))%directAlign == 0
}

// Part is a range of a disk: what an image is written to.
type Part struct {
	Disk       *Local
	At, Length int64
	Head       int64 // so many bytes of the part are not at At, but
	HeadAt     int64 // here

	mu sync.Mutex // the page cache's turn: an unaligned end
}

// ReadAt reads at an offset of the part.
func (p *Part) ReadAt(b []byte, at int64) (int, error) {
	if err := p.check(at, int64(len(b))); err != nil {
		return 0, err
	}
	if at >= p.Head {
		return p.Disk.ReadAt(b, p.At+at)
	}
	k := min(int64(len(b)), p.Head-at)
	n, err := p.Disk.ReadAt(b[:k], p.HeadAt+at)
	if err != nil || k == int64(len(b)) {
		return n, err
	}
	rest, err := p.Disk.ReadAt(b[k:], p.At+p.Head)
	return n + rest, err
}

// WriteAt writes at an offset of the part.
func (p *Part) WriteAt(b []byte, at int64) (int, error) {
	if err := p.check(at, int64(len(b))); err != nil {
		return 0, err
	}
	if at >= p.Head {
		return p.write(b, p.At+at)
	}
	k := min(int64(len(b)), p.Head-at)
	n, err := p.write(b[:k], p.HeadAt+at)
	if err != nil || k == int64(len(b)) {
		return n, err
	}
	rest, err := p.write(b[k:], p.At+p.Head)
	return n + rest, err
}

func (p *Part) write(b []byte, at int64) (int, error) {
	if !takesDirect(b, at) {
		p.mu.Lock()
		defer p.mu.Unlock()
	}
	return p.Disk.WriteAt(b, at)
}

// Zero makes a range of the part read as zeros.
func (p *Part) Zero(at, length int64) error {
	if err := p.check(at, length); err != nil {
		return err
	}
	if at < p.Head {
		k := min(length, p.Head-at)
		if err := p.Disk.Zero(p.HeadAt+at, k); err != nil {
			return err
		}
		at, length = at+k, length-k
	}
	if length == 0 {
		return nil
	}
	return p.Disk.Zero(p.At+at, length)
}

func (p *Part) check(at, length int64) error {
	if at < 0 || length < 0 || at > p.Length || length > p.Length-at {
		return fmt.Errorf("%d bytes at %d are outside the %d bytes of the part", length, at, p.Length)
	}
	return nil
}

// Holds says in a word what is on a device: "blank", a file system, "gpt", "mbr",
// or "data".
func Holds(dev io.ReaderAt, size int64) (string, error) {
	fs, err := Probe(dev, size)
	switch {
	case err != nil:
		return "", err
	case fs.Blank:
		return "blank", nil
	case fs.Type != "":
		return fs.Type, nil
	}
	head := make([]byte, 8192)
	if _, err := dev.ReadAt(head, 0); err != nil {
		return "", err
	}
	switch {
	case string(head[512:520]) == "EFI PART", string(head[4096:4104]) == "EFI PART":
		return "gpt", nil
	case head[510] == 0x55 && head[511] == 0xaa:
		return "mbr", nil
	default:
		return "data", nil
	}
}
