package manifest_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/cmd/hotspare/appliance/manifest"
	"hotspare/haengine"
)

func TestExamplesAreRead(t *testing.T) {
	files, err := filepath.Glob("../../../../examples/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	kinds := map[string]int{}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if b := filepath.Base(f); b == "hotspare.yaml" || b == "image.yaml" {
			continue // the appliance's configuration and what an image is built from are read by their own tests
		}
		docs, err := manifest.Parse(f, src)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			kinds[d.Kind]++
		}
	}
	if kinds["pool"] < 1 || kinds["node"] < 4 || kinds["application"] < 2 {
		t.Fatalf("kinds read: %v", kinds)
	}
}

// The standby of a pool and the ways of an application are read strictly, too.
func TestStandbyAndWaysArrive(t *testing.T) {
	docs, err := manifest.Parse("x.yaml", []byte(`
kind: pool
name: rack1
standby: {nodes: 2, kernel: orders, for: [orders, web], powerBudget: 4, atOnce: 1}
---
kind: application
name: a
address: 10.77.0.50/24
policy: {ways: [slot, install, cold-iscsi], wayOrder: measured, installLimit: 20m, tolerateOutage: 2m}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := haengine.Standby{Nodes: 2, Kernel: "orders", For: []string{"orders", "web"}, PowerBudget: 4, AtOnce: 1}
	if s := docs[0].Pool.Standby; s == nil || !reflect.DeepEqual(*s, want) {
		t.Errorf("standby %+v", s)
	}
	p := docs[1].Application.Policy
	if len(p.Ways) != 3 || p.Ways[1] != haengine.WayInstall || p.WayOrder != haengine.OrderMeasured || p.InstallLimit.D() != 20*time.Minute || p.TolerateOutage.D() != 2*time.Minute {
		t.Errorf("policy %+v", p)
	}
	_, err = manifest.Parse("x.yaml", []byte("kind: pool\nname: rack1\nstandby: {node: 2}\n"))
	var e *hotspare.Error
	if !errors.As(err, &e) || e.Code != hotspare.CodeYAML || !strings.Contains(e.Fix, "nodes") {
		t.Errorf("a misspelt field: %v", err)
	}
}

func TestFieldsAndSecretsArrive(t *testing.T) {
	docs, err := manifest.Parse("x.yaml", []byte(`
kind: node
name: n1
macs: ["52:54:00:77:00:01"]
bmc: {protocol: ipmi, address: 10.78.0.11, user: admin, password: tops3cret}
---
kind: application
name: a
address: 10.77.0.50/24
monitors:
  - {name: m, kind: tcp, port: 80, every: 1500ms}
`))
	if err != nil {
		t.Fatal(err)
	}
	n := docs[0]
	if n.Node.Name != "n1" || n.Node.BMC.Address.String() != "10.78.0.11" || n.Node.BMC.User != "admin" {
		t.Fatalf("node: %+v", n.Node)
	}
	if n.BMCPassword.Reveal() != "tops3cret" || strings.Contains(n.BMCPassword.String(), "tops") {
		t.Fatal("the password does not arrive, or prints")
	}
	a := docs[1].Application
	if a.Address.String() != "10.77.0.50/24" || a.Monitors[0].Every.D() != 1500*time.Millisecond {
		t.Fatalf("application: %+v", a)
	}
	if docs[1].Source != "x.yaml:7" {
		t.Fatalf("source: %s", docs[1].Source)
	}
}

// What cloud-init is told may hold passwords: it is not in what is stored and shown.
func TestCloudInitTextsAreTakenOut(t *testing.T) {
	docs, err := manifest.Parse("x.yaml", []byte(`
kind: application
name: a
cloudInit:
  sshKeys: [ssh-ed25519 AAAA me]
  vendorData: sealed:0123456789abcdef
  userData: |
    #cloud-config
    password: tops3cret
---
kind: node
name: n1
cloudInit: {networkConfig: "version: 2"}
---
kind: node
name: n2
`))
	if err != nil {
		t.Fatal(err)
	}
	a := docs[0]
	if a.CloudInit.UserData.Reveal() != "#cloud-config\npassword: tops3cret\n" || len(a.Application.CloudInit.SSHKeys) != 1 {
		t.Errorf("the user data is %q", a.CloudInit.UserData.Reveal())
	}
	if a.Application.CloudInit.VendorData != "sealed:0123456789abcdef" || !a.CloudInit.VendorData.IsZero() {
		t.Error("a reference is taken for a text")
	}
	if shown := fmt.Sprintf("%+v %+v", a, *a.Application.CloudInit); strings.Contains(shown, "tops3cret") {
		t.Error("the user data is shown:", shown)
	}
	if docs[1].CloudInit.NetworkConfig.Reveal() != "version: 2" || docs[2].Block() != nil {
		t.Errorf("nodes: %+v, %+v", docs[1], docs[2])
	}
}

func TestBadInputSaysWhereAndWhatIsMeant(t *testing.T) {
	for _, c := range []struct {
		name, src   string
		code        hotspare.Code
		where, says string
	}{
		{"unknown field", "kind: node\nname: n1\nmemryMiB: 3\n", hotspare.CodeYAML, "f:3:", `did you mean "memoryMiB"?`},
		{"unknown nested field", "kind: application\nname: a\npolicy:\n  leese: 3s\n", hotspare.CodeYAML, "f:4:", `did you mean "lease"?`},
		{"field far from any", "kind: pool\nname: p\nxyzzyplugh: 3\n", hotspare.CodeYAML, "f:3:", "remove the line"},
		{"unknown kind", "kind: nod\nname: n\n", hotspare.CodeYAML, "f:1", `did you mean "node"?`},
		{"no kind", "name: n\n", hotspare.CodeYAML, "f:1", "no kind"},
		{"no name", "kind: node\narch: amd64\n", hotspare.CodeInvalid, "f:1", "has no name"},
		{"wrong type", "kind: node\nname: n\ncpus: many\n", hotspare.CodeYAML, "f:3:", "cannot unmarshal"},
		{"bad duration", "kind: application\nname: a\npolicy: {lease: soon}\n", hotspare.CodeInvalid, "f:1", "invalid duration"},
		{"bad address", "kind: application\nname: a\naddress: 10.0.0.0.1\n", hotspare.CodeInvalid, "f:1", "10.0.0.0.1"},
		{"not YAML", "kind: [node\n", hotspare.CodeYAML, "f:", "sequence"},
		{"empty", "# nothing\n", hotspare.CodeYAML, "f", "no resource"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := manifest.Parse("f", []byte(c.src))
			var e *hotspare.Error
			if !errors.As(err, &e) {
				t.Fatalf("no coded error: %v", err)
			}
			if e.Code != c.code || !strings.HasPrefix(e.Where, c.where) || !strings.Contains(err.Error(), c.says) || e.Fix == "" {
				t.Fatalf("got %v (where %q, fix %q)", err, e.Where, e.Fix)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("kind: node\nname: n1\n"))
	f.Add([]byte("kind: application\nname: a\nmonitors: [{name: x}]\n---\nkind: pool\nname: p\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		docs, err := manifest.Parse("f", src)
		if err == nil && len(docs) == 0 {
			t.Fatal("no documents and no error")
		}
	})
}

// TestEveryFieldIsDocumented holds docs/resources.md against the types that
// documents are read into, and the defaults of policies against the code.
func TestEveryFieldIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../../../docs/resources.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	fields := 0
	var walk func(t reflect.Type) []string
	walk = func(rt reflect.Type) []string {
		for rt.Kind() == reflect.Slice || rt.Kind() == reflect.Pointer {
			rt = rt.Elem()
		}
		if rt.Kind() != reflect.Struct || !strings.HasPrefix(rt.PkgPath(), "hotspare") {
			return nil
		}
		var names []string
		for i := range rt.NumField() {
			name, _, _ := strings.Cut(rt.Field(i).Tag.Get("yaml"), ",")
			if name != "" {
				names = append(names, name)
			}
			names = append(names, walk(rt.Field(i).Type)...)
		}
		return names
	}
	for _, v := range []any{haengine.Pool{}, haengine.Node{}, haengine.Application{}} {
		for _, name := range walk(reflect.TypeOf(v)) {
			fields++
			if !regexp.MustCompile("`([a-z]+[.])?" + name + "[`.]").MatchString(doc) {
				t.Errorf("%T: field %s is not in docs/resources.md", v, name)
			}
		}
	}
	if fields < 60 {
		t.Fatalf("only %d fields seen", fields)
	}
	p := haengine.Policy{}.WithDefaults()
	for name, value := range map[string]string{
		"lease": short(p.Lease), "dropBound": short(p.DropBound), "margin": short(p.Margin), "fenceDeadline": short(p.FenceDeadline),
		"bootDeadline": short(p.BootDeadline), "onlineDeadline": short(p.OnlineDeadline), "retryAfter": short(p.RetryAfter),
		"restartTime": short(p.RestartTime),
		"maxAttempts": strconv.Itoa(p.MaxAttempts), "previous": p.Previous,
		"restarts`, `restartWindow":      strconv.Itoa(p.Restarts) + " in " + short(p.RestartWindow),
		"maxFailovers`, `failoverWindow": strconv.Itoa(p.MaxFailovers) + " in " + short(p.FailoverWindow),
	} {
		if row := "| `" + name + "` | " + value + " |"; !strings.Contains(doc, row) {
			t.Errorf("docs/resources.md lacks %q", row)
		}
	}
}

// short writes 5m0s as 5m.
func short(d haengine.Duration) string {
	s := strings.TrimSuffix(d.String(), "m0s")
	if s != d.String() {
		s += "m"
	}
	return strings.Replace(s, "h0m", "h", 1)
}
