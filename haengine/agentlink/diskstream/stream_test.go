package diskstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk is a sink in memory that holds something else at first.
type disk struct {
	mu   sync.Mutex
	data []byte
	err  error
}

func newDisk(n int) *disk { return &disk{data: bytes.Repeat([]byte{0xee}, n)} }

func (d *disk) WriteAt(b []byte, at int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[at:], b), d.err
}

func (d *disk) Zero(at, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[at : at+n])
	return d.err
}

// contents gives n bytes with text, noise and holes.
func contents(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for at := 0; at < n; at += ChunkSize / 2 {
		part := b[at:min(n, at+ChunkSize/2)]
		switch r.IntN(4) {
		case 0:
			for i := range part {
				part[i] = byte(r.Uint32())
			}
		case 1:
			copy(part, bytes.Repeat([]byte("hotspare "), len(part)/9+1))
		}
	}
	return b
}

func encode(t testing.TB, b []byte, from int64, digest string) (stream []byte, got string) {
	t.Helper()
	var out bytes.Buffer
	got, err := Encode(context.Background(), &out, bytes.NewReader(b), int64(len(b)), from, digest)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), got
}

func TestContentsArriveWhole(t *testing.T) {
	for _, n := range []int{1, 4096, ChunkSize - 1, ChunkSize, ChunkSize + 1, 9*ChunkSize + 512, 33 * ChunkSize} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := contents(n)
			stream, digest := encode(t, b, 0, "")
			if read, err := Digest(t.Context(), bytes.NewReader(b), int64(n), nil); err != nil || read != digest {
				t.Fatalf("digest by reading %s, by encoding %s, %v", read, digest, err)
			}
			d := newDisk(n)
			var last int64
			at, err := Decode(t.Context(), bytes.NewReader(stream), d, int64(n), 0, digest, func(o int64) { last = o })
			if err != nil || at != int64(n) || last != at || !bytes.Equal(d.data, b) {
				t.Fatalf("to %d, told %d, %v, same %v", at, last, err, bytes.Equal(d.data, b))
			}
		})
	}
}

func TestZerosTravelAsTheirLength(t *testing.T) {
	stream, _ := encode(t, make([]byte, 64*ChunkSize), 0, "")
	if len(stream) > 200 {
		t.Errorf("64 MiB of zeros became %d bytes", len(stream))
	}
}

// A stream that breaks anywhere goes on from where it was: nothing before that
// place is sent again, and the contents are whole in the end.
func TestABrokenStreamGoesOn(t *testing.T) {
	b := contents(20*ChunkSize + 77)
	whole, digest := encode(t, b, 0, "")
	for _, cut := range []int{0, 10, headerLen, headerLen + 5, len(whole) / 3, len(whole) / 2, len(whole) - 40, len(whole) - 1} {
		d := newDisk(len(b))
		at, err := Decode(t.Context(), bytes.NewReader(whole[:cut]), d, int64(len(b)), 0, digest, nil)
		if !errors.Is(err, ErrBroken) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if !bytes.Equal(d.data[:at], b[:at]) {
			t.Fatalf("cut at %d: what is said to be there, up to %d, is not", cut, at)
		}
		from := at &^ (ChunkSize - 1)
		rest, _ := encode(t, b, from, digest)
		if at, err = Decode(t.Context(), bytes.NewReader(rest), d, int64(len(b)), from, digest, nil); err != nil || !bytes.Equal(d.data, b) {
			t.Fatalf("cut at %d, on from %d: %d, %v", cut, from, at, err)
		}
	}
}

func TestOneFlippedBitIsSeen(t *testing.T) {
	b := contents(3*ChunkSize + 9)
	whole, digest := encode(t, b, 0, "")
	for i := range 300 {
		torn := bytes.Clone(whole)
		at := i * (len(torn) - 1) / 299
		torn[at] ^= 1 << (i % 8)
		if _, err := Decode(t.Context(), bytes.NewReader(torn), newDisk(len(b)), int64(len(b)), 0, digest, nil); err == nil {
			t.Errorf("bit %d of byte %d was flipped and not seen", i%8, at)
		}
	}
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	b := contents(2 * ChunkSize)
	whole, digest := encode(t, b, 0, "")
	_, other := encode(t, contents(3*ChunkSize), 0, "")
	for name, run := range map[string]func() error{
		"another digest": func() error {
			_, err := Decode(t.Context(), bytes.NewReader(whole), newDisk(len(b)), int64(len(b)), 0, other, nil)
			return err
		},
		"another length": func() error {
			_, err := Decode(t.Context(), bytes.NewReader(whole), newDisk(len(b)), ChunkSize, 0, digest, nil)
			return err
		},
		"another place": func() error {
			_, err := Decode(t.Context(), bytes.NewReader(whole), newDisk(len(b)), int64(len(b)), ChunkSize, digest, nil)
			return err
		},
		"a disk that fails": func() error {
			d := newDisk(len(b))
			d.err = errors.New("I/O error")
			_, err := Decode(t.Context(), bytes.NewReader(whole), d, int64(len(b)), 0, digest, nil)
			return err
		},
		"a reader that fails": func() error {
			_, err := Decode(t.Context(), iotest.TimeoutReader(iotest.HalfReader(bytes.NewReader(whole))), newDisk(len(b)), int64(len(b)), 0, digest, nil)
			return err
		},
		"contents that changed": func() error {
			_, err := Encode(t.Context(), io.Discard, bytes.NewReader(b), int64(len(b)), 0, other)
			return err
		},
		"contents that end": func() error {
			_, err := Encode(t.Context(), io.Discard, bytes.NewReader(b[:ChunkSize]), int64(len(b)), 0, "")
			return err
		},
		"a middle without the digest": func() error {
			_, err := Encode(t.Context(), io.Discard, bytes.NewReader(b), int64(len(b)), ChunkSize, "")
			return err
		},
		"a place inside a chunk": func() error {
			_, err := Encode(t.Context(), io.Discard, bytes.NewReader(b), int64(len(b)), 5, digest)
			return err
		},
		"a disk that ends": func() error {
			_, err := Digest(t.Context(), bytes.NewReader(b[:ChunkSize]), int64(len(b)), nil)
			return err
		},
	} {
		if err := run(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTheEndOfTheContextEndsEverything(t *testing.T) {
	b := contents(8 * ChunkSize)
	whole, digest := encode(t, b, 0, "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Encode(ctx, io.Discard, bytes.NewReader(b), int64(len(b)), 0, ""); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Decode(ctx, bytes.NewReader(whole), newDisk(len(b)), int64(len(b)), 0, digest, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := Digest(ctx, bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Whatever arrives, nothing panics, nothing is written outside the disk, and
// only contents with the right checksums are taken for whole.
func FuzzDecode(f *testing.F) {
	b := contents(2*ChunkSize + 10)
	whole, digest := encode(f, b, 0, "")
	f.Add(whole)
	f.Add(whole[:headerLen+recordLen])
	zeros, _ := encode(f, make([]byte, len(b)), 0, "")
	f.Add(zeros)
	f.Fuzz(func(t *testing.T, stream []byte) {
		d := newDisk(len(b))
		if _, err := Decode(t.Context(), bytes.NewReader(stream), d, int64(len(b)), 0, digest, nil); err == nil && len(stream) < headerLen+2*recordLen {
			t.Error("a stub was taken for a stream")
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	c := contents(64 * ChunkSize)
	b.SetBytes(int64(len(c)))
	for b.Loop() {
		if _, err := Encode(b.Context(), io.Discard, bytes.NewReader(c), int64(len(c)), 0, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	c := contents(64 * ChunkSize)
	stream, digest := encode(b, c, 0, "")
	d := newDisk(len(c))
	b.SetBytes(int64(len(c)))
	for b.Loop() {
		if _, err := Decode(b.Context(), bytes.NewReader(stream), d, int64(len(c)), 0, digest, nil); err != nil {
			b.Fatal(err)
		}
	}
}
