package cow

import (
	"context"
	"errors"
	"fmt"
)

// Report is what Check found.
type Report struct {
	Volumes  int
	Slots    int64 // in use
	Blocks   int64 // of data that were read and compared with their checksums
	Orphans  int64 // slots that wait for a sweep to free them
	Leaked   int64 // slots that nothing uses and that are not free
	Problems []string
}

// OK says whether the store is sound.
func (r Report) OK() bool { return r.Leaked == 0 && len(r.Problems) == 0 }

// Check reads all data and compares it with its checksums, and accounts for
// every slot. The store stays in use meanwhile.
func (s *Store) Check(ctx context.Context) (Report, error) {
	if err := s.failure(); err != nil {
		return Report{}, err
	}
	r := s.account()
	done := map[uint32]uint16{} // blocks of slots that were compared
	for _, i := range s.List() {
		if err := s.checkData(ctx, i.Name, done, &r); err != nil {
			return r, err
		}
	}
	return r, nil
}

// account compares maps and allocation.
func (s *Store) account() Report {
	s.io.Lock()
	defer s.io.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := Report{Volumes: len(s.byID)}
	problem := func(f string, a ...any) {
		if len(r.Problems) < 100 {
			r.Problems = append(r.Problems, fmt.Sprintf(f, a...))
		}
	}
	var live, free bitset
	owner := map[uint32]string{} // of pieces that a volume owns exclusively
	for _, v := range s.byID {
		limit := uint64(clustersOf(v.Size))
		covered := v.root.covers()
		for c, ok := v.root.next(0, covered); ok; c, ok = v.root.next(c+1, covered) {
			if c >= limit {
				problem("volume %s maps cluster %d beyond its end", v.Name, c)
			}
			for _, p := range v.root.lookup(uint32(c)) {
				if o, taken := owner[p.slot]; taken {
					problem("slot %d of volume %s is also owned by %s", p.slot, v.Name, o)
				}
				if p.birth >= v.Owned {
					if live.has(p.slot) {
						problem("slot %d owned by volume %s is used twice", p.slot, v.Name)
					}
					owner[p.slot] = v.Name
				}
				live.set(p.slot)
			}
		}
	}
	for _, slot := range s.alloc.free {
		free.set(slot)
	}
	for _, f := range s.alloc.pending {
		free.set(f.slot)
	}
	for slot := range s.alloc.next {
		switch {
		case live.has(slot) && free.has(slot):
			problem("slot %d is in use and free", slot)
		case live.has(slot):
			r.Slots++
		case free.has(slot):
		case s.alloc.isOrphan(slot):
			r.Orphans++
		default:
			r.Leaked++
		}
	}
	return r
}

// checkData reads what the volume maps and was not compared yet.
func (s *Store) checkData(ctx context.Context, name string, done map[uint32]uint16, r *Report) error {
	dev, err := s.OpenVolume(name)
	if err != nil {
		return nil // deleted meanwhile
	}
	defer dev.Close()
	d := dev.(*device)
	buf := make([]byte, clusterSize)
	limit := uint64(clustersOf(d.Size()))
	for c := uint64(0); ; c++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.RLock()
		at, ok := d.v.root.next(c, limit)
		s.mu.RUnlock()
		if !ok {
			return nil
		}
		c = at
		if err := s.checkCluster(d, uint32(c), buf, done, r); err != nil {
			return err
		}
	}
}

func (s *Store) checkCluster(d *device, c uint32, buf []byte, done map[uint32]uint16, r *Report) error {
	s.io.RLock()
	defer s.io.RUnlock()
	lock := &d.v.stripes[c%stripes]
	lock.RLock()
	defer lock.RUnlock()
	e, _ := d.entry(c)
	for _, p := range e {
		for b := range blocksPerCluster {
			if p.mask>>b&1 == 0 || done[p.slot]>>b&1 == 1 {
				continue
			}
			done[p.slot] |= 1 << b
			r.Blocks++
			err := s.readBlocks(p.slot, b, buf[:blockSize])
			var bad *badBlock
			switch {
			case errors.As(err, &bad):
				r.Problems = append(r.Problems, fmt.Sprintf("volume %s: %v", d.v.Name, bad))
			case err != nil:
				return err
			}
		}
	}
	return nil
}
