package hotspare_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// A rule forbids packages under From (not listed in Except) to import anything
// under Import.
type rule struct {
	from, imports, why string
	except             []string
}

var rules = []rule{
	{from: "hotspare/haengine", imports: "net", why: "the core decides from values; the network is the runner's", except: below("hotspare/haengine")},
	{from: "hotspare/haengine", imports: "os", why: "the core has no world; a decision must replay from a stored snapshot (SAFETY E1)", except: below("hotspare/haengine")},
	{from: "hotspare/haengine", imports: "math/rand", why: "the same state and event must give the same actions (SAFETY E1)", except: below("hotspare/haengine")},
	{from: "hotspare/haengine", imports: "math/rand/v2", why: "the same state and event must give the same actions (SAFETY E1)", except: below("hotspare/haengine")},
	{from: "hotspare/haengine", imports: "github.com", why: "the core stands on the standard library alone", except: below("hotspare/haengine")},
	{from: "hotspare/haengine", imports: "log/slog", why: "the core returns reasons, it does not log", except: below("hotspare/haengine")},
	{from: "hotspare/boot", imports: "os", why: "boot plans; its children speak protocols", except: below("hotspare/boot")},
	{from: "hotspare/boot", imports: "net/http", why: "boot plans; its children speak protocols", except: below("hotspare/boot")},
	{from: "hotspare/cmd/hotspare-agent", imports: "hotspare/haengine/runner", why: "the agent obeys epochs, it never decides"},
	{from: "hotspare/cmd/hotspare-agent", imports: "hotspare/haengine/agentlink/server", why: "the agent is the client end of the link"},
	{from: "hotspare/cmd/hotspare-agent", imports: "hotspare/storage/cow", why: "the agent holds no store"},
	{from: "hotspare/cmd/hotspare-agent", imports: "go.etcd.io/bbolt", why: "the agent is small and keeps nothing durable"},
}

// siblings never import each other or what is above them.
var siblings = []string{"boot", "bmc", "images", "storage", "haengine", "ui"}

// TestImportsFollowTheStructure holds every package's imports against the
// architecture: from child to parent only, siblings never, and only the
// appliance composes.
func TestImportsFollowTheStructure(t *testing.T) {
	pkgs := list(t)
	if len(pkgs) < 15 {
		t.Fatalf("only %d packages seen: the check would prove nothing", len(pkgs))
	}
	for _, p := range pkgs {
		for _, imp := range p.Imports {
			for _, why := range violations(p.ImportPath, imp) {
				t.Errorf("%s imports %s: %s", p.ImportPath, imp, why)
			}
		}
	}
}

func TestViolationsAreSeen(t *testing.T) {
	for _, c := range [][2]string{
		{"hotspare/haengine", "net"},
		{"hotspare/haengine", "os"},
		{"hotspare/haengine", "hotspare/haengine/store"},
		{"hotspare/boot/dhcp", "hotspare/boot/tftp"},
		{"hotspare/boot", "hotspare/haengine"},
		{"hotspare/storage/iscsi", "hotspare/images"},
		{"hotspare/storage", "hotspare/storage/cow"},
		{"hotspare/bmc/wire", "hotspare/testenv/bmcsim"},
		{"hotspare/cmd/hotspare-agent", "go.etcd.io/bbolt"},
		{"hotspare/ui/api", "hotspare/haengine/runner"},
	} {
		if len(violations(c[0], c[1])) == 0 {
			t.Errorf("%s importing %s is not seen as a violation", c[0], c[1])
		}
	}
	for _, c := range [][2]string{
		{"hotspare/haengine", "net/netip"},
		{"hotspare/haengine/store", "os"},
		{"hotspare/storage/iscsi/initiator", "hotspare/storage/iscsi"},
		{"hotspare/ui/api", "hotspare/haengine"},
		{"hotspare/cmd/hotspare/appliance", "hotspare/haengine/runner"},
	} {
		if v := violations(c[0], c[1]); len(v) != 0 {
			t.Errorf("%s importing %s is refused: %v", c[0], c[1], v)
		}
	}
}

func violations(from, imp string) []string {
	var out []string
	for _, r := range rules {
		if under(from, r.from) && exactOrBelow(imp, r.imports) && !excepted(from, r) {
			out = append(out, r.why)
		}
	}
	if !strings.HasPrefix(imp, "hotspare") {
		return out
	}
	top := first(from)
	if under(imp, from) && imp != from && top != "testenv" && top != "cmd" {
		out = append(out, "a parent never imports its child")
	}
	if isSibling(top) && isSibling(first(imp)) && top != first(imp) && top != "ui" {
		out = append(out, "siblings never import each other; the appliance composes them")
	}
	if top == "ui" && isSibling(first(imp)) && first(imp) != "ui" && strings.Count(imp, "/") > 1 {
		out = append(out, "ui takes the parents' value types only")
	}
	if isSibling(top) && top == first(imp) && !under(from, imp) && !under(imp, from) {
		out = append(out, "children of one parent never import each other")
	}
	if first(imp) == "testenv" && top != "testenv" && from != "hotspare/cmd/hotspare-lab" {
		out = append(out, "only tests and hotspare-lab import testenv")
	}
	return out
}

// below excepts every package under p but not p itself.
func below(p string) []string { return []string{p + "/"} }

func excepted(from string, r rule) bool {
	for _, e := range r.except {
		if strings.HasPrefix(from, e) {
			return true
		}
	}
	return false
}

func under(p, parent string) bool { return p == parent || strings.HasPrefix(p, parent+"/") }

// exactOrBelow matches a forbidden import. Of the standard library only the
// named package itself is meant (net, but not net/netip).
func exactOrBelow(imp, forbidden string) bool {
	if strings.Contains(forbidden, ".") || strings.HasPrefix(forbidden, "hotspare") {
		return under(imp, forbidden)
	}
	return imp == forbidden
}

func first(p string) string {
	_, rest, _ := strings.Cut(p, "/")
	top, _, _ := strings.Cut(rest, "/")
	return top
}

func isSibling(top string) bool {
	for _, s := range siblings {
		if s == top {
			return true
		}
	}
	return false
}

type pkg struct {
	ImportPath string
	Doc        string
	Imports    []string
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Doc,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// TestEveryPackageSaysWhatItDoes wants a doc comment on each package.
func TestEveryPackageSaysWhatItDoes(t *testing.T) {
	for _, p := range list(t) {
		if len(p.Doc) < 40 {
			t.Errorf("%s has no package comment that says what it does", p.ImportPath)
		}
	}
}
