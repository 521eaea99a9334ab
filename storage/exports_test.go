package storage_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/storage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a volume of plain bytes; a write lands slowly, block by block, so
// that a revocation often meets one halfway.
type memory struct {
	mu      sync.Mutex
	data    []byte
	stuck   chan struct{} // writes wait for it to be closed, if it is there
	entered chan struct{} // gets one per write that waits
	flushes atomic.Int64
}

func (d *memory) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}

func (d *memory) WriteAt(p []byte, off int64) (int, error) {
	if d.stuck != nil {
		d.entered <- struct{}{}
		<-d.stuck
	}
	for n := 0; n < len(p); n += 512 {
		d.mu.Lock()
		copy(d.data[off+int64(n):], p[n:min(n+512, len(p))])
		d.mu.Unlock()
	}
	return len(p), nil
}

func (d *memory) Flush() error               { d.flushes.Add(1); return nil }
func (d *memory) Discard(off, n int64) error { clear(d.data[off : off+n]); return nil }
func (d *memory) Size() int64                { return int64(len(d.data)) }
func (d *memory) Close() error               { return nil }
func (d *memory) snapshot() []byte           { d.mu.Lock(); defer d.mu.Unlock(); return bytes.Clone(d.data) }

// volumes are memory volumes by name; the uid is the name.
type volumes map[string]*memory

func (v volumes) OpenVolume(name string) (storage.Device, error) {
	if d := v[name]; d != nil {
		return d, nil
	}
	return nil, &hotspare.Error{Code: hotspare.CodeNotFound}
}

func (v volumes) VolumeUID(name string) (string, error) {
	if v[name] == nil {
		return "", &hotspare.Error{Code: hotspare.CodeNotFound}
	}
	return "uid-" + name, nil
}

func open(t *testing.T, path string, v volumes) *storage.Exports {
	t.Helper()
	e, err := storage.OpenExports(path, storage.Options{Volumes: v})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func grant(volume string, epoch uint64, who string) storage.Grant {
	return storage.Grant{Volume: volume, Epoch: epoch, Initiator: "iqn.test:" + who, User: who,
		Secret: hotspare.NewSecret("secret-of-" + who + "-0123"), Node: who, BootID: "boot-" + who}
}

// login does what a target does for an initiator.
func login(t *testing.T, e *storage.Exports, g storage.Grant, cut func()) (*storage.Attachment, error) {
	t.Helper()
	name, err := e.TargetName(g.Volume)
	if err != nil {
		t.Fatal(err)
	}
	ex, err := e.Find(g.Initiator, name)
	if err != nil {
		return nil, err
	}
	return e.Attach(context.Background(), storage.Login{Export: ex, Initiator: g.Initiator, Address: "192.0.2.1:1", Cut: cut})
}

func TestGrantRules(t *testing.T) { // S2, S4
	ctx := context.Background()
	v := volumes{"orders": {data: make([]byte, 1<<16)}}
	e := open(t, filepath.Join(t.TempDir(), "exports.db"), v)
	first := grant("orders", 3, "n1")
	steps := []struct {
		what string
		do   func() error
		code hotspare.Code
	}{
		{"the first grant", func() error { return e.Grant(ctx, first) }, ""},
		{"the same again", func() error { return e.Grant(ctx, first) }, ""},
		{"another initiator at the same epoch", func() error { return e.Grant(ctx, grant("orders", 3, "n2")) }, hotspare.CodeVolumeBusy},
		{"another initiator at a higher epoch", func() error { return e.Grant(ctx, grant("orders", 4, "n2")) }, hotspare.CodeVolumeBusy},
		{"the same initiator with another secret", func() error {
			g := first
			g.Secret = hotspare.NewSecret("another-secret-0123")
			return e.Grant(ctx, g)
		}, hotspare.CodeVolumeBusy},
		{"an old epoch", func() error { return e.Grant(ctx, grant("orders", 2, "n2")) }, hotspare.CodeStaleEpoch},
		{"revocation below 4", func() error { _, err := e.Revoke(ctx, "orders", 4); return err }, ""},
		{"the revoked grant again", func() error { return e.Grant(ctx, first) }, hotspare.CodeStaleEpoch},
		{"its initiator name under a new epoch", func() error { return e.Grant(ctx, grant("orders", 4, "n1")) }, hotspare.CodeInvalid},
		{"the next grant", func() error { return e.Grant(ctx, grant("orders", 4, "n2")) }, ""},
		{"a late revocation of the older epoch", func() error { _, err := e.Revoke(ctx, "orders", 4); return err }, ""},
		{"the grant stands", func() error {
			if g, ok := e.Live("orders"); !ok || g.Initiator != "iqn.test:n2" || !g.Secret.IsZero() {
				return errors.New("no live grant, or it shows its secret")
			}
			return nil
		}, ""},
		{"a grant without a secret", func() error {
			g := grant("orders", 5, "n3")
			g.Secret = hotspare.Secret{}
			return e.Grant(ctx, g)
		}, hotspare.CodeInvalid},
		{"a grant to everybody", func() error {
			g := grant("orders", 5, "n3")
			g.Initiator = storage.AnyInitiator
			return e.Grant(ctx, g)
		}, hotspare.CodeInvalid},
		{"a volume that does not exist", func() error { return e.Grant(ctx, grant("none", 1, "n1")) }, hotspare.CodeNotFound},
	}
	for _, s := range steps {
		err := s.do()
		if s.code == "" && err != nil || s.code != "" && hotspare.CodeOf(err) != s.code {
			t.Fatalf("%s: %v, not %q", s.what, err, s.code)
		}
		if err != nil && strings.Contains(err.Error(), "secret-of") {
			t.Fatalf("%s: the error shows a secret: %v", s.what, err)
		}
	}
	if got := e.Epoch("orders"); got != 4 {
		t.Fatalf("epoch %d, not 4", got)
	}
}

func TestGrantSurvivesARestartAndRevocationToo(t *testing.T) { // S2.2, L3
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "exports.db")
	v := volumes{"orders": {data: make([]byte, 1<<16)}}
	e := open(t, path, v)
	g := grant("orders", 7, "n1")
	if err := e.Grant(ctx, g); err != nil {
		t.Fatal(err)
	}
	name, _ := e.TargetName("orders")
	e.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the file with the secrets has mode %v (%v)", st.Mode(), err)
	}

	e = open(t, path, v)
	if again, _ := e.TargetName("orders"); again != name {
		t.Fatalf("the target name changed from %s to %s", name, again)
	}
	a, err := login(t, e, g, nil)
	if err != nil {
		t.Fatalf("the owner cannot log in again after a restart: %v", err)
	}
	a.End()
	if ex, err := e.Find(g.Initiator, name); err != nil || !ex.Secret.Equal(g.Secret) {
		t.Fatalf("the secret did not survive: %v", err)
	}
	if _, err := e.Revoke(ctx, "orders", 8); err != nil {
		t.Fatal(err)
	}
	e.Close()

	e = open(t, path, v)
	if _, err := login(t, e, g, nil); hotspare.CodeOf(err) != hotspare.CodeLoginRefused {
		t.Fatalf("a revoked initiator after a restart: %v", err)
	}
	if got := e.Epoch("orders"); got != 8 {
		t.Fatalf("epoch %d after the restart, not 8", got)
	}
}

// TestCrashInsideARevocation ends the process right after the epoch is durable,
// while the old session is still open: afterwards nobody is admitted.
func TestCrashInsideARevocation(t *testing.T) { // S2.2
	path := filepath.Join(t.TempDir(), "exports.db")
	v := volumes{"orders": {data: make([]byte, 1<<16)}}
	e := open(t, path, v)
	g := grant("orders", 1, "n1")
	if err := e.Grant(context.Background(), g); err != nil {
		t.Fatal(err)
	}
	crashed := filepath.Join(t.TempDir(), "exports.db")
	var a *storage.Attachment
	a, err := login(t, e, g, func() { // sessions are cut after the epoch is durable
		b, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(crashed, b, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
		go a.End()
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Revoke(context.Background(), "orders", 2); err != nil {
		t.Fatal(err)
	}
	e2 := open(t, crashed, v)
	if _, err := login(t, e2, g, nil); hotspare.CodeOf(err) != hotspare.CodeLoginRefused {
		t.Fatalf("after the crash the old grant logs in: %v", err)
	}
	if err := e2.Grant(context.Background(), grant("orders", 1, "n2")); hotspare.CodeOf(err) != hotspare.CodeStaleEpoch {
		t.Fatalf("after the crash an old epoch is granted: %v", err)
	}
	if err := e2.Grant(context.Background(), grant("orders", 2, "n2")); err != nil {
		t.Fatal(err)
	}
}

func TestRevokeWaitsForTheWriteThatIsUnderWay(t *testing.T) { // S2.2
	dev := &memory{data: make([]byte, 1<<16), stuck: make(chan struct{}), entered: make(chan struct{}, 1)}
	e := open(t, filepath.Join(t.TempDir(), "exports.db"), volumes{"orders": dev})
	g := grant("orders", 1, "n1")
	if err := e.Grant(context.Background(), g); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan struct{})
	a, err := login(t, e, g, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(wrote)
		if _, err := a.WriteAt(make([]byte, 512), 0); err != nil {
			t.Errorf("the write under way: %v", err)
		}
		a.End()
	}()
	<-dev.entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.Revoke(ctx, "orders", 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("evidence while a write is under way: %v", err)
	}
	if _, err := a.WriteAt(make([]byte, 512), 0); !errors.Is(err, storage.ErrRevoked) {
		t.Fatalf("a new write after the gate is shut: %v", err)
	}
	if err := e.Grant(context.Background(), grant("orders", 2, "n2")); err != nil {
		t.Fatal(err)
	}
	close(dev.stuck)
	rev, err := e.Revoke(context.Background(), "orders", 2) // the interrupted one, again
	if err != nil || rev.Sessions > 1 {
		t.Fatalf("revocation: %+v, %v", rev, err)
	}
	<-wrote
	if _, ok := e.Live("orders"); !ok {
		t.Fatal("revoking below 2 took the grant of epoch 2")
	}
}

// TestNoByteLandsAfterARevocation races eight sessions that write at full speed
// with many revocations. Every write carries its epoch in the data; after each
// return of Revoke the data is looked at twice.
func TestNoByteLandsAfterARevocation(t *testing.T) { // S2.2
	const writers = 8
	rounds := 100
	if os.Getenv("HOTSPARE_TEST_FULL") != "" {
		rounds = 2000
	}
	dev := &memory{data: make([]byte, writers*8192)}
	e := open(t, filepath.Join(t.TempDir(), "exports.db"), volumes{"orders": dev})
	ctx := context.Background()
	var writes, refused atomic.Int64
	for epoch := uint64(1); epoch <= uint64(rounds); epoch++ {
		g := storage.Grant{Volume: "orders", Epoch: epoch, Initiator: "iqn.test:" + storage.NewUID(), User: "u",
			Secret: hotspare.NewSecret("0123456789abcdef")}
		if err := e.Grant(ctx, g); err != nil {
			t.Fatal(err)
		}
		var started sync.WaitGroup
		var all sync.WaitGroup
		for w := range writers {
			stop := make(chan struct{})
			var once sync.Once
			a, err := login(t, e, g, func() { once.Do(func() { close(stop) }) })
			if err != nil {
				t.Fatal(err)
			}
			started.Add(1)
			all.Go(func() {
				defer a.End()
				p := bytes.Repeat(binary.BigEndian.AppendUint64(nil, epoch), 1024)
				first := true
				for {
					_, err := a.WriteAt(p, int64(w)*8192)
					if first {
						started.Done()
						first = false
					}
					if errors.Is(err, storage.ErrRevoked) {
						refused.Add(1)
						<-stop
						return
					}
					writes.Add(1)
				}
			})
		}
		started.Wait()
		rev, err := e.Revoke(ctx, "orders", epoch+1)
		if err != nil {
			t.Fatal(err)
		}
		if rev.Sessions != writers {
			t.Fatalf("epoch %d: %d sessions were closed, not %d", epoch, rev.Sessions, writers)
		}
		// From here on the volume is the next owner's: what it writes must stay.
		mark := bytes.Repeat([]byte{0xff}, len(dev.data))
		if _, err := dev.WriteAt(mark, 0); err != nil {
			t.Fatal(err)
		}
		if rand.IntN(4) == 0 {
			time.Sleep(time.Millisecond) // give a late write the chance to show itself
		}
		if !bytes.Equal(dev.snapshot(), mark) {
			t.Fatalf("a byte of epoch %d landed after its revocation", epoch)
		}
		all.Wait()
		if !bytes.Equal(dev.snapshot(), mark) {
			t.Fatalf("a byte of epoch %d landed after its revocation", epoch)
		}
	}
	t.Logf("%d revocations, %d writes landed, %d were refused", rounds, writes.Load(), refused.Load())
	if refused.Load() < int64(rounds*writers) || writes.Load() < int64(rounds*writers) {
		t.Fatal("the run exercised too little")
	}
}

func TestLoginThatRacesARevocationIsRefused(t *testing.T) {
	e := open(t, filepath.Join(t.TempDir(), "exports.db"), volumes{"orders": {data: make([]byte, 1<<16)}})
	ctx := context.Background()
	g := grant("orders", 1, "n1")
	if err := e.Grant(ctx, g); err != nil {
		t.Fatal(err)
	}
	name, _ := e.TargetName("orders")
	ex, err := e.Find(g.Initiator, name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Revoke(ctx, "orders", 2); err != nil { // while the initiator computes its answer
		t.Fatal(err)
	}
	if _, err := e.Attach(ctx, storage.Login{Export: ex, Initiator: g.Initiator}); hotspare.CodeOf(err) != hotspare.CodeLoginRefused {
		t.Fatalf("attach under a revoked grant: %v", err)
	}
}

func TestInitiatorSeesOnlyItsOwn(t *testing.T) { // S15
	v := volumes{"orders": {data: make([]byte, 1<<16)}, "web": {data: make([]byte, 1<<16)}}
	e := open(t, filepath.Join(t.TempDir(), "exports.db"), v)
	ctx := context.Background()
	for vol, who := range map[string]string{"orders": "n1", "web": "n2"} {
		if err := e.Grant(ctx, grant(vol, 1, who)); err != nil {
			t.Fatal(err)
		}
	}
	orders, _ := e.TargetName("orders")
	web, _ := e.TargetName("web")
	if got := e.Visible("iqn.test:n1"); len(got) != 1 || got[0] != orders {
		t.Fatalf("n1 sees %q", got)
	}
	if got := e.Visible("iqn.test:nobody"); len(got) != 0 {
		t.Fatalf("a stranger sees %q", got)
	}
	_, foreign := e.Find("iqn.test:n1", web)
	_, missing := e.Find("iqn.test:n1", web+"x")
	if hotspare.CodeOf(foreign) != hotspare.CodeLoginRefused || hotspare.CodeOf(missing) != hotspare.CodeLoginRefused {
		t.Fatalf("foreign: %v, missing: %v", foreign, missing)
	}
}

func TestReadOnlyAndTrace(t *testing.T) {
	dir := t.TempDir()
	dev := &memory{data: make([]byte, 1<<16)}
	e := open(t, filepath.Join(dir, "exports.db"), volumes{"witness": dev})
	ctx := context.Background()
	ro := grant("witness", 1, "n1")
	ro.ReadOnly = true
	if err := e.Grant(ctx, ro); err != nil {
		t.Fatal(err)
	}
	a, err := login(t, e, ro, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteAt(make([]byte, 512), 0); !errors.Is(err, storage.ErrReadOnly) {
		t.Fatalf("write: %v", err)
	}
	if err := a.Discard(0, 512); !errors.Is(err, storage.ErrReadOnly) {
		t.Fatalf("discard: %v", err)
	}
	a.End()
	for epoch, who := range []string{2: "n2", 3: "n3"} {
		if who == "" {
			continue
		}
		if _, err := e.Revoke(ctx, "witness", uint64(epoch)); err != nil {
			t.Fatal(err)
		}
		g := grant("witness", uint64(epoch), who)
		g.Trace = true
		if err := e.Grant(ctx, g); err != nil {
			t.Fatal(err)
		}
		a, err := login(t, e, g, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.WriteAt(bytes.Repeat([]byte{byte(epoch)}, 1024), 4096); err != nil {
			t.Fatal(err)
		}
		a.End()
	}
	b, err := os.ReadFile(storage.TracePath(filepath.Join(dir, "traces"), "witness"))
	if err != nil {
		t.Fatal(err)
	}
	var got []storage.TraceEntry
	for line := range strings.Lines(string(b)) {
		var te storage.TraceEntry
		if err := json.Unmarshal([]byte(line), &te); err != nil {
			t.Fatal(err)
		}
		got = append(got, te)
	}
	if len(got) != 2 || got[0].Seq != 1 || got[1].Seq != 2 || got[0].Epoch != 2 || got[1].Epoch != 3 ||
		got[1].Node != "n3" || got[1].BootID != "boot-n3" || got[1].LBA != 8 || got[1].Length != 1024 || got[1].Data != strings.Repeat("03", 64) {
		t.Fatalf("trace: %+v", got)
	}
	s := e.Statistics("witness")
	if s.Writes != 2 || s.BytesWritten != 2048 || s.LastWrite.IsZero() || s.InFlight != 0 {
		t.Fatalf("statistics: %+v", s)
	}
}

func TestDamagedTableIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "exports.db")
	v := volumes{"orders": {data: make([]byte, 1<<16)}}
	e := open(t, path, v)
	if err := e.Grant(context.Background(), grant("orders", 1, "n1")); err != nil {
		t.Fatal(err)
	}
	if _, err := storage.OpenExports(path, storage.Options{Volumes: v}); hotspare.CodeOf(err) != hotspare.CodeStoreLocked {
		t.Fatalf("a second process: %v", err)
	}
	e.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte(`"epoch":1`)); n == 0 {
		t.Fatal("the record is not where the test looks for it")
	}
	b = bytes.ReplaceAll(b, []byte(`"epoch":1`), []byte(`"epoch":0`))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := storage.OpenExports(path, storage.Options{Volumes: v}); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatalf("a damaged record: %v", err)
	}
}
