package initiator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// guestLine is a line from the guest: see testguest.
type guestLine struct {
	Answer, Event, Name, Error, Code string
	Millis                           int64
	Values                           map[string]string
}

// vm is a running guest.
type vm struct {
	t       *testing.T
	in      io.Writer
	console string

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every line
	lines   []guestLine
	dead    error
	next    int
}

// bootVM starts the guest and waits until it obeys.
func bootVM(t *testing.T) *vm {
	t.Helper()
	kernel := guestKernel(t)
	images, _ := filepath.Glob(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if len(images) != 1 {
		t.Fatalf("%d kernels in %s", len(images), kernel)
	}
	v := &vm{t: t, console: filepath.Join(t.TempDir(), "console.log"), changed: make(chan struct{})}
	q := exec.Command("qemu-system-x86_64",
		"-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,-svm,-vmx", "-m", "384", "-smp", "1",
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", images[0], "-initrd", guestInitramfs(t, kernel),
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1",
		"-netdev", "user,id=n,restrict=off,ipv6=off", "-device", "virtio-net-pci,netdev=n,romfile=",
		"-serial", "file:"+v.console, "-serial", "stdio")
	q.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := q.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := q.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	q.Stderr = &stderr
	if err := q.Start(); err != nil {
		t.Fatalf("QEMU does not start (package qemu-system-x86): %v", err)
	}
	v.in = in
	read := make(chan struct{})
	go func() { defer close(read); v.read(out) }()
	t.Cleanup(func() {
		_ = q.Process.Kill()
		<-read
		_ = q.Wait()
		if t.Failed() || os.Getenv("HOTSPARE_TEST_CONSOLE") != "" {
			log, _ := os.ReadFile(v.console)
			t.Logf("QEMU: %s\nconsole of the guest:\n%s", stderr.String(), log)
		}
	})
	v.event("ready", "", 90*time.Second)
	return v
}

// read collects the guest's lines.
func (v *vm) read(r io.Reader) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		var l guestLine
		if json.Unmarshal(bytes.TrimSpace(s.Bytes()), &l) == nil {
			v.note(func() { v.lines = append(v.lines, l) })
		}
	}
	v.note(func() { v.dead = fmt.Errorf("the guest ended: %w", io.ErrUnexpectedEOF) })
}

func (v *vm) note(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
	close(v.changed)
	v.changed = make(chan struct{})
}

// wait gives the first line that fits and takes it out of the list.
func (v *vm) wait(within time.Duration, what string, fits func(guestLine) bool) guestLine {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		v.mu.Lock()
		for n, l := range v.lines {
			if fits(l) {
				v.lines = append(v.lines[:n], v.lines[n+1:]...)
				v.mu.Unlock()
				return l
			}
		}
		changed, dead, seen := v.changed, v.dead, fmt.Sprint(v.lines)
		v.mu.Unlock()
		if dead != nil {
			v.t.Fatalf("waiting for %s: %v", what, dead)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			v.t.Fatalf("no %s within %s; lines of the guest: %s", what, within, seen)
		}
	}
}

// event waits for an event of a session.
func (v *vm) event(kind, name string, within time.Duration) guestLine {
	v.t.Helper()
	return v.wait(within, kind+" of "+name, func(l guestLine) bool { return l.Event == kind && l.Name == name })
}

// idle fails when an order was answered already.
func (v *vm) idle(id string) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, l := range v.lines {
		if l.Answer == id {
			v.t.Fatalf("%s was answered already: %+v", id, l)
		}
	}
}

// forget drops the lines that nobody waited for.
func (v *vm) forget() { v.note(func() { v.lines = nil }) }

// order is one command to the guest; see testguest.
type order map[string]any

// send gives an order and returns the id of its answer.
func (v *vm) send(o order) string {
	v.t.Helper()
	v.next++
	id := fmt.Sprint("order ", v.next, " ", o["op"])
	o["id"] = id
	b, err := json.Marshal(o)
	if err != nil {
		v.t.Fatal(err)
	}
	if _, err := v.in.Write(append(b, '\n')); err != nil {
		v.t.Fatalf("the guest takes no orders: %v", err)
	}
	return id
}

// answer waits for the answer to an order.
func (v *vm) answer(id string, within time.Duration) guestLine {
	v.t.Helper()
	return v.wait(within, "answer to "+id, func(l guestLine) bool { return l.Answer == id })
}

// do gives an order that must succeed.
func (v *vm) do(o order, within time.Duration) guestLine {
	v.t.Helper()
	l := v.answer(v.send(o), within)
	if l.Error != "" {
		v.t.Fatalf("%v: %s", o, l.Error)
	}
	return l
}
