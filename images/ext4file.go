package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

func (f *ext4FS) top() (*file, error) { return f.follow(entry{inode: ext4RootInode}) }

func (f *ext4FS) follow(e entry) (*file, error) {
	n, err := f.inode(uint32(e.inode))
	if err != nil {
		return nil, err
	}
	return &file{number: e.inode, mode: n.mode, size: n.size, own: n}, nil
}

func (f *ext4FS) contents(x *file) (io.ReaderAt, error) { return f.open(x) }

func (f *ext4FS) open(x *file) (*runFile, error) {
	runs, err := f.runs(x.own.(*inode))
	if err != nil {
		return nil, err
	}
	for i := range runs {
		runs[i].logical *= f.block
		runs[i].physical *= f.block
		runs[i].count *= f.block
	}
	return newRunFile(x.number, x.size, runs, f.readFull)
}

func (f *ext4FS) entries(dir *file) ([]entry, error) {
	if !dir.is(modeDir) {
		return nil, fs.ErrNotExist
	}
	if dir.size > maxDirectory || dir.size%f.block != 0 {
		return nil, fmt.Errorf("inode %d: a directory of %d bytes", dir.number, dir.size)
	}
	r, err := f.open(dir)
	if err != nil {
		return nil, err
	}
	var all []entry
	b := make([]byte, f.block)
	for off := int64(0); off < dir.size; off += f.block {
		if _, err := r.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("inode %d: %w", dir.number, err)
		}
		if all, err = parseDirBlock(b, all); err != nil {
			return nil, fmt.Errorf("inode %d: directory byte %d: %w", dir.number, off, err)
		}
	}
	return all, nil
}

// parseDirBlock appends the names of one directory block. Blocks of an indexed
// directory's tree look like one unused entry and need no care.
func parseDirBlock(b []byte, all []entry) ([]entry, error) {
	for off := 0; off+8 <= len(b); {
		e := b[off:]
		number, length, nameLen := binary.LittleEndian.Uint32(e), int(binary.LittleEndian.Uint16(e[4:])), int(e[6])
		if length == 0 || length == 0xffff { // the whole of a 64 KiB block
			length = 65536
		}
		if length < 8 || length%4 != 0 || length > len(e) || 8+nameLen > length {
			return nil, fmt.Errorf("the entry at %d is damaged", off)
		}
		off += length
		if number == 0 {
			continue
		}
		name := string(e[8 : 8+nameLen])
		if name == "." || name == ".." {
			continue
		}
		all = append(all, entry{name: name, inode: uint64(number)})
	}
	return all, nil
}

func (f *ext4FS) target(x *file) (string, error) {
	n := x.own.(*inode)
	if n.size > maxLinkBytes {
		return "", fmt.Errorf("inode %d: a symbolic link of %d bytes", n.number, n.size)
	}
	if n.size < 60 && n.flags&inodeExtents == 0 { // kept in the inode itself
		return string(n.block[:n.size]), nil
	}
	b, err := files{f}.readAll(x, maxLinkBytes)
	return string(b), err
}
