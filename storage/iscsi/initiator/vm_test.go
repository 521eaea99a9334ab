package initiator

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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

// guestLine is a line from the guest: see testguest.
type guestLine struct {
	Answer, Event, Name, Error, Code string
	Millis                           int64
	Values                           map[string]string
}

// vm is a running guest.
type vm struct {
	t       *testing.T
	in      io.Writer
	console string

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every line
	lines   []guestLine
	dead    error
	next    int
}

// bootVM starts the guest and waits until it obeys.
func bootVM(t *testing.T) *vm {
	t.Helper()
	kernel := guestKernel(t)
	images, _ := filepath.Glob(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if len(images) != 1 {
		t.Fatalf("%d kernels in %s", len(images), kernel)
	}
	v := &vm{t: t, console: filepath.Join(t.TempDir(), "console.log"), changed: make(chan struct{})}
	q := exec.Command("qemu-system-x86_64",
		"-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,-svm,-vmx", "-m", "384", "-smp", "1",
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", images[0], "-initrd", guestInitramfs(t, kernel),
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1",
		"-netdev", "user,id=n,restrict=off,ipv6=off", "-device", "virtio-net-pci,netdev=n,romfile=",
		"-serial", "file:"+v.console, "-serial", "stdio")
	in, err := q.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := q.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	q.Stderr = &stderr
	if err := q.Start(); err != nil {
		t.Fatalf("QEMU does not start (package qemu-system-x86): %v", err)
	}
	v.in = in
	read := make(chan struct{})
	go func() { defer close(read); v.read(out) }()
	t.Cleanup(func() {
		_ = q.Process.Kill()
		<-read
		_ = q.Wait()
		if t.Failed() || os.Getenv("HOTSPARE_TEST_CONSOLE") != "" {
			log, _ := os.ReadFile(v.console)
			t.Logf("QEMU: %s\nconsole of the guest:\n%s", stderr.String(), log)
		}
	})
	v.event("ready", "", 90*time.Second)
	return v
}

// read collects the guest's lines.
func (v *vm) read(r io.Reader) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		var l guestLine
		if json.Unmarshal(bytes.TrimSpace(s.Bytes()), &l) == nil {
			v.note(func() { v.lines = append(v.lines, l) })
		}
	}
	v.note(func() { v.dead = fmt.Errorf("the guest ended: %w", io.ErrUnexpectedEOF) })
}

func (v *vm) note(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
	close(v.changed)
	v.changed = make(chan struct{})
}

// wait gives the first line that fits and takes it out of the list.
func (v *vm) wait(within time.Duration, what string, fits func(guestLine) bool) guestLine {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		v.mu.Lock()
		for n, l := range v.lines {
			if fits(l) {
				v.lines = append(v.lines[:n], v.lines[n+1:]...)
				v.mu.Unlock()
				return l
			}
		}
		changed, dead, seen := v.changed, v.dead, fmt.Sprint(v.lines)
		v.mu.Unlock()
		if dead != nil {
			v.t.Fatalf("waiting for %s: %v", what, dead)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			v.t.Fatalf("no %s within %s; lines of the guest: %s", what, within, seen)
		}
	}
}

// event waits for an event of a session.
func (v *vm) event(kind, name string, within time.Duration) guestLine {
	v.t.Helper()
	return v.wait(within, kind+" of "+name, func(l guestLine) bool { return l.Event == kind && l.Name == name })
}

// idle fails when an order was answered already.
func (v *vm) idle(id string) {
	v.t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, l := range v.lines {
		if l.Answer == id {
			v.t.Fatalf("%s was answered already: %+v", id, l)
		}
	}
}

// forget drops the lines that nobody waited for.
func (v *vm) forget() { v.note(func() { v.lines = nil }) }

// order is one command to the guest; see testguest.
type order map[string]any

// send gives an order and returns the id of its answer.
func (v *vm) send(o order) string {
	v.t.Helper()
	v.next++
	id := fmt.Sprint("order ", v.next, " ", o["op"])
	o["id"] = id
	b, err := json.Marshal(o)
	if err != nil {
		v.t.Fatal(err)
	}
	if _, err := v.in.Write(append(b, '\n')); err != nil {
		v.t.Fatalf("the guest takes no orders: %v", err)
	}
	return id
}

// answer waits for the answer to an order.
func (v *vm) answer(id string, within time.Duration) guestLine {
	v.t.Helper()
	return v.wait(within, "answer to "+id, func(l guestLine) bool { return l.Answer == id })
}

// do gives an order that must succeed.
func (v *vm) do(o order, within time.Duration) guestLine {
	v.t.Helper()
	l := v.answer(v.send(o), within)
	if l.Error != "" {
		v.t.Fatalf("%v: %s", o, l.Error)
	}
	return l
}
