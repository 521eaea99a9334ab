package images

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"

	"github.com/klauspost/compress/zstd"
)

// btrfsPlace is where a name leads: to an inode of a subvolume.
type btrfsPlace struct {
	tree  uint64
	inode uint64
}

func (f *btrfsFS) top() (*file, error) {
	return f.follow(entry{own: btrfsPlace{f.start, btrfsFirstFree}})
}

func (f *btrfsFS) follow(e entry) (*file, error) {
	at := e.own.(btrfsPlace)
	tree, err := f.subvolume(at.tree)
	if err != nil {
		return nil, err
	}
	var x *file
	key := btrfsKey{at.inode, btrfsInodeItem, 0}
	err = f.walk(tree, key, key, func(_ btrfsKey, data []byte) error {
		if len(data) < 160 {
			return fmt.Errorf("inode %d is damaged", at.inode)
		}
		le := binary.LittleEndian
		x = &file{number: at.inode, mode: uint16(le.Uint32(data[52:])), size: int64(le.Uint64(data[16:])), own: at}
		return nil
	})
	if err == nil && (x == nil || x.size < 0) {
		err = fmt.Errorf("inode %d of subvolume %d is missing or damaged", at.inode, at.tree)
	}
	return x, err
}

func (f *btrfsFS) entries(dir *file) ([]entry, error) {
	if !dir.is(modeDir) {
		return nil, fs.ErrNotExist
	}
	at := dir.own.(btrfsPlace)
	tree, err := f.subvolume(at.tree)
	if err != nil {
		return nil, err
	}
	var all []entry
	err = f.walk(tree, btrfsKey{at.inode, btrfsDirIndex, 0}, btrfsKey{at.inode, btrfsDirIndex, ^uint64(0)}, func(_ btrfsKey, data []byte) error {
		return btrfsNames(data, func(name string, to btrfsKey) error {
			if len(all) >= maxNames {
				return fmt.Errorf("inode %d: more than %d names", at.inode, maxNames)
			}
			e := entry{name: name, inode: to.object}
			switch to.kind {
			case btrfsInodeItem:
				e.own = btrfsPlace{at.tree, to.object}
			case btrfsRootItem:
				e.own = btrfsPlace{to.object, btrfsFirstFree}
			default:
				return fmt.Errorf("inode %d: a name leads to an item of type %d", at.inode, to.kind)
			}
			all = append(all, e)
			return nil
		})
	})
	return all, err
}

func (f *btrfsFS) target(x *file) (string, error) {
	b, err := files{f}.readAll(x, maxLinkBytes)
	return string(b), err
}

// btrfsExtent is a piece of a file.
type btrfsExtent struct {
	at, length  int64  // in the file
	disk        uint64 // 0 is a hole
	diskLength  int64
	offset      int64 // of the piece within the unpacked extent
	ram         int64 // of the unpacked extent
	compression byte
	inline      []byte
}

func (f *btrfsFS) contents(x *file) (io.ReaderAt, error) {
	at := x.own.(btrfsPlace)
	tree, err := f.subvolume(at.tree)
	if err != nil {
		return nil, err
	}
	var all []btrfsExtent
	end := int64(0)
	err = f.walk(tree, btrfsKey{at.inode, btrfsExtentData, 0}, btrfsKey{at.inode, btrfsExtentData, ^uint64(0)}, func(k btrfsKey, data []byte) error {
		e, err := parseBtrfsExtent(k.offset, data)
		switch {
		case err != nil:
			return fmt.Errorf("inode %d: %w", at.inode, err)
		case e.at < end:
			return fmt.Errorf("inode %d: its extents overlap", at.inode)
		case len(all) >= maxExtents:
			return fmt.Errorf("inode %d: more than %d extents", at.inode, maxExtents)
		}
		end = e.at + e.length
		all = append(all, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &btrfsReader{f: f, size: x.size, extents: all, unpacked: -1}, nil
}

func parseBtrfsExtent(off uint64, b []byte) (btrfsExtent, error) {
	le := binary.LittleEndian
	damaged := errors.New("an extent is damaged")
	if len(b) < 21 || off > 1<<60 {
		return btrfsExtent{}, damaged
	}
	e := btrfsExtent{at: int64(off), ram: int64(le.Uint64(b[8:])), compression: b[16]}
	if b[17] != 0 || le.Uint16(b[18:]) != 0 || e.compression > 3 {
		return e, fmt.Errorf("an extent is packed in a way that is not known (%d, %d)", b[16], b[17])
	}
	if e.compression != 0 && (e.ram < 0 || e.ram > maxBtrfsExtent) {
		return e, damaged
	}
	switch b[20] {
	case 0: // inline
		e.inline, e.length = b[21:], e.ram
		if e.compression == 0 {
			e.length = int64(len(e.inline))
		}
		return e, nil
	case 1, 2:
		if len(b) < 53 {
			return e, damaged
		}
		e.disk, e.diskLength, e.offset, e.length = le.Uint64(b[21:]), int64(le.Uint64(b[29:])), int64(le.Uint64(b[37:])), int64(le.Uint64(b[45:]))
		if e.length <= 0 || e.length > 1<<60 || e.offset < 0 || e.offset > 1<<60 || e.compression != 0 && (e.diskLength <= 0 || e.diskLength > maxBtrfsExtent) {
			return e, damaged
		}
		if b[20] == 2 { // allocated but never written: reads as zeros
			e.disk = 0
		}
		return e, nil
	}
	return e, damaged
}

// btrfsReader reads one file. It keeps the extent that it unpacked last.
type btrfsReader struct {
	f        *btrfsFS
	size     int64
	extents  []btrfsExtent
	unpacked int
	data     []byte
}

func (r *btrfsReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= r.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > r.size-off {
		p, end = p[:r.size-off], io.EOF
	}
	clear(p)
	first := sort.Search(len(r.extents), func(i int) bool { return r.extents[i].at+r.extents[i].length > off })
	for i := first; i < len(r.extents); i++ {
		e := r.extents[i]
		from, to := max(e.at, off), min(e.at+e.length, off+int64(len(p)))
		if from >= to {
			break
		}
		if err := r.piece(p[from-off:to-off], i, from-e.at); err != nil {
			return 0, err
		}
	}
	return len(p), end
}

// piece reads from one extent, at an offset within its piece of the file.
func (r *btrfsReader) piece(p []byte, i int, off int64) error {
	e := r.extents[i]
	if e.inline == nil && e.disk == 0 {
		return nil
	}
	if e.compression == 0 {
		if e.inline != nil {
			copy(p, e.inline[min(off, int64(len(e.inline))):])
			return nil
		}
		return r.f.read(p, e.disk+uint64(e.offset+off))
	}
	if r.unpacked != i {
		packed := e.inline
		if packed == nil {
			packed = make([]byte, e.diskLength)
			if err := r.f.read(packed, e.disk); err != nil {
				return err
			}
		}
		data, err := unpackBtrfs(packed, e.compression, int(e.ram), int(r.f.sector))
		if err != nil {
			return fmt.Errorf("an extent cannot be unpacked: %w", err)
		}
		r.unpacked, r.data = i, data
	}
	if at := e.offset + off; at < int64(len(r.data)) {
		copy(p, r.data[at:])
	}
	return nil
}

// unpackBtrfs gives size bytes; what is missing at the end is zeros.
func unpackBtrfs(packed []byte, how byte, size, sectorSize int) ([]byte, error) {
	out := make([]byte, size)
	var src io.Reader
	switch how {
	case 1:
		z, err := zlib.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, err
		}
		src = z
	case 2:
		return out, unpackLZO(out, packed, sectorSize)
	default:
		z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(16<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		src = z
	}
	// The frame ends before the sector does; what follows it is padding.
	n, err := io.ReadFull(src, out)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && (n == 0 || !errors.Is(err, zstd.ErrMagicMismatch)) {
		return nil, err
	}
	return out, nil
}

// unpackLZO reads btrfs's frame of LZO: its length, then segments of a length and
// LZO1X data for one sector each. No length lies across the end of a sector.
func unpackLZO(out, packed []byte, sectorSize int) error {
	le := binary.LittleEndian
	if len(packed) < 4 || int64(le.Uint32(packed)) > int64(len(packed)) {
		return errors.New("an LZO frame is cut off")
	}
	total, at := int(le.Uint32(packed)), 4
	for at+4 <= total && len(out) > 0 {
		n := int(le.Uint32(packed[at:]))
		if at += 4; n > total-at || n < 0 {
			return errors.New("an LZO segment is cut off")
		}
		k, err := lzo1x(out[:min(len(out), sectorSize)], packed[at:at+n])
		if err != nil {
			return err
		}
		out, at = out[k:], at+n
		if rest := sectorSize - at%sectorSize; rest < 4 {
			at += rest
		}
	}
	return nil
}
