// Package diskimage writes what a volume holds into a file of another program's
// format: raw, as a sparse file, or qcow2 version 3 (QEMU's docs/interop/qcow2.rst).
// The file appears under its name when it is whole and durable, and never in the
// place of another; a run that ends before that leaves nothing behind.
//
// It reads through the Source that it is given, so a volume that is in use must
// be given as a snapshot. It leaves to others which volume may be read, and reads
// no image: that is package images.
package diskimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage"
)

// Format of a file.
type Format string

// The formats that are written.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// Source is a volume that does not change while it is read.
type Source interface {
	io.ReaderAt
	// Size gives the size in bytes.
	Size() int64
	// Extents calls visit for every range that may hold something else than
	// zeros, in order, and ends with the error of visit if there is one.
	Extents(ctx context.Context, visit func(off, n int64) error) error
}

// Options of Write.
type Options struct {
	Format Format
	// BytesPerSecond bounds how fast the source is read; 0: no bound.
	BytesPerSecond int64
	// Reserve is how many bytes must stay free on the file system.
	Reserve int64
	// Progress is told how many bytes of data were read so far; nil: nobody is.
	Progress func(done int64)
}

// Result says what was written.
type Result struct {
	Path string
	Size int64 // of the disk, bytes
	Data int64 // bytes read from the source
	File int64 // bytes that the file occupies
}

const (
	blockSize = 4 << 10
	chunkSize = 1 << 20
)

// Write writes src as the new file at path. Errors that an operator can act on
// are CodeConflict for a path that exists, CodeDiskFull, and those of the source.
func Write(ctx context.Context, src Source, path string, o Options) (Result, error) {
	var write func(context.Context, *copier) error
	switch o.Format {
	case Raw:
		write = writeRaw
	case QCOW2:
		write = writeQCOW2
	default:
		return Result{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: fmt.Sprintf("the format %.20q is not written", o.Format), Where: path, Fix: "use raw or qcow2"}
	}
	f, err := create(path)
	if err != nil {
		return Result{}, explain(err, path)
	}
	c := &copier{src: src, f: f, o: o, pace: storage.Pace{BytesPerSecond: o.BytesPerSecond}}
	if err = c.room(0); err == nil {
		err = write(ctx, c)
	}
	var used int64
	if err == nil {
		used, err = f.commit()
	}
	if err != nil {
		return Result{}, explain(errors.Join(err, f.discard()), path)
	}
	return Result{Path: path, Size: src.Size(), Data: c.read, File: used}, nil
}

// explain turns what the file system said into what an operator can act on.
func explain(err error, path string) error {
	if hotspare.CodeOf(err) != "" {
		return err
	}
	e := &hotspare.Error{Where: path, Err: err}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		e.Code, e.What, e.Fix = hotspare.CodeDiskFull, "no space is left for the file", "free space there or write to another disk; nothing was left behind"
	case errors.Is(err, unix.EEXIST):
		e.Code, e.What, e.Fix = hotspare.CodeConflict, "the file exists", "remove it or choose another name: a file is never replaced"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		e.Code, e.What, e.Fix = hotspare.CodeNotFound, "the folder for the file does not exist", "make it first"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		e.Code, e.What, e.Fix = hotspare.CodeInvalid, "the file cannot be written there", "choose a folder that the appliance may write to"
	default:
		return fmt.Errorf("diskimage: %s: %w", path, err)
	}
	return e
}

// copier reads the source and hands its data on.
type copier struct {
	src   Source
	f     *file
	o     Options
	pace  storage.Pace
	read  int64
	room0 int64 // bytes written when the free space was last looked at
}

// each calls fn for the data of the source in ascending order, in pieces that
// begin at a multiple of unit and are whole units, but for the last of the disk.
// p is valid during the call only.
func (c *copier) each(ctx context.Context, unit int64, fn func(off int64, p []byte) error) error {
	buf := make([]byte, chunkSize)
	size, done := c.src.Size(), int64(0) // done: all before it was handed on
	err := c.src.Extents(ctx, func(from, n int64) error {
		end := min(size, (from+n+unit-1)/unit*unit)
		for done = max(done, from/unit*unit); done < end; {
			p := buf[:min(chunkSize, end-done)]
			if err := c.pace.Wait(ctx, int64(len(p))); err != nil {
				return err
			}
			if err := readFull(c.src, p, done); err != nil {
				return err
			}
			if err := fn(done, p); err != nil {
				return err
			}
			done += int64(len(p))
			if c.read += int64(len(p)); c.o.Progress != nil {
				c.o.Progress(c.read)
			}
		}
		return nil
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// roomEvery is how much is written between two looks at the free space.
const roomEvery = 64 << 20

// room checks that the reserve stays free; written counts the file's bytes.
func (c *copier) room(written int64) error {
	if c.o.Reserve <= 0 || written != 0 && written-c.room0 < roomEvery {
		return nil
	}
	c.room0 = written
	free, err := c.f.free()
	if err != nil {
		return err
	}
	if free-roomEvery >= c.o.Reserve {
		return nil
	}
	return &hotspare.Error{
		Code: hotspare.CodeDiskFull, What: "no space is left for the file", Where: c.f.path,
		Why: fmt.Sprintf("%d MiB are free on that disk and %d MiB must stay free for others", free>>20, c.o.Reserve>>20),
		Fix: "free space there or write to another disk; nothing was left behind",
	}
}

var zeros [64 << 10]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeros))
		if !bytes.Equal(p[:n], zeros[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
