package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
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

// A node in the map file: length of the rest (4), CRC32C of the rest (4), level
// (1), birth (4), bitmap of present kids or entries (8), then for each of them
// the offset of the kid (8) or the entry.
const nodeHead = 8

func encodeNode(n *node) []byte {
	b := make([]byte, nodeHead, 256)
	b = append(b, n.level)
	b = binary.LittleEndian.AppendUint32(b, n.birth)
	var present uint64
	for i := range fanout {
		if n.level > 0 && n.kids[i] != nil || n.level == 0 && len(n.entries[i]) > 0 {
			present |= 1 << i
		}
	}
	b = binary.LittleEndian.AppendUint64(b, present)
	for i := range fanout {
		switch {
		case present>>i&1 == 0:
		case n.level > 0:
			b = binary.LittleEndian.AppendUint64(b, uint64(n.kids[i].off))
		default:
			b = putEntry(b, n.entries[i])
		}
	}
	binary.LittleEndian.PutUint32(b[0:], uint32(len(b)-nodeHead))
	binary.LittleEndian.PutUint32(b[4:], checksum(b[nodeHead:]))
	return b
}

// maxNode bounds the rest of an encoded node.
const maxNode = 13 + fanout*(1+maxPieces*10)

// decodeNode reads the rest of a node (after its head). Kids are given as
// offsets, by index.
func decodeNode(b []byte) (n *node, kids map[int]int64, err error) {
	r := &reader{b: b}
	level, birth, present := r.u8(), r.u32(), r.u64()
	if r.bad || level > depthFor(maxClusters) {
		return nil, nil, fmt.Errorf("%w: node", errCodec)
	}
	n = newNode(level, birth)
	if level > 0 {
		kids = make(map[int]int64, bits.OnesCount64(present))
	}
	for i := range fanout {
		if present>>i&1 == 0 {
			continue
		}
		if level > 0 {
			kids[i] = int64(r.u64())
		} else {
			n.entries[i] = r.entry()
		}
	}
	if r.bad || len(r.b) != 0 {
		return nil, nil, fmt.Errorf("%w: node of level %d", errCodec, level)
	}
	return n, kids, nil
}
