package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("HOTSPARE_TEST_KILLED_IMPORT"); dir != "" {
		killedImport(dir)
	}
	goleak.VerifyTestMain(m)
}

// command runs a program of the host and gives what it prints.
func command(t testing.TB, dir, name string, args ...string) string {
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

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func fileSHA256(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// diskDigestOf gives the digest of a raw disk, made the plain way.
func diskDigestOf(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	h.Write(binary.LittleEndian.AppendUint64([]byte("hotspare disk 1\n"), uint64(len(b))))
	for len(b) > 0 {
		n := min(len(b), 1<<20)
		sum := sha256.Sum256(b[:n])
		h.Write(sum[:])
		b = b[n:]
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// bzImage makes the head of an x86-64 kernel of that version, as the boot
// protocol lays it out; the rest is noise.
func bzImage(version string) []byte {
	b := noise(version, 40000)
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint16(b[0x20e:], 0x3000-0x200)
	binary.LittleEndian.PutUint16(b[0x236:], 1)
	copy(b[0x3000:], version+" (builder@example) #1 SMP\x00")
	return b
}

// noise gives bytes that do not compress and depend on the seed alone.
func noise(seed string, n int) []byte {
	r := rand.NewChaCha8(sha256.Sum256([]byte(seed)))
	b := make([]byte, n)
	r.Read(b)
	return b
}

const (
	oldKernel = "6.1.0-9-test"
	newKernel = "6.1.0-10-test"
)

// rootTree makes the files of a small system: merged /usr, os-release behind a
// link, two kernels, modules, one of them with holes.
func rootTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/usr/lib/os-release", []byte("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n"))
	for _, v := range []string{oldKernel, newKernel} {
		write(t, dir+"/boot/vmlinuz-"+v, bzImage(v))
		write(t, dir+"/boot/config-"+v, []byte("CONFIG_RD_ZSTD=y\n"))
		mods := dir + "/usr/lib/modules/" + v
		write(t, mods+"/modules.dep", []byte("kernel/fs/ext4.ko:\n"))
		write(t, mods+"/kernel/fs/ext4.ko", noise(v, 300000))
		link(t, "/usr/src/linux", mods+"/build")
	}
	many := dir + "/usr/lib/modules/" + newKernel + "/kernel/many"
	holed := write(t, many+"/holed.ko", nil)
	f, err := os.OpenFile(holed, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range 30 { // more extents than an inode holds
		if _, err := f.WriteAt(noise(fmt.Sprint(i), 5000), int64(i)*20000); err != nil {
			t.Fatal(err)
		}
	}
	link(t, "../usr/lib/os-release", dir+"/etc/os-release")
	link(t, "usr/lib", dir+"/lib")
	return dir
}

func link(t testing.TB, target, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

const rootUUID = "11111111-2222-4333-8444-555555555555"

// diskSize is the size of the file systems that mke2fs makes.
const diskSize = 24 << 20

// mke2fs makes a file system from a tree.
func mke2fs(t testing.TB, tree string, args ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	args = append([]string{"-q", "-F", "-U", rootUUID, "-E", "hash_seed=" + rootUUID, "-d", tree}, args...)
	command(t, "", "mke2fs", append(args, name, "24M")...)
	return name
}

// partitioned puts file systems on one disk, after a table that sfdisk writes.
func partitioned(t testing.TB, label string, contents ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "parted.raw")
	script := "label: " + label + "\n"
	at := 2048
	var starts []int
	for i, c := range contents {
		info, err := os.Stat(c)
		if err != nil {
			t.Fatal(err)
		}
		if label == "dos" && i == 0 { // the rest in an extended partition
			script += fmt.Sprintf("start=%d, size=%d, type=83\n", at, info.Size()/512)
			starts = append(starts, at)
			at += int(info.Size()/512) + 2048
			script += fmt.Sprintf("start=%d, size=130000, type=5\n", at)
			at += 2048
			continue
		}
		script += fmt.Sprintf("start=%d, size=%d\n", at, info.Size()/512)
		starts = append(starts, at)
		at += int(info.Size()/512) + 2048
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 100<<20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "-q", name)
	cmd.Stdin = bytes.NewReader([]byte(script))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s\n%s", err, out, script)
	}
	for i, c := range contents {
		command(t, "", "dd", "if="+c, "of="+name, "bs=512", fmt.Sprintf("seek=%d", starts[i]), "conv=notrunc,sparse", "status=none")
	}
	return name
}

// disks keeps volumes as files, and fails or stops where a test wants it.
type disks struct {
	dir string

	mu     sync.Mutex
	ops    int
	onOp   func(n int, op string) error // before the n-th operation
	writes int
}

func newDisks(t testing.TB) *disks { return &disks{dir: t.TempDir()} }

func (d *disks) op(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops++
	if d.onOp != nil {
		return d.onOp(d.ops, name)
	}
	return nil
}

func (d *disks) Create(_ context.Context, name string, size int64) (Disk, error) {
	if err := d.op("create"); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(d.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	return &disk{f, d}, f.Truncate(size)
}

func (d *disks) Delete(_ context.Context, name string) error {
	return os.Remove(filepath.Join(d.dir, name))
}

type disk struct {
	*os.File
	d *disks
}

func (f *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.op("write"); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	f.d.writes++
	f.d.mu.Unlock()
	return f.File.WriteAt(p, off)
}

func (f *disk) Flush() error {
	if err := f.d.op("flush"); err != nil {
		return err
	}
	return f.Sync()
}

func (f *disk) Seal(context.Context) error {
	if err := f.d.op("seal"); err != nil {
		return err
	}
	return f.Chmod(0o400)
}

func (f *disk) Close() error {
	err := f.d.op("close")
	if cerr := f.File.Close(); err == nil {
		err = cerr
	}
	return err
}

// open gives a repository that is closed with the test.
func open(t testing.TB, dir string, d Disks) *Repository {
	t.Helper()
	r, err := Open(t.Context(), dir, Options{Disks: d})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// leftovers lists what a repository and its volume store hold, but for the
// empty frame.
func leftovers(t testing.TB, dir string, d *disks) []string {
	t.Helper()
	var all []string
	for _, root := range []string{dir, d.dir} {
		err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && e.Name() != "lock" {
				all = append(all, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// killedImport is the child of TestKilledImport: it imports and kills itself at
// the operation that the environment names.
func killedImport(dir string) {
	d := &disks{dir: dir + "/volumes"}
	d.onOp = func(_ int, op string) error {
		if op == os.Getenv("HOTSPARE_TEST_KILL_AT") {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	r, err := Open(context.Background(), dir+"/repo", Options{Disks: d})
	if err == nil {
		_, err = r.Import(context.Background(), ImportRequest{Name: "orders", Path: dir + "/disk.raw"})
	}
	fmt.Println("the import was not killed:", err)
	os.Exit(1)
}
