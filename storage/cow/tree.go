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

// without gives e with the blocks of mask removed, and the pieces that have
// none left.
func (e entry) without(mask uint16) (rest, gone entry) {
	for _, p := range e {
		left := p.mask &^ mask
		if left == 0 {
			gone = append(gone, p)
			continue
		}
		p.mask = left
		rest = append(rest, p)
	}
	return rest, gone
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

// node is an inner node (level > 0, kids) or a leaf (level 0, entries). A node
// whose birth is below a volume's generation may be shared and is copied before
// a change. off is its place in the map file; 0 means changed since, or new.
type node struct {
	birth   uint32
	level   uint8
	off     int64
	kids    []*node
	entries []entry
}

func newNode(level uint8, birth uint32) *node {
	n := &node{birth: birth, level: level}
	if level > 0 {
		n.kids = make([]*node, fanout)
	} else {
		n.entries = make([]entry, fanout)
	}
	return n
}

// writable gives n itself or a copy that the generation may change, marked as
// changed.
func (n *node) writable(since, gen uint32) *node {
	if n.birth >= since {
		n.off = 0
		return n
	}
	c := &node{birth: gen, level: n.level}
	if n.level > 0 {
		c.kids = append([]*node(nil), n.kids...)
	} else {
		c.entries = append([]entry(nil), n.entries...)
	}
	return c
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

// lookup gives the entry of cluster c, nil if none.
func (n *node) lookup(c uint32) entry {
	for n != nil && n.level > 0 {
		n = n.kids[slotOf(c, n.level)]
	}
	if n == nil {
		return nil
	}
	return n.entries[slotOf(c, 0)]
}

// set gives the tree with cluster c mapped to e.
func (n *node) set(c uint32, e entry, since, gen uint32) *node {
	n = n.writable(since, gen)
	i := slotOf(c, n.level)
	if n.level == 0 {
		n.entries[i] = e
		return n
	}
	kid := n.kids[i]
	if kid == nil {
		kid = newNode(n.level-1, gen)
	}
	n.kids[i] = kid.set(c, e, since, gen)
	return n
}

// covers gives the number of clusters that a tree with this root has room for.
func (n *node) covers() uint64 { return fanout << (uint(n.level) * fanoutBits) }

// next gives the first mapped cluster at or after c below limit, which must not
// be above what the root covers.
func (n *node) next(c, limit uint64) (uint64, bool) {
	if n == nil || c >= limit {
		return 0, false
	}
	width := uint64(1) << (uint(n.level) * fanoutBits)
	for i := slotOf(uint32(c), n.level); i < fanout && c < limit; i++ {
		if n.level == 0 {
			if len(n.entries[i]) > 0 {
				return c, true
			}
		} else if got, ok := n.kids[i].next(c, limit); ok {
			return got, true
		}
		c = (c/width + 1) * width
	}
	return 0, false
}

// walk calls visit for every node that was not seen yet, parents first; visit
// says whether to go below.
func (n *node) walk(seen map[*node]struct{}, visit func(*node)) {
	if n == nil {
		return
	}
	if _, ok := seen[n]; ok {
		return
	}
	seen[n] = struct{}{}
	visit(n)
	for _, k := range n.kids {
		k.walk(seen, visit)
	}
}

// grow gives a tree whose root has this level.
func (n *node) grow(level uint8, gen uint32) *node {
	for n.level < level {
		up := newNode(n.level+1, gen)
		up.kids[0] = n
		n = up
	}
	return n
}
