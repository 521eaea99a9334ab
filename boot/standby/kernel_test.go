package standby

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// debianKernel gives a real Debian kernel: the file, and its module tree as an
// installed system has it. It is fetched with apt once and kept in the user's
// cache directory.
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
	// Any one will do: what is cached needs no network and no apt.
	have, err := filepath.Glob(filepath.Join(cache, "linux-image-[0-9]*-"+flavour))
	if err != nil {
		t.Fatal(err)
	}
	var pkg string
	if len(have) > 0 {
		pkg = filepath.Base(have[len(have)-1])
	} else {
		pkg = kernelPackage(t, flavour)
		fetchKernel(t, cache, pkg, strings.TrimPrefix(pkg, "linux-image-"), filepath.Join(cache, pkg))
	}
	dir := filepath.Join(cache, pkg)
	version = strings.TrimPrefix(pkg, "linux-image-")
	return filepath.Join(dir, "boot/vmlinuz-"+version), filepath.Join(dir, "lib/modules", version), version
}

// kernelPackage resolves the meta package to the one with the kernel.
func kernelPackage(t *testing.T, flavour string) string {
	t.Helper()
	out := command(t, "", "apt-cache", "depends", "--important", "linux-image-"+flavour)
	for line := range strings.Lines(out) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return name
		}
	}
	t.Fatalf("linux-image-%s depends on no kernel:\n%s", flavour, out)
	return ""
}

func fetchKernel(t *testing.T, cache, pkg, version, dir string) {
	t.Helper()
	work, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
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

func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return string(out)
}

// buildFixture compiles the /init of testdata as the agent is compiled.
func buildFixture(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the fixture: %v\n%s", err, b)
	}
	return out
}

// bootVM boots a kernel and an initrd under emulation and gives what the
// machine said on its serial console.
func bootVM(t *testing.T, kernel string, initrd []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(file, initrd, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=128", "-M", "pc,graphics=off", "-cpu", "max,-svm,-vmx",
		"-m", "512", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", file,
		"-append", "console=ttyS0 panic=-1 quiet", "-netdev", "user,id=n,restrict=on", "-device", "virtio-net-pci,netdev=n,romfile=",
		"-device", "virtio-rng-pci")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("qemu: %v\n%s", err, out)
	}
	return string(out)
}

// A real kernel unpacks our archive with the archive of one boot behind it,
// starts /init, and can load every module of the list in the list's order.
func TestKernelBootsOurInitramfs(t *testing.T) {
	vmlinuz, modules, version := debianKernel(t, "cloud-amd64")
	agent := buildFixture(t)
	join := JoinArchive(map[string][]byte{"/hotspare/boot.json": []byte(`{"bootId":"b-1"}`)})
	noZstd := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(noZstd, []byte("CONFIG_X=y\n# CONFIG_RD_ZSTD is not set\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, config, compression string
	}{
		{"zstd then join", "", "zstd"},
		{"gzip then join", noZstd, "gzip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := Build(t.Context(), Request{Agent: agent, KernelVersion: version, ModulesDir: modules, KernelConfig: c.config, Set: Lab, Arch: "amd64"}, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if res.Compression != c.compression {
				t.Fatalf("compressed with %s, want %s", res.Compression, c.compression)
			}
			big, err := os.ReadFile(res.Path)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			said := bootVM(t, vmlinuz, append(big, join...))
			t.Logf("%s: %d bytes (%d unpacked), %d modules, absent %v; boot to power-off %.1f s",
				c.name, res.Size, res.Unpacked, res.ModuleCount, res.Absent, time.Since(start).Seconds())
			checkBoot(t, said, res)
		})
	}
}

func checkBoot(t *testing.T, said string, res Result) {
	t.Helper()
	for _, want := range []string{"fixture: started", `fixture: boot ---------- -rw------- {"bootId":"b-1"} <nil>`, "/sys/class/net/eth0", "fixture: done"} {
		if !strings.Contains(said, want) {
			t.Errorf("the machine did not say %q", want)
		}
	}
	if strings.Contains(said, "fixture: failed") {
		t.Error("a module did not load")
	}
	loaded, nodev := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if m, ok := strings.CutPrefix(line, "fixture: module "); ok {
			loaded[m] = true
		}
		if file, ok := strings.CutPrefix(line, "fixture: nodev "); ok { // for another processor
			nodev[moduleName(file)] = true
		}
	}
	for _, m := range res.Load {
		if !loaded[m] && !nodev[m] {
			t.Errorf("%s is in modules.load and not in /proc/modules", m)
		}
	}
	for _, m := range []string{"iscsi_tcp", "sd_mod", "virtio_net"} {
		if !loaded[m] {
			t.Errorf("%s is not loaded", m)
		}
	}
	if t.Failed() {
		fmt.Println(said)
	}
}
