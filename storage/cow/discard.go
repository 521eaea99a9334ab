package cow

import "hotspare"

// Discard unmaps whole blocks and zeroes the parts of blocks at the ends.
func (d *device) Discard(off, n int64) error {
	d.s.io.RLock()
	defer d.s.io.RUnlock()
	d.v.writes.RLock()
	defer d.v.writes.RUnlock()
	if err := d.ready(off, n); err != nil {
		return err
	}
	if d.readOnly() {
		return &hotspare.Error{Code: hotspare.CodeVolumeBusy, What: "a discard on a read-only volume", Where: "volume " + d.v.Name}
	}
	for end := off + n; off < end; {
		c, ok, err := d.s.nextMapped(d.v, uint64(off/clusterSize), uint64(clustersOf(end)))
		if err != nil {
			return d.damaged(err)
		}
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
	if err := d.s.room(); err != nil {
		return err
	}
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.Lock()
	defer lock.Unlock()
	var buf [maxPieces]piece
	e, _, err := d.entry(sp.cluster, &buf)
	if err != nil {
		return err
	}
	rest := e.without(maskOf(b0, b1-1))
	if rest.blocks() == e.blocks() {
		return nil
	}
	return d.setEntry(sp.cluster, e, rest)
}

// zero writes zeros over a part of one block, unless it is unmapped.
func (d *device) zero(sp span) error {
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.RLock()
	var buf [maxPieces]piece
	e, _, err := d.entry(sp.cluster, &buf)
	lock.RUnlock()
	if err != nil {
		return err
	}
	if _, mapped := e.find(sp.from / blockSize); !mapped {
		return nil
	}
	return d.writeSpan(sp, make([]byte, sp.n))
}
