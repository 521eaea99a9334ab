package diskimage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hotspare"
)

// disk is a volume of which only some ranges hold data.
type disk struct {
	size   int64
	ranges map[int64][]byte // by offset; they do not overlap
	fail   error            // of a read
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if d.fail != nil {
		return 0, d.fail
	}
	if off+int64(len(p)) > d.size {
		return 0, io.ErrUnexpectedEOF
	}
	clear(p)
	for at, b := range d.ranges {
		from, to := max(at, off), min(at+int64(len(b)), off+int64(len(p)))
		if from < to {
			copy(p[from-off:to-off], b[from-at:to-at])
		}
	}
	return len(p), nil
}

func (d *disk) Extents(_ context.Context, visit func(off, n int64) error) error {
	for _, at := range slices.Sorted(maps.Keys(d.ranges)) {
		if err := visit(at, int64(len(d.ranges[at]))); err != nil {
			return err
		}
	}
	return nil
}

// plain writes the disk the simple way.
func (d *disk) plain(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "plain.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(d.size); err != nil {
		t.Fatal(err)
	}
	for at, b := range d.ranges {
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

var disks = []struct {
	name string
	disk *disk
}{
	{"nothing", &disk{size: 1 << 20}},
	{"one sector", &disk{size: 512, ranges: map[int64][]byte{0: random(1, 512)}}},
	{"an end within a cluster", &disk{size: 3<<20 + 512, ranges: map[int64][]byte{3 << 20: random(2, 512), 4096: random(3, 70000)}}},
	{"ranges that begin and end anywhere", &disk{size: 8 << 20, ranges: map[int64][]byte{1: random(4, 5), 65535: random(5, 2), 1 << 20: random(6, 3<<20+17)}}},
	{"zeros that are mapped", &disk{size: 8 << 20, ranges: map[int64][]byte{0: make([]byte, 4<<20), 5 << 20: append(make([]byte, 100000), 1)}}},
	{"several tables, one of them empty", &disk{size: 2<<30 + 4096, ranges: map[int64][]byte{0: random(8, 4096), 512<<20 - 4096: random(9, 8192), 2 << 30: random(10, 4096)}}},
	{"far beyond 2 TiB", &disk{size: 5 << 40, ranges: map[int64][]byte{5<<40 - 65536: random(11, 65536), 3 << 40: random(12, 512)}}},
}

func TestQEMUReadsWhatIsWritten(t *testing.T) {
	for _, c := range disks {
		t.Run(c.name, func(t *testing.T) {
			plain, dir := c.disk.plain(t), t.TempDir()
			for _, f := range []Format{Raw, QCOW2} {
				path := filepath.Join(dir, "disk."+string(f))
				var told int64
				r, err := Write(t.Context(), c.disk, path, Options{Format: f, Progress: func(n int64) {
					if n <= told {
						t.Errorf("progress went from %d to %d", told, n)
					}
					told = n
				}})
				if err != nil {
					t.Fatal(err)
				}
				if r.Size != c.disk.size || r.Data != told || r.Path != path {
					t.Errorf("%+v, told %d", r, told)
				}
				qemuImg(t, "compare", "-f", "raw", "-F", string(f), plain, path)
				var info struct {
					Size   int64 `json:"virtual-size"`
					Actual int64 `json:"actual-size"`
					Dirty  bool  `json:"dirty-flag"`
				}
				if err := json.Unmarshal([]byte(qemuImg(t, "info", "-f", string(f), "--output", "json", path)), &info); err != nil {
					t.Fatal(err)
				}
				if info.Size != c.disk.size || info.Dirty || info.Actual > r.Data+8<<20 {
					t.Errorf("%s: %+v, data %d", f, info, r.Data)
				}
				if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
					t.Errorf("mode %v: others may read the disk", st.Mode())
				}
			}
			var check struct {
				Errors      int `json:"check-errors"`
				Leaks       int `json:"leaks"`
				Corruptions int `json:"corruptions"`
			}
			out := qemuImg(t, "check", "-f", "qcow2", "--output", "json", filepath.Join(dir, "disk.qcow2"))
			if err := json.Unmarshal([]byte(out), &check); err != nil || check.Errors+check.Leaks+check.Corruptions != 0 {
				t.Errorf("%v\n%s", err, out)
			}
			if left := names(t, dir); len(left) != 2 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range es {
		out = append(out, e.Name())
	}
	return out
}

// The clusters that hold refcounts are counted by refcounts too.
func TestRefcountsCountThemselves(t *testing.T) {
	for _, used := range []int64{1, 2, blockCovers - 2, blockCovers - 1, blockCovers, blockCovers + 1, blockCovers * blockCovers / 3, blockCovers*cluster/8 - 1, blockCovers * cluster / 8, 1 << 35} {
		blocks, tables := refcounts(used)
		total := used + blocks + tables
		if blocks*blockCovers < total || tables*cluster < blocks*8 {
			t.Errorf("%d clusters: %d blocks and %d tables are too few", used, blocks, tables)
		}
		if (blocks-1)*blockCovers >= total {
			t.Errorf("%d clusters: %d blocks are too many", used, blocks)
		}
	}
}

// small mounts a file system of a few MiB.
func small(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("hotspare-test", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", mib)); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestAFullDiskLeavesNothingBehind(t *testing.T) {
	src := &disk{size: 64 << 20, ranges: map[int64][]byte{0: random(1, 32<<20)}}
	for _, f := range []Format{Raw, QCOW2} {
		dir := small(t, 8)
		_, err := Write(t.Context(), src, filepath.Join(dir, "disk"), Options{Format: f})
		var e *hotspare.Error
		if !errors.As(err, &e) || e.Code != hotspare.CodeDiskFull || e.Fix == "" || !strings.Contains(e.Where, dir) {
			t.Fatalf("%s: %v", f, err)
		}
		if left := names(t, dir); len(left) != 0 {
			t.Fatalf("left behind: %v", left)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
			t.Fatalf("%d of %d blocks are free, %v", st.Bfree, st.Blocks, err)
		}
	}
}

func TestTheReserveOfTheDiskStaysFree(t *testing.T) {
	src := &disk{size: 512 << 20, ranges: map[int64][]byte{0: random(1, 160<<20)}}
	dir := small(t, 256)
	_, err := Write(t.Context(), src, filepath.Join(dir, "disk"), Options{Format: Raw, Reserve: 100 << 20})
	if hotspare.CodeOf(err) != hotspare.CodeDiskFull || !strings.Contains(err.Error(), "must stay free") {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), src, filepath.Join(dir, "disk"), Options{Format: Raw, Reserve: 20 << 20}); err != nil {
		t.Fatal(err)
	}
}

func TestAFileIsNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	src := &disk{size: 1 << 20}
	path := filepath.Join(dir, "mine")
	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), src, path, Options{Format: Raw}); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Fatal(err)
	}
	// A link to nowhere is something too, and a file that appears meanwhile stays.
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), src, link, Options{Format: Raw}); hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Fatal(err)
	}
	src.ranges = map[int64][]byte{0: random(1, 4096)}
	late := filepath.Join(dir, "late")
	_, err := Write(t.Context(), src, late, Options{Format: QCOW2, Progress: func(int64) {
		if err := os.WriteFile(late, []byte("precious"), 0o644); err != nil {
			t.Error(err)
		}
	}})
	if hotspare.CodeOf(err) != hotspare.CodeConflict {
		t.Fatal(err)
	}
	for _, p := range []string{path, late} {
		if b, err := os.ReadFile(p); err != nil || string(b) != "precious" {
			t.Fatalf("%s: %q, %v", p, b, err)
		}
	}
	if left := names(t, dir); len(left) != 3 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestAnEndedRunLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	src := &disk{size: 16 << 20, ranges: map[int64][]byte{0: random(1, 8<<20)}}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the operator changed their mind")
	_, err := Write(ctx, src, filepath.Join(dir, "disk"), Options{Format: Raw, Progress: func(n int64) {
		if n >= 2<<20 {
			cancel(why)
		}
	}})
	if !errors.Is(err, why) {
		t.Fatal(err)
	}
	src.fail = &hotspare.Error{Code: hotspare.CodeCorrupt, What: "a volume is stopped"}
	if _, err := Write(t.Context(), src, filepath.Join(dir, "disk"), Options{Format: QCOW2}); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatal(err)
	}
	if left := names(t, dir); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
	sealed := small(t, 1)
	if err := unix.Mount("", sealed, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for want, path := range map[hotspare.Code]string{hotspare.CodeNotFound: filepath.Join(dir, "no", "such", "folder"), hotspare.CodeInvalid: filepath.Join(sealed, "disk")} {
		if _, err := Write(t.Context(), src, path, Options{Format: Raw}); hotspare.CodeOf(err) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := Write(t.Context(), src, filepath.Join(dir, "disk"), Options{Format: "vmdk"}); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Error(err)
	}
}

// Where a file cannot be without a name, it has a hidden one until it is whole.
func TestANamedFileIsRemovedOrRenamed(t *testing.T) {
	dir := t.TempDir()
	for _, whole := range []bool{true, false} {
		path := filepath.Join(dir, fmt.Sprint(whole))
		f, err := create(path)
		if err != nil {
			t.Fatal(err)
		}
		f.File.Close()
		f.temp = ".x.partial"
		if f.File, err = os.Create(filepath.Join(dir, f.temp)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("data")); err != nil {
			t.Fatal(err)
		}
		if whole {
			if _, err := f.commit(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.discard(); err != nil {
			t.Fatal(err)
		}
	}
	if left := names(t, dir); len(left) != 1 || left[0] != "true" {
		t.Fatalf("left: %v", left)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "true")); err != nil || !bytes.Equal(b, []byte("data")) {
		t.Fatalf("%q, %v", b, err)
	}
}
