package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/haengine/agentlink"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/storage/iscsi"
)

// disks is the appliance's storage: the real store and the real target.
type disks struct {
	store   *cow.Store
	exports *storage.Exports
	portal  netip.AddrPort
}

var chapSecret = hotspare.NewSecret("0123456789abcdef")

// openDisks opens a store and its exports.
func openDisks(ctx context.Context, dir string) (*disks, error) {
	store, err := cow.Open(ctx, dir, cow.Options{})
	if err != nil {
		return nil, err
	}
	exports, err := storage.OpenExports(filepath.Join(dir, "exports.db"), storage.Options{
		Volumes: store, TargetName: func(volume, _ string) string { return "iqn.2026-11.io.hotspare:" + volume },
	})
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &disks{store: store, exports: exports, portal: netip.AddrPortFrom(hostAddr.Addr(), 3260)}, nil
}

func (d *disks) close() error { return errors.Join(d.exports.Close(), d.store.Close()) }

// serve is the target, until ctx is done.
func (d *disks) serve(ctx context.Context) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.portal.String())
	if err != nil {
		return err
	}
	defer ln.Close()
	return iscsi.New(iscsi.Options{Directory: d.exports}).Serve(ctx, ln)
}

// serveDisks opens a store and serves it.
func serveDisks(t *testing.T) *disks {
	t.Helper()
	d, err := openDisks(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Log("the target ended:", err)
		}
		_ = d.close()
	})
	return d
}

// targetVar names the store that TestHelperTarget serves.
const targetVar = "HOTSPARE_AGENT_TEST_TARGET"

// TestHelperTarget is no test: it is the target as a process of its own, which
// another test kills.
func TestHelperTarget(t *testing.T) {
	dir := os.Getenv(targetVar)
	if dir == "" {
		t.Skip("it is run by other tests")
	}
	d, err := openDisks(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal(d.serve(t.Context()))
}

// startTarget starts the target as a process. kill ends it as power loss would.
func startTarget(t *testing.T, dir string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperTarget$", "-test.v", "-test.timeout=30m")
	cmd.Env = append(os.Environ(), targetVar+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	t.Cleanup(kill)
	return kill
}

// fill makes a volume with the contents of a file, holes left out.
func (d *disks) fill(t *testing.T, name, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.store.Create(t.Context(), name, st.Size()); err != nil {
		t.Fatal(err)
	}
	dev, err := d.store.OpenVolume(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	buf := make([]byte, 1<<20)
	for at := int64(0); at < st.Size(); {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err != nil {
			break // only a hole is left
		}
		at = data &^ (1<<20 - 1)
		n, err := f.ReadAt(buf[:min(int64(len(buf)), st.Size()-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := dev.WriteAt(buf[:n], at); err != nil {
			t.Fatal(err)
		}
		at += int64(n)
	}
}

// grant exports a volume under an epoch and gives the log-in for the claim.
func (d *disks) grant(t *testing.T, volume, name, format string, epoch uint64) agentlink.Volume {
	t.Helper()
	initiator := fmt.Sprintf("iqn.2026-11.io.hotspare:n1.%s.%d", name, epoch)
	if err := d.exports.Grant(t.Context(), storage.Grant{Volume: volume, Epoch: epoch, Initiator: initiator, User: "n1", Secret: chapSecret}); err != nil {
		t.Fatal(err)
	}
	iqn, err := d.exports.TargetName(volume)
	if err != nil {
		t.Fatal(err)
	}
	return agentlink.Volume{Name: name, Portal: d.portal, IQN: iqn, Initiator: initiator, User: "n1", Secret: chapSecret, Format: format}
}

// debianKernel gives a Debian kernel and its modules from the cache that the
// project's tests share, fetched with apt once.
func debianKernel(t *testing.T, flavour string) (vmlinuz, modules, version string) {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(base, "hotspare-test")
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
	pkg := kernelPackage(t, cache, flavour)
	version = strings.TrimPrefix(pkg, "linux-image-")
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); err != nil {
		work, err := os.MkdirTemp(cache, "fetch-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(work) }()
		command(t, work, "apt-get", "download", pkg)
		debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
		if err != nil || len(debs) != 1 {
			t.Fatalf("apt-get download gave %v, %v", debs, err)
		}
		root := filepath.Join(work, "root")
		command(t, work, "dpkg", "-x", debs[0], root)
		command(t, work, "depmod", "-b", root, version)
		if err := os.Rename(root, dir); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "boot/vmlinuz-"+version), filepath.Join(dir, "lib/modules", version), version
}

// kernelPackage names the package: the one in the cache, else what the meta
// package depends on now.
func kernelPackage(t *testing.T, cache, flavour string) string {
	t.Helper()
	if have, _ := filepath.Glob(filepath.Join(cache, "linux-image-[0-9]*-"+flavour)); len(have) > 0 {
		return filepath.Base(have[len(have)-1])
	}
	for line := range strings.Lines(command(t, "", "apt-cache", "depends", "--important", "linux-image-"+flavour)) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return name
		}
	}
	t.Fatalf("linux-image-%s depends on no kernel", flavour)
	return ""
}

func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
