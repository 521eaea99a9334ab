package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Filesystem is what a volume's first bytes say.
type Filesystem struct {
	Type    string // ext4 (2 and 3 as well), xfs, btrfs; empty: none known
	Blank   bool   // the first and the last MiB are zero
	Unclean bool   // ext4 only: errors are noted, or it was not unmounted and has no journal
}

const probeSize = 1 << 20

// Offsets from the start of the volume.
const (
	extSuper        = 1024
	extMagic        = extSuper + 0x38 // 16 bits, little endian
	extState        = extSuper + 0x3a // 16 bits: 1 valid, 2 errors
	extCompat       = extSuper + 0x5c // 32 bits: 4 has a journal
	btrfsMagic      = 0x10040
	extMagicValue   = 0xef53
	extStateValid   = 1
	extStateErrors  = 2
	extHasJournal   = 4
	xfsMagicText    = "XFSB"
	btrfsMagicText  = "_BHRfS_M"
	smallestDevSize = probeSize
)

// Probe reads the first and the last MiB of a device of the given size.
func Probe(dev io.ReaderAt, size int64) (Filesystem, error) {
	if size < smallestDevSize {
		return Filesystem{}, fmt.Errorf("the device has %d bytes, less than 1 MiB", size)
	}
	first := make([]byte, probeSize)
	if _, err := dev.ReadAt(first, 0); err != nil {
		return Filesystem{}, fmt.Errorf("read the first MiB: %w", err)
	}
	fs := identify(first)
	if fs.Type != "" || !zero(first) {
		return fs, nil
	}
	last := make([]byte, probeSize)
	if _, err := dev.ReadAt(last, size-probeSize); err != nil && !errors.Is(err, io.EOF) {
		return Filesystem{}, fmt.Errorf("read the last MiB: %w", err)
	}
	fs.Blank = zero(last)
	return fs, nil
}

// identify looks for magic numbers in a volume's first MiB.
func identify(first []byte) Filesystem {
	if len(first) < btrfsMagic+len(btrfsMagicText) {
		return Filesystem{}
	}
	switch {
	case binary.LittleEndian.Uint16(first[extMagic:]) == extMagicValue:
		state := binary.LittleEndian.Uint16(first[extState:])
		journal := binary.LittleEndian.Uint32(first[extCompat:])&extHasJournal != 0
		return Filesystem{
			Type: "ext4",
			// With a journal the kernel replays it at the mount; e2fsck is
			// for what the journal does not mend.
			Unclean: state&extStateErrors != 0 || (!journal && state&extStateValid == 0),
		}
	case string(first[:len(xfsMagicText)]) == xfsMagicText:
		return Filesystem{Type: "xfs"}
	case string(first[btrfsMagic:btrfsMagic+len(btrfsMagicText)]) == btrfsMagicText:
		return Filesystem{Type: "btrfs"}
	default:
		return Filesystem{}
	}
}

func zero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// probeDevice probes a block device by its path.
func probeDevice(path string) (Filesystem, error) {
	f, err := os.Open(path)
	if err != nil {
		return Filesystem{}, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Filesystem{}, err
	}
	return Probe(f, size)
}
