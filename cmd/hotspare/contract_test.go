package main

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/ui/api"
)

// everything takes everything that the real interface lets through.
type everything struct {
	api.Viewer
	asked  []string
	upload api.ImageUpload
}

func (a *everything) note(s ...string) { a.asked = append(a.asked, strings.Join(s, " ")) }

func (a *everything) Snapshot(context.Context) (api.Snapshot, error) {
	a.note("snapshot")
	return api.Snapshot{
		Nodes: []api.Node{nodes[0]}, Images: []api.Image{{Name: "orders", Version: "1"}}, Applications: []api.Application{{}}, Failovers: []api.Failover{{ID: "1"}},
	}, nil
}

func (a *everything) Apply(_ context.Context, file string, _ []byte, _ string, _ bool) ([]api.Applied, error) {
	a.note("apply")
	return nil, nil
}

func (a *everything) Delete(_ context.Context, kind, name, _ string) error {
	a.note("delete", kind, name)
	return nil
}

func (a *everything) ImportImage(_ context.Context, in api.ImageImport, _ string) (api.Image, error) {
	a.note("import", in.Name)
	return api.Image{Name: in.Name}, nil
}

func (a *everything) DeleteImage(_ context.Context, name, version, _ string) error {
	a.note("delete image", name, version)
	return nil
}

func (a *everything) Command(_ context.Context, c api.Command) (string, error) {
	a.note(c.Verb, c.Kind, c.Name, c.To, c.Reason, c.Until)
	return "done", nil
}

func (a *everything) Explain(_ context.Context, kind, name string) (api.Explanation, error) {
	a.note("explain", kind, name)
	return api.Explanation{Subject: name}, nil
}

func (a *everything) Events(context.Context, uint64, int) ([]api.Event, error) {
	a.note("events")
	return nil, nil
}

func (a *everything) Follow(context.Context, uint64) (<-chan api.Event, error) {
	a.note("follow")
	c := make(chan api.Event)
	close(c)
	return c, nil
}

// TestTheCommandLineSpeaksTheDocumentedInterface calls every command against the
// real routes, which refuse what is not in the OpenAPI document: paths, fields of
// bodies, parameters. The command line shares the document's Go types with the
// server, so nothing needs to be generated; this is what keeps the two together.
func TestTheCommandLineSpeaksTheDocumentedInterface(t *testing.T) {
	a := &everything{}
	srv, err := api.New(api.Options{
		Verbs: api.Verbs{Viewer: a, Resources: a, Images: a, Engine: a, Explainer: a, History: a, Keeper: a, ImageKeeper: a, Tasks: a, Booting: a, Discoverer: a, Networking: a},
		Token: hotspare.NewSecret("unused over the socket"),
	})
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(t.TempDir(), "api.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx)
		<-served
	})
	calls := map[string]struct{ args, asks string }{
		"apply":             {"-f ../../examples/nodes.yaml", "apply"},
		"get":               {"nodes", "snapshot"},
		"describe":          {"node n1", "snapshot"},
		"boot ca":           {"", "boot-ca"},
		"delete":            {"node n1", "delete node n1"},
		"image import":      {"orders --file /images/orders.img", "image import orders /images/orders.img   true"},
		"image upload":      {"orders " + largeFile(t), "image import orders  u123456789  true"},
		"image build":       {"../../examples/image.yaml", "image build     true"},
		"image list":        {"", "snapshot"},
		"image show":        {"orders:1", "snapshot"},
		"image verify":      {"orders:stable", "image verify    orders:stable true"},
		"image test":        {"orders:1 --lab /bin/true", "snapshot"},
		"image promote":     {"orders:1 stable --reason test", "promote orders stable 1 test"},
		"image rollback":    {"orders:stable --reason test", "rollback orders stable  test"},
		"image channels":    {"orders", "channels orders"},
		"image delete":      {"orders:1", "delete image orders 1"},
		"image gc":          {"orders web --newest 3 --dry-run", "garbage [orders web] 3 0"},
		"app failover":      {"orders --to n2 --reason test", "failover application orders n2 test "},
		"app freeze":        {"orders --for 2h --reason test", "freeze application orders  test 2h"},
		"app unfreeze":      {"orders", "unfreeze application orders   "},
		"node confirm-off":  {"n1 --reason seen", "confirm-off node n1  seen "},
		"node unquarantine": {"n1", "unquarantine node n1   "},
		"node approve":      {"52:54:00:77:00:05 --name n5 --pool rack1 --bmc 10.78.0.15 --bmc-user admin --memory 4096 --label rack=7", "approve 52:54:00:77:00:05 n5 rack1 10.78.0.15 admin  4096 7"},
		"machine ignore":    {"52:54:00:77:00:05", "ignore 52:54:00:77:00:05 false"},
		"machine unignore":  {"52:54:00:77:00:05", "ignore 52:54:00:77:00:05 true"},
		"machine forget":    {"52:54:00:77:00:05", "forget 52:54:00:77:00:05"},
		"site freeze":       {"--for 2h", "freeze site    2h"},
		"site unfreeze":     {"", "unfreeze site    "},
		"explain":           {"app orders", "explain app orders"},
		"events":            {"--limit 5", "events"},
		"volume snapshot":   {"orders.data monday", "snapshot orders.data monday 0"},
		"volume clone":      {"orders.data@monday copy", "clone orders.data@monday copy 0"},
		"volume resize":     {"orders.data 20Gi", "resize orders.data  21474836480"},
		"volume delete":     {"orders.data@monday", "delete orders.data@monday  0"},
		"volume export":     {"orders.data --format qcow2 -f /srv/x.qcow2 --rate 1Mi", "export orders.data /srv/x.qcow2 qcow2   1048576 true"},
		"volume copy":       {"orders.data --from /srv/backup --as new", "copy orders.data   /srv/backup new 0 true"},
		"storage check":     {"", "storage"},
		"storage scrub":     {"", "scrub      0 true"},
		"tasks abort":       {"t7", "abort t7"},
	}
	alone := map[string]bool{"serve": true, "version": true, "dhcp snippet": true} // these speak to nobody
	for _, path := range leaves() {
		c, ok := calls[path]
		if !ok {
			if !alone[path] {
				t.Errorf("hotspare %s is not called by this test", path)
			}
			continue
		}
		t.Run(path, func(t *testing.T) {
			a.asked = nil
			args := append(strings.Fields(path), strings.Fields(c.args)...)
			if code, _, errs := call(t, append(args, "--socket", sock)...); code != 0 {
				t.Fatalf("exit %d: %s", code, errs)
			}
			if len(a.asked) == 0 || a.asked[len(a.asked)-1] != c.asks {
				t.Errorf("the appliance was asked for %q, want %q", a.asked, c.asks)
			}
		})
	}
}

// leaves gives the commands that do something, each by its words.
func leaves() []string {
	var out []string
	var walk func(prefix []string)
	walk = func(prefix []string) {
		found, _, err := command().Find(prefix)
		if err != nil {
			return
		}
		if !found.HasSubCommands() {
			out = append(out, strings.Join(prefix, " "))
		}
		for _, c := range found.Commands() {
			if c.Name() != "completion" && c.Name() != "help" {
				walk(append(append([]string{}, prefix...), c.Name()))
			}
		}
	}
	walk(nil)
	return out
}
