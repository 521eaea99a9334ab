package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare"
)

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Whatever a disk is packed in or converted from, it is the same disk.
func TestImportOfEveryFormat(t *testing.T) {
	raw := mke2fs(t, treeOf(t), "-t", "ext4")
	sum := diskDigestOf(t, raw)
	r := open(t, t.TempDir(), newDisks(t))
	dir := t.TempDir()
	command(t, dir, "cp", "--sparse=always", raw, "d.raw")
	command(t, dir, "gzip", "-k1", "d.raw")
	command(t, dir, "xz", "-k0", "d.raw")
	command(t, dir, "zstd", "-qk", "d.raw")
	command(t, dir, "bzip2", "-k1", "d.raw")
	for _, args := range [][]string{
		{"-O", "vmdk", "d.raw", "sparse.vmdk"},
		{"-O", "vmdk", "-o", "subformat=streamOptimized", "d.raw", "stream.vmdk"},
		{"-O", "vpc", "-o", "subformat=dynamic,force_size", "d.raw", "dynamic.vhd"},
		{"-O", "vpc", "-o", "subformat=fixed,force_size", "d.raw", "fixed.vhd"},
		{"-O", "vhdx", "d.raw", "d.vhdx"},
		{"-O", "qcow2", "-c", "d.raw", "d.qcow2"},
	} {
		command(t, dir, "qemu-img", append([]string{"convert", "-f", "raw"}, args...)...)
	}
	command(t, dir, "zstd", "-q", "d.qcow2")
	for _, c := range []struct {
		file   string
		format Format
	}{
		{"d.raw", FormatRaw}, {"d.raw.gz", FormatRaw}, {"d.raw.xz", FormatRaw}, {"d.raw.zst", FormatRaw}, {"d.raw.bz2", FormatRaw},
		{"sparse.vmdk", FormatVMDK}, {"stream.vmdk", FormatVMDK}, {"dynamic.vhd", FormatVHD}, {"fixed.vhd", FormatVHD}, {"d.vhdx", FormatVHDX},
		{"d.qcow2.zst", FormatQCOW2},
	} {
		t.Run(c.file, func(t *testing.T) {
			path := filepath.Join(dir, c.file)
			img, err := r.Import(t.Context(), ImportRequest{Name: strings.ReplaceAll(c.file, ".", "-"), Path: path, SHA256: fileSHA256(t, path)})
			if err != nil {
				t.Fatal(err)
			}
			if img.Digest != sum || img.Format != c.format || !img.Facts.Has(StartKernel) || img.Facts.Has(StartSAN) || img.Facts.Userland != "amd64" || img.Facts.Init != "systemd" {
				t.Errorf("image %+v", img)
			}
			checkKernel(t, r, img)
		})
	}
	if left, _ := os.ReadDir(filepath.Join(r.dir, "staging")); len(left) != 0 {
		t.Errorf("staging holds %v", left)
	}
}

// treeOf is rootTree with programs to tell the architecture by.
func treeOf(t testing.TB) string {
	t.Helper()
	tree := rootTree(t)
	elf := make([]byte, 64)
	copy(elf, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(elf[18:], 62)
	write(t, tree+"/usr/bin/sh", elf)
	write(t, tree+"/usr/lib/systemd/systemd", elf)
	link(t, "usr/bin", tree+"/bin")
	link(t, "usr/sbin", tree+"/sbin")
	link(t, "/lib/systemd/systemd", tree+"/usr/sbin/init")
	return tree
}

// What promises little and holds much is stopped, and leaves nothing.
func TestBombs(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/zeros", make([]byte, 8<<20))
	command(t, dir, "gzip", "-k", "zeros")
	command(t, dir, "xz", "-k", "zeros")
	command(t, dir, "zstd", "-qk", "zeros")
	write(t, dir+"/wide.zst", []byte("\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00")) // a window of 2 GiB
	d, repo := newDisks(t), t.TempDir()
	r, err := Open(t.Context(), repo, Options{Disks: d, MaxDisk: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range []struct{ file, says string }{
		{"zeros.gz", "holds more than is allowed"}, {"zeros.xz", "holds more than is allowed"}, {"zeros.zst", "holds more than is allowed"}, {"wide.zst", "cannot be unpacked"},
	} {
		_, err := r.Import(t.Context(), ImportRequest{Name: "x", Path: filepath.Join(dir, c.file)})
		if hotspare.CodeOf(err) != hotspare.CodeImageFormat || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.file, err)
		}
		if left := leftovers(t, repo, d); len(left) != 0 {
			t.Errorf("%s left %v", c.file, left)
		}
	}
	for _, cut := range []string{"zeros.gz", "zeros.zst", "zeros.xz"} {
		b := mustRead(t, filepath.Join(dir, cut))
		write(t, filepath.Join(dir, cut), b[:len(b)-5])
	}
	big := open(t, t.TempDir(), newDisks(t))
	for _, c := range []struct{ file, code string }{{"zeros.gz", "IMG-002"}, {"zeros.zst", "IMG-002"}, {"zeros.xz", "IMG-004"}} {
		if _, err := big.Import(t.Context(), ImportRequest{Name: "x", Path: filepath.Join(dir, c.file)}); string(hotspare.CodeOf(err)) != c.code {
			t.Errorf("%s cut: %v", c.file, err)
		}
	}
}

// The sandbox holds: no network, no other user's files, no more than is allowed.
func TestCage(t *testing.T) {
	dir, err := lend(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	run := func(script string) (string, error) {
		var out bytes.Buffer
		err := cage{work: dir, maxFile: 1 << 20, maxTime: time.Minute, maxBytes: 64 << 20}.run(t.Context(), strings.NewReader("in"), &out, "sh", "-c", script)
		return strings.TrimSpace(out.String()), err
	}
	for _, c := range []struct{ script, want string }{
		{"id -u; id -G", "65534\n65534"},
		{"cat; echo; echo x > /work/f && cat /work/f", "in\nx"},
		{"ls /", "bin\netc\nlib\nlib64\nsbin\nusr\nwork"},
		{"ls /etc", "ld.so.cache"},
		{"touch /usr/x /x 2>/dev/null; ls /x /usr/x 2>/dev/null; echo done", "done"},
		{"cat /proc/1/environ 2>/dev/null; ls /proc 2>/dev/null; echo none", "none"},
		{"grep Cap /proc/self/status 2>/dev/null; echo none", "none"},
	} {
		if got, err := run(c.script); err != nil || got != c.want {
			t.Errorf("%s gives %q, %v; want %q", c.script, got, err, c.want)
		}
	}
	if out, err := run("head -c 2000000 /dev/zero > /work/large"); err == nil {
		t.Errorf("a large file was written: %q", out)
	}
	if _, err := run("exec 3<>/dev/tcp/127.0.0.1/1; exit 1"); err == nil {
		t.Error("the failure is not told")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if err := (cage{work: dir, maxFile: 1, maxTime: time.Hour}).run(ctx, nil, nil, "sleep", "600"); err == nil || time.Since(begun) > time.Minute {
		t.Errorf("a tool that does not end: %v", err)
	}
}

// entryOf is one entry of a tar archive.
type entryOf struct {
	name, link, data string
	kind             byte
	mode             int64
	pax              map[string]string
}

func tarOf(t testing.TB, all ...entryOf) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o755
		}
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.data)), ModTime: time.Unix(1e9, 0), PAXRecords: e.pax, Format: tar.FormatPAX}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(t.TempDir(), "a.tar"), b.Bytes())
}

// A root file system becomes a disk, and the same one always the same disk.
func TestImportOfARootFileSystem(t *testing.T) {
	tree := treeOf(t)
	if err := os.Chown(tree+"/etc", 1234, 4321); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "root.tar.gz")
	command(t, "", "tar", "-C", tree, "--numeric-owner", "-czf", archive, ".")
	var digests []string
	for range 2 {
		d := newDisks(t)
		r := open(t, t.TempDir(), d)
		img, err := r.Import(t.Context(), ImportRequest{Name: "web", Path: archive})
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, img.Digest)
		if img.Format != FormatTar || img.RootFS != "ext4" || img.RootPartition != 0 || img.SizeBytes < 512<<20 {
			t.Errorf("image %+v", img)
		}
		checkKernel(t, r, img)
		disk := filepath.Join(d.dir, img.Volume)
		command(t, "", "e2fsck", "-fn", disk)
		if out := command(t, "", "debugfs", "-R", "stat /etc", disk); !strings.Contains(out, "User:  1234   Group:  4321") {
			t.Errorf("the owner is lost: %s", out)
		}
		time.Sleep(1100 * time.Millisecond) // inode times of the host differ now
	}
	if digests[0] != digests[1] {
		t.Error("the same archive gives two disks")
	}
}

// Layers go over one another; names that lead out lead nowhere.
func TestLayers(t *testing.T) {
	dir := t.TempDir()
	tree, err := newTreeBuilder(t.Context(), dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	layers := [][]entryOf{
		{
			{name: "etc/", kind: tar.TypeDir}, {name: "etc/a", data: "1"}, {name: "etc/b", data: "1"}, {name: "opt/x/deep", data: "1"}, {name: "opt/y", data: "1"},
			{name: "run", kind: tar.TypeSymlink, link: "/var/run"}, {name: "out", kind: tar.TypeSymlink, link: outside}, {name: "up", kind: tar.TypeSymlink, link: "../../../.."},
			{name: "tool", data: "x", mode: 0o4755}, {name: "ping", data: "x", pax: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
		},
		{
			{name: "etc/.wh.a"}, {name: "etc/b", data: "2"}, {name: "opt/.wh..wh..opq"}, {name: "opt/z", data: "2"},
			{name: "run/pid", data: "2"}, {name: "out/planted", data: "2"}, {name: "up/etc/c", data: "2"}, {name: "../../etc/d", data: "2"}, {name: "/etc/e", data: "2"},
			{name: "hard", kind: tar.TypeLink, link: "etc/b"}, {name: "pipe", kind: tar.TypeFifo},
		},
	}
	for _, l := range layers {
		if err := tree.apply(bytes.NewReader(mustRead(t, tarOf(t, l...))), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.finish(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"etc/a": "", "etc/b": "2", "opt/x/deep": "", "opt/z": "2", "var/run/pid": "2", "etc/c": "2", "etc/d": "2", "etc/e": "2", "hard": "2", outside[1:] + "/planted": "2"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if string(b) != want || (want == "") != os.IsNotExist(err) {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("the host's folder holds %v", left)
	}
	if info, err := os.Stat(dir + "/tool"); err != nil || info.Mode()&os.ModeSetuid == 0 {
		t.Errorf("set-uid is lost: %v %v", info, err)
	}
	if out := command(t, "", "getfattr", "-n", "security.capability", dir+"/ping"); !strings.Contains(out, "security.capability") {
		t.Error("the capability is lost")
	}
	for _, bad := range [][]entryOf{
		{{name: "a", data: strings.Repeat("x", 2<<20)}},
		{{name: "l", kind: tar.TypeLink, link: "none"}},
		{{name: ".wh..."}},
		{{name: "loop", kind: tar.TypeSymlink, link: "loop"}, {name: "loop/x", data: "1"}},
	} {
		sub := t.TempDir()
		tree, err := newTreeBuilder(t.Context(), sub, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.apply(bytes.NewReader(mustRead(t, tarOf(t, bad...))), true); err == nil {
			t.Errorf("%+v is taken", bad[0].name)
		}
		tree.finish()
	}
}

// A disk that brings its own boot loader needs no kernel that is found.
func TestOpaqueDisks(t *testing.T) {
	esp := filepath.Join(t.TempDir(), "esp")
	command(t, "", "truncate", "-s", "40M", esp)
	command(t, "", "mkfs.vfat", "-F", "32", esp)
	loader := make([]byte, 4096)
	copy(loader, "MZ")
	binary.LittleEndian.PutUint32(loader[0x3c:], 0x80)
	copy(loader[0x80:], "PE\x00\x00\x64\x86")
	copy(loader[0x200:], "GRUB")
	file := write(t, t.TempDir()+"/BOOTX64.EFI", loader)
	command(t, "", "mmd", "-i", esp, "::/EFI", "::/EFI/BOOT")
	command(t, "", "mcopy", "-i", esp, file, "::/EFI/BOOT/BOOTX64.EFI")
	uefi := partitioned(t, "gpt", esp)
	command(t, "", "sfdisk", "-q", "--part-type", uefi, "1", "U")
	bios := partitioned(t, "dos", write(t, t.TempDir()+"/data", noise("ntfs", 1<<20)))
	patch(t, bios, 0, func(b []byte) { copy(b, noise("code", 440)) })
	system := mke2fs(t, treeOf(t))
	both := partitioned(t, "dos", system)
	patch(t, both, 0, func(b []byte) { copy(b, noise("code", 440)) })
	for _, c := range []struct {
		name, disk string
		starts     []Start
		firmware   []string
		arch, says string
	}{
		{"uefi", uefi, []Start{StartSAN}, []string{"uefi-amd64"}, "amd64", "no partition holds"},
		{"bios", bios, []Start{StartSAN}, []string{"bios"}, "amd64", "no partition holds"},
		{"both ways", both, []Start{StartKernel, StartSAN}, []string{"bios"}, "amd64", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := open(t, t.TempDir(), newDisks(t)).Import(t.Context(), ImportRequest{Name: "x", Path: c.disk})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(img.Facts.Starts, c.starts) || !slices.Equal(img.Facts.Firmware, c.firmware) || img.Arch != c.arch || !strings.Contains(fmt.Sprint(img.Facts.Notes), c.says) {
				t.Errorf("%+v, %s", img.Facts, img.Arch)
			}
			if c.name == "uefi" && img.Facts.Loader != "grub" {
				t.Errorf("loader %q", img.Facts.Loader)
			}
		})
	}
}

// Images that run from memory have no volume.
func TestImagesInMemory(t *testing.T) {
	tree := treeOf(t)
	d := newDisks(t)
	r := open(t, t.TempDir(), d)
	initrd := write(t, t.TempDir()+"/initrd", []byte("initrd"))
	kernel := tree + "/boot/vmlinuz-" + newKernel
	img, err := r.Import(t.Context(), ImportRequest{Name: "worker", Kernel: kernel, Initrd: initrd})
	if err != nil {
		t.Fatal(err)
	}
	if img.Volume != "" || img.Format != FormatNone || !slices.Equal(img.Facts.Starts, []Start{StartRAM}) || img.Arch != "amd64" || string(mustRead(t, img.InitrdPath)) != "initrd" {
		t.Errorf("image %+v", img)
	}
	squash := filepath.Join(t.TempDir(), "root.squashfs")
	command(t, "", "mksquashfs", tree, squash, "-quiet", "-no-progress")
	img, err = r.Import(t.Context(), ImportRequest{Name: "live", Path: squash, Kernel: kernel, Modules: tree + "/usr/lib/modules/" + newKernel})
	if err != nil {
		t.Fatal(err)
	}
	if img.Volume != "" || img.RootFS != "squashfs" || !img.Facts.Has(StartRAM) || fileSHA256(t, img.RootPath) != fileSHA256(t, squash) || img.Modules.Digest == "" {
		t.Errorf("image %+v", img)
	}
	if vols, _ := os.ReadDir(d.dir); len(vols) != 0 {
		t.Errorf("%d volumes", len(vols))
	}
	if err := r.Verify(t.Context(), img); err != nil {
		t.Error(err)
	}
	patch(t, img.RootPath, 100, func(b []byte) { b[0] ^= 1 })
	if err := r.Verify(t.Context(), img); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Errorf("a damaged file: %v", err)
	}
	if err := r.Delete(t.Context(), "live", img.Version); err != nil {
		t.Error(err)
	}
}

func FuzzHeads(f *testing.F) {
	dir := f.TempDir()
	for _, args := range [][]string{{"vmdk", "a.vmdk", "1M"}, {"vpc", "a.vhd", "8M"}, {"vhdx", "a.vhdx", "8M"}} {
		command(f, dir, "qemu-img", "create", "-q", "-f", args[0], args[1], args[2])
		b := mustRead(f, filepath.Join(dir, args[1]))
		f.Add(b[:min(len(b), 300<<10)])
	}
	f.Add(gzipped(f, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		detectPacking(r)
		detectFormat(r, int64(len(b)))
		checkVMDK(r, int64(len(b)), 1<<30)
		checkVHD(r, int64(len(b)), 1<<30)
		checkVHDX(r, int64(len(b)))
		peArch(b)
		elfArch(b)
		if fat, err := openFAT(r, int64(len(b))); err == nil {
			efiLoaders(files{fat})
		}
	})
}

// FuzzTar: whatever an archive says, nothing outside of the tree changes.
func FuzzTar(f *testing.F) {
	f.Add(mustRead(f, tarOf(f, entryOf{name: "a/b", data: "x"}, entryOf{name: "l", kind: tar.TypeSymlink, link: "/etc"}, entryOf{name: "l/x", data: "y"})))
	f.Add(mustRead(f, tarOf(f, entryOf{name: ".wh..wh..opq"}, entryOf{name: "../.wh.x"}, entryOf{name: "h", kind: tar.TypeLink, link: "../../x"})))
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := t.TempDir()
		write(t, parent+"/beside", []byte("beside"))
		dir := parent + "/tree"
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		tree, err := newTreeBuilder(t.Context(), dir, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		tree.apply(bytes.NewReader(b), true)
		tree.finish()
		all, err := os.ReadDir(parent)
		if err != nil || len(all) != 2 || string(mustRead(t, parent+"/beside")) != "beside" {
			t.Fatalf("beside the tree: %v %v", all, err)
		}
	})
}
