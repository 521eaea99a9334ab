package main_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// outage is how long the appliance is away.
const outage = 120 * time.Second

// get asks the writer.
func get(path string) (string, error) {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + serviceAddr + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return strings.TrimSpace(string(text)), err
}

// written asks how many records were acknowledged, and what the slowest took.
func written(t *testing.T) (records, worstMillis int64) {
	t.Helper()
	text, err := get("/")
	if err != nil {
		t.Fatalf("the writer does not answer: %v", err)
	}
	if _, err := fmt.Sscan(text, &records, &worstMillis); err != nil {
		t.Fatalf("the writer says %q: %v", text, err)
	}
	return records, worstMillis
}

// The appliance is killed under heavy writing to the root and to a volume, and
// away for two minutes; its lease is longer. The service lives on, no write that
// was acknowledged is lost, none fails, and nothing is restarted or fenced.
func TestARunningNodeOutlivesTheAppliance(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a, env, dir := newAppliance(t), buildEnvironment(t), t.TempDir()
	d, err := openDisks(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	root := makeServiceRoot(t)
	buildStatic(t, filepath.Join(root, "writer"), "./testdata/writer")
	image, data := filepath.Join(t.TempDir(), "root.ext4"), filepath.Join(t.TempDir(), "data.ext4")
	command(t, "", "mke2fs", "-q", "-t", "ext4", "-d", root, image, "64M")
	command(t, "", "mke2fs", "-q", "-t", "ext4", data, "64M")
	d.fill(t, "root", image)
	d.fill(t, "data", data)
	if err := d.store.Create(t.Context(), "witness", 1<<20); err != nil {
		t.Fatal(err)
	}
	claim := serviceClaim(t, d, 7, agentlink.Image{Kernel: env.version})
	a.lease = 4 * time.Minute
	claim.Claim.Lease.Lease = haengine.Duration(a.lease)
	claim.Claim.Application.Resources[2].Command = []string{"/writer", serviceAddr + ":80", "/etc", "/srv/data"}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	kill := startTarget(t, dir)

	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeStandby, 0xe1)))
	s := a.awaitJoin(t, m)
	a.must(t, s, claim)
	waitUntil(t, time.Minute, "the writer is at work", func() bool { text, err := get("/"); return err == nil && !strings.HasPrefix(text, "0 ") })
	time.Sleep(5 * time.Second) // of writing
	before, _ := written(t)
	a.note(func() { a.grant, a.reports = false, nil })
	kill()
	killed := time.Now()
	time.Sleep(3 * time.Second) // what was under way has come to rest
	stalled, _ := written(t)
	t.Logf("%d records before the kill, %d after it", before, stalled)
	for time.Since(killed) < outage {
		if n, _ := written(t); n != stalled {
			t.Fatalf("%d records were acknowledged by nobody", n-stalled)
		}
		time.Sleep(10 * time.Second)
	}
	a.note(func() {
		if a.last.Metrics.StorageLostMillis < (100*time.Second).Milliseconds() || a.last.Phase != agentlink.PhaseOnline {
			t.Errorf("during the outage: phase %s, storage lost for %d ms", a.last.Phase, a.last.Metrics.StorageLostMillis)
		}
	})
	startTarget(t, dir)
	a.note(func() { a.grant = true })
	back := time.Now()
	waitUntil(t, time.Minute, "writing goes on", func() bool { n, _ := written(t); return n > stalled+100 })
	after, worst := written(t)
	t.Logf("writing went on %.1f s after the target was back; %d records now, the slowest took %d ms", time.Since(back).Seconds(), after, worst)
	if worst < outage.Milliseconds() {
		t.Errorf("the slowest write took %d ms: the outage was not in the middle of the writing", worst)
	}
	if text, err := get("/check"); err != nil || text != "whole" {
		t.Errorf("what was acknowledged is not all there: %q, %v", text, err)
	}
	waitUntil(t, 20*time.Second, "a heartbeat of a healthy node", func() (ok bool) {
		a.note(func() { ok = a.last.Phase == agentlink.PhaseOnline && a.last.Metrics.StorageLostMillis == 0 })
		return ok
	})
	a.note(func() {
		for _, r := range a.reports {
			if r.State == agentlink.ResourceFailed || r.Dropped {
				t.Errorf("reported: %+v", r)
			}
		}
	})
	a.must(t, s, agentlink.Order{ID: "release", App: "web", Epoch: 7, Release: &agentlink.Release{Why: "the test is over"}})
	a.must(t, s, agentlink.Order{ID: "off", Power: &agentlink.Power{Action: agentlink.PowerOff, Why: "the test is over"}})
	m.awaitEnd(t, 30*time.Second)
}

// drain reads a volume into a file, for the tools of the host.
func (d *disks) drain(t *testing.T, name string) string {
	t.Helper()
	dev, err := d.store.OpenVolume(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	out := filepath.Join(t.TempDir(), name)
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, io.NewSectionReader(dev, 0, dev.Size())); err != nil {
		t.Fatal(err)
	}
	return out
}
