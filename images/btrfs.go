package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// A read-only reader of btrfs on one device (profiles single and dup), for
// finding the kernel in an image. Layout: btrfs documentation, "On-disk Format".

const (
	btrfsSuper = 64 << 10

	btrfsNodeHead = 101
	btrfsItem     = 25
	btrfsPointer  = 33

	btrfsInodeItem  = 1
	btrfsDirItem    = 84
	btrfsDirIndex   = 96
	btrfsExtentData = 108
	btrfsRootItem   = 132
	btrfsChunkItem  = 228

	btrfsRootTree  = 1
	btrfsFSTree    = 5
	btrfsRootDir   = 6   // of the root tree
	btrfsFirstFree = 256 // the root directory of every subvolume

	btrfsProfiles  = 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 | 1<<9 | 1<<10 // of a chunk's type
	btrfsDup       = 1 << 5
	btrfsKnown     = 0xfff &^ (1<<7 | 1<<11) // features; without RAID56 and the extent tree v2
	maxBtrfsNodes  = 1 << 18                 // read for one answer
	maxBtrfsChunks = 1 << 16
	maxBtrfsExtent = 1 << 20 // bytes of one compressed extent; btrfs makes 128 KiB
)

type btrfsKey struct {
	object uint64
	kind   byte
	offset uint64
}

func readBtrfsKey(b []byte) btrfsKey {
	le := binary.LittleEndian
	return btrfsKey{le.Uint64(b), b[8], le.Uint64(b[9:])}
}

func (k btrfsKey) compare(o btrfsKey) int {
	for _, p := range [][2]uint64{{k.object, o.object}, {uint64(k.kind), uint64(o.kind)}, {k.offset, o.offset}} {
		if p[0] != p[1] {
			if p[0] < p[1] {
				return -1
			}
			return 1
		}
	}
	return 0
}

// btrfsTree is where a tree's root node is.
type btrfsTree struct {
	at    uint64
	level byte
}

type btrfsChunk struct{ logical, physical, length uint64 }

type btrfsFS struct {
	r      io.ReaderAt
	size   int64
	node   int64
	sector int64
	chunks []btrfsChunk // sorted
	roots  btrfsTree
	start  uint64 // the subvolume that is looked at
	name   string // its name, "" is the default one
	cache  map[uint64][]byte
	trees  map[uint64]btrfsTree
}

func openBtrfs(r io.ReaderAt, size int64) (*btrfsFS, error) {
	b := make([]byte, 4096)
	if n, err := r.ReadAt(b, btrfsSuper); n < len(b) {
		return nil, fmt.Errorf("its superblock cannot be read: %w", err)
	}
	le := binary.LittleEndian
	total := le.Uint64(b[112:])
	f := &btrfsFS{r: r, size: size, sector: int64(le.Uint32(b[144:])), node: int64(le.Uint32(b[148:])), cache: map[uint64][]byte{}, trees: map[uint64]btrfsTree{}}
	switch {
	case string(b[64:72]) != "_BHRfS_M":
		return nil, errors.New("no btrfs superblock")
	case le.Uint64(b[136:]) != 1:
		return nil, fmt.Errorf("it lies on %d devices", le.Uint64(b[136:]))
	case le.Uint64(b[96:]) != 0:
		return nil, errors.New("its log was not replayed: the file system was in use when it was copied")
	case le.Uint64(b[188:])&^uint64(btrfsKnown) != 0:
		return nil, fmt.Errorf("it needs btrfs features that are not known (%#x)", le.Uint64(b[188:])&^uint64(btrfsKnown))
	case f.node < 4096 || f.node > 65536 || f.node&(f.node-1) != 0 || f.sector < 4096 || f.sector > 65536 || f.sector&(f.sector-1) != 0 || total > 1<<62:
		return nil, errors.New("its superblock has impossible values")
	case int64(total) > size:
		return nil, truncated("the btrfs file system", 0, int64(total), size)
	}
	if err := f.systemChunks(b[811:], int(le.Uint32(b[160:]))); err != nil {
		return nil, err
	}
	f.roots = btrfsTree{le.Uint64(b[80:]), b[198]}
	if err := f.allChunks(btrfsTree{le.Uint64(b[88:]), b[199]}); err != nil {
		return nil, err
	}
	start, err := f.defaultSubvolume()
	f.start = start
	return f, err
}

// systemChunks reads the chunks that the superblock carries: those of the chunk
// tree.
func (f *btrfsFS) systemChunks(b []byte, length int) error {
	if length > 2048 {
		return errors.New("its list of chunks is too long")
	}
	for b = b[:length]; len(b) > 0; {
		if len(b) < 17+48 {
			return errors.New("its list of chunks is damaged")
		}
		key := readBtrfsKey(b)
		n, err := f.addChunk(key.offset, b[17:])
		if err != nil {
			return err
		}
		b = b[17+n:]
	}
	f.sortChunks()
	return nil
}

func (f *btrfsFS) addChunk(logical uint64, b []byte) (int, error) {
	if len(b) < 48 {
		return 0, errors.New("a chunk is damaged")
	}
	le := binary.LittleEndian
	length, kind, stripes := le.Uint64(b), le.Uint64(b[24:]), int(le.Uint16(b[44:]))
	n := 48 + stripes*32
	switch {
	case stripes == 0 || n > len(b) || length == 0 || length > 1<<60:
		return 0, errors.New("a chunk is damaged")
	case kind&btrfsProfiles != 0 && kind&btrfsProfiles != btrfsDup:
		return 0, fmt.Errorf("a chunk is of the profile %#x; single and dup can be read", kind&btrfsProfiles)
	case len(f.chunks) >= maxBtrfsChunks:
		return 0, fmt.Errorf("more than %d chunks", maxBtrfsChunks)
	}
	f.chunks = append(f.chunks, btrfsChunk{logical, le.Uint64(b[48+8:]), length})
	return n, nil
}

func (f *btrfsFS) sortChunks() {
	slices.SortFunc(f.chunks, func(a, b btrfsChunk) int {
		return btrfsKey{object: a.logical}.compare(btrfsKey{object: b.logical})
	})
}

func (f *btrfsFS) allChunks(tree btrfsTree) error {
	system := f.chunks
	var found []btrfsKey
	var items [][]byte
	err := f.walk(tree, btrfsKey{btrfsFirstFree, btrfsChunkItem, 0}, btrfsKey{btrfsFirstFree, btrfsChunkItem, ^uint64(0)}, func(k btrfsKey, data []byte) error {
		found, items = append(found, k), append(items, data)
		return nil
	})
	if err != nil {
		return fmt.Errorf("its chunks: %w", err)
	}
	f.chunks = nil
	for i, k := range found {
		if _, err := f.addChunk(k.offset, items[i]); err != nil {
			return err
		}
	}
	if len(f.chunks) == 0 {
		f.chunks = system
	}
	f.sortChunks()
	return nil
}

// read reads at a logical address.
func (f *btrfsFS) read(p []byte, logical uint64) error {
	for len(p) > 0 {
		i, ok := slices.BinarySearchFunc(f.chunks, logical, func(c btrfsChunk, at uint64) int {
			switch {
			case c.logical+c.length <= at:
				return -1
			case c.logical > at:
				return 1
			}
			return 0
		})
		if !ok {
			return fmt.Errorf("the address %#x is in no chunk", logical)
		}
		c := f.chunks[i]
		n := min(uint64(len(p)), c.logical+c.length-logical)
		off := c.physical + logical - c.logical
		if off > uint64(f.size) || n > uint64(f.size)-off {
			return fmt.Errorf("the address %#x is outside of the device", logical)
		}
		k, err := f.r.ReadAt(p[:n], int64(off))
		if uint64(k) < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		p, logical = p[n:], logical+n
	}
	return nil
}

const btrfsCache = 512

func (f *btrfsFS) readNode(at uint64, level byte) ([]byte, error) {
	if b, ok := f.cache[at]; ok && b[100] == level {
		return b, nil
	}
	b := make([]byte, f.node)
	if err := f.read(b, at); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	size := int64(btrfsPointer)
	if level == 0 {
		size = btrfsItem
	}
	if le.Uint64(b[48:]) != at || b[100] != level || int64(le.Uint32(b[96:])) > (f.node-btrfsNodeHead)/size {
		return nil, fmt.Errorf("the tree node at %#x is damaged", at)
	}
	if len(f.cache) >= btrfsCache {
		clear(f.cache)
	}
	f.cache[at] = b
	return b, nil
}

// walk visits the items of a tree from one key to another, both included, in
// order.
func (f *btrfsFS) walk(tree btrfsTree, from, to btrfsKey, visit func(btrfsKey, []byte) error) error {
	if tree.level > 7 {
		return errors.New("a tree of more than 8 levels")
	}
	left := maxBtrfsNodes
	return f.walkNode(tree, from, to, visit, &left)
}

func (f *btrfsFS) walkNode(tree btrfsTree, from, to btrfsKey, visit func(btrfsKey, []byte) error, left *int) error {
	if *left--; *left < 0 {
		return fmt.Errorf("more than %d tree nodes", maxBtrfsNodes)
	}
	b, err := f.readNode(tree.at, tree.level)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	count := int(le.Uint32(b[96:]))
	if tree.level == 0 {
		for i := range count {
			e := b[btrfsNodeHead+i*btrfsItem:]
			k := readBtrfsKey(e)
			if k.compare(from) < 0 {
				continue
			}
			if k.compare(to) > 0 {
				return nil
			}
			off, size := uint64(le.Uint32(e[17:])), uint64(le.Uint32(e[21:]))
			if btrfsNodeHead+off+size > uint64(len(b)) {
				return fmt.Errorf("an item of the tree node at %#x is damaged", tree.at)
			}
			if err := visit(k, b[btrfsNodeHead+off:btrfsNodeHead+off+size]); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range count {
		e := b[btrfsNodeHead+i*btrfsPointer:]
		if i+1 < count && readBtrfsKey(e[btrfsPointer:]).compare(from) <= 0 && readBtrfsKey(e[btrfsPointer:]).compare(from) != 0 {
			continue // all of it is before
		}
		if readBtrfsKey(e).compare(to) > 0 {
			return nil
		}
		if err := f.walkNode(btrfsTree{le.Uint64(e[17:]), tree.level - 1}, from, to, visit, left); err != nil {
			return err
		}
	}
	return nil
}

// subvolume gives the tree of a subvolume.
func (f *btrfsFS) subvolume(id uint64) (btrfsTree, error) {
	if t, ok := f.trees[id]; ok {
		return t, nil
	}
	var t btrfsTree
	err := f.walk(f.roots, btrfsKey{id, btrfsRootItem, 0}, btrfsKey{id, btrfsRootItem, ^uint64(0)}, func(_ btrfsKey, data []byte) error {
		if len(data) < 239 {
			return errors.New("a root item is damaged")
		}
		t = btrfsTree{binary.LittleEndian.Uint64(data[176:]), data[238]}
		return nil
	})
	if err == nil && t.at == 0 {
		err = fmt.Errorf("there is no subvolume %d", id)
	}
	if err != nil {
		return t, err
	}
	if len(f.trees) < 1<<16 {
		f.trees[id] = t
	}
	return t, nil
}

// defaultSubvolume gives the one that is mounted when none is named.
func (f *btrfsFS) defaultSubvolume() (uint64, error) {
	id := uint64(btrfsFSTree)
	err := f.walk(f.roots, btrfsKey{btrfsRootDir, btrfsDirItem, 0}, btrfsKey{btrfsRootDir, btrfsDirItem, ^uint64(0)}, func(_ btrfsKey, data []byte) error {
		return btrfsNames(data, func(name string, to btrfsKey) error {
			if name == "default" && to.kind == btrfsRootItem {
				id = to.object
			}
			return nil
		})
	})
	return id, err
}

// btrfsNames visits the names of a directory item.
func btrfsNames(b []byte, visit func(string, btrfsKey) error) error {
	for len(b) > 0 {
		if len(b) < 30 {
			return errors.New("a directory item is damaged")
		}
		le := binary.LittleEndian
		data, name := int(le.Uint16(b[25:])), int(le.Uint16(b[27:]))
		if 30+name+data > len(b) {
			return errors.New("a directory item is damaged")
		}
		if err := visit(string(b[30:30+name]), readBtrfsKey(b)); err != nil {
			return err
		}
		b = b[30+name+data:]
	}
	return nil
}

// in gives the same file system as it is seen when the subvolume of that name,
// which lies at its top, is mounted.
func (f *btrfsFS) in(name string) (*btrfsFS, error) {
	top := *f
	top.start = btrfsFSTree
	root, err := top.top()
	if err != nil {
		return nil, err
	}
	all, err := top.entries(root)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if at := e.own.(btrfsPlace); e.name == name && at.tree != btrfsFSTree {
			sub := *f
			sub.start, sub.name = at.tree, name
			return &sub, nil
		}
	}
	return nil, nil
}
