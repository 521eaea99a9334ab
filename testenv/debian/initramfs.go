package debian

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Initramfs is an archive under construction. The zero value is empty. Parent
// directories are made as they are needed.
type Initramfs struct {
	out   bytes.Buffer
	inode int
	have  map[string]bool
}

// ModuleList is the file that lists the modules, in the order to load them.
const ModuleList = "/modules"

// File adds a file at an absolute path.
func (a *Initramfs) File(name string, mode os.FileMode, data []byte) {
	a.entry(name, unix.S_IFREG|uint32(mode.Perm()), data)
}

// Dir adds an empty directory.
func (a *Initramfs) Dir(name string) { a.entry(name, unix.S_IFDIR|0o755, nil) }

// Symlink adds a link.
func (a *Initramfs) Symlink(name, to string) { a.entry(name, unix.S_IFLNK|0o777, []byte(to)) }

// Program adds a program of the host under its own path, with its libraries.
func (a *Initramfs) Program(ctx context.Context, name string) error {
	at, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("debian: %w", err)
	}
	if at, err = filepath.EvalSymlinks(at); err != nil {
		return fmt.Errorf("debian: %w", err)
	}
	files := []string{at}
	// A static program is none that ldd knows anything of.
	out, err := exec.CommandContext(ctx, "ldd", at).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "not a dynamic executable") {
		return fmt.Errorf("debian: ldd %s: %w: %s", at, err, out)
	}
	for l := range strings.Lines(string(out)) {
		l, _, _ = strings.Cut(strings.TrimSpace(l), " (")
		if _, file, ok := strings.Cut(l, " => "); ok {
			l = file
		}
		if strings.HasPrefix(l, "/") {
			files = append(files, l)
		}
	}
	for _, file := range files {
		if a.have[file] {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("debian: %w", err)
		}
		a.File(file, 0o755, b)
	}
	if base := "/sbin/" + path.Base(name); !a.have[base] {
		a.Symlink(base, at)
	}
	return nil
}

// Modules adds modules with those that they depend on, and ModuleList.
func (a *Initramfs) Modules(ctx context.Context, k Kernel, names ...string) error {
	all, err := k.order(ctx, names)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, m := range all {
		name := "/lib/modules/" + m.name + ".ko"
		a.File(name, 0o644, m.data)
		fmt.Fprintln(&list, name)
	}
	a.File(ModuleList, 0o644, []byte(list.String()))
	return nil
}

// Bytes ends the archive and gives it.
func (a *Initramfs) Bytes() []byte {
	a.append("TRAILER!!!", 0, nil)
	return a.out.Bytes()
}

func (a *Initramfs) entry(name string, mode uint32, data []byte) {
	if a.have == nil {
		a.have = map[string]bool{"/": true}
	}
	if dir := path.Dir(name); !a.have[dir] {
		a.Dir(dir)
	}
	if !a.have[name] {
		a.have[name] = true
		a.append(strings.TrimPrefix(name, "/"), mode, data)
	}
}

func (a *Initramfs) append(name string, mode uint32, data []byte) {
	a.inode++
	fmt.Fprintf(&a.out, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.out.WriteString(name + "\x00")
	a.pad()
	a.out.Write(data)
	a.pad()
}

func (a *Initramfs) pad() {
	for a.out.Len()%4 != 0 {
		a.out.WriteByte(0)
	}
}
