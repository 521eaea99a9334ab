package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// fatFS reads FAT12, FAT16 and FAT32, for the EFI system partition. Names are the
// short ones, in capitals: what firmware looks for has no others. Layout:
// Microsoft, "FAT: General Overview of On-Disk Format", version 1.03.
type fatFS struct {
	r        io.ReaderAt
	size     int64
	cluster  int64 // bytes
	fatOff   int64
	bits     int // of a FAT entry
	data     int64
	clusters int64
	rootOff  int64 // FAT12 and FAT16
	rootLen  int64
	rootAt   uint32 // FAT32: first cluster
}

const maxFATChain = 1 << 20

func openFAT(r io.ReaderAt, size int64) (*fatFS, error) {
	b := make([]byte, sector)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("its first sector cannot be read: %w", err)
	}
	le := binary.LittleEndian
	bytesPer, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, fats, roots := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	sectors, fatLen := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	if fatLen == 0 {
		fatLen = int64(le.Uint32(b[36:]))
	}
	if bytesPer < 512 || bytesPer > 4096 || bytesPer&(bytesPer-1) != 0 || perCluster == 0 || perCluster&(perCluster-1) != 0 ||
		reserved == 0 || fats == 0 || fats > 4 || fatLen == 0 || sectors == 0 {
		return nil, errors.New("its first sector has impossible values")
	}
	f := &fatFS{r: r, size: min(size, sectors*bytesPer), cluster: perCluster * bytesPer, fatOff: reserved * bytesPer}
	f.rootOff, f.rootLen = (reserved+fats*fatLen)*bytesPer, roots*32
	f.data = f.rootOff + (f.rootLen+bytesPer-1)/bytesPer*bytesPer
	if f.data >= f.size {
		return nil, errors.New("its tables leave no room for data")
	}
	f.clusters = (f.size - f.data) / f.cluster
	switch {
	case f.clusters < 4085:
		f.bits = 12
	case f.clusters < 65525:
		f.bits = 16
	default:
		f.bits, f.rootAt = 32, le.Uint32(b[44:])
	}
	if roots == 0 {
		f.bits, f.rootAt = 32, le.Uint32(b[44:])
	}
	return f, nil
}

func (f *fatFS) readFull(p []byte, off int64) error {
	if off < 0 || off > f.size-int64(len(p)) {
		return fmt.Errorf("byte %d is outside of the file system", off)
	}
	n, err := f.r.ReadAt(p, off)
	if n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// next gives the cluster after c, 0 at the end.
func (f *fatFS) next(c uint32) (uint32, error) {
	b := make([]byte, 4)
	var v, end uint32
	le := binary.LittleEndian
	switch f.bits {
	case 12:
		if err := f.readFull(b[:2], f.fatOff+int64(c)*3/2); err != nil {
			return 0, err
		}
		v, end = uint32(le.Uint16(b)), 0xff8
		if c&1 != 0 {
			v >>= 4
		}
		v &= 0xfff
	case 16:
		if err := f.readFull(b[:2], f.fatOff+int64(c)*2); err != nil {
			return 0, err
		}
		v, end = uint32(le.Uint16(b)), 0xfff8
	default:
		if err := f.readFull(b, f.fatOff+int64(c)*4); err != nil {
			return 0, err
		}
		v, end = le.Uint32(b)&0x0fffffff, 0x0ffffff8
	}
	if v >= end {
		return 0, nil
	}
	return v, nil
}

// chain gives the runs of a chain of clusters, up to limit bytes.
func (f *fatFS) chain(first uint32, limit int64) ([]run, error) {
	var runs []run
	at := int64(0)
	for c, n := first, 0; c != 0 && at < limit; n++ {
		if c < 2 || int64(c)-2 >= f.clusters || n >= maxFATChain {
			return nil, fmt.Errorf("cluster %d is not possible", c)
		}
		off := f.data + (int64(c)-2)*f.cluster
		if k := len(runs) - 1; k >= 0 && runs[k].physical+runs[k].count == off {
			runs[k].count += f.cluster
		} else {
			runs = append(runs, run{at, off, f.cluster})
		}
		at += f.cluster
		var err error
		if c, err = f.next(c); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

const fatFixedRoot = ^uint64(0)

func (f *fatFS) top() (*file, error) {
	if f.bits == 32 {
		return &file{number: uint64(f.rootAt), mode: modeDir}, nil
	}
	return &file{number: fatFixedRoot, mode: modeDir}, nil
}

func (f *fatFS) follow(e entry) (*file, error) { return e.own.(*file), nil }

func (f *fatFS) contents(x *file) (io.ReaderAt, error) {
	runs, err := f.chain(uint32(x.number), x.size)
	if err != nil {
		return nil, err
	}
	return newRunFile(x.number, x.size, runs, f.readFull)
}

func (f *fatFS) target(*file) (string, error) { return "", fs.ErrInvalid }

func (f *fatFS) entries(dir *file) ([]entry, error) {
	runs := []run{{0, f.rootOff, f.rootLen}}
	if dir.number != fatFixedRoot {
		var err error
		if runs, err = f.chain(uint32(dir.number), 2<<20); err != nil { // 65536 names are the most
			return nil, err
		}
	}
	var all []entry
	seen := map[string]bool{}
	for _, r := range runs {
		b := make([]byte, r.count)
		if err := f.readFull(b, r.physical); err != nil {
			return nil, err
		}
		for ; len(b) >= 32; b = b[32:] {
			if b[0] == 0 {
				return all, nil
			}
			attributes := b[11]
			if b[0] == 0xe5 || b[0] == '.' || attributes&0x08 != 0 { // free, . and .., volume label or long name
				continue
			}
			name := shortName(b)
			if name == "" || seen[name] { // FAT has no rule that its names are good ones
				continue
			}
			seen[name] = true
			le := binary.LittleEndian
			x := &file{number: uint64(le.Uint16(b[26:])) | uint64(le.Uint16(b[20:]))<<16, mode: modeRegular, size: int64(le.Uint32(b[28:]))}
			if attributes&0x10 != 0 {
				x.mode, x.size = modeDir, 0
			}
			all = append(all, entry{name: name, inode: x.number, own: x})
		}
	}
	return all, nil
}

func shortName(b []byte) string {
	clean := func(p []byte) string {
		s := strings.TrimRight(string(p), " ")
		if strings.ContainsAny(s, "/\x00") {
			return ""
		}
		return strings.ToUpper(s)
	}
	name, ext := clean(b[:8]), clean(b[8:11])
	if name == "" {
		return ""
	}
	if ext != "" {
		name += "." + ext
	}
	return name
}
