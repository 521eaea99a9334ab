// Package debian gives tests a real Linux to boot: a kernel of Debian's cloud
// package with its modules, and an initramfs with programs of the host's own
// packages and the libraries that they need. Nothing is installed on the host.
//
// It leaves booting to the tests. The archive is the "newc" format of cpio, as
// the kernel's Documentation/driver-api/early-userspace/buffer-format.rst says.
package debian

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// metaPackage depends on the newest kernel for virtual machines.
const metaPackage = "linux-image-cloud-amd64"

// Kernel is an unpacked kernel package.
type Kernel struct {
	Image   string            // the file that a boot loader loads
	modules map[string]string // name with underscores to file
}

// FetchKernel gives the kernel that metaPackage depends on, or the package that
// HOTSPARE_TEST_KERNEL names. It is fetched once and kept in the user's cache.
func FetchKernel(ctx context.Context) (Kernel, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "hotspare", "test-kernels")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("debian: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return Kernel{}, fmt.Errorf("debian: %w", err)
	}
	defer lock.Close() // the lock goes with it
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Kernel{}, fmt.Errorf("debian: lock %s: %w", cache, err)
	}
	pkg, err := kernelPackage(ctx, cache)
	if err != nil {
		return Kernel{}, err
	}
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := unpack(ctx, cache, pkg, dir); err != nil {
			return Kernel{}, err
		}
	}
	return OpenKernel(dir)
}

// kernelPackage names the package: a kernel that is in the cache stays in use.
func kernelPackage(ctx context.Context, cache string) (string, error) {
	if p := os.Getenv("HOTSPARE_TEST_KERNEL"); p != "" {
		return p, nil
	}
	if found, err := filepath.Glob(filepath.Join(cache, "linux-image-6.1.*-cloud-amd64")); err == nil && len(found) > 0 {
		return filepath.Base(found[len(found)-1]), nil
	}
	out, err := apt(ctx, "", "apt-cache", "depends", "--important", metaPackage)
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(out) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(l), "Depends: "); ok && strings.HasPrefix(p, "linux-image-") {
			return p, nil
		}
	}
	return "", fmt.Errorf("debian: apt-cache knows no kernel behind %s (run apt-get update?): %s", metaPackage, out)
}

// unpack fetches a package and unpacks it as dir, wholly or not at all.
func unpack(ctx context.Context, cache, pkg, dir string) error {
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return fmt.Errorf("debian: %w", err)
	}
	defer os.RemoveAll(work)
	if _, err := apt(ctx, work, "apt-get", "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("debian: apt-get download %s left %d packages", pkg, len(debs))
	}
	root := filepath.Join(work, "root")
	if out, err := exec.CommandContext(ctx, "dpkg", "-x", debs[0], root).CombinedOutput(); err != nil {
		return fmt.Errorf("debian: unpack %s: %w: %s", debs[0], err, out)
	}
	return os.Rename(root, dir)
}

// apt runs a command of apt in dir. While another apt renews the lists there are
// none, so it tries for half a minute.
func apt(ctx context.Context, dir string, args ...string) (string, error) {
	for deadline := time.Now().Add(30 * time.Second); ; {
		c := exec.CommandContext(ctx, args[0], args[1:]...)
		c.Dir = dir
		out, err := c.CombinedOutput()
		if err == nil {
			return string(out), nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("debian: %s fails (run apt-get update?): %w: %s", strings.Join(args, " "), err, out)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// OpenKernel gives the kernel of a root: one /boot/vmlinuz and its modules.
func OpenKernel(dir string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("debian: %d kernels in %s", len(images), dir)
	}
	k := Kernel{Image: images[0], modules: map[string]string{}}
	err = filepath.WalkDir(filepath.Join(dir, "lib", "modules"), func(p string, d fs.DirEntry, err error) error {
		name, compressed, ok := strings.Cut(filepath.Base(p), ".ko")
		if err == nil && ok && !d.IsDir() && (compressed == "" || compressed == ".xz") {
			k.modules[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		return Kernel{}, fmt.Errorf("debian: modules of %s: %w", dir, err)
	}
	return k, nil
}

// module is one as the kernel loads it.
type module struct {
	name string
	data []byte
}

// order gives the named modules, each after those that it depends on. What is
// built into the kernel is left out.
func (k Kernel) order(ctx context.Context, names []string) ([]module, error) {
	var all []module
	seen := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		file := k.modules[name]
		if seen[name] || file == "" {
			return nil
		}
		seen[name] = true
		data, err := readModule(ctx, file)
		if err != nil {
			return err
		}
		needs, err := dependsOn(data)
		if err != nil {
			return fmt.Errorf("debian: module %s: %w", file, err)
		}
		for _, n := range needs {
			if err := visit(n); err != nil {
				return err
			}
		}
		all = append(all, module{name, data})
		return nil
	}
	for _, n := range names {
		if err := visit(strings.ReplaceAll(n, "-", "_")); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func readModule(ctx context.Context, file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	out, err := exec.CommandContext(ctx, "xz", "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("debian: xz -dc %s: %w", file, err)
	}
	return out, nil
}

// dependsOn reads what a module says that it depends on.
func dependsOn(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("it has no .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, kv := range strings.Split(string(info), "\x00") {
		if d, ok := strings.CutPrefix(kv, "depends="); ok && d != "" {
			return strings.Split(strings.ReplaceAll(d, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
