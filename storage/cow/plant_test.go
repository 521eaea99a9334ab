package cow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

// caught is how a run with a planted bug ends.
type caught struct{ what string }

// hunter is a judge that ends the run instead of the test.
type hunter struct{}

func (hunter) Helper()                      {}
func (hunter) Fatal(args ...any)            { panic(caught{fmt.Sprint(args...)}) }
func (hunter) Fatalf(f string, args ...any) { panic(caught{fmt.Sprintf(f, args...)}) }

// TestPlantedBugsAreCaught runs the model beside stores that each have one bug:
// a check that never fails proves nothing.
func TestPlantedBugsAreCaught(t *testing.T) { // S14
	for name, p := range cow.Plants {
		t.Run(name, func(t *testing.T) {
			if name == cow.PlantOfAStory {
				if err := killAndClone(cow.Options{}.WithPlant(p)); err == nil {
					t.Error("the story did not notice it")
				}
				return
			}
			if name == cow.PlantOfTwoLosses {
				if err := losePowerTwice(cow.Options{}.WithPlant(p)); err == nil {
					t.Error("the story did not notice it")
				}
				return
			}
			if name == cow.PlantOfADataRace && raceDetector {
				t.Skip("the race detector fails this bug's run before the model does")
			}
			if name == cow.PlantOfARace && os.Getenv("HOTSPARE_TEST_FULL") == "" {
				t.Skip("HOTSPARE_TEST_FULL is not set: it takes the model half a minute to meet that race")
			}
			for seed := range uint64(40) {
				if why := hunt(seed, cow.Options{}.WithPlant(p)); why != "" {
					t.Logf("seed %d: %s", seed, why)
					return
				}
			}
			t.Error("no run noticed it")
		})
	}
}

// TestGenerationsSurviveAKill clones a volume whose last pieces are younger than
// the checkpoint that recovery began with.
func TestGenerationsSurviveAKill(t *testing.T) { // S14
	if err := killAndClone(cow.Options{}); err != nil {
		t.Fatal(err)
	}
}

// TestPowerIsLostAgainAfterRecovery loses the power before the checksums that
// were recomputed after the last loss are durable.
func TestPowerIsLostAgainAfterRecovery(t *testing.T) { // S14
	if err := losePowerTwice(cow.Options{}); err != nil {
		t.Fatal(err)
	}
}

func losePowerTwice(o cow.Options) error {
	ctx := context.Background()
	for seed := range uint64(40) {
		fs := faulty.NewFS(seed)
		var s *cow.Store
		open := func(boot string) (err error) {
			o.FileSystem, o.BootID = fs.Process(), boot
			s, err = cow.Open(ctx, "", o)
			return err
		}
		lose := func() {
			fs.PowerLoss()
			s.Close()
		}
		if err := open("1"); err != nil {
			return err
		}
		if err := errors.Join(s.Create(ctx, "a", 1<<20), write(s, "a", 0, 1<<20, 1), s.Close(), open("1"),
			write(s, "a", 0, 1<<20, 2), flush(s, "a")); err != nil { // the data is durable, its checksums are not
			return err
		}
		lose()
		if err := open("2"); err != nil {
			return err
		}
		if r, err := s.Check(ctx); err != nil || !r.OK() {
			return fmt.Errorf("after the first loss: %+v, %w", r, err)
		}
		lose()
		if err := open("3"); err != nil {
			return err
		}
		r, err := s.Check(ctx)
		s.Close()
		if err != nil || !r.OK() {
			return fmt.Errorf("after the second loss: %+v, %w", r, err)
		}
	}
	return nil
}

func killAndClone(o cow.Options) error {
	ctx := context.Background()
	fs := faulty.NewFS(1)
	open := func() (*cow.Store, error) {
		o.FileSystem, o.BootID = fs.Process(), "x"
		return cow.Open(ctx, "", o)
	}
	s, err := open()
	if err != nil {
		return err
	}
	if err := s.Create(ctx, "a", 1<<20); err != nil {
		return err
	}
	for range 5 { // each raises the generation
		if _, err := s.Check(ctx); err != nil {
			return err
		}
	}
	if err := write(s, "a", 0, 65536, 1); err != nil {
		return err
	}
	fs.Kill()
	s.Close()
	if s, err = open(); err != nil {
		return err
	}
	defer s.Close()
	if err := errors.Join(s.Clone(ctx, "a", "b"), write(s, "b", 0, 65536, 2)); err != nil {
		return err
	}
	d, err := s.OpenVolume("a")
	if err != nil {
		return err
	}
	defer d.Close()
	got, want := make([]byte, 65536), make([]byte, 65536)
	if _, err := d.ReadAt(got, 0); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 0))
	for i := range want {
		want[i] = byte(r.Uint32() | 1)
	}
	if !bytes.Equal(got, want) {
		return errors.New("the clone's write shows in the origin")
	}
	return nil
}

// hunt runs the model and says what it noticed, "" for nothing.
func hunt(seed uint64, o cow.Options) (why string) {
	m := &model{}
	defer func() {
		if x := recover(); x != nil {
			why = fmt.Sprintf("%.200v", x)
		}
		if m.store != nil {
			m.fs.Kill()
			m.store.Close()
		}
	}()
	m.init(hunter{}, seed, o)
	m.seldom = 1
	for range 4000 {
		m.step()
	}
	m.verifyAll()
	return ""
}
