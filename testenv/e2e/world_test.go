package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"hotspare/testenv/images"
	"hotspare/testenv/lab"
	"hotspare/testenv/lab/load"
	"hotspare/testenv/lab/site"
	"hotspare/testenv/lab/witness"
	"hotspare/ui/api"
)

// patience bounds every wait for the appliance: far above what a quiet machine
// needs, so that only a stuck failover ends here. What a failover took is
// printed, never asserted.
const patience = 6 * time.Minute

// minWitnessed is the least number of witness writes of each grant: fewer prove
// nothing about it.
const minWitnessed = 20

const database = "postgresql@15-main.service"

// world is a lab with an appliance that runs the demo's applications, and the
// clients that look on.
type world struct {
	t      *testing.T
	lab    *lab.Lab
	site   *site.Site
	client *load.Client
	asker  *asker
}

// full says whether the failovers of `make test-full` are wanted too.
func full() bool { return os.Getenv("HOTSPARE_TEST_FULL") == "1" }

// newWorld builds the programs and images, brings the lab and the appliance up
// and waits until both applications run.
func newWorld(t *testing.T) *world {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", bin+"/", "./cmd/hotspare", "./cmd/hotspare-agent", "./cmd/hotspare-lab")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	imgs := buildImages(t, filepath.Join(root, "out", "cache", "images"))
	dir := filepath.Join(root, "out", "e2e")
	l, err := lab.Up(t.Context(), lab.Options{
		Name: "e2e", Dir: filepath.Join(dir, "lab"), Kernel: imgs["orders"].Kernel, Daemon: []string{filepath.Join(bin, "hotspare-lab"), "serve"}, Log: quiet(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, lab: l}
	t.Cleanup(func() { w.down(dir) })
	state := filepath.Join(dir, "state")
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if w.site, err = site.New(site.Options{Lab: l, Bin: bin, State: state}); err != nil {
		t.Fatal(err)
	}
	w.startAppliance()
	for name, img := range imgs {
		w.hotspare("image", "import", name, "--file", img.Disk, "--format", "raw")
	}
	examples := filepath.Join(root, "examples")
	w.hotspare("apply", "-f", filepath.Join(examples, "nodes.yaml"), "-f", restless(t, filepath.Join(examples, "orders.yaml")), "-f", filepath.Join(examples, "web.yaml"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	begun := time.Now()
	if _, err := w.site.Running(ctx, "orders", "web"); err != nil {
		w.stuck(err)
	}
	t.Logf("both applications run after %.1f s", time.Since(begun).Seconds())
	w.witnessed(w.orders().Status.Epoch)
	w.client = load.Start(t.Context(), load.Options{Address: "10.77.0.50:5432", Dial: lab.Dialer(l.ClientNamespace()), Name: "e2e"})
	t.Cleanup(w.client.Stop)
	w.asker = startAsker(t, l.ClientNamespace())
	if _, err := w.client.AckAfter(ctx, time.Now()); err != nil {
		w.stuck(err)
	}
	return w
}

// restless copies the application with a budget of failovers that a test does not
// spend (the example's would hold it after five within an hour, SAFETY S11), and
// with a shorter rest for nodes that failed: the stories follow each other faster
// than failures do.
func restless(t *testing.T, example string) string {
	t.Helper()
	b, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(b), "policy:\n", "policy:\n  maxFailovers: 100\n  retryAfter: 45s\n", 1)
	if changed == string(b) {
		t.Fatalf("%s has no policy", example)
	}
	path := filepath.Join(t.TempDir(), "orders.yaml")
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
}

func buildImages(t *testing.T, cache string) map[string]images.Image {
	t.Helper()
	b, err := images.New(images.Options{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	names := images.Names()
	built := make([]images.Image, len(names))
	var g errgroup.Group
	for i, name := range names {
		g.Go(func() (err error) {
			built[i], err = b.Build(t.Context(), name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	all := map[string]images.Image{}
	for _, img := range built {
		all[img.Name] = img
	}
	return all
}

// down ends everything; the logs of a failed test stay.
func (w *world) down(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if w.t.Failed() && w.site != nil {
		w.t.Logf("the appliance's log is %s, the machines' consoles are beside it", w.site.Log())
	}
	if err := w.lab.Down(ctx); err != nil {
		w.t.Errorf("lab down: %v", err)
	}
	if !w.t.Failed() {
		if err := os.RemoveAll(dir); err != nil {
			w.t.Errorf("clean up: %v", err)
		}
	}
}

func (w *world) startAppliance() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if err := w.site.Start(ctx); err != nil {
		w.t.Fatal(err)
	}
}

// hotspare runs the operator's command.
func (w *world) hotspare(args ...string) string {
	w.t.Helper()
	out, err := w.site.Hotspare(w.t.Context(), args...)
	if err != nil {
		w.t.Fatalf("hotspare %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// stuck ends the test with what the appliance says of itself.
func (w *world) stuck(err error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	why, _ := w.site.Hotspare(ctx, "explain", "app", "orders")
	events, _ := w.site.Hotspare(ctx, "events", "--limit", "40")
	w.t.Fatalf("%v\n%s\n%s", err, why, events)
}

func (w *world) orders() api.Application {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	snap, err := w.site.Snapshot(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	app, ok := site.Application(snap, "orders")
	if !ok {
		w.t.Fatal("the appliance does not know orders")
	}
	return app
}

// fail does a fault to a machine.
func (w *world) fail(node, kind, unit string) {
	w.t.Helper()
	if err := w.lab.Fail(w.t.Context(), node, kind, unit); err != nil {
		w.t.Fatal(err)
	}
	w.t.Logf("FAULT: %s of %s", kind, node)
}

func (w *world) heal(node string) {
	w.t.Helper()
	if err := w.lab.Heal(w.t.Context(), node); err != nil {
		w.t.Fatal(err)
	}
}

// running waits until orders is said to run, with nothing suspect about it.
func (w *world) running() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if _, err := w.site.Until(ctx, "orders running", func(s api.Snapshot) bool {
		app, ok := site.Application(s, "orders")
		return ok && app.Status.Phase == "running"
	}); err != nil {
		w.stuck(err)
	}
}

// moved waits until orders runs under a later epoch than before, then checks
// everything that must be true after any hand-over.
func (w *world) moved(before api.Application, since time.Time) (api.Application, api.Failover) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	after, record, err := w.site.Moved(ctx, "orders", before.Status.Epoch)
	if err != nil {
		w.stuck(err)
	}
	if _, err := w.client.AckAfter(ctx, time.Now()); err != nil { // it goes on, on the new node
		w.stuck(err)
	}
	w.t.Logf("orders moved from %s to %s, epoch %d to %d, evidence %s; longest silence %.1f s; phases %v", before.Status.Node, after.Status.Node,
		before.Status.Epoch, after.Status.Epoch, record.Evidence, w.silence(since).Seconds(), record.Seconds)
	if after.Status.Node == before.Status.Node || after.Status.Epoch <= before.Status.Epoch {
		w.t.Errorf("it did not move: %+v", after.Status)
	}
	w.witnessed(after.Status.Epoch)
	w.wholeAndAlone()
	return after, record
}

// silence gives the longest time without an acknowledged insert since a moment.
func (w *world) silence(since time.Time) time.Duration {
	var longest time.Duration
	last := since
	for _, a := range w.client.Acks() {
		if a.At.After(last) {
			longest = max(longest, a.At.Sub(last))
			last = a.At
		}
	}
	return longest
}

// witnessed waits until the holder of an epoch has written the witness often
// enough to prove something.
func (w *world) witnessed(epoch uint64) {
	w.t.Helper()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for {
		seen, err := witness.ReadFile(w.site.Trace("orders", "witness"))
		if err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
		for _, h := range seen.Holders {
			if h.Epoch == epoch && h.Writes >= minWitnessed {
				return
			}
		}
		if time.Now().After(deadline) {
			w.stuck(fmt.Errorf("the witness of epoch %d wrote too little: %+v", epoch, seen.Holders))
		}
		<-tick.C
	}
}

// wholeAndAlone checks the promises that hold at any time: every acknowledged
// row is there (S14), two nodes never wrote (S1), nobody answered on the address
// after the next owner had (S1).
func (w *world) wholeAndAlone() {
	w.t.Helper()
	seen, err := witness.ReadFile(w.site.Trace("orders", "witness"))
	if err != nil {
		w.t.Fatal(err)
	}
	if !seen.OK() {
		w.t.Errorf("two nodes wrote: %v\n%+v", seen.Faults, seen.Holders)
	}
	rows, acks := w.rows()
	if rows < acks {
		w.t.Errorf("%d rows were acknowledged, %d are there", acks, rows)
	}
	w.asker.check(w.t)
}

// rows counts the client's rows up to the last acknowledged one, and those that
// were acknowledged before the count.
func (w *world) rows() (have, acked int) {
	w.t.Helper()
	acks := w.client.Acks()
	have, err := w.asker.count(w.t.Context(), "e2e", acks[len(acks)-1].Seq)
	if err != nil {
		w.t.Fatal(err)
	}
	return have, len(acks)
}

// idle waits until a node is free again.
func (w *world) idle(node string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	_, err := w.site.Until(ctx, node+" idle", func(s api.Snapshot) bool {
		for _, n := range s.Nodes {
			if n.Name == node {
				return n.Status.Phase == "idle"
			}
		}
		return false
	})
	if err != nil {
		w.stuck(err)
	}
}
