package fence

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestDropGoesThroughItsStepsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var done []string
		step := func(name string, err error) Step {
			return Step{Name: name, Do: func() error {
				mu.Lock()
				defer mu.Unlock()
				done = append(done, name)
				return err
			}}
		}
		d := NewDropper(3*time.Second, step("address", errors.New("netlink")), step("gate", nil), step("kill", nil), step("tell", nil))
		var wg sync.WaitGroup
		for range 3 { // lease, storage and an order may all end at once
			wg.Go(func() { d.Drop() })
		}
		wg.Wait()
		if want := []string{"address", "gate", "kill", "tell"}; !slices.Equal(done, want) {
			t.Errorf("done %v, want %v, once", done, want)
		}
		if out := d.Drop(); len(out) != 4 || out[0].Err == nil || out[1].Err != nil {
			t.Errorf("outcomes %+v", out)
		}
	})
}

// A step that hangs on a dead volume is left behind; what follows it happens
// within the bound.
func TestDropIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		unhang := make(chan struct{})
		hang := func() error { <-unhang; return nil }
		killed := time.Duration(0)
		d := NewDropper(3*time.Second,
			Step{Name: "address", Do: hang}, Step{Name: "gate", Do: hang},
			Step{Name: "kill", Do: func() error { killed = time.Since(start); return nil }},
			Step{Name: "witness", Do: hang}, Step{Name: "tell", Do: hang})
		out := d.Drop()
		if took := time.Since(start); took >= 3*time.Second {
			t.Errorf("the drop took %s of a bound of 3 s: nothing is left for the reset", took)
		}
		if killed == 0 || killed > 1500*time.Millisecond {
			t.Errorf("the group was killed after %s", killed)
		}
		if !out[0].Hung || out[2].Hung || !out[4].Hung {
			t.Errorf("outcomes %+v", out)
		}
		close(unhang)
	})
}

// guardAt feeds a guard and says when it reset, if it did.
func guardAt(t *testing.T, feed func(tell func(time.Duration), now func() time.Duration, close func())) (at time.Duration, reset bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		now := clock()
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			guard(r, now, func() { at, reset = now(), true })
		}()
		tell := func(d time.Duration) {
			var b [8]byte
			binary.BigEndian.PutUint64(b[:], uint64(d))
			_, _ = w.Write(b[:])
		}
		feed(tell, now, func() { _ = w.Close() })
		<-done
		_ = r.Close()
	})
	return at, reset
}

func TestGuardResetsWhatTheAgentCannot(t *testing.T) {
	const s = time.Second
	at, reset := guardAt(t, func(tell func(time.Duration), now func() time.Duration, _ func()) {
		for range 10 {
			tell(now() + 18*s)
			time.Sleep(s)
		}
		// From here on the agent hangs.
	})
	if !reset || at != 9*s+18*s {
		t.Errorf("a hanging agent: reset %v at %s, want 27 s", reset, at)
	}
	at, reset = guardAt(t, func(tell func(time.Duration), now func() time.Duration, stop func()) {
		tell(now() + 18*s)
		time.Sleep(5 * s)
		stop()
	})
	if !reset || at != 5*s {
		t.Errorf("an agent that died: reset %v at %s, want 5 s", reset, at)
	}
	_, reset = guardAt(t, func(tell func(time.Duration), now func() time.Duration, stop func()) {
		tell(now() + 18*s)
		time.Sleep(5 * s)
		tell(time.Duration(never)) // released
		time.Sleep(100 * s)
		stop()
	})
	if reset {
		t.Error("the guard reset a node that had released its application")
	}
	_, reset = guardAt(t, func(_ func(time.Duration), _ func() time.Duration, stop func()) {
		time.Sleep(100 * s)
		stop()
	})
	if reset {
		t.Error("the guard reset a parked node")
	}
}

// The agent goes on when the guard does not read.
func TestGuardThatIsStoppedDoesNotStopTheAgent(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(ends[0]), unix.Close(ends[1]) }()
	if err := unix.SetNonblock(ends[1], true); err != nil {
		t.Fatal(err)
	}
	g := &Guard{pipe: ends[1]}
	for range 100000 {
		if err := g.Arm(time.Hour); err != nil {
			return // the pipe is full, and the agent is told at once
		}
	}
	t.Error("the pipe never filled")
}

const pinVar = "HOTSPARE_FENCE_TEST_PIN"

// SAFETY S2b: every page of the executable is locked. Run in a process of its
// own: what is pinned stays so.
func TestPinLocksTheExecutable(t *testing.T) {
	if os.Getenv(pinVar) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPinLocksTheExecutable$")
		cmd.Env = append(os.Environ(), pinVar+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := lockMemory(); err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	var size, resident, name string
	checked := 0
	for line := range strings.Lines(string(smaps)) {
		fields := strings.Fields(line)
		switch {
		case !strings.HasSuffix(fields[0], ":"):
			name = ""
			if len(fields) > 5 {
				name = fields[5]
			}
		case fields[0] == "Size:":
			size = fields[1]
		case fields[0] == "Rss:":
			resident = fields[1]
		case fields[0] == "VmFlags:" && strings.HasPrefix(name, "/"):
			checked++
			if resident != size || !slices.Contains(fields, "lo") {
				t.Errorf("%s: %s of %s KiB are in memory, flags %v", name, resident, size, fields[1:])
			}
		}
	}
	if checked == 0 {
		t.Error("no mapping of the executable was seen")
	}
}
