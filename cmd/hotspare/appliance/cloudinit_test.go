package appliance

import (
	"bytes"
	"context"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotspare"
	"hotspare/cmd/hotspare/appliance/manifest"
	"hotspare/haengine"
	"hotspare/images"
)

const told = `
cloudInit:
  sshKeys: [ssh-ed25519 AAAA ops]
  vendorData: |
    #cloud-config
    password: c4nary-seed
  networkConfig: |
    version: 2
    ethernets: {back: {match: {macaddress: "52:54:00:77:01:01"}, dhcp4: true}}
`

// What cloud-init is told is sealed: it is neither in what is shown nor, in clear,
// in what is stored; a document as it is shown can be applied again; what no
// resource refers to any more is gone.
func TestCloudInitTextsAreSealed(t *testing.T) {
	c := config(t)
	a := start(t, c)
	apply := func(doc, want string) *haengine.CloudInit {
		t.Helper()
		out, err := a.Apply(t.Context(), "rack.yaml", []byte(doc), "test", false)
		if err != nil || len(out) != 2 || out[1].Result != want {
			t.Fatalf("applied %+v, %v; want %s", out, err, want)
		}
		return a.engine.Snapshot().Durable.Nodes["n1"].Spec.CloudInit
	}
	if _, err := a.Apply(t.Context(), "rack.yaml", []byte(rack+told), "test", true); err != nil || len(a.state.SecretNames(textsFolder)) > 0 {
		t.Fatalf("a dry run seals %v, %v", a.state.SecretNames(textsFolder), err)
	}
	first := apply(rack+told, "created")
	if again := apply(rack+told, "unchanged"); again.VendorData != first.VendorData {
		t.Errorf("the same text has the references %s and %s", first.VendorData, again.VendorData)
	}
	shown := strings.Replace(rack+told, "#cloud-config\n    password: c4nary-seed", first.VendorData, 1)
	shown = strings.Replace(shown, "vendorData: |\n    ", "vendorData: ", 1)
	if kept := apply(shown, "unchanged"); kept.VendorData != first.VendorData {
		t.Errorf("applied as it is shown: %+v", kept)
	}
	changed := apply(strings.Replace(rack+told, "c4nary-seed", "c4nary-seed-2", 1), "configured")
	if changed.VendorData == first.VendorData || changed.NetworkConfig != first.NetworkConfig {
		t.Errorf("after a change %+v, before %+v", changed, first)
	}
	if names := a.state.SecretNames(textsFolder); len(names) != 2 || slices.Contains(names, textName(first.VendorData)) {
		t.Errorf("sealed are %v", names)
	}
	for _, bad := range []string{shown, rack + strings.Replace(told, "#cloud-config", "cloud-config", 1), rack + strings.Replace(told, "77:01:01", "77:00:01", 1)} {
		_, err := a.Apply(t.Context(), "rack.yaml", []byte(bad), "test", false)
		if e := hotspare.CodeOf(err); e != hotspare.CodeInvalid && e != hotspare.CodeUnknownRef {
			t.Errorf("applied: %v", err)
		} else if strings.Contains(err.Error(), "c4nary-seed") {
			t.Errorf("the error shows the text: %v", err)
		}
	}
	snap, err := a.Snapshot(t.Context())
	if err != nil || len(snap.Nodes) != 1 || snap.Nodes[0].CloudInit == nil || len(snap.Nodes[0].CloudInit.SSHKeys) != 1 {
		t.Fatalf("%+v, %v", snap.Nodes, err)
	}
	stopAppliance(t, a)
	if err := filepath.WalkDir(c.State, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, []byte("c4nary-seed")) {
			t.Errorf("%s holds the text in clear", p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	a = start(t, c)
	defer stopAppliance(t, a)
	if got, err := a.seeds.open(t.Context(), changed.VendorData); err != nil || !strings.Contains(got, "c4nary-seed-2") {
		t.Errorf("after a restart the text is %q, %v", got, err)
	}
	if err := a.Delete(t.Context(), "node", "n1", "test"); err != nil {
		t.Fatal(err)
	}
	if names := a.state.SecretNames(textsFolder); len(names) > 0 {
		t.Errorf("a node that is gone leaves %v", names)
	}
}

// kept is sealedTexts in memory.
type kept map[string]string

func (k kept) Secret(_ context.Context, name string) (hotspare.Secret, error) {
	if s, ok := k[name]; ok {
		return hotspare.NewSecret(s), nil
	}
	return hotspare.Secret{}, &hotspare.Error{Code: hotspare.CodeNotFound, What: "no " + name}
}

func (k kept) PutSecret(_ context.Context, name string, s hotspare.Secret) error {
	k[name] = s.Reveal()
	return nil
}

func (k kept) DeleteSecret(_ context.Context, name string) error {
	delete(k, name)
	return nil
}

func (k kept) SecretNames(string) (all []string) {
	for name := range k {
		all = append(all, name)
	}
	return all
}

// A seed is put together of the application's and the node's word.
func TestSeedOfAnApplicationOnANode(t *testing.T) {
	texts := kept{"cloud-init/1": "#cloud-config\nof: app\n", "cloud-init/2": "#cloud-config\nof: node\n", "cloud-init/3": "version: 1\n# of node\n", "cloud-init/4": "version: 2\n# of app\n", "cloud-init/5": "#cloud-config\nof: app, later\n"}
	app := haengine.Application{Name: "orders", Address: netip.MustParsePrefix("10.77.0.50/24"), CloudInit: &haengine.CloudInit{SSHKeys: []string{"a k1", "a k2"}, UserData: "sealed:1", NetworkConfig: "sealed:4"}}
	node := haengine.Node{Name: "n1", MACs: []string{"52:54:00:77:00:01"}, CloudInit: &haengine.CloudInit{SSHKeys: []string{"a k2", "a k3"}, UserData: "sealed:2", VendorData: "sealed:2", NetworkConfig: "sealed:3"}}
	st := haengine.State{Durable: haengine.Durable{
		Nodes: map[string]*haengine.NodeState{"n1": {Spec: node}, "n2": {Spec: haengine.Node{Name: "n2"}}},
		Apps:  map[string]*haengine.AppState{"orders": {Spec: app}},
	}}
	s := seeds{texts: texts, state: func() haengine.State { return st }}
	img := images.Image{Name: "orders", Version: "1", Digest: "d"}
	of := func(app haengine.Application, node string) map[string]string {
		t.Helper()
		seed, err := s.of(t.Context(), app, node, img)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for name, text := range seed {
			out[name] = text.Reveal()
		}
		return out
	}
	one, two := of(app, "n1"), of(app, "n2")
	if one["user-data"] != "#cloud-config\nof: app\n" || one["vendor-data"] != "#cloud-config\nof: node\n" || one["network-config"] != "version: 1\n# of node\n" {
		t.Errorf("on n1: %v", one)
	}
	if two["user-data"] != one["user-data"] || two["vendor-data"] != "" || two["network-config"] != "version: 2\n# of app\n" {
		t.Errorf("on n2: %v", two)
	}
	for _, want := range []string{`local-hostname: "n1"`, `instance-id: "orders.n1.`, `address: "10.77.0.50/24"`, "a k3"} {
		if !strings.Contains(one["meta-data"], want) {
			t.Errorf("the meta-data lacks %s: %s", want, one["meta-data"])
		}
	}
	if strings.Count(one["meta-data"], "a k2") != 1 {
		t.Errorf("a key stands twice: %s", one["meta-data"])
	}
	if again := of(app, "n1"); again["meta-data"] != one["meta-data"] {
		t.Error("the same start has another instance id")
	}
	// Changed while the start was on its way: the text that it was ordered with is gone.
	delete(texts, "cloud-init/1")
	later := app
	later.CloudInit = &haengine.CloudInit{UserData: "sealed:5"}
	st.Durable.Apps["orders"].Spec = later
	if now := of(app, "n1"); now["user-data"] != "#cloud-config\nof: app, later\n" || now["meta-data"] == one["meta-data"] {
		t.Errorf("after a change %v", now)
	}
	delete(texts, "cloud-init/5")
	if _, err := s.of(t.Context(), app, "n1", img); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Errorf("a start without what it must be told: %v", err)
	}
	// Empty: cloud-init runs, and configures no card.
	app.CloudInit = &haengine.CloudInit{}
	if least := of(app, "n2"); len(least) != 3 || !strings.Contains(least["network-config"], "disabled") {
		t.Errorf("told nothing: %v", least)
	}
	if app.CloudInit = nil; len(of(app, "n1")) > 0 {
		t.Error("an application without cloudInit gets a seed")
	}
}

// What could not reach the image is refused when it is declared, not in a failover.
func TestCloudInitThatCannotReachItsImage(t *testing.T) {
	app := haengine.Application{Name: "a", CloudInit: &haengine.CloudInit{}}
	linux := images.Facts{Starts: []images.Start{images.StartKernel, images.StartSAN}, Init: "systemd", CloudInit: images.Yes}
	opaque := images.Facts{Starts: []images.Start{images.StartSAN}, Init: images.InitUnknown}
	without := linux
	without.CloudInit = images.No
	older := linux
	older.CloudInit = ""
	for name, c := range map[string]struct {
		facts images.Facts
		ways  []haengine.Way
		says  string
	}{
		"a Linux": {linux, nil, ""}, "imported earlier": {older, nil, ""}, "without cloud-init": {without, nil, "no cloud-init"},
		"opaque": {opaque, nil, "no agent"}, "cold-san is listed": {linux, []haengine.Way{haengine.WayColdISCSI, haengine.WayColdSAN}, "no agent"},
	} {
		app.Policy.Ways = c.ways
		err := fitsCloudInit(app, images.Image{Facts: c.facts}, &manifest.Document{})
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if app.CloudInit = nil; fitsCloudInit(app, images.Image{Facts: without}, nil) != nil {
		t.Error("an application that asks for nothing is refused")
	}
}
