package main

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/haengine/agentlink"
)

// console writes lines to the node's screen or serial line. It never blocks its
// callers: a line that the console does not take in time is dropped.
type console struct {
	f       *os.File
	lines   chan string
	dropped atomic.Int64

	mu    sync.Mutex
	marks []agentlink.Mark
	fresh bool // a mark was added since freshMarks gave them
}

// newConsole opens /dev/console, or standard output where there is none.
func newConsole() *console {
	f, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		f = os.Stdout
	}
	c := &console{f: f, lines: make(chan string, 256)}
	go func() {
		for line := range c.lines {
			_, _ = f.WriteString(line)
		}
	}()
	return c
}

// say writes one line with the time since the kernel started.
func (c *console) say(format string, args ...any) {
	up := bootTime().Milliseconds()
	text := fmt.Sprintf("hotspare [%3d.%03d] %s\r\n", up/1000, up%1000, fmt.Sprintf(format, args...))
	select {
	case c.lines <- text:
	default:
		c.dropped.Add(1)
	}
}

// flush waits until the lines are out, but not for long.
func (c *console) flush(limit time.Duration) {
	for end := time.Now().Add(limit); len(c.lines) > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond) // the last moment before a reset: no event is worth its code here
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_ = unix.IoctlSetInt(int(c.f.Fd()), unix.TCSBRK, 1) // tcdrain(3): the serial line is slow
	}()
	select {
	case <-drained:
	case <-time.After(limit):
	}
}

// mark writes a line that tells when a phase of the boot was reached:
// "mark PHASE MILLISECONDS", since the kernel started.
func (c *console) mark(phase string) {
	up := bootTime().Milliseconds()
	c.say("mark %s %d", phase, up)
	c.remember(phase, up)
}

// remember keeps a mark for the appliance.
func (c *console) remember(phase string, up int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.marks) < agentlink.MaxMarks {
		c.marks = append(c.marks, agentlink.Mark{Name: phase, UpMillis: up})
		c.fresh = true
	}
}

// allMarks makes the next freshMarks give all of them: a new link has heard none.
func (c *console) allMarks() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh = true
}

// freshMarks gives the marks of this boot so far, if there is one that it has not
// given yet.
func (c *console) freshMarks() []agentlink.Mark {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fresh {
		return nil
	}
	c.fresh = false
	return slices.Clone(c.marks)
}

// logger gives a slog.Logger that writes to the console.
func (c *console) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(lineWriter{c}, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && (a.Key == slog.TimeKey || (a.Key == slog.LevelKey && a.Value.String() == "INFO")) {
				return slog.Attr{}
			}
			return a
		},
	}))
}

type lineWriter struct{ c *console }

func (w lineWriter) Write(b []byte) (int, error) {
	w.c.say("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}
