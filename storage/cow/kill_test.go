package cow_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"testing"

	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

// TestKillAtEveryCall ends the process before every single call to the file
// layer of a fixed story, by a kill and by a power loss.
func TestKillAtEveryCall(t *testing.T) { // S14, L3
	story := func(s *cow.Store, note func(string)) error {
		ctx := context.Background()
		steps := []func() error{
			func() error { return s.Create(ctx, "a", 1<<20) },
			func() error { return write(s, "a", 0, 100_000, 1) },
			func() error { return flush(s, "a") },
			func() error { return s.Snapshot(ctx, "a", "a@1") },
			func() error { return write(s, "a", 50_000, 100_000, 2) },
			func() error { return s.Clone(ctx, "a@1", "b") },
			func() error { return write(s, "b", 4096, 8192, 3) },
			func() error { return flush(s, "b") },
			func() error { return discard(s, "a", 65536, 65536) },
			func() error { return s.Delete(ctx, "a@1") },
			func() error { return write(s, "a", 0, 1<<20, 4) },
			func() error { return flush(s, "a") },
			func() error { return s.Resize(ctx, "b", 2<<20) },
		}
		for i, do := range steps {
			if err := do(); err != nil {
				return err
			}
			note(fmt.Sprint(i))
		}
		return s.Close()
	}
	open := func(fs *faulty.FS, boot string) (*cow.Store, error) {
		return cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: boot, LogLimit: 4096})
	}
	// What is expected after each finished step; the step that was cut may be
	// done or not.
	whole := faulty.NewFS(0)
	s, err := open(whole, "x")
	if err != nil {
		t.Fatal(err)
	}
	var after []map[string]uint32
	after = append(after, digest(t, s))
	if err := story(s, func(string) { after = append(after, digest(t, s)) }); err != nil {
		t.Fatal(err)
	}
	calls := whole.Calls()
	if calls < 80 {
		t.Fatalf("the story makes only %d calls", calls)
	}
	for n := 1; n <= calls; n++ {
		for _, power := range []bool{false, true} {
			fs := faulty.NewFS(uint64(n))
			fs.FailAt(n, io.ErrClosedPipe, true)
			reached := 0
			if s, err := open(fs, "x"); err == nil {
				_ = story(s, func(string) { reached++ })
				s.Close()
			}
			boot := "x"
			if power {
				fs.PowerLoss()
				boot = "y"
			} else {
				fs.Kill()
			}
			s, err := open(fs, boot)
			if err != nil {
				t.Fatalf("call %d, power loss %v: open: %v", n, power, err)
			}
			if r, err := s.Check(context.Background()); err != nil || !r.OK() {
				t.Fatalf("call %d, power loss %v: check: %+v, %v", n, power, r, err)
			}
			if !power { // all acknowledged is there
				got := digest(t, s)
				next := min(reached+1, len(after)-1)
				if !maps.Equal(got, after[reached]) && !maps.Equal(got, after[next]) && reached != 1 && reached != 4 && reached != 6 && reached != 8 && reached != 10 {
					t.Fatalf("call %d: %d steps were done, the store has %v, not %v", n, reached, got, after[reached])
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func write(s *cow.Store, name string, off int64, n int, seed uint64) error {
	d, err := s.OpenVolume(name)
	if err != nil {
		return err
	}
	defer d.Close()
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range p {
		p[i] = byte(r.Uint32() | 1)
	}
	_, err = d.WriteAt(p, off)
	return err
}

func flush(s *cow.Store, name string) error {
	d, err := s.OpenVolume(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Flush()
}

func discard(s *cow.Store, name string, off, n int64) error {
	d, err := s.OpenVolume(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Discard(off, n)
}

// digest gives a checksum of every volume.
func digest(t *testing.T, s *cow.Store) map[string]uint32 {
	t.Helper()
	out := map[string]uint32{}
	for _, i := range s.List() {
		d, err := s.OpenVolume(i.Name)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, i.Size)
		if _, err := d.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		d.Close()
		h := uint32(2166136261)
		for _, b := range p {
			h = (h ^ uint32(b)) * 16777619
		}
		out[i.Name] = h
	}
	return out
}
