package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"hotspare"
)

const stripes = 64

// volume is one row of the catalog. What is not atomic is guarded by Store.mu.
type volume struct {
	superVolume
	root   *node
	blocks int64 // mapped
	opens  int
	// stripes serialise commands on one cluster: a reader never sees data
	// without its checksum, and of two writers of one block one is last.
	stripes [stripes]sync.RWMutex
	size    atomic.Int64 // Size for readers without the lock
	stopped atomic.Pointer[error]
}

func newVolume(sv superVolume, root *node) *volume {
	v := &volume{superVolume: sv, root: root}
	v.size.Store(sv.Size)
	return v
}

func clustersOf(size int64) int64 { return (size + clusterSize - 1) / clusterSize }

// device is an open volume; it implements storage.Device.
type device struct {
	s      *Store
	v      *volume
	closed atomic.Bool
}

func (d *device) Size() int64 { return d.v.size.Load() }

// Close gives the volume free for Delete.
func (d *device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.s.mu.Lock()
	d.v.opens--
	d.s.mu.Unlock()
	return nil
}

// ready says why a command cannot run now, and checks its range.
func (d *device) ready(off, n int64) error {
	if d.closed.Load() {
		return errClosed
	}
	if err := d.s.failure(); err != nil {
		return err
	}
	if p := d.v.stopped.Load(); p != nil {
		return *p
	}
	if off < 0 || n < 0 || off > d.Size() || n > d.Size()-off {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "a command reaches beyond the end of the volume",
			Where: fmt.Sprintf("volume %s: %d bytes at %d, size %d", d.v.Name, n, off, d.Size())}
	}
	return nil
}

// stop ends all use of the volume after corruption was found.
func (d *device) stop(cause error) error {
	err := error(&hotspare.Error{Code: hotspare.CodeCorrupt, What: "a volume is stopped", Where: "volume " + d.v.Name,
		Why: "its data does not match its checksum", Fix: "check the disk; restore the volume from a checkpoint", Err: cause})
	if d.v.stopped.CompareAndSwap(nil, &err) {
		d.s.opts.Log.Error("volume stopped", "volume", d.v.Name, "err", cause)
		d.s.opts.Notify(Notice{Kind: VolumeStopped, Volume: d.v.Name, Err: err})
	}
	return err
}

// span is the part of a command that lies in one cluster.
type span struct {
	cluster uint32
	from    int // within the cluster
	n       int
}

// first gives the span at off of a range of n bytes.
func first(off, n int64) span {
	from := off % clusterSize
	return span{uint32(off / clusterSize), int(from), int(min(n, clusterSize-from))}
}

func (d *device) entry(c uint32) (entry, uint32) {
	d.s.mu.RLock()
	defer d.s.mu.RUnlock()
	return d.v.root.lookup(c), d.v.Owned
}

// ReadAt reads; unmapped blocks are zeros.
func (d *device) ReadAt(p []byte, off int64) (int, error) {
	d.s.io.RLock()
	defer d.s.io.RUnlock()
	if err := d.ready(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		sp := first(off+int64(done), int64(len(p)-done))
		if err := d.readSpan(sp, p[done:done+sp.n]); err != nil {
			return done, err
		}
		done += sp.n
	}
	return done, nil
}

func (d *device) readSpan(sp span, p []byte) error {
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.RLock()
	defer lock.RUnlock()
	e, _ := d.entry(sp.cluster)
	return d.readEntry(e, sp, p)
}

// readEntry reads a span of a cluster that is mapped to e; its stripe is held.
func (d *device) readEntry(e entry, sp span, p []byte) error {
	for len(p) > 0 {
		b := sp.from / blockSize
		run, pc, mapped := e.run(b, (sp.from+sp.n-1)/blockSize)
		n := min(run*blockSize-sp.from%blockSize, sp.n)
		switch {
		case !mapped:
			clear(p[:n])
		case sp.from%blockSize == 0 && n%blockSize == 0:
			if err := d.readBlocks(pc.slot, b, p[:n]); err != nil {
				return err
			}
		default: // a part of a block: the checksum needs all of it
			buf := make([]byte, run*blockSize)
			if err := d.readBlocks(pc.slot, b, buf); err != nil {
				return err
			}
			copy(p[:n], buf[sp.from%blockSize:])
		}
		p = p[n:]
		sp.from += n
		sp.n -= n
	}
	return nil
}

// run gives the number of blocks from b to last that lie in the same piece, or
// that are all unmapped.
func (e entry) run(b, last int) (n int, p piece, mapped bool) {
	p, mapped = e.find(b)
	for n = 1; b+n <= last; n++ {
		q, ok := e.find(b + n)
		if ok != mapped || ok && q.slot != p.slot {
			break
		}
	}
	return n, p, mapped
}

func (d *device) readBlocks(slot uint32, block int, p []byte) error {
	err := d.s.readBlocks(slot, block, p)
	var bad *badBlock
	if errors.As(err, &bad) {
		return d.stop(err)
	}
	return err
}

// WriteAt writes. When it returns nil the write survives the end of the
// process; it survives a power loss after the next Flush.
func (d *device) WriteAt(p []byte, off int64) (int, error) {
	d.s.io.RLock()
	defer d.s.io.RUnlock()
	if err := d.ready(off, int64(len(p))); err != nil {
		return 0, err
	}
	if d.readOnly() {
		return 0, &hotspare.Error{Code: hotspare.CodeVolumeBusy, What: "a write to a read-only volume", Where: "volume " + d.v.Name,
			Why: "golden images and snapshots never change", Fix: "write to a clone of it"}
	}
	done := 0
	for done < len(p) {
		sp := first(off+int64(done), int64(len(p)-done))
		if err := d.writeSpan(sp, p[done:done+sp.n]); err != nil {
			return done, err
		}
		done += sp.n
	}
	return done, nil
}

func (d *device) readOnly() bool {
	d.s.mu.RLock()
	defer d.s.mu.RUnlock()
	return d.v.ReadOnly
}

// maskOf gives the blocks from b0 to b1.
func maskOf(b0, b1 int) uint16 { return uint16((1<<(b1-b0+1) - 1) << b0) }

func (d *device) writeSpan(sp span, p []byte) error {
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.Lock()
	defer lock.Unlock()
	e, since := d.entry(sp.cluster)
	b0, b1 := sp.from/blockSize, (sp.from+sp.n-1)/blockSize
	p, err := d.wholeBlocks(e, sp, p)
	if err != nil {
		return err
	}
	if own, ok := e.owned(since); ok {
		if err := d.s.mayOverwrite(own.slot); err != nil {
			return err
		}
	}
	return d.writeBlocks(sp.cluster, e, since, b0, p, maskOf(b0, b1))
}

// writeBlocks writes whole blocks of a cluster that is mapped to e; its stripe
// is held, and what the volume owns of it may be overwritten.
func (d *device) writeBlocks(c uint32, e entry, since uint32, b0 int, p []byte, mask uint16) error {
	own, ok := e.owned(since)
	switch {
	case ok && own.mask&mask == mask: // no metadata
		return d.s.overwrite(own.slot, b0, p)
	case ok:
		if err := d.s.overwrite(own.slot, b0, p); err != nil {
			return err
		}
		return d.remap(c, e, own, mask)
	}
	return d.writeNew(c, e, b0, p, mask)
}

// wholeBlocks gives p extended to whole blocks with what is there now.
func (d *device) wholeBlocks(e entry, sp span, p []byte) ([]byte, error) {
	if sp.from%blockSize == 0 && sp.n%blockSize == 0 {
		return p, nil
	}
	from := sp.from / blockSize * blockSize
	end := (sp.from + sp.n + blockSize - 1) / blockSize * blockSize
	buf := make([]byte, end-from)
	if sp.from != from {
		if err := d.readEntry(e, span{sp.cluster, from, blockSize}, buf[:blockSize]); err != nil {
			return nil, err
		}
	}
	if last := end - blockSize; sp.from+sp.n != end && (last != from || sp.from == from) {
		if err := d.readEntry(e, span{sp.cluster, last, blockSize}, buf[last-from:]); err != nil {
			return nil, err
		}
	}
	copy(buf[sp.from-from:], p)
	return buf, nil
}

// writeNew writes blocks of a cluster of which the volume owns no piece: into a
// slot of its own, with all other blocks too when the entry would get too long.
func (d *device) writeNew(c uint32, e entry, b0 int, p []byte, mask uint16) error {
	if rest, _ := e.without(mask); len(rest) >= maxPieces {
		buf := make([]byte, clusterSize)
		if err := d.readEntry(e, span{c, 0, clusterSize}, buf); err != nil {
			return err
		}
		copy(buf[b0*blockSize:], p)
		b0, p, mask = 0, buf, 1<<blocksPerCluster-1
	}
	slot, gen, err := d.s.takeSlot()
	if err != nil {
		return err
	}
	if _, err := d.s.markDirty(slot); err != nil {
		d.s.untakeSlot(slot)
		return err
	}
	if err := d.s.writeFresh(slot, b0, p); err != nil {
		d.s.untakeSlot(slot)
		return err
	}
	if err := d.remap(c, e, piece{slot: slot, birth: gen}, mask); err != nil {
		d.s.untakeSlot(slot)
		return err
	}
	return nil
}

func (s *Store) takeSlot() (slot, gen uint32, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	slot, ok := s.alloc.take()
	if !ok {
		return 0, 0, diskFull(s.dir, errors.New("cow: all slots are in use"))
	}
	return slot, s.super.Generation, nil
}

func (s *Store) untakeSlot(slot uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alloc.untake(slot)
}

// remap logs and sets the entry of cluster c: own, extended by mask, and what
// the other pieces of e still hold.
func (d *device) remap(c uint32, e entry, own piece, mask uint16) error {
	rest, _ := e.without(mask | own.mask)
	own.mask |= mask
	return d.s.setEntry(d.v, c, e, append(entry{own}, rest...))
}

// setEntry logs and sets an entry. Slots that only old held are freed.
func (s *Store) setEntry(v *volume, c uint32, old, now entry) error {
	body := binary.LittleEndian.AppendUint64(make([]byte, 0, 64), v.ID)
	body = binary.LittleEndian.AppendUint32(body, 1)
	body = binary.LittleEndian.AppendUint32(body, c)
	body = putEntry(body, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	lsn, err := s.logged(recMap, body)
	if err != nil {
		return err
	}
	v.root = v.root.set(c, now, v.Owned, s.super.Generation)
	v.blocks += now.blocks() - old.blocks()
	for _, p := range old {
		switch {
		case now.uses(p.slot):
		case p.birth >= v.Owned:
			s.alloc.release(lsn, p.slot)
		default:
			s.alloc.orphan(p.slot)
		}
	}
	return nil
}

func (e entry) uses(slot uint32) bool {
	for _, p := range e {
		if p.slot == slot {
			return true
		}
	}
	return false
}

// Discard unmaps whole blocks and zeroes the parts of blocks at the ends.
func (d *device) Discard(off, n int64) error {
	d.s.io.RLock()
	defer d.s.io.RUnlock()
	if err := d.ready(off, n); err != nil {
		return err
	}
	if d.readOnly() {
		return &hotspare.Error{Code: hotspare.CodeVolumeBusy, What: "a discard on a read-only volume", Where: "volume " + d.v.Name}
	}
	for end := off + n; off < end; {
		d.s.mu.RLock()
		c, ok := d.v.root.next(uint64(off/clusterSize), uint64(clustersOf(end)))
		d.s.mu.RUnlock()
		if !ok {
			return nil
		}
		off = max(off, int64(c)*clusterSize)
		sp := first(off, end-off)
		if err := d.discardSpan(sp); err != nil {
			return err
		}
		off += int64(sp.n)
	}
	return nil
}

func (d *device) discardSpan(sp span) error {
	b0, b1 := (sp.from+blockSize-1)/blockSize, (sp.from+sp.n)/blockSize // whole blocks: b0 to b1-1
	if head := min(b0*blockSize, sp.from+sp.n); sp.from < head {
		if err := d.zero(span{sp.cluster, sp.from, head - sp.from}); err != nil {
			return err
		}
	}
	if tail := max(b1*blockSize, sp.from); tail < sp.from+sp.n && b1 >= b0 {
		if err := d.zero(span{sp.cluster, tail, sp.from + sp.n - tail}); err != nil {
			return err
		}
	}
	if b1 <= b0 {
		return nil
	}
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.Lock()
	defer lock.Unlock()
	e, _ := d.entry(sp.cluster)
	rest, _ := e.without(maskOf(b0, b1-1))
	if rest.blocks() == e.blocks() {
		return nil
	}
	return d.s.setEntry(d.v, sp.cluster, e, rest)
}

// zero writes zeros over a part of one block, unless it is unmapped.
func (d *device) zero(sp span) error {
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.RLock()
	e, _ := d.entry(sp.cluster)
	lock.RUnlock()
	if _, mapped := e.find(sp.from / blockSize); !mapped {
		return nil
	}
	return d.writeSpan(sp, make([]byte, sp.n))
}

// Flush makes every write that was acknowledged before the call durable.
func (d *device) Flush() error {
	if d.closed.Load() {
		return errClosed
	}
	if p := d.v.stopped.Load(); p != nil {
		return *p
	}
	return d.s.flush()
}
