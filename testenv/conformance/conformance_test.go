package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"hotspare"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/storage/iscsi"
)

const (
	volumeSize = 128 << 20
	// suiteDeadline is patient: the longest suite sleeps for 12 s, a loaded
	// machine does the rest.
	suiteDeadline = 5 * time.Minute
	program       = "iscsi-test-cu"
	user, secret  = "tester", "a-secret-for-tests"
)

// portals serves one volume per suite at two addresses.
type portals struct {
	exports *storage.Exports
	addrs   [2]string
}

func serve(t *testing.T, suites []string) *portals {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	store, err := cow.Open(ctx, filepath.Join(dir, "store"), cow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	exports, err := storage.OpenExports(filepath.Join(dir, "exports.db"), storage.Options{Volumes: store, Lab: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range suites {
		if err := store.Create(ctx, s, volumeSize); err != nil {
			t.Fatal(err)
		}
		// The program logs in under two names, so the grant admits any.
		err := exports.Grant(ctx, storage.Grant{Volume: s, Epoch: 1, Initiator: storage.AnyInitiator,
			User: user, Secret: hotspare.NewSecret(secret), ReadOnly: s == "ReadOnly"})
		if err != nil {
			t.Fatal(err)
		}
	}
	p := &portals{exports: exports}
	target := iscsi.New(iscsi.Options{Directory: exports})
	var served sync.WaitGroup
	for i := range p.addrs {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.addrs[i] = ln.Addr().String()
		served.Go(func() {
			if err := target.Serve(ctx, ln); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		served.Wait()
		if err := errors.Join(exports.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *portals) urls(t *testing.T, suite string) []string {
	t.Helper()
	name, err := p.exports.TargetName(suite)
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, a := range p.addrs {
		urls = append(urls, fmt.Sprintf("iscsi://%s%%%s@%s/%s/0", user, secret, a, name))
	}
	return urls
}

// listed gives the suites and the number of tests that the program knows.
func listed(t *testing.T) (suites []string, tests int) {
	t.Helper()
	out, err := exec.Command(program, "--list").Output()
	if err != nil {
		t.Fatalf("%s: %v; fix: apt-get install libiscsi-bin", program, err)
	}
	for line := range strings.Lines(string(out)) {
		switch parts := strings.Split(strings.TrimSpace(line), "."); {
		case parts[0] != "ALL":
		case len(parts) == 2:
			suites = append(suites, parts[1])
		case len(parts) == 3:
			tests++
		}
	}
	return suites, tests
}

// outcome of one test.
type outcome int

const (
	passed outcome = iota
	skipped
	failed
)

var summary = regexp.MustCompile(`(?m)^ +tests +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)`)

// parse reads the program's output: the outcome of every test, checked against
// its own count.
func parse(suite, out string) (map[string]outcome, error) {
	body, tail, found := strings.Cut(out, "Run Summary:")
	m := summary.FindStringSubmatch(tail)
	if !found || m == nil {
		return nil, fmt.Errorf("%s: no summary: the program ended early", suite)
	}
	results := map[string]outcome{}
	failures := 0
	for _, part := range strings.Split(body, "\n  Test: ")[1:] {
		name, rest, _ := strings.Cut(part, " ...")
		o := passed
		for line := range strings.Lines(rest) {
			switch line = strings.TrimSpace(line); {
			case line == "FAILED":
				o = failed
			case strings.HasPrefix(line, "[SKIPPED]") && o == passed:
				o = skipped
			}
		}
		if o == failed {
			failures++
		}
		results[suite+"."+name] = o
	}
	if strconv.Itoa(len(results)) != m[2] || strconv.Itoa(failures) != m[4] {
		return nil, fmt.Errorf("%s: %d tests with %d failures are not the program's own count: %s", suite, len(results), failures, m[0])
	}
	return results, nil
}

// TestConformance is the public suite, all of it.
func TestConformance(t *testing.T) { // S15, S16 and the protocol
	suites, tests := listed(t)
	if tests != allTests {
		t.Errorf("%s has %d tests, not %d: look at the tables of this package again", program, tests, allTests)
	}
	p := serve(t, suites)
	results := map[string]outcome{}
	outputs := map[string]string{}
	var mu sync.Mutex
	var running sync.WaitGroup
	places := make(chan struct{}, 4) // most of the time of the longest ones is sleep
	for _, s := range suites {
		urls := p.urls(t, s)
		running.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			ctx, cancel := context.WithTimeout(context.Background(), suiteDeadline)
			defer cancel()
			var out bytes.Buffer
			cmd := exec.CommandContext(ctx, program, append([]string{"--dataloss", "--test", "ALL." + s}, urls...)...)
			cmd.Stdout, cmd.Stderr = &out, &out
			_ = cmd.Run() // it fails when a test does: the output says which
			rs, err := parse(s, out.String())
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() != nil {
				t.Errorf("%s did not end within %v", s, suiteDeadline)
			}
			if err != nil {
				t.Errorf("%v\n%s", err, out.String())
			}
			maps.Copy(results, rs)
			outputs[s] = out.String()
		})
	}
	running.Wait()
	judge(t, results, outputs)
}

// judge holds the results against the tables.
func judge(t *testing.T, results map[string]outcome, outputs map[string]string) {
	t.Helper()
	count := map[outcome]int{}
	for _, name := range slices.Sorted(maps.Keys(results)) {
		o := results[name]
		count[o]++
		suite, _, _ := strings.Cut(name, ".")
		_, maySkip := skips[name]
		_, isFault := faults[name]
		switch {
		case o == failed && !isFault:
			t.Errorf("%s failed:\n%s", name, outputs[suite])
		case o == skipped && !maySkip:
			t.Errorf("%s is skipped:\n%s", name, outputs[suite])
		case o == passed && maySkip, o != failed && isFault:
			t.Errorf("%s passes: take it out of the tables and docs/iscsi.md", name)
		case o == skipped && slices.Contains(mandatory, suite):
			t.Errorf("%s must not be skipped", name)
		}
	}
	t.Logf("%s: %d pass, %d skipped, %d fail by the program's own fault", program, count[passed], count[skipped], count[failed])
	if n := len(results); n != allTests {
		t.Errorf("%d of %d tests ran", n, allTests)
	}
	if count[passed] < leastPass {
		t.Errorf("%d tests pass, not %d", count[passed], leastPass)
	}
}

// TestDocumentListsEverySkip keeps docs/iscsi.md true.
func TestDocumentListsEverySkip(t *testing.T) {
	b, err := os.ReadFile("../../docs/iscsi.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "## Conformance")
	for _, table := range []map[string]string{skips, faults} {
		for name, why := range table {
			suite, test, _ := strings.Cut(name, ".")
			row := ""
			for line := range strings.Lines(section) {
				if strings.HasPrefix(line, "| "+suite+" |") {
					row = line
				}
			}
			if !strings.Contains(row, test) || !strings.Contains(row, why) {
				t.Errorf("docs/iscsi.md does not say of %s: %s", name, why)
			}
		}
	}
}

func TestParserSeesFailures(t *testing.T) {
	const head = "Suite: S\n  Test: One ...    [SKIPPED] not there\npassed\n  Test: Two ...    [FAILED] tolerated\npassed\n  Test: Three ...FAILED\n    1. x.c:1  - bad\n\nRun Summary:"
	rs, err := parse("S", head+"\n tests      3      3      2      1        0\n")
	if err != nil || rs["S.One"] != skipped || rs["S.Two"] != passed || rs["S.Three"] != failed {
		t.Errorf("%v, %v", rs, err)
	}
	for _, bad := range []string{head + "\n tests      3      3      3      0        0\n", head, "Suite: S\n  Test: One ..."} {
		if rs, err := parse("S", bad); err == nil {
			t.Errorf("%q gives %v", bad, rs)
		}
	}
}
