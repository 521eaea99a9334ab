package cow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

func newStore(t *testing.T, fs *faulty.FS) *cow.Store {
	t.Helper()
	s, err := cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestFailedSyncStopsTheVolumesForGood(t *testing.T) { // S14
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	if err := s.Create(context.Background(), "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "a", 0, 4096, 1); err != nil {
		t.Fatal(err)
	}
	fs.FailAt(1, unix.EIO, false) // the flush's fdatasync
	if err := flush(s, "a"); hotspare.CodeOf(err) != hotspare.CodeVolumeFailed {
		t.Fatalf("flush over a failed sync: %v", err)
	}
	before := fs.Calls()
	if err := flush(s, "a"); hotspare.CodeOf(err) != hotspare.CodeVolumeFailed {
		t.Fatalf("the sync was tried again, or the failure forgotten: %v", err)
	}
	if err := write(s, "a", 0, 4096, 1); hotspare.CodeOf(err) != hotspare.CodeVolumeFailed {
		t.Fatalf("a stopped volume takes writes: %v", err)
	}
	if fs.Calls() != before {
		t.Fatal("a stopped store touches its files")
	}
}

func TestFullDiskIsAnErrorAndCorruptsNothing(t *testing.T) {
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	if err := s.Create(ctx, "a", 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "a", 0, 1<<20, 7); err != nil {
		t.Fatal(err)
	}
	want := digest(t, s)
	fs.Limit(3 << 20)
	var err error
	done := int64(1 << 20)
	for ; err == nil; done += 300_000 {
		if done > 32<<20 {
			t.Fatal("the disk never gets full")
		}
		err = write(s, "a", done, 300_000, 8)
	}
	if hotspare.CodeOf(err) != hotspare.CodeDiskFull {
		t.Fatalf("write to a full disk: %v", err)
	}
	r, err := s.Check(ctx)
	if err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
	if err := discard(s, "a", 1<<20, 63<<20); err != nil {
		t.Fatalf("discard on a full disk: %v", err)
	}
	if err := flush(s, "a"); err != nil {
		t.Fatal(err)
	}
	if got := digest(t, s); !maps.Equal(got, want) {
		t.Fatal("what was there before has changed")
	}
	if err := write(s, "a", 2<<20, 300_000, 9); err != nil {
		t.Fatalf("write after space was given back: %v", err)
	}
}

func TestFlippedBitStopsTheVolume(t *testing.T) { // S14
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	for _, n := range []string{"a", "b"} {
		if err := s.Create(ctx, n, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := write(s, n, 0, 8192, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := fs.Flip("data", 5000, 3); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Check(ctx); err != nil || len(r.Problems) != 1 {
		t.Fatalf("check: %+v, %v", r, err)
	}
	d, err := s.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 4096)
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatalf("the sound block: %v", err)
	}
	if _, err := d.ReadAt(p, 4096); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatalf("the damaged block: %v", err)
	}
	if _, err := d.ReadAt(p, 0); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatalf("a stopped volume is read: %v", err)
	}
	if i, _ := s.Stat("a"); i.Failed == nil {
		t.Fatal("the volume does not show that it is stopped")
	}
	b, err := s.OpenVolume("b")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.ReadAt(p, 0); err != nil {
		t.Fatalf("another volume: %v", err)
	}
}

func TestDamagedMetadataIsFound(t *testing.T) {
	for _, file := range []string{"super", "space-", "log-"} {
		t.Run(file, func(t *testing.T) {
			fs := faulty.NewFS(1)
			s := newStore(t, fs)
			if err := s.Create(context.Background(), "a", 8<<20); err != nil {
				t.Fatal(err)
			}
			if err := write(s, "a", 0, 1<<20, 1); err != nil {
				t.Fatal(err)
			}
			if err := flush(s, "a"); err != nil {
				t.Fatal(err)
			}
			if file != "log-" { // with the log, what it holds must still be in it
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := flush2(s); err != nil {
					t.Fatal(err)
				}
				fs.Kill()
				s.Close()
			}
			names, _ := fs.List()
			for _, n := range names {
				if strings.HasPrefix(n, file) {
					if err := fs.Flip(n, 100, 1); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, err := cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: "x"})
			if hotspare.CodeOf(err) != hotspare.CodeCorrupt {
				t.Fatalf("open: %v", err)
			}
		})
	}
}

// flush2 makes a second barrier, which proves that the first was durable.
func flush2(s *cow.Store) error {
	return errors.Join(write(s, "a", 2<<20, 4096, 2), flush(s, "a"))
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := cow.Open(context.Background(), dir, cow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := cow.Open(context.Background(), dir, cow.Options{}); hotspare.CodeOf(err) != hotspare.CodeStoreLocked {
		t.Fatalf("second open: %v", err)
	}
}

func TestSpaceOfDeletedVolumesIsGivenBack(t *testing.T) {
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	if err := s.Create(ctx, "golden", 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "golden", 0, 4<<20, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.SetReadOnly(ctx, "golden"); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "golden", 0, 1, 1); err == nil {
		t.Fatal("a golden volume takes a write")
	}
	start := fs.Sizes()["data"]
	for i := range 10 {
		n := fmt.Sprint("clone", i)
		if err := s.Clone(ctx, "golden", n); err != nil {
			t.Fatal(err)
		}
		if err := write(s, n, 1<<20, 4<<20, uint64(i)); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Reclaim(ctx); err != nil {
		t.Fatal(err)
	}
	if got := fs.Sizes()["data"]; got > start {
		t.Fatalf("data has %d bytes after ten clones came and went, %d before", got, start)
	}
	if r, err := s.Check(ctx); err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
}

func TestOpenVolumeIsNotDeleted(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	ctx := context.Background()
	if err := s.Create(ctx, "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "a"); hotspare.CodeOf(err) != hotspare.CodeVolumeBusy {
		t.Fatalf("delete of an open volume: %v", err)
	}
	d.Close()
	if err := s.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); err == nil {
		t.Fatal("a closed device reads")
	}
}

func TestRangeBeyondTheEndIsRefused(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	if err := s.Create(context.Background(), "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, c := range []struct{ off, n int64 }{{1 << 20, 1}, {-1, 1}, {1<<20 - 1, 2}, {1<<63 - 1, 1}, {0, 1<<20 + 1}} {
		if err := d.Discard(c.off, c.n); err == nil {
			t.Errorf("discard of %d bytes at %d is taken", c.n, c.off)
		}
		if c.n < 4096 {
			if _, err := d.WriteAt(make([]byte, c.n), c.off); err == nil {
				t.Errorf("write of %d bytes at %d is taken", c.n, c.off)
			}
		}
	}
}

// TestPowerLossInAnOverwrite overwrites in place as the first thing after a
// clean start, and loses the power: whatever reached the disk of data, checksum
// and log, the volume reads as the old or the new.
func TestPowerLossInAnOverwrite(t *testing.T) { // S14
	for seed := range uint64(300) {
		fs := faulty.NewFS(seed)
		open := func(boot string) *cow.Store {
			s, err := cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: boot})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			return s
		}
		s := open("1")
		if err := errors.Join(s.Create(context.Background(), "a", 1<<20), write(s, "a", 0, 1<<20, 1), s.Close()); err != nil {
			t.Fatal(err)
		}
		s = open("1")
		if err := write(s, "a", 8192, 4096, seed+2); err != nil {
			t.Fatal(err)
		}
		fs.PowerLoss()
		s.Close()
		s = open("2")
		if r, err := s.Check(context.Background()); err != nil || !r.OK() {
			t.Fatalf("seed %d: check: %+v, %v", seed, r, err)
		}
		s.Close()
	}
}

// TestSharedSlotsAreFreedByTheLastWhoLetsGo overwrites what a deleted snapshot
// once shared.
func TestSharedSlotsAreFreedByTheLastWhoLetsGo(t *testing.T) {
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	if err := errors.Join(s.Create(ctx, "a", 4<<20), write(s, "a", 0, 4<<20, 1), flush(s, "a")); err != nil {
		t.Fatal(err)
	}
	start := fs.Sizes()["data"]
	for i := range uint64(5) {
		if err := errors.Join(s.Snapshot(ctx, "a", "snap"), s.Delete(ctx, "snap"), write(s, "a", 0, 4<<20, i), flush(s, "a")); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Check(ctx); err != nil || !r.OK() {
			t.Fatalf("check: %+v, %v", r, err)
		}
	}
	if err := errors.Join(s.Snapshot(ctx, "a", "snap"), s.Delete(ctx, "snap"), s.Reclaim(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := fs.Sizes()["data"]; got > start {
		t.Fatalf("data has %d bytes, %d at the start", got, start)
	}
}

// TestManyWritersShareTheStore runs writers, flushers and clones at once; every
// writer has a region of its own and must find there what it wrote.
func TestManyWritersShareTheStore(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	s, err := cow.Open(ctx, dir, cow.Options{LogLimit: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Create(ctx, "a", 64<<20); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			d, err := s.OpenVolume("a")
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			r := rand.New(rand.NewPCG(uint64(w), 3))
			base, size := int64(w)*(8<<20), 8<<20
			want := make([]byte, size)
			got := make([]byte, size)
			for n := range 150 {
				off := r.IntN(size / 512)
				p := make([]byte, min(512*(1+r.IntN(200)), size-off*512))
				fill(r, p)
				if _, err := d.WriteAt(p, base+int64(off)*512); err != nil {
					t.Error(err)
					return
				}
				copy(want[off*512:], p)
				if n%10 == 0 {
					if err := d.Flush(); err != nil {
						t.Error(err)
					}
				}
				if n%50 == 49 {
					if _, err := d.ReadAt(got, base); err != nil || !bytes.Equal(got, want) {
						t.Errorf("writer %d reads something else: %v", w, err)
						return
					}
				}
			}
		})
	}
	work.Go(func() {
		for i := range 15 {
			n := fmt.Sprint("c", i)
			if err := s.Clone(ctx, "a", n); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := s.Delete(ctx, n); err != nil {
					t.Error(err)
				}
			}
		}
	})
	work.Wait()
	if r, err := s.Check(ctx); err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
}
