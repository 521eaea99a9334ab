package main_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
)

// files serves named files by HTTP inside the test's network, and gives them as
// artefacts.
type files struct {
	base string
	dir  string
}

func serveFiles(t *testing.T) files {
	t.Helper()
	dir := t.TempDir()
	ln, err := net.Listen("tcp", netip.AddrPortFrom(hostAddr.Addr(), 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return files{base: "http://" + ln.Addr().String() + "/", dir: dir}
}

func (f files) artefact(t *testing.T, name, path string) agentlink.Artefact {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	return agentlink.Artefact{URL: f.base + name, SHA256: hex.EncodeToString(sum[:]), Bytes: int64(len(text))}
}

// makeServiceRoot makes the files of an image that is one process.
func makeServiceRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	buildStatic(t, filepath.Join(root, "service"), "./testdata/service")
	for _, dir := range []string{"dev", "proc", "sys", "run", "srv/data", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// makeServiceImage makes the image as an ext4 file system.
func makeServiceImage(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "service.ext4")
	command(t, "", "mke2fs", "-q", "-t", "ext4", "-d", makeServiceRoot(t), out, "48M")
	return out
}

// serviceClaim is the claim of an application that is one process.
func serviceClaim(t *testing.T, d *disks, epoch uint64, image agentlink.Image) agentlink.Order {
	t.Helper()
	volumes := []agentlink.Volume{d.grant(t, "data", "data", "", epoch), d.grant(t, "witness", "witness", "", epoch)}
	if image.Root == agentlink.RootOnVolume {
		volumes = append(volumes, d.grant(t, "root", agentlink.RootVolume, "", epoch))
	}
	image.Process, image.RootFS = true, "ext4"
	app := haengine.Application{
		Name: "web", Address: netip.MustParsePrefix(serviceAddr + "/24"),
		Volumes: []haengine.Volume{{Name: "data", SizeMiB: 32}, {Name: "witness", SizeMiB: 1}},
		Resources: []haengine.Resource{
			{Name: "data", Kind: haengine.ResourceMount, Volume: "data", Target: "/srv/data"},
			{Name: "address", Kind: haengine.ResourceAddress},
			{Name: "service", Kind: haengine.ResourceProcess, Command: []string{"/service", serviceAddr + ":80", "/srv/data/starts"}},
			{Name: "witness", Kind: haengine.ResourceWitness, Volume: "witness"},
		},
	}
	return agentlink.Order{ID: fmt.Sprintf("claim-%d", epoch), App: "web", Epoch: epoch, Claim: &agentlink.Claim{
		Application: app, Image: image, Volumes: volumes,
		Lease: agentlink.LeasePolicy{Lease: haengine.Duration(30 * time.Second), DropBound: haengine.Duration(5 * time.Second)},
	}}
}

// serviceDisks makes the volumes of the service.
func serviceDisks(t *testing.T) *disks {
	t.Helper()
	d := serveDisks(t)
	d.fill(t, "root", makeServiceImage(t))
	data := filepath.Join(t.TempDir(), "data.ext4")
	command(t, "", "mke2fs", "-q", "-t", "ext4", data, "32M")
	d.fill(t, "data", data)
	if err := d.store.Create(t.Context(), "witness", 1<<20); err != nil {
		t.Fatal(err)
	}
	return d
}

// awaitService asks the service until it answers.
func awaitService(t *testing.T, limit time.Duration) string {
	t.Helper()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var text string
	waitUntil(t, limit, "an answer of the service", func() bool {
		res, err := client.Get("http://" + serviceAddr + "/")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		text = string(b)
		return err == nil && res.StatusCode == http.StatusOK
	})
	return text
}

// A node stands by, executes another kernel without its firmware, stands by
// again, and becomes an application whose image is one process: the two standby
// ways, with everything that an order may be refused for on the way.
func TestParkedNodeLeavesForAKernelAndBecomesAService(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a, d, f, env := newAppliance(t), serviceDisks(t), serveFiles(t), buildEnvironment(t)
	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeStandby, 0xa1)))
	first := a.awaitJoin(t, m)
	t.Logf("parked %.1f s after the machine was started: %+v", time.Since(m.start).Seconds(), first.Facts)
	if k := first.Facts.Kexec; !k.Possible || k.SignedOnly {
		t.Fatalf("the kernel does not execute another one: %+v", k)
	}
	if first.Facts.Mode != agentlink.ModeStandby || first.Facts.Firmware != agentlink.FirmwareBIOS || first.Facts.Kernel != env.version || len(first.Facts.NICs) != 1 || !first.Facts.NICs[0].Link {
		t.Errorf("facts: %+v", first.Facts)
	}

	kernel, initrd := f.artefact(t, "kernel", env.kernel), f.artefact(t, "initrd", env.archive)
	torn := kernel
	torn.SHA256 = strings.Repeat("00", 32)
	a.refused(t, first, agentlink.Order{ID: "preload-torn", Preload: &agentlink.Preload{Artefacts: []agentlink.Artefact{torn}}}, hotspare.CodeContents)
	a.must(t, first, agentlink.Order{ID: "preload", Preload: &agentlink.Preload{Artefacts: []agentlink.Artefact{kernel, initrd}}})
	waitUntil(t, 20*time.Second, "the heartbeat names what is preloaded", func() (ok bool) {
		a.note(func() { ok = len(a.last.Preloaded) == 2 })
		return ok
	})
	// What is in memory is not fetched again.
	for _, name := range []string{"kernel", "initrd"} {
		if err := os.Remove(filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	leave := &agentlink.Kexec{Kernel: kernel, Initrd: initrd, Cmdline: "console=ttyS0 panic=-1 quiet",
		Join: hotspare.NewSecret(string(joinArchive(t, a.ca.PEM(), agentlink.ModeStandby, 0xa2)))}

	// A grant that is over starts nothing, whichever way the node learns of it.
	a.note(func() { a.over = map[string]uint64{"web": 5} })
	waitUntil(t, 20*time.Second, "the node knows that epoch 4 is over", func() bool {
		return a.order(t, first, agentlink.Order{ID: fmt.Sprintf("late-%d", time.Now().UnixNano()), App: "web", Epoch: 4,
			Drop: &agentlink.Drop{Below: 4}}).Code == hotspare.CodeStaleEpoch
	})
	a.refused(t, first, agentlink.Order{ID: "kexec-late", App: "web", Epoch: 4, Kexec: leave}, hotspare.CodeStaleEpoch)
	claim := serviceClaim(t, d, 7, agentlink.Image{Kernel: env.version})
	wrong, elsewhere := claim, *claim.Claim
	elsewhere.Image.Kernel = "6.1.0-0-elsewhere"
	wrong.ID, wrong.Epoch, wrong.Claim = "claim-wrong", 5, &elsewhere
	a.refused(t, first, wrong, hotspare.CodeWrongKernel)

	asked := time.Now()
	a.must(t, first, agentlink.Order{ID: "kexec", App: "web", Epoch: 6, Kexec: leave})
	second := a.awaitJoin(t, m)
	t.Logf("kexec to the next join: %.1f s", time.Since(asked).Seconds())
	if second.BootID == first.BootID || second.Facts.Mode != agentlink.ModeStandby {
		t.Errorf("the next boot: %+v", second)
	}
	a.note(func() {
		if len(a.gone) != 1 || !strings.Contains(a.gone[0], first.BootID+": the node closed the link") {
			t.Errorf("gone: %v", a.gone)
		}
	})
	becomeService(t, a, m, second, claim)
}

// becomeService lets a parked node become the service, and gives it back.
func becomeService(t *testing.T, a *appliance, m *machine, s server.Session, claim agentlink.Order) {
	t.Helper()
	asked := time.Now()
	answered := make(chan agentlink.Result, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	go func() {
		r, err := a.link.Send(ctx, "n1", s.BootID, claim)
		if err != nil {
			r.Why += err.Error()
		}
		answered <- r
	}()
	text := awaitService(t, 5*time.Minute)
	t.Logf("claim to the first answer: %.2f s", time.Since(asked).Seconds())
	r := <-answered
	for _, step := range r.Steps {
		t.Logf("  %6d ms  %s %s", step.Millis, step.Name, step.Why)
	}
	if !r.OK || !strings.HasPrefix(text, "started\n") {
		t.Fatalf("claim: %+v; the service says %q", r, text)
	}
	again := claim
	again.ID = "claim-again"
	a.refused(t, s, again, hotspare.CodeConflict)
	a.refused(t, s, agentlink.Order{ID: "wipe-carried", Wipe: &agentlink.Wipe{}}, hotspare.CodeConflict)
	waitUntil(t, 20*time.Second, "a written witness", func() (ok bool) {
		a.note(func() { ok = a.last.Metrics.WitnessCounter > 3 && a.last.Phase == agentlink.PhaseOnline })
		return ok
	})
	released := a.must(t, s, agentlink.Order{ID: "release", App: "web", Epoch: claim.Epoch, Release: &agentlink.Release{Why: "the test is over"}})
	attested := ""
	for _, step := range released.Steps {
		attested += step.Name + "; "
	}
	for _, want := range []string{"offline service", "offline address", "offline data", "logout data", "logout witness"} {
		if !strings.Contains(attested, want) {
			t.Errorf("the release does not attest %q: %s", want, attested)
		}
	}
	if err := answers("80"); err == nil {
		t.Error("the service address answers after the release")
	}
	a.must(t, s, agentlink.Order{ID: "off", Power: &agentlink.Power{Action: agentlink.PowerOff, Why: "the test is over"}})
	m.awaitEnd(t, 30*time.Second)
}
