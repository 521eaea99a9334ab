package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"hotspare"
)

// cage runs a tool over foreign bytes: without network, as a user that owns
// nothing, in a root of its own that holds the host's /usr (read-only) and one
// folder, with bounds on memory, file size, processor time and open files.
type cage struct {
	work     string // folder that the tool sees as /work; given to the tool's user
	maxFile  int64  // bytes of one file that it may write
	maxTime  time.Duration
	maxBytes int64 // of memory; 0: 2 GiB
}

// cageUser runs what is in the cage: nobody.
const cageUser = 65534

// The root is made by a shell in namespaces of its own: the kernel removes it
// with the last process.
const cageScript = `set -eu
mount -t tmpfs -o mode=0755,nosuid,nodev,size=1m tmpfs "$1"
cd "$1"
mkdir usr work etc
mount --bind /usr usr
mount -o remount,ro,bind,nosuid,nodev usr
ln -s usr/bin bin
ln -s usr/sbin sbin
ln -s usr/lib lib
if [ -d /usr/lib64 ]; then ln -s usr/lib64 lib64; fi
if [ -f /etc/ld.so.cache ]; then cat /etc/ld.so.cache > etc/ld.so.cache; fi
mount --bind "$2" work
mount -o remount,bind,nosuid,nodev,noexec work
mount -o remount,ro,nosuid,nodev "$1"
shift 2
exec chroot . "$@"
`

// run runs a tool with its input and output; what it says on its error output is
// in the error.
func (c cage) run(ctx context.Context, in io.Reader, out io.Writer, tool string, args ...string) error {
	if os.Geteuid() != 0 {
		return &hotspare.Error{Code: hotspare.CodeNotRoot, What: "the format cannot be converted without root", Where: tool,
			Why: "foreign files are converted in a sandbox, which only root can make", Fix: "run the appliance as root, or convert the file to qcow2 first"}
	}
	path, err := exec.LookPath(tool)
	if err != nil {
		return &hotspare.Error{Code: hotspare.CodeMissingTool, What: "a program is missing", Where: tool, Fix: "apt-get install " + packageOf(tool), Err: err}
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	root, err := os.MkdirTemp("", "hotspare-cage-")
	if err != nil {
		return diskError("make the sandbox", err)
	}
	defer os.Remove(root)
	ctx, cancel := context.WithTimeoutCause(ctx, c.maxTime, fmt.Errorf("it took longer than %s", c.maxTime))
	defer cancel()
	memory := c.maxBytes
	if memory == 0 {
		memory = 2 << 30
	}
	words := []string{
		"--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private",
		"/bin/sh", "-c", cageScript, "cage", root, c.work,
		"/usr/bin/prlimit", "--as=" + num(memory), "--fsize=" + num(c.maxFile), "--cpu=" + num(int64(c.maxTime.Seconds())), "--nofile=64", "--core=0",
		"/usr/bin/setpriv", "--reuid", num(cageUser), "--regid", num(cageUser), "--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs",
		path,
	}
	cmd := exec.CommandContext(ctx, "unshare", append(words, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/usr/sbin", "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	said := &tail{limit: 4096}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, said
	if out == nil {
		cmd.Stdout = said
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return &toolError{tool, said.String(), err}
	}
	return nil
}

// toolError is a tool that failed, with the last of what it said.
type toolError struct {
	tool, said string
	err        error
}

func (e *toolError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %v: %s", e.tool, e.err, printable(strings.Join(strings.Fields(e.said), " "))))
}

func (e *toolError) Unwrap() error { return e.err }

func packageOf(tool string) string {
	return map[string]string{"qemu-img": "qemu-utils", "xz": "xz-utils", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "unshare": "util-linux"}[tool]
}

func num(n int64) string { return strconv.FormatInt(n, 10) }

// tail keeps the last bytes that are written to it.
type tail struct {
	limit int
	buf   bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.buf.Write(p)
	if over := t.buf.Len() - t.limit; over > 0 {
		t.buf.Next(over)
	}
	return n, nil
}

func (t *tail) String() string { return t.buf.String() }

// lend makes a folder that the cage's user may write to.
func lend(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "cage-*")
	if err != nil {
		return "", diskError("stage a file", err)
	}
	if err := errors.Join(os.Chown(dir, cageUser, cageUser), os.Chmod(dir, 0o700)); err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("images: lend a folder to the sandbox: %w", err)
	}
	return dir, nil
}
