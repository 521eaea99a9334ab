package cow_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

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
