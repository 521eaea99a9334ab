package cow

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"hotspare/storage"
)

var _ storage.NoWaiter = (*device)(nil)

// noWaitFile is a File that can tell whether a read would wait for the disk. A
// file layer that lacks it makes every command a waiting one.
type noWaitFile interface {
	// ReadAtNoWait reads what is in memory. It gives less than len(p) bytes
	// where the rest would have to be waited for, or lies beyond the end.
	ReadAtNoWait(p []byte, off int64) int
}

// ReadAtNoWait is preadv2 with RWF_NOWAIT. A file system in memory may not know
// that flag, but never waits either.
func (f osFile) ReadAtNoWait(p []byte, off int64) int {
	if len(p) == 0 {
		return 0
	}
	iov := unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
	flags := uintptr(unix.RWF_NOWAIT)
	if f.inMemory {
		flags = 0
	}
	for {
		n, _, errno := unix.Syscall6(unix.SYS_PREADV2, f.fd, uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, flags)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0
		}
		return int(n)
	}
}

// isInMemory says whether the file is on a file system without a disk.
func isInMemory(f *os.File) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &st) == nil && st.Type == unix.TMPFS_MAGIC
}

// readNoWait reads all of p or says false.
func readNoWait(f File, p []byte, off int64) bool {
	nw, ok := f.(noWaitFile)
	return ok && nw.ReadAtNoWait(p, off) == len(p)
}

// ReadAtNoWait is ReadAt if all of p is in memory and nobody is in the way.
// After false p holds anything; ReadAt then finds out what is the matter.
func (d *device) ReadAtNoWait(p []byte, off int64) bool {
	if off%blockSize != 0 || len(p)%blockSize != 0 || !d.s.io.TryRLock() {
		return false
	}
	defer d.s.io.RUnlock()
	if d.ready(off, int64(len(p))) != nil {
		return false
	}
	for len(p) > 0 {
		sp := first(off, int64(len(p)))
		if !d.readSpanNoWait(sp, p[:sp.n]) {
			return false
		}
		p, off = p[sp.n:], off+int64(sp.n)
	}
	return true
}

func (d *device) readSpanNoWait(sp span, p []byte) bool {
	lock := &d.v.stripes[sp.cluster%stripes]
	if !lock.TryRLock() {
		return false
	}
	defer lock.RUnlock()
	var buf [maxPieces]piece
	e, _, ok := d.entryNoWait(sp.cluster, &buf)
	if !ok {
		return false
	}
	last := (sp.from + sp.n - 1) / blockSize
	for b := sp.from / blockSize; b <= last; {
		run, pc, mapped := e.run(b, last)
		part := p[:run*blockSize]
		if !mapped {
			clear(part)
		} else if !d.s.readBlocksNoWait(pc.slot, b, part) {
			return false
		}
		p, b = p[len(part):], b+run
	}
	return true
}

// entryNoWait is Store.lookup if the way to the entry is in memory.
func (d *device) entryNoWait(c uint32, buf *[maxPieces]piece) (e entry, since uint32, ok bool) {
	s := d.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, miss := s.descend(d.v.tree, c, &pins{})
	if miss != (want{}) {
		return nil, 0, false
	}
	if p.n[0] != nil {
		e = append(buf[:0], p.n[0].entry(slotOf(c, 0))...)
	}
	return e, d.v.Owned, true
}

// readBlocksNoWait is readBlocks for what is in memory and matches its checksum.
func (s *Store) readBlocksNoWait(slot uint32, block int, p []byte) bool {
	var want [slotSums]byte
	n := len(p) / blockSize
	if s.unsealed.n.Load() > 0 {
		return false
	}
	if !readNoWait(s.data, p, dataOff(slot, block)) || !readNoWait(s.sums, want[:n*sumSize], sumOff(slot, block)) {
		return false
	}
	for i := range n {
		if checksum(p[i*blockSize:(i+1)*blockSize]) != binary.LittleEndian.Uint32(want[i*sumSize:]) {
			return false
		}
	}
	return true
}

// WriteAtNoWait is WriteAt for whole blocks, if the log need not be synced first
// and nobody is in the way.
func (d *device) WriteAtNoWait(p []byte, off int64) (done bool, err error) {
	if off%blockSize != 0 || len(p)%blockSize != 0 || !d.s.io.TryRLock() {
		return false, nil
	}
	defer d.s.io.RUnlock()
	if !d.v.writes.TryRLock() {
		return false, nil
	}
	defer d.v.writes.RUnlock()
	if d.ready(off, int64(len(p))) != nil || d.readOnly() || d.s.tooDirty() {
		return false, nil
	}
	for len(p) > 0 {
		sp := first(off, int64(len(p)))
		if done, err := d.writeSpanNoWait(sp, p[:sp.n]); !done || err != nil {
			return done, err
		}
		p, off = p[sp.n:], off+int64(sp.n)
	}
	return true, nil
}

func (d *device) writeSpanNoWait(sp span, p []byte) (done bool, err error) {
	lock := &d.v.stripes[sp.cluster%stripes]
	if !lock.TryLock() {
		return false, nil
	}
	defer lock.Unlock()
	var buf [maxPieces]piece
	e, since, ok := d.entryNoWait(sp.cluster, &buf)
	if !ok || d.s.unsealed.n.Load() > 0 {
		return false, nil
	}
	era := d.s.eras.enter()
	defer d.s.eras.leave(era)
	if own, ok := e.owned(since); ok && !d.s.isDirty(own.slot) {
		return false, nil
	}
	b0 := sp.from / blockSize
	return true, d.writeBlocks(sp.cluster, e, since, b0, p, maskOf(b0, (sp.from+sp.n-1)/blockSize))
}

// isDirty says whether it is durable that the slot's region is dirty.
func (s *Store) isDirty(slot uint32) bool {
	lsn := s.dirty.get(slot / regionSlots)
	if lsn == 0 {
		return false
	}
	return s.log.synced.Load() >= lsn
}
