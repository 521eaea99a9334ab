package cow_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"hotspare"
	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

func TestScrubNamesWhatIsBadAndLeavesTheOthersAlone(t *testing.T) { // S14
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := t.Context()
	if err := errors.Join(
		s.Create(ctx, "a", 8<<20), write(s, "a", 0, 1<<20, 1),
		s.Snapshot(ctx, "a", "a@one"), write(s, "a", 0, 64<<10, 2),
		s.Create(ctx, "b", 8<<20), write(s, "b", 12288, 4096, 3),
	); err != nil {
		t.Fatal(err)
	}
	var last cow.ScrubProgress
	r, err := s.NewScrub(cow.ScrubOptions{Progress: func(p cow.ScrubProgress) {
		if p.Bytes < last.Bytes || p.Done < last.Done {
			t.Errorf("progress went back from %+v to %+v", last, p)
		}
		last = p
	}}).Run(ctx)
	// What the snapshot shares with the volume is read once.
	if want := int64(1<<20 + 64<<10 + 4096); err != nil || !r.OK() || r.Volumes != 3 || r.Bytes != want {
		t.Fatalf("sound store: %+v, %v; want %d bytes", r, err, want)
	}
	if last.Volume != "b" || last.Done != 2 || last.Volumes != 3 || last.Bytes != r.Bytes {
		t.Fatalf("progress ended at %+v", last)
	}

	// A block that both share, and one that only the snapshot has: the first
	// slots of the data file are those of the first write.
	if err := errors.Join(fs.Flip("data", 700_000, 0), fs.Flip("data", 5000, 3)); err != nil {
		t.Fatal(err)
	}
	r, err = s.NewScrub(cow.ScrubOptions{}).Run(ctx)
	want := []cow.BadBlock{{Volume: "a", Off: 170 * 4096}, {Volume: "a@one", Off: 4096}, {Volume: "a@one", Off: 170 * 4096}}
	if err != nil || r.OK() || !slices.Equal(r.Bad, want) || r.Volumes != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, stopped := range map[string]bool{"a": true, "a@one": true, "b": false} {
		if i, err := s.Stat(name); err != nil || (hotspare.CodeOf(i.Failed) == hotspare.CodeCorrupt) != stopped {
			t.Errorf("%s: stopped by %v, %v", name, i.Failed, err)
		}
	}
	if err := write(s, "b", 0, 4096, 4); err != nil {
		t.Errorf("another volume: %v", err)
	}

	// One volume, one that does not exist, and the end of the wait.
	if r, err := s.NewScrub(cow.ScrubOptions{Volumes: []string{"b"}}).Run(ctx); err != nil || !r.OK() || r.Bytes != 8192 {
		t.Errorf("b alone: %+v, %v", r, err)
	}
	if _, err := s.NewScrub(cow.ScrubOptions{Volumes: []string{"c"}}).Run(ctx); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Errorf("no such volume: %v", err)
	}
	why := errors.New("enough")
	ended, cancel := context.WithCancelCause(ctx)
	if _, err := s.NewScrub(cow.ScrubOptions{BytesPerSecond: 4096, Progress: func(cow.ScrubProgress) { cancel(why) }}).Run(ended); !errors.Is(err, why) {
		t.Errorf("ended: %v", err)
	}
}

// A volume can be deleted while it is scrubbed: the scrub lets go of it.
func TestAScrubLetsGoOfAVolume(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	ctx := t.Context()
	if err := errors.Join(s.Create(ctx, "a", 1<<20), write(s, "a", 0, 1<<20, 1), s.Create(ctx, "b", 1<<20), write(s, "b", 0, 4096, 1), s.Create(ctx, "c", 1<<20)); err != nil {
		t.Fatal(err)
	}
	under := make(chan struct{})
	sc := s.NewScrub(cow.ScrubOptions{BytesPerSecond: 1, Progress: func(p cow.ScrubProgress) {
		if p.Volume == "a" && p.Bytes == 65536 {
			close(under)
		}
	}})
	type end struct {
		r   cow.ScrubReport
		err error
	}
	ended := make(chan end, 1)
	go func() {
		r, err := sc.Run(ctx)
		ended <- end{r, err}
	}()
	<-under // it waits for its pace now, for hours
	if err := s.Delete(ctx, "a"); hotspare.CodeOf(err) != hotspare.CodeVolumeBusy {
		t.Fatalf("nothing is to be let go of: %v", err)
	}
	sc.LetGo("b")
	sc.LetGo("a")
	if err := errors.Join(s.Delete(ctx, "a"), s.Delete(ctx, "b")); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e.err != nil || !e.r.OK() || e.r.Volumes != 1 {
		t.Fatalf("%+v, %v", e.r, e.err)
	}
}

// unreadable is a disk of which the first cluster of the data cannot be read.
type unreadable struct{ cow.FileSystem }

func (u unreadable) Open(name string, create bool) (cow.File, error) {
	f, err := u.FileSystem.Open(name, create)
	if err == nil && name == "data" {
		f = unreadableData{f}
	}
	return f, err
}

type unreadableData struct{ cow.File }

func (u unreadableData) ReadAt(p []byte, off int64) (int, error) {
	if off < 64<<10 {
		return 0, errors.New("input/output error")
	}
	return u.File.ReadAt(p, off)
}

func TestAScrubOfABrokenDiskGoesOnWithOtherVolumes(t *testing.T) {
	s, err := cow.Open(t.Context(), "", cow.Options{FileSystem: unreadable{faulty.NewFS(1)}, BootID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	if err := errors.Join(s.Create(ctx, "a", 1<<20), write(s, "a", 0, 4096, 1), s.Create(ctx, "b", 1<<20), write(s, "b", 0, 4096, 1)); err != nil {
		t.Fatal(err)
	}
	r, err := s.NewScrub(cow.ScrubOptions{}).Run(ctx)
	if err != nil || r.OK() || r.Volumes != 1 || len(r.Unread) != 1 || r.Unread[0].Volume != "a" || !strings.Contains(r.Unread[0].Err.Error(), "input/output") {
		t.Fatalf("%+v, %v", r, err)
	}
}

func TestACopyIsWholeOrNotThere(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	toFS := faulty.NewFS(2)
	to := newStore(t, toFS)
	ctx := t.Context()
	if err := errors.Join(s.Create(ctx, "a", 9<<20+512), write(s, "a", 4096, 3<<20, 1), write(s, "a", 9<<20, 512, 2), s.Snapshot(ctx, "a", "a@one"),
		write(s, "a", 0, 9<<20, 3)); err != nil { // the volume goes on
		t.Fatal(err)
	}
	var told int64
	if err := s.Copy(ctx, "a@one", to, "a@one", cow.CopyOptions{Progress: func(n int64) { told = n }}); err != nil {
		t.Fatal(err)
	}
	if want := contents(t, s, "a@one"); !slices.Equal(contents(t, to, "a@one"), want) || len(want) != 9<<20+512 {
		t.Fatal("the copy differs")
	}
	i, err := to.Stat("a@one")
	if err != nil || !i.ReadOnly || i.Parent != "a" || i.Allocated != 3<<20+4096 || told != 3<<20+512 {
		t.Fatalf("%+v, %v, %d bytes told", i, err, told)
	}
	if names := to.List(); len(names) != 1 {
		t.Fatalf("the other store has %+v", names)
	}
	if err := s.Copy(ctx, "a@one", to, "a@one", cow.CopyOptions{}); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Fatalf("again: %v", err)
	}
	// Back, under another name and writable.
	if err := to.Copy(ctx, "a@one", s, "restored", cow.CopyOptions{Writable: true}); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "restored", 0, 4096, 4); err != nil {
		t.Fatal(err)
	}

	// Ended, out of space, and a source that is not there: nothing is left.
	why := errors.New("enough")
	ended, cancel := context.WithCancelCause(ctx)
	if err := s.Copy(ended, "a@one", to, "b", cow.CopyOptions{Progress: func(int64) { cancel(why) }}); !errors.Is(err, why) {
		t.Fatalf("ended: %v", err)
	}
	toFS.Limit(5 << 20)
	if err := s.Copy(ctx, "a@one", to, "b", cow.CopyOptions{}); hotspare.CodeOf(err) != hotspare.CodeDiskFull {
		t.Fatalf("full: %v", err)
	}
	toFS.Limit(0)
	if err := s.Copy(ctx, "c", to, "b", cow.CopyOptions{}); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Fatalf("no such volume: %v", err)
	}
	if names := to.List(); len(names) != 1 {
		t.Fatalf("left behind: %+v", names)
	}
	// What a killed copy left does not stand in the way.
	if err := errors.Join(to.Create(ctx, "b+partial", 4096), write(to, "b+partial", 0, 4096, 9)); err != nil {
		t.Fatal(err)
	}
	if err := s.Copy(ctx, "a@one", to, "b", cow.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(contents(t, to, "b"), contents(t, s, "a@one")) {
		t.Fatal("the copy differs")
	}
	for _, st := range []*cow.Store{s, to} {
		if r, err := st.Check(ctx); err != nil || !r.OK() {
			t.Fatalf("%+v, %v", r, err)
		}
	}
}

func contents(t *testing.T, s *cow.Store, name string) []byte {
	t.Helper()
	d, err := s.OpenVolume(name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// The maps are checked while everything else goes on, and nothing of that looks
// like a fault.
func TestMapsAreCheckedBesideEverythingElse(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	ctx := t.Context()
	for i := range 4 {
		if err := s.Create(ctx, fmt.Sprint("v", i), 8<<20); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	var done atomic.Int64
	for i := range 4 {
		all.Go(func() {
			name, rnd := fmt.Sprint("v", i), rand.New(rand.NewPCG(uint64(i), 1))
			d, err := s.OpenVolume(name)
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				off := rnd.Int64N(8<<20 - 300_000)
				_, err := d.WriteAt(make([]byte, rnd.IntN(300_000)), off)
				switch snap := fmt.Sprintf("%s@%d", name, n); rnd.IntN(10) {
				case 0:
					err = errors.Join(err, d.Discard(off, 200_000))
				case 1:
					err = errors.Join(err, d.Flush())
				case 2:
					err = errors.Join(err, s.Snapshot(ctx, name, snap), s.Delete(ctx, snap))
				}
				if err != nil {
					t.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	nodes := int64(0)
	for checks := 0; checks < 100 || done.Load() < 500; checks++ {
		r, err := s.CheckMaps(ctx)
		if err != nil || !r.OK() || t.Failed() {
			t.Errorf("%+v, %v", r, err)
			break
		}
		nodes += r.Nodes
	}
	close(stop)
	all.Wait()
	if nodes < 1000 {
		t.Errorf("only %d nodes were looked at", nodes)
	}
	if r, err := s.Check(ctx); err != nil || !r.OK() {
		t.Errorf("%+v, %v", r, err)
	}
}
