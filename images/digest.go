package images

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"sort"
)

// DigestTree names the digest of disk contents that this program makes: the
// SHA-256 of a header and of the SHA-256 of every piece of 1 MiB, the last one
// shorter. The header is "hotspare disk 1\n", the size of the disk in bytes as 64
// bits, little-endian. It is made in any order, by several processors, and costs
// nothing for what a sparse file leaves out: a plain SHA-256 of a disk of 10 GiB
// takes six seconds, whatever is on it. Records of earlier versions have such a
// plain one and name no kind.
const DigestTree = "sha256-tree-1m"

// pieceSize is the piece of a disk's digest, and what is read at once.
const pieceSize = 1 << 20

// diskDigest collects the digests of pieces. Different pieces may be set at the
// same time.
type diskDigest struct {
	size int64
	sums []byte
}

func newDiskDigest(size int64) *diskDigest {
	d := &diskDigest{size, make([]byte, (size+pieceSize-1)/pieceSize*sha256.Size)}
	if size == 0 {
		return d
	}
	zeros := make([]byte, pieceSize)
	sum := sha256.Sum256(zeros)
	for i := 0; i < len(d.sums); i += sha256.Size {
		copy(d.sums[i:], sum[:])
	}
	if rest := size % pieceSize; rest != 0 {
		d.set(size/pieceSize, zeros[:rest])
	}
	return d
}

// set notes piece i, which reads as zeros until then.
func (d *diskDigest) set(i int64, piece []byte) {
	sum := sha256.Sum256(piece)
	copy(d.sums[i*sha256.Size:], sum[:])
}

// sum gives the digest in hex.
func (d *diskDigest) sum() string {
	h := sha256.New()
	h.Write(binary.LittleEndian.AppendUint64([]byte("hotspare disk 1\n"), uint64(d.size)))
	h.Write(d.sums)
	return hex.EncodeToString(h.Sum(nil))
}

// Contents is a disk that can say what of it may hold anything but zeros.
type Contents interface {
	io.ReaderAt
	Size() int64
	Extents(ctx context.Context, visit func(off, n int64) error) error
}

// DigestOf gives the digest of a disk's contents, of the kind that an image's
// record names.
func DigestOf(ctx context.Context, c Contents, kind string, tell func(Step)) (string, error) {
	if kind == "" { // of an image that an earlier version imported
		got, err := checkFile(ctx, c, c.Size(), nil, nil, func(n int64) { tell(Step{"compare", n, c.Size()}) })
		return got.sha256, err
	}
	s := extentSource{Contents: c}
	err := c.Extents(ctx, func(off, n int64) error {
		s.runs = append(s.runs, run{logical: off, count: n})
		return nil
	})
	if err != nil {
		return "", err
	}
	sum, _, err := transfer(ctx, s, nil, func(n int64) { tell(Step{"compare", n, c.Size()}) })
	return sum, err
}

// extentSource is a source whose extents are known, in order.
type extentSource struct {
	Contents
	runs []run
}

func (s extentSource) data(off int64) (int64, int64, error) {
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].logical+s.runs[i].count > off })
	if i == len(s.runs) {
		return s.Size(), s.Size(), nil
	}
	return max(off, s.runs[i].logical), min(s.runs[i].logical+s.runs[i].count, s.Size()), nil
}
