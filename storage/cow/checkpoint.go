package cow

import (
	"errors"
	"fmt"
	"time"
)

// A checkpoint writes down the store as it was at one moment, while commands go
// on: the moment, in which nobody else changes a map, freezes the trees and goes
// on in a new file of the log. What is changed afterwards is copied first. Only
// when all is durable does "super" name it, and what only the old checkpoint
// needed is removed.

// frozen is the store at the moment of a checkpoint.
type frozen struct {
	next    super
	volumes []frozenVolume
	mapped  bitmap // slots
	changed []*node
}

type frozenVolume struct {
	superVolume
	tree tree
}

// checkpointer writes the maps out when the log or the changed part of the maps
// has grown.
func (s *Store) checkpointer() {
	for {
		select {
		case <-s.done:
			return
		case <-s.checkpointWanted:
			if err := s.checkpoint(); err != nil {
				s.opts.Log.Error("volume store: maps were not written out", "dir", s.dir, "err", err)
				select { // whoever waits for it was told; the disk may stay full for long
				case <-s.done:
					return
				case <-time.After(checkpointPause):
				}
			}
		}
	}
}

const checkpointPause = 100 * time.Millisecond

// checkpoint does one. When the disk is full, the old checkpoint and the log
// stay as they are.
func (s *Store) checkpoint() error {
	s.checkpointMu.Lock()
	defer s.checkpointMu.Unlock()
	err := s.checkpointAlone()
	if err != nil && !isFull(err) {
		s.fail(err)
		err = s.failure()
	} else if err != nil {
		err = s.full(err)
	}
	s.mu.Lock()
	s.lastErr = err
	close(s.round)
	s.round = make(chan struct{})
	s.mu.Unlock()
	return err
}

func (s *Store) checkpointAlone() error {
	if err := s.failure(); err != nil {
		return err
	}
	fz, err := s.freeze()
	if err != nil {
		return err
	}
	w := &nodeWriter{s: s}
	if err := s.writeCheckpoint(fz, w); err != nil {
		s.thaw(fz, w)
		return err
	}
	s.adopt(fz, w)
	return nil
}

// freeze begins a checkpoint: it ends the current file of the log and takes down
// what there is.
func (s *Store) freeze() (*frozen, error) {
	var l *logFile
	s.mu.RLock()
	num := s.log.next
	fresh := len(s.log.files) == 0 || !s.log.last().empty()
	s.mu.RUnlock()
	if fresh { // else an earlier attempt has made one that is still empty
		var err error
		if l, err = createLog(s.fs, logName(num), num, s.opts.BootID, s.log.ahead); err != nil {
			return nil, err
		}
		if err := s.fs.SyncDir(); err != nil {
			return nil, closing(l.f, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l != nil {
		if broken, err := s.log.rotate(l); err != nil {
			l.f.Close()
			if broken {
				s.fail(err)
			}
			return nil, err
		}
	}
	fz := &frozen{next: s.super, mapped: s.slots.mapped.clone(), changed: s.changed}
	s.freezeTrees()
	s.dirty.reset()
	if left := s.unsealed.list(); len(left) > 0 && s.opts.plant != plantLostDirty {
		if _, err := s.logDirty(left...); err != nil {
			return nil, err
		}
	}
	s.eras.next() // after that it must be drained
	fz.next.Generation = s.super.Generation
	fz.next.LSN = s.log.last().after
	fz.next.Log = s.log.last().num
	fz.next.Space++
	fz.next.Garbage = s.garbage
	fz.volumes = make([]frozenVolume, 0, len(s.byID))
	for _, v := range s.byID {
		f := frozenVolume{v.superVolume, v.tree}
		f.Blocks = v.blocks
		fz.volumes = append(fz.volumes, f)
	}
	s.changed, s.writing = nil, len(fz.changed)
	s.places.begin()
	return fz, nil
}

// freezeTrees keeps all nodes that there are from being changed. mu is held.
func (s *Store) freezeTrees() {
	s.frozen = s.super.Generation
	s.super.Generation++
}

// thaw takes back what a failed checkpoint has begun.
func (s *Store) thaw(fz *frozen, w *nodeWriter) {
	w.undo()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = append(fz.changed, s.changed...)
	s.writing = 0
}

// writeCheckpoint makes all that a checkpoint needs durable, and then names it.
func (s *Store) writeCheckpoint(fz *frozen, w *nodeWriter) error {
	s.eras.drain()
	if err := errors.Join(s.syncData(s.data), s.sums.Sync()); err != nil {
		s.fail(fmt.Errorf("sync of data: %w", err))
		return err
	}
	for i := range fz.volumes {
		v := &fz.volumes[i]
		at := v.tree.at
		if v.tree.root != nil {
			if err := w.put(v.tree.root); err != nil {
				return err
			}
			at = v.tree.root.at
		}
		v.Root, v.RootSum = at.place, at.sum
		fz.next.Volumes = append(fz.next.Volumes, v.superVolume)
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := s.mapFile.Sync(); err != nil {
		s.fail(fmt.Errorf("sync of maps: %w", err))
		return err
	}
	units := s.places.needed()
	if err := writeAll(s.fs, spaceName(fz.next.Space), encodeSpace(fz.next.Space, &fz.mapped, &units)); err != nil {
		return err
	}
	// Regions that stay dirty are named in the new file of the log alone.
	if err := s.syncLog(s.lastLSN()); err != nil {
		return err
	}
	if err := s.fs.SyncDir(); err != nil {
		return err
	}
	return writeSuper(s.fs, fz.next)
}

func (s *Store) lastLSN() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.log.lsn
}

// adopt makes a durable checkpoint the current one.
func (s *Store) adopt(fz *frozen, w *nodeWriter) {
	s.mu.Lock()
	old := s.super
	s.super.LSN, s.super.Log, s.super.Space = fz.next.LSN, fz.next.Log, fz.next.Space
	for _, v := range s.byID {
		if r := v.tree.root; r != nil && r.at != (ref{}) {
			v.tree.root, v.tree.at = nil, r.at
		}
	}
	for _, n := range s.changed { // made meanwhile: they may point to what was written
		for i, k := range n.kids {
			if k != nil && k.at != (ref{}) {
				n.kids[i], n.refs[i] = nil, k.at
			}
		}
	}
	s.writing = 0
	freed := s.settle(fz.next.LSN)
	s.mu.Unlock()
	for _, n := range w.written {
		if n.level == 0 {
			s.cache.add(n)
			continue
		}
		c := &node{birth: n.birth, level: n.level, units: n.units, at: n.at, refs: make([]ref, fanout)}
		for i := range c.refs {
			k, r := n.kid(i)
			if k != nil {
				r = k.at
			}
			c.refs[i] = r
		}
		s.cache.add(c)
	}
	s.freed(s.places.commit())
	s.removeOld(old)
	s.recycle(freed)
}

// removeOld removes the files that only the last checkpoint needed.
func (s *Store) removeOld(old super) {
	gone, err := s.log.drop(s.super.Log, s.super.LSN, &s.mu)
	errs := []error{err}
	for _, l := range gone {
		errs = append(errs, s.fs.Remove(logName(l.num)))
	}
	if old.Space != 0 && old.Space != s.super.Space {
		errs = append(errs, s.fs.Remove(spaceName(old.Space)))
	}
	if err := errors.Join(errs...); err != nil { // Open removes strays
		s.opts.Log.Warn("volume store: an old file was not removed", "dir", s.dir, "err", err)
	}
}

// Parts of Options.MapMemory that changed nodes may take before a checkpoint is
// begun, and before writers wait for it.
const (
	dirtyPart = 8
	waitPart  = 2
	nodeCost  = 1280 // about, of a changed one
)

// tooDirtyLocked says whether changed nodes take more than the n-th part of the
// memory. mu is held.
func (s *Store) tooDirtyLocked(n int64) bool {
	changed := len(s.changed)
	if n == waitPart {
		changed += s.writing
	}
	return int64(changed)*nodeCost > s.opts.MapMemory/n
}

func (s *Store) tooDirty() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tooDirtyLocked(waitPart)
}

// room waits until the maps may change further. Only a full disk makes that
// fail. No lock but io and a volume's writes may be held.
func (s *Store) room() error {
	for {
		s.mu.RLock()
		full, round := s.tooDirtyLocked(waitPart), s.round
		s.mu.RUnlock()
		if !full {
			return nil
		}
		wake(s.checkpointWanted)
		select {
		case <-s.done:
			return nil
		case <-round:
		}
		s.mu.RLock()
		full, err := s.tooDirtyLocked(waitPart), s.lastErr
		s.mu.RUnlock()
		if full && err != nil {
			return err
		}
	}
}
