// Command guest is /init of the virtual machine in which Linux's own iSCSI
// initiator, open-iscsi, meets the target. It loads the modules of its initramfs
// and obeys: one JSON document a line on the second serial port says what a
// shell shall run, each line that it prints and its end come back the same way.
// Called as `guest write` and `guest verify` it is the load. It is no part of
// the product.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) > 1 {
		if err := load(os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	if err := initialise(); err != nil {
		fmt.Println("guest:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// initialise is process 1. It returns when it can no longer obey.
func initialise() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for _, file := range strings.Fields(string(list)) {
		if err := loadModule(file); err != nil {
			return err
		}
	}
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, out)
	}
	if err := os.Setenv("PATH", "/sbin:/bin"); err != nil {
		return err
	}
	tty, err := openPort("/dev/ttyS1")
	if err != nil {
		return err
	}
	return obey(tty)
}

func loadModule(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST && err != unix.ENODEV {
		return fmt.Errorf("module %s: %w", file, err)
	}
	return nil
}

// openPort opens a serial port without the terminal's conversions.
func openPort(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return f, unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// order is what the host wants run.
type order struct {
	ID string
	Sh string
}

// line is what comes back: a line of output, or the end.
type line struct {
	ID   string `json:"id"`
	Text string `json:"text,omitempty"`
	Done bool   `json:"done,omitempty"`
	Exit int    `json:"exit,omitempty"`
}

// obey runs orders, each as it comes; those before need not have ended.
func obey(port io.ReadWriter) error {
	var mu sync.Mutex
	enc := json.NewEncoder(port)
	say := func(l line) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(l)
	}
	say(line{ID: "ready"})
	in := bufio.NewScanner(port)
	for in.Scan() {
		var o order
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			say(line{ID: "ready", Text: err.Error()})
			continue
		}
		go run(o, say)
	}
	return in.Err()
}

// run runs one order. Daemons that it leaves behind may keep its output open, so
// its end is the shell's end.
func run(o order, say func(line)) {
	r, w, err := os.Pipe()
	if err != nil {
		say(line{ID: o.ID, Text: err.Error(), Done: true, Exit: 255})
		return
	}
	c := exec.Command("/bin/sh", "-c", o.Sh)
	c.Stdout, c.Stderr = w, w
	if err := c.Start(); err != nil {
		say(line{ID: o.ID, Text: err.Error(), Done: true, Exit: 255})
		return
	}
	w.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for out := bufio.NewScanner(r); out.Scan(); {
			say(line{ID: o.ID, Text: out.Text()})
		}
	}()
	_ = c.Wait()
	select {
	case <-read:
	case <-time.After(time.Second): // a daemon has it
	}
	say(line{ID: o.ID, Done: true, Exit: c.ProcessState.ExitCode()})
}
