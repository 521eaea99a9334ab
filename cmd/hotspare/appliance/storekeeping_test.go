package appliance

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/haengine"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// session gives a session on a new volume, as a node's initiator has it.
func session(t *testing.T, a *Appliance, volume string, size int64) *storage.Attachment {
	t.Helper()
	ctx := t.Context()
	const initiator = "iqn.2026-11.test:n1"
	err := errors.Join(a.store.Create(ctx, volume, size), a.exports.Grant(ctx, storage.Grant{
		Volume: volume, Epoch: 7, Initiator: initiator, User: "u", Secret: hotspare.NewSecret("c4nary-chap-secret"), Node: "n1",
	}))
	if err != nil {
		t.Fatal(err)
	}
	target, err := a.exports.TargetName(volume)
	if err != nil {
		t.Fatal(err)
	}
	x, err := a.exports.Find(initiator, target)
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.exports.Attach(ctx, storage.Login{Export: x, Initiator: initiator, Address: "10.77.0.101:50000"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.End)
	return s
}

// finished waits for the end of a task.
func finished(t *testing.T, cl *client.Client, task api.Task) api.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for task.Ended == nil {
		if err := cl.Get(ctx, "/api/v1/tasks/"+task.ID+"?after="+strconv.FormatUint(task.Revision, 10), &task); err != nil {
			t.Fatal(err)
		}
	}
	return task
}

// order begins a task and waits for its end.
func order(t *testing.T, cl *client.Client, path string, body map[string]any) api.Task {
	t.Helper()
	var task api.Task
	if err := cl.Post(t.Context(), path, body, &task); err != nil {
		t.Fatal(err)
	}
	return finished(t, cl, task)
}

const onOrders = "/api/v1/volumes/orders.data/actions/"

func names(a *Appliance) []string {
	var out []string
	for _, i := range a.store.List() {
		out = append(out, i.Name)
	}
	return out
}

// An application writes all the time, always a number into one block and then
// into another: a copy that is not of one moment shows a later number in the
// second one.
func TestAVolumeInUseIsExportedAsOfOneMoment(t *testing.T) {
	a, cl := serving(t)
	s := session(t, a, "orders.data", 64<<20)
	const first, second = 40 << 20, 8192
	stop, stopped := make(chan struct{}), make(chan uint64)
	begun := make(chan struct{})
	go func() {
		n := uint64(0)
		for {
			select {
			case <-stop:
				stopped <- n
				return
			default:
			}
			n++
			b := binary.LittleEndian.AppendUint64(nil, n)
			for _, off := range []int64{first, second} {
				if _, err := s.WriteAt(b, off); err != nil {
					t.Error(err)
				}
			}
			if n == 10 {
				close(begun)
			}
		}
	}()
	<-begun
	dir := t.TempDir()
	raw, qcow := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	for path, format := range map[string]string{raw: "raw", qcow: "qcow2"} {
		task := order(t, cl, onOrders+"export", map[string]any{"file": path, "format": format})
		if task.State != "done" || task.File == nil || task.File.Path != path || task.File.SizeBytes != 64<<20 || task.Done == 0 {
			t.Fatalf("%+v", task)
		}
	}
	close(stop)
	last := <-stopped
	if out, err := exec.Command("qemu-img", "check", "-f", "qcow2", qcow).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "raw", qcow, qcow+".raw").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, path := range []string{raw, qcow + ".raw"} {
		b, err := os.ReadFile(path)
		if err != nil || len(b) != 64<<20 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		x, y := binary.LittleEndian.Uint64(b[first:]), binary.LittleEndian.Uint64(b[second:])
		if x < 10 || x > last || y > x || y < x-1 {
			t.Errorf("%s: the first block says %d, the second %d, of %d", path, x, y, last)
		}
	}
	if got := names(a); !slices.Equal(got, []string{"orders.data"}) {
		t.Errorf("left behind: %v", got)
	}
}

func TestAnExportThatCannotBeIsRefused(t *testing.T) {
	a, cl := serving(t)
	if err := errors.Join(a.store.Create(t.Context(), "orders.data", 1<<20), a.store.Snapshot(t.Context(), "orders.data", "orders.data@x")); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(t.TempDir(), "mine")
	if err := os.WriteFile(mine, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		body map[string]any
		want hotspare.Code
	}{
		{onOrders + "export", map[string]any{"file": mine, "format": "raw"}, hotspare.CodeConflict},
		{onOrders + "export", map[string]any{"file": "../x", "format": "raw"}, hotspare.CodeInvalid},
		{onOrders + "export", map[string]any{"file": "x", "format": "vmdk"}, hotspare.CodeInvalid},
		{"/api/v1/volumes/none/actions/export", map[string]any{"file": "x", "format": "raw"}, hotspare.CodeNotFound},
		{onOrders + "copy", map[string]any{}, hotspare.CodeInvalid},
		{onOrders + "copy", map[string]any{"to": filepath.Join(a.cfg.State, "volumes")}, hotspare.CodeInvalid},
		{onOrders + "copy", map[string]any{"from": t.TempDir(), "as": "new"}, hotspare.CodeNotFound},
		{onOrders + "copy", map[string]any{"from": t.TempDir(), "as": "orders.other"}, hotspare.CodeInvalid},
		{"/api/v1/volumes/none/actions/scrub", map[string]any{}, hotspare.CodeNotFound},
		{onOrders + "snapshot", map[string]any{"as": "a/b"}, hotspare.CodeInvalid},
		{onOrders + "clone", map[string]any{"as": "web.data"}, hotspare.CodeInvalid},
		{onOrders + "clone", map[string]any{"as": "image-0123456789abcdef"}, hotspare.CodeInvalid},
		{onOrders + "resize", map[string]any{"sizeBytes": 4096}, hotspare.CodeInvalid},
		{"/api/v1/volumes/orders.data@x/actions/resize", map[string]any{"sizeBytes": 2 << 20}, hotspare.CodeInvalid},
		{"/api/v1/volumes/orders.data@x/actions/snapshot", map[string]any{"as": "y"}, hotspare.CodeInvalid},
	} {
		var p *api.Problem
		if err := cl.Post(t.Context(), c.path, c.body, nil); !errors.As(err, &p) || p.Code != c.want {
			t.Errorf("%s %v: %v, want %s", c.path, c.body, err, c.want)
		}
	}
	if b, err := os.ReadFile(mine); err != nil || string(b) != "precious" {
		t.Fatalf("%q, %v", b, err)
	}
	if err := cl.Delete(t.Context(), "/api/v1/volumes/orders.data"); err == nil || !strings.Contains(err.Error(), "belongs to an application") {
		t.Errorf("an application's data: %v", err)
	}
	if got := names(a); !slices.Equal(got, []string{"orders.data", "orders.data@x"}) {
		t.Errorf("left behind: %v", got)
	}
}

// Who has the token has no account on the appliance: over the network files go
// into one folder.
func TestOverTheNetworkFilesGoIntoOneFolder(t *testing.T) {
	a, _ := serving(t)
	if err := a.store.Create(t.Context(), "orders.data", 1<<20); err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(a.cfg.State, "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	far := client.New(client.Options{Server: "http://127.0.0.1:8080", Token: hotspare.NewSecret(strings.TrimSpace(string(token)))})
	defer far.Close()
	elsewhere := filepath.Join(t.TempDir(), "disk")
	for _, file := range []string{elsewhere, "/etc/cron.d/x", "a/b", ".", "..", "/", ".hidden"} {
		var p *api.Problem
		if err := far.Post(t.Context(), onOrders+"export", map[string]any{"file": file, "format": "raw"}, nil); !errors.As(err, &p) || p.Code != hotspare.CodeInvalid {
			t.Errorf("%s: %v", file, err)
		}
	}
	task := order(t, far, onOrders+"export", map[string]any{"file": "disk", "format": "raw"})
	if want := filepath.Join(a.cfg.State, "exports", "disk"); task.State != "done" || task.File.Path != want {
		t.Errorf("%+v, want it in %s", task, want)
	}
	if !strings.Contains(task.By, "token") {
		t.Errorf("it was asked for by %q", task.By)
	}
}

func TestACopyComesBack(t *testing.T) {
	a, cl := serving(t)
	s := session(t, a, "orders.data", 8<<20)
	rows := bytes.Repeat([]byte("row1"), 4096)
	if _, err := s.WriteAt(rows, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := cl.Post(t.Context(), onOrders+"snapshot", map[string]any{"as": "monday"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(bytes.Repeat([]byte("row2"), 4096), 1<<20); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "backup")
	const monday = "/api/v1/volumes/orders.data@monday"
	if task := order(t, cl, monday+"/actions/copy", map[string]any{"to": dir}); task.State != "done" || task.Done != int64(len(rows)) {
		t.Fatalf("%+v", task)
	}
	if task := order(t, cl, onOrders+"copy", map[string]any{"to": dir, "as": "orders.now"}); task.State != "done" {
		t.Fatalf("the volume itself: %+v", task)
	}
	if task := order(t, cl, monday+"/actions/copy", map[string]any{"to": dir}); task.State != "failed" || task.Problem.Code != hotspare.CodeConflict {
		t.Fatalf("again: %+v", task)
	}
	if err := cl.Delete(t.Context(), monday); err != nil {
		t.Fatal(err)
	}
	if task := order(t, cl, monday+"/actions/copy", map[string]any{"from": dir, "as": "orders-monday"}); task.State != "done" {
		t.Fatalf("%+v", task)
	}
	d, err := a.store.OpenVolume("orders-monday")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, len(rows))
	if _, err := d.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, rows) {
		t.Fatalf("the data differs, %v", err)
	}
	if _, err := d.WriteAt(got, 0); err != nil {
		t.Fatalf("it is not writable: %v", err)
	}
	if got := names(a); !slices.Equal(got, []string{"orders-monday", "orders.data"}) {
		t.Errorf("volumes: %v", got)
	}
}

func TestAFailedCopyLeavesNoFolder(t *testing.T) {
	a, cl := serving(t)
	s := session(t, a, "orders.data", 16<<20)
	if _, err := s.WriteAt(bytes.Repeat([]byte{1}, 16<<20), 0); err != nil {
		t.Fatal(err)
	}
	small := t.TempDir()
	if err := unix.Mount("hotspare-test", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	for want, c := range map[hotspare.Code]struct{ dir, as string }{
		hotspare.CodeInvalid:  {t.TempDir(), "no good name"},
		hotspare.CodeDiskFull: {small, "orders"},
	} {
		dir := filepath.Join(c.dir, "backup")
		task := order(t, cl, onOrders+"copy", map[string]any{"to": dir, "as": c.as})
		if task.State != "failed" || task.Problem.Code != want {
			t.Fatalf("%+v, want %s", task, want)
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the folder is there: %v", err)
		}
	}
	if task := order(t, cl, onOrders+"export", map[string]any{"file": filepath.Join(small, "disk"), "format": "qcow2"}); task.State != "failed" || task.Problem.Code != hotspare.CodeDiskFull {
		t.Fatalf("%+v", task)
	}
	if es, err := os.ReadDir(small); err != nil || len(es) != 0 {
		t.Fatalf("left behind: %v, %v", es, err)
	}
	if got := names(a); !slices.Equal(got, []string{"orders.data"}) {
		t.Errorf("left behind: %v", got)
	}
}

func TestAFlippedBitStopsItsVolumeAndIsNamed(t *testing.T) { // S14
	a, cl := serving(t)
	good := session(t, a, "web.data", 1<<20)
	bad := session(t, a, "orders.data", 1<<20)
	var rows []byte
	for i := range 1 << 14 {
		rows = fmt.Appendf(rows, "row %07d;", i)
	}
	if _, err := bad.WriteAt(rows, 64<<10); err != nil {
		t.Fatal(err)
	}
	if err := bad.Flush(); err != nil {
		t.Fatal(err)
	}
	if task := order(t, cl, "/api/v1/storage/actions/scrub", map[string]any{}); task.State != "done" || len(task.Findings) != 0 || task.Done == 0 {
		t.Fatalf("sound: %+v", task)
	}
	flip(t, filepath.Join(a.cfg.State, "volumes", "data"), rows[4096:4096+64])
	task := order(t, cl, "/api/v1/storage/actions/scrub", map[string]any{})
	if task.State != "done" || len(task.Findings) != 1 || !strings.Contains(task.Findings[0], "orders.data: 4096 bytes at "+strconv.Itoa(64<<10+4096)) {
		t.Fatalf("%+v", task)
	}
	if _, err := bad.ReadAt(make([]byte, 512), 64<<10); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Errorf("the volume goes on: %v", err)
	}
	if _, err := good.WriteAt(rows, 0); err != nil {
		t.Errorf("the other volume: %v", err)
	}
	var st api.Storage
	if err := cl.Get(t.Context(), "/api/v1/storage", &st); err != nil || len(st.Stopped) != 1 || st.Stopped[0].Volume != "orders.data" || st.Scrub.OK || len(st.Scrub.Findings) != 1 {
		t.Errorf("%+v, %v", st, err)
	}
	var v api.Volume
	if err := cl.Get(t.Context(), "/api/v1/volumes/orders.data", &v); err != nil || v.Stopped == nil || v.Stopped.Code != hotspare.CodeCorrupt {
		t.Errorf("%+v, %v", v, err)
	}
	// The event is written by another goroutine.
	seen := func() bool {
		var events []api.Event
		if err := cl.Get(t.Context(), "/api/v1/events", &events); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(events, func(e api.Event) bool {
			return e.Code == string(hotspare.CodeCorrupt) && strings.Contains(e.Text, "orders.data")
		})
	}
	for deadline := time.Now().Add(time.Minute); !seen(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no event tells of it")
		}
	}
	if m := metrics(t); !strings.Contains(m, `hotspare_volume_stopped{volume="orders.data"} 1`) || !strings.Contains(m, `hotspare_volume_stopped{volume="web.data"} 0`) {
		t.Errorf("metrics:\n%s", m)
	}
}

// flip flips a bit of the first place of a file that holds what.
func flip(t *testing.T, path string, what []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, what)
	if at < 0 {
		t.Fatal("the data is not where the test looks for it")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{b[at] ^ 4}, int64(at)); err != nil {
		t.Fatal(err)
	}
}

func metrics(t *testing.T) string {
	t.Helper()
	resp, err := http.Get("http://127.0.0.1:8080/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%d, %v: %s", resp.StatusCode, err, b)
	}
	return string(b)
}

func TestMetricsTellWhatAVolumeDoes(t *testing.T) {
	a, cl := serving(t)
	s := session(t, a, "orders.data", 1<<20)
	p := make([]byte, 8192)
	for range 3 {
		if _, err := s.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	m := metrics(t)
	for _, want := range []string{
		`hotspare_volume_size_bytes{volume="orders.data"} 1.048576e+06`,
		`hotspare_volume_written_bytes_total{volume="orders.data"} 24576`,
		`hotspare_volume_read_bytes_total{volume="orders.data"} 8192`,
		`hotspare_volume_command_duration_seconds_count{command="write",volume="orders.data"} 3`,
		`hotspare_volume_command_duration_seconds_bucket{command="flush",volume="orders.data",le="+Inf"} 1`,
		`hotspare_volume_sessions{volume="orders.data"} 1`,
		`hotspare_volume_session_info{address="10.77.0.101",epoch="7",initiator="iqn.2026-11.test:n1",node="n1",volume="orders.data"} 1`,
		`hotspare_volume_epoch{volume="orders.data"} 7`,
		`hotspare_volume_commands_in_flight{volume="orders.data"} 0`,
		`hotspare_volume_last_write_timestamp_seconds{volume="orders.data"} 1.`,
		`hotspare_volume_last_flush_timestamp_seconds{volume="orders.data"} 1.`,
		`hotspare_storage_scrub_running 0`,
		`hotspare_storage_reclaimed_bytes_total 0`,
		`hotspare_storage_free_bytes `,
		`go_goroutines`,
	} {
		if !strings.Contains(m, want) {
			t.Errorf("%s is missing", want)
		}
	}
	if problems, err := promlint.New(strings.NewReader(m)).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
	if strings.Contains(m, "c4nary") {
		t.Error("the metrics show a secret")
	}
	// The same door as the API's.
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8080/metrics", nil)
	req.Host = "evil.example"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("under another site's name: %d", resp.StatusCode)
	}
	var v api.Volume
	if err := cl.Get(t.Context(), "/api/v1/volumes/orders.data", &v); err != nil {
		t.Fatal(err)
	}
	if x := v.Activity; x == nil || x.Write.Count != 3 || x.Write.Bytes != 24576 || x.Write.P99Micros <= 0 || v.LastFlush == nil ||
		len(v.Sessions) != 1 || v.Sessions[0].Node != "n1" || v.Sessions[0].Epoch != 7 || v.Sessions[0].Address != "10.77.0.101:50000" || v.Sessions[0].LastWrite == nil {
		t.Errorf("%+v, %+v", v, x)
	}
}

// What a deleted volume gives back shows, while it is given back.
func TestReclaimedSpaceShows(t *testing.T) {
	a, cl := serving(t)
	if err := a.store.Create(t.Context(), "big", 16<<20); err != nil {
		t.Fatal(err)
	}
	d, err := a.store.OpenVolume("big")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 16<<20), 0); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if err := cl.Delete(t.Context(), "/api/v1/volumes/big"); err != nil {
		t.Fatal(err)
	}
	if err := a.store.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	var st api.Storage
	if err := cl.Get(t.Context(), "/api/v1/storage", &st); err != nil || st.Reclaim.FreedBytes != 16<<20 || st.Reclaim.WaitingBytes != 0 || st.Reclaim.Why != "" {
		t.Fatalf("%+v, %v", st.Reclaim, err)
	}
	if m := metrics(t); !strings.Contains(m, "hotspare_storage_reclaimed_bytes_total 1.6777216e+07") {
		t.Errorf("metrics:\n%s", m)
	}
}

func TestATaskIsAbortedAndSoIsItsWork(t *testing.T) {
	a, cl := serving(t)
	s := session(t, a, "orders.data", 16<<20)
	if _, err := s.WriteAt(bytes.Repeat([]byte{1}, 8<<20), 0); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "disk")
	var task api.Task
	slow := map[string]any{"file": file, "format": "raw", "bytesPerSecond": 1 << 20}
	if err := cl.Post(t.Context(), onOrders+"export", slow, &task); err != nil {
		t.Fatal(err)
	}
	var p *api.Problem
	if err := cl.Post(t.Context(), onOrders+"export", slow, nil); !errors.As(err, &p) || p.Code != hotspare.CodeConflict || !strings.Contains(p.Where, task.ID) {
		t.Errorf("the same again: %v", err)
	}
	if err := cl.Delete(t.Context(), "/api/v1/tasks/"+task.ID); err != nil {
		t.Fatal(err)
	}
	if task = finished(t, cl, task); task.State != "aborted" || !strings.Contains(task.Text, "aborted by") || task.Problem != nil {
		t.Errorf("%+v", task)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 0 {
		t.Errorf("left behind: %v, %v", es, err)
	}
	if got := names(a); !slices.Equal(got, []string{"orders.data"}) {
		t.Errorf("left behind: %v", got)
	}
	if err := cl.Delete(t.Context(), "/api/v1/tasks/"+task.ID); err == nil {
		t.Error("it was aborted twice")
	}
	var all []api.Task
	if err := cl.Get(t.Context(), "/api/v1/tasks", &all); err != nil || len(all) != 1 || all[0].ID != task.ID {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestTheEndOfTheApplianceEndsItsTasks(t *testing.T) {
	c := config(t)
	a := start(t, c)
	cl := client.New(client.Options{Socket: c.Socket})
	defer cl.Close()
	if err := a.store.Create(t.Context(), "orders.data", 8<<20); err != nil {
		t.Fatal(err)
	}
	d, err := a.store.OpenVolume("orders.data")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 8<<20), 0); err != nil {
		t.Fatal(err)
	}
	d.Close()
	dir := t.TempDir()
	body := map[string]any{"file": filepath.Join(dir, "disk"), "format": "raw", "bytesPerSecond": 4096}
	if err := cl.Post(t.Context(), onOrders+"export", body, nil); err != nil {
		t.Fatal(err)
	}
	// What a killed appliance leaves: a task's snapshot.
	if err := a.store.Snapshot(t.Context(), "orders.data", taskPrefix+"t99.orders.data"); err != nil {
		t.Fatal(err)
	}
	stopAppliance(t, a)
	if es, err := os.ReadDir(dir); err != nil || len(es) != 0 {
		t.Errorf("left behind: %v, %v", es, err)
	}
	a = start(t, c)
	defer stopAppliance(t, a)
	if got := names(a); !slices.Equal(got, []string{"orders.data"}) {
		t.Errorf("left behind: %v", got)
	}
}

// A root that a scrub reads is deleted nevertheless.
func TestAScrubDoesNotHoldUpTheEngine(t *testing.T) {
	a, cl := serving(t)
	ctx := t.Context()
	if err := a.store.Create(ctx, "orders.root.e7", 4<<20); err != nil {
		t.Fatal(err)
	}
	d, err := a.store.OpenVolume("orders.root.e7")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	d.Close()
	var task api.Task
	if err := cl.Post(ctx, "/api/v1/storage/actions/scrub", map[string]any{"bytesPerSecond": 1}, &task); err != nil {
		t.Fatal(err)
	}
	for task.Done == 0 {
		if err := cl.Get(ctx, "/api/v1/tasks/"+task.ID+"?after="+strconv.FormatUint(task.Revision, 10), &task); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.store.Delete(ctx, "orders.root.e7"); hotspare.CodeOf(err) != hotspare.CodeVolumeBusy {
		t.Fatalf("the scrub does not read it: %v", err)
	}
	if err := a.volumes.DeleteRoot(ctx, haengine.DeleteRoot{Order: haengine.Order{App: "orders", Epoch: 7}}); err != nil {
		t.Fatal(err)
	}
	if task = finished(t, cl, task); task.State != "done" || len(task.Findings) != 0 {
		t.Errorf("%+v", task)
	}
}

func TestScrubsAreDueAfterTheLastOne(t *testing.T) {
	since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const week = 7 * 24 * time.Hour
	r := scrubRecord{Version: 1, Since: since}
	if got := r.due(week); !got.Equal(since.Add(week)) {
		t.Errorf("the first one is due at %v", got)
	}
	ended := since.Add(10 * 24 * time.Hour)
	r.Last = &scrubDone{Ended: ended}
	if got := r.due(week); !got.Equal(ended.Add(week)) {
		t.Errorf("the next one is due at %v", got)
	}
	c := StorageConfig{}.withDefaults()
	if c.Scrub.Every.D() != week || c.Scrub.MiBPerSecond != 32 || c.validate() != nil {
		t.Errorf("%+v", c)
	}
	for _, bad := range []ScrubConfig{{Every: haengine.Duration(time.Minute), MiBPerSecond: 1}, {Every: haengine.Duration(week), MiBPerSecond: -1}} {
		if (StorageConfig{bad}).validate() == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

// What the last scrub found is there after a restart, and a damaged record does
// not keep the appliance from starting.
func TestTheRecordOfScrubsOutlivesAStart(t *testing.T) {
	c := config(t)
	a := start(t, c)
	cl := client.New(client.Options{Socket: c.Socket})
	defer cl.Close()
	order(t, cl, "/api/v1/storage/actions/scrub", map[string]any{})
	stopAppliance(t, a)
	a = start(t, c)
	if v := a.scrubs.view(); v.Last == nil || !v.OK || v.Running || v.Next != nil && v.Next.Before(v.Last.Add(7*24*time.Hour)) {
		t.Errorf("%+v", v)
	}
	stopAppliance(t, a)
	if err := os.WriteFile(filepath.Join(c.State, "scrub.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	a = start(t, c)
	defer stopAppliance(t, a)
	if v := a.scrubs.view(); v.Last != nil {
		t.Errorf("%+v", v)
	}
}

func TestEveryNoticeOfTheStoreSaysWhatToDo(t *testing.T) {
	for _, n := range []cow.Notice{
		{Kind: cow.VolumeStopped, Volume: "orders.data", Err: &hotspare.Error{Code: hotspare.CodeCorrupt, What: "a volume is stopped"}},
		{Kind: cow.StoreStopped, Err: &hotspare.Error{Code: hotspare.CodeVolumeFailed, What: "the volumes are stopped"}},
		{Kind: cow.SpaceHigh, Free: 1 << 30, Total: 10 << 30},
		{Kind: cow.SpaceFull, Total: 10 << 30, Err: &hotspare.Error{Code: hotspare.CodeDiskFull}},
	} {
		x := noticeOf(n)
		if x.Code == "" || x.Text == "" || x.Fix == "" || x.Incident == "" || x.Resolved || !strings.Contains(x.Text, n.Volume) {
			t.Errorf("%s: %+v", n.Kind, x)
		}
	}
	full, low := noticeOf(cow.Notice{Kind: cow.SpaceFull}), noticeOf(cow.Notice{Kind: cow.SpaceLow})
	if full.Incident != low.Incident || !low.Resolved {
		t.Errorf("%+v does not end %+v", low, full)
	}
}
