package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/images"
)

// Options of a build.
type Options struct {
	Work   string       // a folder of its own; required
	AptDir string       // default /etc/apt
	Out    io.Writer    // what the tools print, for people; nil: only shown when they fail
	Tell   func(string) // hears what is done now; may be nil
	Log    *slog.Logger // nil: discard
}

func (o Options) withDefaults() Options {
	if o.AptDir == "" {
		o.AptDir = "/etc/apt"
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Result is what was built.
type Result struct {
	Recipe   string    // digest of the recipe
	Packages []string  // name=version of all that is installed
	Epoch    time.Time // of the newest file of a package; nothing in the image is younger
}

// Build makes the image of a recipe as a raw disk: one ext4 file system.
func Build(ctx context.Context, r Recipe, disk string, o Options) (Result, error) {
	o = o.withDefaults()
	if err := requirements(); err != nil {
		return Result{}, err
	}
	host, err := HostSuite("/etc/os-release")
	if err != nil {
		return Result{}, err
	}
	sources, err := Sources(o.AptDir, host, r.Suite)
	if err != nil {
		return Result{}, err
	}
	work, err := filepath.Abs(o.Work)
	if err != nil {
		return Result{}, err
	}
	root := filepath.Join(work, "root")
	begun := time.Now()
	args, err := arguments(r, work, root, sources)
	if err != nil {
		return Result{}, err
	}
	o.Tell("install the packages of " + r.Suite)
	o.Log.InfoContext(ctx, "build an image", "image", r.Name, "suite", r.Suite)
	if err := o.run(ctx, "mmdebstrap", args...); err != nil {
		return Result{}, err
	}
	res := Result{Recipe: r.Digest()}
	if res.Packages, err = Installed(ctx, root); err != nil {
		return res, err
	}
	o.Tell("clean up")
	if err := scrub(root, r.Hostname); err != nil {
		return res, fmt.Errorf("build: clean the tree: %w", err)
	}
	if res.Epoch, err = clamp(root, begun); err != nil {
		return res, fmt.Errorf("build: set the times: %w", err)
	}
	o.Tell("make the disk")
	return res, images.MakeDisk(ctx, root, disk, images.DiskOptions{Label: r.Name, Size: r.SizeMiB << 20, Seed: r.Digest(), Epoch: res.Epoch})
}

func requirements() error {
	if os.Geteuid() != 0 {
		return &hotspare.Error{Code: hotspare.CodeNotRoot, What: "images are built by root", Why: "the tree holds files of many owners", Fix: "run it with sudo"}
	}
	for tool, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "dpkg-query": "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			return &hotspare.Error{Code: hotspare.CodeMissingTool, What: "a program is missing", Where: tool, Fix: "apt-get install " + pkg, Err: err}
		}
	}
	return nil
}

// arguments are mmdebstrap's: a minimal root without recommended packages and
// without documents, then the recipe's parts in the order of their use.
func arguments(r Recipe, work, root string, sources []string) ([]string, error) {
	args := []string{"--mode=root", "--variant=minbase", "--format=directory", "--include=" + strings.Join(r.Packages, ",")}
	for _, opt := range append(AptOptions(), `Apt::Install-Recommends "false"`) {
		args = append(args, "--aptopt="+opt)
	}
	for _, opt := range []string{
		"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/man/*",
		"path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*", "force-unsafe-io",
	} {
		args = append(args, "--dpkgopt="+opt)
	}
	files, err := r.archive()
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{"before.sh": []byte(r.Before), "files.tar": files, "setup.sh": []byte(r.script())} {
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			return nil, fmt.Errorf("build: %w", err)
		}
	}
	if r.Before != "" {
		args = append(args, "--essential-hook="+`chroot "$1" sh -eu < `+quote(filepath.Join(work, "before.sh")))
	}
	args = append(args,
		"--customize-hook="+`tar -C "$1" --numeric-owner -xf `+quote(filepath.Join(work, "files.tar")),
		"--customize-hook="+`chroot "$1" sh -eu < `+quote(filepath.Join(work, "setup.sh")),
		r.Suite, root)
	return append(args, sources...), nil
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// archive packs the recipe's files, all of root; owners are given by name later,
// inside the image.
func (r Recipe) archive() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range r.Files {
		mode, err := f.mode()
		if err != nil {
			return nil, err
		}
		h := &tar.Header{Name: "." + f.Path, Mode: int64(mode), Typeflag: tar.TypeReg, Size: int64(len(f.Content)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		switch {
		case f.Directory:
			h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("build: %s: %w", f.Path, err)
		}
		if _, err := w.Write([]byte(f.Content)); err != nil {
			return nil, fmt.Errorf("build: %s: %w", f.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	return b.Bytes(), nil
}

// script is what runs inside the image at the end: users, owners, units, then the
// recipe's own. Every word of the recipe is quoted.
func (r Recipe) script() string {
	var b strings.Builder
	b.WriteString("export LC_ALL=C DEBIAN_FRONTEND=noninteractive\n")
	for _, u := range r.Users {
		home, shell := u.Home, u.Shell
		if home == "" {
			home = "/home/" + u.Name
		}
		if shell == "" {
			shell = "/bin/bash"
		}
		b.WriteString("useradd --create-home --home-dir " + quote(home) + " --shell " + quote(shell))
		if u.UID != 0 {
			fmt.Fprintf(&b, " --uid %d", u.UID)
		}
		if len(u.Groups) > 0 {
			b.WriteString(" --groups " + quote(strings.Join(u.Groups, ",")))
		}
		b.WriteString(" " + quote(u.Name) + "\n")
		if len(u.Keys) > 0 {
			ssh := strings.TrimSuffix(home, "/") + "/.ssh"
			fmt.Fprintf(&b, "install -d -m 0700 -o %[1]s -g \"$(id -gn %[1]s)\" %[2]s\n", quote(u.Name), quote(ssh))
			for _, k := range u.Keys {
				fmt.Fprintf(&b, "printf '%%s\\n' %s >> %s\n", quote(k), quote(ssh+"/authorized_keys"))
			}
			fmt.Fprintf(&b, "chown %s: %s\nchmod 0600 %s\n", quote(u.Name), quote(ssh+"/authorized_keys"), quote(ssh+"/authorized_keys"))
		}
	}
	for _, f := range r.Files {
		if f.Owner != "" {
			b.WriteString("chown -h -- " + quote(f.Owner) + " " + quote(f.Path) + "\n")
		}
	}
	for _, u := range r.Units.Enable {
		b.WriteString("systemctl enable -- " + quote(u) + "\n")
	}
	for _, u := range r.Units.Disable {
		b.WriteString("systemctl disable -- " + quote(u) + "\n")
	}
	for _, u := range r.Units.Mask {
		b.WriteString("systemctl mask -- " + quote(u) + "\n")
	}
	return b.String() + r.Setup + "\n"
}

// epoch is what tools inside take for the time: nothing that they write depends
// on when it was written.
const epoch = "1577836800" // 2020-01-01

// run runs a tool; the end of its output goes into the error when it fails.
func (o Options) run(ctx context.Context, name string, args ...string) error {
	kept := &lastBytes{limit: 8192}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(o.Out, kept), io.MultiWriter(o.Out, kept)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "SOURCE_DATE_EPOCH="+epoch)
	// Ask it to stop, so that mmdebstrap unmounts what it has mounted; its
	// children are in its group and get the signal too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &hotspare.Error{
			Code: hotspare.CodeImageBuild, What: "a step of the image build failed", Where: name, Err: err,
			Why: kept.lines(12), Fix: "read the lines above; check the recipe, the network and the host's apt sources, then run it again",
		}
	}
	return nil
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	limit int
	b     []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	if over := len(l.b) - l.limit; over > 0 {
		l.b = append(l.b[:0], l.b[over:]...)
	}
	return len(p), nil
}

func (l *lastBytes) lines(n int) string {
	all := strings.Split(strings.TrimSpace(string(l.b)), "\n")
	return strings.Join(all[max(0, len(all)-n):], " | ")
}

// Installed lists the packages of a tree, each as name=version.
func Installed(ctx context.Context, root string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "dpkg-query", "--admindir="+filepath.Join(root, "var/lib/dpkg"), "-W", "-f=${Package}=${Version}\n").Output()
	if err != nil {
		return nil, fmt.Errorf("list the image's packages: %w", err)
	}
	return strings.Fields(string(out)), nil
}

// scrub takes out what a golden image must not hold: the host's name and resolver,
// which mmdebstrap copies, identities that each machine makes for itself, caches,
// logs, and back-up copies that tools leave.
func scrub(tree, hostname string) error {
	root, err := os.OpenRoot(tree)
	if err != nil {
		return err
	}
	defer root.Close()
	// Only names whose directories are no links, and the last element is removed
	// as it is: nothing outside of the tree is touched.
	for _, pattern := range []string{
		"var/lib/dbus/machine-id", "var/lib/systemd/random-seed", "var/lib/systemd/credential.secret", "etc/ssh/ssh_host_*",
		"var/cache/apt/*.bin", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "var/cache/debconf/*-old", "var/cache/ldconfig/aux-cache",
		"var/log/*.log", "var/log/apt", "var/log/journal/*", "var/lib/dpkg/*-old", "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock",
		"tmp/*", "var/tmp/*", "run/*", "root/.bash_history", "var/lib/systemd/catalog/database",
	} {
		names, err := fs.Glob(root.FS(), pattern)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := root.RemoveAll(n); err != nil {
				return err
			}
		}
	}
	if hostname == "" {
		err = root.RemoveAll("etc/hostname")
	} else {
		err = replace(root, "etc/hostname", hostname+"\n")
	}
	// Empty, not missing: a missing one makes systemd apply presets at the first
	// boot.
	return errors.Join(err, replace(root, "etc/machine-id", ""), replace(root, "etc/resolv.conf", ""), replace(root, "etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n"))
}

func replace(root *os.Root, name, text string) error {
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	return root.WriteFile(name, []byte(text), 0o644)
}

// clamp finds the newest time of a file that came with a package, and gives it to
// all that was made since the build began.
func clamp(root string, begun time.Time) (time.Time, error) {
	newest := time.Unix(0, 0)
	var young []string
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		at := info.ModTime().Truncate(time.Second)
		switch {
		case !at.Before(begun.Truncate(time.Second)):
			young = append(young, p)
		case at.After(newest):
			newest = at
		}
		return nil
	})
	if err != nil {
		return newest, err
	}
	ts := unix.NsecToTimespec(newest.UnixNano())
	for _, p := range young {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return newest, err
		}
	}
	return newest, nil
}

// Remove removes a build's folder. What a killed mmdebstrap left mounted is
// unmounted first: the removal would reach the host's own /dev and /proc.
func Remove(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func unmountBelow(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i := len(lines) - 1; i >= 0; i-- { // the last mount first
		f := strings.Fields(lines[i])
		if len(f) > 4 && strings.HasPrefix(f[4], abs+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return fmt.Errorf("unmount %s: %w", f[4], err)
			}
		}
	}
	return nil
}
