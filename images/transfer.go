package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

const (
	// chunk is how much is read at once.
	chunk = 1 << 20
	// grain is the piece that is left out when it is all zeros: the cluster of
	// the volume store.
	grain = 64 << 10
)

// contentDigest gives the SHA-256 of the disk's contents in hex. Holes count as
// the zeros that they read as.
func contentDigest(ctx context.Context, src source) (string, error) {
	sum, _, err := transfer(ctx, src, nil)
	return sum, err
}

// transfer reads the whole disk, writes every grain that is not all zeros to
// dst (nil writes nothing), and gives the digest of what it read and the number
// of bytes that it wrote. dst must read as zeros before.
func transfer(ctx context.Context, src source, dst io.WriterAt) (sum string, written int64, err error) {
	h := sha256.New()
	buf, zeros := make([]byte, chunk), make([]byte, chunk)
	for off := int64(0); off < src.Size(); {
		start, end, err := src.data(off)
		if err != nil {
			return "", 0, err
		}
		for off < start {
			if err := ctx.Err(); err != nil {
				return "", 0, err
			}
			n := min(start-off, chunk)
			h.Write(zeros[:n])
			off += n
		}
		for off < end {
			if err := ctx.Err(); err != nil {
				return "", 0, err
			}
			p := buf[:min(end-off, chunk-off%grain)] // later reads start on a grain
			if n, err := src.ReadAt(p, off); n < len(p) {
				return "", 0, readShort(err, off+int64(n), src.Size())
			}
			h.Write(p)
			n, err := writeGrains(dst, p, off, zeros[:grain])
			written += n
			if err != nil {
				return "", written, err
			}
			off += int64(len(p))
		}
	}
	return hex.EncodeToString(h.Sum(nil)), written, nil
}

func readShort(err error, off, size int64) error {
	if err == nil || errors.Is(err, io.EOF) {
		return truncated("the disk", off, size-off, off)
	}
	return fmt.Errorf("images: read the disk at byte %d: %w", off, err)
}

// writeGrains writes the runs of p (at off on the disk) that are not zeros, in
// pieces as large as possible. zeros is one grain of them.
func writeGrains(dst io.WriterAt, p []byte, off int64, zeros []byte) (written int64, err error) {
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
		next := min(at+grain-int((off+int64(at))%grain), len(p))
		if bytes.Equal(p[at:next], zeros[:next-at]) {
			if err := flush(from, at); err != nil {
				return written, err
			}
			from = next
		}
		at = next
	}
	return written, flush(from, len(p))
}
