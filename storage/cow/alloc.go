package cow

import (
	"math"
	"slices"
)

// allocator gives out slots of the data file. A freed slot is given out again
// only after the record that freed it is durable: a log cut by a power loss
// would map it to its old volume again.
type allocator struct {
	free    []uint32 // ready
	next    uint32   // first slot never given out
	pending []freed  // in order of lsn
	// orphans are slots that a volume let go of without owning them: another
	// may still have them. A sweep finds out, when there are sweepAt of them.
	orphans map[uint32]struct{}
	sweepAt int
}

// minOrphans is how many slots may wait for a sweep: 256 MiB.
const minOrphans = 4096

type freed struct {
	lsn  uint64
	slot uint32
}

// take gives a slot; false when the 2^32 of them are used up.
func (a *allocator) take() (uint32, bool) {
	if n := len(a.free); n > 0 {
		s := a.free[n-1]
		a.free = a.free[:n-1]
		return s, true
	}
	if a.next == math.MaxUint32 {
		return 0, false
	}
	a.next++
	return a.next - 1, true
}

// untake gives a slot back that no record mentions.
func (a *allocator) untake(slot uint32) { a.free = append(a.free, slot) }

// release notes that the record lsn freed the slot.
func (a *allocator) release(lsn uint64, slot uint32) {
	a.pending = append(a.pending, freed{lsn, slot})
}

// orphan notes that a volume let go of a slot that others may have.
func (a *allocator) orphan(slot uint32) {
	if a.orphans == nil {
		a.orphans = map[uint32]struct{}{}
	}
	a.orphans[slot] = struct{}{}
}

// settle takes the slots off the pending list whose records are durable.
func (a *allocator) settle(durable uint64) []uint32 {
	n := 0
	for n < len(a.pending) && a.pending[n].lsn <= durable {
		n++
	}
	if n == 0 {
		return nil
	}
	out := make([]uint32, n)
	for i, f := range a.pending[:n] {
		out[i] = f.slot
	}
	a.pending = slices.Clone(a.pending[n:])
	return out
}

// runs calls do for every run of neighbours in slots, which it sorts.
func runs(slots []uint32, do func(first uint32, n int64) error) error {
	slices.Sort(slots)
	for i := 0; i < len(slots); {
		j := i + 1
		for j < len(slots) && slots[j] == slots[j-1]+1 {
			j++
		}
		if err := do(slots[i], int64(j-i)); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// bitset marks slots.
type bitset []uint64

func (b *bitset) set(i uint32) {
	w := int(i / 64)
	if w >= len(*b) {
		*b = append(*b, make([]uint64, max(w+1-len(*b), len(*b)))...)
	}
	(*b)[w] |= 1 << (i % 64)
}

func (b bitset) has(i uint32) bool {
	w := int(i / 64)
	return w < len(b) && b[w]>>(i%64)&1 == 1
}

func (a *allocator) isOrphan(slot uint32) bool {
	_, ok := a.orphans[slot]
	return ok
}
