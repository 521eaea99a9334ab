package cow

import (
	"errors"
	"fmt"
	"sync"
)

// groupFlush lets concurrent flushes share syncs. A round begins when a lane is
// free; who comes until then joins it. Several rounds run at a time, because the
// disk can carry out several syncs at a time. Every lane has its own opening of
// the data file: Linux tells an error of writing back once to each opening, so a
// round cannot miss one that another was told.
type groupFlush struct {
	mu    sync.Mutex
	next  *flushRound
	lanes chan File
}

const flushLanes = 16

type flushRound struct {
	once sync.Once
	err  error
}

// openLanes opens the data file for the rounds.
func (s *Store) openLanes() error {
	lanes := make(chan File, flushLanes)
	for range flushLanes {
		f, err := s.fs.Open(dataName, false)
		if err != nil {
			close(lanes)
			for f := range lanes {
				f.Close()
			}
			return err
		}
		lanes <- f
	}
	s.flushes.lanes = lanes
	return nil
}

// closeLanes waits for the rounds under way to end.
func (s *Store) closeLanes() error {
	var errs []error
	for range cap(s.flushes.lanes) {
		errs = append(errs, (<-s.flushes.lanes).Close())
	}
	return errors.Join(errs...)
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
		lane := <-s.flushes.lanes
		defer func() { s.flushes.lanes <- lane }()
		s.flushes.mu.Lock()
		s.flushes.next = nil // whoever comes now may have written after we begin
		s.flushes.mu.Unlock()
		round.err = s.syncAll(lane)
	})
	return round.err
}

// syncAll syncs the data, then logs a barrier and syncs the log if any map
// changed since the last one.
func (s *Store) syncAll(lane File) error {
	if err := s.failure(); err != nil {
		return err
	}
	s.mu.RLock()
	upto := s.log.lsn
	s.mu.RUnlock()
	if err := s.syncData(lane); err != nil {
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
	freed := s.settle(s.log.barrier)
	s.mu.Unlock()
	s.recycle(freed)
	return nil
}

// syncData makes what was written to the data file before the call durable,
// through one of its openings.
func (s *Store) syncData(f File) error {
	upto := s.written.Load()
	s.dataMu.Lock()
	done := upto <= s.dataSynced
	s.dataMu.Unlock()
	if done {
		return nil
	}
	if err := f.Sync(); err != nil {
		s.fail(fmt.Errorf("sync of data: %w", err))
		return s.failure()
	}
	s.dataMu.Lock()
	s.dataSynced = max(s.dataSynced, upto)
	s.dataMu.Unlock()
	return nil
}

// settle takes the freed slots whose records are durable, for recycle. mu is
// held.
func (s *Store) settle(durable uint64) []uint32 {
	freed := s.slots.settle(durable)
	if len(freed) > 0 {
		s.recycling++
	}
	return freed
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
	s.recycling--
	s.recycled.Broadcast()
	s.mu.Unlock()
	s.water.freed(s)
}
