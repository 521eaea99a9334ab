package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// AgentArg0 is the agent's argv[0]. The '@' is systemd's convention for
// processes that serve the root's storage.
const AgentArg0 = "@hotspare-agent"

// rebootDelay is the time for a person to read the console.
const rebootDelay = 60 * time.Second

// BeganVar is the variable of the agent's environment that says when PID 1
// began, in milliseconds since the kernel did.
const BeganVar = "HOTSPARE_BEGAN"

// Run is PID 1, which began at that time after the kernel. It does not return: it
// ends as the image's init, or reboots.
func Run(say func(format string, args ...any), began time.Duration) {
	err := run(say, began)
	say("PID 1 cannot go on: %v", err)
	say("this node reboots in %s", rebootDelay)
	time.Sleep(rebootDelay)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func run(say func(format string, args ...any), began time.Duration) error {
	loaded, failures := LoadModules(ModulesList)
	byDevice, more := LoadForDevices("/sys/bus", ModulesAlias, ModulesDep)
	for _, err := range append(failures, more...) {
		say("%v", err)
	}
	say("%d modules loaded, %d of them for devices that are there", loaded+byDevice, byDevice)
	if err := copySelf(); err != nil {
		return fmt.Errorf("copy the agent to %s: %w", AgentPath, err)
	}
	control, agent, err := start(began)
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- reapUntil(agent.Process.Pid) }()
	asked := make(chan switchRequest, 1)
	go func() {
		r, err := readRequest(control)
		r.err = err
		asked <- r
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("the agent ended: %w", err)
	case r := <-asked:
		if r.err != nil {
			return fmt.Errorf("read the agent's word: %w", errors.Join(r.err, <-ended))
		}
		if err := become(control, r); err != nil {
			return err
		}
		return fmt.Errorf("the agent ended: %w", <-ended)
	}
}

// reapUntil collects every process that ends, orphans of the image's too, until
// it is the process pid.
func reapUntil(pid int) error {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case got == pid && status.Signaled():
			return fmt.Errorf("by signal %d", status.Signal())
		case got == pid:
			return fmt.Errorf("with status %d", status.ExitStatus())
		}
	}
}

// copySelf puts the running executable where it outlives the initramfs.
func copySelf() error {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(AgentPath, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

// start runs the agent with a control socket as descriptor 3.
func start(began time.Duration) (*net.UnixConn, *exec.Cmd, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	own, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	conn, err := net.FileConn(own)
	_ = own.Close()
	if err != nil {
		return nil, nil, err
	}
	cmd := &exec.Cmd{
		Path: AgentPath, Args: []string{AgentArg0},
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", fmt.Sprintf("%s=%d", BeganVar, began.Milliseconds())},
		Stdin: nil, Stdout: os.Stdout, Stderr: os.Stderr,
		ExtraFiles: []*os.File{theirs},
	}
	err = startPrivileged(cmd)
	return conn.(*net.UnixConn), cmd, err
}

// agentPriority is the agent's SCHED_RR priority: above all that is not
// real-time, below the kernel's own threads (50).
const agentPriority = 10

// startPrivileged starts a command whose threads all inherit two things of this
// thread, which has them for the moment of the fork only: PR_SET_IO_FLUSHER
// (memory that they need is never waited for behind writes to the volume whose
// session they recover) and a real-time policy (a busy node must not lose its
// lease because the agent waits for a processor).
func startPrivileged(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0) == nil { // Linux 5.6
		defer func() { _ = unix.Prctl(unix.PR_SET_IO_FLUSHER, 0, 0, 0, 0) }()
	}
	if unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_RR, Priority: agentPriority}, 0) == nil {
		defer func() {
			_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
		}()
	}
	return cmd.Start()
}

// switchRequest is the agent's word: the new root is mounted; execute its init,
// or, where there is none, stay PID 1 in it.
type switchRequest struct {
	root string
	init string // empty: stay
	err  error
}

const (
	switchVerb = "switch"
	stayVerb   = "stay"
)

func readRequest(r io.Reader) (switchRequest, error) {
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		return switchRequest{}, err
	}
	words := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
	switch {
	case len(words) == 3 && words[0] == switchVerb && words[2] != "":
		return switchRequest{root: words[1], init: words[2]}, nil
	case len(words) == 2 && words[0] == stayVerb:
		return switchRequest{root: words[1]}, nil
	}
	return switchRequest{}, fmt.Errorf("unknown word %q", line)
}

// become turns PID 1 into the image's init, or makes it the PID 1 of an image
// that has none; only then it returns. The agent learns of the switch by a line,
// and of the execution by the end of the control socket.
func become(control *net.UnixConn, r switchRequest) error {
	if err := SwitchRoot(r.root); err != nil {
		_, _ = fmt.Fprintf(control, "failed: %v\n", err)
		return err
	}
	if _, err := io.WriteString(control, switched); err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	if r.init == "" {
		return nil
	}
	args := append([]string{r.init}, os.Args[1:]...)
	err := unix.Exec(r.init, args, []string{"HOME=/", "TERM=linux", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
	_, _ = fmt.Fprintf(control, "failed: execute %s: %v\n", r.init, err)
	return fmt.Errorf("execute %s: %w", r.init, err)
}

const switched = "switched\n"

// Control is the agent's end of the control socket.
type Control struct{ conn net.Conn }

// OpenControl takes over descriptor 3 of the agent's process.
func OpenControl() (*Control, error) {
	f := os.NewFile(3, "control")
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("this process was not started by the agent's own PID 1: %w", err)
	}
	return &Control{conn: conn}, nil
}

// Switch makes PID 1 enter root and execute init, follows into the new root and
// returns when init runs.
func (c *Control) Switch(root, init string) error {
	answers, err := c.ask(root, fmt.Sprintf("%s\t%s\t%s\n", switchVerb, root, init))
	if err != nil {
		return err
	}
	rest, err := io.ReadAll(answers)
	if err != nil && !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("wait for init: %w", err)
	}
	if len(rest) > 0 {
		return errors.New("PID 1: " + strings.TrimSpace(string(rest)))
	}
	return nil
}

// Stay makes PID 1 enter root and go on there, for an image that has no init of
// its own, and follows.
func (c *Control) Stay(root string) error {
	_, err := c.ask(root, fmt.Sprintf("%s\t%s\n", stayVerb, root))
	return err
}

func (c *Control) ask(root, word string) (io.Reader, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	empty, err := holdInitramfs()
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c.conn, word); err != nil {
		return nil, fmt.Errorf("ask PID 1 to switch: %w", err)
	}
	answers := bufio.NewReader(c.conn)
	line, err := answers.ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("PID 1 did not switch: %w", err)
	}
	if line != switched {
		return nil, errors.New("PID 1 did not switch: " + strings.TrimSpace(line))
	}
	if err := enter(dir); err != nil {
		return nil, fmt.Errorf("follow into the new root: %w", err)
	}
	go empty() // beside the image's start, not before it
	return answers, nil
}

// enter changes the root of all threads: Go creates them with CLONE_FS.
func enter(dir *os.File) error {
	if err := unix.Fchdir(int(dir.Fd())); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}
