package cow

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

// ref names a node in the map file: its place, in units, and the CRC32C of what
// is written there. A node that was moved or replaced has another ref, so what
// is read under a ref is what was written under it. Zero is none.
type ref struct{ place, sum uint32 }

// node is an inner node (level > 0) or a leaf (level 0).
//
// A clean node is a copy of what the map file holds at its ref; it never
// changes. A changed node is not in the file yet: its parent, or the volume,
// points to it, until a checkpoint has written it. birth is the store's
// generation when the node was made; see Store.writable for who may change it.
type node struct {
	birth uint32
	level uint8
	units uint8 // of its place
	at    ref   // of a clean node; of a changed one only the checkpoint's business

	refs []ref   // by index: kids that are in the map file
	kids []*node // by index: kids that are changed; nil when there is none

	start  []uint16 // pieces[start[i]:start[i+1]] is entry i
	pieces []piece
}

func newNode(level uint8, birth uint32) *node {
	n := &node{birth: birth, level: level}
	if level > 0 {
		n.refs = make([]ref, fanout)
	} else {
		n.start = make([]uint16, fanout+1)
	}
	return n
}

// copied gives a changed copy.
func (n *node) copied(birth uint32) *node {
	c := &node{birth: birth, level: n.level, refs: slices.Clone(n.refs), kids: slices.Clone(n.kids)}
	if n.level == 0 {
		c.start = slices.Clone(n.start)
		c.pieces = append(make([]piece, 0, len(n.pieces)+4), n.pieces...)
	}
	return c
}

// entry gives entry i of a leaf; it is the leaf's own memory.
func (n *node) entry(i int) entry { return entry(n.pieces[n.start[i]:n.start[i+1]]) }

func (n *node) setEntry(i int, e entry) {
	from, to := int(n.start[i]), int(n.start[i+1])
	n.pieces = slices.Replace(n.pieces, from, to, e...)
	if d := len(e) - (to - from); d != 0 {
		for j := i + 1; j <= fanout; j++ {
			n.start[j] = uint16(int(n.start[j]) + d)
		}
	}
}

// kid gives kid i: changed, or in the map file, or neither.
func (n *node) kid(i int) (*node, ref) {
	if n.kids != nil && n.kids[i] != nil {
		return n.kids[i], ref{}
	}
	return nil, n.refs[i]
}

// link makes k, a changed node, kid i.
func (n *node) link(i int, k *node) {
	if n.kids == nil {
		n.kids = make([]*node, fanout)
	}
	n.kids[i], n.refs[i] = k, ref{}
}

// size estimates the memory of the node.
func (n *node) size() int64 {
	return int64(160 + 8*len(n.refs) + 8*len(n.kids) + 2*len(n.start) + 12*cap(n.pieces))
}

// A node in the map file: length of the rest (4), level (1), birth (4), bitmap
// of present kids or entries (8), then for each of them the kid's ref (8) or the
// entry.
const (
	nodeHead = 4
	maxNode  = nodeHead + 13 + fanout*(1+maxPieces*10)
)

// encodeNode encodes n, whose changed kids are written.
func encodeNode(n *node) []byte {
	w := writer{make([]byte, nodeHead, 768)}
	w.u8(n.level)
	w.u32(n.birth)
	var present uint64
	for i := range fanout {
		if n.level == 0 {
			if n.start[i] != n.start[i+1] {
				present |= 1 << i
			}
		} else if k, r := n.kid(i); k != nil || r != (ref{}) {
			present |= 1 << i
		}
	}
	w.u64(present)
	for i := range fanout {
		switch {
		case present>>i&1 == 0:
		case n.level == 0:
			w.b = putEntry(w.b, n.entry(i))
		default:
			k, r := n.kid(i)
			if k != nil {
				r = k.at
			}
			w.u32(r.place)
			w.u32(r.sum)
		}
	}
	binary.LittleEndian.PutUint32(w.b, uint32(len(w.b)-nodeHead))
	return w.b
}

// decodeNode reads a node after its length.
func decodeNode(b []byte) (*node, error) {
	r := &reader{b: b}
	level, birth, present := r.u8(), r.u32(), r.u64()
	if r.bad || level >= maxLevels {
		return nil, fmt.Errorf("%w: node", errCodec)
	}
	n := newNode(level, birth)
	if level == 0 {
		n.pieces = make([]piece, 0, bits.OnesCount64(present))
	}
	for i := range fanout {
		if present>>i&1 == 1 {
			if level > 0 {
				n.refs[i] = ref{r.u32(), r.u32()}
				r.bad = r.bad || n.refs[i].place == 0
			} else {
				e := r.entry()
				r.bad = r.bad || len(e) == 0
				n.pieces = append(n.pieces, e...)
			}
		}
		if level == 0 {
			n.start[i+1] = uint16(len(n.pieces))
		}
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("%w: node of level %d", errCodec, level)
	}
	return n, nil
}
