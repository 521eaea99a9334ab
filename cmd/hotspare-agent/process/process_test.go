package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 20 * time.Second

// runner makes a runner with a control group of the test's own.
func runner(t *testing.T) (*Runner, *sync.Map) {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		root = filepath.Join(t.TempDir(), "cgroup") // a host with version 1 of control groups
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(root, 0) })
	}
	said := &sync.Map{}
	group := filepath.Join(root, fmt.Sprintf("hotspare-test-%d-%s", os.Getpid(), t.Name()))
	r, err := New(Options{Group: group, Logs: t.TempDir(), Words: func(name, line string) { said.Store(name+": "+line, true) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0)
		_ = awaitEmpty(context.Background(), group)
		entries, _ := os.ReadDir(group)
		for _, e := range entries {
			_ = os.Remove(filepath.Join(group, e.Name()))
		}
		_ = os.Remove(group)
	})
	return r, said
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func TestCommandsRunToTheirEnd(t *testing.T) {
	r, said := runner(t)
	if err := r.Run(t.Context(), "good", []string{"/bin/sh", "-c", "echo hello"}); err != nil {
		t.Error(err)
	}
	if _, ok := said.Load("good: hello"); !ok {
		t.Error("what the command said was not passed on")
	}
	err := r.Run(t.Context(), "bad", []string{"/bin/sh", "-c", "echo no such table >&2; exit 3"})
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such table") {
		t.Errorf("%v", err)
	}
	for _, argv := range [][]string{nil, {"sh"}, {"/nowhere"}} {
		if err := r.Run(t.Context(), "x", argv); err == nil {
			t.Errorf("%q ran", argv)
		}
	}
	if err := r.Run(t.Context(), "../x", []string{"/bin/true"}); err == nil {
		t.Error("a name that leaves the group was taken")
	}
}

func TestAProcessIsFollowedAndStopped(t *testing.T) {
	r, said := runner(t)
	if running, why := r.State("web"); running || why == "" {
		t.Errorf("before: %v, %q", running, why)
	}
	// It has a child of its own that ignores the signal.
	script := `trap 'echo stopping; exit 0' TERM; sh -c 'trap "" TERM; while :; do sleep 1; done' & echo up; while :; do sleep 0.1; done`
	if err := r.Launch(t.Context(), "web", []string{"/bin/sh", "-c", script}); err != nil {
		t.Fatal(err)
	}
	until(t, "it is up", func() bool { _, ok := said.Load("web: up"); return ok })
	if running, why := r.State("web"); !running {
		t.Errorf("while it runs: %q", why)
	}
	if err := r.Launch(t.Context(), "web", []string{"/bin/true"}); err == nil {
		t.Error("a second one of the same name was started")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.Stop(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	if _, ok := said.Load("web: stopping"); !ok {
		t.Error("it was not asked to end")
	}
	left, err := os.ReadFile(filepath.Join(r.opt.Group, "web", "cgroup.procs"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	if err := r.Stop(ctx, "web"); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
	if err := r.Launch(t.Context(), "web", []string{"/bin/sh", "-c", "echo again; exit 7"}); err != nil {
		t.Fatal(err)
	}
	until(t, "it has ended", func() bool { running, _ := r.State("web"); return !running })
	if _, why := r.State("web"); !strings.Contains(why, "exit status 7") || !strings.Contains(why, "again") {
		t.Errorf("why: %q", why)
	}
}

// SAFETY S2, the drop: one write to a descriptor that is open already kills all.
func TestTheKillSwitchKillsAll(t *testing.T) {
	r, _ := runner(t)
	kill, err := r.KillSwitch()
	if err != nil {
		t.Fatal(err)
	}
	defer kill.Close()
	for i := range 3 {
		if err := r.Launch(t.Context(), fmt.Sprintf("p%d", i), []string{"/bin/sh", "-c", `trap "" TERM; sleep 1000 & sleep 1000`}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := kill.Write([]byte("1")); err != nil {
		t.Fatal(err)
	}
	until(t, "all have ended", func() bool {
		for i := range 3 {
			if running, _ := r.State(fmt.Sprintf("p%d", i)); running {
				return false
			}
		}
		return true
	})
	if err := awaitEmpty(t.Context(), r.opt.Group); err != nil {
		t.Error(err)
	}
}

func TestACommandThatTakesTooLongIsKilled(t *testing.T) {
	r, _ := runner(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := r.Run(ctx, "slow", []string{"/bin/sleep", "1000"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if running, _ := r.State("slow"); running {
		t.Error("it runs still")
	}
}

func TestLogsStayWithinBounds(t *testing.T) {
	l := newLog(filepath.Join(t.TempDir(), "x.log"), "x", nil)
	line := strings.Repeat("y", 1023) + "\n"
	for range 5000 {
		if _, err := l.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if tail := l.tail(); len(tail) > maxTail+2 || !strings.HasSuffix(tail, "yyy") {
		t.Errorf("tail of %d bytes", len(tail))
	}
	l.close()
	for _, name := range []string{l.path, l.path + ".old"} {
		if st, err := os.Stat(name); err != nil || st.Size() > maxLog {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}
