package cow

import (
	"fmt"
	"math/bits"
	"slices"
)

// bitmap is a set of numbers: slots, or units of the map file. It grows as
// needed; what lies beyond its end is not in it.
type bitmap struct {
	words []uint64
	count int64
}

func (b *bitmap) has(i uint32) bool {
	w := int(i / 64)
	return w < len(b.words) && b.words[w]>>(i%64)&1 == 1
}

// set adds i.
func (b *bitmap) set(i uint32) {
	w := int(i / 64)
	if w >= len(b.words) {
		b.words = append(b.words, make([]uint64, w+1-len(b.words))...)
	}
	if b.words[w]>>(i%64)&1 == 1 {
		return
	}
	b.words[w] |= 1 << (i % 64)
	b.count++
}

// clear removes i and says whether it was there.
func (b *bitmap) clear(i uint32) bool {
	if !b.has(i) {
		return false
	}
	b.words[i/64] &^= 1 << (i % 64)
	b.count--
	return true
}

func (b *bitmap) clone() bitmap { return bitmap{slices.Clone(b.words), b.count} }

// end gives the number after the highest one in the set.
func (b *bitmap) end() uint32 {
	for w := len(b.words) - 1; w >= 0; w-- {
		if x := b.words[w]; x != 0 {
			return uint32(w*64 + 64 - bits.LeadingZeros64(x))
		}
	}
	return 0
}

// firstClear gives the first number from i on that is not in the set.
func (b *bitmap) firstClear(i uint32) uint32 {
	for w := int(i / 64); w < len(b.words); w++ {
		x := ^b.words[w]
		if w == int(i/64) {
			x &= ^uint64(0) << (i % 64)
		}
		if x != 0 {
			return uint32(w*64 + bits.TrailingZeros64(x))
		}
	}
	return max(i, uint32(len(b.words)*64))
}

// firstSet gives the first number from i on that is in the set, false if none.
func (b *bitmap) firstSet(i uint32) (uint32, bool) {
	for w := int(i / 64); w < len(b.words); w++ {
		x := b.words[w]
		if w == int(i/64) {
			x &= ^uint64(0) << (i % 64)
		}
		if x != 0 {
			return uint32(w*64 + bits.TrailingZeros64(x)), true
		}
	}
	return 0, false
}

// The encoding: number of pages (4), and for each page of 512 words a tag, and
// the words if they are not all the same.
const (
	bitmapPage = 512
	pageZeros  = 0
	pageOnes   = 1
	pageRaw    = 2
)

func (b *bitmap) encode(out []byte) []byte {
	r := writer{out}
	pages := (len(b.words) + bitmapPage - 1) / bitmapPage
	r.u32(uint32(pages))
	for p := range pages {
		words := b.words[p*bitmapPage : min((p+1)*bitmapPage, len(b.words))]
		first, same := words[0], len(words) == bitmapPage
		for _, w := range words {
			same = same && w == first
		}
		switch {
		case same && first == 0:
			r.u8(pageZeros)
		case same && first == ^uint64(0):
			r.u8(pageOnes)
		default:
			r.u8(pageRaw)
			for i := range bitmapPage {
				if i < len(words) {
					r.u64(words[i])
				} else {
					r.u64(0)
				}
			}
		}
	}
	return r.b
}

// bitmap reads an encoded one.
func (r *reader) bitmap() (bitmap, error) {
	var b bitmap
	pages := r.u32()
	if r.bad || uint64(pages) > uint64(len(r.b)) || pages > 1<<32/(64*bitmapPage) {
		return b, fmt.Errorf("%w: bitmap of %d pages", errCodec, pages)
	}
	b.words = make([]uint64, pages*bitmapPage)
	for i := range b.words {
		if i%bitmapPage != 0 {
			continue
		}
		page := b.words[i : i+bitmapPage]
		switch r.u8() {
		case pageZeros:
		case pageOnes:
			for j := range page {
				page[j] = ^uint64(0)
			}
		case pageRaw:
			for j := range page {
				page[j] = r.u64()
			}
		default:
			r.bad = true
		}
		if r.bad {
			return bitmap{}, fmt.Errorf("%w: page of a bitmap", errCodec)
		}
	}
	for _, w := range b.words {
		b.count += int64(bits.OnesCount64(w))
	}
	return b, nil
}
