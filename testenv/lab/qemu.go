package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"hotspare"
)

// machine is one node: QEMU runs, or the power is off. It is what the node's
// BMC controls (bmcsim.Machine).
type machine struct {
	node  NodeSpec
	dir   string // of the node
	accel string
	qemu  string
	rom   string
	log   *slog.Logger

	mu       sync.Mutex // one power command at a time
	state    sync.Mutex // guards the fields below; never held for long
	cmd      *exec.Cmd  // nil: off
	gone     chan struct{}
	since    time.Time // of the last power change
	boots    int
	bootDev  string // what the BMC asked for, for the next start
	bootOnce bool
	post     time.Duration
	linkDown bool // kept over power cycles: the cable is out
	lastEnd  string
}

func newMachine(s spec, node NodeSpec, dir string, log *slog.Logger) *machine {
	return &machine{
		node: node, dir: filepath.Join(dir, node.Name), accel: s.Accel, qemu: s.QEMU, rom: s.ROM,
		post: node.POSTDelay, log: log.With("node", node.Name), since: time.Now(),
	}
}

// marker stands in the command line of every QEMU of a lab: leftovers are known
// by it. The directory makes it unique on the host.
func (m *machine) marker() string { return "guest=hotspare-lab-" + m.node.Name + ",debug-threads=off" }

func (m *machine) socket() string  { return filepath.Join(m.dir, "qmp.sock") }
func (m *machine) pidFile() string { return filepath.Join(m.dir, "qemu.pid") }

// emulatedCPU is x86-64-v2 and no more. With "max", QEMU 7.2's emulation makes
// Debian bookworm's systemd fail (namespaces of services, the machine id; gone
// without XSAVES and LA57), and a kernel needs 6 s to its init instead of 3.5.
const emulatedCPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+fsgsbase"

// PowerState says whether QEMU runs.
func (m *machine) PowerState() bool {
	m.state.Lock()
	defer m.state.Unlock()
	return m.cmd != nil
}

// PowerOn starts QEMU; a machine that is on is left alone.
func (m *machine) PowerOn(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.PowerState() {
		return nil
	}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	m.state.Lock()
	post, linkDown := m.post, m.linkDown
	boot := m.bootDev
	if m.bootOnce {
		m.bootDev, m.bootOnce = "", false
	}
	m.state.Unlock()
	paused := post > 0 || linkDown
	h := hardwareOf(m.node, m.accel)
	if err := m.prepareFiles(h); err != nil {
		return err
	}
	program, pkg := m.qemu, "qemu-system-x86"
	if h.qemu != "" {
		program, pkg = h.qemu, h.pkg
	}

	if err := os.Remove(m.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(filepath.Join(m.dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(program, m.args(paused)...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return &hotspare.Error{Code: hotspare.CodeQEMU, What: "QEMU did not start", Where: m.node.Name, Err: err, Fix: "apt-get install " + pkg}
	}
	gone := make(chan struct{})
	m.state.Lock()
	m.cmd, m.gone, m.since, m.lastEnd = cmd, gone, time.Now(), ""
	m.boots++
	m.state.Unlock()
	m.log.Info("power on", "pid", cmd.Process.Pid, "boot", boot, "post", post)
	go m.reap(cmd, gone)
	if paused {
		go m.finishPOST(post, linkDown, gone)
	}
	return nil
}

// reap notes the end of a QEMU, whoever ended it: that is what the BMC reads.
func (m *machine) reap(cmd *exec.Cmd, gone chan struct{}) {
	err := cmd.Wait()
	m.state.Lock()
	m.cmd, m.since = nil, time.Now()
	m.lastEnd = "the machine switched itself off"
	if err != nil {
		m.lastEnd = err.Error()
	}
	m.state.Unlock()
	m.log.Info("power off", "end", m.lastEnd)
	close(gone)
}

// finishPOST lets a machine that was started paused go on: after the delay that
// its firmware takes, and with its link as it was left.
func (m *machine) finishPOST(post time.Duration, linkDown bool, gone <-chan struct{}) {
	select {
	case <-gone:
		return
	case <-time.After(post):
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := m.monitor(ctx, func(q *qmp) error {
		if linkDown {
			if err := q.Execute(ctx, "set_link", map[string]any{"name": "net0", "up": false}, nil); err != nil {
				return err
			}
		}
		return q.Execute(ctx, "cont", nil, nil)
	})
	if err != nil && m.PowerState() {
		m.log.Error("the machine stays in POST", "err", err)
	}
}

// PowerOff kills QEMU and returns when it is gone, as when the cord is pulled.
func (m *machine) PowerOff(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Lock()
	cmd, gone := m.cmd, m.gone
	m.state.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// PowerSoft presses the power button.
func (m *machine) PowerSoft(ctx context.Context) error {
	return m.monitor(ctx, func(q *qmp) error { return q.Execute(ctx, "system_powerdown", nil, nil) })
}

// SetNextBoot notes the BMC's boot device. The machine has only its NIC to boot
// from, so the note changes nothing but the log and the status.
func (m *machine) SetNextBoot(device string, once bool) {
	m.state.Lock()
	defer m.state.Unlock()
	m.bootDev, m.bootOnce = device, once
}

// SetPOSTDelay is the time that the firmware takes from now on.
func (m *machine) SetPOSTDelay(d time.Duration) {
	m.state.Lock()
	defer m.state.Unlock()
	m.post = d
}

// UUID is the one in SMBIOS.
func (m *machine) UUID() string { return m.node.UUID }

// setLink pulls or plugs the cable.
func (m *machine) setLink(ctx context.Context, up bool) error {
	m.state.Lock()
	m.linkDown = !up
	on := m.cmd != nil
	m.state.Unlock()
	if !on {
		return nil
	}
	return m.monitor(ctx, func(q *qmp) error {
		return q.Execute(ctx, "set_link", map[string]any{"name": "net0", "up": up}, nil)
	})
}

// pause stops or continues the processors: a machine that hangs as a whole.
func (m *machine) pause(ctx context.Context, stop bool) error {
	command := "cont"
	if stop {
		command = "stop"
	}
	if !m.PowerState() {
		return fmt.Errorf("%s is off", m.node.Name)
	}
	return m.monitor(ctx, func(q *qmp) error { return q.Execute(ctx, command, nil, nil) })
}

// monitor runs one exchange with QEMU. The socket is there a moment after the
// start of the process.
func (m *machine) monitor(ctx context.Context, talk func(*qmp) error) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		q, err := dialQMP(ctx, m.socket())
		if err == nil {
			err = talk(q)
			return errors.Join(err, q.Close())
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
		if !m.PowerState() {
			return fmt.Errorf("%s is off: %w", m.node.Name, err)
		}
	}
}

// killLeftovers ends every QEMU of a directory that no daemon owns any more.
// They are found by their command lines: QEMU writes its pid file some time
// after its start, and a pid file alone proves nothing.
func killLeftovers(ctx context.Context, dir string) error {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range procs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		if node, ok := qemuBelow(pid, dir); ok && isQEMUOf(pid, node, filepath.Join(dir, node)) {
			if p, err := describe(pid); err == nil {
				errs = append(errs, p.Kill(ctx))
			}
		}
	}
	stale, err := filepath.Glob(filepath.Join(dir, "*", "qemu.pid"))
	errs = append(errs, err)
	for _, file := range stale {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// qemuBelow gives the node whose pid file a process's command line names, if
// that file is below dir.
func qemuBelow(pid int, dir string) (node string, ok bool) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return "", false
	}
	for _, w := range strings.Split(string(b), "\x00") {
		if filepath.Base(w) == "qemu.pid" && filepath.Dir(filepath.Dir(w)) == dir {
			return filepath.Base(filepath.Dir(w)), true
		}
	}
	return "", false
}

// isQEMUOf says whether pid is the QEMU of that node in that directory.
func isQEMUOf(pid int, node, dir string) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	words := strings.Split(string(b), "\x00")
	marker, pidFile := false, false
	for _, w := range words {
		marker = marker || strings.HasPrefix(w, "guest=hotspare-lab-"+node+",")
		pidFile = pidFile || w == filepath.Join(dir, "qemu.pid")
	}
	return marker && pidFile
}
