package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ProcessOptions describe a process that outlives its starter.
type ProcessOptions struct {
	Name      string   // of the pid file and the log: NAME.pid, NAME.log
	Dir       string   // where they are; Down of the lab in that directory stops the process
	Namespace string   // network namespace; "": the caller's
	Args      []string // program and arguments
	Env       []string // added to the caller's
	Files     []*os.File
}

// Process is one that StartProcess has started, now or in an earlier run. It is
// known by pid and start time, so that another process which got the same pid
// later is never taken for it.
type Process struct {
	Version int       `json:"version"` // 1
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Start   uint64    `json:"start"` // field 22 of proc_pid_stat(5), clock ticks after boot
	BootID  string    `json:"boot_id"`
	Args    []string  `json:"args"`
	Since   time.Time `json:"since"`
	file    string
}

// StartProcess starts a process in a session of its own, with its output
// appended to a log, and notes it. One of the same name that still runs is an
// error.
func StartProcess(ctx context.Context, opts ProcessOptions) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(opts.Args) == 0 || opts.Name == "" || opts.Dir == "" {
		return nil, errors.New("lab: a process needs a name, a directory and arguments")
	}
	if old, err := FindProcess(opts.Dir, opts.Name); err == nil && old.Alive() {
		return nil, fmt.Errorf("%s runs already as pid %d", opts.Name, old.PID)
	}
	log, err := os.OpenFile(filepath.Join(opts.Dir, opts.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log of %s: %w", opts.Name, err)
	}
	defer log.Close()
	cmd := Exec(context.WithoutCancel(ctx), opts.Namespace, opts.Args[0], opts.Args[1:]...)
	cmd.Env = append(os.Environ(), opts.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = opts.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", opts.Name, err)
	}
	go cmd.Wait() //nolint:errcheck // reaps it; how it ended stands in its log
	p, err := describe(cmd.Process.Pid)
	if err != nil {
		return nil, fmt.Errorf("%s ended at once: %w: %s", opts.Name, err, tail(log.Name(), 5))
	}
	p.Name, p.Args, p.file = opts.Name, opts.Args, filepath.Join(opts.Dir, opts.Name+".pid")
	if err := p.write(); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill())
	}
	return p, nil
}

func (p *Process) write() error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(p.file+".new", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	return os.Rename(p.file+".new", p.file)
}

// FindProcess gives the process that a pid file names, alive or not.
func FindProcess(dir, name string) (*Process, error) {
	return readProcess(filepath.Join(dir, name+".pid"))
}

func readProcess(file string) (*Process, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := &Process{file: file}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if p.Version != 1 || p.PID <= 1 {
		return nil, fmt.Errorf("%s: no pid file of ours", file)
	}
	return p, nil
}

// processes lists those with a pid file in dir, the one started last first.
func processes(dir string) ([]*Process, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pid"))
	if err != nil {
		return nil, err
	}
	var all []*Process
	var errs []error
	for _, f := range files {
		p, err := readProcess(f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, p)
	}
	for i := range all {
		for j := i + 1; j < len(all); j++ {
			if all[j].Since.After(all[i].Since) {
				all[i], all[j] = all[j], all[i]
			}
		}
	}
	return all, errors.Join(errs...)
}

// Alive says whether this very process still runs, be it with one thread of many;
// a zombie does not.
func (p *Process) Alive() bool {
	now, err := describe(p.PID)
	return err == nil && now.Start == p.Start && now.BootID == p.BootID
}

// Signal sends a signal to the process if it still runs.
func (p *Process) Signal(sig syscall.Signal) error {
	// The pidfd keeps the pid from being given to another between look and kill.
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pid %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }() // it was only watched
	if !p.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal pid %d: %w", p.PID, err)
	}
	return nil
}

// Wait returns when the process has ended.
func (p *Process) Wait(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pid %d: %w", p.PID, err)
	}
	defer func() { _ = unix.Close(fd) }() // it was only watched
	for p.Alive() {
		// A pidfd becomes readable when its process ends; the bound is there to
		// notice the context.
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for pid %d: %w", p.PID, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Kill kills it without warning and waits until it is gone. The pid file stays,
// so that a new one of that name can be told from a first one.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Stop asks it to end, kills it after the grace, and removes its pid file.
func (p *Process) Stop(ctx context.Context, grace time.Duration) error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	polite, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := p.Wait(polite); err != nil {
		if err := p.Kill(ctx); err != nil {
			return fmt.Errorf("stop %s: %w", p.Name, err)
		}
	}
	if err := os.Remove(p.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// describe reads a process's identity; an error means that it does not run.
func describe(pid int) (*Process, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, err
	}
	// The name in brackets may hold anything; the fields begin after the last one.
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return nil, fmt.Errorf("stat of pid %d is short", pid)
	}
	// The state is that of the first thread, which is a zombie while others still
	// wait for the disk and hold the process's files and locks: the process has
	// ended when no other is left (field 20, num_threads).
	if alone := f[17] == "0" || f[17] == "1"; f[0] == "X" || f[0] == "Z" && alone {
		return nil, fmt.Errorf("pid %d has ended", pid)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("stat of pid %d: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	return &Process{Version: 1, PID: pid, Start: start, BootID: strings.TrimSpace(string(boot)), Since: time.Now()}, nil
}

// lookPath is exec.LookPath with the folders that a person's PATH may lack.
func lookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		p := filepath.Join(dir, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", exec.ErrNotFound
}
