package cow_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"hotspare"
	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

func TestExtentsAreWhatIsMapped(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	ctx := context.Background()
	if err := errors.Join(s.Create(ctx, "a", 10<<20+512), write(s, "a", 4096, 8192, 1), write(s, "a", 60<<10, 70<<10, 2),
		write(s, "a", 10<<20, 512, 3), s.Snapshot(ctx, "a", "snap"), write(s, "a", 5<<20, 4096, 4)); err != nil {
		t.Fatal(err)
	}
	list := func(name string, off int64) (out []cow.Extent) {
		t.Helper()
		if err := s.Extents(ctx, name, off, func(e cow.Extent) error { out = append(out, e); return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	whole := []cow.Extent{{Off: 4096, Len: 8192}, {Off: 60 << 10, Len: 72 << 10}, {Off: 10 << 20, Len: 512}}
	if got := list("snap", 0); !slices.Equal(got, whole) {
		t.Errorf("the snapshot has %v, not %v", got, whole)
	}
	if got := list("snap", 64<<10); !slices.Equal(got, []cow.Extent{{Off: 64 << 10, Len: 68 << 10}, {Off: 10 << 20, Len: 512}}) {
		t.Errorf("from 64 KiB on: %v", got)
	}
	if got := list("a", 1<<20); !slices.Equal(got, []cow.Extent{{Off: 5 << 20, Len: 4096}, {Off: 10 << 20, Len: 512}}) {
		t.Errorf("the volume has %v", got)
	}
	stop := errors.New("enough")
	if err := s.Extents(ctx, "a", 0, func(cow.Extent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the visitor's error: %v", err)
	}
}

func TestVerifyNamesEveryBadBlockAndStopsTheVolume(t *testing.T) { // S14
	fs := faulty.NewFS(1)
	var notices []cow.Notice
	s, err := cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: "x", Notify: func(n cow.Notice) { notices = append(notices, n) }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	if err := errors.Join(s.Create(ctx, "a", 8<<20), write(s, "a", 0, 1<<20, 1)); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Verify(ctx, "a", 0, 8<<20); err != nil || v.Bytes != 1<<20 || len(v.Bad) > 0 {
		t.Fatalf("sound volume: %+v, %v", v, err)
	}
	if err := errors.Join(fs.Flip("data", 5000, 3), fs.Flip("data", 700_000, 0)); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Verify(ctx, "a", 65536, 65536); err != nil || len(v.Bad) > 0 {
		t.Fatalf("between the bad blocks: %+v, %v", v, err)
	}
	v, err := s.Verify(ctx, "a", 0, 8<<20)
	if err != nil || !slices.Equal(v.Bad, []int64{4096, 170 * 4096}) {
		t.Fatalf("bad blocks: %+v, %v", v, err)
	}
	if i, _ := s.Stat("a"); hotspare.CodeOf(i.Failed) != hotspare.CodeCorrupt {
		t.Fatalf("the volume goes on: %v", i.Failed)
	}
	if len(notices) != 1 || notices[0].Kind != cow.VolumeStopped || notices[0].Volume != "a" {
		t.Fatalf("notices: %+v", notices)
	}
}
