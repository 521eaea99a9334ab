package fence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// GuardArg0 is the guard's argv[0]; see pid1.AgentArg0 for the '@'.
const GuardArg0 = "@hotspare-guard"

// The guard's descriptors: deadlines come in on the first, the second is
// /proc/sysrq-trigger.
const (
	guardPipeFD  = 3
	guardSysrqFD = 4
)

const sysrqTrigger = "/proc/sysrq-trigger"

// never disarms the guard.
const never = uint64(1<<63 - 1)

// Guard is the agent's handle of the guard process. The agent tells it the
// moment (CLOCK_BOOTTIME) at which the machine must be reset unless it hears
// otherwise; the end of the pipe, which is the agent's death, counts as that
// moment while the guard is armed.
type Guard struct {
	pipe  int
	sysrq *os.File
}

// StartGuard starts exe as the guard and opens sysrq for the agent itself.
func StartGuard(exe string) (*Guard, error) {
	sysrq, err := os.OpenFile(sysrqTrigger, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, errors.Join(err, sysrq.Close())
	}
	r, w := os.NewFile(uintptr(ends[0]), "guard"), ends[1]
	defer r.Close()
	_ = unix.SetNonblock(w, true) // a guard that was stopped must not stop the agent
	cmd := &exec.Cmd{Path: exe, Args: []string{GuardArg0}, Env: []string{}, ExtraFiles: []*os.File{r, sysrq}}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the guard: %w", err), unix.Close(w), sysrq.Close())
	}
	go func() { _ = cmd.Wait() }()
	return &Guard{pipe: w, sysrq: sysrq}, nil
}

// Arm sets the moment of the reset.
func (g *Guard) Arm(at time.Duration) error { return g.tell(uint64(at)) }

// Disarm makes the guard wait for nothing.
func (g *Guard) Disarm() error { return g.tell(never) }

func (g *Guard) tell(at uint64) error {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], at)
	_, err := unix.Write(g.pipe, b[:])
	return err
}

// Reset resets the machine at once, without syncing: what was not flushed was
// not acknowledged.
func (g *Guard) Reset() error {
	_, err := g.sysrq.Write([]byte("b"))
	return err
}

// RunGuard is the guard process. now is CLOCK_BOOTTIME. It returns only when it
// was not armed at the agent's end.
func RunGuard(now func() time.Duration) error {
	if err := Pin(); err != nil {
		fmt.Fprintln(os.Stderr, "hotspare-guard:", err)
	}
	sysrq := os.NewFile(guardSysrqFD, sysrqTrigger)
	reset := func() {
		_, _ = sysrq.Write([]byte("b"))
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
	guard(os.NewFile(guardPipeFD, "guard"), now, reset)
	return nil
}

// guard reads deadlines from r and calls reset when one has passed, or when r
// ends while one is set.
func guard(r io.Reader, now func() time.Duration, reset func()) {
	words := make(chan uint64)
	go func() {
		defer close(words)
		var b [8]byte
		for {
			if _, err := io.ReadFull(r, b[:]); err != nil {
				return
			}
			words <- binary.BigEndian.Uint64(b[:])
		}
	}()
	at := never
	for {
		var timer <-chan time.Time
		if at != never {
			left := time.Duration(at) - now()
			if left <= 0 {
				reset()
				return
			}
			timer = time.After(min(left, time.Second))
		}
		select {
		case word, ok := <-words:
			if !ok {
				if at != never {
					reset()
				}
				return
			}
			at = word
		case <-timer:
		}
	}
}
