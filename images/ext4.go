package images

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A read-only reader of ext2, ext3 and ext4, for finding the kernel in an image.
// The alternative, debugfs on a staged copy, needs a raw copy of every qcow2
// disk, runs a large C parser over foreign bytes with this process's rights,
// and its rdump can be led out of its destination by a directory that holds a
// name twice. This reader only reads, in memory, within stated limits; tests
// hold it against debugfs.
//
// Layout: Linux Documentation/filesystems/ext4 (super.rst, group_descr.rst,
// inodes.rst, ifork.rst, directory.rst).

const (
	ext4RootInode = 2

	extFiletype      = 0x2
	extRecover       = 0x4
	extExtents       = 0x40
	ext64Bit         = 0x80
	extMMP           = 0x100
	extFlexBG        = 0x200
	extEAInode       = 0x400
	extCsumSeed      = 0x2000
	extLargeDir      = 0x4000
	extInlineData    = 0x8000
	extEncrypt       = 0x10000
	extCasefold      = 0x20000
	extKnownIncompat = extFiletype | extExtents | ext64Bit | extMMP | extFlexBG | extEAInode |
		extCsumSeed | extLargeDir | extInlineData | extEncrypt | extCasefold

	inodeExtents    = 0x80000
	inodeInlineData = 0x10000000
	inodeEncrypted  = 0x800
)

// ext4FS is one file system inside r, which starts at its first byte.
type ext4FS struct {
	r         io.ReaderAt
	size      int64 // bytes, by the superblock
	block     int64 // bytes
	uuid      string
	inodes    uint32
	perGroup  uint32
	inodeSize int64
	descSize  int64
	descTable int64 // byte offset of the group descriptors
	wide      bool  // 64-bit block numbers
}

// errNotExt4 says that there is no ext superblock.
var errNotExt4 = fmt.Errorf("no ext4 superblock")

// openExt4 reads the superblock of the file system in the size bytes of r.
func openExt4(r io.ReaderAt, size int64) (*ext4FS, error) {
	sb := make([]byte, 1024)
	if _, err := r.ReadAt(sb, 1024); err != nil && err != io.EOF {
		return nil, fmt.Errorf("images: read the superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != 0xef53 {
		return nil, errNotExt4
	}
	logBlock := le.Uint32(sb[0x18:])
	if logBlock > 6 {
		return nil, fmt.Errorf("blocks of 2^%d bytes", 10+logBlock)
	}
	f := &ext4FS{r: r, block: 1024 << logBlock, inodes: le.Uint32(sb[0:]), perGroup: le.Uint32(sb[0x28:]), inodeSize: 128, descSize: 32}
	f.uuid = fmt.Sprintf("%x-%x-%x-%x-%x", sb[0x68:0x6c], sb[0x6c:0x6e], sb[0x6e:0x70], sb[0x70:0x72], sb[0x72:0x78])
	var incompat uint32
	if le.Uint32(sb[0x4c:]) > 0 {
		f.inodeSize, incompat = int64(le.Uint16(sb[0x58:])), le.Uint32(sb[0x60:])
	}
	blocks := uint64(le.Uint32(sb[4:]))
	if incompat&ext64Bit != 0 {
		f.wide = true
		f.descSize = int64(le.Uint16(sb[0xfe:]))
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	if incompat&extRecover != 0 {
		return nil, fmt.Errorf("its journal was not replayed: the file system was in use when it was copied")
	}
	if more := incompat &^ uint32(extKnownIncompat); more != 0 {
		return nil, fmt.Errorf("it needs ext4 features that are not known (%#x)", more)
	}
	if f.perGroup == 0 || f.inodeSize < 128 || f.inodeSize > f.block || f.inodeSize&(f.inodeSize-1) != 0 ||
		f.descSize < 32 || f.descSize > f.block || blocks > uint64(1)<<62/uint64(f.block) || blocks == 0 {
		return nil, fmt.Errorf("its superblock has impossible values")
	}
	f.size = int64(blocks) * f.block
	if f.size > size {
		return nil, truncated("the ext4 file system", 0, f.size, size)
	}
	f.descTable = (int64(le.Uint32(sb[0x14:])) + 1) * f.block
	return f, nil
}

// inode is what the reader needs of one.
type inode struct {
	number uint32
	mode   uint16
	flags  uint32
	size   int64
	block  [60]byte
}

func (f *ext4FS) inode(number uint32) (*inode, error) {
	if number == 0 || number > f.inodes {
		return nil, fmt.Errorf("inode %d of %d", number, f.inodes)
	}
	group, index := int64((number-1)/f.perGroup), int64((number-1)%f.perGroup)
	desc := make([]byte, f.descSize)
	if err := f.readFull(desc, f.descTable+group*f.descSize); err != nil {
		return nil, fmt.Errorf("group descriptor %d: %w", group, err)
	}
	le := binary.LittleEndian
	table := uint64(le.Uint32(desc[8:]))
	if f.wide && f.descSize >= 64 {
		table |= uint64(le.Uint32(desc[0x28:])) << 32
	}
	if table > uint64(f.size/f.block) {
		return nil, fmt.Errorf("group descriptor %d: inode table at block %d", group, table)
	}
	b := make([]byte, 128)
	if err := f.readFull(b, int64(table)*f.block+index*f.inodeSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", number, err)
	}
	n := &inode{number: number, mode: le.Uint16(b), flags: le.Uint32(b[0x20:])}
	n.size = int64(le.Uint32(b[4:])) | int64(le.Uint32(b[0x6c:])&0x7fffffff)<<32
	copy(n.block[:], b[0x28:0x64])
	if n.flags&inodeEncrypted != 0 {
		return nil, fmt.Errorf("inode %d is encrypted", number)
	}
	return n, nil
}

// readFull reads within the file system only.
func (f *ext4FS) readFull(p []byte, off int64) error {
	if off < 0 || off > f.size-int64(len(p)) {
		return fmt.Errorf("byte %d is outside of the file system", off)
	}
	n, err := f.r.ReadAt(p, off)
	if n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// runs gives the pieces of a file that are written, in order of the map and in
// blocks.
func (f *ext4FS) runs(n *inode) ([]run, error) {
	if n.flags&inodeInlineData != 0 {
		return nil, fmt.Errorf("inode %d keeps its data inline, which is not supported", n.number)
	}
	m := blockMap{fs: f, limit: (n.size + f.block - 1) / f.block}
	var err error
	if n.flags&inodeExtents != 0 {
		err = m.extents(n.block[:], 5)
	} else {
		err = m.indirect(n.block[:])
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n.number, err)
	}
	return m.runs, nil
}

// blockMap collects the runs of one inode.
type blockMap struct {
	fs    *ext4FS
	limit int64 // blocks of the file
	runs  []run
	nodes int
}

func (m *blockMap) add(logical, physical, count int64) error {
	if logical >= m.limit {
		return nil
	}
	count = min(count, m.limit-logical)
	if physical <= 0 || physical > m.fs.size/m.fs.block-count {
		return fmt.Errorf("blocks %d to %d are outside of the file system", physical, physical+count-1)
	}
	if k := len(m.runs) - 1; k >= 0 && m.runs[k].logical+m.runs[k].count == logical && m.runs[k].physical+m.runs[k].count == physical {
		m.runs[k].count += count
		return nil
	}
	if len(m.runs) >= maxExtents {
		return fmt.Errorf("more than %d extents", maxExtents)
	}
	m.runs = append(m.runs, run{logical, physical, count})
	return nil
}

// read gives one block of the map's own tree.
func (m *blockMap) read(physical int64) ([]byte, error) {
	if m.nodes++; m.nodes > maxExtents/64 {
		return nil, fmt.Errorf("its block map has more than %d blocks", maxExtents/64)
	}
	if physical <= 0 || physical >= m.fs.size/m.fs.block {
		return nil, fmt.Errorf("map block %d is outside of the file system", physical)
	}
	b := make([]byte, m.fs.block)
	return b, m.fs.readFull(b, physical*m.fs.block)
}

// extents walks a node of an extent tree that is at most depth levels deep.
func (m *blockMap) extents(node []byte, depth uint16) error {
	le := binary.LittleEndian
	entries, level := int(le.Uint16(node[2:])), le.Uint16(node[6:])
	if le.Uint16(node) != 0xf30a || level > depth || 12+entries*12 > len(node) {
		return fmt.Errorf("its extent tree is damaged")
	}
	for i := range entries {
		e := node[12+i*12:]
		if level > 0 {
			child, err := m.read(int64(le.Uint32(e[4:])) | int64(le.Uint16(e[8:]))<<32)
			if err != nil {
				return err
			}
			if err := m.extents(child, level-1); err != nil {
				return err
			}
			continue
		}
		count := int64(le.Uint16(e[4:]))
		if count > 32768 { // allocated but never written: reads as zeros
			continue
		}
		if err := m.add(int64(le.Uint32(e)), int64(le.Uint32(e[8:]))|int64(le.Uint16(e[6:]))<<32, count); err != nil {
			return err
		}
	}
	return nil
}

// indirect walks the block map of ext2 and ext3: 12 blocks, then trees of
// depth 1, 2 and 3.
func (m *blockMap) indirect(block []byte) error {
	logical := int64(0)
	for i := range 15 {
		p := int64(binary.LittleEndian.Uint32(block[i*4:]))
		var err error
		if logical, err = m.tree(p, logical, max(0, i-11)); err != nil {
			return err
		}
	}
	return nil
}

func (m *blockMap) tree(physical, logical int64, depth int) (int64, error) {
	span, per := int64(1), m.fs.block/4
	for range depth {
		span *= per
	}
	if physical == 0 || logical >= m.limit {
		return logical + span, nil
	}
	if depth == 0 {
		return logical + 1, m.add(logical, physical, 1)
	}
	b, err := m.read(physical)
	if err != nil {
		return 0, err
	}
	for at := logical; len(b) > 0; b = b[4:] {
		if at, err = m.tree(int64(binary.LittleEndian.Uint32(b)), at, depth-1); err != nil {
			return 0, err
		}
	}
	return logical + span, nil
}
