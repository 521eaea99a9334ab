package sim

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hotspare/haengine"
)

var (
	seed  = flag.Uint64("sim.seed", 0, "run this seed alone and print its trace")
	seeds = flag.Int("sim.seeds", 0, "number of seeds of TestManySeeds; 0: 700, with HOTSPARE_TEST_FULL 4000")
	from  = flag.Uint64("sim.from", 1, "first seed of TestManySeeds")
)

// many runs seeds on every core and gives what they showed together; more says
// whether to go on.
func many(first uint64, n int, cfg Config, more func(Result) bool) (all Result, runs int) {
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		next = first
		stop bool
	)
	all.Counts = map[string]int{}
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				mu.Lock()
				c := cfg
				c.Seed = next
				next++
				if stop || c.Seed >= first+uint64(n) {
					mu.Unlock()
					return
				}
				mu.Unlock()
				r := Run(c)
				mu.Lock()
				runs++
				all.Events += r.Events
				all.Violations = append(all.Violations, r.Violations...)
				for k, v := range r.Counts {
					all.Counts[k] += v
				}
				stop = stop || !more(r)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return all, runs
}

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

// TestManySeeds proves S1, S2, S4, S5, S7, S9, S12, S13, L1 and L3 over random
// faults, and that the runs exercised what they are for.
func TestManySeeds(t *testing.T) {
	begin, n := time.Now(), *seeds
	switch {
	case n > 0:
	case os.Getenv("HOTSPARE_TEST_FULL") != "":
		n = 4000
	default:
		n = 700
	}
	bad := 0
	all, runs := many(*from, n, Config{}, func(r Result) bool { bad += len(r.Violations); return bad < 10 })
	for _, v := range all.Violations {
		t.Error(v + " (see it with -run OneSeed -sim.seed N)")
	}
	t.Logf("%d seeds, %d events in %s", runs, all.Events, time.Since(begin).Round(time.Millisecond))
	for _, k := range slices.Sorted(maps.Keys(all.Counts)) {
		t.Logf("%7d %s", all.Counts[k], k)
	}
	if bad > 0 || runs < 500 {
		return // too few to say what they exercise
	}
	// A run that exercised too little proves nothing: per 100 seeds at least.
	least := map[string]int{
		"failover failure": 150, "failover operator": 10, "running": 300, "claim": 300,
		"evidence power": 150, "evidence storage+drop": 30, "evidence identity": 5, "evidence release": 5,
		"evidence void": 2, "phase blocked": 10, "phase down": 10, "hold S9": 3, "hold S6": 2, "hold S11": 1,
		"park": 100, "preload": 50, "kexec": 15, "install": 10, "claim standby-switch": 20, "claim standby-kexec": 10, "claim ram": 5,
		"claim slot": 1, "served without an agent": 8, "late boot": 10, "late claim": 3, "boot with a local copy": 3, "disable copies": 1,
		"appliance crash": 30, "agent drop": 30, "lying bmc believed": 2, "flaky action": 10, "orderly release": 5,
	}
	for _, f := range faults() {
		least["fault "+f.name] = 8
	}
	for k, n := range least {
		if got := all.Counts[k]; got*100 < n*runs {
			t.Errorf("%d of %q in %d seeds: fewer than %d per 100 exercise too little", got, k, runs, n)
		}
	}
}

// TestSameSeedSameRun: a failing seed can be looked at as often as one likes.
func TestSameSeedSameRun(t *testing.T) {
	for s := range uint64(20) {
		a, b := Run(Config{Seed: s + 1}), Run(Config{Seed: s + 1})
		if x, y := strings.Join(a.Trace, "\n"), strings.Join(b.Trace, "\n"); x != y {
			t.Fatalf("seed %d ran differently: %s", s+1, firstDifference(x, y))
		}
	}
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("%q and %q", x[i], y[i])
		}
	}
	return "one is longer"
}

// TestPlantedBugs switches one rule off at a time: the checks must notice each.
func TestPlantedBugs(t *testing.T) {
	for _, c := range []struct {
		bug  haengine.Bug
		rule string   // the promise that is seen to be broken
		only []string // faults that meet the rule often; none: all
	}{
		{haengine.BugTimeoutIsOff, "S1", []string{"path cut, bmc dead", "service hang, bmc dead", "acks lost"}},
		{haengine.BugEpochIgnored, "S2", []string{"probe path broken, service hangs, bmc dead"}},
		{haengine.BugLeaseIgnored, "S1", []string{"path cut, bmc dead", "link cut, bmc dead", "service hang, bmc dead"}},
		{haengine.BugOneChannel, "S7", nil},
		{haengine.BugProofsStay, "S1", []string{"bmc lies, answers lost, service hangs, probe path broken"}},
		{haengine.BugSilenceIgnored, "S1", []string{"bmc lies, answers lost, service hangs, probe path broken"}},
		{haengine.BugFreezeIgnored, "S9", nil},
		{haengine.BugOwnerIgnored, "S12", nil},
		{haengine.BugFailuresStay, "S7", []string{"service restarts in place", "probe path broken"}},
		{haengine.BugNoTurn, "S7", []string{"service restarts in place"}},
		{haengine.BugStaleParked, "S12", []string{"parked node loses power", "parked node reboots", "switchover"}},
		{haengine.BugStorageForLocal, "S2", []string{"path cut, bmc dead", "link cut, bmc dead"}},
		{haengine.BugPreloadAttaches, "S8", []string{"service restarts in place", "acks lost"}},
		{haengine.BugLateJoin, "S2", []string{"everything on its way is late", "one node is late"}},
		{haengine.BugReleaseTrusted, "S1", []string{"release without log-out, then silence, bmc dead, probe path broken"}},
	} {
		t.Run(string(c.bug), func(t *testing.T) {
			cfg := Config{Rules: haengine.Sabotage(t, c.bug), Only: c.only}
			if c.bug == haengine.BugLateJoin {
				cfg.Nodes, cfg.Apps = 1, 1 // a node that failed is soon chosen anew
			}
			caught := false
			all, runs := many(1, 400, cfg, func(r Result) bool {
				for _, v := range r.Violations {
					caught = caught || strings.Contains(v, ": "+c.rule+":")
				}
				return !caught
			})
			if !caught {
				t.Fatalf("nobody noticed in %d seeds; other violations: %v", runs, all.Violations)
			}
			t.Logf("noticed within %d seeds: %s", runs, all.Violations[len(all.Violations)-1])
			honest := cfg
			honest.Rules = haengine.Rules{}
			if all, runs := many(1, runs, honest, func(Result) bool { return true }); len(all.Violations) > 0 {
				t.Errorf("with all rules on the same %d seeds fail, too: %v", runs, all.Violations)
			}
		})
	}
}

// TestAnAgentThatNamesWhatItReleased plants a bug in the simulated agent: it goes
// on naming an application in its heartbeats that it released in order. Its word
// then speaks against its own attestation; with nothing but switchovers no other
// run has a void proof, and this one is not silently believed.
func TestAnAgentThatNamesWhatItReleased(t *testing.T) {
	for _, babbles := range []bool{false, true} {
		all, runs := many(1, 40, Config{Only: []string{"switchover"}, babbles: babbles}, func(Result) bool { return true })
		for _, v := range all.Violations {
			t.Error(v)
		}
		void, released := all.Counts["evidence void"], all.Counts["orderly release"]
		t.Logf("babbles %v: %d runs, %d releases in order, %d proofs void", babbles, runs, released, void)
		if released < runs || (void > 0) != babbles {
			t.Errorf("babbles %v: %d releases in order, %d proofs void", babbles, released, void)
		}
	}
}
