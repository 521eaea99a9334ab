package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"hotspare"
)

// Magic numbers and bits of QEMU docs/interop/qcow2.txt.
const (
	qcow2Magic = "QFI\xfb"

	qcow2HeaderV2 = 72
	qcow2HeaderV3 = 104

	qcow2Dirty        = 1 << 0
	qcow2Corrupt      = 1 << 1
	qcow2ExternalData = 1 << 2
	qcow2Compression  = 1 << 3
	qcow2ExtendedL2   = 1 << 4

	qcow2ExtEnd           = 0
	qcow2ExtBackingFormat = 0xe2792aca
	qcow2ExtExternalData  = 0x44415441
	qcow2ExtEncryption    = 0x0537be77

	qcow2Offset     = 0x00fffffffffffe00 // bits 9-55 of an L1 or L2 entry
	qcow2L1Reserved = 0x7f000000000001ff
	qcow2Compressed = 1 << 62

	// QEMU's own limits: 32 MiB of L1, clusters of 512 bytes to 2 MiB.
	qcow2MaxL1 = 32 << 20 / 8
)

// qcow2Header is what the check needs to know of a header.
type qcow2Header struct {
	version     uint32
	clusterBits uint32
	size        int64 // of the disk
	l1Entries   uint32
	l1Offset    uint64
	zstd        bool
}

// imageError makes the errors of this file.
func imageError(code hotspare.Code, what, where, why, fix string) error {
	return &hotspare.Error{Code: code, What: what, Where: where, Why: why, Fix: fix}
}

const (
	fixConvert = "make it self-contained: qemu-img convert -O qcow2 OLD NEW"
	fixCheck   = "repair it with qemu-img check -r all, or export it again"
	fixCopy    = "copy or download the file again and compare its SHA-256"
)

// parseQCOW2Header checks the header of a qcow2 file of fileSize bytes before
// anything else looks at the file. It refuses whatever would make a reader open
// another file (backing file, external data file), everything that is not
// known, and sizes that cannot be. maxDisk bounds the size of the disk.
func parseQCOW2Header(r io.ReaderAt, fileSize, maxDisk int64) (qcow2Header, error) {
	var h qcow2Header
	b := make([]byte, qcow2HeaderV3+8)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, fmt.Errorf("images: read the qcow2 header: %w", err)
	}
	if n < 4 || string(b[:4]) != qcow2Magic {
		return h, imageError(hotspare.CodeImageFormat, "the file is not a qcow2 image", "byte 0", "it lacks the magic number QFI\\xfb",
			"name the format that it has (raw or qcow2)")
	}
	if n < qcow2HeaderV2 {
		return h, truncated("the header", 0, qcow2HeaderV2, fileSize)
	}
	be := binary.BigEndian
	h.version = be.Uint32(b[4:])
	if h.version != 2 && h.version != 3 {
		return h, unsupported("byte 4", fmt.Sprintf("qcow2 version %d; 2 and 3 are known", h.version))
	}
	if off, size := be.Uint64(b[8:]), be.Uint32(b[16:]); off != 0 || size != 0 {
		return h, imageError(hotspare.CodeImageBacking, "the qcow2 image names a backing file", "header byte 8",
			"its contents are spread over several files, and the name could point at any file of this host", fixConvert)
	}
	h.clusterBits = be.Uint32(b[20:])
	if h.clusterBits < 9 || h.clusterBits > 21 {
		return h, unsupported("header byte 20", fmt.Sprintf("clusters of 2^%d bytes; 2^9 to 2^21 are allowed", h.clusterBits))
	}
	if be.Uint32(b[32:]) != 0 {
		return h, unsupported("header byte 32", "it is encrypted")
	}
	if err := h.parseSizes(b, fileSize, maxDisk); err != nil {
		return h, err
	}
	if h.version == 2 {
		return h, checkExtensions(r, qcow2HeaderV2, h.clusterBits, fileSize)
	}
	if n < qcow2HeaderV3 {
		return h, truncated("the header", 0, qcow2HeaderV3, fileSize)
	}
	length, err := h.parseV3(b[:n])
	if err != nil {
		return h, err
	}
	return h, checkExtensions(r, int64(length), h.clusterBits, fileSize)
}

func unsupported(where, why string) error {
	return imageError(hotspare.CodeImageFormat, "the qcow2 image cannot be imported", where, why,
		"convert it: qemu-img convert -O qcow2 OLD NEW")
}

func truncated(part string, off, length, fileSize int64) error {
	return imageError(hotspare.CodeImageTruncated, "the image file is truncated", fmt.Sprintf("byte %d", fileSize),
		fmt.Sprintf("%s needs bytes %d to %d, the file has %d", part, off, off+length-1, fileSize), fixCopy)
}

// parseSizes reads the fields of the disk's size, the L1 table and the refcount
// table, and holds them against each other and the file.
func (h *qcow2Header) parseSizes(b []byte, fileSize, maxDisk int64) error {
	be := binary.BigEndian
	size := be.Uint64(b[24:])
	if size == 0 || size > uint64(maxDisk) {
		return unsupported("header byte 24", fmt.Sprintf("a disk of %d bytes; 1 to %d are allowed", size, maxDisk))
	}
	if size%512 != 0 {
		return unsupported("header byte 24", fmt.Sprintf("a disk of %d bytes is not a whole number of 512-byte sectors", size))
	}
	h.size = int64(size)
	h.l1Entries, h.l1Offset = be.Uint32(b[36:]), be.Uint64(b[40:])
	cluster := uint64(1) << h.clusterBits
	perL1 := cluster * (cluster / 8)
	if need := (size + perL1 - 1) / perL1; uint64(h.l1Entries) < need || h.l1Entries > qcow2MaxL1 {
		return unsupported("header byte 36", fmt.Sprintf("an L1 table of %d entries; the disk needs %d, %d are allowed", h.l1Entries, need, qcow2MaxL1))
	}
	if err := h.tableInside("the L1 table", h.l1Offset, uint64(h.l1Entries)*8, fileSize); err != nil {
		return err
	}
	refOff, refClusters := be.Uint64(b[48:]), uint64(be.Uint32(b[56:]))
	if refClusters > 8<<20/cluster+1 {
		return unsupported("header byte 56", fmt.Sprintf("a refcount table of %d clusters", refClusters))
	}
	return h.tableInside("the refcount table", refOff, refClusters*cluster, fileSize)
}

// tableInside checks that a table of the image lies in the file, aligned, and
// not over the header.
func (h *qcow2Header) tableInside(what string, off, length uint64, fileSize int64) error {
	cluster := uint64(1) << h.clusterBits
	if off%cluster != 0 || off < cluster || off > 1<<56 {
		return unsupported(what, fmt.Sprintf("it cannot be at byte %d", off))
	}
	if end, carry := bits.Add64(off, length, 0); carry != 0 || end > uint64(fileSize) {
		return truncated(what, int64(off), int64(length), fileSize)
	}
	return nil
}

// parseV3 reads the fields that version 3 added and gives the header's length.
func (h *qcow2Header) parseV3(b []byte) (uint32, error) {
	be := binary.BigEndian
	features := be.Uint64(b[72:])
	switch {
	case features&qcow2ExternalData != 0:
		return 0, imageError(hotspare.CodeImageBacking, "the qcow2 image names an external data file", "header byte 72",
			"its contents are in another file, and the name could point at any file of this host", fixConvert)
	case features&qcow2Corrupt != 0:
		return 0, imageError(hotspare.CodeImageFormat, "the qcow2 image is marked as corrupt", "header byte 72", "", fixCheck)
	case features&qcow2Dirty != 0:
		return 0, imageError(hotspare.CodeImageFormat, "the qcow2 image was not closed", "header byte 72",
			"a running virtual machine has it open, or had when it was killed", "shut the machine down, or "+fixCheck)
	case features&qcow2ExtendedL2 != 0:
		return 0, unsupported("header byte 72", "it has extended L2 entries")
	case features&^uint64(qcow2Compression) != 0:
		return 0, unsupported("header byte 72", fmt.Sprintf("it needs features that are not known (%#x)", features))
	}
	if order := be.Uint32(b[96:]); order > 6 {
		return 0, unsupported("header byte 96", fmt.Sprintf("refcounts of 2^%d bits", order))
	}
	length := be.Uint32(b[100:])
	if length < qcow2HeaderV3 || length%8 != 0 || uint64(length) > 1<<h.clusterBits {
		return 0, unsupported("header byte 100", fmt.Sprintf("a header of %d bytes", length))
	}
	var method byte
	if length > qcow2HeaderV3 {
		if len(b) <= qcow2HeaderV3 {
			return 0, truncated("the header", 0, int64(length), int64(len(b)))
		}
		method = b[104]
	}
	if method > 1 || (method == 1) != (features&qcow2Compression != 0) {
		return 0, unsupported("header byte 104", fmt.Sprintf("compression method %d is not known or not announced", method))
	}
	h.zstd = method == 1
	return length, nil
}

// checkExtensions walks the header extensions, which end within the first
// cluster.
func checkExtensions(r io.ReaderAt, off int64, clusterBits uint32, fileSize int64) error {
	end := int64(1) << clusterBits
	for off+8 <= end {
		var b [8]byte
		if _, err := r.ReadAt(b[:], off); err != nil {
			return truncated("the header extensions", off, 8, fileSize)
		}
		kind, length := binary.BigEndian.Uint32(b[:]), int64(binary.BigEndian.Uint32(b[4:]))
		where := fmt.Sprintf("header extension at byte %d", off)
		switch kind {
		case qcow2ExtEnd:
			return nil
		case qcow2ExtExternalData:
			return imageError(hotspare.CodeImageBacking, "the qcow2 image names an external data file", where, "", fixConvert)
		case qcow2ExtBackingFormat:
			return imageError(hotspare.CodeImageBacking, "the qcow2 image names the format of a backing file", where, "", fixConvert)
		case qcow2ExtEncryption:
			return unsupported(where, "it is encrypted")
		}
		off += 8 + (length+7)&^7
		if off > end {
			return unsupported(where, fmt.Sprintf("it is %d bytes long and leaves the first cluster", length))
		}
	}
	return nil // the first cluster is full to its end: allowed by QEMU too
}

// checkTables walks L1 and L2 and makes sure that every table and every cluster
// lies inside the file, so that a truncated file is found before anything is
// written.
func (h *qcow2Header) checkTables(r io.ReaderAt, fileSize int64) error {
	cluster := int64(1) << h.clusterBits
	l1, l2 := make([]byte, int64(h.l1Entries)*8), make([]byte, cluster)
	if _, err := r.ReadAt(l1, int64(h.l1Offset)); err != nil {
		return truncated("the L1 table", int64(h.l1Offset), int64(len(l1)), fileSize)
	}
	perL2 := cluster / 8
	for i := range int64(h.l1Entries) {
		first := i * perL2 * cluster // disk address of this L2 table's first cluster
		entry := binary.BigEndian.Uint64(l1[i*8:])
		if entry&qcow2L1Reserved != 0 && first < h.size {
			return unsupported(fmt.Sprintf("L1 entry %d", i), fmt.Sprintf("reserved bits are set (%#x)", entry))
		}
		off := int64(entry & qcow2Offset)
		if off == 0 || first >= h.size {
			continue
		}
		what := fmt.Sprintf("L2 table %d", i)
		if err := h.tableInside(what, uint64(off), uint64(cluster), fileSize); err != nil {
			return err
		}
		if _, err := r.ReadAt(l2, off); err != nil {
			return truncated(what, off, cluster, fileSize)
		}
		for j := range perL2 {
			disk := first + j*cluster
			if disk >= h.size {
				break
			}
			if err := h.checkCluster(binary.BigEndian.Uint64(l2[j*8:]), disk, fileSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkCluster checks one L2 entry: the cluster of the disk at byte disk.
func (h *qcow2Header) checkCluster(entry uint64, disk, fileSize int64) error {
	cluster := int64(1) << h.clusterBits
	what := fmt.Sprintf("the cluster of disk byte %d", disk)
	if entry&qcow2Compressed != 0 {
		x := 62 - (h.clusterBits - 8)
		off := int64(entry & (1<<x - 1))
		sectors := int64(entry & (qcow2Compressed - 1) >> x)
		// The last sector may end behind the end of the file: writers do not
		// pad it.
		last := max(off, off&^511+sectors*512)
		if off < cluster {
			return unsupported(what, fmt.Sprintf("it cannot be at byte %d", off))
		}
		if last >= fileSize {
			return truncated(what, off, last-off+1, fileSize)
		}
		return nil
	}
	if h.version == 3 && entry&1 != 0 { // reads as zeros; an offset is only reserved
		return nil
	}
	if entry&0x3f000000000001fe != 0 || h.version == 2 && entry&1 != 0 {
		return unsupported(what, fmt.Sprintf("reserved bits are set (%#x)", entry))
	}
	off := int64(entry & qcow2Offset)
	if off == 0 {
		return nil
	}
	return h.tableInside(what, uint64(off), uint64(min(cluster, h.size-disk)), fileSize)
}
