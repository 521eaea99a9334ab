package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// inside marks the process that runs the tests in a network of its own.
const inside = "HOTSPARE_TEST_INSIDE"

// TestMain runs the tests again in a fresh network namespace with one empty
// segment: the real ports are free there, and nothing is sent anywhere.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		for _, args := range [][]string{
			{"link", "set", "lo", "up"},
			{"link", "add", "seg0", "type", "veth", "peer", "name", "seg1"},
			{"addr", "add", "10.77.0.1/24", "dev", "seg0"},
			{"link", "set", "seg0", "up"},
			{"link", "set", "seg1", "up"},
		} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "ip %s: %v\n%s", strings.Join(args, " "), err, out)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "the tests need the right to make a network namespace:", err)
		os.Exit(1)
	}
}

func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	c := Config{
		State: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "api.sock"), API: "127.0.0.1:8080", Agent: "/bin/true", Modules: "lab",
		Network: NetworkConfig{LinkConfig: LinkConfig{
			Interface: "seg0", Address: netip.MustParsePrefix("10.77.0.1/24"),
			DHCP: DHCPConfig{Mode: "authoritative", From: netip.MustParseAddr("10.77.0.100"), To: netip.MustParseAddr("10.77.0.199")},
		}},
	}.WithDefaults()
	if err := c.Validate("test"); err != nil {
		t.Fatal(err)
	}
	return c
}

func start(t *testing.T, c Config) *Appliance {
	t.Helper()
	a, err := Start(t.Context(), Options{Config: c, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// serving gives an appliance and a client of it until the test ends.
func serving(t *testing.T) (*Appliance, *client.Client) {
	t.Helper()
	c := config(t)
	a := start(t, c)
	cl := client.New(client.Options{Socket: c.Socket})
	t.Cleanup(func() {
		cl.Close()
		stopAppliance(t, a)
	})
	return a, cl
}

func stopAppliance(t *testing.T, a *Appliance) {
	t.Helper()
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
}

const rack = `
kind: pool
name: rack1
---
kind: node
name: n1
uuid: 00000000-0000-4000-8000-525400770001
macs: ["52:54:00:77:00:01"]
pool: rack1
cpus: 1
memoryMiB: 512
approved: true
bmc: {address: 127.0.0.1, port: 9, user: admin, password: c4nary-bmc}
`

func TestWhatWasAppliedIsThereAfterARestart(t *testing.T) {
	c := config(t)
	a := start(t, c)
	cl := client.New(client.Options{Socket: c.Socket})
	defer cl.Close()
	if _, err := cl.Apply(t.Context(), "rack.yaml", []byte(rack), true); err != nil {
		t.Fatal(err)
	}
	if n := len(a.engine.Snapshot().Durable.Nodes); n != 0 {
		t.Fatalf("a dry run declared %d nodes", n)
	}
	if _, err := cl.Apply(t.Context(), "rack.yaml", []byte(rack), false); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ doc, want string }{{rack, "unchanged"}, {strings.Replace(rack, "memoryMiB: 512", "memoryMiB: 1024", 1), "configured"}, {rack, "configured"}} {
		out, err := cl.Apply(t.Context(), "rack.yaml", []byte(c.doc), false)
		if err != nil || len(out) != 2 || out[0].Result != "unchanged" || out[1].Result != c.want {
			t.Fatalf("applied again: %+v, %v; want %s", out, err, c.want)
		}
	}
	stopAppliance(t, a)
	for path, mode := range map[string]os.FileMode{"api.token": 0o600, "engine/engine.key": 0o600, "exports.db": 0o600} {
		i, err := os.Stat(filepath.Join(c.State, path))
		if err != nil || i.Mode().Perm() != mode {
			t.Errorf("%s: %v, mode %v", path, err, i.Mode())
		}
	}
	a = start(t, c)
	defer stopAppliance(t, a)
	var nodes []api.Node
	if err := cl.Get(t.Context(), "/api/v1/nodes", &nodes); err != nil || len(nodes) != 1 || nodes[0].Status.Phase != "idle" {
		t.Fatalf("%+v, %v", nodes, err)
	}
	if p, err := a.state.Secret(t.Context(), secretOf("n1")); err != nil || p.Reveal() != "c4nary-bmc" {
		t.Fatalf("the password of the BMC is lost: %v", err)
	}
}

// TestNoSecretLeavesByTheAPI reads every listing and explanation (SAFETY S17).
func TestNoSecretLeavesByTheAPI(t *testing.T) {
	a, cl := serving(t)
	if _, err := cl.Apply(t.Context(), "rack.yaml", []byte(rack), false); err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(a.cfg.State, "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	sawNode := false
	for _, path := range []string{"snapshot", "nodes", "nodes/n1", "pools", "volumes", "images", "applications", "failovers", "events", "explain/node/n1", "openapi.json", "storage", "tasks"} {
		resp, err := http.Get("http://127.0.0.1:8080/api/v1/" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %d, %v", path, resp.StatusCode, err)
		}
		for _, secret := range []string{"c4nary-bmc", strings.TrimSpace(string(token))} {
			if strings.Contains(string(b), secret) {
				t.Errorf("%s shows a secret", path)
			}
		}
		sawNode = sawNode || strings.Contains(string(b), "52:54:00:77:00:01")
	}
	http.DefaultClient.CloseIdleConnections()
	if !sawNode {
		t.Fatal("no listing shows the node: nothing was proven")
	}
}

func TestATakenPortNamesItsHolder(t *testing.T) {
	for _, c := range []struct {
		network string
		port    uint16
	}{{"udp", 67}, {"udp", 69}, {"tcp", 80}, {"tcp", 3260}, {"tcp", 7443}} {
		t.Run(fmt.Sprintf("%s %d", c.network, c.port), func(t *testing.T) {
			at := netip.AddrPortFrom(netip.MustParseAddr("0.0.0.0"), c.port)
			var closer io.Closer
			var err error
			if c.network == "udp" {
				closer, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
			} else {
				closer, err = net.Listen("tcp4", at.String())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer closer.Close()
			a, err := Start(t.Context(), Options{Config: config(t)})
			if err == nil {
				stopAppliance(t, a)
				t.Fatal("it started")
			}
			if hotspare.CodeOf(err) != hotspare.CodePortTaken || !strings.Contains(err.Error(), fmt.Sprint(c.port)) || !strings.Contains(err.Error(), "appliance.test") {
				t.Fatalf("got %v", err)
			}
		})
	}
	a := start(t, config(t)) // a failed start left nothing behind
	stopAppliance(t, a)
}

func TestAWrongNetworkIsSaid(t *testing.T) {
	c := config(t)
	c.Network.Interface = "eth99"
	if _, err := Start(t.Context(), Options{Config: c}); hotspare.CodeOf(err) != hotspare.CodeNoInterface || !strings.Contains(err.Error(), "eth99") {
		t.Fatalf("no such interface: %v", err)
	}
	c = config(t)
	c.Network.Address = netip.MustParsePrefix("10.99.0.1/24")
	c.Network.DHCP.Mode = "off"
	if _, err := Start(t.Context(), Options{Config: c}); hotspare.CodeOf(err) != hotspare.CodeNoInterface {
		t.Fatalf("an address that is not ours: %v", err)
	}
}

func TestASecondApplianceIsRefused(t *testing.T) {
	c := config(t)
	a := start(t, c)
	defer stopAppliance(t, a)
	_, err := Start(t.Context(), Options{Config: c})
	if hotspare.CodeOf(err) != hotspare.CodeStoreLocked {
		t.Fatalf("got %v", err)
	}
}

func TestAnApplicationMustFitTheSite(t *testing.T) {
	a, cl := serving(t)
	app := `
kind: application
name: web
image: %s
pools: [%s]
address: %s
resources: [{name: address, kind: address}]
monitors: [{name: up, kind: tcp, port: 80}]
`
	for _, c := range []struct {
		name, image, pool, addr string
		code                    hotspare.Code
		says                    string
	}{
		{"unknown pool", "web", "rack9", "10.77.0.51/24", hotspare.CodeUnknownRef, `pool "rack9"`},
		{"unknown image", "web", "rack1", "10.77.0.51/24", hotspare.CodeUnknownRef, "hotspare image import web"},
		{"no prefix", "web", "rack1", "10.77.0.51", hotspare.CodeInvalid, "10.77.0.51"},
	} {
		t.Run(c.name, func(t *testing.T) {
			docs := rack + "---" + fmt.Sprintf(app, c.image, c.pool, c.addr)
			_, err := cl.Apply(t.Context(), "app.yaml", []byte(docs), false)
			var p *api.Problem
			if !errors.As(err, &p) || p.Code != c.code || !strings.Contains(p.Error(), c.says) || !strings.Contains(p.Where, "app.yaml:") {
				t.Fatalf("got %v", err)
			}
			if len(a.engine.Snapshot().Durable.Nodes) != 0 {
				t.Fatal("a refused file was taken in part")
			}
		})
	}
}

func TestOrdersThatMakeNoSenseAreRefused(t *testing.T) {
	c := config(t)
	a := start(t, c)
	defer stopAppliance(t, a)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, x := range []api.Command{
		{Verb: "failover", Kind: "application", Name: "nothing", By: "t"},
		{Verb: "failover", Kind: "node", Name: "n1", By: "t"},
		{Verb: "confirm-off", Kind: "node", Name: "n9", By: "t"},
		{Verb: "freeze", Kind: "site", By: "t", Until: "soon"},
	} {
		if _, err := a.Command(ctx, x); hotspare.CodeOf(err) == "" {
			t.Errorf("%+v: %v", x, err)
		}
	}
	if _, err := a.Command(ctx, api.Command{Verb: "freeze", Kind: "site", By: "ann", Reason: "upgrade", Until: "2h"}); err != nil {
		t.Fatal(err)
	}
	s, err := a.Snapshot(ctx)
	if err != nil || len(s.Site.Holds) != 1 || !strings.Contains(s.Site.Holds[0], "ann") || !strings.Contains(s.Site.Holds[0], "upgrade") {
		t.Fatalf("holds: %v, %v", s.Site.Holds, err)
	}
}

func TestTheExampleConfigurationIsRead(t *testing.T) {
	c, err := LoadConfig("../../../examples/hotspare.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Network.Address.String() != "10.77.0.1/24" || c.BMC.Settle != haengine.Duration(2*time.Second) || c.Network.ISCSIPort != 3260 {
		t.Fatalf("%+v", c)
	}
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("network:\n  interfce: eth0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(bad); hotspare.CodeOf(err) != hotspare.CodeYAML || !strings.Contains(err.Error(), `"interface"`) || !strings.Contains(err.Error(), "bad.yaml:2") {
		t.Fatalf("got %v", err)
	}
}

func TestTwoNodesNeverShareAnIdentityOrABMC(t *testing.T) {
	_, cl := serving(t)
	if _, err := cl.Apply(t.Context(), "rack.yaml", []byte(rack), false); err != nil {
		t.Fatal(err)
	}
	second := `
kind: node
name: n2
uuid: 00000000-0000-4000-8000-525400770002
macs: ["52:54:00:77:00:02"]
pool: rack1
cpus: 1
memoryMiB: 512
bmc: {address: 127.0.0.2, user: admin, password: x}
`
	for _, x := range []struct{ name, from, to, says string }{
		{"uuid", "525400770002", "525400770001", "same uuid"},
		{"no uuid", "uuid: 00000000-0000-4000-8000-525400770002\n", "", "no uuid"},
		{"MAC", "52:54:00:77:00:02", "52:54:00:77:00:01", "same MAC"},
		{"BMC", "address: 127.0.0.2", "address: 127.0.0.1, port: 9", "same BMC"},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, err := cl.Apply(t.Context(), "n2.yaml", []byte(strings.Replace(second, x.from, x.to, 1)), false)
			var p *api.Problem
			if !errors.As(err, &p) || p.Code != hotspare.CodeInvalid || !strings.Contains(p.Title, x.says) {
				t.Fatalf("got %v", err)
			}
		})
	}
	if _, err := cl.Apply(t.Context(), "n2.yaml", []byte(second), false); err != nil {
		t.Fatal(err)
	}
}

// TestAReleaseUnderWayKeepsItsDisk: after a restart the grant that is released in
// order may still flush and unmount (SAFETY S8).
func TestAReleaseUnderWayKeepsItsDisk(t *testing.T) {
	old := haengine.Grant{Epoch: 4, Exclusion: &haengine.Exclusion{Orderly: true}}
	for _, c := range []struct {
		name string
		app  haengine.AppState
		want haengine.Epoch
	}{
		{"running", haengine.AppState{Epoch: 4, Grant: &haengine.Grant{Epoch: 4}}, 4},
		{"releasing", haengine.AppState{Epoch: 5, Grant: &haengine.Grant{Epoch: 5}, Old: []haengine.Grant{old}}, 4},
		{"deleting", haengine.AppState{Epoch: 5, Old: []haengine.Grant{old}}, 4},
		{"released", haengine.AppState{Epoch: 5, Grant: &haengine.Grant{Epoch: 5}, Old: []haengine.Grant{{Epoch: 4, Exclusion: &haengine.Exclusion{Orderly: true, Released: true}}}}, 5},
		{"fencing", haengine.AppState{Epoch: 5, Grant: &haengine.Grant{Epoch: 5}, Old: []haengine.Grant{{Epoch: 4, Exclusion: &haengine.Exclusion{}}}}, 5},
	} {
		if got := lowestLive(&c.app); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

// TestANodeWhoseSecretLeakedIsPutAside: trust level L1.
func TestANodeWhoseSecretLeakedIsPutAside(t *testing.T) {
	a, cl := serving(t)
	if _, err := cl.Apply(t.Context(), "rack.yaml", []byte(rack), false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	changes := a.engine.Subscribe(ctx)
	a.compromised(ctx, "n1", "its join token was presented twice")
	for {
		n, ok := a.node("n1")
		if ok && n.Phase == haengine.NodeQuarantined {
			if !strings.Contains(n.Reason, "presented twice") {
				t.Fatalf("reason: %q", n.Reason)
			}
			return
		}
		select {
		case <-changes:
		case <-ctx.Done():
			t.Fatalf("n1 is %s", n.Phase)
		}
	}
}
