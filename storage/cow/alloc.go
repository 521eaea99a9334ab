package cow

import (
	"math"
	"slices"
)

// slots says which slots of the data file are in use. A freed slot is given out
// again only after the record that freed it is durable: a log cut by a power
// loss would map it to its old volume again.
type slots struct {
	plant plant
	// mapped are those that a map has, or had when it was deleted: what a
	// checkpoint writes down. busy are those and the ones that a write has taken
	// and not mapped yet, or that a record has freed that is not durable yet.
	mapped  bitmap
	busy    bitmap
	hint    uint32  // no slot below it is free
	pending []freed // in order of lsn
}

type freed struct {
	lsn  uint64
	slot uint32
}

// take gives a slot; false when the 2^32 of them are used up.
func (a *slots) take() (uint32, bool) {
	s := a.busy.firstClear(a.hint)
	if s == math.MaxUint32 {
		return 0, false
	}
	a.busy.set(s)
	a.hint = s + 1
	return s, true
}

// put makes slots free.
func (a *slots) put(slots ...uint32) {
	for _, s := range slots {
		a.busy.clear(s)
		a.hint = min(a.hint, s)
	}
}

// use notes that a map has the slot.
func (a *slots) use(slot uint32) {
	a.mapped.set(slot)
	a.busy.set(slot)
}

// release notes that the record lsn freed the slot.
func (a *slots) release(lsn uint64, slot uint32) {
	a.mapped.clear(slot)
	if a.plant == plantFreeEarly {
		a.put(slot)
		return
	}
	a.pending = append(a.pending, freed{lsn, slot})
}

// settle takes the slots off the pending list whose records are durable. They
// stay busy until put.
func (a *slots) settle(durable uint64) []uint32 {
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

// settled makes all slots free that are not mapped: what the log freed may have
// been mapped again later in the log.
func (a *slots) settled() {
	a.pending = nil
	a.busy = a.mapped.clone()
	a.hint = 0
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
