package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// A read-only reader of XFS version 5 (with checksums, the default since 2015),
// for finding the kernel in an image. Layout: "XFS Algorithms & Data Structures",
// 3rd edition: superblocks, on-disk inode, data extents, directories, log.

const (
	xfsFtype       = 0x1
	xfsSparse      = 0x2
	xfsMetaUUID    = 0x4
	xfsBigTime     = 0x8
	xfsNeedsRepair = 0x10
	xfsBigExtents  = 0x20
	xfsExchange    = 0x40
	xfsParent      = 0x80
	xfsKnown       = xfsFtype | xfsSparse | xfsMetaUUID | xfsBigTime | xfsBigExtents | xfsExchange | xfsParent

	xfsCore      = 176 // bytes of an inode before its data fork
	xfsBtreeHead = 72  // of a block of an inode's extent tree
	xfsDirHead   = 64  // of a directory's data block

	xfsLocal   = 1
	xfsExtents = 2
	xfsBtree   = 3

	xfsLeafSpace = 32 << 30 // from here on a directory holds its index
	maxXFSLog    = 2 << 30
)

// xfsFS is one file system inside r, which starts at its first byte.
type xfsFS struct {
	r         io.ReaderAt
	size      int64
	block     int64
	dirBlock  int64
	agBlocks  uint64
	agCount   uint64
	agBits    uint // of a block number inside its group
	inodeSize int64
	inodeBits uint // of an inode's number inside its block
	root      uint64
}

func openXFS(r io.ReaderAt, size int64) (*xfsFS, error) {
	b := make([]byte, 512)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("its superblock cannot be read: %w", err)
	}
	be := binary.BigEndian
	if string(b[:4]) != "XFSB" {
		return nil, errors.New("no XFS superblock")
	}
	if v := be.Uint16(b[100:]) & 0xf; v != 5 {
		return nil, fmt.Errorf("it is of version %d; 5 (with checksums) can be read", v)
	}
	incompat := be.Uint32(b[216:])
	if incompat&xfsNeedsRepair != 0 {
		return nil, errors.New("it is marked as in need of repair")
	}
	if more := incompat &^ uint32(xfsKnown); more != 0 {
		return nil, fmt.Errorf("it needs XFS features that are not known (%#x)", more)
	}
	if incompat&xfsFtype == 0 {
		return nil, errors.New("its directories tell no types")
	}
	blockLog, inodeLog, perLog, agLog, dirLog := uint(b[120]), uint(b[122]), uint(b[123]), uint(b[124]), uint(b[192])
	if blockLog < 9 || blockLog > 16 || inodeLog < 8 || inodeLog > 11 || inodeLog > blockLog || perLog != blockLog-inodeLog || agLog > 31 || blockLog+dirLog > 16 {
		return nil, errors.New("its superblock has impossible values")
	}
	f := &xfsFS{
		r: r, block: 1 << blockLog, dirBlock: 1 << (blockLog + dirLog), agBlocks: uint64(be.Uint32(b[84:])), agCount: uint64(be.Uint32(b[88:])),
		agBits: agLog, inodeSize: 1 << inodeLog, inodeBits: perLog, root: be.Uint64(b[56:]),
	}
	blocks := be.Uint64(b[8:])
	if blocks == 0 || blocks > 1<<62/uint64(f.block) || f.agBlocks == 0 || f.agBlocks > 1<<agLog || f.agCount == 0 || f.agCount > blocks/f.agBlocks+1 {
		return nil, errors.New("its superblock has impossible values")
	}
	f.size = int64(blocks) * f.block
	if f.size > size {
		return nil, truncated("the XFS file system", 0, f.size, size)
	}
	return f, f.checkLog(be.Uint64(b[48:]), int64(be.Uint32(b[96:]))*f.block)
}

// checkLog looks for the newest record of the log, which says that the file
// system was unmounted: otherwise changes wait in the log and what is read here
// is old. Records begin on sectors; the numbers that they carry grow.
func (f *xfsFS) checkLog(start uint64, length int64) error {
	if start == 0 {
		return errors.New("its log is on another device")
	}
	at, err := f.offset(start)
	if err != nil || length <= 0 || length > maxXFSLog || at > f.size-length {
		return errors.New("its log lies outside of it")
	}
	be := binary.BigEndian
	newest, where := uint64(0), int64(-1)
	buf := make([]byte, 1<<20)
	for off := int64(0); off < length; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), length-off)]
		if err := f.readFull(b, at+off); err != nil {
			return err
		}
		for i := 0; i+512 <= len(b); i += 512 {
			if h := b[i:]; be.Uint32(h) == 0xfeedbabe && be.Uint64(h[16:]) >= newest {
				newest, where = be.Uint64(h[16:]), off+int64(i)
			}
		}
	}
	if where < 0 {
		return nil // an empty log
	}
	head := make([]byte, 512)
	if err := f.readFull(head, at+where); err != nil {
		return err
	}
	heads := int64(1)
	if size := be.Uint32(head[320:]); be.Uint32(head[8:])&2 != 0 && size > 32768 && size <= 1<<20 {
		heads = (int64(size) + 32767) / 32768
	}
	op := make([]byte, 12)
	if err := f.readFull(op, at+(where+heads*512)%length); err != nil {
		return err
	}
	if be.Uint32(head[40:]) != 1 || op[9]&0x20 == 0 {
		return errors.New("its log was not replayed: the file system was in use when it was copied")
	}
	return nil
}

func (f *xfsFS) readFull(p []byte, off int64) error {
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

// offset gives the byte of a block, whose number is one of a group and one inside
// it.
func (f *xfsFS) offset(block uint64) (int64, error) {
	group, inside := block>>f.agBits, block&(1<<f.agBits-1)
	if group >= f.agCount || inside >= f.agBlocks {
		return 0, fmt.Errorf("block %#x is outside of the file system", block)
	}
	return int64(group*f.agBlocks+inside) * f.block, nil
}

// xfsInode is what the reader needs of one beyond its file.
type xfsInode struct {
	format  byte
	extents uint64
	fork    []byte // the data fork
}

func (f *xfsFS) top() (*file, error) { return f.follow(entry{inode: f.root}) }

func (f *xfsFS) follow(e entry) (*file, error) {
	at, err := f.offset(e.inode >> f.inodeBits)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", e.inode, err)
	}
	b := make([]byte, f.inodeSize)
	if err := f.readFull(b, at+int64(e.inode&(1<<f.inodeBits-1))*f.inodeSize); err != nil {
		return nil, fmt.Errorf("inode %d: %w", e.inode, err)
	}
	be := binary.BigEndian
	if string(b[:2]) != "IN" || b[4] != 3 || be.Uint64(b[152:]) != e.inode {
		return nil, fmt.Errorf("inode %d is damaged", e.inode)
	}
	if be.Uint16(b[90:])&1 != 0 {
		return nil, fmt.Errorf("inode %d keeps its data on a real-time device", e.inode)
	}
	n := &xfsInode{format: b[5], extents: uint64(be.Uint32(b[76:])), fork: b[xfsCore:]}
	if be.Uint64(b[120:])&(1<<4) != 0 {
		n.extents = be.Uint64(b[24:])
	}
	if off := int(b[82]) * 8; off > 0 {
		if off > len(n.fork) {
			return nil, fmt.Errorf("inode %d: its attributes begin at byte %d", e.inode, off)
		}
		n.fork = n.fork[:off]
	}
	x := &file{number: e.inode, mode: be.Uint16(b[2:]), size: int64(be.Uint64(b[56:])), own: n}
	if x.size < 0 {
		return nil, fmt.Errorf("inode %d: an impossible size", e.inode)
	}
	return x, nil
}

// xfsMap collects the runs of one inode, in bytes.
type xfsMap struct {
	f     *xfsFS
	runs  []run
	nodes int
}

func (f *xfsFS) runs(x *file) ([]run, error) {
	n := x.own.(*xfsInode)
	m := &xfsMap{f: f}
	var err error
	switch n.format {
	case xfsExtents:
		if n.extents > uint64(len(n.fork)/16) {
			return nil, fmt.Errorf("inode %d: %d extents do not fit into it", x.number, n.extents)
		}
		err = m.leaf(n.fork, int(n.extents))
	case xfsBtree:
		err = m.root(n.fork)
	default:
		err = fmt.Errorf("its data is of the form %d", n.format)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", x.number, err)
	}
	return m.runs, nil
}

func (m *xfsMap) leaf(b []byte, count int) error {
	be := binary.BigEndian
	for i := range count {
		l0, l1 := be.Uint64(b[i*16:]), be.Uint64(b[i*16+8:])
		logical, physical, blocks := l0>>9&(1<<54-1), l0&0x1ff<<43|l1>>21, int64(l1&(1<<21-1))
		if l0>>63 != 0 { // allocated but never written: reads as zeros
			continue
		}
		off, err := m.f.offset(physical)
		if err != nil {
			return err
		}
		if blocks == 0 || off > m.f.size-blocks*m.f.block || logical > 1<<62/uint64(m.f.block) {
			return fmt.Errorf("%d blocks at %#x are outside of the file system", blocks, physical)
		}
		if len(m.runs) >= maxExtents {
			return fmt.Errorf("more than %d extents", maxExtents)
		}
		m.runs = append(m.runs, run{int64(logical) * m.f.block, off, blocks * m.f.block})
	}
	return nil
}

// root walks the tree whose root is in the inode: level, number of records, keys,
// pointers.
func (m *xfsMap) root(b []byte) error {
	if len(b) < 4 {
		return errors.New("its extent tree is damaged")
	}
	be := binary.BigEndian
	level, count, most := be.Uint16(b), int(be.Uint16(b[2:])), (len(b)-4)/16
	if level == 0 || level > 9 || count > most {
		return errors.New("its extent tree is damaged")
	}
	return m.children(b[4+most*8:], count, level)
}

func (m *xfsMap) children(pointers []byte, count int, level uint16) error {
	for i := range count {
		if err := m.node(binary.BigEndian.Uint64(pointers[i*8:]), level-1); err != nil {
			return err
		}
	}
	return nil
}

func (m *xfsMap) node(block uint64, level uint16) error {
	if m.nodes++; m.nodes > maxExtents/16 {
		return fmt.Errorf("its extent tree has more than %d blocks", maxExtents/16)
	}
	off, err := m.f.offset(block)
	if err != nil {
		return err
	}
	b := make([]byte, m.f.block)
	if err := m.f.readFull(b, off); err != nil {
		return err
	}
	be := binary.BigEndian
	count, most := int(be.Uint16(b[6:])), (len(b)-xfsBtreeHead)/16
	if string(b[:4]) != "BMA3" || be.Uint16(b[4:]) != level || count > most {
		return errors.New("its extent tree is damaged")
	}
	if level == 0 {
		return m.leaf(b[xfsBtreeHead:], count)
	}
	return m.children(b[xfsBtreeHead+most*8:], count, level)
}

func (f *xfsFS) contents(x *file) (io.ReaderAt, error) {
	runs, err := f.runs(x)
	if err != nil {
		return nil, err
	}
	return newRunFile(x.number, x.size, runs, f.readFull)
}

func (f *xfsFS) entries(dir *file) ([]entry, error) {
	if !dir.is(modeDir) {
		return nil, fs.ErrNotExist
	}
	n := dir.own.(*xfsInode)
	if n.format == xfsLocal {
		return n.shortNames(dir.number)
	}
	runs, err := f.runs(dir)
	if err != nil {
		return nil, err
	}
	if dir.size > maxDirectory || dir.size%f.dirBlock != 0 {
		return nil, fmt.Errorf("inode %d: a directory of %d bytes", dir.number, dir.size)
	}
	// The size covers the data blocks; the index lies far behind them.
	r, err := newRunFile(dir.number, dir.size, runs, f.readFull)
	if err != nil {
		return nil, err
	}
	var all []entry
	b := make([]byte, f.dirBlock)
	for off := int64(0); off < min(dir.size, xfsLeafSpace); off += f.dirBlock {
		if _, err := r.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("inode %d: %w", dir.number, err)
		}
		if all, err = xfsDirBlock(b, all); err != nil {
			return nil, fmt.Errorf("inode %d: directory byte %d: %w", dir.number, off, err)
		}
	}
	return all, nil
}

// xfsDirBlock appends the names of one data block.
func xfsDirBlock(b []byte, all []entry) ([]entry, error) {
	be := binary.BigEndian
	end := len(b)
	switch string(b[:4]) {
	case "XDD3":
	case "XDB3": // the only block of its directory: the index is at its end
		count := be.Uint32(b[len(b)-8:])
		if count > uint32(len(b)/8) {
			return nil, errors.New("its index is damaged")
		}
		end = len(b) - 8 - int(count)*8
	case "\x00\x00\x00\x00": // a hole
		return all, nil
	default:
		return nil, errors.New("the block is damaged")
	}
	for off := xfsDirHead; off+12 <= end; {
		if be.Uint16(b[off:]) == 0xffff { // free
			length := int(be.Uint16(b[off+2:]))
			if length < 8 || length%8 != 0 {
				return nil, fmt.Errorf("the free space at %d is damaged", off)
			}
			off += length
			continue
		}
		length := int(b[off+8])
		total := (8 + 1 + length + 1 + 2 + 7) &^ 7
		if off+total > end {
			return nil, fmt.Errorf("the entry at %d is damaged", off)
		}
		name := string(b[off+9 : off+9+length])
		if name != "." && name != ".." {
			if len(all) >= maxNames {
				return nil, fmt.Errorf("more than %d names", maxNames)
			}
			all = append(all, entry{name: name, inode: be.Uint64(b[off:])})
		}
		off += total
	}
	return all, nil
}

// shortNames gives the names of a directory that lies in its inode.
func (n *xfsInode) shortNames(number uint64) ([]entry, error) {
	damaged := fmt.Errorf("inode %d: the directory is damaged", number)
	b, be := n.fork, binary.BigEndian
	if len(b) < 6 {
		return nil, damaged
	}
	count, wide := int(b[0]), 4
	if b[1] != 0 {
		wide, count = 8, max(count, int(b[1]))
	}
	if len(b) < 2+wide {
		return nil, damaged
	}
	b = b[2+wide:]
	var all []entry
	for range count {
		if len(b) < 3 {
			return nil, damaged
		}
		length := int(b[0])
		need := 3 + length + 1 + wide
		if len(b) < need {
			return nil, damaged
		}
		e := entry{name: string(b[3 : 3+length])}
		if at := b[3+length+1:]; wide == 8 {
			e.inode = be.Uint64(at)
		} else {
			e.inode = uint64(be.Uint32(at))
		}
		all = append(all, e)
		b = b[need:]
	}
	return all, nil
}

const xfsLinkHead = 56

// target reads a symbolic link: in its inode, or in blocks with a head each.
func (f *xfsFS) target(x *file) (string, error) {
	n := x.own.(*xfsInode)
	if x.size > maxLinkBytes {
		return "", fmt.Errorf("inode %d: a symbolic link of %d bytes", x.number, x.size)
	}
	if n.format == xfsLocal {
		if x.size > int64(len(n.fork)) {
			return "", fmt.Errorf("inode %d: the link does not fit into it", x.number)
		}
		return string(n.fork[:x.size]), nil
	}
	runs, err := f.runs(x)
	if err != nil {
		return "", err
	}
	var out []byte
	b := make([]byte, f.block)
	for _, r := range runs {
		for at := int64(0); at < r.count && int64(len(out)) < x.size; at += f.block {
			if err := f.readFull(b, r.physical+at); err != nil {
				return "", err
			}
			length := int64(binary.BigEndian.Uint32(b[8:]))
			if string(b[:4]) != "XSLM" || length > f.block-xfsLinkHead {
				return "", fmt.Errorf("inode %d: the link is damaged", x.number)
			}
			out = append(out, b[xfsLinkHead:xfsLinkHead+length]...)
		}
	}
	if int64(len(out)) < x.size {
		return "", fmt.Errorf("inode %d: the link is cut off", x.number)
	}
	return string(out[:x.size]), nil
}
