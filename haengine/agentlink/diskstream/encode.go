package diskstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Encode writes contents from the offset from on, which is a multiple of
// ChunkSize, as a stream. digest is that of the whole contents if it is known; it
// may be empty when from is 0, and is given back in hexadecimal digits.
func Encode(ctx context.Context, w io.Writer, src io.ReaderAt, length, from int64, digest string) (string, error) {
	h := header{length: length, from: from}
	if _, err := parseHeader(h.encode()); err != nil {
		return "", err
	}
	if from != 0 && digest == "" {
		return "", errors.New("diskstream: a stream that goes on needs the digest of the whole")
	}
	if _, err := w.Write(h.encode()); err != nil {
		return "", err
	}
	e := &encoder{w: w, sum: newDigest(length), at: from}
	if err := e.run(ctx, src, length); err != nil {
		return "", err
	}
	if from == 0 {
		got := hex.EncodeToString(e.sum.Sum(nil))
		if digest != "" && digest != got {
			return "", fmt.Errorf("%w: they have %s instead of %s", ErrDigest, got, digest)
		}
		digest = got
	}
	raw, err := hex.DecodeString(digest)
	if err != nil || len(raw) != sha256.Size {
		return "", fmt.Errorf("diskstream: %q is no digest", digest)
	}
	_, err = w.Write(append(record{kind: kindEnd, offset: length}.encode(), raw...))
	return digest, err
}

// encoder writes chunks in their order.
type encoder struct {
	w     io.Writer
	sum   hash.Hash
	at    int64 // where the next record begins
	zeros int64 // that were read and not written yet
}

// packed is one chunk, compressed.
type packed struct {
	length  int64
	sum     [sha256.Size]byte
	payload []byte // nil: zeros
	err     error
}

// run reads and compresses chunks at once, as many as there are processors, and
// writes them in their order.
func (e *encoder) run(ctx context.Context, src io.ReaderAt, length int64) error {
	workers := max(2, runtime.GOMAXPROCS(0))
	zw, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(workers), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	defer zw.Close()
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	queue := make(chan chan packed, 2*workers)
	slots := make(chan []byte, workers)
	for range workers {
		slots <- alignedChunk()
	}
	wg.Go(func() {
		defer close(queue)
		for at := e.at; at < length; at += ChunkSize {
			out := make(chan packed, 1)
			select {
			case queue <- out:
			case <-ctx.Done():
				return
			}
			var buf []byte
			select {
			case buf = <-slots:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				out <- pack(zw, src, buf[:min(ChunkSize, length-at)], at)
				slots <- buf
			})
		}
	})
	for out := range queue {
		select {
		case p := <-out:
			if err := e.put(p); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return e.flush()
}

func pack(zw *zstd.Encoder, src io.ReaderAt, buf []byte, at int64) packed {
	if n, err := src.ReadAt(buf, at); n < len(buf) {
		return packed{err: fmt.Errorf("read at %d: %w", at, errors.Join(err, io.ErrUnexpectedEOF))}
	}
	p := packed{length: int64(len(buf)), sum: chunkSum(buf)}
	if !isZero(buf) {
		p.payload = zw.EncodeAll(buf, make([]byte, 0, len(buf)/2))
	}
	return p
}

func (e *encoder) put(p packed) error {
	if p.err != nil {
		return p.err
	}
	if _, err := e.sum.Write(p.sum[:]); err != nil {
		return err
	}
	if p.payload == nil {
		e.zeros += p.length
		return nil
	}
	if err := e.flush(); err != nil {
		return err
	}
	r := record{kind: kindData, payload: uint32(len(p.payload)), offset: e.at, length: p.length}
	e.at += p.length
	if _, err := e.w.Write(append(r.encode(), p.sum[:]...)); err != nil {
		return err
	}
	_, err := e.w.Write(p.payload)
	return err
}

// flush writes the zeros that were read.
func (e *encoder) flush() error {
	if e.zeros == 0 {
		return nil
	}
	r := record{kind: kindZeros, offset: e.at, length: e.zeros}
	e.at, e.zeros = e.at+e.zeros, 0
	_, err := e.w.Write(r.encode())
	return err
}
