package standby

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// archive collects the files of a newc cpio (Linux Documentation/driver-api/
// early-userspace/buffer-format.rst). What it writes depends on nothing but the
// files: sorted, numbered, no times, owned by root.
type archive struct{ records map[string]cpio.Record }

func newArchive() *archive { return &archive{records: map[string]cpio.Record{}} }

// clean gives a name as the archive has it: relative, without dots.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (a *archive) put(name string, rec cpio.Record) {
	name = clean(name)
	if name == "" {
		return
	}
	rec.Name = name
	a.records[name] = rec
	for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
		if _, ok := a.records[dir]; !ok {
			a.records[dir] = cpio.Directory(dir, 0o755)
		}
	}
}

func (a *archive) dir(name string, mode uint64) { a.put(name, cpio.Directory(clean(name), mode)) }

func (a *archive) file(name string, data []byte, mode uint64) {
	a.put(name, cpio.StaticRecord(data, cpio.Info{Mode: cpio.S_IFREG | mode}))
}

func (a *archive) charDev(name string, mode, major, minor uint64) {
	a.put(name, cpio.CharDev(clean(name), mode, major, minor))
}

// write gives the archive. Directories sort before what they hold.
func (a *archive) write(w io.Writer) error {
	out := cpio.Newc.Writer(w)
	for i, name := range slices.Sorted(maps.Keys(a.records)) {
		rec := cpio.MakeReproducible(a.records[name])
		rec.Ino = uint64(i + 1)
		rec.NLink = 1
		if rec.Mode&cpio.S_IFMT == cpio.S_IFDIR {
			rec.NLink = 2
		}
		if err := out.WriteRecord(rec); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return cpio.WriteTrailer(out)
}

// JoinArchive gives the small, uncompressed archive that is made for one boot:
// the files by absolute path, with mode 0600 in directories of mode 0700. Its
// length is a multiple of 4, and it can follow the archive of Build directly.
//
// The kernel unpacks it over what came before: a file of the same name is
// replaced.
func JoinArchive(files map[string][]byte) []byte {
	a := newArchive()
	for name, data := range files {
		a.file(name, data, 0o600)
	}
	for name, rec := range a.records {
		if rec.Mode&cpio.S_IFMT == cpio.S_IFDIR {
			rec.Mode = cpio.S_IFDIR | 0o700
			a.records[name] = rec
		}
	}
	var b bytes.Buffer
	if err := a.write(&b); err != nil {
		// A bytes.Buffer takes every write; a record's length is its data's.
		panic("standby: " + err.Error())
	}
	return pad4(b.Bytes())
}

// pad4 makes the length a multiple of 4. The kernel's unpacker skips zeros
// between archives, and wants the header of an uncompressed one aligned.
func pad4(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

// The compressions that are used.
const (
	compressZstd = "zstd"
	compressGzip = "gzip"
)

// compression picks the best one that the kernel can unpack: what its config
// says, else zstd from 5.9 on.
func compression(version string, config []byte) string {
	if len(config) > 0 {
		if bytes.Contains(config, []byte("\nCONFIG_RD_ZSTD=y")) {
			return compressZstd
		}
		return compressGzip
	}
	var major, minor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n == 2 && (major > 5 || major == 5 && minor >= 9) {
		return compressZstd
	}
	return compressGzip
}

// compressTo compresses b, reproducibly. The window stays at 4 MiB: the kernel
// allocates it at boot.
func compressTo(method string, b []byte) ([]byte, error) {
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	if method == compressZstd {
		w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(4<<20))
	} else {
		w, err = gzip.NewWriterLevel(&out, gzip.BestCompression)
	}
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return pad4(out.Bytes()), nil
}
