package cow

import (
	"context"
	"errors"

	"hotspare/storage"
)

var _ storage.Mapper = (*device)(nil)

// errTurn ends a walk over clusters where mapped and not mapped change.
var errTurn = errors.New("cow: turn")

// Mapped is storage.Mapper. Its cost grows with the clusters that are mapped
// within limit.
func (d *device) Mapped(off, limit int64) (mapped bool, n int64, err error) {
	end := min(off+limit, d.Size())
	if err := d.ready(off, max(end-off, 0)); err != nil {
		return false, 0, err
	}
	at, begun := off, false // all up to at is the same
	see := func(m bool, to int64) error {
		if begun && m != mapped {
			return errTurn
		}
		mapped, begun, at = m, true, min(to, end)
		return nil
	}
	err = d.clusters(context.Background(), off, end, func(c uint32, e entry) error {
		start := int64(c) * clusterSize
		if start > at {
			if err := see(false, start); err != nil {
				return err
			}
		}
		for b := range blocksPerCluster {
			from := start + int64(b)*blockSize
			if from+blockSize <= at || from >= end {
				continue
			}
			_, m := e.find(b)
			if err := see(m, from+blockSize); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && at < end {
		err = see(false, end)
	}
	if err != nil && !errors.Is(err, errTurn) {
		return false, 0, err
	}
	return mapped, at - off, nil
}
