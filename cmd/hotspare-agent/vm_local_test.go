package main_test

import (
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"hotspare"
	"hotspare/cmd/hotspare-agent/slots"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/diskstream"
	"hotspare/haengine/agentlink/server"
)

// streams serves the contents of a file as a disk stream, and breaks the first.
type streams struct {
	source agentlink.Source
	breaks atomic.Int64 // connections to break after the first bytes
	froms  atomic.Int64 // requests for the rest
}

func serveStream(t *testing.T, path string) *streams {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := diskstream.Digest(t.Context(), f, st.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &streams{source: agentlink.Source{URL: "http://" + hostAddr.Addr().String() + ":8081/image", Digest: digest, Bytes: st.Size()}}
	ln, err := net.Listen("tcp", netip.AddrPortFrom(hostAddr.Addr(), 8081).String())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _ := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
		if from > 0 {
			s.froms.Add(1)
		}
		out := &breaking{ResponseWriter: w, left: 1 << 62}
		if s.breaks.Add(-1) >= 0 {
			out.left = 700 << 10
		}
		_, _ = diskstream.Encode(r.Context(), out, f, st.Size(), from, digest)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done; _ = f.Close() })
	return s
}

// breaking cuts the connection after so many bytes.
type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	if len(p) > b.left {
		_, _ = b.ResponseWriter.Write(p[:b.left])
		panic(http.ErrAbortHandler)
	}
	b.left -= len(p)
	return b.ResponseWriter.Write(p)
}

// makeDisk makes a file for a disk of a machine, and the machine's options.
func makeDisk(t *testing.T, name string, size int64) (path string, options []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path, []string{"-drive", "if=none,id=" + name + ",format=raw,discard=unmap,file=" + path, "-device", "virtio-blk-pci,drive=" + name + ",serial=" + name}
}

// parked is a machine that stands by.
type parked struct {
	*testing.T
	a *appliance
	m *machine
	s server.Session
}

// park boots a standby machine with disks.
func park(t *testing.T, a *appliance, env environment, fill byte, options []string) parked {
	t.Helper()
	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeStandby, fill)), options...)
	return parked{T: t, a: a, m: m, s: a.awaitJoin(t, m)}
}

func (p parked) must(o agentlink.Order) agentlink.Result {
	p.Helper()
	return p.a.must(p.T, p.s, o)
}

func (p parked) refused(o agentlink.Order, code hotspare.Code) {
	p.Helper()
	p.a.refused(p.T, p.s, o, code)
}

func (p parked) become(claim agentlink.Order) {
	p.Helper()
	becomeService(p.T, p.a, p.m, p.s, claim)
}

func (p parked) off() {
	p.Helper()
	p.must(agentlink.Order{ID: "off", Power: &agentlink.Power{Action: agentlink.PowerOff, Why: "the test goes on"}})
	p.m.awaitEnd(p.T, 30*time.Second)
}

// An image is installed into a slot of a local disk over a connection that
// breaks, and started from there; a slot that differs from what was installed is
// not; what is wiped is gone. No disk is ever guessed or overwritten unasked.
func TestSlotsOfALocalDisk(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a, d, env := newAppliance(t), serviceDisks(t), buildEnvironment(t)
	image := makeServiceImage(t)
	src := serveStream(t, image)
	mine, options := makeDisk(t, "mine", 256<<20)
	foreign, more := makeDisk(t, "foreign", 256<<20)
	command(t, "", "mke2fs", "-q", "-t", "ext4", foreign)
	options = append(options, more...)

	n := park(t, a, env, 0xb1, options)
	facts := n.s.Facts
	if len(facts.Disks) != 2 || facts.Disks[0].ID != "serial-virtio-mine" || facts.Disks[0].Holds != "blank" || facts.Disks[1].Holds != "ext4" || facts.Disks[1].Bytes != 256<<20 {
		t.Fatalf("disks: %+v", facts.Disks)
	}
	layout := &agentlink.SlotLayout{Slots: []string{"A", "B", "C"}, SlotBytes: 64 << 20}
	install := func(id string, change func(*agentlink.Install)) agentlink.Order {
		in := &agentlink.Install{Disk: agentlink.DiskSelector{ID: facts.Disks[0].ID}, Source: src.source, Layout: layout, Slot: "A", Image: "web:1", Kernel: env.version}
		if change != nil {
			change(in)
		}
		return agentlink.Order{ID: id, App: "web", Install: in}
	}
	n.refused(install("any", func(i *agentlink.Install) { i.Disk = agentlink.DiskSelector{MinBytes: 1} }), hotspare.CodeDiskChoice)
	n.refused(install("none", func(i *agentlink.Install) { i.Disk = agentlink.DiskSelector{Serial: "elsewhere"} }), hotspare.CodeDiskChoice)
	n.refused(install("foreign", func(i *agentlink.Install) { i.Disk = agentlink.DiskSelector{ID: facts.Disks[1].ID} }), hotspare.CodeDiskChoice)
	n.refused(install("forged", func(i *agentlink.Install) { i.Source.Digest = "00" + i.Source.Digest[2:] }), hotspare.CodeContents)
	src.breaks.Store(2)
	n.must(install("install", nil))
	if src.froms.Load() == 0 {
		t.Error("the installation did not go on after a cut")
	}
	a.note(func() {
		steps := map[string]bool{}
		for _, p := range a.progress {
			steps[p.Step] = steps[p.Step] || p.Done == p.Total && p.OrderID == "install"
		}
		if !steps["write"] || !steps["verify"] {
			t.Errorf("progress: %+v", a.progress)
		}
	})
	n.refused(agentlink.Order{ID: "another", App: "orders", Install: install("", nil).Install}, hotspare.CodeDiskChoice)
	n.off()

	// It starts from there, and what the root writes does not reach the slot.
	n = park(t, a, env, 0xb2, options)
	facts = n.s.Facts
	if c := facts.Disks[0].Copies; facts.Disks[0].Holds != "hotspare slots" || len(c) != 3 || c[0].State != agentlink.CopyReady || !c[0].Active || c[0].App != "web" || c[1].State != agentlink.CopyEmpty {
		t.Errorf("copies: %+v", facts.Disks[0])
	}
	claim := serviceClaim(t, d, 11, agentlink.Image{Kernel: env.version, Root: agentlink.RootInSlot,
		Local: &agentlink.Local{Disk: agentlink.DiskSelector{ID: facts.Disks[0].ID}, Slot: "A", Digest: src.source.Digest}})
	n.become(claim)

	// One flipped byte, and it does not.
	flip(t, mine, (2<<20)+(5<<20))
	n = park(t, a, env, 0xb3, options)
	facts = n.s.Facts
	if facts.Disks[0].Copies[0].Started != 1 || facts.Disks[0].Copies[0].Epoch != 11 {
		t.Errorf("after a start: %+v", facts.Disks[0].Copies[0])
	}
	for _, v := range []string{"data", "witness"} {
		if _, err := d.exports.Revoke(t.Context(), v, 12); err != nil {
			t.Fatal(err)
		}
	}
	claim = serviceClaim(t, d, 12, claim.Claim.Image)
	n.refused(claim, hotspare.CodeContents)
	n.must(agentlink.Order{ID: "wipe", Wipe: &agentlink.Wipe{Erase: true}})
	n.off()
	f, err := os.Open(mine)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rec, err := slots.Read(f, 256<<20)
	if err != nil || rec.Find("A").State != agentlink.CopyEmpty || rec.Find("A").App != "" {
		t.Errorf("after the wipe: %+v, %v", rec, err)
	}
	slot := make([]byte, 64<<20)
	if _, err := f.ReadAt(slot, 2<<20); err != nil {
		t.Fatal(err)
	}
	for i, b := range slot {
		if b != 0 {
			t.Fatalf("byte %d of the slot is left", i)
		}
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// partitioned makes a disk image with one partition that holds a file system.
func partitioned(t *testing.T, fs string) (path string, part agentlink.Partition) {
	t.Helper()
	st, err := os.Stat(fs)
	if err != nil {
		t.Fatal(err)
	}
	part = agentlink.Partition{Number: 1, Offset: 1 << 20, Bytes: st.Size()}
	path = filepath.Join(t.TempDir(), "disk.raw")
	command(t, "", "truncate", "-s", strconv.FormatInt(st.Size()+(2<<20), 10), path)
	command(t, "", "sh", "-c", "printf 'label: gpt\nstart=2048, size="+strconv.FormatInt(st.Size()/512, 10)+"\n' | sfdisk -q "+path)
	command(t, "", "dd", "if="+fs, "of="+path, "bs=1M", "seek=1", "conv=notrunc", "status=none")
	return path, part
}

// An image is installed to a whole disk, started from there, and disabled when it
// is released. Neither then nor before is there anything on the disk that a firmware
// would start.
func TestInstallationOfAWholeDisk(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a, d, env := newAppliance(t), serviceDisks(t), buildEnvironment(t)
	image, part := partitioned(t, makeServiceImage(t))
	src := serveStream(t, image)
	mine, options := makeDisk(t, "mine", 128<<20)
	n := park(t, a, env, 0xc1, options)
	local := agentlink.DiskSelector{Serial: "mine"}
	res := n.must(agentlink.Order{ID: "install", App: "web", Epoch: 21, Install: &agentlink.Install{
		Disk: local, Source: src.source, Image: "web:1", Head: 8 << 10, Partitions: []agentlink.Partition{part},
	}})
	if res.Installed == nil || res.Installed.Disk != "serial-virtio-mine" || res.Installed.Slot != "" {
		t.Errorf("installed on %+v", res.Installed)
	}
	noTable(t, mine)
	claim := serviceClaim(t, d, 21, agentlink.Image{Root: agentlink.RootOnDisk, RootPartition: 1, Local: &agentlink.Local{Disk: local, Digest: src.source.Digest}})
	n.become(claim)
	noTable(t, mine)
	n = park(t, a, env, 0xc2, options)
	facts := n.s.Facts
	if c := facts.Disks[0].Copies; facts.Disks[0].Holds != "hotspare install" || len(c) != 1 || c[0].State != agentlink.CopyStarted || c[0].App != "web" {
		t.Errorf("copies: %+v", facts.Disks[0])
	}
	n.must(agentlink.Order{ID: "wipe-other", Wipe: &agentlink.Wipe{Apps: []string{"orders"}, Erase: true}})
	n.must(agentlink.Order{ID: "wipe", Wipe: &agentlink.Wipe{Apps: []string{"web"}}})
	for _, v := range []string{"data", "witness"} {
		if _, err := d.exports.Revoke(t.Context(), v, 22); err != nil {
			t.Fatal(err)
		}
	}
	n.refused(serviceClaim(t, d, 22, claim.Claim.Image), hotspare.CodeContents)
	n.off()
	head := make([]byte, 1<<20)
	f, err := os.Open(mine)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range head {
		if b != 0 {
			t.Fatalf("byte %d of the disk is left: it might boot", i)
		}
	}
}

// noTable checks that nothing tells of partitions or boot code on a disk.
func noTable(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 8<<10)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(head, make([]byte, len(head))) {
		t.Error("the disk begins with what a firmware starts")
	}
}

// An image that is a squashfs runs from memory, with its volumes.
func TestRootInMemory(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a, d, f, env := newAppliance(t), serviceDisks(t), serveFiles(t), buildEnvironment(t)
	squash := filepath.Join(t.TempDir(), "root.squashfs")
	root := makeServiceRoot(t)
	command(t, "", "mksquashfs", root, squash, "-quiet", "-no-progress", "-comp", "zstd")
	art := f.artefact(t, "root.squashfs", squash)
	n := park(t, a, env, 0xd1, nil)
	n.must(agentlink.Order{ID: "preload", Preload: &agentlink.Preload{Artefacts: []agentlink.Artefact{art}}})
	n.become(serviceClaim(t, d, 31, agentlink.Image{Kernel: env.version, Root: agentlink.RootInRAM, RAM: &art}))

	cpio := filepath.Join(t.TempDir(), "root.cpio")
	command(t, root, "sh", "-c", "find . | cpio --quiet -o -H newc | zstd -q -o "+cpio)
	art = f.artefact(t, "root.cpio", cpio)
	n = park(t, a, env, 0xd2, nil)
	for _, v := range []string{"data", "witness"} {
		if _, err := d.exports.Revoke(t.Context(), v, 32); err != nil {
			t.Fatal(err)
		}
	}
	n.become(serviceClaim(t, d, 32, agentlink.Image{Root: agentlink.RootInRAM, RAM: &art}))
}
