package storage

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestBucketsCoverEveryDurationOnce(t *testing.T) {
	for i := range HistogramLength - 1 {
		bound := HistogramBound(i)
		if got := bucketOf(bound - 1); got != i {
			t.Errorf("%v is in bucket %d, want %d", bound-1, got, i)
		}
		if got := bucketOf(bound); got != i+1 {
			t.Errorf("%v is in bucket %d, want %d", bound, got, i+1)
		}
		if i > 0 {
			if width := bound - HistogramBound(i-1); width > bound/4 && i > 1 {
				t.Errorf("bucket %d is %v wide at %v", i, width, bound)
			}
		}
	}
	for d, want := range map[time.Duration]int{0: 0, time.Hour: HistogramLength - 1, 1<<63 - 1: HistogramLength - 1} {
		if got := bucketOf(d); got != want {
			t.Errorf("%v is in bucket %d, want %d", d, got, want)
		}
	}
	if b := HistogramBound(HistogramLength - 1); b >= 0 {
		t.Errorf("the last bucket is bounded by %v", b)
	}
}

func TestQuantilesAreCloseToTheTruth(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var h histogram
	var all [100]time.Duration
	for i := range all {
		all[i] = time.Duration(i+1) * 100 * time.Microsecond
	}
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, d := range all {
		h.add(d)
	}
	var got Histogram
	h.load(&got)
	if got.Count() != 100 || got.Sum != 505*time.Millisecond {
		t.Fatalf("%d durations, sum %v", got.Count(), got.Sum)
	}
	for q, want := range map[float64]time.Duration{0: 100 * time.Microsecond, 0.5: 5 * time.Millisecond, 0.99: 9900 * time.Microsecond, 1: 10 * time.Millisecond} {
		if d := got.Quantile(q); d < want || d > want+want/3 {
			t.Errorf("quantile %v is %v, want %v or up to a third more", q, d, want)
		}
	}
	if n := got.Below(5 * time.Millisecond); n > 50 || n < 35 {
		t.Errorf("%d are below 5 ms, want 50 or up to a bucket less", n)
	}
	if q := (&Histogram{}).Quantile(0.5); q != 0 {
		t.Errorf("no durations: %v", q)
	}
}

// memory is a volume in memory; it fails when told to.
type memory struct {
	b    []byte
	fail error
}

func (m *memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m.b[off:]), m.fail }
func (m *memory) WriteAt(p []byte, off int64) (int, error) { return copy(m.b[off:], p), m.fail }
func (m *memory) Flush() error                             { return m.fail }
func (m *memory) Discard(off, n int64) error               { clear(m.b[off : off+n]); return m.fail }
func (m *memory) Size() int64                              { return int64(len(m.b)) }
func (m *memory) Close() error                             { return nil }

type one struct{ dev *memory }

func (o one) OpenVolume(string) (Device, error)     { return o.dev, nil }
func (o one) VolumeUID(name string) (string, error) { return "uid-" + name, nil }

func attached(t testing.TB, o Options) (*Exports, *Attachment, *memory) {
	t.Helper()
	dev := &memory{b: make([]byte, 1<<20)}
	o.Volumes, o.Lab = one{dev}, true
	e, err := OpenExports(filepath.Join(t.TempDir(), "exports.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Grant(context.Background(), Grant{Volume: "v", Epoch: 3, Initiator: AnyInitiator, Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	target, err := e.TargetName("v")
	if err != nil {
		t.Fatal(err)
	}
	x, err := e.Find("iqn.2026-11.test:a", target)
	if err != nil {
		t.Fatal(err)
	}
	a, err := e.Attach(context.Background(), Login{Export: x, Initiator: "iqn.2026-11.test:a", Address: "10.77.0.101"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.End()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, a, dev
}

// A clock that the test moves: each look at it takes a while.
type clock struct {
	mu   sync.Mutex
	at   time.Time
	step time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(c.step)
	return c.at
}

func TestStatisticsTellWhatAVolumeDid(t *testing.T) {
	c := &clock{at: time.Unix(1000, 0), step: time.Millisecond}
	e, a, dev := attached(t, Options{Now: c.now})
	p := make([]byte, 4096)
	do := func(n int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	before := e.Statistics("v")
	do(a.ReadAt(p, 0))
	do(a.WriteAt(p, 0))
	do(a.WriteAt(p[:512], 8192))
	written := c.at
	do(0, a.Flush())
	flushed := c.at // of the look at the end of the command
	s := e.Statistics("v")
	if s.Reads != 1 || s.Writes != 2 || s.Flushes != 1 || s.BytesRead != 4096 || s.BytesWritten != 4608 || s.InFlight != 0 {
		t.Fatalf("%+v", s)
	}
	if !s.LastWrite.Equal(written) || !s.LastFlush.Equal(flushed) {
		t.Fatalf("last write %v, want %v; last flush %v, want %v", s.LastWrite, written, s.LastFlush, flushed)
	}
	if s.WriteLatency.Sum != 2*time.Millisecond || s.WriteLatency.Counts[bucketOf(time.Millisecond)] != 2 {
		t.Fatalf("write latency: %v", s.WriteLatency)
	}
	r := RatesOf(before, s, 2*time.Second)
	if r.Writes != 1 || r.BytesWritten != 2304 || r.Reads != 0.5 || r.Flushes != 0.5 || r.Queue < 0.0019 || r.Queue > 0.0021 {
		t.Fatalf("rates: %+v", r)
	}
	if r := RatesOf(s, before, time.Second); r.Writes != 0 || r.Queue != 0 {
		t.Fatalf("counters that began anew: %+v", r)
	}

	// A command that failed is counted, but it is no last write or flush.
	dev.fail = errors.New("the disk is gone")
	if _, err := a.WriteAt(p, 0); err == nil {
		t.Fatal("no error")
	}
	if err := a.Flush(); err == nil {
		t.Fatal("no error")
	}
	s = e.Statistics("v")
	if s.Writes != 3 || s.Flushes != 2 || !s.LastWrite.Equal(written) || !s.LastFlush.Equal(flushed) {
		t.Fatalf("after failures: %+v", s)
	}
	if all := e.AllSessions(); len(all) != 1 || len(all["v"]) != 1 {
		t.Errorf("sessions of all volumes: %+v", all)
	}
	if got := e.Sessions("v"); len(got) != 1 || got[0].Initiator != "iqn.2026-11.test:a" || got[0].Address != "10.77.0.101" || got[0].Epoch != 3 || got[0].InFlight != 0 {
		t.Fatalf("sessions: %+v", got)
	}
}

func TestStatisticsCountEveryCommandOfManySessions(t *testing.T) {
	e, a, _ := attached(t, Options{})
	var all sync.WaitGroup
	const workers, each = 8, 1000
	for i := range workers {
		all.Go(func() {
			p := make([]byte, 512)
			for j := range each {
				off := int64(i*each+j) % 1000 * 512
				if _, err := a.ReadAt(p, off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	s := e.Statistics("v")
	if s.Reads != workers*each || s.BytesRead != workers*each*512 || s.InFlight != 0 || s.ReadLatency.Sum <= 0 {
		t.Fatalf("%d reads, %d bytes, %d under way, %v", s.Reads, s.BytesRead, s.InFlight, s.ReadLatency.Sum)
	}
}

func TestWithoutStatisticsNothingIsMeasured(t *testing.T) {
	e, a, _ := attached(t, Options{WithoutStatistics: true})
	if _, err := a.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Flush(), a.Discard(0, 4096)); err != nil {
		t.Fatal(err)
	}
	if s := e.Statistics("v"); s != (Statistics{}) {
		t.Fatalf("%+v", s)
	}
	if got := e.Sessions("v"); len(got) != 1 || got[0].LastWrite.IsZero() {
		t.Fatalf("sessions: %+v", got)
	}
}

// BenchmarkStatistics is what measuring a command costs: the difference of the
// two, to be held against the time that a command takes in all (some 10 us over
// iSCSI).
func BenchmarkStatistics(b *testing.B) {
	for _, c := range []struct {
		name string
		off  bool
	}{{"on", false}, {"off", true}} {
		b.Run(c.name, func(b *testing.B) {
			_, a, _ := attached(b, Options{WithoutStatistics: c.off})
			p := make([]byte, 4096)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := cpu(b)
			for b.Loop() {
				if _, err := a.ReadAt(p, 0); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpu gives the time that this thread had the processor for, so that other work
// on the machine does not count.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
