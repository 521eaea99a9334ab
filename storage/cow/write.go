package cow

import (
	"errors"

	"hotspare"
)

// WriteAt writes. When it returns nil the write survives the end of the
// process; it survives a power loss after the next Flush.
func (d *device) WriteAt(p []byte, off int64) (int, error) {
	d.s.io.RLock()
	defer d.s.io.RUnlock()
	d.v.writes.RLock()
	defer d.v.writes.RUnlock()
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

func (d *device) readOnly() bool { return d.v.readOnly.Load() }

// maskOf gives the blocks from b0 to b1.
func maskOf(b0, b1 int) uint16 { return uint16((1<<(b1-b0+1) - 1) << b0) }

func (d *device) writeSpan(sp span, p []byte) error {
	if err := d.s.room(); err != nil {
		return err
	}
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.Lock()
	defer lock.Unlock()
	var buf [maxPieces]piece
	e, since, err := d.entry(sp.cluster, &buf)
	if err != nil {
		return err
	}
	b0, b1 := sp.from/blockSize, (sp.from+sp.n-1)/blockSize
	if p, err = d.wholeBlocks(e, sp, p); err != nil {
		return err
	}
	era := d.s.eras.enter()
	defer d.s.eras.leave(era)
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
	if len(e.without(mask)) >= maxPieces {
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
	if err := d.s.writeFresh(slot, b0, p, d.passing); err != nil {
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
	if err := s.water.admit(s); err != nil {
		return 0, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	slot, ok := s.slots.take()
	if !ok {
		return 0, 0, s.full(errors.New("cow: all slots are in use"))
	}
	return slot, s.super.Generation, nil
}

// untakeSlot gives back a slot that no record mentions.
func (s *Store) untakeSlot(slot uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots.put(slot)
}

// remap logs and sets the entry of cluster c: own, extended by mask, and what
// the other pieces of e still hold.
func (d *device) remap(c uint32, e entry, own piece, mask uint16) error {
	rest := e.without(mask | own.mask)
	own.mask |= mask
	return d.setEntry(c, e, append(entry{own}, rest...))
}

// setEntry logs and sets an entry. Slots that only old held are freed.
func (d *device) setEntry(c uint32, old, now entry) error {
	s, v := d.s, d.v
	w := writer{make([]byte, 0, 64)}
	w.u64(v.ID)
	w.u32(1)
	w.u32(c)
	w.b = putEntry(w.b, now)
	var pin pins
	var f fetcher
	s.mu.Lock()
	for {
		p, miss := s.descend(v.tree, c, &pin)
		if miss == (want{}) {
			lsn, err := s.logged(recMap, w.b)
			if err == nil {
				s.remapped(v, &p, c, old, now, lsn)
			}
			s.mu.Unlock()
			return err
		}
		s.mu.Unlock()
		if err := f.fetch(s, miss, &pin); err != nil {
			return d.damaged(err)
		}
		s.mu.Lock()
	}
}

// remapped does what the record lsn says: cluster c, to which p is the way, was
// mapped to old and is mapped to now. mu is held.
func (s *Store) remapped(v *volume, p *path, c uint32, old, now entry, lsn uint64) {
	// old is as it was before; it must not share memory with the leaf.
	s.put(v, p, c, now)
	v.blocks += now.blocks() - old.blocks()
	for _, n := range now {
		if !old.uses(n.slot) {
			s.slots.use(n.slot)
		}
	}
	for _, o := range old {
		switch {
		case now.uses(o.slot):
		case o.birth >= v.Owned:
			s.slots.release(lsn, o.slot)
		default:
			s.garbage++ // others may have it
		}
	}
	if s.garbage >= s.garbageLimit() {
		wake(s.reclaimWanted)
	}
	if s.tooDirtyLocked(dirtyPart) {
		wake(s.checkpointWanted)
	}
}

func (e entry) uses(slot uint32) bool {
	for _, p := range e {
		if p.slot == slot {
			return true
		}
	}
	return false
}
