package cow

import (
	"fmt"
	"sync"
)

// groupFlush lets concurrent flushes share one sync: who comes while one is
// under way waits for the next, which the first of the waiters leads.
type groupFlush struct {
	mu   sync.Mutex
	next *flushRound
}

type flushRound struct {
	once sync.Once
	err  error
}

// flush makes all data that was written before the call durable, and the maps
// that show it.
func (s *Store) flush() error {
	s.flushes.mu.Lock()
	if s.flushes.next == nil {
		s.flushes.next = &flushRound{}
	}
	round := s.flushes.next
	s.flushes.mu.Unlock()
	round.once.Do(func() {
		s.flushMu.Lock()
		defer s.flushMu.Unlock()
		s.flushes.mu.Lock()
		s.flushes.next = nil // whoever comes now may have written after we begin
		s.flushes.mu.Unlock()
		round.err = s.syncAll()
	})
	return round.err
}

// syncAll syncs the data, then logs a barrier and syncs the log if any map
// changed since the last one. flushMu is held.
func (s *Store) syncAll() error {
	if err := s.failure(); err != nil {
		return err
	}
	s.mu.RLock()
	upto := s.log.lsn
	s.mu.RUnlock()
	if err := s.syncData(); err != nil {
		return err
	}
	s.mu.Lock()
	if upto > s.log.barrier {
		w := writer{}
		w.u64(upto)
		w.u64(s.log.synced.Load())
		lsn, err := s.logged(recBarrier, w.b)
		s.mu.Unlock()
		if err != nil {
			return err
		}
		if err := s.syncLog(lsn); err != nil {
			return err
		}
		s.mu.Lock()
		if lsn == upto+1 || s.opts.plant == plantWideBarrier {
			upto = lsn // nothing came between what it covers and the barrier itself
		}
		s.log.barrier = max(s.log.barrier, upto)
	}
	freed := s.slots.settle(s.log.barrier)
	s.mu.Unlock()
	s.recycle(freed)
	return nil
}

// syncData makes what was written to the data file durable. One file's syncs
// share a number: whoever finds all writes covered has nothing to do.
func (s *Store) syncData() error {
	s.dataMu.Lock()
	defer s.dataMu.Unlock()
	upto := s.written.Load()
	if upto == s.dataSynced {
		return nil
	}
	if err := s.data.Sync(); err != nil {
		s.fail(fmt.Errorf("sync of data: %w", err))
		return s.failure()
	}
	s.dataSynced = upto
	return nil
}

// recycle gives the space of freed slots back and makes them available.
func (s *Store) recycle(slots []uint32) {
	if len(slots) == 0 {
		return
	}
	err := runs(slots, func(first uint32, n int64) error {
		return s.data.Punch(dataOff(first, 0), n*clusterSize)
	})
	if err != nil { // the slots stay usable, only their space is not given back
		s.opts.Log.Warn("volume store: no hole punched", "dir", s.dir, "err", err)
	}
	s.mu.Lock()
	s.slots.put(slots...)
	s.mu.Unlock()
	s.water.freed(s)
}
