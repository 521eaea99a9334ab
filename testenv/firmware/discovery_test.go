package firmware

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/boot"
	"hotspare/testenv/lab"
	"hotspare/testenv/lab/site"
	"hotspare/ui/api"
)

// TestAMachineIsDiscoveredApprovedAndServes follows a machine that nobody knows
// from its first packet to an application, and its ladders with it.
func TestAMachineIsDiscoveredApprovedAndServes(t *testing.T) {
	if !full() {
		t.Skip("boots a machine three times; make test-full runs it")
	}
	nodes := lab.Nodes(1)
	nodes[0].Firmware = lab.FirmwareBIOS
	w := newWorld(t, "discovery", "", nodes, func(o *site.Options) { o.Discovery = "web" })
	n := w.lab.Nodes()[0]
	w.power(n, true)
	var m api.Machine
	w.until(n, "the machine is discovered", func() bool {
		var all []api.Machine
		w.get(&all, "get", "machines", "-o", "json")
		for _, x := range all {
			if x.ID == n.MAC && x.Facts != nil {
				m = x
			}
		}
		return m.Facts != nil
	})
	if m.State != "discovered" || m.Facts.MemoryMiB == 0 || m.Facts.CPUs != n.CPUs || !strings.EqualFold(m.UUID, n.UUID) || !m.Address.IsValid() {
		t.Errorf("discovered as %+v, facts %+v", m, m.Facts)
	}
	l := w.ladder(n.MAC)
	if l.State != boot.LadderWaits || !strings.Contains(l.Verdict, "discovery environment") {
		t.Errorf("its ladder: %s, %s", l.State, l.Verdict)
	}
	if trace := w.hotspare("explain", "boot", n.MAC); strings.Contains(trace, "/join") {
		t.Errorf("a stranger was given a join archive:\n%s", trace)
	}
	w.power(n, false)

	w.apply("kind: pool\nname: " + n.Name + "\n")
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte(n.BMCPassword), 0o600); err != nil {
		t.Fatal(err)
	}
	w.hotspare("node", "approve", n.MAC, "--name", n.Name, "--pool", n.Name, "--bmc", n.BMCAddr.String(), "--bmc-user", n.BMCUser, "--bmc-password-file", password)
	if out := w.hotspare("get", "machines"); strings.Contains(out, n.MAC) {
		t.Errorf("a node is still listed as a machine:\n%s", out)
	}
	app := w.addApp(n)
	w.running(app, n)
	w.until(n, "the ladder is at its top", func() bool { return w.ladder(n.Name).State == boot.LadderServes })
	l = w.ladder(n.Name)
	for _, r := range l.Rungs {
		if r.State != boot.RungDone && r.Name != boot.RungLoader { // its iPXE is in ROM
			t.Errorf("rung %s is %s", r.Name, r.State)
		}
		t.Logf("%-9s %-8s at %6d took %6d ms  %s", r.Name, r.State, r.At, r.Took, r.Text)
	}
	for _, f := range l.Findings {
		t.Logf("%s %s: %s", f.Gravity, f.Rule, f.Text)
		if f.Gravity == boot.Stuck {
			t.Errorf("a boot that serves is said to be stuck: %+v", f)
		}
	}
	t.Log("\n" + w.hotspare("explain", "boot", n.Name))
	w.gone(app, n)
}

// ladder gives the newest boot of a machine.
func (w *world) ladder(name string) boot.Ladder {
	w.t.Helper()
	var e api.Explanation
	w.get(&e, "explain", "boot", name, "-o", "json")
	if len(e.Boots) == 0 {
		w.t.Fatalf("no boots of %s", name)
	}
	return e.Boots[0]
}

func (w *world) get(out any, args ...string) {
	w.t.Helper()
	if err := json.Unmarshal([]byte(w.hotspare(args...)), out); err != nil {
		w.t.Fatal(err)
	}
}

// until asks the appliance until it says so.
func (w *world) until(n lab.NodeSpec, what string, is func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			w.t.Errorf("it never came to this: %s", what)
			w.stuck(n, os.ErrDeadlineExceeded)
		}
		time.Sleep(500 * time.Millisecond) // machines and ladders announce nothing
	}
}
