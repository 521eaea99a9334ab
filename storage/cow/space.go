package cow

import (
	"encoding/binary"
	"fmt"
)

// A space file says what is in use as of a checkpoint: magic (8), version (4),
// number (8), the bitmap of slots, the bitmap of units of the map file, CRC32C of
// all that. Every checkpoint writes a new one; it takes 2 MiB for each TiB at
// most.
const (
	spaceMagic   = "hscowspc"
	spaceVersion = 1
	spaceHead    = 20
)

func spaceName(num uint64) string { return fmt.Sprintf("space-%08d", num) }

func encodeSpace(num uint64, slots, units *bitmap) []byte {
	w := writer{[]byte(spaceMagic)}
	w.u32(spaceVersion)
	w.u64(num)
	w.b = units.encode(slots.encode(w.b))
	w.u32(checksum(w.b))
	return w.b
}

func decodeSpace(b []byte, num uint64) (slots, units bitmap, err error) {
	if len(b) < spaceHead+4 || string(b[:8]) != spaceMagic {
		return slots, units, fmt.Errorf("%w: head of %s", errCodec, spaceName(num))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != spaceVersion {
		return slots, units, fmt.Errorf("%w: %s has version %d", errVersion, spaceName(num), v)
	}
	end := len(b) - 4
	if checksum(b[:end]) != binary.LittleEndian.Uint32(b[end:]) || binary.LittleEndian.Uint64(b[12:]) != num {
		return slots, units, fmt.Errorf("%w: checksum of %s", errCodec, spaceName(num))
	}
	r := &reader{b: b[spaceHead:end]}
	if slots, err = r.bitmap(); err != nil {
		return slots, units, err
	}
	if units, err = r.bitmap(); err == nil && len(r.b) > 0 {
		err = fmt.Errorf("%w: %s is too long", errCodec, spaceName(num))
	}
	return slots, units, err
}
