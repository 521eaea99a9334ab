package archive

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pack makes an archive with cpio(1) of what is below dir.
func pack(t *testing.T, dir string) []byte {
	t.Helper()
	cmd := exec.Command("sh", "-c", "find . | sort | cpio --quiet -o -H newc")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What cpio(1) packs comes out as it was: modes, owners, links, devices.
func TestArchivesOfCpioComeOut(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(src, "usr/bin"), 0o755))
	must(os.Symlink("usr/bin", filepath.Join(src, "bin")))
	must(os.WriteFile(filepath.Join(src, "usr/bin/busybox"), bytes.Repeat([]byte("x"), 5000), 0o755))
	must(os.Link(filepath.Join(src, "usr/bin/busybox"), filepath.Join(src, "usr/bin/sh")))
	must(os.WriteFile(filepath.Join(src, "secret"), nil, 0o600))
	must(os.Chown(filepath.Join(src, "secret"), 7, 8))
	must(os.WriteFile(filepath.Join(src, "su"), []byte("su"), 0o755))
	must(unix.Chmod(filepath.Join(src, "su"), 0o4755))
	must(unix.Mkfifo(filepath.Join(src, "fifo"), 0o640))
	must(unix.Mknod(filepath.Join(src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	if err := Unpack(bytes.NewReader(pack(t, src)), dst); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("diff", "-r", "--no-dereference", "-x", "fifo", "-x", "null", src, dst).CombinedOutput(); err != nil {
		t.Errorf("diff: %v\n%s", err, out)
	}
	var a, b unix.Stat_t
	must(unix.Stat(filepath.Join(dst, "usr/bin/busybox"), &a))
	must(unix.Stat(filepath.Join(dst, "usr/bin/sh"), &b))
	if a.Ino != b.Ino || a.Mode&0o777 != 0o755 {
		t.Errorf("busybox and sh are not one file: %+v %+v", a, b)
	}
	must(unix.Stat(filepath.Join(dst, "secret"), &a))
	if a.Uid != 7 || a.Gid != 8 || a.Mode&0o777 != 0o600 {
		t.Errorf("secret: %+v", a)
	}
	must(unix.Stat(filepath.Join(dst, "su"), &a))
	if a.Mode&0o7777 != 0o4755 {
		t.Errorf("su: %#o", a.Mode)
	}
	must(unix.Stat(filepath.Join(dst, "null"), &a))
	if a.Mode&unix.S_IFMT != unix.S_IFCHR || a.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null: %+v", a)
	}
}

func TestTwoArchivesBehindEachOtherEndAtTheFirst(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "a"), []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	one := pack(t, src)
	if err := Unpack(bytes.NewReader(append(one, one...)), dst); err != nil {
		t.Fatal(err)
	}
}

// entry is one record by hand.
func entry(name string, mode uint32, data string) string {
	b := strings.Builder{}
	hex := func(n int) { b.WriteString(strings.ToLower(strings.Repeat("0", 8-len(itox(n))) + itox(n))) }
	b.WriteString("070701")
	for _, n := range []int{1, int(mode), 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0} {
		hex(n)
	}
	b.WriteString(name + "\x00")
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	b.WriteString(data)
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	return b.String()
}

func itox(n int) string {
	const digits = "0123456789abcdef"
	if n == 0 {
		return "0"
	}
	out := ""
	for ; n > 0; n /= 16 {
		out = string(digits[n%16]) + out
	}
	return out
}

func TestNothingIsWrittenOutside(t *testing.T) {
	outside := t.TempDir()
	for name, text := range map[string]string{
		"by its name": entry("../../../../../.."+outside+"/x", unix.S_IFREG|0o644, "x"),
		"by a link":   entry("a", unix.S_IFLNK|0o777, outside) + entry("a/x", unix.S_IFREG|0o644, "x"),
		"by two":      entry("a", unix.S_IFLNK|0o777, "..") + entry("b", unix.S_IFLNK|0o777, "a/..") + entry("b/x", unix.S_IFREG|0o644, "x"),
	} {
		dst := filepath.Join(t.TempDir(), "deep", "root")
		if err := os.MkdirAll(dst, 0o755); err != nil {
			t.Fatal(err)
		}
		err := Unpack(strings.NewReader(text+entry("TRAILER!!!", 0, "")), dst)
		if _, bad := os.Stat(filepath.Join(outside, "x")); bad == nil {
			t.Errorf("%s: a file was written outside", name)
		}
		if strings.HasPrefix(name, "by a") && err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte(entry("a", unix.S_IFREG|0o644, "x") + entry("TRAILER!!!", 0, "")))
	f.Add([]byte(entry("a", unix.S_IFLNK|0o777, "..") + entry("a/x", unix.S_IFREG|0o644, "x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		_ = Unpack(bytes.NewReader(b), t.TempDir())
	})
}
