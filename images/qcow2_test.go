package images

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare"
)

// refuse imports a file and wants it refused with a code and a text, and
// nothing left.
func refuse(t *testing.T, req ImportRequest, code hotspare.Code, says string) {
	t.Helper()
	d, dir := newDisks(t), t.TempDir()
	r := open(t, dir, d)
	if req.Name == "" {
		req.Name = "orders"
	}
	img, err := r.Import(t.Context(), req)
	if hotspare.CodeOf(err) != code || !strings.Contains(fmt.Sprint(err), says) {
		t.Errorf("got %+v, %v\nwant %s with %q", img, err, code, says)
	}
	if left := leftovers(t, dir, d); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	if d.ops != 0 {
		t.Errorf("%d operations on the volume store", d.ops)
	}
}

// smallQCOW2 makes a qcow2 disk of 8 MiB with data at its beginning and end.
func smallQCOW2(t testing.TB, options ...string) []byte {
	t.Helper()
	raw := write(t, filepath.Join(t.TempDir(), "raw"), noise("a", 200000))
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(noise("b", 200000), 8<<20-200000); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(convert(t, raw, strings.Join(append([]string{"compat=1.1"}, options...), ",")))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What qemu-img itself makes of disks that lean on other files.
func TestRealDisksThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	img := func(args ...string) { t.Helper(); command(t, dir, "qemu-img", args...) }
	write(t, dir+"/base.raw", noise("base", 1<<20))
	img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "backed.qcow2")
	img("create", "-q", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", "-u", "shadow.qcow2", "1M")
	img("create", "-q", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on", "external.qcow2", "1M")
	img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "extended.qcow2", "1M")
	img("create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "luks.qcow2", "1M")
	img("create", "-q", "-f", "vdi", "disk.vdi", "1M")
	write(t, dir+"/empty", nil)
	write(t, dir+"/twice.gz", gzipped(t, gzipped(t, []byte("x"))))
	img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat.vmdk", "1M")
	img("create", "-q", "-f", "vmdk", "base.vmdk", "1M")
	img("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "child.vmdk")
	for _, c := range []struct {
		file string
		code hotspare.Code
		says string
	}{
		{"backed.qcow2", hotspare.CodeImageBacking, "names a backing file"},
		{"shadow.qcow2", hotspare.CodeImageBacking, "names a backing file"},
		{"external.qcow2", hotspare.CodeImageBacking, "external data file"},
		{"extended.qcow2", hotspare.CodeImageFormat, "extended L2"},
		{"luks.qcow2", hotspare.CodeImageFormat, "encrypted"},
		{"twice.gz", hotspare.CodeImageFormat, "compressed twice"},
		{"flat.vmdk", hotspare.CodeImageFormat, "VMDK descriptor"},
		{"child.vmdk", hotspare.CodeImageBacking, "names a parent"},
		{"disk.vdi", hotspare.CodeImageFormat, "VDI"},
		{"empty", hotspare.CodeImageTruncated, "empty"},
	} {
		t.Run(c.file, func(t *testing.T) {
			refuse(t, ImportRequest{Path: filepath.Join(dir, c.file)}, c.code, c.says)
			if !strings.HasSuffix(c.file, ".qcow2") && !strings.HasSuffix(c.file, ".gz") {
				refuse(t, ImportRequest{Path: filepath.Join(dir, c.file), Format: FormatQCOW2}, hotspare.CodeImageFormat, "not a qcow2")
			}
		})
	}
}

// Headers that a disk never has by accident.
func TestHostileQCOW2(t *testing.T) {
	good := smallQCOW2(t)
	zstd := smallQCOW2(t, "compression_type=zstd")
	be := binary.BigEndian
	l1 := be.Uint64(good[40:])
	l2 := be.Uint64(good[l1:]) & qcow2Offset
	u32 := func(off uint64, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint32(b[off:], v); return b }
	}
	u64 := func(off uint64, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint64(b[off:], v); return b }
	}
	extension := func(kind, length uint32) func([]byte) []byte {
		at := be.Uint32(good[100:])
		return func(b []byte) []byte { be.PutUint32(b[at:], kind); be.PutUint32(b[at+4:], length); return b }
	}
	format, truncated, backing := hotspare.CodeImageFormat, hotspare.CodeImageTruncated, hotspare.CodeImageBacking
	for _, c := range []struct {
		name   string
		code   hotspare.Code
		says   string
		change func([]byte) []byte
	}{
		{"version 1", format, "version 1", u32(4, 1)},
		{"version 4", format, "version 4", u32(4, 4)},
		{"backing offset without size", backing, "backing file", u64(8, 1024)},
		{"backing size without offset", backing, "backing file", u32(16, 4)},
		{"backing offset beyond the file", backing, "backing file", u64(8, 1<<60)},
		{"clusters of 256 bytes", format, "2^8", u32(20, 8)},
		{"clusters of 4 MiB", format, "2^22", u32(20, 22)},
		{"clusters of 2^4294967295", format, "2^4294967295", u32(20, 1<<32-1)},
		{"disk of no size", format, "a disk of 0 bytes", u64(24, 0)},
		{"disk of 2^64-512 bytes", format, "a disk of", u64(24, 1<<64-512)},
		{"disk of 2^63 bytes", format, "a disk of", u64(24, 1<<63)},
		{"disk of half a sector", format, "512-byte sectors", u64(24, 1<<20+256)},
		{"disk larger than its L1", format, "L1 table of", u64(24, 1<<40)},
		{"encrypted with AES", format, "encrypted", u32(32, 1)},
		{"L1 of no entries", format, "L1 table of 0", u32(36, 0)},
		{"L1 of 2^32-1 entries", format, "L1 table of", u32(36, 1<<32-1)},
		{"L1 of 4 million entries", truncated, "the L1 table", u32(36, qcow2MaxL1)},
		{"L1 over the header", format, "the L1 table", u64(40, 0)},
		{"L1 not aligned", format, "the L1 table", u64(40, l1+512)},
		{"L1 behind the file", truncated, "the L1 table", u64(40, 1<<40)},
		{"L1 at 2^64", format, "the L1 table", u64(40, 1<<64-65536)},
		{"refcounts over the header", format, "the refcount table", u64(48, 0)},
		{"refcounts behind the file", truncated, "the refcount table", u64(48, 1<<40)},
		{"refcounts of 2^32-1 clusters", format, "refcount table of", u32(56, 1<<32-1)},
		{"dirty", format, "was not closed", u64(72, qcow2Dirty)},
		{"corrupt", format, "marked as corrupt", u64(72, qcow2Corrupt)},
		{"external data file", backing, "external data file", u64(72, qcow2ExternalData)},
		{"unknown feature", format, "not known", u64(72, 1<<5)},
		{"unknown feature 63", format, "not known", u64(72, 1<<63)},
		{"refcounts of 2^7 bits", format, "refcounts of", u32(96, 7)},
		{"header of 72 bytes", format, "a header of 72", u32(100, 72)},
		{"header of 105 bytes", format, "a header of 105", u32(100, 105)},
		{"header of 2^32-8 bytes", format, "a header of", u32(100, 1<<32-8)},
		{"compression announced, not used", format, "compression method 0", u64(72, qcow2Compression)},
		{"compression 7", format, "compression method 7", func(b []byte) []byte { b[104] = 7; return b }},
		{"compression not announced", format, "compression method 1", func(b []byte) []byte { copy(b, zstd); return u64(72, 0)(b) }},
		{"extension: external data file", backing, "external data file", extension(qcow2ExtExternalData, 8)},
		{"extension: backing format", backing, "backing file", extension(qcow2ExtBackingFormat, 8)},
		{"extension: encryption", format, "encrypted", extension(qcow2ExtEncryption, 16)},
		{"extension of 2^32-1 bytes", format, "leaves the first cluster", extension(0x12345678, 1<<32-1)},
		{"L2 behind the file", truncated, "L2 table 0", u64(l1, 1<<63|1<<40)},
		{"L2 not aligned", format, "L2 table 0", u64(l1, 1<<63|(l2+512))},
		{"L1 reserved bits", format, "L1 entry 0", u64(l1, 1<<63|l2|2)},
		{"cluster behind the file", truncated, "disk byte 0", u64(l2, 1<<63|1<<40)},
		{"cluster over the header", format, "disk byte 0", u64(l2, 1<<63|512)},
		{"cluster reserved bits", format, "reserved bits", u64(l2, 1<<63|1<<16|4)},
		{"compressed cluster behind the file", truncated, "disk byte 0", u64(l2, qcow2Compressed|1<<40)},
		{"compressed cluster of 2^8 sectors too many", truncated, "disk byte 0", u64(l2, qcow2Compressed|0xff<<54|uint64(len(good)-600))},
		{"compressed cluster over the header", format, "disk byte 0", u64(l2, qcow2Compressed|16)},
		{"compressed cluster of garbage", truncated, "disk byte 0", u64(l2, qcow2Compressed|0x7f<<54|l1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := write(t, filepath.Join(t.TempDir(), "x.qcow2"), c.change(bytes.Clone(good)))
			refuse(t, ImportRequest{Path: file, Format: FormatQCOW2}, c.code, c.says)
		})
	}
}

// A qcow2 file that was cut anywhere is found before anything is written, and
// the error says so.
func TestTruncatedQCOW2(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []string
	}{{"v3", nil}, {"v2", []string{"compat=0.10"}}, {"4k clusters", []string{"cluster_size=4k"}}} {
		t.Run(c.name, func(t *testing.T) {
			whole := smallQCOW2(t, c.options...)
			d, dir := newDisks(t), t.TempDir()
			r := open(t, dir, d)
			be := binary.BigEndian
			l1 := int(be.Uint64(whole[40:]))
			l2 := int(be.Uint64(whole[l1:]) & qcow2Offset)
			cuts := []int{4, 71, 72, 103, 104, 111, 112, 200, l1 + 4, l1 + 8, l2 + 8, l2 + 9, len(whole) - 1, len(whole) - 4096}
			for at := 512; at < len(whole); at += 20480 {
				cuts = append(cuts, at)
			}
			for _, at := range cuts {
				file := write(t, filepath.Join(t.TempDir(), "x.qcow2"), whole[:at])
				_, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: file})
				// The end of this disk's data lies behind all of its tables; nothing
				// but truncation may be the verdict.
				if hotspare.CodeOf(err) != hotspare.CodeImageTruncated {
					t.Errorf("cut at %d of %d: %v", at, len(whole), err)
				}
			}
			if left := leftovers(t, dir, d); len(left) != 0 || d.ops != 0 {
				t.Errorf("left %v after %d operations", left, d.ops)
			}
		})
	}
}

// FuzzQCOW2 changes anything in a qcow2 file: no panic, no endless loop; what
// passes the check can be read to its end or fails cleanly.
func FuzzQCOW2(f *testing.F) {
	raw := write(f, filepath.Join(f.TempDir(), "raw"), noise("a", 40960))
	var bases [][]byte
	for _, options := range []string{"compat=0.10,cluster_size=512", "cluster_size=4k,compression_type=zstd", "compressed,cluster_size=4k",
		"compressed,cluster_size=4k,compression_type=zstd"} {
		bases = append(bases, mustRead(f, convert(f, raw, options)))
	}
	for which, b := range bases {
		f.Add(uint8(which), uint32(len(b)), edit(0, 0x51464afb))
		l1 := binary.BigEndian.Uint64(b[40:])
		l2 := binary.BigEndian.Uint64(b[l1:]) & qcow2Offset
		for _, off := range []uint64{4, 8, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 72, 76, 96, 100, 104, 112, l1, l1 + 4, l2, l2 + 4, l2 + 8, l2 + 12} {
			f.Add(uint8(which), uint32(len(b)), edit(uint32(off), 0x01))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, length uint32, edits []byte) {
		b := bytes.Clone(bases[int(which)%len(bases)])
		applyEdits(b, edits)
		b = b[:min(int(length), len(b))]
		file := bytes.NewReader(b)
		h, err := parseQCOW2Header(file, file.Size(), 4<<20)
		if err == nil {
			err = h.checkTables(file, file.Size())
		}
		var src source
		if err == nil {
			src, err = openQCOW2(file, h)
		}
		if err == nil {
			_, err = contentDigest(t.Context(), src)
		}
		if err != nil && hotspare.CodeOf(err) == "" {
			t.Fatalf("an error without a code: %v", err)
		}
	})
}

// edit makes one change for applyEdits: four bytes at an offset. Fuzz inputs are
// changes, not files: small inputs mutate fast and every one hits something.
func edit(off, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, off), value)
}

func applyEdits(b, edits []byte) {
	for ; len(edits) >= 8; edits = edits[8:] {
		off := int(binary.BigEndian.Uint32(edits)) % len(b)
		copy(b[off:], edits[4:8])
	}
}
