package boot_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// debianKernel gives a real Debian kernel, fetched with apt once and kept in the
// user's cache directory.
func debianKernel(t *testing.T) []byte {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(base, "hotspare-test")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(cache, "boot-lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "vmlinuz-boot-test")
	b, err := os.ReadFile(path)
	if err == nil {
		return b
	}
	work := t.TempDir()
	out := run(t, "apt-cache", "depends", "--important", "linux-image-cloud-amd64")
	_, pkg, _ := strings.Cut(out, "Depends: ")
	pkg, _, _ = strings.Cut(pkg, "\n")
	get := exec.Command("apt-get", "download", strings.TrimSpace(pkg))
	get.Dir = work
	if out, err := get.CombinedOutput(); err != nil {
		t.Fatalf("apt-get download %s: %v\n%s", pkg, err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(debs) != 1 {
		t.Fatalf("apt-get download gave %v", debs)
	}
	run(t, "dpkg", "-x", debs[0], filepath.Join(work, "root"))
	kernels, _ := filepath.Glob(filepath.Join(work, "root/boot/vmlinuz-*"))
	if len(kernels) != 1 {
		t.Fatalf("the package has the kernels %v", kernels)
	}
	if b, err = os.ReadFile(kernels[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return b
}

// busyboxArchive is an initramfs whose init shows what it finds and ends.
func busyboxArchive(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	busybox, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return archive(t, map[string]string{"busybox": string(busybox), "init": `#!/busybox sh
/busybox mkdir -p /proc
/busybox mount -t proc proc /proc
echo INIT-BEGIN
read -r line </proc/cmdline; echo "$line"
read -r line </join.txt; echo "$line"
echo INIT-END
echo o >/proc/sysrq-trigger
read -r line
`})
}

// archive packs files into a cpio archive (newc), padded to 4 bytes as the
// kernel wants between archives.
func archive(t *testing.T, files map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	var names bytes.Buffer
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		names.WriteString(name + "\n")
	}
	cmd := exec.Command("cpio", "-o", "-H", "newc", "--quiet")
	cmd.Dir, cmd.Stdin = dir, &names
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cpio: %v", err)
	}
	return out
}
