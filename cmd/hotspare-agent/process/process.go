package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StopGrace is how long a process may take to end after SIGTERM.
const StopGrace = 90 * time.Second

// Options are the parts of a Runner. All but Start and Words are needed.
type Options struct {
	Group string                // folder of the application's control group, made by New
	Logs  string                // folder for what the commands say
	Start func(*exec.Cmd) error // starts a command; default (*exec.Cmd).Start
	Words func(name, line string)
}

// Runner runs commands.
type Runner struct {
	opt Options

	mu  sync.Mutex
	run map[string]*proc
}

// proc is one command that was launched.
type proc struct {
	cmd  *exec.Cmd
	log  *log
	done chan struct{}
	err  error // valid when done is closed
}

// New makes the control group.
func New(opt Options) (*Runner, error) {
	if opt.Start == nil {
		opt.Start = (*exec.Cmd).Start
	}
	for _, dir := range []string{opt.Group, opt.Logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("control group of the application: %w", err)
		}
	}
	return &Runner{opt: opt, run: map[string]*proc{}}, nil
}

// MountImage mounts what an init would have mounted for an image: control
// groups, pseudo terminals and shared memory.
func MountImage() error {
	for _, m := range []struct{ target, fstype, data string }{
		{"/sys/fs/cgroup", "cgroup2", ""},
		{"/dev/pts", "devpts", "mode=0620,gid=5,ptmxmode=0666"},
		{"/dev/shm", "tmpfs", "mode=1777"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.target, m.fstype, unix.MS_NOSUID|unix.MS_NOEXEC, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// KillSwitch opens cgroup.kill of the whole application: writing "1" to it kills
// everything that was launched, and what that has started.
func (r *Runner) KillSwitch() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.opt.Group, "cgroup.kill"), os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("the processes of the application cannot be killed at once (Linux 5.14 and cgroup v2 are needed): %w", err)
	}
	return f, nil
}

// Run runs a command to its end.
func (r *Runner) Run(ctx context.Context, name string, argv []string) error {
	p, err := r.launch(name, argv)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), r.Stop(context.WithoutCancel(ctx), name))
	}
	defer r.forget(name, p)
	if p.err != nil {
		return fmt.Errorf("%s: %w%s", argv[0], p.err, p.log.tail())
	}
	return nil
}

// Launch starts a command that goes on. One of the same name that still runs is
// an error.
func (r *Runner) Launch(_ context.Context, name string, argv []string) error {
	_, err := r.launch(name, argv)
	return err
}

func (r *Runner) launch(name string, argv []string) (*proc, error) {
	if len(argv) == 0 || !filepath.IsAbs(argv[0]) {
		return nil, fmt.Errorf("command %q does not begin with an absolute path", argv)
	}
	if name == "" || strings.ContainsAny(name, "/\x00") || name[0] == '.' {
		return nil, fmt.Errorf("command name %q", name)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.run[name]; p != nil && !p.ended() {
		return nil, fmt.Errorf("%s runs already as process %d", name, p.cmd.Process.Pid)
	}
	// A fresh group each time: some kernels kill what is started in a group that
	// was killed before.
	dir := filepath.Join(r.opt.Group, name)
	_ = os.Remove(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	group, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer group.Close()
	p := &proc{log: newLog(filepath.Join(r.opt.Logs, name+".log"), name, r.opt.Words), done: make(chan struct{})}
	p.cmd = &exec.Cmd{
		Path: argv[0], Args: argv, Dir: "/",
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"},
		Stdout: p.log, Stderr: p.log,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd())},
		// A child that outlives its parent may hold the pipe for ever.
		WaitDelay: time.Second,
	}
	if err := r.opt.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	r.run[name] = p
	go func() {
		defer close(p.done)
		if p.err = p.cmd.Wait(); errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
		p.log.close()
	}()
	return p, nil
}

func (p *proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (r *Runner) get(name string) *proc {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.run[name]
}

func (r *Runner) forget(name string, p *proc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.run[name] == p {
		delete(r.run, name)
	}
}

// State says whether a command that was launched still runs, and if not, how it
// ended.
func (r *Runner) State(name string) (running bool, why string) {
	p := r.get(name)
	switch {
	case p == nil:
		return false, "it was not started"
	case !p.ended():
		return true, ""
	case p.err == nil:
		return false, "it ended with status 0"
	default:
		return false, "it ended: " + p.err.Error() + p.log.tail()
	}
}

// Stop ends a command and all that it has started: SIGTERM to it, after
// StopGrace SIGKILL to all. It returns when none of it is left.
func (r *Runner) Stop(ctx context.Context, name string) error {
	p := r.get(name)
	if p == nil {
		return nil
	}
	if !p.ended() {
		_ = p.cmd.Process.Signal(unix.SIGTERM)
		grace := time.NewTimer(StopGrace)
		select {
		case <-p.done:
		case <-grace.C:
		case <-ctx.Done():
		}
		grace.Stop()
	}
	dir := filepath.Join(r.opt.Group, name)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err != nil {
		return fmt.Errorf("kill what is left of %s: %w", name, err)
	}
	if err := awaitEmpty(context.WithoutCancel(ctx), dir); err != nil {
		return fmt.Errorf("%s does not end: %w", name, err)
	}
	<-p.done
	r.forget(name, p)
	return nil
}

// emptyWait bounds the wait for processes that were killed: one that waits for a
// dead volume does not end.
const emptyWait = 20 * time.Second

// awaitEmpty waits until no process is left in a control group: the kernel
// notifies those who watch cgroup.events.
func awaitEmpty(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, emptyWait)
	defer cancel()
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		text, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
		if err != nil {
			return err
		}
		if bytes.Contains(text, []byte("populated 0")) {
			return nil
		}
		left := 50 * time.Millisecond
		if deadline, ok := ctx.Deadline(); ok {
			if left = time.Until(deadline); left <= 0 {
				return context.DeadlineExceeded
			}
		}
		poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, int(min(left, time.Second).Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
