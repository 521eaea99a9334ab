package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hotspare"
)

// Only plain files are read, and none that another name leads to.
func TestFilesThatAreRefused(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/socket"}); err != nil {
		t.Fatal(err)
	}
	link(t, "/etc/passwd", dir+"/link")
	link(t, "../"+filepath.Base(dir)+"/../etc/passwd", dir+"/relative")
	link(t, "loop", dir+"/loop")
	for _, c := range []struct{ path, says string }{
		{"/dev/zero", "a device"},
		{"/dev/null", "a device"},
		{"/proc/kmsg", ""},
		{dir, "a directory"},
		{dir + "/pipe", "a pipe"},
		{dir + "/socket", "a socket"},
		{dir + "/link", "escapes"},
		{dir + "/relative", "escapes"},
		{dir + "/loop", ""},
		{dir + "/none", "no such file"},
		{dir + "/none/none", "no such file"},
		{"/", ""},
	} {
		t.Run(c.path, func(t *testing.T) {
			for _, format := range []Format{"", FormatRaw, FormatQCOW2} {
				if c.path == "/proc/kmsg" { // a "regular" file of size 0 that never ends
					d, tmp := newDisks(t), t.TempDir()
					if _, err := open(t, tmp, d).Import(t.Context(), ImportRequest{Name: "x", Path: c.path, Format: format}); err == nil {
						t.Error("imported")
					}
					continue
				}
				refuse(t, ImportRequest{Path: c.path, Format: format}, hotspare.CodeInvalid, c.says)
			}
		})
	}
	good := mke2fs(t, rootTree(t))
	refuse(t, ImportRequest{Path: good, Kernel: dir + "/pipe"}, hotspare.CodeInvalid, "a pipe")
	refuse(t, ImportRequest{Path: good, Initrd: "/dev/zero"}, hotspare.CodeInvalid, "a device")
}

func TestRequestsThatAreRefused(t *testing.T) {
	good := mke2fs(t, rootTree(t))
	for _, c := range []struct {
		req  ImportRequest
		code hotspare.Code
		says string
	}{
		{ImportRequest{Name: "../x", Path: good}, hotspare.CodeInvalid, "name"},
		{ImportRequest{Name: "X", Path: good}, hotspare.CodeInvalid, "name"},
		{ImportRequest{Name: "a@b", Path: good}, hotspare.CodeInvalid, "name"},
		{ImportRequest{Version: "a/b", Path: good}, hotspare.CodeInvalid, "version"},
		{ImportRequest{Version: "..", Path: good}, hotspare.CodeInvalid, "version"},
		{ImportRequest{Path: ""}, hotspare.CodeInvalid, "path"},
		{ImportRequest{Path: good, Format: "vdi"}, hotspare.CodeInvalid, "format"},
		{ImportRequest{Path: good, Format: FormatVMDK}, hotspare.CodeImageFormat, "not a sparse VMDK"},
		{ImportRequest{Path: good, SHA256: "abc"}, hotspare.CodeInvalid, "sha256"},
		{ImportRequest{Path: good, Cmdline: "a\nb"}, hotspare.CodeInvalid, "cmdline"},
		{ImportRequest{Path: good, SHA256: strings.Repeat("0", 64)}, hotspare.CodeImageDigest, "expected 0000"},
		{ImportRequest{Path: good, Format: FormatQCOW2}, hotspare.CodeImageFormat, "not a qcow2"},
	} {
		t.Run(c.says+" "+c.req.Name, func(t *testing.T) { refuse(t, c.req, c.code, c.says) })
	}
	r, err := Open(t.Context(), t.TempDir(), Options{Disks: newDisks(t), MaxDisk: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, file := range []string{good, convert(t, good, "compat=1.1")} {
		if _, err := r.Import(t.Context(), ImportRequest{Name: "large", Path: file}); hotspare.CodeOf(err) != hotspare.CodeImageFormat {
			t.Errorf("a disk above the limit: %v", err)
		}
	}
}

// Raw disks that are cut, or hold no system that can be started.
func TestDisksThatAreRefused(t *testing.T) {
	tree := rootTree(t)
	good := mke2fs(t, tree, "-t", "ext4")
	cut := func(name string, to int64) string {
		out := filepath.Join(t.TempDir(), "cut.raw")
		command(t, "", "cp", "--sparse=always", name, out)
		if err := os.Truncate(out, to); err != nil {
			t.Fatal(err)
		}
		return out
	}
	change := func(f func(dir string)) string {
		dir := rootTree(t)
		f(dir)
		return mke2fs(t, dir, "-t", "ext4")
	}
	made := func(size string, name string, args ...string) string {
		out := filepath.Join(t.TempDir(), "other.raw")
		command(t, "", "truncate", "-s", size, out)
		command(t, "", name, append(args, out)...)
		return out
	}
	gpt := partitioned(t, "gpt", good)
	dirty := cut(good, diskSize)
	patch(t, dirty, 1024+0x60, func(b []byte) { b[0] |= extRecover })
	for _, c := range []struct {
		name, disk string
		code       hotspare.Code
		says       string
	}{
		{"half a sector", cut(good, diskSize-100), hotspare.CodeImageTruncated, "512-byte sectors"},
		{"ext4 cut", cut(good, 20<<20), hotspare.CodeImageTruncated, "ext4 file system"},
		{"partition cut", cut(gpt, 20<<20), hotspare.CodeImageTruncated, "partition 1"},
		{"partition table cut", cut(gpt, 1024), hotspare.CodeImageTruncated, "GPT entries"},
		{"one sector", cut(gpt, 512), hotspare.CodeImageTruncated, "partition table"},
		{"journal to replay", dirty, hotspare.CodeImageKernel, "journal was not replayed"},
		{"noise", write(t, t.TempDir()+"/noise", noise("noise", 1<<20)), hotspare.CodeImageKernel, "neither a partition table nor a file system"},
		{"no system", mke2fs(t, t.TempDir()), hotspare.CodeImageKernel, "os-release"},
		{"no kernel", change(func(d string) { os.RemoveAll(d + "/boot") }), hotspare.CodeImageKernel, "no vmlinuz-VERSION"},
		{"no modules", change(func(d string) { os.RemoveAll(d + "/usr/lib/modules") }), hotspare.CodeImageKernel, "modules.dep is missing"},
		{"kernel of another version", change(func(d string) {
			command(t, d, "cp", "boot/vmlinuz-"+oldKernel, "boot/vmlinuz-"+newKernel)
		}), hotspare.CodeImageKernel, "not the one of its name"},
		{"kernel is a text", change(func(d string) { write(t, d+"/boot/vmlinuz-"+newKernel, []byte("hello")) }), hotspare.CodeImageKernel, "not a kernel that is known"},
		{"os-release in a loop", change(func(d string) {
			os.Remove(d + "/etc/os-release")
			link(t, "os-release", d+"/etc/os-release")
		}), hotspare.CodeImageKernel, "symbolic links"},
		{"xfs without a system", made("320M", "mkfs.xfs", "-q"), hotspare.CodeImageKernel, "xfs"},
		{"btrfs without a system", made("128M", "mkfs.btrfs", "-q"), hotspare.CodeImageKernel, "btrfs"},
	} {
		t.Run(c.name, func(t *testing.T) { refuse(t, ImportRequest{Path: c.disk}, c.code, c.says) })
	}
}

// A root that cannot be read here can still be served when kernel and modules
// are given.
func TestXFSRootWithGivenKernel(t *testing.T) {
	tree := rootTree(t)
	disk := filepath.Join(t.TempDir(), "xfs.raw")
	command(t, "", "truncate", "-s", "320M", disk)
	command(t, "", "mkfs.xfs", "-q", "-m", "uuid="+rootUUID, disk)
	r := open(t, t.TempDir(), newDisks(t))
	img, err := r.Import(t.Context(), ImportRequest{Name: "x", Path: disk, Kernel: tree + "/boot/vmlinuz-" + newKernel, Modules: tree + "/usr/lib/modules/" + newKernel})
	if err != nil {
		t.Fatal(err)
	}
	if img.RootFS != "xfs" || img.RootUUID != rootUUID || img.Kernel.Version != newKernel {
		t.Errorf("image %+v", img)
	}
}

// patch changes a few bytes of a file.
func patch(t testing.TB, name string, off int64, change func(b []byte)) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, err := f.ReadAt(b, off)
	if err != nil && err != io.EOF {
		t.Fatal(err)
	}
	change(b[:n])
	if _, err := f.WriteAt(b[:n], off); err != nil {
		t.Fatal(err)
	}
}

// Every file of a tree is read as it was written, from each kind of ext.
func TestExt4ReadsWhatWasWritten(t *testing.T) {
	tree := rootTree(t)
	mods := tree + "/usr/lib/modules/" + newKernel
	for i := range 1200 { // enough for an indexed directory
		write(t, fmt.Sprintf("%s/kernel/many/a-rather-long-name-of-a-module-number-%04d.ko", mods, i), []byte(fmt.Sprint(i)))
	}
	for _, options := range [][]string{
		{"-t", "ext4"},
		{"-t", "ext4", "-b", "1024"},
		{"-t", "ext4", "-O", "^64bit,^metadata_csum"},
		{"-t", "ext4", "-O", "^dir_index,^flex_bg"},
		{"-t", "ext4", "-I", "128"},
		{"-t", "ext3"},
		{"-t", "ext2", "-b", "1024"},
		{"-t", "ext2", "-O", "^filetype", "-r", "1"},
	} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			disk := mke2fs(t, tree, options...)
			command(t, "", "e2fsck", "-fn", disk)
			f, err := os.Open(disk)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ext, err := openExt4(f, diskSize)
			fsys := files{ext}
			if err != nil {
				t.Fatal(err)
			}
			if ext.uuid != rootUUID {
				t.Errorf("uuid %s", ext.uuid)
			}
			names, err := fsys.names("/lib/modules/" + newKernel + "/kernel/many")
			if err != nil || len(names) != 1201 {
				t.Fatalf("%d names, %v", len(names), err)
			}
			for _, name := range append(names, "../fs/ext4.ko", "../../modules.dep") {
				want, err := os.ReadFile(mods + "/kernel/many/" + name)
				if err != nil {
					t.Fatal(err)
				}
				got, err := fsys.readFile("/lib/modules/"+newKernel+"/kernel/many/"+name, maxModule)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%s: %d bytes, want %d, %v", name, len(got), len(want), err)
				}
			}
			// The reference implementation sees the same.
			dump := filepath.Join(t.TempDir(), "holed")
			command(t, "", "debugfs", "-R", fmt.Sprintf("dump /usr/lib/modules/%s/kernel/many/holed.ko %s", newKernel, dump), disk)
			got, err := fsys.readFile("/lib/modules/"+newKernel+"/kernel/many/holed.ko", maxModule)
			if err != nil || fmt.Sprintf("%x", got) != fmt.Sprintf("%x", mustRead(t, dump)) {
				t.Errorf("debugfs reads another file: %v", err)
			}
			for _, gone := range []string{"/none", "/etc/os-release/x", "/lib/modules/" + newKernel + "/build/x"} {
				if _, err := fsys.readFile(gone, 10); err == nil {
					t.Errorf("%s was found", gone)
				}
			}
		})
	}
}

func mustRead(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Links inside the image stay inside the image.
func TestExt4LinksStayInside(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/etc/passwd", []byte("inside"))
	link(t, "/etc/passwd", dir+"/absolute")
	link(t, "../../../../etc/passwd", dir+"/dots")
	link(t, "/"+strings.Repeat("./", 60)+"etc/passwd", dir+"/long") // longer than an inode holds
	link(t, "b", dir+"/a")
	link(t, "a", dir+"/b")
	f, err := os.Open(mke2fs(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ext, err := openExt4(f, diskSize)
	fsys := files{ext}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/absolute", "/dots", "/long", "/etc/../../etc/./passwd"} {
		if b, err := fsys.readFile(p, 100); err != nil || string(b) != "inside" {
			t.Errorf("%s: %q, %v", p, b, err)
		}
	}
	if _, err := fsys.readFile("/a", 100); err == nil || !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("a loop: %v", err)
	}
}

// oneName is a file system whose directory holds one name.
type oneName struct{ name string }

func (o *oneName) top() (*file, error)                 { return &file{mode: modeDir}, nil }
func (o *oneName) entries(*file) ([]entry, error)      { return []entry{{name: o.name}}, nil }
func (o *oneName) follow(entry) (*file, error)         { return &file{mode: modeRegular}, nil }
func (o *oneName) contents(*file) (io.ReaderAt, error) { return bytes.NewReader(nil), nil }
func (o *oneName) target(*file) (string, error)        { return "", nil }

// Directories that no kernel writes.
func TestExt4HostileDirectories(t *testing.T) {
	entry := func(inode uint32, length uint16, name string) []byte {
		b := make([]byte, length)
		binary.LittleEndian.PutUint32(b, inode)
		binary.LittleEndian.PutUint16(b[4:], length)
		b[6] = byte(len(name))
		copy(b[8:], name)
		return b
	}
	for _, c := range []struct {
		name  string
		block []byte
		want  string
	}{
		{"length 4", append(entry(12, 12, "a"), 1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0), "damaged"},
		{"length past the block", append(entry(12, 12, "a"), 1, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0), "damaged"},
		{"name past its entry", append(entry(12, 12, "a"), 1, 0, 0, 0, 12, 0, 200, 0, 0, 0, 0, 0), "damaged"},
	} {
		if _, err := parseDirBlock(c.block, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, name := range []string{"../../etc/cron.d/x", "a\x00b", ""} {
		if _, err := (files{&oneName{name}}).list(&file{mode: modeDir}); err == nil || !strings.Contains(err.Error(), "not possible") {
			t.Errorf("%q: %v", name, err)
		}
	}
	// A name twice: the classic way to lead a copy through a link.
	disk := mke2fs(t, rootTree(t), "-t", "ext4", "-O", "^metadata_csum")
	b := mustRead(t, disk)
	at := bytes.Index(b, []byte("config-"+oldKernel))
	if at < 0 {
		t.Fatal("the directory was not found")
	}
	old := []byte("vmlinuz-" + oldKernel)
	// vmlinuz-…-9-test becomes config-… with its own length: same name, other inode.
	v := bytes.Index(b, old)
	copy(b[v:], "config-"+oldKernel)
	b[v-2] = byte(len("config-" + oldKernel))
	write(t, disk, b)
	refuse(t, ImportRequest{Path: disk}, hotspare.CodeImageKernel, "stands twice")
}

// FuzzExt4 changes anything in a file system: no panic, no endless loop, no
// read outside of it.
func FuzzExt4(f *testing.F) {
	dir := f.TempDir()
	write(f, dir+"/etc/os-release", []byte("ID=x\n"))
	write(f, dir+"/boot/vmlinuz-1", bzImage("1"))
	write(f, dir+"/lib/modules/1/modules.dep", []byte("a.ko:\n"))
	link(f, "boot/vmlinuz-1", dir+"/vmlinuz")
	var bases [][]byte
	for _, options := range [][]string{{"-t", "ext4", "-b", "1024", "-O", "^has_journal,^resize_inode", "-N", "32"}, {"-t", "ext2", "-b", "1024", "-O", "^resize_inode", "-N", "32"}} {
		name := filepath.Join(f.TempDir(), "fs")
		command(f, "", "mke2fs", append(append([]string{"-q", "-F", "-d", dir}, options...), name, "128k")...)
		bases = append(bases, mustRead(f, name))
	}
	for which := range uint8(2) {
		for off := uint32(1024); off < 1024+0x180; off += 4 { // superblock
			f.Add(which, edit(off, 0x01ff0000))
		}
		for off := uint32(2048); off < 12288; off += 124 { // descriptors, bitmaps, inodes, directories
			f.Add(which, append(edit(off, 0xff), edit(off+2, 0x01000000)...))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, edits []byte) {
		disk := bytes.Clone(bases[int(which)%len(bases)])
		applyEdits(disk, edits)
		sys, err := findSystem(bytes.NewReader(disk), int64(len(disk)), false)
		if err != nil {
			return
		}
		k, err := sys.kernel()
		if err != nil {
			return
		}
		if data, err := k.fs.readFile(k.path, maxKernel); err == nil {
			inspectKernel(data)
		}
		n, _, err := sys.rootFS.lookup("/lib/modules/" + k.version)
		if err != nil {
			return
		}
		tree := &moduleTree{ctx: t.Context(), w: tar.NewWriter(io.Discard), limit: 64 << 20}
		tree.addImage(sys.rootFS, n, "", 0) // any error will do: it must come to an end
	})
}

// FuzzPartitions: what a table names lies on the disk.
func FuzzPartitions(f *testing.F) {
	small := write(f, filepath.Join(f.TempDir(), "p"), make([]byte, 1<<20))
	var bases [][]byte
	for which, label := range []string{"gpt", "dos"} {
		bases = append(bases, mustRead(f, partitioned(f, label, small, small))[:8<<20])
		for _, off := range []uint32{446, 450, 454, 458, 462, 470, 474, 510, 512, 524, 584, 592, 596, 600, 1024, 1056, 1064, 1152} {
			f.Add(uint8(which), edit(off, 0x0f000000))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, edits []byte) {
		base := bases[int(which)%len(bases)]
		b := bytes.Clone(base[:64<<10])
		applyEdits(b, edits)
		if string(b[512:520]) == "EFI PART" { // let the fuzzer past the checksum
			clear(b[512+16 : 512+20])
			if n := binary.LittleEndian.Uint32(b[512+12:]); n <= 512 {
				binary.LittleEndian.PutUint32(b[512+16:], crc32.ChecksumIEEE(b[512:512+n]))
			}
		}
		b = append(b, base[64<<10:]...)
		all, err := partitions(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, s := range all {
			if s.off < 0 || s.size <= 0 || s.off+s.size > int64(len(b)) {
				t.Fatalf("%+v on a disk of %d bytes", s, len(b))
			}
		}
	})
}

func TestGPTDamageIsNamed(t *testing.T) {
	disk := partitioned(t, "gpt", mke2fs(t, rootTree(t)))
	for _, c := range []struct {
		name   string
		off    int64
		change func(b []byte)
		says   string
	}{
		{"header", 512, func(b []byte) { b[60]++ }, "checksum of the GPT header"},
		{"entries", 1024, func(b []byte) { b[60]++ }, "checksum of the GPT entries"},
		{"header length", 512, func(b []byte) { b[12] = 1 }, "GPT header of 1 bytes"},
		{"signature", 512, func(b []byte) { b[0]++ }, "announces a GPT"},
		{"four billion entries", 512, func(b []byte) {
			binary.LittleEndian.PutUint32(b[80:], 1<<32-1)
			binary.LittleEndian.PutUint32(b[84:], 1<<31)
			clear(b[16:20])
			binary.LittleEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:92]))
		}, "4294967295 GPT entries"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "bad.raw")
			command(t, "", "cp", "--sparse=always", disk, out)
			patch(t, out, c.off, c.change)
			refuse(t, ImportRequest{Path: out}, hotspare.CodeImageFormat, c.says)
		})
	}
}

func TestKernelFormats(t *testing.T) {
	arm := make([]byte, 4096)
	copy(arm[56:], "ARM\x64")
	zboot := make([]byte, 4096)
	copy(zboot, "MZ\x00\x00zimg")
	zboot[0x3c] = 0x80
	copy(zboot[0x80:], "PE\x00\x00\x64\xaa")
	i386 := bzImage("5.10")
	i386[0x236] = 0
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	zw.Write(arm)
	zw.Close()
	twice := &bytes.Buffer{}
	zw = gzip.NewWriter(twice)
	zw.Write(packed.Bytes())
	zw.Close()
	far := bzImage("1")
	far[0x20e], far[0x20f] = 0xff, 0xff
	for _, c := range []struct {
		name string
		b    []byte
		want kernelInfo
	}{
		{"bzImage", bzImage("6.1.0-9-test"), kernelInfo{"amd64", "6.1.0-9-test"}},
		{"bzImage of 32 bits", i386, kernelInfo{"386", "5.10"}},
		{"version outside of the file", far, kernelInfo{"amd64", ""}},
		{"arm64", arm, kernelInfo{"arm64", ""}},
		{"arm64, gzip", packed.Bytes(), kernelInfo{"arm64", ""}},
		{"gzip in gzip", twice.Bytes(), kernelInfo{}},
		{"arm64, zboot", zboot, kernelInfo{"arm64", ""}},
		{"nothing", nil, kernelInfo{}},
		{"text", []byte("hello"), kernelInfo{}},
	} {
		if got := inspectKernel(c.b); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestVersionsSortAsPeopleReadThem(t *testing.T) {
	want := []string{"5.10.0-1", "6.1.0-9", "6.1.0-10", "6.1.0-10-amd64", "6.1.10", "6.12", "12.0.0", "12.0.01"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareVersions)
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestOSReleaseCannotControlATerminal(t *testing.T) {
	got := parseOSRelease([]byte("# x\nID='debian'\nPRETTY_NAME=\"a\x1b[2Jb\x07\"\nVERSION_ID=\nNAME\n" + "X=" + strings.Repeat("y", 1000)))
	if got != (OSRelease{ID: "debian", PrettyName: "a[2Jb"}) {
		t.Errorf("got %+v", got)
	}
}
