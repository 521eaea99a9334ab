package images

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"hotspare"
)

// Format says how the bytes of an image file are laid out, once it is unpacked.
type Format string

// The formats that can be imported.
const (
	FormatRaw   Format = "raw"
	FormatQCOW2 Format = "qcow2"
	FormatVMDK  Format = "vmdk" // monolithicSparse, streamOptimized
	FormatVHD   Format = "vhd"  // fixed, dynamic
	FormatVHDX  Format = "vhdx"
	// FormatTar is a root file system as a tar archive; it becomes an ext4 disk.
	FormatTar Format = "tar"
	// FormatSquashfs is a root file system that a machine runs from memory.
	FormatSquashfs Format = "squashfs"
	// FormatNone is an image without a disk: a kernel and an initrd.
	FormatNone Format = "none"
)

// Formats lists what a file may be imported as.
func Formats() []Format {
	return []Format{FormatRaw, FormatQCOW2, FormatVMDK, FormatVHD, FormatVHDX, FormatTar, FormatSquashfs}
}

// packing is how a file is compressed.
type packing string

const (
	packGzip  packing = "gzip"
	packXZ    packing = "xz"
	packZstd  packing = "zstd"
	packBzip2 packing = "bzip2"
)

// detectPacking decides from the first bytes whether a file is compressed.
func detectPacking(r io.ReaderAt) (packing, error) {
	head, err := readHead(r, 6)
	if err != nil {
		return "", err
	}
	for _, p := range []struct {
		magic string
		is    packing
	}{{"\x1f\x8b", packGzip}, {"\xfd7zXZ\x00", packXZ}, {"\x28\xb5\x2f\xfd", packZstd}, {"BZh", packBzip2}} {
		if bytes.HasPrefix(head, []byte(p.magic)) {
			return p.is, nil
		}
	}
	return "", nil
}

func readHead(r io.ReaderAt, n int) ([]byte, error) {
	head := make([]byte, n)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("images: read the file: %w", err)
	}
	return head[:n], nil
}

// detectFormat decides the format from the file's bytes. It is asked once per
// import and only when the caller did not name the format.
func detectFormat(r io.ReaderAt, fileSize int64) (Format, error) {
	if fileSize == 0 {
		return "", imageError(hotspare.CodeImageTruncated, "the file is empty", "byte 0", "", fixCopy)
	}
	head, err := readHead(r, 4096)
	if err != nil {
		return "", err
	}
	for _, known := range []struct {
		off   int
		magic string
		is    Format
		other string // a format that is not taken, and how it becomes one that is
		hint  string
	}{
		{0, qcow2Magic, FormatQCOW2, "", ""},
		{0, vmdkMagic, FormatVMDK, "", ""},
		{0, "vhdxfile", FormatVHDX, "", ""},
		{0, vhdMagic, FormatVHD, "", ""},
		{0, "hsqs", FormatSquashfs, "", ""},
		{257, "ustar", FormatTar, "", ""},
		{0, "# Disk DescriptorFile", "", "a VMDK descriptor, whose contents are in other files", "export it as one file: qemu-img convert -f vmdk -O qcow2 OLD NEW"},
		{0, "COWD", "", "a VMDK disk of an old ESX", "qemu-img convert -f vmdk -O qcow2 OLD NEW"},
		{0x40, "\x7f\x10\xda\xbe", "", "a VDI disk", "qemu-img convert -f vdi -O qcow2 OLD NEW"},
		{0, "sqsh", "", "a squashfs of the wrong byte order", "make it with mksquashfs"},
		{0, "\x1f\x8b", "", "compressed twice", "unpack it"},
		{0, "PK\x03\x04", "", "a zip archive", "unzip it"},
		{0, "7z\xbc\xaf\x27\x1c", "", "a 7z archive", "unpack it"},
	} {
		if len(head) < known.off || !bytes.HasPrefix(head[known.off:], []byte(known.magic)) {
			continue
		}
		if known.is == "" {
			return "", imageError(hotspare.CodeImageFormat, "the file is of a format that is not taken", "", "it is "+known.other, known.hint)
		}
		return known.is, nil
	}
	if fixedVHD(r, fileSize) {
		return FormatVHD, nil
	}
	return FormatRaw, nil
}

const (
	vmdkMagic = "KDMV"
	vhdMagic  = "conectix"
	vhdFooter = 512

	fixSelfContained = "export it as one file that needs no other"
)

// checkVMDK looks at a sparse VMDK file before qemu-img does. Whatever could make
// it open another file is refused: a header that says that the descriptor decides
// (capacity 0), and a descriptor that names a parent.
func checkVMDK(r io.ReaderAt, fileSize, maxDisk int64) error {
	head, err := readHead(r, 64<<10)
	if err != nil {
		return err
	}
	if len(head) < 512 || string(head[:4]) != vmdkMagic {
		return imageError(hotspare.CodeImageFormat, "the file is not a sparse VMDK disk", "byte 0", "", "name the format that it has")
	}
	le := binary.LittleEndian
	version, capacity := le.Uint32(head[4:]), le.Uint64(head[12:])
	descOff, descLen := le.Uint64(head[28:]), le.Uint64(head[36:])
	switch {
	case version < 1 || version > 3:
		return vmdkRefused(fmt.Sprintf("version %d", version), "1 to 3 are known")
	case capacity == 0:
		return imageError(hotspare.CodeImageBacking, "the VMDK disk's contents are in other files", "header byte 12", "its capacity is 0: the descriptor names the files", fixSelfContained)
	case capacity > uint64(maxDisk/sector):
		return tooLarge(float64(capacity)*sector, maxDisk)
	case descOff > uint64(fileSize/sector) || descLen > 1024:
		return vmdkRefused("the descriptor", fmt.Sprintf("%d sectors at sector %d", descLen, descOff))
	}
	desc := make([]byte, descLen*sector)
	n, err := r.ReadAt(desc, int64(descOff)*sector)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("images: read the VMDK descriptor: %w", err)
	}
	for _, text := range [][]byte{desc[:n], head[512:]} { // QEMU looks for the parent behind the header
		lower := bytes.ToLower(text)
		if bytes.Contains(lower, []byte("parentfilenamehint")) {
			return imageError(hotspare.CodeImageBacking, "the VMDK disk names a parent", "descriptor", "its contents are spread over several files", fixSelfContained)
		}
	}
	return nil
}

func vmdkRefused(where, why string) error {
	return imageError(hotspare.CodeImageFormat, "the VMDK disk is not supported", where, why, "qemu-img convert -f vmdk -O qcow2 OLD NEW")
}

func tooLarge(size float64, maxDisk int64) error {
	return imageError(hotspare.CodeImageFormat, "the disk is too large", fmt.Sprintf("%.0f bytes", size), fmt.Sprintf("%d are allowed", maxDisk), "shrink the disk or raise the limit")
}

// fixedVHD says whether the file ends with the footer of a fixed VHD disk that
// says just what the file holds. A raw disk has no such end by chance: the footer
// carries a checksum.
func fixedVHD(r io.ReaderAt, fileSize int64) bool {
	f, ok := readVHDFooter(r, fileSize-vhdFooter)
	return ok && f.kind == vhdFixed && f.size+vhdFooter == fileSize
}

const (
	vhdFixed        = 2
	vhdDynamic      = 3
	vhdDifferencing = 4
)

type vhdInfo struct {
	kind uint32
	size int64
}

func readVHDFooter(r io.ReaderAt, off int64) (vhdInfo, bool) {
	b := make([]byte, vhdFooter)
	if off < 0 {
		return vhdInfo{}, false
	}
	if n, _ := r.ReadAt(b, off); n < len(b) || string(b[:8]) != vhdMagic {
		return vhdInfo{}, false
	}
	be := binary.BigEndian
	sum, want := uint32(0), be.Uint32(b[64:])
	for i, c := range b {
		if i < 64 || i >= 68 {
			sum += uint32(c)
		}
	}
	size := be.Uint64(b[48:])
	if ^sum != want || size > 1<<60 {
		return vhdInfo{}, false
	}
	return vhdInfo{be.Uint32(b[60:]), int64(size)}, true
}

func checkVHD(r io.ReaderAt, fileSize, maxDisk int64) error {
	f, ok := readVHDFooter(r, 0)
	if !ok {
		f, ok = readVHDFooter(r, fileSize-vhdFooter)
	}
	switch {
	case !ok:
		return imageError(hotspare.CodeImageFormat, "the file is not a VHD disk", "footer", "it is missing or its checksum differs", fixCopy)
	case f.kind == vhdDifferencing:
		return imageError(hotspare.CodeImageBacking, "the VHD disk names a parent", "footer byte 60", "its contents are spread over several files", fixSelfContained)
	case f.kind != vhdFixed && f.kind != vhdDynamic:
		return imageError(hotspare.CodeImageFormat, "the VHD disk is not supported", "footer byte 60", fmt.Sprintf("type %d", f.kind), "export it as a dynamic disk")
	case f.size > maxDisk:
		return tooLarge(float64(f.size), maxDisk)
	case f.kind == vhdFixed && f.size+vhdFooter > fileSize:
		return truncated("the disk", 0, f.size, fileSize)
	}
	return nil
}

// checkVHDX looks at the identifier and at both region tables. A parent is
// refused by QEMU; the bound on the size of the result is the sandbox's.
func checkVHDX(r io.ReaderAt, fileSize int64) error {
	head, err := readHead(r, 8)
	if err != nil {
		return err
	}
	if string(head) != "vhdxfile" {
		return imageError(hotspare.CodeImageFormat, "the file is not a VHDX disk", "byte 0", "", "name the format that it has")
	}
	for _, off := range []int64{192 << 10, 256 << 10} {
		b := make([]byte, 16)
		if n, _ := r.ReadAt(b, off); n < len(b) {
			return truncated("the region table", off, 64<<10, fileSize)
		}
		if string(b[:4]) == "regi" && binary.LittleEndian.Uint32(b[8:]) <= 2047 {
			return nil
		}
	}
	return imageError(hotspare.CodeImageFormat, "the VHDX disk is damaged", "byte 196608", "it has no region table", fixCopy)
}

// checkSquashfs looks at the superblock of a squashfs (version 4) and gives the
// bytes that it uses.
func checkSquashfs(f *os.File, fileSize int64) (used int64, err error) {
	b, err := readHead(f, 96)
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if len(b) < 96 || string(b[:4]) != "hsqs" || le.Uint16(b[28:]) != 4 {
		return 0, imageError(hotspare.CodeImageFormat, "the file is not a squashfs of version 4", "byte 0", "", "make it with mksquashfs")
	}
	n := le.Uint64(b[40:])
	if n < 96 || n > uint64(fileSize) {
		return 0, truncated("the squashfs", 0, int64(min(n, 1<<60)), fileSize)
	}
	return int64(n), nil
}
