package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/haengine/agentlink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a device in memory.
type memory struct {
	mu   sync.Mutex
	data []byte
	fail error
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	return copy(m.data[off:], p), nil
}

func TestProbe(t *testing.T) {
	const size = 4 << 20
	ext := func(state, compat byte) func([]byte) {
		return func(b []byte) { b[extMagic], b[extMagic+1], b[extState], b[extCompat] = 0x53, 0xef, state, compat }
	}
	for _, c := range []struct {
		name string
		put  func([]byte)
		want Filesystem
	}{
		{"blank", func([]byte) {}, Filesystem{Blank: true}},
		{"a byte in the first MiB", func(b []byte) { b[1<<20-1] = 1 }, Filesystem{}},
		{"a byte in the last MiB", func(b []byte) { b[size-1] = 1 }, Filesystem{}},
		{"ext4, clean", ext(1, extHasJournal), Filesystem{Type: "ext4"}},
		{"ext4 with a journal to replay", ext(0, extHasJournal), Filesystem{Type: "ext4"}},
		{"ext4 with errors noted", ext(3, extHasJournal), Filesystem{Type: "ext4", Unclean: true}},
		{"ext2, not unmounted", ext(0, 0), Filesystem{Type: "ext4", Unclean: true}},
		{"xfs", func(b []byte) { copy(b, "XFSB") }, Filesystem{Type: "xfs"}},
		{"btrfs", func(b []byte) { copy(b[btrfsMagic:], btrfsMagicText) }, Filesystem{Type: "btrfs"}},
		{"a boot sector", func(b []byte) { b[510], b[511] = 0x55, 0xaa }, Filesystem{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &memory{data: make([]byte, size)}
			c.put(m.data)
			if got, err := Probe(m, size); err != nil || got != c.want {
				t.Errorf("got %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
	if _, err := Probe(&memory{data: make([]byte, 4096)}, 4096); err == nil {
		t.Error("a device of 4 KiB is probed")
	}
}

func FuzzIdentify(f *testing.F) {
	f.Add([]byte("XFSB"))
	f.Add(make([]byte, extMagic+2))
	f.Fuzz(func(t *testing.T, in []byte) {
		first := make([]byte, probeSize)
		copy(first, in)
		if fs := identify(first); fs.Type == "" && fs.Unclean {
			t.Error("no file system, but unclean")
		}
		identify(in)
	})
}

// A volume is formatted only when that was asked for and it is blank.
func TestOnlyBlankVolumesAreFormatted(t *testing.T) {
	for _, c := range []struct {
		name string
		v    Volume
		fs   Filesystem
		act  action
		code hotspare.Code
	}{
		{"blank, to be formatted", Volume{Format: "ext4"}, Filesystem{Blank: true}, actFormat, ""},
		{"formatted already", Volume{Format: "ext4"}, Filesystem{Type: "ext4"}, actMount, ""},
		{"another file system", Volume{Format: "ext4"}, Filesystem{Type: "xfs"}, actMount, ""},
		{"unclean", Volume{Format: "ext4"}, Filesystem{Type: "ext4", Unclean: true}, actCheck, ""},
		{"unclean, read-only", Volume{Ro: true}, Filesystem{Type: "ext4", Unclean: true}, actMount, ""},
		{"foreign data", Volume{Format: "ext4"}, Filesystem{}, 0, hotspare.CodeNotBlank},
		{"blank, not to be formatted", Volume{}, Filesystem{Blank: true}, 0, hotspare.CodeOnlineFailed},
		{"foreign data, not to be formatted", Volume{}, Filesystem{}, 0, hotspare.CodeOnlineFailed},
		{"an unknown format", Volume{Format: "ntfs"}, Filesystem{Blank: true}, 0, hotspare.CodeInvalid},
		{"blank, read-only", Volume{Format: "ext4", Ro: true}, Filesystem{Blank: true}, 0, hotspare.CodeInvalid},
	} {
		if act, err := plan(c.v, c.fs); act != c.act || hotspare.CodeOf(err) != c.code {
			t.Errorf("%s: %v, %v", c.name, act, err)
		}
	}
}

// loop makes a block device of a file.
func loop(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup (root and the loop driver are needed): %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

func TestMountFormatsOnceAndKeepsTheData(t *testing.T) {
	dev, target := loop(t, 32<<20), filepath.Join(t.TempDir(), "mnt")
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	v := Volume{Name: "data", Device: dev, Format: "ext4", Target: target, Owner: "daemon"}
	for round := range 3 {
		if round == 2 { // the file system notes an error: it is checked before the mount
			if out, err := exec.Command("debugfs", "-w", "-R", "set_super_value state 2", dev).CombinedOutput(); err != nil {
				t.Fatalf("debugfs: %v: %s", err, out)
			}
		}
		if err := Mount(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if ok, err := Mounted(target); err != nil || !ok {
			t.Fatalf("mounted %v, %v", ok, err)
		}
		row := filepath.Join(target, "row")
		if text, _ := os.ReadFile(row); round > 0 && string(text) != "kept" {
			t.Fatalf("round %d: the data reads %q", round, text)
		}
		var st unix.Stat_t
		if err := unix.Stat(target, &st); err != nil || st.Uid != 1 || st.Gid != 1 {
			t.Errorf("owner %d:%d, %v, want daemon's", st.Uid, st.Gid, err)
		}
		if err := os.WriteFile(row, []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Unmount(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		if ok, _ := Mounted(target); ok {
			t.Fatal("still mounted")
		}
	}
	fs, err := probeDevice(dev)
	if err != nil || fs.Unclean {
		t.Errorf("e2fsck did not mend the file system: %+v, %v", fs, err)
	}
}

func TestMountLeavesForeignDataAlone(t *testing.T) {
	dev := loop(t, 8<<20)
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("somebody's data"), 8<<20-100); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	err = Mount(t.Context(), Volume{Name: "data", Device: dev, Format: "ext4", Target: filepath.Join(t.TempDir(), "mnt")})
	if hotspare.CodeOf(err) != hotspare.CodeNotBlank {
		t.Errorf("got %v", err)
	}
	raw, err := os.ReadFile(dev)
	if err != nil || !bytes.Contains(raw, []byte("somebody's data")) || len(bytes.Trim(raw, "\x00")) != len("somebody's data") {
		t.Errorf("the data was touched: %v", err)
	}
}

func TestUnmountWaitsForABusyMount(t *testing.T) {
	target := t.TempDir()
	if err := unix.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	f, err := os.Create(filepath.Join(target, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
	defer cancel()
	if err := Unmount(ctx, target); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Unmount(t.Context(), target); err != nil {
		t.Error(err)
	}
	if err := Unmount(t.Context(), target); err != nil {
		t.Errorf("an unmount of what is not mounted: %v", err)
	}
}

func TestPartition(t *testing.T) {
	for _, c := range []struct {
		dev    string
		number int
		want   string
	}{{"/dev/sda", 0, "/dev/sda"}, {"/dev/sda", 2, "/dev/sda2"}, {"/dev/nvme0n1", 1, "/dev/nvme0n1p1"}} {
		if got := Partition(c.dev, c.number); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

func TestOwnerIsTheImages(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\npostgres:x:104:107::/var/lib/postgresql:/bin/bash\nbad:x\n",
		"group":  "root:x:0:\nssl-cert:x:109:postgres\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		text     string
		uid, gid int
		ok       bool
	}{
		{"postgres", 104, 107, true}, {"postgres:ssl-cert", 104, 109, true}, {"nobody", 0, 0, false}, {"postgres:nogroup", 0, 0, false}, {"bad", 0, 0, false},
	} {
		uid, gid, err := owner(root, c.text)
		if (err == nil) != c.ok || (c.ok && (uid != c.uid || gid != c.gid)) {
			t.Errorf("%s: %d:%d, %v", c.text, uid, gid, err)
		}
	}
}

func TestMountinfoIsRead(t *testing.T) {
	const info = "36 35 98:0 / /srv/my\\040data rw,noatime - ext4 /dev/sdb rw\n22 1 0:20 / / rw - tmpfs t rw\n"
	for target, want := range map[string]bool{"/srv/my data": true, "/srv/my data/": true, "/srv": false, "/": true} {
		if got := mountedIn(info, target); got != want {
			t.Errorf("%q: %v", target, got)
		}
	}
}

// The witness goes on where the last grant ended, so the volume tells who
// wrote when.
func TestWitnessGoesOnOverGrants(t *testing.T) {
	const blocks = 40
	m := &memory{data: make([]byte, blocks*agentlink.WitnessBlock)}
	grant := func(node string, epoch uint64, records int) error {
		w, err := newWitness(m, m, int64(len(m.data)), agentlink.Witness{Node: node, Epoch: epoch})
		if err != nil {
			return err
		}
		for range records {
			if err := w.write(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := grant("n1", 7, 25); err != nil {
		t.Fatal(err)
	}
	if err := grant("n2", 8, 30); err != nil {
		t.Fatal(err)
	}
	last, found, err := lastRecord(m, blocks)
	if err != nil || !found || last.Counter != 54 || last.Epoch != 8 || last.Node != "n2" {
		t.Errorf("last %+v, %v, %v", last, found, err)
	}
	if err := grant("n1", 7, 1); err == nil || !strings.Contains(err.Error(), "epoch 8") {
		t.Errorf("a grant that is over may write: %v", err)
	}
	// A record whose write was cut is passed over, a foreign block is not.
	m.data[20*agentlink.WitnessBlock+30] ^= 0xff
	if err := grant("n3", 9, 1); err != nil {
		t.Errorf("a torn record stops the next grant: %v", err)
	}
	m.data[3*agentlink.WitnessBlock] = 'X'
	if err := grant("n3", 9, 1); hotspare.CodeOf(err) != hotspare.CodeNotBlank {
		t.Errorf("got %v", err)
	}
}

func TestWitnessTellsOfAFailedWrite(t *testing.T) {
	m := &memory{data: make([]byte, 8*agentlink.WitnessBlock)}
	w, err := newWitness(m, m, int64(len(m.data)), agentlink.Witness{Node: "n1", Epoch: 7})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for w.Counter() < 3 {
		time.Sleep(10 * time.Millisecond)
	}
	m.mu.Lock()
	m.fail = errors.New("session lost")
	m.mu.Unlock()
	<-w.done
	if w.Err() == nil {
		t.Error("no error")
	}
	if err := w.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
