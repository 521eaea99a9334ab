package cow

import (
	"bytes"
	"testing"
)

// What is read from the disk was checked by CRC, but a CRC is no proof against
// who can write to the disk.

func FuzzDecodeNode(f *testing.F) {
	leaf := newNode(0, 7)
	leaf.setEntry(3, entry{{slot: 9, birth: 4, mask: 0x00ff}, {slot: 1, birth: 7, mask: 0xff00}})
	inner := newNode(2, 7)
	inner.refs[5] = ref{4, 0xdeadbeef}
	for _, n := range []*node{leaf, inner} {
		f.Add(encodeNode(n)[nodeHead:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeNode(b)
		if err != nil {
			return
		}
		if got := encodeNode(n)[nodeHead:]; !bytes.Equal(got, b) {
			t.Fatalf("%x is decoded and encoded to %x", b, got)
		}
	})
}

func FuzzDecodeSpace(f *testing.F) {
	var slots, units bitmap
	for i := range uint32(40_000) {
		slots.set(i)
	}
	units.set(77)
	f.Add(encodeSpace(3, &slots, &units))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < spaceHead+4 {
			return
		}
		b = bytes.Clone(b)
		w := writer{b[:len(b)-4]}
		w.u32(checksum(w.b)) // get past it
		slots, units, err := decodeSpace(w.b, 3)
		if err != nil {
			return
		}
		s, u, err := decodeSpace(encodeSpace(3, &slots, &units), 3)
		if err != nil || s.count != slots.count || u.count != units.count {
			t.Fatalf("not the same again: %v", err)
		}
	})
}

func FuzzParseLog(f *testing.F) {
	b := logHead(5, "boot")
	b = append(b, encodeRecord(record{lsn: 8, kind: recMap, body: []byte("body")})...)
	b = append(b, encodeRecord(record{lsn: 9, kind: recNext, body: []byte{6, 0, 0, 0, 0, 0, 0, 0}})...)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= logHeadSize { // get past it
			copy(b[124:], writerOf(checksum(b[:124])))
		}
		p, err := parseLog(b, 5, 7)
		if err != nil {
			return
		}
		for i, r := range p.records {
			if r.lsn != uint64(8+i) {
				t.Fatalf("record %d has LSN %d", i, r.lsn)
			}
		}
		durableAfter(b, p.end, 7)
	})
}

func writerOf(x uint32) []byte {
	w := writer{}
	w.u32(x)
	return w.b
}

func TestBitmapEqualsASet(t *testing.T) {
	var b bitmap
	set := map[uint32]bool{}
	for i := range uint32(20_000) {
		x := i * 2654435761 % 5000
		if i%3 == 0 {
			b.clear(x)
			delete(set, x)
		} else {
			b.set(x)
			set[x] = true
		}
	}
	if int(b.count) != len(set) {
		t.Fatalf("%d, not %d", b.count, len(set))
	}
	r := &reader{b: b.encode(nil)}
	c, err := r.bitmap()
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(6000) {
		if b.has(i) != set[i] || c.has(i) != set[i] {
			t.Fatalf("%d", i)
		}
		clear := i
		for set[clear] {
			clear++
		}
		if got := b.firstClear(i); got != clear {
			t.Fatalf("first clear from %d: %d, not %d", i, got, clear)
		}
	}
	if e := b.end(); e == 0 || !set[e-1] || set[e] {
		t.Fatalf("end %d", e)
	}
}
