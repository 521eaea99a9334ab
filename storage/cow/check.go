package cow

import (
	"context"
	"errors"
	"fmt"
)

// Report is what Check found.
type Report struct {
	Volumes  int
	Nodes    int64 // of the maps, all of which were read and compared with their checksums
	Slots    int64 // in use
	Blocks   int64 // of data that were read and compared with their checksums
	Orphans  int64 // slots that wait to be reclaimed
	Leaked   int64 // slots that nothing uses and that are not free
	Problems []string
}

// OK says whether the store is sound.
func (r Report) OK() bool { return r.Leaked == 0 && len(r.Problems) == 0 }

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < 100 {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Check reads all maps and all data, compares them with their checksums, and
// accounts for every slot and every place in the map file. The store stays in
// use meanwhile.
func (s *Store) Check(ctx context.Context) (Report, error) {
	if err := s.failure(); err != nil {
		return Report{}, err
	}
	r, err := s.account(ctx)
	if err != nil {
		return r, err
	}
	var done blockSet
	for _, i := range s.List() {
		if err := s.checkData(ctx, i.Name, &done, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// account compares maps and allocation, as they are at one moment.
func (s *Store) account(ctx context.Context) (Report, error) {
	s.reclaimMu.Lock()
	defer s.reclaimMu.Unlock()
	m := s.beginMark()
	defer func() { s.freed(s.places.unhold()) }()
	r := Report{Volumes: len(m.volumes)}
	var live, owned bitmap
	m.trouble = func(err error) { r.problem("%v", err) }
	m.visit = func(v *markVolume, p piece) {
		switch {
		case owned.has(p.slot):
			r.problem("slot %d of volume %s is also owned by another", p.slot, v.name)
		case p.birth >= v.owned && live.has(p.slot):
			r.problem("slot %d owned by volume %s is used twice", p.slot, v.name)
		}
		if p.birth >= v.owned {
			owned.set(p.slot)
		}
		live.set(p.slot)
	}
	if err := m.run(ctx); err != nil {
		return r, err
	}
	r.Nodes, r.Slots = m.nodes, live.count
	if m.garbage > 0 { // a pass of the reclaimer is due
		r.Orphans = m.slots.count
	} else {
		r.Leaked = m.slots.count
		if n := m.units.count; n > 0 {
			r.problem("%d units of %q are in use by nothing", n, mapName)
		}
	}
	return r, s.checkEnds(ctx, m, &r)
}

// checkEnds looks for what volumes map beyond their ends.
func (s *Store) checkEnds(ctx context.Context, m *mark, r *Report) error {
	for i := range m.volumes {
		v := &m.volumes[i]
		limit := uint64(clustersOf(v.size))
		var pin pins
		var f fetcher
		for c := limit; ; {
			if err := ctx.Err(); err != nil {
				return err
			}
			s.mu.RLock()
			at, ok, miss := s.next(v.tree, c, v.tree.covers(), &pin)
			s.mu.RUnlock()
			if miss == (want{}) {
				if ok {
					r.problem("volume %s maps cluster %d beyond its end", v.name, at)
				}
				break
			}
			if err := f.fetch(s, miss, &pin); err != nil {
				if !errors.Is(err, errCodec) {
					return err
				}
				break // named already
			}
			c = at
		}
	}
	return nil
}

// checkData reads what the volume maps and was not compared yet.
func (s *Store) checkData(ctx context.Context, name string, done *blockSet, r *Report) error {
	d, err := s.openDevice(name)
	if err != nil {
		return nil // deleted meanwhile
	}
	defer d.Close()
	buf := make([]byte, blockSize)
	err = d.clusters(ctx, 0, d.Size(), func(c uint32, _ entry) error { return s.checkCluster(d, c, buf, done, r) })
	if errors.Is(err, errCodec) { // a damaged map, which account has named
		r.problem("volume %s: %v", name, err)
		return nil
	}
	return err
}

func (s *Store) checkCluster(d *device, c uint32, buf []byte, done *blockSet, r *Report) error {
	var pieces [maxPieces]piece
	e, unlock, err := d.hold(c, &pieces)
	if err != nil {
		return err
	}
	defer unlock()
	for _, p := range e {
		for b := range blocksPerCluster {
			if p.mask>>b&1 == 0 || done.all(p.slot, maskOf(b, b)) {
				continue
			}
			done.add(p.slot, maskOf(b, b))
			r.Blocks++
			err := s.readBlocks(p.slot, b, buf)
			var bad *badBlock
			switch {
			case errors.As(err, &bad):
				r.problem("volume %s: %v", d.v.Name, bad)
			case err != nil:
				return err
			}
		}
	}
	return nil
}
