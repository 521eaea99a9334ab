package main

import (
	"bytes"
	"encoding/json"
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
	"hotspare/ui/api"
)

// call runs the command line and gives its exit status and both outputs.
func call(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var kept [2]*os.File
	var texts [2]chan string
	for i, f := range []**os.File{&os.Stdout, &os.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		kept[i], *f = *f, w
		texts[i] = make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(r)
			texts[i] <- string(b)
		}()
	}
	code = run(t.Context(), args)
	os.Stdout.Close()
	os.Stderr.Close()
	os.Stdout, os.Stderr = kept[0], kept[1]
	return code, <-texts[0], <-texts[1]
}

// server answers every path with a fixed value.
func server(t *testing.T, answers map[string]any) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "api.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, ok := answers[r.Method+" "+r.URL.Path]
		if p, is := v.(*api.Problem); is {
			w.WriteHeader(p.Status)
		} else if !ok {
			w.WriteHeader(http.StatusNotFound)
			v = &api.Problem{Status: 404, Title: "there is no such thing", Code: hotspare.CodeNotFound, Where: r.URL.Path, Fix: "look"}
		}
		_ = json.NewEncoder(w).Encode(v)
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close() })
	return path
}

var seen = time.Now().Add(-3 * time.Second)

var nodes = []api.Node{
	{
		Node:   haengine.Node{Name: "n1", Pool: "rack1", MACs: []string{"52:54:00:77:00:01"}, CPUs: 1, MemoryMiB: 512, BMC: haengine.BMC{Address: netip.MustParseAddr("10.78.0.11")}},
		Status: api.NodeStatus{Phase: "owned", Power: "on", Application: "orders", Epoch: 7, Address: netip.MustParseAddr("10.77.0.101"), LastSeen: &seen},
	},
	{Node: haengine.Node{Name: "n2", Pool: "rack1"}, Status: api.NodeStatus{Phase: "quarantined", Power: "off", Reason: "the claim failed:\nlong text"}},
}

func TestGetPrintsTables(t *testing.T) {
	sock := server(t, map[string]any{"GET /api/v1/nodes": nodes, "GET /api/v1/nodes/n1": nodes[0]})
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"table", []string{"get", "nodes"}, []string{
			"NAME  POOL   STATE        POWER  APP     EPOCH  ADDRESS      SEEN\n",
			"n1    rack1  owned        on     orders  7      10.77.0.101  3s\n",
			"n2    rack1  quarantined  off    -       -      -            -\n",
		}},
		{"wide", []string{"get", "node", "-o", "wide"}, []string{"52:54:00:77:00:01", "10.78.0.11", "the claim failed:...\n"}},
		{"names", []string{"get", "nodes", "-o", "name"}, []string{"node/n1\nnode/n2\n"}},
		{"one", []string{"get", "node", "n1", "-o", "name"}, []string{"node/n1\n"}},
		{"json", []string{"get", "node", "n1", "-o", "json"}, []string{`"epoch": 7`, `"memoryMiB": 512`}},
		{"yaml", []string{"describe", "node", "n1"}, []string{"name: n1\n", "epoch: 7\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, errs := call(t, append(c.args, "--socket", sock)...)
			if code != 0 {
				t.Fatalf("exit %d: %s", code, errs)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("%q is missing in\n%s", w, out)
				}
			}
		})
	}
}

func TestExitStatusTellsRefusalFromWrongUse(t *testing.T) {
	sock := server(t, map[string]any{
		"POST /api/v1/applications/orders/actions/failover": &api.Problem{Status: 409, Title: "the application is frozen", Code: hotspare.CodeFrozen, Where: "orders", Why: "by ann", Fix: "unfreeze it"},
		"POST /api/v1/applications/web/actions/failover":    api.Accepted{Text: "failover of application web accepted"},
	})
	for _, c := range []struct {
		args []string
		code int
		says []string
	}{
		{[]string{"app", "failover", "web"}, 0, []string{"accepted"}},
		{[]string{"app", "failover", "orders"}, 1, []string{"HA-042: the application is frozen", "where orders", "why   by ann", "fix   unfreeze it"}},
		{[]string{"get", "nodes", "n9"}, 1, []string{"CFG-005"}},
		{[]string{"get", "wheels"}, 2, []string{`unknown kind "wheels"`}},
		{[]string{"get"}, 2, []string{"takes a kind"}},
		{[]string{"get", "nodes", "--colour"}, 2, []string{"unknown flag"}},
		{[]string{"apply", "-f", "/nowhere/x.yaml"}, 1, []string{"/nowhere/x.yaml"}},
		{[]string{"apply"}, 2, []string{"-f FILE"}},
		{[]string{"image", "import", "x"}, 2, []string{"--file"}},
		{[]string{"serve", "--config", "/nowhere/hotspare.yaml"}, 1, []string{"/nowhere/hotspare.yaml", "examples/hotspare.yaml"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			code, out, errs := call(t, append(c.args, "--socket", sock)...)
			if code != c.code {
				t.Fatalf("exit %d, want %d: %s", code, c.code, errs)
			}
			for _, s := range c.says {
				if !strings.Contains(out+errs, s) {
					t.Errorf("%q is missing in\n%s%s", s, out, errs)
				}
			}
		})
	}
}

func TestExplainShowsEveryRule(t *testing.T) {
	sock := server(t, map[string]any{"GET /api/v1/explain/app/orders": api.Explanation{
		Subject: "orders is down", Rows: []api.Row{{Name: "reason", Text: "nobody is eligible"}},
		Candidates: []api.Candidate{{Node: "n7", Nearest: "112 MiB short", Rules: []api.Rule{{Name: "memory", Why: "400 MiB, needs 512"}, {Name: "pool", OK: true, Why: "in rack1"}}}},
	}})
	code, out, errs := call(t, "explain", "app", "orders", "--socket", sock)
	if code != 0 {
		t.Fatal(errs)
	}
	for _, w := range []string{"orders is down\n", "reason  nobody is eligible", "n7: not eligible (112 MiB short)", "FAIL  memory", "pass  pool"} {
		if !strings.Contains(out, w) {
			t.Errorf("%q is missing in\n%s", w, out)
		}
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	var walk func(prefix []string)
	seen := 0
	walk = func(prefix []string) {
		cmd := command()
		found, _, err := cmd.Find(prefix)
		if err != nil {
			t.Fatal(err)
		}
		if found.Short == "" {
			t.Errorf("%s has no help", found.CommandPath())
		}
		seen++
		for _, c := range found.Commands() {
			walk(append(append([]string{}, prefix...), c.Name()))
		}
	}
	walk(nil)
	if seen < 20 {
		t.Fatalf("only %d commands seen", seen)
	}
	var b bytes.Buffer
	cmd := command()
	cmd.SetOut(&b)
	cmd.SetArgs([]string{"--help"})
	if err := cmd.Execute(); err != nil || !strings.Contains(b.String(), "serve") {
		t.Fatalf("%v\n%s", err, b.String())
	}
}
