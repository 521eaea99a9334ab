package cow

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"hotspare/storage"
)

// recover brings the store to the state that its files prove, and writes that
// as a fresh checkpoint.
func (s *Store) recover(ctx context.Context) error {
	var err error
	if s.data, err = s.fs.Open(dataName, true); err != nil {
		return err
	}
	if s.sums, err = s.fs.Open(sumsName, true); err != nil {
		return err
	}
	b, err := readAll(s.fs, superName)
	switch {
	case isMissing(err):
		if err := s.initialise(); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if s.super, err = decodeSuper(b); err != nil {
			return err
		}
		if err := s.loadMaps(); err != nil {
			return err
		}
		if err := s.replay(); err != nil {
			return err
		}
	}
	live, err := s.rebuildAllocation()
	if err != nil {
		return err
	}
	if err := s.resealDirty(ctx, live); err != nil {
		return err
	}
	if _, err := s.checkpointAlone(); err != nil {
		return err
	}
	s.removeStrays()
	s.giveBack()
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
	return nil
}

// loadMaps reads the trees of all volumes as of the last checkpoint.
func (s *Store) loadMaps() error {
	b, err := readAll(s.fs, mapName(s.super.Map))
	if err != nil {
		return fmt.Errorf("%w: %w", errCodec, err)
	}
	if err := checkMapHead(b, s.super.Map); err != nil {
		return err
	}
	if int64(len(b)) < s.super.MapSize {
		return fmt.Errorf("%w: %s is shorter than %d bytes", errCodec, mapName(s.super.Map), s.super.MapSize)
	}
	if s.mapFile, err = s.fs.Open(mapName(s.super.Map), false); err != nil {
		return err
	}
	l := &loader{b: b[:s.super.MapSize], nodes: map[int64]*node{}}
	for _, sv := range s.super.Volumes {
		root, err := l.load(sv.Root, depthFor(clustersOf(sv.Size)))
		if err != nil {
			return fmt.Errorf("map of volume %s: %w", sv.Name, err)
		}
		s.add(newVolume(sv, root))
	}
	s.super.MapLive = l.live + mapHeadSize
	return nil
}

// loader reads nodes; a node that several trees share is read once.
type loader struct {
	b     []byte
	nodes map[int64]*node
	live  int64
}

func (l *loader) load(off int64, level uint8) (*node, error) {
	if n := l.nodes[off]; n != nil {
		if n.level != level {
			return nil, fmt.Errorf("%w: node at %d has level %d, not %d", errCodec, off, n.level, level)
		}
		return n, nil
	}
	if off < mapHeadSize || off > int64(len(l.b))-nodeHead {
		return nil, fmt.Errorf("%w: no node at %d", errCodec, off)
	}
	size := int64(binary.LittleEndian.Uint32(l.b[off:]))
	if size > maxNode || off+nodeHead+size > int64(len(l.b)) {
		return nil, fmt.Errorf("%w: node at %d is too long", errCodec, off)
	}
	body := l.b[off+nodeHead : off+nodeHead+size]
	if checksum(body) != binary.LittleEndian.Uint32(l.b[off+4:]) {
		return nil, fmt.Errorf("%w: checksum of node at %d", errCodec, off)
	}
	n, kids, err := decodeNode(body)
	if err != nil {
		return nil, err
	}
	if n.level != level {
		return nil, fmt.Errorf("%w: node at %d has level %d, not %d", errCodec, off, n.level, level)
	}
	for i, at := range kids {
		if n.kids[i], err = l.load(at, level-1); err != nil {
			return nil, err
		}
	}
	n.off = off
	l.nodes[off] = n
	l.live += nodeHead + size
	return n, nil
}

// replay applies the log. After a power loss only what a barrier covers counts;
// that a region was dirty always counts.
func (s *Store) replay() error {
	b, err := readAll(s.fs, logName(s.super.Log))
	if err != nil {
		return fmt.Errorf("%w: %w", errCodec, err)
	}
	c, err := parseLog(b, s.super.Log, s.super.LSN)
	if err != nil {
		return err
	}
	limit := c.barrier
	if c.boot != "" && c.boot == s.opts.BootID {
		limit = ^uint64(0)
	}
	dropped := 0
	for _, r := range c.records {
		if r.lsn > limit && r.kind != recDirty {
			dropped++
			continue
		}
		if err := s.apply(r); err != nil {
			return fmt.Errorf("%s, record %d: %w", logName(s.super.Log), r.lsn, err)
		}
	}
	if dropped > 0 {
		s.opts.Log.Warn("volume store: changes after the last flush were lost with the power", "dir", s.dir, "records", dropped)
	}
	if n := len(c.records); n > 0 {
		s.super.LSN = c.records[n-1].lsn // numbers are not used again
	}
	return nil
}

// apply does what one record says.
func (s *Store) apply(r record) error {
	rd := &reader{b: r.body}
	var err error
	switch r.kind {
	case recBarrier:
		return nil
	case recDirty:
		s.dirty.set(rd.u32(), r.lsn)
	case recMap:
		err = s.applyMap(rd)
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
			v.ReadOnly = true
		default:
			v.resize(int64(rd.u64()), s.super.Generation)
		}
	default:
		return fmt.Errorf("%w: record of kind %d", errVersion, r.kind)
	}
	if err == nil && rd.bad {
		err = fmt.Errorf("%w: record of kind %d", errCodec, r.kind)
	}
	return err
}

func (s *Store) applyMap(rd *reader) error {
	v := s.byID[rd.u64()]
	if v == nil {
		return fmt.Errorf("%w: map of no volume", errCodec)
	}
	for range rd.u32() {
		c, e := rd.u32(), rd.entry()
		if rd.bad || int64(c) >= clustersOf(v.Size) {
			return fmt.Errorf("%w: map record", errCodec)
		}
		v.root = v.root.set(c, e, v.Owned, s.super.Generation)
	}
	return nil
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
func (s *Store) addNew(sv superVolume, src *volume) *volume {
	s.super.Generation = max(s.super.Generation, sv.Owned)
	s.super.NextVolume = max(s.super.NextVolume, sv.ID+1)
	var v *volume
	if src == nil {
		v = newVolume(sv, newNode(depthFor(clustersOf(sv.Size)), sv.Owned))
	} else {
		src.Owned = sv.Owned
		v = newVolume(sv, src.root)
		v.blocks = src.blocks
	}
	s.add(v)
	return v
}

func (s *Store) add(v *volume) {
	s.volumes[v.Name] = v
	s.byID[v.ID] = v
}

func (s *Store) drop(v *volume) {
	delete(s.volumes, v.Name)
	delete(s.byID, v.ID)
}

func (v *volume) resize(size int64, gen uint32) {
	v.root = v.root.grow(depthFor(clustersOf(size)), gen)
	v.Size = size
	v.size.Store(size)
}

// rebuildAllocation finds the slots that the maps use; all others are free.
func (s *Store) rebuildAllocation() (live bitset, err error) {
	seen := map[*node]struct{}{}
	for _, v := range s.byID {
		v.root.walk(seen, func(n *node) {
			for _, e := range n.entries {
				for _, p := range e {
					live.set(p.slot)
					s.alloc.next = max(s.alloc.next, p.slot+1)
				}
			}
		})
		v.blocks = v.countBlocks()
	}
	for slot := s.alloc.next; slot > 0; slot-- {
		if !live.has(slot - 1) {
			s.alloc.free = append(s.alloc.free, slot-1)
		}
	}
	return live, nil
}

func (v *volume) countBlocks() int64 {
	var n int64
	limit := uint64(clustersOf(v.Size))
	for c, ok := v.root.next(0, limit); ok; c, ok = v.root.next(c+1, limit) {
		n += v.root.lookup(uint32(c)).blocks()
	}
	return n
}

// resealDirty recomputes the checksums where data and checksums may have parted.
func (s *Store) resealDirty(ctx context.Context, live bitset) error {
	for region, lsn := range s.dirty.lsn {
		if lsn == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		for i := range uint32(regionSlots) {
			slot := uint32(region)*regionSlots + i
			if !live.has(slot) {
				continue
			}
			if err := s.reseal(slot); err != nil {
				return fmt.Errorf("checksums of slot %d: %w", slot, err)
			}
		}
	}
	return nil
}

// removeStrays removes files that no checkpoint names.
func (s *Store) removeStrays() {
	names, err := s.fs.List()
	if err != nil {
		return
	}
	keep := []string{logName(s.super.Log), mapName(s.super.Map)}
	for _, n := range names {
		ours := strings.HasPrefix(n, "log-") || strings.HasPrefix(n, "map-") || n == superName+".new"
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
	err := runs(slices.Clone(s.alloc.free), func(first uint32, n int64) error {
		return s.data.Punch(dataOff(first, 0), n*clusterSize)
	})
	if err == nil {
		err = s.data.Truncate(dataOff(s.alloc.next, 0))
	}
	if err != nil {
		s.opts.Log.Warn("volume store: free space was not given back", "dir", s.dir, "err", err)
	}
}
