package images

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	"golang.org/x/sys/unix"

	"hotspare"
)

// openRegular opens a regular file for reading and nothing else: no device, no
// pipe (which would hang), no directory, and no symbolic link that leaves the
// file's own directory.
func openRegular(path string) (*os.File, int64, error) {
	refuse := func(why string, err error) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the file cannot be read", Where: path, Why: why,
			Fix: "name a regular file that this process may read", Err: err}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, 0, refuse("", err)
	}
	root, err := os.OpenRoot(filepath.Dir(abs))
	if err != nil {
		return nil, 0, refuse("", err)
	}
	defer root.Close()
	base := filepath.Base(abs)
	before, err := root.Stat(base)
	if err != nil {
		return nil, 0, refuse("", err)
	}
	if !before.Mode().IsRegular() {
		return nil, 0, refuse("it is not a regular file but "+kindOf(before.Mode()), nil)
	}
	// O_NONBLOCK: a pipe put in place since then must not hang the process.
	f, err := root.OpenFile(base, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, 0, refuse("", err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || !os.SameFile(before, info) {
		f.Close()
		return nil, 0, refuse("it was replaced while it was opened", err)
	}
	return f, info.Size(), nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}

// source is an image file seen as the disk that it holds.
type source interface {
	io.ReaderAt
	Size() int64
	// data gives the next run of bytes at or after off that may hold anything
	// but zeros. At the end, start is Size().
	data(off int64) (start, end int64, err error)
}

// openSource gives the disk that f holds.
func openSource(f *os.File, fileSize int64, format Format, maxDisk int64) (source, error) {
	if format == FormatRaw {
		return openRaw(f, fileSize, maxDisk)
	}
	h, err := parseQCOW2Header(f, fileSize, maxDisk)
	if err != nil {
		return nil, err
	}
	if err := h.checkTables(f, fileSize); err != nil {
		return nil, err
	}
	return openQCOW2(f, h)
}

type rawSource struct {
	f    *os.File
	size int64
}

func openRaw(f *os.File, fileSize, maxDisk int64) (source, error) {
	switch {
	case fileSize == 0:
		return nil, imageError(hotspare.CodeImageTruncated, "the file is empty", "byte 0", "", fixCopy)
	case fileSize%512 != 0:
		return nil, imageError(hotspare.CodeImageTruncated, "the image file is truncated", fmt.Sprintf("byte %d", fileSize),
			"its size is not a whole number of 512-byte sectors", fixCopy)
	case fileSize > maxDisk:
		return nil, imageError(hotspare.CodeImageFormat, "the disk is too large", fmt.Sprintf("%d bytes", fileSize),
			fmt.Sprintf("%d are allowed", maxDisk), "shrink the disk or raise the limit")
	}
	return &rawSource{f: f, size: fileSize}, nil
}

func (s *rawSource) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }
func (s *rawSource) Size() int64                             { return s.size }

func (s *rawSource) data(off int64) (int64, int64, error) {
	if off >= s.size {
		return s.size, s.size, nil
	}
	start, err := unix.Seek(int(s.f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // a hole up to the end
		return s.size, s.size, nil
	}
	if errors.Is(err, unix.EINVAL) { // a file system that knows no holes
		return off, s.size, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("images: look for data: %w", err)
	}
	end, err := unix.Seek(int(s.f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, fmt.Errorf("images: look for a hole: %w", err)
	}
	return min(start, s.size), min(end, s.size), nil
}

// registerZstd gives the qcow2 library a decoder for zstd clusters: the library
// keeps its decoders in a variable of its own, so once is enough and twice is a
// race.
var registerZstd = sync.OnceFunc(func() {
	idle := sync.Pool{}
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		d, ok := idle.Get().(*zstd.Decoder)
		if !ok {
			var err error
			d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20), zstd.WithDecoderLowmem(true))
			if err != nil {
				return nil, err
			}
		}
		if err := d.Reset(r); err != nil {
			return nil, err
		}
		return pooledDecoder{d, &idle}, nil
	})
})

type pooledDecoder struct {
	*zstd.Decoder
	idle *sync.Pool
}

func (p pooledDecoder) Close() error {
	p.idle.Put(p.Decoder)
	return nil
}

type qcow2Source struct {
	img     image.Image
	size    int64
	cluster int64
}

func openQCOW2(f io.ReaderAt, h qcow2Header) (source, error) {
	registerZstd()
	// Only the bytes are handed on: with a name (qcow2.Namer) the library would
	// look for a backing file beside it. parseQCOW2Header refused those; this
	// is the second lock on that door.
	img, err := qcow2.Open(struct{ io.ReaderAt }{f}, nil)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		return nil, &hotspare.Error{Code: hotspare.CodeImageFormat, What: "the qcow2 image cannot be read", Fix: fixCheck, Err: err}
	}
	return &qcow2Source{img: img, size: h.size, cluster: 1 << h.clusterBits}, nil
}

func (s *qcow2Source) Size() int64 { return s.size }

// ReadAt reads cluster by cluster: over several clusters the library ends a
// read early when a compressed cluster reports its own end together with its
// last bytes.
func (s *qcow2Source) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > s.size-off {
		p, end = p[:s.size-off], io.EOF
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		want := min(len(p)-n, int(s.cluster-at%s.cluster))
		m, err := s.img.ReadAt(p[n:n+want], at)
		n += m
		if m == 0 || err != nil && !errors.Is(err, io.EOF) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, &hotspare.Error{Code: hotspare.CodeImageTruncated, What: "the qcow2 image cannot be read to its end",
				Where: fmt.Sprintf("disk byte %d", at), Why: "a cluster is damaged or cut off", Fix: fixCopy, Err: err}
		}
	}
	return n, end
}

func (s *qcow2Source) data(off int64) (int64, int64, error) {
	for off < s.size {
		run, err := s.img.Extent(off, min(s.size-off, 1<<30))
		if err != nil {
			return 0, 0, fmt.Errorf("images: read the qcow2 tables: %w", err)
		}
		if run.Length <= 0 {
			return 0, 0, fmt.Errorf("images: the qcow2 tables give no extent at byte %d", off)
		}
		end := min(off+run.Length, s.size)
		if !run.Zero {
			return off, end, nil
		}
		off = end
	}
	return s.size, s.size, nil
}
