package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const signalsVariable = "HOTSPARE_AGENT_TEST_SIGNALS"

// The agent is not ended by signals, and the commands that it starts are: what a
// process ignores, its children would ignore as well, and a service whose program
// has no handler of its own would be stopped by force alone.
func TestSignalsEndTheCommandsAndNotTheAgent(t *testing.T) {
	if os.Getenv(signalsVariable) != "" {
		ignoreSignals()
		signals := []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE}
		for _, s := range signals {
			if err := unix.Kill(os.Getpid(), s); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("sh", "-c", "kill -TERM $$; echo it goes on").CombinedOutput()
		if err == nil || len(out) > 0 {
			t.Fatalf("a command that got SIGTERM: %v, %q", err, out)
		}
		status, err := exec.Command("cat", "/proc/self/status").Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			what, mask, _ := strings.Cut(strings.TrimSpace(line), ":\t")
			if what != "SigIgn" && what != "SigBlk" {
				continue
			}
			set, err := strconv.ParseUint(mask, 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range signals { // others are as whoever started the test has them
				if set&(1<<(uint(s)-1)) != 0 {
					t.Errorf("a command begins with %s in %s", s, what)
				}
			}
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), signalsVariable+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}
