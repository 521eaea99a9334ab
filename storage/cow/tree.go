package cow

import "math/bits"

// Geometry, part of the format.
const (
	clusterSize      = 64 << 10
	blockSize        = 4 << 10
	blocksPerCluster = clusterSize / blockSize
	fanout           = 64 // kids of an inner node, entries of a leaf
	fanoutBits       = 6
	maxClusters      = 1 << 32 // of one volume: 256 TiB
	maxPieces        = 4       // of one entry; a further one merges them
	maxLevels        = 6       // of the tree of a volume of maxClusters
)

// piece says that the blocks in mask are in slot. birth is the store's
// generation when the slot was taken: a volume owns the piece exclusively if
// birth is at least the generation of its last clone or snapshot.
type piece struct {
	slot  uint32
	birth uint32
	mask  uint16
}

// entry maps one cluster: pieces with disjoint, non-empty masks. Blocks in none
// are zeros. Entries are never changed in place.
type entry []piece

func (e entry) blocks() int64 {
	n := 0
	for _, p := range e {
		n += bits.OnesCount16(p.mask)
	}
	return int64(n)
}

// without gives e with the blocks of mask removed; a piece that has none left is
// gone.
func (e entry) without(mask uint16) (rest entry) {
	for _, p := range e {
		if p.mask &^= mask; p.mask != 0 {
			rest = append(rest, p)
		}
	}
	return rest
}

// find gives the piece that holds block b.
func (e entry) find(b int) (piece, bool) {
	for _, p := range e {
		if p.mask>>b&1 == 1 {
			return p, true
		}
	}
	return piece{}, false
}

// owned gives the piece that a volume with this generation owns; there is at
// most one.
func (e entry) owned(since uint32) (piece, bool) {
	for _, p := range e {
		if p.birth >= since {
			return p, true
		}
	}
	return piece{}, false
}

// depthFor gives the level of the root of a tree that covers n clusters.
func depthFor(n int64) uint8 {
	var level uint8
	for c := int64(fanout); c < n; c <<= fanoutBits {
		level++
	}
	return level
}

// slotOf gives the index of cluster c within a node of this level.
func slotOf(c uint32, level uint8) int { return int(c>>(uint(level)*fanoutBits)) & (fanout - 1) }

// tree is the map of a volume. Its root is changed, or in the map file, or there
// is none. Level is that of the root. A tree that is copied is a snapshot, if
// the generation is raised in the same moment.
type tree struct {
	root  *node
	at    ref
	level uint8
}

// covers gives the number of clusters that a tree has room for.
func (t tree) covers() uint64 { return fanout << (uint(t.level) * fanoutBits) }

// path is the way to a cluster, by level. A nil node is missing; clean says that
// the node is as the map file has it.
type path struct {
	n     [maxLevels]*node
	clean [maxLevels]bool
}

// want is a node that must be loaded before one can go on.
type want struct {
	at    ref
	level uint8
}

// pins keeps the nodes that a walk loaded, in case that the cache is too small
// to hold them until the walk is tried again.
type pins [maxLevels]*node

// clean gives a node of the map file if it is in memory.
func (s *Store) clean(r ref, level uint8, p *pins) *node {
	if n := p[level]; n != nil && n.at == r {
		return n
	}
	return s.cache.get(r, level)
}

// descend gives the way to cluster c, as far as there is one. If a node is not
// in memory, miss names it. mu is held.
func (s *Store) descend(t tree, c uint32, pin *pins) (p path, miss want) {
	n, at := t.root, t.at
	for level := t.level; ; level-- {
		if n == nil {
			if at == (ref{}) {
				return p, want{}
			}
			if n = s.clean(at, level, pin); n == nil {
				return p, want{at, level}
			}
			p.clean[level] = true
		}
		p.n[level] = n
		if level == 0 {
			return p, want{}
		}
		n, at = n.kid(slotOf(c, level))
	}
}

// next gives the first mapped cluster from c on, below limit. If a node is not
// in memory, miss names it, and all before the returned cluster are unmapped.
// mu is held.
func (s *Store) next(t tree, c, limit uint64, pin *pins) (at uint64, ok bool, miss want) {
	if limit = min(limit, t.covers()); c >= limit {
		return limit, false, want{}
	}
	return s.nextBelow(t.root, t.at, t.level, c, limit, pin)
}

func (s *Store) nextBelow(n *node, at ref, level uint8, c, limit uint64, pin *pins) (uint64, bool, want) {
	if n == nil {
		if at == (ref{}) {
			return c, false, want{}
		}
		if n = s.clean(at, level, pin); n == nil {
			return c, false, want{at, level}
		}
	}
	width := uint64(1) << (uint(level) * fanoutBits)
	for i := slotOf(uint32(c), level); i < fanout && c < limit; i++ {
		if level == 0 {
			if n.start[i] != n.start[i+1] {
				return c, true, want{}
			}
		} else {
			k, r := n.kid(i)
			if got, ok, miss := s.nextBelow(k, r, level-1, c, limit, pin); ok || miss != (want{}) {
				return got, ok, miss
			}
		}
		c = (c/width + 1) * width
	}
	return c, false, want{}
}

// writable gives n, or a copy, that may be changed for volume v. What may be
// shared with a clone or snapshot (made before the volume's generation), or is
// part of a frozen tree (made before the last freeze), is copied. mu is held.
func (s *Store) writable(v *volume, n *node, level uint8, clean bool) *node {
	gen := s.super.Generation
	switch {
	case n == nil:
		n = newNode(level, gen)
	case !clean && n.birth >= v.Owned && (n.birth > s.frozen || s.opts.plant == plantThawed):
		return n
	default:
		if n.birth >= v.Owned {
			s.places.bury(n, clean)
		} else {
			s.garbage++ // others may have it
		}
		n = n.copied(gen)
	}
	s.changed = append(s.changed, n)
	return n
}

// put sets the entry of cluster c, to which p is the way. mu is held.
func (s *Store) put(v *volume, p *path, c uint32, e entry) {
	var below *node
	for level := uint8(0); level <= v.tree.level; level++ {
		n := s.writable(v, p.n[level], level, p.clean[level])
		i := slotOf(c, level)
		if level == 0 {
			n.setEntry(i, e)
		} else if k, _ := n.kid(i); k != below {
			n.link(i, below)
		}
		below = n
	}
	v.tree.root, v.tree.at = below, ref{}
}

// grow gives the volume's tree a root of this level. mu is held.
func (s *Store) grow(v *volume, level uint8) {
	for t := &v.tree; t.level < level; t.level++ {
		if t.root == nil && t.at == (ref{}) {
			continue
		}
		up := newNode(t.level+1, s.super.Generation)
		up.refs[0] = t.at
		if t.root != nil {
			up.link(0, t.root)
		}
		s.changed = append(s.changed, up)
		t.root, t.at = up, ref{}
	}
}

// lookup gives a copy, in buf, of the entry of cluster c, and the generation
// from which on the volume owns pieces.
func (s *Store) lookup(v *volume, c uint32, buf *[maxPieces]piece) (e entry, since uint32, err error) {
	var pin pins
	var f fetcher
	for {
		s.mu.RLock()
		p, miss := s.descend(v.tree, c, &pin)
		since = v.Owned
		if miss == (want{}) && p.n[0] != nil {
			e = append(buf[:0], p.n[0].entry(slotOf(c, 0))...)
		}
		s.mu.RUnlock()
		if miss == (want{}) {
			return e, since, nil
		}
		if err := f.fetch(s, miss, &pin); err != nil {
			return nil, 0, err
		}
	}
}

// nextMapped gives the first mapped cluster from c on, below limit.
func (s *Store) nextMapped(v *volume, c, limit uint64) (uint64, bool, error) {
	var pin pins
	var f fetcher
	for {
		s.mu.RLock()
		at, ok, miss := s.next(v.tree, c, limit, &pin)
		s.mu.RUnlock()
		if miss == (want{}) {
			return at, ok, nil
		}
		if err := f.fetch(s, miss, &pin); err != nil {
			return 0, false, err
		}
		c = at
	}
}
