// Command testguest is /init of the virtual machine in which the tests of
// package initiator meet a real kernel. It loads the modules of its initramfs,
// sets the address that QEMU's user network expects, and obeys commands: one
// JSON document a line on the second serial port, one answer a line, and lines
// of events in between. It is no part of the product.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// port is the serial port of commands and answers.
const port = "/dev/ttyS1"

func main() {
	debug.SetMemoryLimit(64 << 20)
	time.Local = time.UTC
	if err := boot(); err != nil {
		fmt.Println("testguest:", err)
		powerOff()
	}
	tty, err := openPort()
	if err != nil {
		fmt.Println("testguest:", err)
		powerOff()
	}
	g := &guest{out: tty, sessions: make(map[string]*sessionState)}
	g.say(line{Event: "ready", Millis: uptimeMillis()})
	in := bufio.NewScanner(tty)
	for in.Scan() {
		text := strings.TrimSpace(in.Text())
		if text == "" {
			continue
		}
		var c command
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			g.say(line{Answer: "error", Error: err.Error()})
			continue
		}
		if c.Op == "off" {
			break
		}
		g.obey(c)
	}
	powerOff()
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// line is one answer or event.
type line struct {
	Answer string            `json:"answer,omitempty"` // the command's id, or "error"
	Event  string            `json:"event,omitempty"`
	Name   string            `json:"name,omitempty"` // of the session
	Error  string            `json:"error,omitempty"`
	Code   string            `json:"code,omitempty"`
	Millis int64             `json:"millis,omitempty"`
	Values map[string]string `json:"values,omitempty"`
}

type guest struct {
	mu  sync.Mutex
	out *os.File

	initiator lazyInitiator
	sessions  map[string]*sessionState
}

func (g *guest) say(l line) {
	b, err := json.Marshal(l)
	if err != nil {
		b = []byte(`{"event":"lost line"}`)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	_, _ = g.out.Write(append(b, '\n'))
}

// boot mounts, loads the modules in the order of /modules, and sets the network.
func boot() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		if err := load(path); err != nil {
			return err
		}
	}
	return setNetwork()
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST && err != unix.ENODEV {
		return fmt.Errorf("module %s: %w", path, err)
	}
	return nil
}

// setNetwork gives eth0 the address of QEMU's user network.
func setNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	set := func(what string, request uint, fill func(*unix.Ifreq) error) error {
		r, err := unix.NewIfreq("eth0")
		if err == nil {
			err = fill(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, request, r)
		}
		if err != nil {
			return fmt.Errorf("%s of eth0: %w", what, err)
		}
		return nil
	}
	if err := set("address", unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{10, 0, 2, 15}) }); err != nil {
		return err
	}
	if err := set("mask", unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 255, 0}) }); err != nil {
		return err
	}
	return set("flags", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error {
		r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return nil
	})
}

// openPort opens the serial port without echo and line editing.
func openPort() (*os.File, error) {
	fd, err := unix.Open(port, unix.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", port, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), port), nil
}

func uptimeMillis() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return t.Nano() / 1e6
}
