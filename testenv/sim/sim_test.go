package sim

import (
	"flag"
	"strings"
	"testing"
)

var (
	seed  = flag.Uint64("sim.seed", 0, "run this seed alone and print its trace")
	seeds = flag.Int("sim.seeds", 500, "number of seeds of TestManySeeds")
)

// TestOneSeed prints the trace of the seed given by -sim.seed.
func TestOneSeed(t *testing.T) {
	n := *seed
	if n == 0 {
		n = 1
	}
	r := Run(Config{Seed: n})
	if *seed != 0 || len(r.Violations) > 0 {
		t.Log("\n" + strings.Join(r.Trace, "\n"))
	}
	for _, v := range r.Violations {
		t.Error(v)
	}
}

func TestManySeeds(t *testing.T) {
	bad := 0
	for i := range *seeds {
		r := Run(Config{Seed: uint64(i + 1)})
		for _, v := range r.Violations {
			t.Error(v)
			bad++
		}
		if bad > 30 {
			t.FailNow()
		}
	}
}
