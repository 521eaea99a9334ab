package cow_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage/cow"
)

// TestFiguresOfALargeStore measures what docs/storage.md says: in the usual
// tests over a small store, to see that it runs, with HOTSPARE_TEST_FULL over
// the sizes that are promised.
func TestFiguresOfALargeStore(t *testing.T) {
	clusters, snapshots, volumes, deep := 20_000, 200, 100, 100
	if os.Getenv("HOTSPARE_TEST_FULL") != "" {
		clusters, snapshots, volumes, deep = 1_000_000, 10_000, 1000, 1000
	}
	dir, err := os.MkdirTemp("/dev/shm", "hotspare-figures-*")
	if err != nil {
		t.Skip("no memory to put a store in")
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	open := func() *cow.Store {
		s, err := cow.Open(ctx, dir, cow.Options{Reserve: 1, HighWater: 1})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	// One block in every third cluster: every entry has a slot of its own.
	must(t, s.Create(ctx, "big", int64(clusters)*3*65536))
	d, err := s.OpenVolume("big")
	must(t, err)
	p := make([]byte, 4096)
	began := time.Now()
	for i := range clusters {
		p[0] = byte(i)
		if _, err := d.WriteAt(p, int64(i*7919%clusters)*3*65536); err != nil {
			t.Fatal(err)
		}
	}
	must(t, d.Flush())
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d first writes, scattered: %.1f us each; the heap grew by %d MiB", clusters,
		float64(time.Since(began).Microseconds())/float64(clusters), (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>20)
	began = time.Now()
	for i := range clusters {
		if _, err := d.WriteAt(p, int64(i*7919%clusters)*3*65536); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("overwrites: %.1f us each", float64(time.Since(began).Microseconds())/float64(clusters))
	must(t, s.Snapshot(ctx, "big", "first"))
	began = time.Now()
	for i := range min(clusters, 100_000) {
		if _, err := d.WriteAt(p, int64(i*7919%clusters)*3*65536); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("first writes after a snapshot: %.1f us each", float64(time.Since(began).Microseconds())/float64(min(clusters, 100_000)))
	var took []time.Duration
	for i := range snapshots {
		began = time.Now()
		must(t, s.Snapshot(ctx, "big", fmt.Sprint("s", i)))
		took = append(took, time.Since(began))
	}
	t.Logf("snapshot: the first %v, the last %v; of the last hundred, median %v, longest %v", took[0], took[len(took)-1],
		median(took[len(took)-100:]), slices.Max(took[len(took)-100:]))
	reading := func(name string) time.Duration {
		d, err := s.OpenVolume(name)
		must(t, err)
		defer d.Close()
		began := time.Now()
		for i := range 100_000 {
			if _, err := d.ReadAt(p, int64(i*7919%min(clusters, 20_000))*3*65536); err != nil {
				t.Fatal(err)
			}
		}
		return time.Since(began) / 100_000
	}
	last := "big"
	for i := range deep {
		next := fmt.Sprint("deep", i)
		must(t, s.Clone(ctx, last, next))
		last = next
	}
	reading("big")
	t.Logf("a read: flat %v, through %d clones %v", reading("big"), deep, reading(last))
	for i := range volumes {
		must(t, s.Create(ctx, fmt.Sprint("v", i), 1<<30))
	}
	d.Close()
	must(t, s.Close())
	began = time.Now()
	s = open()
	t.Logf("start with %d volumes after a clean end: %v", len(s.List()), time.Since(began))
	began = time.Now()
	must(t, s.Delete(ctx, "first"))
	gone := time.Since(began)
	must(t, s.Reclaim(ctx))
	r := s.Reclaiming()
	t.Logf("delete %v, reclaimed after %v: %d nodes and %d slots scanned, %d slots freed", gone, time.Since(began), r.NodesScanned, r.SlotsScanned, r.SlotsFreed)
	must(t, s.Close())
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSpaceOfARealDisk fills a small file system, is refused with a reserve left,
// and takes writes again when space was given back.
func TestSpaceOfARealDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("hsdev-cow", dir, "tmpfs", 0, "size=32m"); err != nil {
		t.Fatalf("mount a tmpfs (root is needed): %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	ctx := context.Background()
	var notices []cow.NoticeKind
	s, err := cow.Open(ctx, filepath.Join(dir, "store"), cow.Options{LogLimit: 1 << 20, HighWater: 0.8, LowWater: 0.6,
		Notify: func(n cow.Notice) { notices = append(notices, n.Kind) }})
	must(t, err)
	defer s.Close()
	used := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	must(t, s.Create(ctx, "a", 1<<30))
	must(t, s.Create(ctx, "keep", 1<<20))
	must(t, write(s, "keep", 0, 1<<20, 3))
	want := digest(t, s)["keep"]
	empty := used()
	off := int64(0)
	for err = nil; err == nil && off < 128<<20; off += 1 << 19 {
		err = write(s, "a", off, 1<<19, uint64(off))
	}
	if hotspare.CodeOf(err) != hotspare.CodeDiskFull {
		t.Fatalf("write to a full disk: %v", err)
	}
	if !slices.Equal(notices, []cow.NoticeKind{cow.SpaceHigh, cow.SpaceFull}) {
		t.Fatalf("notices: %v", notices)
	}
	must(t, flush(s, "a"))
	must(t, s.Snapshot(ctx, "a", "snap")) // there is room for metadata
	must(t, discard(s, "a", 0, 1<<30))
	must(t, flush(s, "a"))
	if err := write(s, "a", 0, 4<<20, 1); err == nil {
		t.Fatal("there is space although a snapshot has it all")
	}
	must(t, errors.Join(s.Delete(ctx, "snap"), s.Reclaim(ctx)))
	if got := used(); got > empty+2<<20 {
		t.Fatalf("%d bytes are in use after all was deleted, %d before", got, empty)
	}
	must(t, write(s, "a", 0, 4<<20, 1))
	if r, err := s.Check(ctx); err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
	if got := digest(t, s)["keep"]; got != want {
		t.Fatal("another volume has changed")
	}
	if notices[len(notices)-1] != cow.SpaceLow {
		t.Fatalf("notices: %v", notices)
	}
}
