package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"hotspare"
)

// Partition tables are read here and not by a library because they are foreign
// bytes: the library at hand allocates what the GPT header asks for (two 32-bit
// numbers multiplied) before it checks anything.

const sector = 512

// espType is the type of the EFI system partition, as its bytes lie on the disk.
const espType = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"

// slot is a part of the disk that may hold a file system.
type slot struct {
	number int // as in the table, 0 is the whole disk
	off    int64
	size   int64
	esp    bool // the table says that it is the EFI system partition
}

func (s slot) String() string {
	if s.number == 0 {
		return "the whole disk"
	}
	return fmt.Sprintf("partition %d", s.number)
}

// partitions gives the slots of a disk: those of its GPT, or the whole disk if
// it begins with a file system, or those of its MBR.
func partitions(r io.ReaderAt, size int64) ([]slot, error) {
	head := make([]byte, 2*sector)
	if n, err := r.ReadAt(head, 0); n < len(head) {
		if err == nil || err == io.EOF {
			return nil, truncated("the partition table", 0, int64(len(head)), size)
		}
		return nil, fmt.Errorf("images: read the partition table: %w", err)
	}
	if string(head[sector:sector+8]) == "EFI PART" {
		return readGPT(r, size, head[sector:])
	}
	whole := slot{size: size}
	if identify(r, whole).kind != "" {
		return []slot{whole}, nil
	}
	if head[510] != 0x55 || head[511] != 0xaa {
		return nil, imageError(hotspare.CodeImageKernel, "the disk holds nothing that is known", "sector 0",
			"it has neither a partition table nor a file system (ext4, xfs, btrfs)", "check that the file is a disk image and its format is right")
	}
	return readMBR(r, size, head[:sector])
}

func damagedTable(what string) error {
	return imageError(hotspare.CodeImageFormat, "the partition table is damaged", "", what, "repair it with sgdisk or sfdisk, or export the disk again")
}

// readGPT follows UEFI 2.10 section 5.3.
func readGPT(r io.ReaderAt, size int64, header []byte) ([]slot, error) {
	le := binary.LittleEndian
	length := le.Uint32(header[12:])
	if length < 92 || length > sector {
		return nil, damagedTable(fmt.Sprintf("a GPT header of %d bytes", length))
	}
	sum := le.Uint32(header[16:])
	clean := append([]byte(nil), header[:length]...)
	clear(clean[16:20])
	if crc32.ChecksumIEEE(clean) != sum {
		return nil, damagedTable("the checksum of the GPT header differs")
	}
	at, count, entry := le.Uint64(header[72:]), le.Uint32(header[80:]), le.Uint32(header[84:])
	if count > 1024 || entry < 128 || entry > 1024 || entry%8 != 0 || at < 2 || at > uint64(size/sector) {
		return nil, damagedTable(fmt.Sprintf("%d GPT entries of %d bytes at sector %d", count, entry, at))
	}
	table := make([]byte, count*entry)
	if n, err := r.ReadAt(table, int64(at)*sector); n < len(table) {
		if err == nil || err == io.EOF {
			return nil, truncated("the GPT entries", int64(at)*sector, int64(len(table)), size)
		}
		return nil, fmt.Errorf("images: read the GPT entries: %w", err)
	}
	if crc32.ChecksumIEEE(table) != le.Uint32(header[88:]) {
		return nil, damagedTable("the checksum of the GPT entries differs")
	}
	var all []slot
	for i := range int(count) {
		e := table[i*int(entry):]
		if [16]byte(e) == [16]byte{} {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		s, err := newSlot(i+1, first, last-first+1, size)
		if first > last || err != nil {
			return nil, errors.Join(err, damagedTable(fmt.Sprintf("partition %d: sectors %d to %d", i+1, first, last)))
		}
		s.esp = string(e[:16]) == espType
		all = append(all, s)
	}
	return all, nil
}

// newSlot checks that a partition lies on the disk.
func newSlot(number int, first, sectors uint64, size int64) (slot, error) {
	limit := uint64(size / sector)
	if first == 0 || sectors == 0 || first > 1<<50 || sectors > 1<<50 {
		return slot{}, damagedTable(fmt.Sprintf("partition %d: %d sectors at %d", number, sectors, first))
	}
	if first+sectors > limit {
		return slot{}, truncated(fmt.Sprintf("partition %d", number), int64(first)*sector, int64(sectors)*sector, size)
	}
	return slot{number: number, off: int64(first) * sector, size: int64(sectors) * sector}, nil
}

const maxLogical = 60

// readMBR reads the four primary partitions and the chain of logical ones,
// which are numbered from 5.
func readMBR(r io.ReaderAt, size int64, mbr []byte) ([]slot, error) {
	le := binary.LittleEndian
	var all []slot
	for i := range 4 {
		e := mbr[446+i*16:]
		kind, first, sectors := e[4], uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		if kind == 0 || sectors == 0 {
			continue
		}
		if kind == 0xee {
			return nil, damagedTable("the MBR announces a GPT and there is none (a disk with 4096-byte sectors is not supported)")
		}
		s, err := newSlot(i+1, first, sectors, size)
		if err != nil {
			return nil, err
		}
		if kind != 0x05 && kind != 0x0f && kind != 0x85 {
			s.esp = kind == 0xef
			all = append(all, s)
			continue
		}
		logical, err := readLogical(r, size, first)
		if err != nil {
			return nil, err
		}
		all = append(all, logical...)
	}
	return all, nil
}

func readLogical(r io.ReaderAt, size int64, base uint64) ([]slot, error) {
	le := binary.LittleEndian
	var all []slot
	b := make([]byte, sector)
	for at, number := base, 5; ; number++ {
		if number >= 5+maxLogical {
			return nil, damagedTable("the chain of logical partitions does not end")
		}
		if n, _ := r.ReadAt(b, int64(at)*sector); n < len(b) {
			return nil, truncated("a logical partition's table", int64(at)*sector, sector, size)
		}
		if b[510] != 0x55 || b[511] != 0xaa {
			return nil, damagedTable(fmt.Sprintf("no signature in sector %d", at))
		}
		if first, sectors := uint64(le.Uint32(b[446+8:])), uint64(le.Uint32(b[446+12:])); sectors != 0 {
			s, err := newSlot(number, at+first, sectors, size)
			if err != nil {
				return nil, err
			}
			all = append(all, s)
		}
		next := uint64(le.Uint32(b[462+8:]))
		if next == 0 || le.Uint32(b[462+12:]) == 0 {
			return all, nil
		}
		at = base + next
	}
}

// fsID is what a slot holds, by its magic number.
type fsID struct {
	slot
	kind string // ext4, xfs, btrfs, lvm, luks; "" is not known
	uuid string
}

func identify(r io.ReaderAt, s slot) fsID {
	id := fsID{slot: s}
	at := func(off int64, magic string) bool {
		b := make([]byte, len(magic))
		n, _ := r.ReadAt(b, s.off+off)
		return n == len(b) && off+int64(len(b)) <= s.size && string(b) == magic
	}
	uuid := func(off int64) string {
		var b [16]byte
		_, _ = r.ReadAt(b[:], s.off+off) // the magic number behind it was read: it is there
		return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	}
	switch {
	case at(0x438, "\x53\xef"):
		id.kind, id.uuid = "ext4", uuid(0x468)
	case at(0, "XFSB"):
		id.kind, id.uuid = "xfs", uuid(32)
	case at(0x10040, "_BHRfS_M"):
		id.kind, id.uuid = "btrfs", uuid(0x10020)
	case at(512, "LABELONE"):
		id.kind = "lvm"
	case at(0, "LUKS\xba\xbe"):
		id.kind = "luks"
	}
	return id
}

// Partition is a part of a disk, as its table numbers it.
type Partition struct {
	Number        int
	Offset, Bytes int64
}

// Partitions gives the partitions of a disk of size bytes; none for a disk that
// holds a file system as a whole.
func Partitions(disk io.ReaderAt, size int64) ([]Partition, error) {
	all, err := partitions(disk, size)
	if err != nil {
		return nil, err
	}
	var out []Partition
	for _, s := range all {
		if s.number != 0 {
			out = append(out, Partition{s.number, s.off, s.size})
		}
	}
	return out, nil
}
