package cow_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

// watched counts what is written to the data file in passing, and otherwise.
type watched struct {
	cow.FileSystem
	passing, kept *atomic.Int64
}

func (w watched) Open(name string, create bool) (cow.File, error) {
	f, err := w.FileSystem.Open(name, create)
	if err != nil || name != "data" {
		return f, err
	}
	return watchedData{f, w}, nil
}

type watchedData struct {
	cow.File
	w watched
}

type passer interface {
	WriteAtPassing(p []byte, off int64) (int, error)
}

func (d watchedData) WriteAt(p []byte, off int64) (int, error) {
	d.w.kept.Add(int64(len(p)))
	return d.File.WriteAt(p, off)
}

func (d watchedData) WriteAtPassing(p []byte, off int64) (int, error) {
	d.w.passing.Add(int64(len(p)))
	return d.File.(passer).WriteAtPassing(p, off)
}

// TestAVolumeThatIsFilledStaysOutOfMemory writes a volume as an import does, and
// afterwards a clone of it as a node does.
func TestAVolumeThatIsFilledStaysOutOfMemory(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	w := watched{cow.OSFileSystem(dir), new(atomic.Int64), new(atomic.Int64)}
	s, err := cow.Open(ctx, dir, cow.Options{FileSystem: w})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	image := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(t.Name()))).Read(image)
	if err := s.Create(ctx, "golden", int64(len(image))); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenToFill("golden")
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < len(image); off += 1 << 20 {
		if _, err := d.WriteAt(image[off:off+1<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.Flush(), d.Close(), s.SetReadOnly(ctx, "golden")); err != nil {
		t.Fatal(err)
	}
	if got := w.passing.Load(); got != int64(len(image)) || w.kept.Load() != 0 {
		t.Errorf("%d bytes were written in passing and %d to be kept", got, w.kept.Load())
	}
	if err := errors.Join(s.Clone(ctx, "golden", "root"), write(s, "root", 1<<20, 64<<10, 7), flush(s, "root")); err != nil {
		t.Fatal(err)
	}
	if w.kept.Load() != 64<<10 {
		t.Errorf("of a node's 64 KiB %d bytes were written as usual", w.kept.Load())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = cow.Open(ctx, dir, cow.Options{FileSystem: w}); err != nil {
		t.Fatal(err)
	}
	if d, err = s.OpenVolume("golden"); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, len(image))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, image) {
		t.Errorf("the volume differs from what it was filled with: %v", err)
	}
}

// TestAVolumeIsFilledOverAnyFileLayer fills one over files that can only be
// written as usual.
func TestAVolumeIsFilledOverAnyFileLayer(t *testing.T) {
	s, err := cow.Open(t.Context(), "", cow.Options{FileSystem: faulty.NewFS(1), BootID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Create(t.Context(), "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenToFill("a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := bytes.Repeat([]byte("filled "), 100_000)[:640<<10]
	got := make([]byte, len(want))
	_, werr := d.WriteAt(want, 64<<10)
	_, rerr := d.ReadAt(got, 64<<10)
	if werr != nil || rerr != nil || !bytes.Equal(got, want) {
		t.Errorf("written: %v, read: %v, the same: %v", werr, rerr, bytes.Equal(got, want))
	}
}
