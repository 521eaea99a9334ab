package images

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"hotspare"
)

// mounted makes a file system by the host's tools and kernel, lets fill write to
// it, and gives the file.
func mounted(t testing.TB, size, mkfs string, args []string, options string, fill func(dir string)) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "fs.raw")
	command(t, "", "truncate", "-s", size, disk)
	command(t, "", mkfs, append(args, disk)...)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop"+options, disk, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer func() {
		command(t, "", "sync", "-f", dir)
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
	}()
	fill(dir)
	return disk
}

// fillSystem copies a system, with files of every kind that a reader meets: small
// and large directories, long links, holes, many extents, compressible contents.
func fillSystem(t testing.TB) func(dir string) {
	tree := treeOf(t)
	mods := tree + "/usr/lib/modules/" + newKernel
	for i := range 3000 {
		write(t, fmt.Sprintf("%s/kernel/wide/module-with-a-rather-long-name-%04d.ko", mods, i), []byte(fmt.Sprint(i)))
	}
	write(t, mods+"/kernel/text.ko", []byte(strings.Repeat("compress me, please. ", 60000)))
	write(t, mods+"/kernel/mixed.ko", append([]byte(strings.Repeat("a", 200000)), noise("mixed", 300000)...))
	write(t, mods+"/kernel/small.ko", []byte(strings.Repeat("tiny ", 100)))
	link(t, "small.ko", mods+"/kernel/"+"short.ko")
	link(t, strings.Repeat("./", 450)+"small.ko", mods+"/kernel/long.ko")
	return func(dir string) {
		command(t, "", "cp", "-a", tree+"/.", dir)
		// Two files written by turns get many extents.
		var f [2]*os.File
		for i := range f {
			var err error
			if f[i], err = os.Create(fmt.Sprintf("%s/usr/lib/modules/%s/kernel/turns%d.ko", dir, newKernel, i)); err != nil {
				t.Fatal(err)
			}
			defer f[i].Close()
		}
		for i := range 600 {
			if _, err := f[i%2].WriteAt(noise(fmt.Sprint(i), 4096), int64(i)*8192); err != nil {
				t.Fatal(err)
			}
			if i%20 < 2 {
				if err := syscall.Fsync(int(f[i%2].Fd())); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// sumsOf gives all files of a directory with their contents, links as what they
// hold.
func sumsOf(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case e.Type()&os.ModeSymlink != 0:
			out[rel], err = os.Readlink(p)
		case e.Type().IsRegular():
			var b []byte
			b, err = os.ReadFile(p)
			out[rel] = string(b)
		case e.IsDir():
			out[rel] = "dir"
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func sumsIn(t testing.TB, f files) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(n *file, name string)
	walk = func(n *file, name string) {
		switch {
		case n.is(modeDir):
			out[name] = "dir"
			all, err := f.list(n)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				child, err := f.follow(e)
				if err != nil {
					t.Fatal(err)
				}
				walk(child, filepath.Join(name, e.name))
			}
		case n.is(modeSymlink):
			target, err := f.target(n)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = target
		case n.is(modeRegular):
			b, err := f.readAll(n, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			out[name] = string(b)
		}
	}
	top, err := f.top()
	if err != nil {
		t.Fatal(err)
	}
	walk(top, ".")
	return out
}

// Every file of an xfs or btrfs is read as the kernel wrote it, and the system in
// it is found.
func TestForeignFileSystems(t *testing.T) {
	fill := fillSystem(t)
	for _, c := range []struct {
		name, size, mkfs string
		args             []string
		options          string
	}{
		{"xfs", "400M", "mkfs.xfs", []string{"-q"}, ""},
		{"xfs 1k", "400M", "mkfs.xfs", []string{"-q", "-b", "size=1024", "-i", "size=256"}, ""},
		{"xfs plain", "400M", "mkfs.xfs", []string{"-q", "-m", "reflink=0,rmapbt=0,finobt=0,bigtime=0", "-n", "size=8192"}, ""},
		{"btrfs", "300M", "mkfs.btrfs", []string{"-q"}, ""},
		{"btrfs zlib", "300M", "mkfs.btrfs", []string{"-q"}, ",compress-force=zlib"},
		{"btrfs lzo", "300M", "mkfs.btrfs", []string{"-q"}, ",compress-force=lzo"},
		{"btrfs zstd", "300M", "mkfs.btrfs", []string{"-q", "-n", "4096"}, ",compress-force=zstd"},
		{"btrfs single", "300M", "mkfs.btrfs", []string{"-q", "-m", "single", "-d", "single", "--csum", "xxhash"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := c.args
			if c.name == "xfs 1k" {
				args = []string{"-q", "-b", "size=1024"}
			}
			var want map[string]string
			disk := mounted(t, c.size, c.mkfs, args, c.options, func(dir string) {
				fill(dir)
				want = sumsOf(t, dir)
			})
			f, err := os.Open(disk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			kind, _, _ := strings.Cut(c.name, " ")
			fsys, err := openFS(kind, newBlockCache(&rawSource{f, info.Size()}), info.Size())
			if err != nil {
				t.Fatal(err)
			}
			got := sumsIn(t, files{fsys})
			if len(got) != len(want) || len(want) < 3000 {
				t.Errorf("%d names, want %d", len(got), len(want))
			}
			for name, data := range want {
				if got[name] != data {
					t.Errorf("%s differs: %d bytes, want %d", name, len(got[name]), len(data))
				}
			}
			r := open(t, t.TempDir(), newDisks(t))
			img, err := r.Import(t.Context(), ImportRequest{Name: "x", Path: disk})
			if err != nil {
				t.Fatal(err)
			}
			if img.RootFS != kind || img.Kernel.Version != newKernel || img.Facts.Init != "systemd" {
				t.Errorf("image %+v", img)
			}
			checkKernel(t, r, img)
		})
	}
}

// The root of a btrfs may lie in a subvolume of one of the usual names, or in the
// default one.
func TestBtrfsSubvolumes(t *testing.T) {
	tree := treeOf(t)
	for _, c := range []struct{ name, subvolume string }{{"root", "root"}, {"@", "@"}, {"default", ""}} {
		t.Run(c.name, func(t *testing.T) {
			disk := mounted(t, "300M", "mkfs.btrfs", []string{"-q"}, "", func(dir string) {
				command(t, dir, "btrfs", "subvolume", "create", "home")
				command(t, dir, "btrfs", "subvolume", "create", c.name)
				command(t, dir, "cp", "-a", tree+"/.", c.name)
				if c.subvolume == "" {
					command(t, dir, "btrfs", "subvolume", "set-default", c.name)
				}
			})
			img, err := open(t, t.TempDir(), newDisks(t)).Import(t.Context(), ImportRequest{Name: "x", Path: disk})
			if err != nil {
				t.Fatal(err)
			}
			if img.RootFS != "btrfs" || img.RootSubvolume != c.subvolume || img.Kernel.Version != newKernel {
				t.Errorf("image %+v", img)
			}
		})
	}
}

// What was copied while it was in use is not believed.
func TestFileSystemsInUseAreRefused(t *testing.T) {
	for _, c := range []struct{ kind, size, mkfs string }{{"xfs", "320M", "mkfs.xfs"}, {"btrfs", "300M", "mkfs.btrfs"}} {
		t.Run(c.kind, func(t *testing.T) {
			copied := filepath.Join(t.TempDir(), "copy.raw")
			mounted(t, c.size, c.mkfs, []string{"-q"}, "", func(dir string) {
				write(t, dir+"/etc/os-release", []byte("ID=x\n"))
				f, err := os.Open(dir + "/etc/os-release")
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := f.Sync(); err != nil { // the log now holds what the trees do not
					t.Fatal(err)
				}
				backing := strings.TrimSpace(command(t, "", "findmnt", "-no", "SOURCE", dir))
				command(t, "", "dd", "if="+backing, "of="+copied, "bs=1M", "conv=sparse", "status=none")
			})
			refuse(t, ImportRequest{Path: copied}, hotspare.CodeImageKernel, "log was not replayed")
		})
	}
	four := filepath.Join(t.TempDir(), "v4")
	command(t, "", "truncate", "-s", "320M", four)
	command(t, "", "mkfs.xfs", "-q", "-m", "crc=0", four)
	refuse(t, ImportRequest{Path: four}, hotspare.CodeImageKernel, "version 4")
}

func TestLZO(t *testing.T) {
	// "abcdefgh" four times over: a literal run, then a match that overlaps itself.
	packed := []byte{17 + 8, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 32 + 22, 7 << 2, 0, 17, 0, 0}
	out := make([]byte, 64)
	n, err := lzo1x(out, packed)
	if err != nil || string(out[:n]) != strings.Repeat("abcdefgh", 4) {
		t.Errorf("%q, %v", out[:n], err)
	}
	for i := range packed {
		if _, err := lzo1x(make([]byte, 64), packed[:i]); err == nil {
			t.Errorf("cut at %d is taken", i)
		}
	}
}

// small gives file systems of a few files for the fuzzers, without their empty
// parts.
type patched struct {
	base  []byte
	edits map[int64]byte
}

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, off)
	for at, v := range p.edits {
		if at >= off && at < off+int64(n) {
			b[at-off] = v
		}
	}
	return n, err
}

func fuzzFS(f *testing.F, kind, size, mkfs string, args ...string) {
	tree := f.TempDir()
	write(f, tree+"/etc/os-release", []byte("ID=x\n"))
	write(f, tree+"/boot/vmlinuz-1", bzImage("1"))
	write(f, tree+"/lib/modules/1/modules.dep", []byte("a.ko:\n"))
	for i := range 200 {
		write(f, fmt.Sprintf("%s/lib/modules/1/kernel/%03d.ko", tree, i), []byte(strings.Repeat("x", i*50)))
	}
	link(f, "boot/vmlinuz-1", tree+"/vmlinuz")
	options := ""
	if kind == "btrfs" {
		options = ",compress-force=lzo"
	}
	base := mustRead(f, mounted(f, size, mkfs, args, options, func(dir string) { command(f, "", "cp", "-a", tree+"/.", dir) }))
	// The fuzzer chooses among the bytes that are not zeros.
	var used []int64
	for off := range base {
		if base[off] != 0 {
			used = append(used, int64(off))
		}
	}
	for i := 0; i < 60000; i += 601 {
		f.Add(binary.LittleEndian.AppendUint32(nil, uint32(i)<<8|0xff))
		f.Add(binary.LittleEndian.AppendUint32(nil, uint32(i)<<8))
	}
	f.Fuzz(func(t *testing.T, edits []byte) {
		p := &patched{base, map[int64]byte{}}
		for ; len(edits) >= 4 && len(p.edits) < 64; edits = edits[4:] {
			v := binary.LittleEndian.Uint32(edits)
			p.edits[used[int(v>>8)%len(used)]] = byte(v)
		}
		fsys, err := openFS(kind, p, int64(len(base)))
		if err != nil {
			return
		}
		sys := system{rootFS: files{fsys}}
		sys.observe(bytes.NewReader(nil))
		if k, err := sys.kernel(); err == nil {
			k.fs.readFile(k.path, maxKernel)
		}
		if n, _, err := sys.rootFS.lookup("/lib/modules/1"); err == nil {
			mods := &moduleTree{ctx: t.Context(), w: tar.NewWriter(io.Discard), limit: 64 << 20}
			mods.addImage(sys.rootFS, n, "", 0) // any error will do: it must come to an end
		}
	})
}

func FuzzXFS(f *testing.F) { fuzzFS(f, "xfs", "320M", "mkfs.xfs", "-q") }

func FuzzBtrfs(f *testing.F) { fuzzFS(f, "btrfs", "128M", "mkfs.btrfs", "-q", "-m", "single") }

func FuzzLZO(f *testing.F) {
	f.Add([]byte{25, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 54, 28, 0, 17, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		out := make([]byte, 4096)
		n, err := lzo1x(out, b)
		if err == nil && n > len(out) {
			t.Fatal(n)
		}
		again := make([]byte, 4096)
		if m, err2 := lzo1x(again, b); m != n || (err == nil) != (err2 == nil) || !slices.Equal(out, again) {
			t.Fatal("not the same twice")
		}
		unpackLZO(make([]byte, 8192), b, 4096)
	})
}
