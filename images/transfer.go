package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

const (
	// grain is the piece that is left out when it is all zeros: the cluster of
	// the volume store.
	grain = 64 << 10
	// flushEvery is how much is written before the disk is told to begin to make
	// it durable, beside the writing of more: a flush at the end alone would
	// leave the disk idle until then.
	flushEvery = 256 << 20
)

// Step says how far an import is.
type Step struct {
	Text  string // what is done now
	Done  int64  // bytes of Total
	Total int64  // 0: not known
}

// contentDigest gives the digest of the disk's contents. Holes count as the zeros
// that they read as.
func contentDigest(ctx context.Context, src source) (string, error) {
	sum, _, err := transfer(ctx, src, nil, nil)
	return sum, err
}

// sink is where the contents of a disk go.
type sink interface {
	io.WriterAt
	Flush() error
}

// transfer reads the whole disk, writes every grain that is not all zeros to
// dst (nil writes nothing), and gives the digest of what it read and the number
// of bytes that it wrote. dst must read as zeros before. Every byte is read once:
// what was digested is what was written. tell, if any, hears of every piece.
func transfer(ctx context.Context, src source, dst sink, tell func(done int64)) (sum string, written int64, err error) {
	t := &transferring{src: src, dst: dst, digest: newDiskDigest(src.Size()), tell: tell}
	g, ctx := errgroup.WithContext(ctx)
	pieces := make(chan int64, 16)
	g.Go(func() error {
		defer close(pieces)
		return t.plan(ctx, pieces)
	})
	for range max(2, runtime.GOMAXPROCS(0)) + 1 { // one of them writes or waits for its turn
		g.Go(func() error { return t.work(ctx, pieces) })
	}
	err = g.Wait()
	t.flushing.Wait()
	if err == nil && t.flushErr != nil {
		err = storeError("flush the volume", t.flushErr)
	}
	if err != nil {
		return "", t.written.Load(), err
	}
	return t.digest.sum(), t.written.Load(), nil
}

type transferring struct {
	src     source
	dst     sink
	digest  *diskDigest
	tell    func(int64)
	written atomic.Int64
	done    atomic.Int64

	// writing is held by the one that writes. The volume is one file below, and a
	// file takes one write at a time: a second one would burn a processor until it
	// is let in. And a piece that is written in one go lies in one place.
	writing sync.Mutex

	mu       sync.Mutex
	flushed  int64 // of written, when the last flush began
	busy     bool  // a flush is under way
	flushErr error // of one: the last flush tells it too, but not necessarily
	flushing sync.WaitGroup
}

// plan hands out the pieces that may hold anything but zeros.
func (t *transferring) plan(ctx context.Context, pieces chan<- int64) error {
	next := int64(0) // piece
	for off := int64(0); off < t.src.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		start, end, err := t.src.data(off)
		if err != nil {
			return err
		}
		for i := max(next, start/pieceSize); i*pieceSize < end; i++ {
			select {
			case pieces <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
			next = i + 1
		}
		off = end
		if start == end {
			break
		}
	}
	return nil
}

func (t *transferring) work(ctx context.Context, pieces <-chan int64) error {
	buf := make([]byte, pieceSize)
	for i := range pieces {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := i * pieceSize
		p := buf[:min(pieceSize, t.src.Size()-off)]
		if n, err := t.src.ReadAt(p, off); n < len(p) {
			return readShort(err, off+int64(n), t.src.Size())
		}
		t.digest.set(i, p)
		n, err := t.write(p, off)
		total := t.written.Add(n)
		if err != nil {
			return err
		}
		t.flushBeside(total)
		if t.tell != nil {
			t.tell(t.done.Add(int64(len(p))))
		}
	}
	return nil
}

func (t *transferring) write(p []byte, off int64) (int64, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	return writeGrains(t.dst, p, off)
}

// flushBeside begins a flush when much was written since the last one.
func (t *transferring) flushBeside(written int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dst == nil || t.busy || written-t.flushed < flushEvery {
		return
	}
	t.busy, t.flushed = true, written
	t.flushing.Go(func() {
		err := t.dst.Flush()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.busy, t.flushErr = false, errors.Join(t.flushErr, err)
	})
}

func readShort(err error, off, size int64) error {
	if err == nil || errors.Is(err, io.EOF) {
		return truncated("the disk", off, size-off, off)
	}
	return fmt.Errorf("images: read the disk at byte %d: %w", off, err)
}

var zeroGrain [grain]byte

// writeGrains writes the runs of p (at off on the disk, a multiple of a grain)
// that are not zeros, in pieces as large as possible.
func writeGrains(dst sink, p []byte, off int64) (written int64, err error) {
	if dst == nil {
		return 0, nil
	}
	flush := func(from, to int) error {
		if from == to {
			return nil
		}
		n, err := dst.WriteAt(p[from:to], off+int64(from))
		written += int64(n)
		if err == nil && n < to-from {
			err = io.ErrShortWrite
		}
		if err != nil {
			return diskError("write the volume", err)
		}
		return nil
	}
	from := 0
	for at := 0; at < len(p); {
		next := min(at+grain, len(p))
		if bytes.Equal(p[at:next], zeroGrain[:next-at]) {
			if err := flush(from, at); err != nil {
				return written, err
			}
			from = next
		}
		at = next
	}
	return written, flush(from, len(p))
}
