package images

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sort"
	"strings"
)

// fileSystem is a read-only view of a file system inside an image: ext2/3/4, xfs
// or btrfs. Its readers are written for foreign bytes: every number of the disk
// is checked before it is used, memory and work are bounded, nothing is mounted.
type fileSystem interface {
	// top gives the root directory.
	top() (*file, error)
	// entries gives the names of a directory without "." and "..", in any order.
	entries(dir *file) ([]entry, error)
	// follow gives the file that a name stands for.
	follow(e entry) (*file, error)
	// contents gives the bytes of a regular file; holes read as zeros.
	contents(f *file) (io.ReaderAt, error)
	// target gives what a symbolic link holds, at most 4096 bytes.
	target(f *file) (string, error)
}

// file is one inode.
type file struct {
	number uint64
	mode   uint16 // type and permissions as in st_mode
	size   int64
	own    any // of the reader that made it
}

// entry is one name in a directory.
type entry struct {
	name  string
	inode uint64
	own   any // of the reader that made it
}

const (
	modeType    = 0xf000
	modeDir     = 0x4000
	modeRegular = 0x8000
	modeSymlink = 0xa000
)

func (f *file) is(kind uint16) bool { return f.mode&modeType == kind }

const (
	// maxLinks bounds the symbolic links that one look-up follows.
	maxLinks     = 40
	maxLinkBytes = 4096
	maxDirectory = 64 << 20 // bytes of one directory
	maxNames     = 1 << 20  // of one directory
	maxExtents   = 1 << 20  // of one file
)

// files gives paths to a file system.
type files struct{ fileSystem }

// list gives the names of a directory, sorted. A name that could not come from a
// Linux kernel (empty, with a slash or NUL, given twice) is an error: somebody
// made it by hand.
func (f files) list(dir *file) ([]entry, error) {
	if !dir.is(modeDir) {
		return nil, fs.ErrNotExist
	}
	all, err := f.entries(dir)
	if err != nil {
		return nil, err
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	for i, e := range all {
		if e.name == "" || strings.ContainsAny(e.name, "/\x00") {
			return nil, fmt.Errorf("inode %d: the name %q is not possible", dir.number, e.name)
		}
		if i > 0 && e.name == all[i-1].name {
			return nil, fmt.Errorf("inode %d: the name %q stands twice in the directory", dir.number, e.name)
		}
	}
	return all, nil
}

// lookup finds a path (absolute or not, from the root of the file system) and
// follows symbolic links inside the file system. It gives the file and the path
// without links. A path that does not exist is fs.ErrNotExist.
func (f files) lookup(path string) (*file, string, error) {
	root, err := f.top()
	if err != nil {
		return nil, "", err
	}
	type step struct {
		name string
		at   *file
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
		child, err := f.child(trail[len(trail)-1].at, name)
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
		target, err := f.target(child)
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

func (f files) child(dir *file, name string) (*file, error) {
	all, err := f.list(dir)
	if err != nil {
		return nil, err
	}
	i := sort.Search(len(all), func(i int) bool { return all[i].name >= name })
	if i == len(all) || all[i].name != name {
		return nil, fs.ErrNotExist
	}
	return f.follow(all[i])
}

// readFile gives the contents of the regular file at path.
func (f files) readFile(path string, limit int64) ([]byte, error) {
	n, _, err := f.lookup(path)
	if err != nil {
		return nil, err
	}
	if !n.is(modeRegular) {
		return nil, fs.ErrNotExist
	}
	return f.readAll(n, limit)
}

// readAll gives the contents of a file of at most limit bytes.
func (f files) readAll(n *file, limit int64) ([]byte, error) {
	if n.size < 0 || n.size > limit {
		return nil, fmt.Errorf("inode %d: %d bytes, at most %d are read", n.number, n.size, limit)
	}
	r, err := f.contents(n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n.size)
	if k, err := r.ReadAt(b, 0); k < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("inode %d: %w", n.number, err)
	}
	return b, nil
}

// names gives the names in the directory at path; none if it does not exist.
func (f files) names(path string) ([]string, error) {
	n, _, err := f.lookup(path)
	if err == nil {
		var all []entry
		if all, err = f.list(n); err == nil {
			var names []string
			for _, e := range all {
				names = append(names, e.name)
			}
			return names, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return nil, err
}

// exists says whether path leads to a file that is there.
func (f files) exists(path string) bool {
	_, _, err := f.lookup(path)
	return err == nil
}

// run is a piece of a file: count bytes from logical, at physical.
type run struct{ logical, physical, count int64 }

// runFile reads a file by its runs; what none covers is a hole.
type runFile struct {
	read func(p []byte, physical int64) error
	size int64
	runs []run
}

// newRunFile sorts the runs and refuses those that overlap.
func newRunFile(number uint64, size int64, runs []run, read func(p []byte, physical int64) error) (*runFile, error) {
	slices.SortStableFunc(runs, func(a, b run) int {
		switch {
		case a.logical < b.logical:
			return -1
		case a.logical > b.logical:
			return 1
		}
		return 0
	})
	for i := 1; i < len(runs); i++ {
		if runs[i].logical < runs[i-1].logical+runs[i-1].count {
			return nil, fmt.Errorf("inode %d: its extents overlap", number)
		}
	}
	return &runFile{read, size, runs}, nil
}

func (e *runFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= e.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > e.size-off {
		p, end = p[:e.size-off], io.EOF
	}
	clear(p)
	first := sort.Search(len(e.runs), func(i int) bool { return e.runs[i].logical+e.runs[i].count > off })
	for _, r := range e.runs[first:] {
		from, to := max(r.logical, off), min(r.logical+r.count, off+int64(len(p)))
		if from >= to {
			break
		}
		if err := e.read(p[from-off:to-off], r.physical+from-r.logical); err != nil {
			return 0, err
		}
	}
	return len(p), end
}
