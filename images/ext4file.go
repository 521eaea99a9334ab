package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"
)

// ext4File reads one file; holes read as zeros.
type ext4File struct {
	fs   *ext4FS
	size int64
	runs []run
}

// open gives the contents of a regular file or directory.
func (f *ext4FS) open(n *inode) (*ext4File, error) {
	runs, err := f.runs(n)
	if err != nil {
		return nil, err
	}
	sort.SliceStable(runs, func(i, j int) bool { return runs[i].logical < runs[j].logical })
	for i := 1; i < len(runs); i++ {
		if runs[i].logical < runs[i-1].logical+runs[i-1].count {
			return nil, fmt.Errorf("inode %d: its extents overlap", n.number)
		}
	}
	return &ext4File{fs: f, size: n.size, runs: runs}, nil
}

func (e *ext4File) ReadAt(p []byte, off int64) (int, error) {
	if off >= e.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > e.size-off {
		p, end = p[:e.size-off], io.EOF
	}
	clear(p)
	block := e.fs.block
	first := sort.Search(len(e.runs), func(i int) bool { return (e.runs[i].logical+e.runs[i].count)*block > off })
	for _, r := range e.runs[first:] {
		from, to := max(r.logical*block, off), min((r.logical+r.count)*block, off+int64(len(p)))
		if from >= to {
			break
		}
		if err := e.fs.readFull(p[from-off:to-off], r.physical*block+from-r.logical*block); err != nil {
			return 0, err
		}
	}
	return len(p), end
}

// dirent is one name in a directory.
type dirent struct {
	name  string
	inode uint32
}

// readDir gives the names of a directory without "." and "..", sorted. A name
// that could not come from a Linux kernel (empty, with a slash or NUL, given
// twice) is an error: somebody made it by hand.
func (f *ext4FS) readDir(n *inode) ([]dirent, error) {
	if !n.is(modeDir) {
		return nil, fs.ErrNotExist
	}
	if n.size > maxDirectory || n.size%f.block != 0 {
		return nil, fmt.Errorf("inode %d: a directory of %d bytes", n.number, n.size)
	}
	file, err := f.open(n)
	if err != nil {
		return nil, err
	}
	var all []dirent
	b := make([]byte, f.block)
	for off := int64(0); off < n.size; off += f.block {
		if _, err := file.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("inode %d: %w", n.number, err)
		}
		if all, err = parseDirBlock(b, all); err != nil {
			return nil, fmt.Errorf("inode %d: directory byte %d: %w", n.number, off, err)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	for i := 1; i < len(all); i++ {
		if all[i].name == all[i-1].name {
			return nil, fmt.Errorf("inode %d: the name %q stands twice in the directory", n.number, all[i].name)
		}
	}
	return all, nil
}

// parseDirBlock appends the names of one directory block. Blocks of an indexed
// directory's tree look like one unused entry and need no care.
func parseDirBlock(b []byte, all []dirent) ([]dirent, error) {
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
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return nil, fmt.Errorf("the name %q is not possible", name)
		}
		all = append(all, dirent{name, number})
	}
	return all, nil
}

// maxLinks bounds the symbolic links that one look-up follows.
const maxLinks = 40

// lookup finds a path (absolute or not, from the root of the file system) and
// follows symbolic links inside the file system. It gives the inode and the
// path without links. A path that does not exist is fs.ErrNotExist.
func (f *ext4FS) lookup(path string) (*inode, string, error) {
	root, err := f.inode(ext4RootInode)
	if err != nil {
		return nil, "", err
	}
	type step struct {
		name string
		at   *inode
	}
	trail := []step{{"", root}}
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		here := trail[len(trail)-1].at
		child, err := f.child(here, name)
		if err != nil {
			return nil, "", err
		}
		if !child.is(modeSymlink) {
			trail = append(trail, step{name, child})
			continue
		}
		if links++; links > maxLinks {
			return nil, "", fmt.Errorf("%s: more than %d symbolic links", path, maxLinks)
		}
		target, err := f.readLink(child)
		if err != nil {
			return nil, "", err
		}
		if strings.HasPrefix(target, "/") {
			trail = trail[:1]
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	var names []string
	for _, s := range trail[1:] {
		names = append(names, s.name)
	}
	return trail[len(trail)-1].at, "/" + strings.Join(names, "/"), nil
}

func (f *ext4FS) child(dir *inode, name string) (*inode, error) {
	all, err := f.readDir(dir)
	if err != nil {
		return nil, err
	}
	i := sort.Search(len(all), func(i int) bool { return all[i].name >= name })
	if i == len(all) || all[i].name != name {
		return nil, fs.ErrNotExist
	}
	return f.inode(all[i].inode)
}

func (f *ext4FS) readLink(n *inode) (string, error) {
	if n.size > 4096 {
		return "", fmt.Errorf("inode %d: a symbolic link of %d bytes", n.number, n.size)
	}
	if n.size < 60 && n.flags&inodeExtents == 0 { // kept in the inode itself
		return string(n.block[:n.size]), nil
	}
	b, err := f.readAll(n, 4096)
	return string(b), err
}

// readAll gives the contents of a file of at most limit bytes.
func (f *ext4FS) readAll(n *inode, limit int64) ([]byte, error) {
	if n.size > limit {
		return nil, fmt.Errorf("inode %d: %d bytes, at most %d are read", n.number, n.size, limit)
	}
	file, err := f.open(n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n.size)
	if _, err := file.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("inode %d: %w", n.number, err)
	}
	return b, nil
}

// readFile gives the contents of the regular file at path.
func (f *ext4FS) readFile(path string, limit int64) ([]byte, error) {
	n, _, err := f.lookup(path)
	if err != nil {
		return nil, err
	}
	if !n.is(modeRegular) {
		return nil, fs.ErrNotExist
	}
	return f.readAll(n, limit)
}

// names gives the names in the directory at path; none if it does not exist.
func (f *ext4FS) names(path string) ([]string, error) {
	n, _, err := f.lookup(path)
	if err == nil {
		var all []dirent
		if all, err = f.readDir(n); err == nil {
			var names []string
			for _, d := range all {
				names = append(names, d.name)
			}
			return names, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}
