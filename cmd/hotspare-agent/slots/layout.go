package slots

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"unicode/utf16"

	"hotspare/haengine/agentlink"
)

const (
	mib     = 1 << 20
	tableAt = 1 * mib
	slotsAt = 2 * mib

	maxSlot = 64 << 40

	gptEntries    = 128
	gptEntryBytes = 128
	gptHeadBytes  = 92
)

// Types of partitions, of hotspare's own: no system mounts what it does not know.
var (
	typeRecord = guid(0x8f3d4a10, 0x6a1c, 0x4e52, [8]byte{0x9b, 0x1e, 0x68, 0x6f, 0x74, 0x73, 0x70, 0x72})
	typeSlot   = guid(0x8f3d4a11, 0x6a1c, 0x4e52, [8]byte{0x9b, 0x1e, 0x68, 0x6f, 0x74, 0x73, 0x70, 0x72})
)

// guid writes a GUID as a GPT has it: its first three parts little endian.
func guid(a uint32, b, c uint16, d [8]byte) (g [16]byte) {
	binary.LittleEndian.PutUint32(g[:], a)
	binary.LittleEndian.PutUint16(g[4:], b)
	binary.LittleEndian.PutUint16(g[6:], c)
	copy(g[8:], d[:])
	return g
}

// CheckLayout says whether a layout can be written.
func CheckLayout(l agentlink.SlotLayout) error {
	if len(l.Slots) == 0 || len(l.Slots) > agentlink.MaxSlots || l.SlotBytes <= 0 || l.SlotBytes > maxSlot || l.SlotBytes%mib != 0 {
		return fmt.Errorf("slots: %d slots of %d bytes; possible are 1 to %d of whole MiB", len(l.Slots), l.SlotBytes, agentlink.MaxSlots)
	}
	return nil
}

func slotAt(l agentlink.SlotLayout, i int) int64 { return slotsAt + int64(i)*l.SlotBytes }

// Needs gives the size that a disk must have for a layout.
func Needs(l agentlink.SlotLayout) int64 { return slotAt(l, len(l.Slots)) + mib }

// Whole gives the record of a disk that becomes one installation. It follows what
// may stand in its place from before.
func Whole(dev io.ReaderAt, size int64) (Record, error) {
	r := Record{at: size - recordArea}
	old, err := readAt(dev, r.at)
	if err != nil && !errors.Is(err, ErrNone) {
		return r, err
	}
	r.seq = old.seq
	return r, nil
}

// Divide writes a partition table with empty slots to a disk of size bytes with
// logical sectors of sector bytes, and the record behind it. What was on the disk
// is out of reach then.
func Divide(dev Device, size, sector int64, l agentlink.SlotLayout) (Record, error) {
	if err := CheckLayout(l); err != nil {
		return Record{}, err
	}
	if size < Needs(l) {
		return Record{}, fmt.Errorf("slots: the disk has %d bytes, the slots need %d", size, Needs(l))
	}
	r := Record{Layout: &l, at: tableAt}
	for _, name := range l.Slots {
		r.Copies = append(r.Copies, Copy{Copy: agentlink.Copy{Slot: name, State: agentlink.CopyEmpty}})
	}
	// The record first: a disk with slots and no record would look foreign.
	blank := make([]byte, recordArea)
	if _, err := dev.WriteAt(blank, tableAt); err != nil {
		return Record{}, err
	}
	if err := r.Write(dev); err != nil {
		return Record{}, err
	}
	t, err := newTable(size, sector, l)
	if err != nil {
		return Record{}, err
	}
	if err := errors.Join(t.write(dev), dev.Sync()); err != nil {
		return Record{}, err
	}
	// Until here a cut of power leaves the table of before.
	r.Table = true
	return r, r.Write(dev)
}

// table is a GPT.
type table struct {
	size, sector int64
	disk         [16]byte
	entries      []byte
}

func newTable(size, sector int64, l agentlink.SlotLayout) (table, error) {
	t := table{size: size, sector: sector, entries: make([]byte, gptEntries*gptEntryBytes)}
	var err error
	if t.disk, err = randomGUID(); err != nil {
		return t, err
	}
	if err := t.add(0, typeRecord, "hotspare-record", tableAt, recordArea); err != nil {
		return t, err
	}
	for i, name := range l.Slots {
		if err := t.add(i+1, typeSlot, "hotspare-"+name, slotAt(l, i), l.SlotBytes); err != nil {
			return t, err
		}
	}
	return t, nil
}

func randomGUID() (g [16]byte, err error) {
	_, err = rand.Read(g[:])
	g[7] = g[7]&0x0f | 0x40
	g[8] = g[8]&0x3f | 0x80
	return g, err
}

// add fills one entry of 128 bytes: type, own GUID, first and last sector,
// attributes, name in UTF-16.
func (t *table) add(i int, kind [16]byte, name string, at, length int64) error {
	own, err := randomGUID()
	if err != nil {
		return err
	}
	e := t.entries[i*gptEntryBytes : (i+1)*gptEntryBytes]
	copy(e, kind[:])
	copy(e[16:], own[:])
	binary.LittleEndian.PutUint64(e[32:], uint64(at/t.sector))
	binary.LittleEndian.PutUint64(e[40:], uint64((at+length)/t.sector-1))
	for j, u := range utf16.Encode([]rune(name)) {
		if j < 36 {
			binary.LittleEndian.PutUint16(e[56+2*j:], u)
		}
	}
	return nil
}

func (t *table) header(own, other, entries int64) []byte {
	last := t.size/t.sector - 1
	reserved := int64(len(t.entries))/t.sector + 1
	b := make([]byte, t.sector)
	copy(b, "EFI PART")
	binary.LittleEndian.PutUint32(b[8:], 0x00010000)
	binary.LittleEndian.PutUint32(b[12:], gptHeadBytes)
	binary.LittleEndian.PutUint64(b[24:], uint64(own))
	binary.LittleEndian.PutUint64(b[32:], uint64(other))
	binary.LittleEndian.PutUint64(b[40:], uint64(1+reserved))
	binary.LittleEndian.PutUint64(b[48:], uint64(last-reserved))
	copy(b[56:], t.disk[:])
	binary.LittleEndian.PutUint64(b[72:], uint64(entries))
	binary.LittleEndian.PutUint32(b[80:], gptEntries)
	binary.LittleEndian.PutUint32(b[84:], gptEntryBytes)
	binary.LittleEndian.PutUint32(b[88:], crc32.ChecksumIEEE(t.entries))
	binary.LittleEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:gptHeadBytes]))
	return b
}

// write writes both copies of the table and the protective MBR.
func (t *table) write(dev Device) error {
	last := t.size/t.sector - 1
	second := last - int64(len(t.entries))/t.sector
	mbr := make([]byte, t.sector)
	p := mbr[446:]
	p[1], p[2], p[3] = 0, 2, 0 // CHS of the first sector
	p[4] = 0xee
	p[5], p[6], p[7] = 0xff, 0xff, 0xff
	binary.LittleEndian.PutUint32(p[8:], 1)
	binary.LittleEndian.PutUint32(p[12:], uint32(min(last, 0xffffffff)))
	mbr[510], mbr[511] = 0x55, 0xaa
	var errs []error
	for _, w := range []struct {
		b  []byte
		at int64
	}{
		{t.entries, second * t.sector}, {t.header(last, 1, second), last * t.sector},
		{t.entries, 2 * t.sector}, {t.header(1, last, 2), t.sector}, {mbr, 0},
	} {
		_, err := dev.WriteAt(w.b, w.at)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
