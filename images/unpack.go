package images

import (
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"hotspare"
)

const (
	maxZstdWindow = 128 << 20
	maxXZMemory   = 512 << 20
	maxToolTime   = 4 * time.Hour
)

// unpack writes what a compressed file holds to a file of the staging folder,
// with holes for zeros. It ends when more than limit bytes come out, whatever the
// file promises.
func (r *Repository) unpack(ctx context.Context, f io.ReaderAt, fileSize int64, how packing, limit int64, tell func(int64)) (path string, err error) {
	out, err := os.CreateTemp(filepath.Join(r.dir, "staging"), "unpacked-*")
	if err != nil {
		return "", diskError("unpack the file", err)
	}
	defer func() {
		out.Close()
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	in := &countedReader{ctx: ctx, r: io.NewSectionReader(f, 0, fileSize), tell: tell}
	w := &sparseWriter{f: out, limit: limit}
	if err := decompress(ctx, w, in, how); err != nil {
		return "", unpackError(ctx, how, in.n, err)
	}
	if err := w.finish(); err != nil {
		return "", diskError("unpack the file", err)
	}
	return out.Name(), nil
}

func decompress(ctx context.Context, w io.Writer, in io.Reader, how packing) error {
	var src io.Reader
	switch how {
	case packGzip:
		z, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		src = z
	case packZstd:
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxMemory(maxZstdWindow), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return err
		}
		defer z.Close()
		src = z
	case packBzip2:
		src = bzip2.NewReader(in)
	case packXZ:
		// The library for xz takes whatever amount of memory each block asks for,
		// and a third of the speed. The program has a bound for it, and sees
		// nothing here but two pipes.
		dir, err := lend("")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		return cage{work: dir, maxFile: 1, maxTime: maxToolTime, maxBytes: 2 * maxXZMemory}.
			run(ctx, in, w, "xz", "--decompress", "--stdout", "--threads=1", "--format=xz", fmt.Sprintf("--memlimit-decompress=%d", maxXZMemory))
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, src, make([]byte, pieceSize))
	return err
}

var errTooMuch = errors.New("more comes out than a disk may hold")

func unpackError(ctx context.Context, how packing, at int64, err error) error {
	var mine *hotspare.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errTooMuch):
		return imageError(hotspare.CodeImageFormat, "the compressed file holds more than is allowed", fmt.Sprintf("byte %d", at),
			errTooMuch.Error(), "check the file; raise the limit if it is meant to be so large")
	case hotspare.CodeOf(diskError("", err)) == hotspare.CodeDiskFull:
		return diskError("unpack the file", err)
	case errors.As(err, &mine):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return imageError(hotspare.CodeImageTruncated, "the compressed file is truncated", fmt.Sprintf("byte %d", at), "", fixCopy)
	}
	return &hotspare.Error{Code: hotspare.CodeImageFormat, What: "the file cannot be unpacked", Where: fmt.Sprintf("%s, about byte %d", how, at), Fix: fixCopy, Err: err}
}

// countedReader counts what is read and ends with its context.
type countedReader struct {
	ctx  context.Context
	r    io.Reader
	n    int64
	tell func(int64)
}

func (c *countedReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.tell != nil {
		c.tell(c.n)
	}
	return n, err
}

// sparseWriter writes a file from its begin, with holes for blocks of zeros, up
// to a limit.
type sparseWriter struct {
	f     *os.File
	off   int64
	limit int64
}

const sparseBlock = 64 << 10

func (w *sparseWriter) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		k := int(min(int64(len(p)-n), sparseBlock-w.off%sparseBlock))
		if w.off+int64(k) > w.limit {
			return n, errTooMuch
		}
		if b := p[n : n+k]; !bytes.Equal(b, zeroGrain[:k]) {
			if _, err := w.f.WriteAt(b, w.off); err != nil {
				return n, err
			}
		}
		w.off += int64(k)
		n += k
	}
	return n, nil
}

// finish gives the file its size, which may end in a hole.
func (w *sparseWriter) finish() error { return w.f.Truncate(w.off) }

// convert makes a raw disk of a vmdk, vhd or vhdx file by qemu-img, in a
// sandbox. The format is the one that was fixed; nothing is probed.
func (r *Repository) convert(ctx context.Context, f *os.File, fileSize int64, format Format) (path string, err error) {
	var options string
	switch format {
	case FormatVMDK:
		options, err = "driver=vmdk", checkVMDK(f, fileSize, r.opts.MaxDisk)
	case FormatVHD:
		options, err = "driver=vpc,force_size_calc=current_size", checkVHD(f, fileSize, r.opts.MaxDisk)
	case FormatVHDX:
		options, err = "driver=vhdx", checkVHDX(f, fileSize)
	}
	if err != nil {
		return "", err
	}
	dir, err := lend(filepath.Join(r.dir, "staging"))
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if err := copySparse(ctx, f, fileSize, filepath.Join(dir, "in")); err != nil {
		return "", err
	}
	c := cage{work: dir, maxFile: r.opts.MaxDisk, maxTime: maxToolTime}
	err = c.run(ctx, nil, nil, "qemu-img", "convert", "--image-opts", "-O", "raw", "-S", "65536", options+",file.driver=file,file.locking=off,file.filename=/work/in", "/work/out")
	if err != nil {
		var tool *toolError
		if errors.As(err, &tool) && ctx.Err() == nil {
			return "", &hotspare.Error{Code: hotspare.CodeImageFormat, What: "the disk cannot be converted", Where: string(format), Fix: "check it where it comes from, or export it as qcow2", Err: err}
		}
		return "", err
	}
	_ = os.Remove(filepath.Join(dir, "in")) // with the folder, at the latest
	return filepath.Join(dir, "out"), nil
}

// copySparse copies a file with its holes and lends the copy to the sandbox.
func copySparse(ctx context.Context, f *os.File, size int64, to string) (err error) {
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return diskError("stage the file", err)
	}
	defer func() {
		if cerr := out.Close(); err == nil && cerr != nil {
			err = diskError("stage the file", cerr)
		}
	}()
	w := &sparseWriter{f: out, limit: size}
	in := &countedReader{ctx: ctx, r: io.NewSectionReader(f, 0, size)}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, in, make([]byte, pieceSize)); err != nil {
		return diskError("stage the file", err)
	}
	if err := w.finish(); err != nil {
		return diskError("stage the file", err)
	}
	if err := out.Chown(cageUser, cageUser); err != nil {
		return fmt.Errorf("images: lend a file to the sandbox: %w", err)
	}
	return nil
}
