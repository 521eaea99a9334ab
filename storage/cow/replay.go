package cow

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
)

// replay applies the log and writes the outcome as a checkpoint. After a power
// loss only what a barrier covers counts; that a region was dirty always counts.
func (s *Store) replay(ctx context.Context, c logContents) error {
	limit := c.barrier
	if c.boot != "" && c.boot == s.opts.BootID || s.opts.plant == plantNoBarrier {
		limit = ^uint64(0)
	}
	s.log = s.newLog(c.lsn, c.last+1) // numbers are not used again
	s.unsealed.in = map[uint32]struct{}{}
	dropped := 0
	for _, r := range c.records {
		if r.lsn > limit && r.kind != recDirty {
			dropped++
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.apply(r); err != nil {
			return fmt.Errorf("record %d of the log: %w", r.lsn, err)
		}
	}
	if dropped > 0 {
		s.opts.Log.Warn("volume store: changes after the last flush were lost with the power", "dir", s.dir, "records", dropped)
	}
	s.slots.settled()
	s.unsealed.n.Store(int64(len(s.unsealed.in)))
	if err := s.checkpointAlone(); err != nil {
		return err
	}
	s.removeStrays()
	s.giveBack()
	return nil
}

// apply does what one record says.
func (s *Store) apply(r record) error {
	rd := &reader{b: r.body}
	var err error
	switch r.kind {
	case recBarrier, recNext:
		return nil
	case recDirty:
		for range rd.u32() {
			if rd.bad {
				break
			}
			s.unsealed.in[rd.u32()] = struct{}{}
		}
	case recMap:
		err = s.applyMap(rd, r.lsn)
	case recCreate:
		err = s.applyNew(rd, nil)
	case recClone:
		src := s.byID[rd.u64()]
		if src == nil {
			return fmt.Errorf("%w: clone of no volume", errCodec)
		}
		err = s.applyNew(rd, src)
	case recDelete, recRead, recResize:
		v := s.byID[rd.u64()]
		if v == nil {
			return fmt.Errorf("%w: change of no volume", errCodec)
		}
		switch r.kind {
		case recDelete:
			s.drop(v)
		case recRead:
			v.seal()
		default:
			s.resize(v, int64(rd.u64()))
		}
	default:
		return fmt.Errorf("%w: record of kind %d", errVersion, r.kind)
	}
	if err == nil && rd.bad {
		err = fmt.Errorf("%w: record of kind %d", errCodec, r.kind)
	}
	return err
}

func (s *Store) applyMap(rd *reader, lsn uint64) error {
	v := s.byID[rd.u64()]
	if v == nil {
		return fmt.Errorf("%w: map of no volume", errCodec)
	}
	for range rd.u32() {
		c, e := rd.u32(), rd.entry()
		if rd.bad || int64(c) >= clustersOf(v.Size) {
			return fmt.Errorf("%w: map record", errCodec)
		}
		for _, p := range e {
			if s.opts.plant != plantGeneration { // what is made from now on is younger
				s.super.Generation = max(s.super.Generation, p.birth)
			}
		}
		if err := s.replayEntry(v, c, e, lsn); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		if s.opts.plant == plantLostMapped {
			for _, p := range e {
				s.slots.mapped.clear(p.slot)
				s.slots.put(p.slot)
			}
		}
	}
	return nil
}

func (s *Store) replayEntry(v *volume, c uint32, now entry, lsn uint64) error {
	var pin pins
	var f fetcher
	for {
		p, miss := s.descend(v.tree, c, &pin)
		if miss == (want{}) {
			var old entry
			if p.n[0] != nil {
				old = slices.Clone(p.n[0].entry(slotOf(c, 0)))
			}
			s.remapped(v, &p, c, old, now, lsn)
			return nil
		}
		if err := f.fetch(s, miss, &pin); err != nil {
			return err
		}
	}
}

// applyNew makes the volume of a create or clone record.
func (s *Store) applyNew(rd *reader, src *volume) error {
	var sv superVolume
	if err := json.Unmarshal([]byte(rd.str()), &sv); err != nil || s.byID[sv.ID] != nil || s.volumes[sv.Name] != nil {
		return fmt.Errorf("%w: record of a new volume", errCodec)
	}
	s.addNew(sv, src)
	return nil
}

// addNew enters a new volume: empty, or with the map of src, which from then on
// owns nothing of what it has.
func (s *Store) addNew(sv superVolume, src *volume) {
	s.super.Generation = max(s.super.Generation, sv.Owned)
	s.super.NextVolume = max(s.super.NextVolume, sv.ID+1)
	v := newVolume(sv)
	if src != nil {
		src.Owned = sv.Owned
		v.tree = src.tree
		v.blocks = src.blocks
	}
	s.add(v)
}

func (s *Store) add(v *volume) {
	s.volumes[v.Name] = v
	s.byID[v.ID] = v
}

func (s *Store) drop(v *volume) {
	delete(s.volumes, v.Name)
	delete(s.byID, v.ID)
	s.garbage += 1 + v.blocks/blocksPerCluster
}

func (s *Store) resize(v *volume, size int64) {
	s.grow(v, depthFor(clustersOf(size)))
	v.Size = size
	v.size.Store(size)
}

func (v *volume) seal() {
	v.ReadOnly = true
	v.readOnly.Store(true)
}
