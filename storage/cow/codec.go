package cow

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, crcTable) }

var errCodec = errors.New("cow: malformed metadata")

// reader takes little-endian values off a buffer; after a short read bad is set
// and all values are zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || len(r.b) < n {
		r.bad, r.b = true, nil
		return make([]byte, max(0, min(n, 8)))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }

func (r *reader) str() string {
	n := int(r.u16())
	if r.bad || len(r.b) < n {
		r.bad = true
		return ""
	}
	return string(r.take(n))
}

// writer appends little-endian values.
type writer struct{ b []byte }

func (w *writer) u8(x uint8)   { w.b = append(w.b, x) }
func (w *writer) u32(x uint32) { w.b = binary.LittleEndian.AppendUint32(w.b, x) }
func (w *writer) u64(x uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, x) }

func putStr(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

func putEntry(b []byte, e entry) []byte {
	b = append(b, byte(len(e)))
	for _, p := range e {
		b = binary.LittleEndian.AppendUint32(b, p.slot)
		b = binary.LittleEndian.AppendUint32(b, p.birth)
		b = binary.LittleEndian.AppendUint16(b, p.mask)
	}
	return b
}

// entry reads an entry and holds it to its invariants.
func (r *reader) entry() entry {
	n := int(r.u8())
	if r.bad || n > maxPieces {
		r.bad = true
		return nil
	}
	var e entry
	var seen uint16
	for range n {
		p := piece{slot: r.u32(), birth: r.u32(), mask: r.u16()}
		if p.mask == 0 || p.mask&seen != 0 {
			r.bad = true
			return nil
		}
		seen |= p.mask
		e = append(e, p)
	}
	return e
}
