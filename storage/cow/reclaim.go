package cow

import (
	"context"
	"errors"
	"fmt"
)

// What a volume owns is freed when it lets go of it. What it shares with others
// is found by a mark and sweep: it freezes the trees of all volumes as they are,
// walks them while commands go on, and frees what was in use at that moment and
// is in none of them. Nobody can reach such a thing any more, so nobody can have
// come by it meanwhile. Its memory is two bits for each slot and each unit of
// the map file.

// ReclaimStatus says what the store does to give space back.
type ReclaimStatus struct {
	Running bool
	Passes  int64
	Deleted int64 // volumes
	// Of all passes since the store was opened, so that who asks twice has the
	// rate:
	NodesScanned int64
	SlotsScanned int64
	SlotsFreed   int64 // of 64 KiB
	NodesFreed   int64
	// Waiting is about how many slots and nodes the next pass will look for.
	Waiting int64
	// PendingBytes are free as soon as the next flush makes that durable.
	PendingBytes int64
	// Err is why the last pass ended early, nil if it did not.
	Err error
}

// Reclaiming says what is being given back.
func (s *Store) Reclaiming() ReclaimStatus {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.reclaim
	r.Waiting = s.garbage
	r.PendingBytes = int64(len(s.slots.pending)) * clusterSize
	return r
}

// Reclaim waits until everything is given back that was deleted before the call.
func (s *Store) Reclaim(ctx context.Context) error {
	s.mu.RLock()
	waiting := s.garbage > 0 || s.reclaim.Running
	s.mu.RUnlock()
	if waiting {
		if err := s.reclaimPass(ctx); err != nil {
			return err
		}
	}
	if err := s.flush(); err != nil { // what is pending becomes free
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.recycling > 0 {
		s.recycled.Wait()
	}
	return nil
}

// minGarbage is how many slots may wait for a pass: 256 MiB.
const minGarbage = 4096

// garbageLimit is when a pass is worth it although nothing was deleted: what was
// deleted before may have shared with what is let go of now. mu is held.
func (s *Store) garbageLimit() int64 { return max(minGarbage, s.slots.mapped.count/16) }

func (s *Store) reclaimer() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-s.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	for {
		select {
		case <-s.done:
			return
		case <-s.reclaimWanted:
		}
		s.mu.RLock()
		none := s.garbage == 0
		s.mu.RUnlock()
		if s.spaceWanted.Swap(false); none {
			continue
		}
		err := s.reclaimPass(ctx)
		if err == nil {
			err = s.flush()
		}
		if err != nil && ctx.Err() == nil && s.failure() == nil {
			s.opts.Log.Error("volume store: space was not given back", "dir", s.dir, "err", err)
		}
	}
}

// reclaimPass does one mark and sweep.
func (s *Store) reclaimPass(ctx context.Context) error {
	s.reclaimMu.Lock()
	defer s.reclaimMu.Unlock()
	m := s.beginMark()
	s.mu.Lock()
	s.reclaim.Running = true
	s.mu.Unlock()
	err := m.run(ctx)
	if err == nil {
		s.sweep(m)
	}
	s.freed(s.places.unhold())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reclaim.Running = false
	s.reclaim.Err = err
	s.reclaim.Passes++
	if err == nil {
		s.garbage -= m.garbage
	}
	return err
}

// mark is a walk over the frozen trees of all volumes.
type mark struct {
	s       *Store
	volumes []markVolume
	garbage int64
	// slots and units are what was in use at the start, and what the walk has not
	// met yet; at the end, garbage. started are the slots as at the start.
	slots, units bitmap
	started      bitmap
	seen         bitmap // places
	seenChanged  map[*node]struct{}
	nodes        int64
	met          int64 // pieces
	// visit, if set, sees every leaf's pieces once.
	visit func(v *markVolume, p piece)
	// trouble, if set, is told of what does not fit, and the walk goes on.
	trouble func(error)
}

type markVolume struct {
	name  string
	owned uint32
	size  int64
	tree  tree
}

// beginMark freezes all trees. Places of the map file are held until unhold.
func (s *Store) beginMark() *mark {
	s.checkpointMu.Lock() // no node is on its way into the map file
	defer s.checkpointMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &mark{s: s, garbage: s.garbage, slots: s.slots.mapped.clone(), started: s.slots.mapped.clone(),
		units: s.places.hold(), seenChanged: map[*node]struct{}{}}
	m.units.clear(0) // the head
	for _, v := range s.byID {
		m.volumes = append(m.volumes, markVolume{v.Name, v.Owned, v.Size, v.tree})
	}
	s.freezeTrees()
	return m
}

func (m *mark) run(ctx context.Context) error {
	for i := range m.volumes {
		if m.s.opts.plant == plantSweepLive && len(m.volumes) > 1 && i == 0 {
			continue
		}
		v := &m.volumes[i]
		if err := m.walk(ctx, v, v.tree.root, v.tree.at, v.tree.level, v.tree.root == nil); err != nil {
			return fmt.Errorf("map of volume %s: %w", v.name, err)
		}
	}
	return nil
}

// fault is something that does not fit. Without a listener it ends the walk: a
// store that is in doubt frees nothing.
func (m *mark) fault(format string, args ...any) error {
	err := fmt.Errorf("%w: "+format, append([]any{errCodec}, args...)...)
	if m.trouble == nil {
		return err
	}
	m.trouble(err)
	return nil
}

// walk marks a node and what is below it, unless that was done. fromFile says
// that the parent was in the map file when the walk began.
func (m *mark) walk(ctx context.Context, v *markVolume, n *node, at ref, level uint8, fromFile bool) error {
	if n == nil {
		if at == (ref{}) || m.seen.has(at.place) {
			return nil
		}
		m.seen.set(at.place)
		if n = m.s.cache.get(at, level); n == nil {
			var err error
			if n, err = m.s.readNode(want{at, level}); err != nil {
				if !errors.Is(err, errCodec) || m.trouble == nil {
					return err
				}
				m.trouble(err)
				return nil
			}
		}
		for i := range uint32(n.units) {
			if !m.units.clear(at.place+i) && fromFile {
				if err := m.fault("node at byte %d of %q lies in free space or in another node", placeOff(at.place), mapName); err != nil {
					return err
				}
			}
		}
	} else {
		if _, ok := m.seenChanged[n]; ok {
			return nil
		}
		m.seenChanged[n] = struct{}{}
		fromFile = false
	}
	m.nodes++
	if level > 0 {
		return m.kids(ctx, v, n, level, fromFile)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, p := range n.pieces {
		m.met++
		if !m.started.has(p.slot) {
			if err := m.fault("slot %d is in use and free", p.slot); err != nil {
				return err
			}
		}
		m.slots.clear(p.slot)
		if m.visit != nil {
			m.visit(v, p)
		}
	}
	return nil
}

func (m *mark) kids(ctx context.Context, v *markVolume, n *node, level uint8, fromFile bool) error {
	for i := range fanout {
		var k *node
		var r ref
		if fromFile {
			k, r = n.kid(i)
		} else { // a checkpoint may put the kid's ref in its place
			m.s.mu.RLock()
			k, r = n.kid(i)
			m.s.mu.RUnlock()
		}
		if k == nil && r == (ref{}) {
			continue
		}
		if err := m.walk(ctx, v, k, r, level-1, fromFile); err != nil {
			return err
		}
	}
	return nil
}

// sweepAtOnce is how many slots are freed while nobody else has the maps.
const sweepAtOnce = 1024

// sweep frees what the mark did not meet.
func (s *Store) sweep(m *mark) {
	var freed int64
	for at, ok := m.slots.firstSet(0); ok; {
		s.mu.Lock()
		lsn := s.log.lsn
		for n := 0; ok && n < sweepAtOnce; n++ {
			s.slots.release(lsn, at)
			freed++
			at, ok = m.slots.firstSet(at + 1)
		}
		s.mu.Unlock()
	}
	var rs []run
	for at, ok := m.units.firstSet(0); ok; at, ok = m.units.firstSet(at) {
		n := uint8(0)
		for n < 255 && m.units.has(at+uint32(n)) {
			n++
		}
		rs = append(rs, run{at, n})
		at += uint32(n)
	}
	s.places.buryPlaces(rs)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.reclaim
	r.NodesScanned += m.nodes
	r.SlotsScanned += m.met
	r.SlotsFreed += freed
	r.NodesFreed += int64(len(rs))
}
