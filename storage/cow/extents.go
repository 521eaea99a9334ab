package cow

import (
	"context"
	"errors"
	"fmt"
)

// Extent is a run of bytes of a volume that are mapped: they hold what was
// written there. What lies between extents reads as zeros.
type Extent struct {
	Off, Len int64 // multiples of 4096, but for a volume's last extent
}

// Extents calls visit for every extent of the volume or snapshot that begins at
// or after off, in order; neighbours come as one. An error of visit ends it and
// is returned. A volume that is written meanwhile gives a blurred picture: take
// a snapshot for an exact one. The volume counts as open until it returns.
func (s *Store) Extents(ctx context.Context, name string, off int64, visit func(Extent) error) error {
	d, err := s.openDevice(name)
	if err != nil {
		return err
	}
	defer d.Close()
	var run Extent
	err = d.clusters(ctx, off, d.Size(), func(c uint32, e entry) error {
		for b := range blocksPerCluster {
			at := int64(c)*clusterSize + int64(b)*blockSize
			if _, mapped := e.find(b); !mapped || at < off || at >= d.Size() {
				continue
			}
			n := min(blockSize, d.Size()-at)
			if run.Len > 0 && run.Off+run.Len == at {
				run.Len += n
				continue
			}
			if run.Len > 0 {
				if err := visit(run); err != nil {
					return err
				}
			}
			run = Extent{at, n}
		}
		return nil
	})
	if err == nil && run.Len > 0 {
		err = visit(run)
	}
	return err
}

// Verified is what Verify found.
type Verified struct {
	Bytes int64   // that were read and compared with their checksums
	Bad   []int64 // offsets of blocks of 4 KiB that differ, in order
}

// Verify reads what is mapped in n bytes from off and compares it with the
// checksums. A block that differs stops the volume (STO-002), and all of them are
// named. The error is about reading: of the disk, of the map, or ctx's.
func (s *Store) Verify(ctx context.Context, name string, off, n int64) (Verified, error) {
	var v Verified
	d, err := s.openDevice(name)
	if err != nil {
		return v, err
	}
	defer d.Close()
	end := min(off+n, d.Size())
	buf := make([]byte, blockSize)
	err = d.clusters(ctx, off, end, func(c uint32, _ entry) error {
		return d.verifyCluster(c, off, end, buf, &v)
	})
	return v, err
}

// hold gives the entry of a cluster as it is mapped now, and keeps it and its
// data from being changed until unlock is called.
func (d *device) hold(c uint32, buf *[maxPieces]piece) (e entry, unlock func(), err error) {
	lock := &d.v.stripes[c%stripes]
	unlock = func() {
		lock.RUnlock()
		d.s.io.RUnlock()
	}
	d.s.io.RLock()
	lock.RLock()
	if err = d.s.failure(); err == nil {
		e, _, err = d.entry(c, buf)
	}
	if err != nil {
		unlock()
		return nil, nil, err
	}
	return e, unlock, nil
}

func (d *device) verifyCluster(c uint32, off, end int64, buf []byte, v *Verified) error {
	var pieces [maxPieces]piece
	e, unlock, err := d.hold(c, &pieces)
	if err != nil {
		return err
	}
	defer unlock()
	for b := range blocksPerCluster {
		at := int64(c)*clusterSize + int64(b)*blockSize
		p, mapped := e.find(b)
		if !mapped || at+blockSize <= off || at >= end {
			continue
		}
		err := d.s.readBlocks(p.slot, b, buf)
		var bad *badBlock
		switch {
		case errors.As(err, &bad):
			v.Bad = append(v.Bad, at)
			_ = d.stop(dataDiffers, fmt.Errorf("byte %d of the volume: %w", at, err)) // the scrub goes on and names the others
		case err != nil:
			return err
		}
		v.Bytes += blockSize
	}
	return nil
}

// clusters calls visit for the mapped clusters that touch [off, end).
func (d *device) clusters(ctx context.Context, off, end int64, visit func(uint32, entry) error) error {
	if off < 0 || end <= off {
		return nil
	}
	var buf [maxPieces]piece
	for c, limit := uint64(off/clusterSize), uint64(clustersOf(end)); ; c++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, ok, err := d.s.nextMapped(d.v, c, limit)
		if err != nil {
			return d.damaged(err)
		}
		if !ok {
			return nil
		}
		e, _, err := d.entry(uint32(at), &buf)
		if err != nil {
			return err
		}
		if err := visit(uint32(at), e); err != nil {
			return err
		}
		c = at
	}
}
