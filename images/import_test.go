package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare"
)

func TestImportRawDisk(t *testing.T) {
	disk := mke2fs(t, rootTree(t), "-t", "ext4")
	d := newDisks(t)
	r := open(t, t.TempDir(), d)
	img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Version: "1.0", Path: disk, SHA256: fileSHA256(t, disk), Labels: map[string]string{"tier": "db"}})
	if err != nil {
		t.Fatal(err)
	}
	sum := fileSHA256(t, disk)
	if img.Digest != diskDigestOf(t, disk) || img.DigestKind != DigestTree || img.SourceSHA256 != sum || !strings.HasPrefix(img.Volume, "image-") || img.Format != FormatRaw || img.SizeBytes != diskSize {
		t.Errorf("image %+v", img)
	}
	if img.RootPartition != 0 || img.RootFS != "ext4" || img.RootUUID != rootUUID || img.Arch != "amd64" ||
		img.OSRelease != (OSRelease{"debian", "12", "Debian GNU/Linux 12 (bookworm)"}) {
		t.Errorf("system %+v", img)
	}
	if img.Kernel.Version != newKernel || img.Kernel.Source != "/boot/vmlinuz-"+newKernel {
		t.Errorf("kernel %+v", img.Kernel)
	}
	if got := fileSHA256(t, filepath.Join(d.dir, img.Volume)); got != sum {
		t.Errorf("the volume has digest %s, the file %s", got, sum)
	}
	info, err := os.Stat(filepath.Join(d.dir, img.Volume))
	if err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("the volume is not sealed: %v %v", info.Mode(), err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > img.SizeBytes/2 || img.DataBytes > img.SizeBytes/2 {
		t.Errorf("zeros were written: %d bytes used, %d written of %d", used, img.DataBytes, img.SizeBytes)
	}
	checkKernel(t, r, img)
	if left, _ := os.ReadDir(filepath.Join(r.dir, "staging")); len(left) != 0 {
		t.Errorf("staging holds %v", left)
	}
}

// checkKernel compares the kernel, its config and its modules with what
// rootTree put in.
func checkKernel(t *testing.T, r *Repository, img Image) {
	t.Helper()
	f, err := r.OpenKernel(img)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil || string(b) != string(bzImage(img.Kernel.Version)) {
		t.Errorf("the kernel differs (%d bytes, %v)", len(b), err)
	}
	if b, err := os.ReadFile(img.Kernel.ConfigPath); err != nil || string(b) != "CONFIG_RD_ZSTD=y\n" {
		t.Errorf("config %q, %v", b, err)
	}
	files, first := modulesOf(t, r, img)
	if len(files["kernel/fs/ext4.ko"]) != 300000 || first != "modules.dep" {
		t.Errorf("the modules are incomplete or begin with %q", first)
	}
	if _, ok := files["build"]; ok {
		t.Error("a link was followed out of the tree")
	}
}

func modulesOf(t *testing.T, r *Repository, img Image) (files map[string]string, first string) {
	t.Helper()
	m, err := r.OpenModules(img)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	files = map[string]string{}
	for tr := tar.NewReader(m); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files, first
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if first == "" {
			first = h.Name
		}
		files[h.Name] = string(b)
	}
}

// Whatever way a disk is packed, its contents get the same address, volume and
// modules.
func TestImportEveryPacking(t *testing.T) {
	raw := mke2fs(t, rootTree(t), "-t", "ext4")
	sum := diskDigestOf(t, raw)
	r := open(t, t.TempDir(), newDisks(t))
	modules := ""
	for _, c := range []struct{ name, options string }{
		{"raw", ""},
		{"qcow2-v3", "compat=1.1"},
		{"qcow2-v2", "compat=0.10"},
		{"qcow2-4k", "compat=1.1,cluster_size=4k"},
		{"qcow2-2m", "compat=1.1,cluster_size=2M"},
		{"qcow2-lazy", "compat=1.1,lazy_refcounts=on"},
		{"qcow2-zlib", "compressed"},
		{"qcow2-zstd", "compressed,compression_type=zstd"},
		{"qcow2-zlib-2m", "compressed,cluster_size=2M"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := raw
			if c.options != "" {
				file = convert(t, raw, c.options)
			}
			img, err := r.Import(t.Context(), ImportRequest{Name: c.name, Path: file})
			if err != nil {
				t.Fatal(err)
			}
			if img.Digest != sum || img.SourceSHA256 != fileSHA256(t, file) || img.Version != sum[:12] {
				t.Errorf("image %+v", img)
			}
			if modules == "" {
				modules = img.Modules.Digest
			}
			if img.Modules.Digest != modules {
				t.Error("the same modules have another digest")
			}
			checkKernel(t, r, img)
		})
	}
	if n := len(r.List()); n != 9 {
		t.Errorf("%d images", n)
	}
}

// convert packs a raw disk with qemu-img.
func convert(t testing.TB, raw, options string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "disk.qcow2")
	args := []string{"convert", "-f", "raw", "-O", "qcow2"}
	options, compressed := strings.CutPrefix(options, "compressed")
	if compressed {
		args = append(args, "-c")
	}
	if options = strings.TrimPrefix(options, ","); options != "" {
		args = append(args, "-o", options)
	}
	command(t, "", "qemu-img", append(args, raw, out)...)
	return out
}

func TestContentsOfQCOW2VolumeEqualTheRawDisk(t *testing.T) {
	raw := mke2fs(t, rootTree(t), "-t", "ext4")
	d := newDisks(t)
	r := open(t, t.TempDir(), d)
	img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: convert(t, raw, "compressed")})
	if err != nil {
		t.Fatal(err)
	}
	if got := fileSHA256(t, filepath.Join(d.dir, img.Volume)); got != fileSHA256(t, raw) {
		t.Error("the volume differs from the raw disk")
	}
}

func TestImportPartitionedDisks(t *testing.T) {
	tree := rootTree(t)
	root := mke2fs(t, tree, "-t", "ext4")
	empty := mke2fs(t, t.TempDir(), "-t", "ext4")
	// A separate /boot: the kernels move to a file system of their own.
	split, boot := rootTree(t), t.TempDir()
	command(t, "", "cp", "-a", split+"/boot/.", boot)
	if err := os.RemoveAll(split + "/boot"); err != nil {
		t.Fatal(err)
	}
	splitRoot, splitBoot := mke2fs(t, split, "-t", "ext4"), mke2fs(t, boot, "-t", "ext2")
	for _, c := range []struct {
		name, disk string
		partition  int
	}{
		{"gpt", partitioned(t, "gpt", empty, root), 2},
		{"gpt with a separate boot", partitioned(t, "gpt", splitBoot, splitRoot), 2},
		{"mbr primary", partitioned(t, "dos", root), 1},
		{"mbr logical", partitioned(t, "dos", empty, root), 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := open(t, t.TempDir(), newDisks(t))
			img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: c.disk})
			if err != nil {
				t.Fatal(err)
			}
			if img.RootPartition != c.partition || img.RootUUID != rootUUID || img.Kernel.Version != newKernel {
				t.Errorf("image %+v", img)
			}
			checkKernel(t, r, img)
		})
	}
}

// The administrator's own choice of a kernel counts more than its number.
func TestKernelLinkIsFollowed(t *testing.T) {
	tree := rootTree(t)
	link(t, "boot/vmlinuz-"+oldKernel, tree+"/vmlinuz")
	r := open(t, t.TempDir(), newDisks(t))
	img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: mke2fs(t, tree)})
	if err != nil {
		t.Fatal(err)
	}
	if img.Kernel.Version != oldKernel {
		t.Errorf("kernel %s", img.Kernel.Version)
	}
	checkKernel(t, r, img)
}

func TestGivenKernelAndModules(t *testing.T) {
	tree := rootTree(t)
	r := open(t, t.TempDir(), newDisks(t))
	disk := mke2fs(t, tree)
	req := ImportRequest{Name: "orders", Path: disk, Kernel: tree + "/boot/vmlinuz-" + oldKernel, Modules: tree + "/usr/lib/modules/" + oldKernel,
		Initrd: write(t, t.TempDir()+"/initrd", []byte("initrd"))}
	img, err := r.Import(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := modulesOf(t, r, img)
	if img.Kernel.Version != oldKernel || img.Kernel.Source != "given" || len(files) != 2 {
		t.Errorf("kernel %+v, %d module files", img.Kernel, len(files))
	}
	if b, err := os.ReadFile(img.InitrdPath); err != nil || string(b) != "initrd" {
		t.Errorf("initrd %q, %v", b, err)
	}
	if again, err := r.Import(t.Context(), req); err != nil || again.Created != img.Created {
		t.Errorf("second import: %v", err)
	}
	req.Kernel = tree + "/boot/vmlinuz-" + newKernel
	if _, err := r.Import(t.Context(), req); hotspare.CodeOf(err) != hotspare.CodeImageExists {
		t.Errorf("another kernel for the same version: %v", err)
	}
}

func TestSameVersionTwice(t *testing.T) {
	tree := rootTree(t)
	first := mke2fs(t, tree)
	write(t, tree+"/etc/changed", []byte("x"))
	second := mke2fs(t, tree)
	d := newDisks(t)
	r := open(t, t.TempDir(), d)
	img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Version: "1", Path: first})
	if err != nil {
		t.Fatal(err)
	}
	writes := d.writes
	again, err := r.Import(t.Context(), ImportRequest{Name: "orders", Version: "1", Path: first})
	if err != nil || again.Created != img.Created || d.writes != writes {
		t.Errorf("the same again: %+v, %v, %d writes", again, err, d.writes-writes)
	}
	if _, err = r.Import(t.Context(), ImportRequest{Name: "orders", Version: "1", Path: second}); hotspare.CodeOf(err) != hotspare.CodeImageExists {
		t.Errorf("another content: %v", err)
	}
	if got := diskDigestOf(t, filepath.Join(d.dir, img.Volume)); got != img.Digest {
		t.Error("the volume changed")
	}
	if vols, _ := os.ReadDir(d.dir); len(vols) != 1 {
		t.Errorf("%d volumes", len(vols))
	}
}

func TestVersionsShareAVolumeUntilTheLastIsDeleted(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	d, dir := newDisks(t), t.TempDir()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r, err := Open(t.Context(), dir, Options{Disks: d, Now: func() time.Time { now = now.Add(time.Hour); return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, ref := range []string{"orders:2", "orders:10", "web:1"} {
		name, version, _ := strings.Cut(ref, ":")
		if _, err := r.Import(t.Context(), ImportRequest{Name: name, Version: version, Path: disk}); err != nil {
			t.Fatal(err)
		}
	}
	if img, err := r.Resolve("orders"); err != nil || img.Version != "10" {
		t.Errorf("orders is %s, %v", img.Ref(), err)
	}
	if img, err := r.Resolve("orders:2"); err != nil || img.Version != "2" {
		t.Errorf("orders:2 is %s, %v", img.Ref(), err)
	}
	for _, ref := range []string{"none", "orders:3", "orders:"} {
		if _, err := r.Resolve(ref); hotspare.CodeOf(err) != hotspare.CodeNotFound {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"orders:10", "web:1"} {
		name, version, _ := strings.Cut(ref, ":")
		if err := r.Delete(t.Context(), name, version); err != nil {
			t.Fatal(err)
		}
	}
	img, err := r.Resolve("orders")
	if err != nil || img.Version != "2" {
		t.Fatalf("orders is %s, %v", img.Ref(), err)
	}
	if got := diskDigestOf(t, filepath.Join(d.dir, img.Volume)); got != img.Digest {
		t.Error("the shared volume is gone")
	}
	checkKernel(t, r, img)
	if err := r.Delete(t.Context(), "orders", "2"); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, dir, d); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestImagesSurviveARestart(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	d, dir := newDisks(t), t.TempDir()
	r := open(t, dir, d)
	img, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: disk, Cmdline: "quiet"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), dir, Options{Disks: d}); hotspare.CodeOf(err) != hotspare.CodeStoreLocked {
		t.Errorf("opened twice: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Import(t.Context(), ImportRequest{Name: "web", Path: disk}); err == nil {
		t.Error("import after Close")
	}
	// The repository may be moved.
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	r = open(t, moved, d)
	got, err := r.Get("orders", img.Version)
	if err != nil {
		t.Fatal(err)
	}
	checkKernel(t, r, got)
	if got.Created != img.Created || got.Cmdline != "quiet" || got.RootUUID != img.RootUUID {
		t.Errorf("got %+v, want %+v", got, img)
	}
}

// A damaged record takes one image out, not all, and nothing is removed on its
// account.
func TestDamagedRecordIsSetAside(t *testing.T) {
	tree := rootTree(t)
	d, dir := newDisks(t), t.TempDir()
	r := open(t, dir, d)
	good, err := r.Import(t.Context(), ImportRequest{Name: "good", Path: mke2fs(t, tree)})
	if err != nil {
		t.Fatal(err)
	}
	write(t, tree+"/etc/changed", []byte("x"))
	bad, err := r.Import(t.Context(), ImportRequest{Name: "bad", Path: mke2fs(t, tree)})
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	file := r.recordPath(bad)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, []byte(strings.Replace(string(b), bad.Digest, good.Digest, 1)))
	r = open(t, dir, d)
	if _, err := r.Resolve("good"); err != nil {
		t.Error(err)
	}
	if _, err := r.Resolve("bad"); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Errorf("bad: %v", err)
	}
	if p := r.Problems(); len(p) != 1 || hotspare.CodeOf(p[0]) != hotspare.CodeCorrupt {
		t.Errorf("problems %v", p)
	}
	if _, err := os.Stat(filepath.Join(d.dir, bad.Volume)); err != nil {
		t.Error(err)
	}
	r.Close()
	write(t, file, b) // restored from a backup
	r = open(t, dir, d)
	img, err := r.Resolve("bad")
	if err != nil {
		t.Fatal(err)
	}
	checkKernel(t, r, img)
}

// An import that fails at any operation of the volume store leaves nothing, and
// the next one succeeds.
func TestImportFailsAtEveryOperation(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	d, dir := newDisks(t), t.TempDir()
	r := open(t, dir, d)
	failures := 0
	for n := 1; ; n++ {
		d.ops = 0
		d.onOp = func(i int, op string) error {
			if i == n {
				return fmt.Errorf("%s: %w", op, syscall.ENOSPC)
			}
			return nil
		}
		_, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: disk})
		if err == nil {
			break
		}
		failures++
		if hotspare.CodeOf(err) != hotspare.CodeDiskFull {
			t.Errorf("operation %d: %v", n, err)
		}
		if left := leftovers(t, dir, d); len(left) != 0 {
			t.Fatalf("operation %d left %v", n, left)
		}
	}
	if failures < 5 {
		t.Errorf("only %d operations failed", failures)
	}
	d.onOp = nil
	if img, err := r.Resolve("orders"); err != nil || diskDigestOf(t, filepath.Join(d.dir, img.Volume)) != img.Digest {
		t.Errorf("the import after the failures: %v", err)
	}
}

// The repository's own file system fills up: at several sizes, with the real
// error of the kernel.
func TestRepositoryDiskFull(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	for _, size := range []string{"16k", "32k", "64k", "300k", "400k"} {
		t.Run(size, func(t *testing.T) {
			dir, d := t.TempDir(), newDisks(t)
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
				t.Fatal(err)
			}
			defer syscall.Unmount(dir, syscall.MNT_DETACH)
			r, err := Open(t.Context(), dir, Options{Disks: d})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			_, err = r.Import(t.Context(), ImportRequest{Name: "orders", Path: disk})
			if hotspare.CodeOf(err) != hotspare.CodeDiskFull {
				t.Errorf("got %v", err)
			}
			if left := leftovers(t, dir, d); len(left) != 0 {
				t.Errorf("left %v", left)
			}
		})
	}
}

// kill -9 at each step: what is left is healed when the repository is opened.
func TestKilledImport(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	for _, at := range []string{"create", "write", "flush", "seal", "close"} {
		t.Run(at, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(dir+"/volumes", 0o700); err != nil {
				t.Fatal(err)
			}
			command(t, "", "cp", "--sparse=always", disk, dir+"/disk.raw")
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), "HOTSPARE_TEST_KILLED_IMPORT="+dir, "HOTSPARE_TEST_KILL_AT="+at)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v\n%s", err, out)
			}
			d := &disks{dir: dir + "/volumes"}
			if len(leftovers(t, dir+"/repo", d)) == 0 {
				t.Fatal("the killed import left nothing to heal: the test proves nothing")
			}
			r := open(t, dir+"/repo", d)
			if left := leftovers(t, dir+"/repo", d); len(left) != 0 {
				t.Errorf("not healed: %v", left)
			}
			if _, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: dir + "/disk.raw"}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCancelledImportLeavesNothing(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	d, dir := newDisks(t), t.TempDir()
	r := open(t, dir, d)
	ctx, cancel := context.WithCancel(t.Context())
	d.onOp = func(_ int, op string) error {
		if op == "write" {
			cancel()
		}
		return nil
	}
	if _, err := r.Import(ctx, ImportRequest{Name: "orders", Path: disk}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := leftovers(t, dir, d); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// A file that is written while it is imported is not what was checked.
func TestFileThatChangesIsRefused(t *testing.T) {
	disk := mke2fs(t, rootTree(t))
	d, dir := newDisks(t), t.TempDir()
	r := open(t, dir, d)
	d.onOp = func(_ int, op string) error {
		if op != "create" {
			return nil
		}
		f, err := os.OpenFile(disk, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte("changed"), 20<<20)
		return err
	}
	_, err := r.Import(t.Context(), ImportRequest{Name: "orders", Path: disk})
	if hotspare.CodeOf(err) != hotspare.CodeImageDigest {
		t.Errorf("got %v", err)
	}
	if left := leftovers(t, dir, d); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

// Zeros that a file spells out are left out like holes.
func TestZerosAreNotWritten(t *testing.T) {
	full := filepath.Join(t.TempDir(), "full.raw")
	command(t, "", "cp", "--sparse=never", mke2fs(t, rootTree(t)), full)
	d := newDisks(t)
	img, err := open(t, t.TempDir(), d).Import(t.Context(), ImportRequest{Name: "orders", Path: full})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(d.dir, img.Volume))
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > diskSize/2 || img.DataBytes == 0 || img.DataBytes > diskSize/2 {
		t.Errorf("%d bytes used, %d written of %d", used, img.DataBytes, diskSize)
	}
	if fileSHA256(t, filepath.Join(d.dir, img.Volume)) != fileSHA256(t, full) {
		t.Error("the volume differs")
	}
}
