package images

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// memorySource is a disk in memory, all of it data.
type memorySource struct{ *bytes.Reader }

func (s memorySource) data(off int64) (int64, int64, error) { return off, s.Size(), nil }

// jealousSink is a volume that does not bear two writes at once.
type jealousSink struct {
	mu     sync.Mutex
	disk   []byte
	writes atomic.Int64
}

func (s *jealousSink) WriteAt(p []byte, off int64) (int, error) {
	if !s.mu.TryLock() {
		return 0, errors.New("a second write came while one was under way")
	}
	defer s.mu.Unlock()
	s.writes.Add(1)
	return copy(s.disk[off:], p), nil
}

func (s *jealousSink) Flush() error { return nil }

// TestOnePieceIsWrittenAtATime: a volume is one file below, and a file takes one
// write at a time anyway.
func TestOnePieceIsWrittenAtATime(t *testing.T) {
	want := make([]byte, 64<<20)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(t.Name()))).Read(want)
	to := &jealousSink{disk: make([]byte, len(want))}
	sum, n, err := transfer(t.Context(), memorySource{bytes.NewReader(want)}, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := contentDigest(t.Context(), memorySource{bytes.NewReader(want)})
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(len(want)) || to.writes.Load() != 64 || sum != alone || !bytes.Equal(to.disk, want) {
		t.Errorf("%d bytes in %d writes, digest %s for %s, the same: %v", n, to.writes.Load(), sum, alone, bytes.Equal(to.disk, want))
	}
}
