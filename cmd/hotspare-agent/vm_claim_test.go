package main_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
	"hotspare/testenv/images"
)

const serviceAddr = "10.77.0.50"

// ordersClaim is examples/orders.yaml as the appliance would send it.
func ordersClaim(t *testing.T, d *disks, epoch uint64) agentlink.Order {
	t.Helper()
	app := haengine.Application{
		Name: "orders", Address: netip.MustParsePrefix(serviceAddr + "/24"),
		Volumes: []haengine.Volume{{Name: "data", SizeMiB: 256, Format: "ext4"}, {Name: "witness", SizeMiB: 1}},
		Resources: []haengine.Resource{
			{Name: "data", Kind: haengine.ResourceMount, Volume: "data", Target: "/srv/orders", Owner: "postgres:postgres"},
			{Name: "address", Kind: haengine.ResourceAddress, After: []string{"data"}},
			{Name: "database", Kind: haengine.ResourceSystemd, After: []string{"address"}, Unit: "postgresql@15-main.service",
				Masks: []string{"postgresql.service"}, Prepare: []string{"/usr/local/sbin/orders-prepare"}},
			{Name: "witness", Kind: haengine.ResourceWitness, Volume: "witness"},
		},
		Monitors: []haengine.Monitor{{Name: "sql", Kind: haengine.MonitorPostgres, From: []haengine.Vantage{haengine.FromNode}, Port: 5432,
			Database: "orders", User: "monitor", Query: "select 1", Expect: "1"}},
	}
	return agentlink.Order{ID: "claim-7", App: "orders", Epoch: epoch, Claim: &agentlink.Claim{
		Application: app, Image: agentlink.Image{RootFS: "ext4"},
		Volumes: []agentlink.Volume{
			d.grant(t, "root", agentlink.RootVolume, "", epoch), d.grant(t, "data", "data", "ext4", epoch), d.grant(t, "witness", "witness", "", epoch),
		},
		Lease: agentlink.LeasePolicy{Lease: haengine.Duration(15 * time.Second), DropBound: haengine.Duration(3 * time.Second)},
	}}
}

// full says whether the tests that carry a whole database are wanted: they take
// minutes, and testenv/e2e runs the same paths in the lab.
func full(t *testing.T) {
	t.Helper()
	if os.Getenv("HOTSPARE_TEST_FULL") == "" {
		t.Skip("HOTSPARE_TEST_FULL is not set: `make test-full` runs this")
	}
}

// startOrders boots a node, lets it join and become the database.
func startOrders(t *testing.T, change func(*agentlink.Claim)) (*appliance, *disks, *machine, server.Session) {
	t.Helper()
	cache, err := filepath.Abs("../../out/cache/images")
	if err != nil {
		t.Fatal(err)
	}
	builder, err := images.New(images.Options{CacheDir: cache})
	if err != nil {
		t.Fatal(err)
	}
	image, err := builder.Build(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	serveDHCP(t)
	a, d := newAppliance(t), serveDisks(t)
	d.fill(t, "root", image.Disk)
	for name, size := range map[string]int64{"data": 256 << 20, "witness": 1 << 20} {
		if err := d.store.Create(t.Context(), name, size); err != nil {
			t.Fatal(err)
		}
	}
	order := ordersClaim(t, d, 7)
	if change != nil {
		change(order.Claim)
	}
	env := buildEnvironment(t)
	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeStart, 0xab)))
	s := a.awaitJoin(t, m)
	claimed := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	r, err := a.link.Send(ctx, "n1", s.BootID, order)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("claim to online: %.1f s", time.Since(claimed).Seconds())
	for _, step := range r.Steps {
		t.Logf("  %6d ms  %s %s", step.Millis, step.Name, step.Why)
	}
	if !r.OK {
		t.Fatalf("the claim failed: %s %s", r.Code, r.Why)
	}
	return a, d, m, s
}

func answers(port string) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(serviceAddr, port), 2*time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// A stock Debian with an enabled PostgreSQL becomes the database and gives it
// back in good order: the unit waits for the grant (SAFETY S2a), the agent lives
// on beside systemd (S2b), every step of the release is attested (S2.6).
func TestAgentCarriesAndReleasesADatabase(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	a, _, m, s := startOrders(t, nil)
	if err := answers("5432"); err != nil {
		t.Errorf("the database does not answer at the service address: %v", err)
	}
	waitUntil(t, 20*time.Second, "three good samples from the node and a written witness", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.samples["sql"] >= 3 && a.last.Metrics.WitnessCounter > 10
	})
	a.mu.Lock()
	t.Logf("last heartbeat: %+v", a.last)
	if a.last.Phase != agentlink.PhaseOnline || len(a.last.Resources) != 4 {
		t.Errorf("phase %s with %d resources, want online with 4", a.last.Phase, len(a.last.Resources))
	}
	a.mu.Unlock()

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := a.link.Send(ctx, "n1", s.BootID, agentlink.Order{ID: "release-7", App: "orders", Epoch: 7, Release: &agentlink.Release{Why: "the test is over"}})
	if err != nil || !r.OK {
		t.Fatalf("release: %+v, %v", r, err)
	}
	attested := ""
	for _, step := range r.Steps {
		attested += step.Name + "; "
	}
	for _, want := range []string{"offline witness", "offline database", "offline address", "offline data", "logout data", "logout witness"} {
		if !strings.Contains(attested, want) {
			t.Errorf("the release does not attest %q: %s", want, attested)
		}
	}
	if err := answers("5432"); err == nil {
		t.Error("the service address answers after the release")
	}
	if _, err := a.link.Send(ctx, "n1", s.BootID, agentlink.Order{ID: "off", Power: &agentlink.Power{Action: agentlink.PowerOff, Why: "the test is over"}}); err != nil {
		t.Error(err)
	}
	m.awaitEnd(t, 30*time.Second)
}

// A node that loses its lease drops the service within the drop bound and
// resets itself (SAFETY S2, self-fencing).
func TestAgentDropsWhenTheLeaseEnds(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	a, _, m, _ := startOrders(t, nil)
	a.mu.Lock()
	a.grant = false
	a.mu.Unlock()
	refused := time.Now()
	r := a.awaitReport(t, 30*time.Second, "the drop", func(r agentlink.Report) bool { return r.Dropped })
	told := time.Since(refused)
	m.awaitEnd(t, 20*time.Second) // -no-reboot: the reset ends QEMU
	ended := time.Since(refused)
	t.Logf("drop told %.2f s after the last grant, machine reset after %.2f s: %s", told.Seconds(), ended.Seconds(), r.Why)
	if limit := 15*time.Second + 3*time.Second; ended > limit+time.Second {
		t.Errorf("the machine was reset %s after the last grant, lease and drop bound are %s", ended, limit)
	}
	if told < 12*time.Second {
		t.Errorf("the service was dropped %s after the last grant, the lease is 15 s", told)
	}
}

// A revoked volume and an appliance that is silent end the service as well.
func TestAgentDropsWhenItsStorageIsRevoked(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	a, d, m, _ := startOrders(t, nil)
	start := time.Now()
	a.mu.Lock()
	a.grant = false
	a.mu.Unlock()
	for _, volume := range []string{"data", "witness", "root"} {
		if _, err := d.exports.Revoke(t.Context(), volume, 8); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	var gone time.Duration
	for time.Now().Before(deadline) {
		if err := answers("5432"); err != nil && gone == 0 && !errors.Is(err, os.ErrDeadlineExceeded) || err != nil {
			gone = time.Since(start)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	m.awaitEnd(t, 25*time.Second)
	t.Logf("the address was silent %.2f s after the revocation, the machine reset after %.2f s", gone.Seconds(), time.Since(start).Seconds())
	if gone == 0 || time.Since(start) > 18*time.Second {
		t.Error("the service was not dropped within lease and drop bound")
	}
}

func waitUntil(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
