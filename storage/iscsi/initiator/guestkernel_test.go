package initiator

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// guestModules are what the guest loads; what they depend on is found.
var guestModules = []string{"virtio_pci", "virtio_net", "sd_mod", "iscsi_tcp", "crc32c_generic"}

// guestKernel gives the directory of an unpacked Debian kernel package, fetched
// once and kept in the user's cache.
func guestKernel(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "hotspare", "test-kernels")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	pkg := kernelPackage(t, cache)
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	apt(t, work, "apt-get", "download", pkg)
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("apt-get download %s left %d packages", pkg, len(debs))
	}
	run(t, "dpkg", "-x", debs[0], filepath.Join(work, "root"))
	if err := os.Rename(filepath.Join(work, "root"), dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// kernelPackage gives the package that linux-image-cloud-amd64 depends on, or
// the one that HOTSPARE_TEST_KERNEL names, or one that is in the cache already.
func kernelPackage(t *testing.T, cache string) string {
	t.Helper()
	if p := os.Getenv("HOTSPARE_TEST_KERNEL"); p != "" {
		return p
	}
	if found, _ := filepath.Glob(filepath.Join(cache, "linux-image-6.1.*-cloud-amd64")); len(found) > 0 {
		return filepath.Base(found[len(found)-1])
	}
	out := apt(t, "", "apt-cache", "depends", "--important", "linux-image-cloud-amd64")
	for _, l := range strings.Split(out, "\n") {
		if p, ok := strings.CutPrefix(strings.TrimSpace(l), "Depends: "); ok && strings.HasPrefix(p, "linux-image-") {
			return p
		}
	}
	t.Fatalf("apt-cache knows no kernel behind linux-image-cloud-amd64 (run apt-get update?):\n%s", out)
	return ""
}

// apt runs a command of apt in dir. While another apt renews the lists there
// are none, so it tries for half a minute.
func apt(t *testing.T, dir string, args ...string) string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Second) {
		c := exec.Command(args[0], args[1:]...)
		c.Dir = dir
		out, err := c.CombinedOutput()
		if err == nil {
			return string(out)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s fails (run apt-get update?): %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// moduleFiles gives the files of the modules that the guest needs, each after
// those that it depends on.
func moduleFiles(t *testing.T, kernel string) []string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(kernel, "lib", "modules"), func(p string, d fs.DirEntry, err error) error {
		name, compressed, ok := strings.Cut(filepath.Base(p), ".ko")
		if err == nil && ok && !d.IsDir() && (compressed == "" || compressed == ".xz") {
			files[strings.ReplaceAll(name, "-", "_")] = p
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	seen := make(map[string]bool)
	var visit func(string)
	visit = func(name string) {
		if seen[name] || files[name] == "" { // built in
			return
		}
		seen[name] = true
		for _, d := range moduleDepends(t, files[name]) {
			visit(strings.ReplaceAll(d, "-", "_"))
		}
		order = append(order, files[name])
	}
	for _, m := range guestModules {
		visit(m)
	}
	return order
}

// moduleBytes gives a module as the kernel loads it.
func moduleBytes(t *testing.T, path string) []byte {
	t.Helper()
	if strings.HasSuffix(path, ".xz") {
		out, err := exec.Command("xz", "-dc", path).Output()
		if err != nil {
			t.Fatalf("xz -dc %s: %v", path, err)
		}
		return out
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// moduleDepends reads what a module says that it depends on.
func moduleDepends(t *testing.T, path string) []string {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(moduleBytes(t, path)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer f.Close()
	info, err := f.Section(".modinfo").Data()
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, kv := range strings.Split(string(info), "\x00") {
		if d, ok := strings.CutPrefix(kv, "depends="); ok && d != "" {
			return strings.Split(d, ",")
		}
	}
	return nil
}

// cpio is a newc archive.
type cpio struct {
	bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode uint32, data []byte) {
	c.inode++
	nlink := 1
	fmt.Fprintf(c, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, mode, 0, 0, nlink, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.WriteString(name + "\x00")
	c.pad()
	c.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.Len()%4 != 0 {
		c.WriteByte(0)
	}
}

// guestInitramfs builds the guest's program and its modules into an archive.
func guestInitramfs(t *testing.T, kernel string) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the guest's program: %v\n%s", err, out)
	}
	var c cpio
	for _, d := range []string{"dev", "proc", "sys", "lib"} {
		c.add(d, unix.S_IFDIR|0o755, nil)
	}
	var list strings.Builder
	for _, f := range moduleFiles(t, kernel) {
		name := "lib/" + strings.TrimSuffix(filepath.Base(f), ".xz")
		c.add(name, unix.S_IFREG|0o644, moduleBytes(t, f))
		fmt.Fprintln(&list, "/"+name)
	}
	c.add("modules", unix.S_IFREG|0o644, []byte(list.String()))
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	c.add("init", unix.S_IFREG|0o755, b)
	c.add("TRAILER!!!", 0, nil)
	path := filepath.Join(dir, "initramfs")
	if err := os.WriteFile(path, c.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
