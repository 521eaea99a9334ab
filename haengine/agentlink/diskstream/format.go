package diskstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
)

// ChunkSize is the length of a chunk; the last one of the contents may be
// shorter.
const ChunkSize = 1 << 20

const (
	magic      = "HSDS"
	version    = 1
	headerLen  = 32
	recordLen  = 28
	digestSeed = "HSDS1"

	// maxPayload bounds a compressed chunk: zstd adds little to what it cannot
	// compress.
	maxPayload = ChunkSize + ChunkSize/64 + 1024
	// MaxLength bounds the contents: 64 TiB.
	MaxLength = 64 << 40
)

type kind byte

const (
	kindData kind = iota + 1
	kindZeros
	kindEnd
)

// Errors of a stream. ErrBroken ends one that can be asked for again from where
// it ended; ErrCorrupt is of contents that are not what they were sent as.
var (
	ErrBroken  = errors.New("diskstream: the stream ends too early")
	ErrCorrupt = errors.New("diskstream: the stream is corrupt")
	ErrDigest  = errors.New("diskstream: the contents do not have the digest")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type header struct {
	length, from int64
}

func (h header) encode() []byte {
	b := make([]byte, headerLen)
	copy(b, magic)
	binary.LittleEndian.PutUint16(b[4:], version)
	binary.LittleEndian.PutUint32(b[8:], ChunkSize)
	binary.LittleEndian.PutUint64(b[12:], uint64(h.length))
	binary.LittleEndian.PutUint64(b[20:], uint64(h.from))
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	return b
}

func parseHeader(b []byte) (header, error) {
	switch {
	case len(b) != headerLen || string(b[:4]) != magic:
		return header{}, fmt.Errorf("%w: it is no disk stream", ErrCorrupt)
	case binary.LittleEndian.Uint16(b[4:]) != version:
		return header{}, fmt.Errorf("%w: version %d, this end reads %d", ErrCorrupt, binary.LittleEndian.Uint16(b[4:]), version)
	case binary.LittleEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli):
		return header{}, fmt.Errorf("%w: the header's checksum is wrong", ErrCorrupt)
	case binary.LittleEndian.Uint32(b[8:]) != ChunkSize:
		return header{}, fmt.Errorf("%w: chunks of %d bytes", ErrCorrupt, binary.LittleEndian.Uint32(b[8:]))
	}
	h := header{length: int64(binary.LittleEndian.Uint64(b[12:])), from: int64(binary.LittleEndian.Uint64(b[20:]))}
	if h.length <= 0 || h.length > MaxLength || h.from < 0 || h.from > h.length || h.from%ChunkSize != 0 {
		return header{}, fmt.Errorf("%w: %d bytes from %d", ErrCorrupt, h.length, h.from)
	}
	return h, nil
}

type record struct {
	kind    kind
	payload uint32
	offset  int64
	length  int64
}

func (r record) encode() []byte {
	b := make([]byte, recordLen)
	b[0] = byte(r.kind)
	binary.LittleEndian.PutUint32(b[4:], r.payload)
	binary.LittleEndian.PutUint64(b[8:], uint64(r.offset))
	binary.LittleEndian.PutUint64(b[16:], uint64(r.length))
	binary.LittleEndian.PutUint32(b[24:], crc32.Checksum(b[:24], castagnoli))
	return b
}

// parseRecord reads a record that must begin at the offset at of contents of
// length bytes.
func parseRecord(b []byte, at, length int64) (record, error) {
	if len(b) != recordLen || binary.LittleEndian.Uint32(b[24:]) != crc32.Checksum(b[:24], castagnoli) {
		return record{}, fmt.Errorf("%w: a record's checksum is wrong", ErrCorrupt)
	}
	r := record{
		kind: kind(b[0]), payload: binary.LittleEndian.Uint32(b[4:]),
		offset: int64(binary.LittleEndian.Uint64(b[8:])), length: int64(binary.LittleEndian.Uint64(b[16:])),
	}
	bad := fmt.Errorf("%w: record %d of %d bytes at %d, expected at %d of %d", ErrCorrupt, r.kind, r.length, r.offset, at, length)
	if r.offset != at || r.length < 0 || r.length > length-at {
		return record{}, bad
	}
	switch r.kind {
	case kindData:
		if r.length != min(ChunkSize, length-at) || r.length == 0 || r.payload == 0 || r.payload > maxPayload {
			return record{}, bad
		}
	case kindZeros:
		if r.payload != 0 || r.length == 0 || (r.length%ChunkSize != 0 && at+r.length != length) {
			return record{}, bad
		}
	case kindEnd:
		if r.payload != 0 || r.length != 0 || at != length {
			return record{}, bad
		}
	default:
		return record{}, bad
	}
	return r, nil
}

var zeroChunk [ChunkSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroChunk[:len(b)]) }

// Digest reads contents and gives their digest in hexadecimal digits. tell is
// told how much was read; it may be nil.
func Digest(ctx context.Context, src io.ReaderAt, length int64, tell func(done int64)) (string, error) {
	chunks := int((length + ChunkSize - 1) / ChunkSize)
	sums := make([][sha256.Size]byte, chunks)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var next int
	var done int64
	var wg sync.WaitGroup
	for range min(chunks, max(2, runtime.GOMAXPROCS(0))) {
		wg.Go(func() {
			buf := alignedChunk()
			for ctx.Err() == nil {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= chunks {
					return
				}
				at := int64(i) * ChunkSize
				part := buf[:min(ChunkSize, length-at)]
				if _, err := src.ReadAt(part, at); err != nil && !errors.Is(err, io.EOF) {
					cancel(fmt.Errorf("read at %d: %w", at, err))
					return
				} else if err != nil {
					cancel(fmt.Errorf("read at %d: the contents are shorter than %d bytes", at, length))
					return
				}
				sums[i] = chunkSum(part)
				mu.Lock()
				done += int64(len(part))
				if tell != nil {
					tell(done)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	sum := newDigest(length)
	for i := range sums {
		_, _ = sum.Write(sums[i][:])
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// zeroSum is the sum of a whole chunk of zeros: most of a disk is that.
var zeroSum = sha256.Sum256(zeroChunk[:])

func chunkSum(b []byte) [sha256.Size]byte {
	if len(b) == ChunkSize && isZero(b) {
		return zeroSum
	}
	return sha256.Sum256(b)
}

func newDigest(length int64) hash.Hash {
	h := sha256.New()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(length))
	_, _ = h.Write(append([]byte(digestSeed), b[:]...))
	return h
}
