package firmware

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/debian"
	"hotspare/testenv/lab"
	"hotspare/ui/api"
)

// TestLocalDisksAndMemory has one application with its data go through the ways that
// need no root volume: it is installed on a whole disk, it moves to a slot that was
// filled ahead while the node stood by, and it moves into the memory of a node. Its
// data volume follows it each time.
func TestLocalDisksAndMemory(t *testing.T) {
	nodes := lab.Nodes(2)
	nodes[0].DiskMiB, nodes[1].DiskMiB = 1024, 4096
	w := newWorld(t, "ways", "", nodes)
	disk, root, kernel := serviceImages(t)
	w.hotspare("image", "import", "small", "--version", "1", "--file", disk, "--format", "raw")
	w.hotspare("image", "import", "memory", "--version", "1", "--file", root, "--kernel", kernel.image, "--modules", kernel.modules)

	n1, n2 := nodes[0], nodes[1]
	w.apply("kind: pool\nname: ways\n---\n" + diskNode(n1, "{serial: DISK-n1}"))
	w.apply(smallApp("small:1", "install"))
	w.starts("install", n1, 1)
	w.noTable(n1)

	// The spare gets the image ahead, into a slot.
	w.apply("kind: pool\nname: ways\nstandby: {nodes: 1, for: [small]}\n---\n" + diskNode(n2, "{serial: DISK-n2, slots: 3, slotGiB: 1}"))
	w.apply(smallApp("small:1", "slot, install"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.awaitNode(ctx, n2, "a copy in a slot", func(s api.NodeStatus) bool {
		return len(s.Copies) == 1 && s.Copies[0].State == "ready" && s.Copies[0].Slot == "A" && s.Copies[0].Disk == "serial-virtio-DISK-n2" && s.Copies[0].Image == "small:1"
	})
	if err := w.lab.Fail(t.Context(), n1.Name, lab.PowerCut, ""); err != nil {
		t.Fatal(err)
	}
	w.starts("slot", n2, 2)

	// The node that it left is whole again; the copy on its disk was started, so it
	// is disabled before the node is anything else (SAFETY S2a).
	if err := w.lab.Heal(t.Context(), n1.Name); err != nil {
		t.Fatal(err)
	}
	w.awaitNode(ctx, n1, "standby with its old copy disabled", func(s api.NodeStatus) bool {
		return s.Standby != nil && s.Standby.State == api.StandbyParked && len(s.Copies) == 1 && s.Copies[0].State == "disabled"
	})
	w.noTable(n1)

	w.apply(smallApp("memory:1", "ram"))
	w.hotspare("app", "failover", "small", "--to", n1.Name, "--way", "ram")
	w.starts("ram", n1, 3)

	// The slot was not written to by what ran in it, so it could be started again. One
	// byte of it rots: its digest tells, and the next way is taken under another epoch.
	w.awaitNode(ctx, n2, "standby with its slot as it was", func(s api.NodeStatus) bool {
		return s.Standby != nil && s.Standby.State == api.StandbyParked && len(s.Copies) == 1 && s.Copies[0].State == "ready"
	})
	w.rot(n2, 2<<20+5<<20)
	w.apply(smallApp("small:1", "slot, cold-iscsi"))
	w.hotspare("app", "failover", "small", "--to", n2.Name)
	w.starts("cold-iscsi", n2, 4)
	w.awaitNode(ctx, n2, "its slot known to have failed", func(s api.NodeStatus) bool {
		return len(s.Copies) == 1 && s.Copies[0].State == "failed"
	})
}

// rot changes one byte of a machine's disk.
func (w *world) rot(n lab.NodeSpec, at int64) {
	w.t.Helper()
	f, err := os.OpenFile(filepath.Join(w.lab.Dir(), n.Name, "disk.raw"), os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		w.t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		w.t.Fatal(err)
	}
}

// starts waits until the application runs on a node by a way, and checks that it was
// started so many times with the same data.
func (w *world) starts(way string, n lab.NodeSpec, times int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	begun := time.Now()
	var record api.Failover
	if _, err := w.site.Until(ctx, "small by "+way, func(s api.Snapshot) bool {
		for _, f := range s.Failovers {
			if f.Application == "small" && f.Way == way && f.EndedAt != nil {
				record = f
			}
		}
		for _, a := range s.Applications {
			if a.Name == "small" && a.Status.Phase == "running" && a.Status.Node == n.Name && record.Epoch == a.Status.Epoch {
				return true
			}
		}
		return false
	}); err != nil {
		why, _ := w.site.Hotspare(ctx, "explain", "app", "small")
		w.stuck(n, fmt.Errorf("%w\n%s", err, why))
	}
	c := &http.Client{Transport: &http.Transport{DialContext: lab.Dialer(w.lab.ClientNamespace()), DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := c.Get("http://10.77.0.60/")
	if err != nil {
		w.stuck(n, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || strings.Count(string(b), "started\n") != times {
		w.stuck(n, fmt.Errorf("its data says %q, expected %d starts: %v", b, times, err))
	}
	w.t.Logf("%s on %s after %.1f s; phases %v", way, n.Name, time.Since(begun).Seconds(), record.Seconds)
}

// awaitNode waits for a state of a node.
func (w *world) awaitNode(ctx context.Context, n lab.NodeSpec, what string, want func(api.NodeStatus) bool) {
	w.t.Helper()
	var last api.NodeStatus
	if _, err := w.site.Until(ctx, n.Name+": "+what, func(s api.Snapshot) bool {
		for _, x := range s.Nodes {
			if x.Name == n.Name {
				last = x.Status
				return want(last)
			}
		}
		return false
	}); err != nil {
		w.stuck(n, fmt.Errorf("%w\n%+v standby %+v copies %+v", err, last, last.Standby, last.Copies))
	}
}

// noTable checks that a firmware finds nothing to start on a machine's disk.
func (w *world) noTable(n lab.NodeSpec) {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.lab.Dir(), n.Name, "disk.raw"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 8<<10)
	if _, err := f.ReadAt(head, 0); err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(head, make([]byte, len(head))) {
		w.t.Errorf("the disk of %s begins with what a firmware starts", n.Name)
	}
}

func diskNode(n lab.NodeSpec, disk string) string {
	return fmt.Sprintf(`kind: node
name: %s
uuid: %s
macs: ["%s"]
pool: ways
arch: amd64
cpus: 1
memoryMiB: 512
approved: true
disk: %s
bmc: {protocol: ipmi, address: %s, user: %s, password: %s}
`, n.Name, n.UUID, n.MAC, disk, n.BMCAddr, n.BMCUser, n.BMCPassword)
}

func smallApp(image, ways string) string {
	return fmt.Sprintf(`kind: application
name: small
image: %s
pools: [ways]
address: 10.77.0.60/24
volumes:
  - {name: data, sizeMiB: 32, format: ext4}
resources:
  - {name: data, kind: mount, volume: data, target: /srv/data}
  - {name: address, kind: address}
  - {name: service, kind: process, after: [data, address], command: [/service, "10.77.0.60:80", /srv/data/starts]}
monitors:
  - {name: page, kind: http, from: [appliance], url: /, expect: started, every: 1s, timeout: 2s, failures: 2}
  - {name: agent, kind: heartbeat, every: 1s, timeout: 4s}
policy: {evidence: [power], ways: [%s], bootDeadline: 6m, onlineDeadline: 3m}
`, image, ways)
}

// kernelFiles are a kernel and the folder of its modules.
type kernelFiles struct{ image, modules string }

// serviceImages makes an image that is one process twice: as a disk with a partition,
// and as a squashfs.
func serviceImages(t *testing.T) (disk, squash string, k kernelFiles) {
	t.Helper()
	kernel, err := debian.FetchKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from := filepath.Dir(filepath.Dir(kernel.Image))
	mods, err := filepath.Glob(filepath.Join(from, "*", "modules", "*"))
	if err != nil || len(mods) != 1 {
		mods, err = filepath.Glob(filepath.Join(from, "usr", "lib", "modules", "*"))
	}
	if err != nil || len(mods) != 1 {
		t.Fatalf("modules below %s: %v, %v", from, mods, err)
	}
	k = kernelFiles{kernel.Image, mods[0]}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"dev", "proc", "sys", "run", "srv/data", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/os-release"), []byte("ID=small\nPRETTY_NAME=\"one process\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", filepath.Join(root, "service"), "./cmd/hotspare-agent/testdata/service")
	build.Dir, build.Env = "../..", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	withProgram(t, root, "mkfs.ext4") // the data volume is blank at first
	squash = filepath.Join(dir, "root.squashfs")
	run(t, "mksquashfs", root, squash, "-quiet", "-no-progress")

	run(t, "mkdir", "-p", filepath.Join(root, "boot"), filepath.Join(root, "lib/modules"))
	run(t, "cp", k.image, filepath.Join(root, "boot", "vmlinuz-"+filepath.Base(k.modules)))
	run(t, "cp", "-a", k.modules, filepath.Join(root, "lib/modules")+"/")
	run(t, "depmod", "-b", root, filepath.Base(k.modules))
	k.modules = filepath.Join(root, "lib/modules", filepath.Base(k.modules))
	fs := filepath.Join(dir, "root.ext4")
	run(t, "mke2fs", "-q", "-t", "ext4", "-d", root, fs, "384M")
	disk = filepath.Join(dir, "disk.raw")
	run(t, "truncate", "-s", "386M", disk)
	run(t, "sh", "-c", "printf 'label: gpt\\nstart=2048, size="+strconv.Itoa(384*2048)+"\\n' | sfdisk -q "+disk)
	run(t, "dd", "if="+fs, "of="+disk, "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
	return disk, squash, k
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// withProgram copies one of the host's programs into a root, with its libraries.
func withProgram(t *testing.T, root, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "ldd", path).Output()
	if err != nil {
		t.Fatalf("ldd %s: %v", path, err)
	}
	run(t, "install", "-D", path, filepath.Join(root, "sbin", name))
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			run(t, "install", "-D", word, filepath.Join(root, word))
		}
	}
}
