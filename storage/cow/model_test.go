package cow_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/testenv/faulty"
)

// The model of a volume is the plain one: a slice of bytes, and for every
// 512-byte sector the contents that it may have after a power loss. The real
// store runs beside it under random operations, kills and power losses.

const sector = 512

var (
	soakSeeds = flag.Int("cow.seeds", 0, "seeds of TestStoreEqualsModel; 0: as many as belong to the usual tests")
	soakFrom  = flag.Uint64("cow.from", 0, "first seed of TestStoreEqualsModel")
)

type modelVolume struct {
	data     []byte
	may      map[int64][][]byte // by sector: contents since the last flush, oldest first
	readOnly bool
	dev      storage.Device
}

// judge is told when the store differs from the model; a *testing.T is one.
type judge interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// stretched spreads a device's bytes over a larger one, window by window, so
// that few bytes exercise a high tree.
type stretched struct {
	storage.Device
	stride int64
}

const window = 128 << 10

func stretch(size, stride int64) int64 { // size is not 0
	return (size-1)/window*stride + (size-1)%window + 1
}

func (d stretched) split(off, n int64, do func(at, from, to int64) error) error {
	for from := int64(0); from < n; {
		step := min(n-from, window-(off+from)%window)
		if err := do((off+from)/window*d.stride+(off+from)%window, from, from+step); err != nil {
			return err
		}
		from += step
	}
	return nil
}

func (d stretched) ReadAt(p []byte, off int64) (int, error) {
	return len(p), d.split(off, int64(len(p)), func(at, from, to int64) error {
		_, err := d.Device.ReadAt(p[from:to], at)
		return err
	})
}

func (d stretched) WriteAt(p []byte, off int64) (int, error) {
	return len(p), d.split(off, int64(len(p)), func(at, from, to int64) error {
		_, err := d.Device.WriteAt(p[from:to], at)
		return err
	})
}

func (d stretched) Discard(off, n int64) error {
	return d.split(off, n, func(at, from, to int64) error { return d.Device.Discard(at, to-from) })
}

type model struct {
	t    judge
	opts cow.Options
	// stride is the distance of windows in the volumes.
	stride int64
	// seldom is how much more seldom the process ends than a step's chance says.
	seldom int
	rnd    *rand.Rand
	fs     *faulty.FS
	boot   int
	store  *cow.Store
	vols   map[string]*modelVolume
	next   int
	stats  map[string]int
}

func newModel(t judge, seed uint64, o cow.Options) *model {
	m := &model{}
	m.init(t, seed, o)
	return m
}

func (m *model) init(t judge, seed uint64, o cow.Options) {
	*m = model{t: t, opts: o, rnd: rand.New(rand.NewPCG(seed, 1)), fs: faulty.NewFS(seed), vols: map[string]*modelVolume{}, stats: map[string]int{}}
	m.stride = []int64{window, 16 << 20, 1 << 30}[seed%3]
	m.opts.LogLimit, m.seldom = 16<<10, 4
	if seed%2 == 1 { // hardly any node stays in memory
		m.opts.MapMemory = 64 << 10
	}
	m.open()
}

func (m *model) open() {
	m.t.Helper()
	m.opts.FileSystem, m.opts.BootID = m.fs.Process(), fmt.Sprintf("boot-%d", m.boot)
	s, err := cow.Open(context.Background(), "", m.opts)
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	m.store = s
}

func (m *model) dev(name string) storage.Device {
	v := m.vols[name]
	if v.dev == nil {
		d, err := m.store.OpenVolume(name)
		if err != nil {
			m.t.Fatalf("open volume %s: %v", name, err)
		}
		v.dev = stretched{d, m.stride}
	}
	return v.dev
}

func (m *model) closeDevices() {
	for _, v := range m.vols {
		if v.dev != nil {
			v.dev.Close()
			v.dev = nil
		}
	}
}

// wrote notes that sectors of v may have another content from now on.
func (v *modelVolume) wrote(off int64, p []byte) {
	for at := off / sector * sector; at < off+int64(len(p)); at += sector {
		if _, ok := v.may[at]; !ok {
			v.may[at] = [][]byte{bytes.Clone(v.data[at:min(at+sector, int64(len(v.data)))])}
		}
	}
	copy(v.data[off:], p)
	for at := off / sector * sector; at < off+int64(len(p)); at += sector {
		v.may[at] = append(v.may[at], bytes.Clone(v.data[at:min(at+sector, int64(len(v.data)))]))
	}
}

// flushed notes that the store synced everything: the sync is the store's.
func (m *model) flushed() {
	for _, v := range m.vols {
		clear(v.may)
	}
}

func (m *model) pick(writable bool) string {
	var names []string
	for _, n := range slices.Sorted(maps.Keys(m.vols)) {
		if !writable || !m.vols[n].readOnly {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return names[m.rnd.IntN(len(names))]
}

// place gives a range, often aligned, often where one was before.
func (m *model) place(size int) (off int64, n int) {
	unit := []int{1, sector, sector, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 4096, 65536}[m.rnd.IntN(12)]
	n = (1 + m.rnd.IntN(4)) * unit
	if m.rnd.IntN(150) == 0 {
		n = 1 + m.rnd.IntN(300000)
	}
	n = min(n, size)
	off = int64(m.rnd.IntN(size-n+1)) / int64(unit) * int64(unit)
	return off, n
}

func (m *model) step() {
	m.t.Helper()
	ctx := context.Background()
	must := func(what string, err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatalf("%s: %v", what, err)
		}
	}
	op := m.rnd.IntN(1000)
	name, rw := m.pick(false), m.pick(true)
	switch {
	case name == "" || op < 8 && len(m.vols) < 8:
		n := fmt.Sprintf("v%d", m.next)
		m.next++
		size := sector * (1 + m.rnd.IntN(1200))
		must("create", m.store.Create(ctx, n, stretch(int64(size), m.stride)))
		m.vols[n] = &modelVolume{data: make([]byte, size), may: map[int64][][]byte{}}
		m.flushed()
		m.count("create")
	case op < 28 && len(m.vols) < 8:
		n := fmt.Sprintf("v%d", m.next)
		m.next++
		snap := m.rnd.IntN(2) == 0
		if snap {
			must("snapshot", m.store.Snapshot(ctx, name, n))
		} else {
			must("clone", m.store.Clone(ctx, name, n))
		}
		m.vols[n] = &modelVolume{data: bytes.Clone(m.vols[name].data), may: map[int64][][]byte{}, readOnly: snap}
		m.flushed()
		m.count("clone")
	case op < 40:
		if v := m.vols[name]; v.dev != nil {
			v.dev.Close()
			v.dev = nil
		}
		must("delete", m.store.Delete(ctx, name))
		delete(m.vols, name)
		m.flushed()
		m.count("delete")
	case op < 44:
		v := m.vols[name]
		size := min(len(v.data)+sector*m.rnd.IntN(400), 1<<20)
		size = max(size, len(v.data))
		must("resize", m.store.Resize(ctx, name, stretch(int64(size), m.stride)))
		v.data = append(v.data, make([]byte, size-len(v.data))...)
		m.flushed()
	case op < 46 && rw != "":
		must("seal", m.store.SetReadOnly(ctx, rw))
		m.vols[rw].readOnly = true
		m.flushed()
	case op < 120:
		must("flush", m.dev(name).Flush())
		m.flushed()
		m.count("flush")
	case op < 200 && rw != "":
		v := m.vols[rw]
		off, n := m.place(len(v.data))
		must("discard", m.dev(rw).Discard(off, int64(n)))
		v.wrote(off, make([]byte, n))
		m.count("discard")
	case op < 600 && rw != "":
		v := m.vols[rw]
		off, n := m.place(len(v.data))
		p := make([]byte, n)
		fill(m.rnd, p)
		_, err := m.dev(rw).WriteAt(p, off)
		must("write", err)
		v.wrote(off, p)
		m.count("write")
	case op < 990:
		v := m.vols[name]
		off, n := m.place(len(v.data))
		p := make([]byte, n)
		_, err := m.dev(name).ReadAt(p, off)
		must("read", err)
		if !bytes.Equal(p, v.data[off:off+int64(n)]) {
			m.t.Fatalf("read of %s: %d bytes at %d differ from the model", name, n, off)
		}
		m.count("read")
	case op < 992:
		must("reclaim", m.store.Reclaim(ctx))
	case op < 1000 && m.rnd.IntN(m.seldom) > 0: // these take long
	case op < 993:
		m.check()
	case op < 995:
		m.closeDevices()
		must("close", m.store.Close())
		m.open()
		m.flushed()
		m.verifyAll()
		m.count("reopen")
	case op < 997:
		m.kill()
	case op < 998:
		m.powerLoss()
	default:
		m.crashSoon()
	}
}

// crashSoon lets the power fail at a call to the file layer that comes soon,
// whoever makes it, in the middle of what is going on then.
func (m *model) crashSoon() {
	m.fs.FailAt(1+m.rnd.IntN(120), io.ErrClosedPipe, true)
	for range 40 {
		name := m.pick(true)
		if name == "" {
			break
		}
		v := m.vols[name]
		d, err := m.store.OpenVolume(name)
		if err != nil {
			break
		}
		d = stretched{d, m.stride}
		off, n := m.place(len(v.data))
		p := make([]byte, n)
		switch m.rnd.IntN(8) {
		case 0:
			if err = d.Flush(); err == nil {
				m.flushed()
			}
		case 1:
			v.wrote(off, p)
			err = d.Discard(off, int64(n))
		default:
			fill(m.rnd, p)
			v.wrote(off, p)
			_, err = d.WriteAt(p, off)
		}
		d.Close()
		if err != nil {
			break
		}
	}
	m.powerLoss()
	m.count("crash soon")
}

func fill(r *rand.Rand, p []byte) {
	if r.IntN(8) == 0 {
		return // zeros
	}
	x := r.Uint64()
	for i := range p {
		p[i] = byte(x >> (i % 8 * 8))
		if i%8 == 7 {
			x = x*6364136223846793005 + 1442695040888963407
		}
	}
}

func (m *model) count(what string) { m.stats[what]++ }

// kill ends the process: nothing that was acknowledged may be missing.
func (m *model) kill() {
	m.fs.Kill()
	m.store.Close() // ends its goroutine; its files are dead
	for _, v := range m.vols {
		v.dev = nil
	}
	m.open()
	m.verifyAll()
	m.count("kill")
}

// powerLoss takes what was not synced: every sector is what it was at the last
// flush or what was written since.
func (m *model) powerLoss() {
	m.t.Helper()
	m.fs.PowerLoss()
	m.store.Close()
	m.boot++
	m.open()
	for name, v := range m.vols {
		v.dev = nil
		have := make([]byte, len(v.data))
		if _, err := m.dev(name).ReadAt(have, 0); err != nil {
			m.t.Fatalf("read of %s after a power loss: %v", name, err)
		}
		for at := int64(0); at < int64(len(have)); at += sector {
			now := have[at:min(at+sector, int64(len(have)))]
			choices, open := v.may[at]
			if !open {
				choices = [][]byte{v.data[at : at+int64(len(now))]}
			}
			if !slices.ContainsFunc(choices, func(c []byte) bool { return bytes.Equal(c, now) }) {
				m.t.Fatalf("sector %d of %s after a power loss is none of the %d it may be: has %x..., not %x...", at/sector, name, len(choices), now[:8], choices[0][:8])
			}
		}
		v.data = have
		clear(v.may)
	}
	m.check()
	m.count("power loss")
}

func (m *model) verifyAll() {
	m.t.Helper()
	for name, v := range m.vols {
		have := make([]byte, len(v.data))
		if _, err := m.dev(name).ReadAt(have, 0); err != nil {
			m.t.Fatalf("read of %s: %v", name, err)
		}
		if !bytes.Equal(have, v.data) {
			i := 0
			for have[i] == v.data[i] {
				i++
			}
			m.t.Fatalf("%s differs from the model at byte %d", name, i)
		}
	}
	m.check()
}

func (m *model) check() {
	m.t.Helper()
	r, err := m.store.Check(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	if !r.OK() {
		m.t.Fatalf("check: %d slots leaked, %q", r.Leaked, r.Problems)
	}
	if got, want := len(m.store.List()), len(m.vols); got != want {
		m.t.Fatalf("%d volumes, not %d", got, want)
	}
}

func TestStoreEqualsModel(t *testing.T) { // S14
	seeds, steps := 60, 17000 // more than 10^6 operations
	switch {
	case os.Getenv("HOTSPARE_TEST_FULL") != "":
		seeds = 120
	case testing.Short():
		seeds, steps = 6, 3000
	}
	if *soakSeeds > 0 {
		seeds = *soakSeeds
	}
	total := map[string]int{}
	for i := range seeds {
		seed := uint64(i) + *soakFrom
		m := newModel(t, seed, cow.Options{})
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d, %v", seed, m.stats)
				}
			}()
			for range steps {
				m.step()
			}
			m.verifyAll()
		}()
		m.closeDevices()
		if err := m.store.Close(); err != nil {
			t.Fatal(err)
		}
		for k, n := range m.stats {
			total[k] += n
		}
	}
	t.Logf("%v", total)
	for _, k := range []string{"write", "read", "clone", "delete", "discard", "flush", "kill", "power loss", "reopen", "crash soon"} {
		if total[k] < max(1, seeds*steps/17000) {
			t.Errorf("only %d of %q: the run exercised too little", total[k], k)
		}
	}
}

// TestKillAtEveryCall ends the process before every single call to the file
// layer of a fixed story, by a kill and by a power loss.
func TestKillAtEveryCall(t *testing.T) { // S14, L3
	story := func(s *cow.Store, note func(string)) error {
		ctx := context.Background()
		steps := []func() error{
			func() error { return s.Create(ctx, "a", 1<<20) },
			func() error { return write(s, "a", 0, 100_000, 1) },
			func() error { return flush(s, "a") },
			func() error { return s.Snapshot(ctx, "a", "a@1") },
			func() error { return write(s, "a", 50_000, 100_000, 2) },
			func() error { return s.Clone(ctx, "a@1", "b") },
			func() error { return write(s, "b", 4096, 8192, 3) },
			func() error { return flush(s, "b") },
			func() error { return discard(s, "a", 65536, 65536) },
			func() error { return s.Delete(ctx, "a@1") },
			func() error { return write(s, "a", 0, 1<<20, 4) },
			func() error { return flush(s, "a") },
			func() error { return s.Resize(ctx, "b", 2<<20) },
		}
		for i, do := range steps {
			if err := do(); err != nil {
				return err
			}
			note(fmt.Sprint(i))
		}
		return s.Close()
	}
	open := func(fs *faulty.FS, boot string) (*cow.Store, error) {
		return cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: boot, LogLimit: 4096})
	}
	// What is expected after each finished step; the step that was cut may be
	// done or not.
	whole := faulty.NewFS(0)
	s, err := open(whole, "x")
	if err != nil {
		t.Fatal(err)
	}
	var after []map[string]uint32
	after = append(after, digest(t, s))
	if err := story(s, func(string) { after = append(after, digest(t, s)) }); err != nil {
		t.Fatal(err)
	}
	calls := whole.Calls()
	if calls < 80 {
		t.Fatalf("the story makes only %d calls", calls)
	}
	for n := 1; n <= calls; n++ {
		for _, power := range []bool{false, true} {
			fs := faulty.NewFS(uint64(n))
			fs.FailAt(n, io.ErrClosedPipe, true)
			reached := 0
			if s, err := open(fs, "x"); err == nil {
				_ = story(s, func(string) { reached++ })
				s.Close()
			}
			boot := "x"
			if power {
				fs.PowerLoss()
				boot = "y"
			} else {
				fs.Kill()
			}
			s, err := open(fs, boot)
			if err != nil {
				t.Fatalf("call %d, power loss %v: open: %v", n, power, err)
			}
			if r, err := s.Check(context.Background()); err != nil || !r.OK() {
				t.Fatalf("call %d, power loss %v: check: %+v, %v", n, power, r, err)
			}
			if !power { // all acknowledged is there
				got := digest(t, s)
				next := min(reached+1, len(after)-1)
				if !maps.Equal(got, after[reached]) && !maps.Equal(got, after[next]) && reached != 1 && reached != 4 && reached != 6 && reached != 8 && reached != 10 {
					t.Fatalf("call %d: %d steps were done, the store has %v, not %v", n, reached, got, after[reached])
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func write(s *cow.Store, name string, off int64, n int, seed uint64) error {
	d, err := s.OpenVolume(name)
	if err != nil {
		return err
	}
	defer d.Close()
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range p {
		p[i] = byte(r.Uint32() | 1)
	}
	_, err = d.WriteAt(p, off)
	return err
}

func flush(s *cow.Store, name string) error {
	d, err := s.OpenVolume(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Flush()
}

func discard(s *cow.Store, name string, off, n int64) error {
	d, err := s.OpenVolume(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Discard(off, n)
}

// digest gives a checksum of every volume.
func digest(t *testing.T, s *cow.Store) map[string]uint32 {
	t.Helper()
	out := map[string]uint32{}
	for _, i := range s.List() {
		d, err := s.OpenVolume(i.Name)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, i.Size)
		if _, err := d.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		d.Close()
		h := uint32(2166136261)
		for _, b := range p {
			h = (h ^ uint32(b)) * 16777619
		}
		out[i.Name] = h
	}
	return out
}

func newStore(t *testing.T, fs *faulty.FS) *cow.Store {
	t.Helper()
	s, err := cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: "x"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestFailedSyncStopsTheVolumesForGood(t *testing.T) { // S14
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	if err := s.Create(context.Background(), "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "a", 0, 4096, 1); err != nil {
		t.Fatal(err)
	}
	fs.FailAt(1, unix.EIO, false) // the flush's fdatasync
	if err := flush(s, "a"); hotspare.CodeOf(err) != hotspare.CodeVolumeFailed {
		t.Fatalf("flush over a failed sync: %v", err)
	}
	before := fs.Calls()
	if err := flush(s, "a"); hotspare.CodeOf(err) != hotspare.CodeVolumeFailed {
		t.Fatalf("the sync was tried again, or the failure forgotten: %v", err)
	}
	if err := write(s, "a", 0, 4096, 1); hotspare.CodeOf(err) != hotspare.CodeVolumeFailed {
		t.Fatalf("a stopped volume takes writes: %v", err)
	}
	if fs.Calls() != before {
		t.Fatal("a stopped store touches its files")
	}
}

func TestFullDiskIsAnErrorAndCorruptsNothing(t *testing.T) {
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	if err := s.Create(ctx, "a", 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "a", 0, 1<<20, 7); err != nil {
		t.Fatal(err)
	}
	want := digest(t, s)
	fs.Limit(3 << 20)
	var err error
	done := int64(1 << 20)
	for ; err == nil; done += 300_000 {
		if done > 32<<20 {
			t.Fatal("the disk never gets full")
		}
		err = write(s, "a", done, 300_000, 8)
	}
	if hotspare.CodeOf(err) != hotspare.CodeDiskFull {
		t.Fatalf("write to a full disk: %v", err)
	}
	r, err := s.Check(ctx)
	if err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
	if err := discard(s, "a", 1<<20, 63<<20); err != nil {
		t.Fatalf("discard on a full disk: %v", err)
	}
	if err := flush(s, "a"); err != nil {
		t.Fatal(err)
	}
	if got := digest(t, s); !maps.Equal(got, want) {
		t.Fatal("what was there before has changed")
	}
	if err := write(s, "a", 2<<20, 300_000, 9); err != nil {
		t.Fatalf("write after space was given back: %v", err)
	}
}

func TestFlippedBitStopsTheVolume(t *testing.T) { // S14
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	for _, n := range []string{"a", "b"} {
		if err := s.Create(ctx, n, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := write(s, n, 0, 8192, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := fs.Flip("data", 5000, 3); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Check(ctx); err != nil || len(r.Problems) != 1 {
		t.Fatalf("check: %+v, %v", r, err)
	}
	d, err := s.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, 4096)
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatalf("the sound block: %v", err)
	}
	if _, err := d.ReadAt(p, 4096); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatalf("the damaged block: %v", err)
	}
	if _, err := d.ReadAt(p, 0); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatalf("a stopped volume is read: %v", err)
	}
	if i, _ := s.Stat("a"); i.Failed == nil {
		t.Fatal("the volume does not show that it is stopped")
	}
	b, err := s.OpenVolume("b")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := b.ReadAt(p, 0); err != nil {
		t.Fatalf("another volume: %v", err)
	}
}

func TestDamagedMetadataIsFound(t *testing.T) {
	for _, file := range []string{"super", "space-", "log-"} {
		t.Run(file, func(t *testing.T) {
			fs := faulty.NewFS(1)
			s := newStore(t, fs)
			if err := s.Create(context.Background(), "a", 8<<20); err != nil {
				t.Fatal(err)
			}
			if err := write(s, "a", 0, 1<<20, 1); err != nil {
				t.Fatal(err)
			}
			if err := flush(s, "a"); err != nil {
				t.Fatal(err)
			}
			if file != "log-" { // with the log, what it holds must still be in it
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := flush2(s); err != nil {
					t.Fatal(err)
				}
				fs.Kill()
				s.Close()
			}
			names, _ := fs.List()
			for _, n := range names {
				if strings.HasPrefix(n, file) {
					if err := fs.Flip(n, 100, 1); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, err := cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: "x"})
			if hotspare.CodeOf(err) != hotspare.CodeCorrupt {
				t.Fatalf("open: %v", err)
			}
		})
	}
}

// flush2 makes a second barrier, which proves that the first was durable.
func flush2(s *cow.Store) error {
	return errors.Join(write(s, "a", 2<<20, 4096, 2), flush(s, "a"))
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := cow.Open(context.Background(), dir, cow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := cow.Open(context.Background(), dir, cow.Options{}); hotspare.CodeOf(err) != hotspare.CodeStoreLocked {
		t.Fatalf("second open: %v", err)
	}
}

func TestSpaceOfDeletedVolumesIsGivenBack(t *testing.T) {
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	if err := s.Create(ctx, "golden", 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "golden", 0, 4<<20, 1); err != nil {
		t.Fatal(err)
	}
	if err := s.SetReadOnly(ctx, "golden"); err != nil {
		t.Fatal(err)
	}
	if err := write(s, "golden", 0, 1, 1); err == nil {
		t.Fatal("a golden volume takes a write")
	}
	start := fs.Sizes()["data"]
	for i := range 10 {
		n := fmt.Sprint("clone", i)
		if err := s.Clone(ctx, "golden", n); err != nil {
			t.Fatal(err)
		}
		if err := write(s, n, 1<<20, 4<<20, uint64(i)); err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Reclaim(ctx); err != nil {
		t.Fatal(err)
	}
	if got := fs.Sizes()["data"]; got > start {
		t.Fatalf("data has %d bytes after ten clones came and went, %d before", got, start)
	}
	if r, err := s.Check(ctx); err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
}

func TestOpenVolumeIsNotDeleted(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	ctx := context.Background()
	if err := s.Create(ctx, "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, "a"); hotspare.CodeOf(err) != hotspare.CodeVolumeBusy {
		t.Fatalf("delete of an open volume: %v", err)
	}
	d.Close()
	if err := s.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); err == nil {
		t.Fatal("a closed device reads")
	}
}

func TestRangeBeyondTheEndIsRefused(t *testing.T) {
	s := newStore(t, faulty.NewFS(1))
	if err := s.Create(context.Background(), "a", 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := s.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, c := range []struct{ off, n int64 }{{1 << 20, 1}, {-1, 1}, {1<<20 - 1, 2}, {1<<63 - 1, 1}, {0, 1<<20 + 1}} {
		if err := d.Discard(c.off, c.n); err == nil {
			t.Errorf("discard of %d bytes at %d is taken", c.n, c.off)
		}
		if c.n < 4096 {
			if _, err := d.WriteAt(make([]byte, c.n), c.off); err == nil {
				t.Errorf("write of %d bytes at %d is taken", c.n, c.off)
			}
		}
	}
}

// TestPowerLossInAnOverwrite overwrites in place as the first thing after a
// clean start, and loses the power: whatever reached the disk of data, checksum
// and log, the volume reads as the old or the new.
func TestPowerLossInAnOverwrite(t *testing.T) { // S14
	for seed := range uint64(300) {
		fs := faulty.NewFS(seed)
		open := func(boot string) *cow.Store {
			s, err := cow.Open(context.Background(), "", cow.Options{FileSystem: fs, BootID: boot})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			return s
		}
		s := open("1")
		if err := errors.Join(s.Create(context.Background(), "a", 1<<20), write(s, "a", 0, 1<<20, 1), s.Close()); err != nil {
			t.Fatal(err)
		}
		s = open("1")
		if err := write(s, "a", 8192, 4096, seed+2); err != nil {
			t.Fatal(err)
		}
		fs.PowerLoss()
		s.Close()
		s = open("2")
		if r, err := s.Check(context.Background()); err != nil || !r.OK() {
			t.Fatalf("seed %d: check: %+v, %v", seed, r, err)
		}
		s.Close()
	}
}

// TestSharedSlotsAreFreedByTheLastWhoLetsGo overwrites what a deleted snapshot
// once shared.
func TestSharedSlotsAreFreedByTheLastWhoLetsGo(t *testing.T) {
	fs := faulty.NewFS(1)
	s := newStore(t, fs)
	ctx := context.Background()
	if err := errors.Join(s.Create(ctx, "a", 4<<20), write(s, "a", 0, 4<<20, 1), flush(s, "a")); err != nil {
		t.Fatal(err)
	}
	start := fs.Sizes()["data"]
	for i := range uint64(5) {
		if err := errors.Join(s.Snapshot(ctx, "a", "snap"), s.Delete(ctx, "snap"), write(s, "a", 0, 4<<20, i), flush(s, "a")); err != nil {
			t.Fatal(err)
		}
		if r, err := s.Check(ctx); err != nil || !r.OK() {
			t.Fatalf("check: %+v, %v", r, err)
		}
	}
	if err := errors.Join(s.Snapshot(ctx, "a", "snap"), s.Delete(ctx, "snap"), s.Reclaim(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := fs.Sizes()["data"]; got > start {
		t.Fatalf("data has %d bytes, %d at the start", got, start)
	}
}

// TestManyWritersShareTheStore runs writers, flushers and clones at once; every
// writer has a region of its own and must find there what it wrote.
func TestManyWritersShareTheStore(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	s, err := cow.Open(ctx, dir, cow.Options{LogLimit: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Create(ctx, "a", 64<<20); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	for w := range 8 {
		work.Go(func() {
			d, err := s.OpenVolume("a")
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			r := rand.New(rand.NewPCG(uint64(w), 3))
			base, size := int64(w)*(8<<20), 8<<20
			want := make([]byte, size)
			got := make([]byte, size)
			for n := range 150 {
				off := r.IntN(size / 512)
				p := make([]byte, min(512*(1+r.IntN(200)), size-off*512))
				fill(r, p)
				if _, err := d.WriteAt(p, base+int64(off)*512); err != nil {
					t.Error(err)
					return
				}
				copy(want[off*512:], p)
				if n%10 == 0 {
					if err := d.Flush(); err != nil {
						t.Error(err)
					}
				}
				if n%50 == 49 {
					if _, err := d.ReadAt(got, base); err != nil || !bytes.Equal(got, want) {
						t.Errorf("writer %d reads something else: %v", w, err)
						return
					}
				}
			}
		})
	}
	work.Go(func() {
		for i := range 15 {
			n := fmt.Sprint("c", i)
			if err := s.Clone(ctx, "a", n); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := s.Delete(ctx, n); err != nil {
					t.Error(err)
				}
			}
		}
	})
	work.Wait()
	if r, err := s.Check(ctx); err != nil || !r.OK() {
		t.Fatalf("check: %+v, %v", r, err)
	}
}
