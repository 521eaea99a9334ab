package diskstream

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"unsafe"

	"github.com/klauspost/compress/zstd"
)

// Sink takes contents. Its methods are called by several goroutines at once, for
// different places.
type Sink interface {
	io.WriterAt
	// Zero makes a range read as zeros.
	Zero(offset, length int64) error
}

// Progress says how far a stream has come: everything before it is in the sink.
type Progress func(offset int64)

// Decode writes a stream to a sink. The stream must be of contents of length
// bytes and begin at from; digest, in hexadecimal digits, must stand at its end.
// It gives the offset up to which everything is in the sink, also with an error:
// with ErrBroken, or one of the reader's, the stream goes on from there. What is
// in the sink has the checksums of its chunks; the digest of the whole is for the
// reader-back.
func Decode(ctx context.Context, r io.Reader, to Sink, length, from int64, digest string, tell Progress) (int64, error) {
	in := bufio.NewReaderSize(r, 256<<10)
	var head [headerLen]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return from, broken(err)
	}
	h, err := parseHeader(head[:])
	if err != nil {
		return from, err
	}
	if h.length != length || h.from != from {
		return from, fmt.Errorf("%w: it is of %d bytes from %d, expected were %d from %d", ErrCorrupt, h.length, h.from, length, from)
	}
	workers := max(2, runtime.GOMAXPROCS(0))
	zr, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(workers), zstd.WithDecoderMaxMemory(4*ChunkSize), zstd.WithDecoderMaxWindow(4*ChunkSize))
	if err != nil {
		return from, err
	}
	defer zr.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := &decoder{in: in, zr: zr, to: to, length: length, digest: digest, low: mark{at: from, tell: tell}}
	d.run(ctx, cancel, workers, from)
	return d.low.at, context.Cause(ctx)
}

func broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrBroken
	}
	return fmt.Errorf("%w: %w", ErrBroken, err)
}

type decoder struct {
	in     *bufio.Reader
	zr     *zstd.Decoder
	to     Sink
	length int64
	digest string
	low    mark
}

// job is one record to be written.
type job struct {
	record
	sum     [sha256.Size]byte
	payload []byte
}

// run reads records and writes them with several workers. It cancels ctx with
// what went wrong.
func (d *decoder) run(ctx context.Context, cancel context.CancelCauseFunc, workers int, at int64) {
	jobs := make(chan job, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			buf := alignedChunk()
			for j := range jobs {
				if ctx.Err() != nil {
					continue
				}
				if err := d.write(ctx, j, buf); err != nil {
					cancel(err)
					continue
				}
				d.low.done(j.offset, j.length)
			}
		})
	}
	defer wg.Wait()
	defer close(jobs)
	for {
		j, end, err := d.next(at)
		if err != nil {
			cancel(err)
			return
		}
		if end {
			return
		}
		at += j.length
		select {
		case jobs <- j:
		case <-ctx.Done():
			return
		}
	}
}

// next reads one record.
func (d *decoder) next(at int64) (j job, end bool, err error) {
	var b [recordLen]byte
	if _, err := io.ReadFull(d.in, b[:]); err != nil {
		return j, false, broken(err)
	}
	if j.record, err = parseRecord(b[:], at, d.length); err != nil {
		return j, false, err
	}
	if j.kind == kindZeros {
		return j, false, nil
	}
	if _, err := io.ReadFull(d.in, j.sum[:]); err != nil {
		return j, false, broken(err)
	}
	if j.kind == kindEnd {
		if got := hex.EncodeToString(j.sum[:]); got != d.digest {
			return j, false, fmt.Errorf("%w: the stream's is %s, expected was %s", ErrDigest, got, d.digest)
		}
		return j, true, nil
	}
	j.payload = make([]byte, j.record.payload)
	if _, err := io.ReadFull(d.in, j.payload); err != nil {
		return j, false, broken(err)
	}
	return j, false, nil
}

func (d *decoder) write(ctx context.Context, j job, buf []byte) error {
	if j.kind == kindZeros {
		return d.zero(ctx, j.offset, j.length)
	}
	data, err := d.zr.DecodeAll(j.payload, buf[:0])
	if err != nil {
		return fmt.Errorf("%w: chunk at %d: %w", ErrCorrupt, j.offset, err)
	}
	if int64(len(data)) != j.length || sha256.Sum256(data) != j.sum {
		return fmt.Errorf("%w: chunk at %d differs from its checksum", ErrCorrupt, j.offset)
	}
	if _, err := d.to.WriteAt(data, j.offset); err != nil {
		return fmt.Errorf("write at %d: %w", j.offset, err)
	}
	return nil
}

// zeroStep bounds what is zeroed at once, so that the end of ctx is seen.
const zeroStep = 32 * ChunkSize

func (d *decoder) zero(ctx context.Context, at, length int64) error {
	for length > 0 {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n := min(length, zeroStep)
		if err := d.to.Zero(at, n); err != nil {
			return fmt.Errorf("zero at %d: %w", at, err)
		}
		at, length = at+n, length-n
	}
	return nil
}

// mark follows up to where everything is written, though workers end in any
// order.
type mark struct {
	mu    sync.Mutex
	at    int64
	ahead map[int64]int64 // offset -> length
	tell  Progress
}

func (m *mark) done(offset, length int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ahead == nil {
		m.ahead = map[int64]int64{}
	}
	m.ahead[offset] = length
	before := m.at
	for {
		n, ok := m.ahead[m.at]
		if !ok {
			break
		}
		delete(m.ahead, m.at)
		m.at += n
	}
	if m.at != before && m.tell != nil {
		m.tell(m.at)
	}
}

// directAlign is what O_DIRECT asks of memory, on every disk there is.
const directAlign = 4096

// alignedChunk gives memory for one chunk that O_DIRECT takes.
func alignedChunk() []byte {
	b := make([]byte, ChunkSize+directAlign)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & (directAlign - 1))
	return b[skip : skip+ChunkSize : skip+ChunkSize]
}
