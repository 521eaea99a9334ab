package cow

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// After a crash the checksums of a dirty region may differ from its data: it is
// unsealed, until its checksums were recomputed from the data. That happens in
// the background, or at once for a region that somebody wants to use, so it does
// not delay Open. An unsealed region stays dirty in the log.

// unsealed are the regions whose checksums are to be recomputed.
type unsealed struct {
	n    atomic.Int64 // how many: 0 on all but the first minutes after a crash
	mu   sync.Mutex   // held while one is sealed
	inMu sync.Mutex   // of in alone; the store's mu may be held
	in   map[uint32]struct{}
}

func (u *unsealed) has(r uint32) bool {
	u.inMu.Lock()
	defer u.inMu.Unlock()
	_, ok := u.in[r]
	return ok
}

func (u *unsealed) sealed(r uint32) {
	u.inMu.Lock()
	defer u.inMu.Unlock()
	delete(u.in, r)
	u.n.Add(-1)
}

func (u *unsealed) list() []uint32 {
	u.inMu.Lock()
	defer u.inMu.Unlock()
	var out []uint32
	for r := range u.in {
		out = append(out, r)
	}
	slices.Sort(out)
	return out
}

// seal recomputes the checksums of a region if it is unsealed.
func (s *Store) seal(region uint32) error {
	u := &s.unsealed
	if u.n.Load() == 0 {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.has(region) {
		return nil
	}
	s.mu.RLock()
	var mapped uint64
	if w := int(region); w < len(s.slots.mapped.words) { // a region is a word of the bitmap
		mapped = s.slots.mapped.words[w]
	}
	s.mu.RUnlock()
	for i := range uint32(regionSlots) {
		if mapped>>i&1 == 0 {
			continue
		}
		if err := s.reseal(region*regionSlots + i); err != nil {
			return fmt.Errorf("checksums of slot %d: %w", region*regionSlots+i, err)
		}
	}
	u.sealed(region)
	return nil
}

// reseal recomputes the checksums of a slot from its data.
func (s *Store) reseal(slot uint32) error {
	buf := make([]byte, clusterSize)
	if err := readFull(s.data, buf, dataOff(slot, 0)); err != nil {
		return err
	}
	if _, err := s.sums.WriteAt(sumsOf(buf), sumOff(slot, 0)); err != nil {
		return s.writeError(err)
	}
	return nil
}

// sealer seals what a crash left, region by region.
func (s *Store) sealer() {
	for _, r := range s.unsealed.list() {
		select {
		case <-s.done:
			return
		default:
		}
		if err := s.seal(r); err != nil {
			s.opts.Log.Error("volume store: checksums were not recomputed after a crash", "dir", s.dir, "region", r, "err", err)
			return
		}
	}
}

// eras lets a checkpoint wait for the writes that were under way when it began,
// while newer ones go on.
type eras struct {
	now atomic.Uint64
	in  [2]sync.RWMutex
}

// enter begins a write; leave with the era that it gives.
func (e *eras) enter() uint64 {
	for {
		n := e.now.Load()
		e.in[n&1].RLock()
		if e.now.Load() == n {
			return n
		}
		e.in[n&1].RUnlock()
	}
}

func (e *eras) leave(n uint64) { e.in[n&1].RUnlock() }

// next begins an era; drain waits for the writes of the one before.
func (e *eras) next() { e.now.Add(1) }

func (e *eras) drain() {
	old := &e.in[(e.now.Load()-1)&1]
	old.Lock()
	defer old.Unlock()
}
