package images

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
)

const (
	maxTarEntries = 2 << 20
	whiteout      = ".wh."
	opaque        = ".wh..wh..opq"
)

// treeBuilder is a root file system under construction from one or more tar
// archives. Names and links of an archive are taken as a machine would take them
// whose root this is; none leads out.
type treeBuilder struct {
	ctx     context.Context
	dir     string
	root    *os.Root
	bytes   int64 // of all files
	limit   int64
	entries int
	times   []dirTime // of directories: set last, for writing into one changes it
}

type dirTime struct {
	name string
	at   time.Time
}

func newTreeBuilder(ctx context.Context, dir string, limit int64) (*treeBuilder, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &treeBuilder{ctx: ctx, dir: dir, root: root, limit: limit}, nil
}

// apply unpacks an archive over what is there. With layer set, names that begin
// with .wh. remove what an earlier layer put there (OCI image specification,
// layer.md).
func (t *treeBuilder) apply(r io.Reader, layer bool) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the archive is damaged: %w", err)
		}
		if err := t.ctx.Err(); err != nil {
			return err
		}
		if t.entries++; t.entries > maxTarEntries {
			return fmt.Errorf("more than %d names", maxTarEntries)
		}
		if err := t.put(h, tr, layer); err != nil {
			return fmt.Errorf("%s: %w", printable(h.Name), err)
		}
	}
}

func (t *treeBuilder) put(h *tar.Header, r io.Reader, layer bool) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if strings.ContainsRune(name, 0) {
		return errors.New("a name with a NUL")
	}
	if name == "" { // the root itself
		if h.Typeflag != tar.TypeDir {
			return errors.New("the root is no directory")
		}
		return t.describe(".", h)
	}
	parent, err := t.resolve(path.Dir(name), true)
	if err != nil {
		return err
	}
	base := path.Base(name)
	name = path.Join(parent, base)
	if layer && strings.HasPrefix(base, whiteout) {
		return t.whiteout(parent, base)
	}
	if old, err := t.root.Lstat(name); err == nil && (!old.IsDir() || h.Typeflag != tar.TypeDir) {
		if err := t.root.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := t.create(name, h, r); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return nil // what it links to has its own
	}
	return t.describe(name, h)
}

func (t *treeBuilder) create(name string, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		err := t.root.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.write(name, h.Size, r)
	case tar.TypeSymlink:
		if len(h.Linkname) == 0 || len(h.Linkname) > maxLinkBytes {
			return errors.New("an impossible symbolic link")
		}
		return t.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		target := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		dir, err := t.resolve(path.Dir(target), false)
		if err != nil {
			return fmt.Errorf("link to %s: %w", printable(h.Linkname), err)
		}
		return t.root.Link(path.Join(dir, path.Base(target)), name)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return t.mknod(name, h)
	}
	return fmt.Errorf("an entry of the unknown type %q", h.Typeflag)
}

func (t *treeBuilder) write(name string, size int64, r io.Reader) error {
	if t.bytes += size; size < 0 || t.bytes > t.limit {
		return errTooMuch
	}
	f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := &sparseWriter{f: f, limit: size}
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, sparseBlock))
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = w.finish()
	}
	return errors.Join(err, f.Close())
}

func (t *treeBuilder) mknod(name string, h *tar.Header) error {
	kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
	return t.at(name, func(fd int, base string) error {
		return unix.Mknodat(fd, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	})
}

// whiteout removes one name, or all that earlier layers put into a directory.
func (t *treeBuilder) whiteout(parent, base string) error {
	if base != opaque {
		gone := strings.TrimPrefix(base, whiteout)
		if gone == "" || gone == "." || gone == ".." {
			return errors.New("an impossible whiteout")
		}
		return t.root.RemoveAll(path.Join(parent, gone))
	}
	dir, err := t.root.Open(parent)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := t.root.RemoveAll(path.Join(parent, n)); err != nil {
			return err
		}
	}
	return nil
}

// resolve follows the symbolic links of a directory's path inside the tree, and
// makes what is missing.
func (t *treeBuilder) resolve(name string, make bool) (string, error) {
	at, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		info, err := t.root.Lstat(next)
		switch {
		case errors.Is(err, fs.ErrNotExist) && make:
			if err := t.root.Mkdir(next, 0o755); err != nil {
				return "", err
			}
			at = next
		case err != nil:
			return "", err
		case info.Mode()&fs.ModeSymlink != 0:
			if links++; links > maxLinks {
				return "", fmt.Errorf("more than %d symbolic links", maxLinks)
			}
			to, err := t.root.Readlink(next)
			if err != nil {
				return "", err
			}
			if strings.HasPrefix(to, "/") {
				at = "."
			}
			rest = append(strings.Split(to, "/"), rest...)
		case !info.IsDir():
			return "", fmt.Errorf("%s is no directory", printable(next))
		default:
			at = next
		}
	}
	return at, nil
}

// at opens the directory of name, which holds no links, for calls that os.Root
// does not have.
func (t *treeBuilder) at(name string, do func(fd int, base string) error) error {
	dir, err := t.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(int(dir.Fd()), path.Base(name))
}

// describe gives a name its owner, mode, capabilities and time.
func (t *treeBuilder) describe(name string, h *tar.Header) error {
	if h.Typeflag == tar.TypeDir {
		t.times = append(t.times, dirTime{name, h.ModTime})
	}
	return t.at(name, func(fd int, base string) error {
		if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("owner: %w", err)
		}
		if h.Typeflag == tar.TypeSymlink {
			return setTime(fd, base, h.ModTime)
		}
		if err := unix.Fchmodat(fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("mode: %w", err)
		}
		// After the owner, whose change drops capabilities.
		if c, ok := h.PAXRecords["SCHILY.xattr.security.capability"]; ok {
			if err := unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", fd, base), "security.capability", []byte(c), 0); err != nil {
				return fmt.Errorf("capabilities: %w", err)
			}
		}
		return setTime(fd, base, h.ModTime)
	})
}

func setTime(fd int, base string, at time.Time) error {
	ts := unix.NsecToTimespec(at.UnixNano())
	return unix.UtimesNanoAt(fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// finish sets the times of the directories.
func (t *treeBuilder) finish() error {
	defer t.root.Close()
	for _, d := range slices.Backward(t.times) {
		if info, err := t.root.Lstat(d.name); err != nil || !info.IsDir() {
			continue // a later layer removed it
		}
		if err := t.at(d.name, func(fd int, base string) error { return setTime(fd, base, d.at) }); err != nil {
			return err
		}
	}
	return nil
}

// DiskOptions say what file system MakeDisk makes.
type DiskOptions struct {
	Label string
	// Size of the file system in bytes; 0: as much as the tree needs, half as
	// much again, and 512 MiB, in whole MiB.
	Size int64
	// Seed decides the UUID of the file system and the hash of its directories:
	// the same tree and seed give the same bytes.
	Seed string
	// Epoch is the time of every inode's change and of the file system itself.
	Epoch time.Time
}

// MakeDisk makes an ext4 file system from a tree, as a sparse raw file: nothing
// is mounted. The same tree (names, contents, owners, modes and times of
// modification) with the same options gives the same bytes.
func MakeDisk(ctx context.Context, tree, file string, o DiskOptions) error {
	if os.Geteuid() != 0 {
		return &hotspare.Error{Code: hotspare.CodeNotRoot, What: "a disk of a root file system is made by root", Why: "the tree holds files of many owners", Fix: "run it with sudo"}
	}
	size := o.Size
	if size == 0 {
		used, err := treeSize(tree)
		if err != nil {
			return err
		}
		size = (used+used/2+512<<20)>>20<<20 + 1<<20
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return diskError("make the disk", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return diskError("make the disk", err)
	}
	uuid := seedUUID(o.Seed)
	env := append(os.Environ(), "LC_ALL=C", "E2FSPROGS_FAKE_TIME="+strconv.FormatInt(o.Epoch.Unix(), 10))
	if err := hostTool(ctx, env, "", "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-U", uuid, "-E", "hash_seed="+uuid+",root_owner=0:0",
		"-L", o.Label[:min(len(o.Label), 16)], "-d", tree, file); err != nil {
		return err
	}
	// mke2fs takes the times of change and of access from the host.
	script, err := timeScript(file, o.Epoch)
	if err != nil {
		return err
	}
	return hostTool(ctx, env, script, "debugfs", "-w", "-f", "-", file)
}

// seedUUID makes a UUID (RFC 9562, version 8) of a text.
func seedUUID(seed string) string {
	b := sha256.Sum256([]byte("hotspare file system\n" + seed))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func treeSize(tree string) (int64, error) {
	used := int64(0)
	err := filepath.WalkDir(tree, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			used += (info.Size()+4095)&^4095 + 512
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("images: look at the tree: %w", err)
	}
	return used, nil
}

// timeScript gives the orders to debugfs that set every inode's time of change.
func timeScript(disk string, at time.Time) (string, error) {
	f, err := os.Open(disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	ext, err := openExt4(newBlockCache(&rawSource{f, info.Size()}), info.Size())
	if err != nil {
		return "", err
	}
	var b strings.Builder
	seen := map[uint64]bool{}
	var walk func(n *file) error
	walk = func(n *file) error {
		if seen[n.number] {
			return nil
		}
		seen[n.number] = true
		for _, field := range []string{"ctime", "atime"} {
			fmt.Fprintf(&b, "sif <%d> %s @%d\nsif <%d> %s_extra 0\n", n.number, field, at.Unix(), n.number, field)
		}
		if !n.is(modeDir) {
			return nil
		}
		all, err := files{ext}.list(n)
		if err != nil {
			return err
		}
		for _, e := range all {
			child, err := ext.follow(e)
			if err != nil {
				return err
			}
			if err := walk(child); err != nil {
				return err
			}
		}
		return nil
	}
	top, err := ext.top()
	if err == nil {
		err = walk(top)
	}
	return b.String(), err
}

// hostTool runs a tool over what this program made.
func hostTool(ctx context.Context, env []string, input, name string, args ...string) error {
	said := &tail{limit: 4096}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = env, said, said, 10*time.Second
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return &hotspare.Error{Code: hotspare.CodeMissingTool, What: "a program is missing", Where: name, Fix: "apt-get install " + packageOf(name), Err: err}
	case strings.Contains(said.String(), "No space left") || strings.Contains(said.String(), "Could not allocate"):
		return &hotspare.Error{Code: hotspare.CodeDiskFull, What: "the tree does not fit on the disk", Where: name, Fix: "give the disk a larger size, or free space", Err: &toolError{name, said.String(), err}}
	}
	return fmt.Errorf("images: %w", &toolError{name, said.String(), err})
}
