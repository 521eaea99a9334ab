package cow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"hotspare/storage"
)

// recover brings the store to the state that its files prove. After a clean end
// that is the last checkpoint; else the log is replayed, and the outcome written
// as a fresh checkpoint.
func (s *Store) recover(ctx context.Context) error {
	var err error
	if s.data, err = s.fs.Open(dataName, true); err != nil {
		return err
	}
	if s.sums, err = s.fs.Open(sumsName, true); err != nil {
		return err
	}
	if err := s.openLanes(); err != nil {
		return err
	}
	b, err := readAll(s.fs, superName)
	if isMissing(err) {
		return s.initialise()
	}
	if err != nil {
		return err
	}
	if s.super, err = decodeSuper(b); err != nil {
		return err
	}
	if err := s.loadCheckpoint(); err != nil {
		return err
	}
	log, err := readLog(s.fs, s.super.Log, s.super.LSN)
	if err != nil {
		return err
	}
	if len(log.records) == 0 {
		if err := s.continueLog(log); err != nil {
			return err
		}
		s.removeStrays()
	} else if err := s.replay(ctx, log); err != nil {
		return err
	}
	if s.garbage > 0 {
		wake(s.reclaimWanted)
	}
	return nil
}

// initialise makes a new store, but never over the data of a lost one.
func (s *Store) initialise() error {
	size, err := s.data.Size()
	if err != nil {
		return err
	}
	if size > 0 {
		return fmt.Errorf("%w: %q holds %d bytes but %q is missing", errCodec, dataName, size, superName)
	}
	s.super = super{ID: storage.NewUID(), Created: s.opts.Now().UTC(), Generation: 1, NextVolume: 1}
	if err := writeAll(s.fs, mapName, mapHead()); err != nil {
		return err
	}
	if s.mapFile, err = s.fs.Open(mapName, false); err != nil {
		return err
	}
	s.places.busy.set(0)
	s.log = s.newLog(0, 1)
	if err := s.checkpointAlone(); err != nil {
		return err
	}
	s.removeStrays()
	return nil
}

func (s *Store) newLog(lsn, next uint64) *wal {
	w := &wal{ahead: min(logAhead, s.opts.LogLimit), next: next, lsn: lsn, barrier: lsn}
	w.synced.Store(lsn)
	return w
}

// loadCheckpoint reads the catalog and what is in use, not the maps.
func (s *Store) loadCheckpoint() error {
	b, err := readAll(s.fs, spaceName(s.super.Space))
	if err != nil {
		return fmt.Errorf("%w: %w", errCodec, err)
	}
	slots, units, err := decodeSpace(b, s.super.Space)
	if err != nil {
		return err
	}
	s.slots.mapped, s.slots.busy, s.places.busy = slots, slots.clone(), units
	if s.mapFile, err = s.fs.Open(mapName, false); err != nil {
		return fmt.Errorf("%w: %w", errCodec, err)
	}
	h := make([]byte, mapHeadSize)
	if err := readFull(s.mapFile, h, 0); err != nil {
		return err
	}
	if err := checkMapHead(h); err != nil {
		return err
	}
	if !units.has(0) {
		return fmt.Errorf("%w: the head of %q is not in use", errCodec, mapName)
	}
	for _, sv := range s.super.Volumes {
		s.add(newVolume(sv))
	}
	s.super.Volumes = nil
	s.garbage = s.super.Garbage
	s.frozen = s.super.Generation - 1
	return nil
}

// continueLog goes on in a log that is empty. If another boot made it, it is made
// anew: what it will hold is this boot's.
func (s *Store) continueLog(c logContents) error {
	s.log = s.newLog(s.super.LSN, c.last+1)
	name := logName(c.last)
	if c.boot == s.opts.BootID && c.boot != "" {
		f, err := s.fs.Open(name, false)
		if err != nil {
			return err
		}
		s.log.files = []*logFile{{f: f, num: c.last, after: s.super.LSN, size: logHeadSize, zeroed: c.size}}
		return nil
	}
	const tmp = "log-new"
	l, err := createLog(s.fs, tmp, c.last, s.opts.BootID, s.log.ahead)
	if err != nil {
		return err
	}
	l.after = s.super.LSN
	s.log.files = []*logFile{l}
	return errors.Join(s.fs.Rename(tmp, name), s.fs.SyncDir())
}

// removeStrays removes files that no checkpoint names.
func (s *Store) removeStrays() {
	names, err := s.fs.List()
	if err != nil {
		return
	}
	keep := []string{logName(s.super.Log), spaceName(s.super.Space)}
	for _, n := range names {
		ours := strings.HasPrefix(n, "log-") || strings.HasPrefix(n, "space-") || n == superName+".new"
		if ours && !slices.Contains(keep, n) {
			if err := s.fs.Remove(n); err != nil {
				s.opts.Log.Warn("volume store: a stray file stays", "file", n, "err", err)
			}
		}
	}
}

// giveBack gives the space of all free slots back: a crash may have come before
// that was done.
func (s *Store) giveBack() {
	end := s.slots.mapped.end()
	err := s.data.Truncate(dataOff(end, 0))
	for at := s.slots.mapped.firstClear(0); at < end && err == nil; {
		stop, _ := s.slots.mapped.firstSet(at)
		err = s.data.Punch(dataOff(at, 0), int64(stop-at)*clusterSize)
		at = s.slots.mapped.firstClear(stop)
	}
	if err != nil {
		s.opts.Log.Warn("volume store: free space was not given back", "dir", s.dir, "err", err)
	}
}
