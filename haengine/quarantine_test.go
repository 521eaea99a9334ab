package haengine_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"hotspare"
	"hotspare/haengine"
)

var reused = haengine.Quarantine{Node: "n1", Code: hotspare.CodeTokenReused, Reason: "its join token was presented twice"}

// A node that carries nothing is put aside at once, told once, and stays so
// until a person releases it (trust level L1).
func TestAFreeNodeIsPutAside(t *testing.T) {
	b := newBench(t, 2)
	b.perform()
	b.event(reused)
	b.event(reused)
	n := b.s.Durable.Nodes["n1"]
	if n.Phase != haengine.NodeQuarantined || n.Reason != reused.Reason {
		t.Errorf("it is %s: %s", n.Phase, n.Reason)
	}
	if c := b.count("notify", "n1"); c != 1 {
		t.Errorf("told %d times", c)
	}
	b.event(haengine.AppApplied{Application: app(nil)})
	if g := b.app().Grant; g == nil || g.Node != "n2" {
		t.Errorf("granted %+v", g)
	}
	b.event(haengine.Unquarantine{Node: "n1", By: "ann"})
	if n := b.s.Durable.Nodes["n1"]; n.Phase != haengine.NodeIdle || b.incident("node/n1/quarantine") {
		t.Errorf("after its release it is %s, incidents %v", n.Phase, b.s.Durable.Incidents)
	}
}

// A node that boots for an application is fenced and put aside before anything
// is claimed on it, also when a quarter of the pool is aside already; the
// application goes elsewhere.
func TestABootingNodeIsFencedAndPutAside(t *testing.T) {
	b := newBench(t, 3)
	b.perform()
	b.event(haengine.Quarantine{Node: "n3", Code: hotspare.CodeTokenReused, Reason: "its join token was presented twice"})
	b.event(haengine.AppApplied{Application: app(nil)})
	b.pass(3*time.Second, nil)
	if g := b.app().Grant; g == nil || g.Node != "n1" || !g.Booted {
		t.Fatalf("granted %+v", g)
	}
	b.event(reused)
	b.event(haengine.Joined{Node: "n1", BootID: "n1-boot1", App: "orders", Epoch: 1}) // whoever that is
	b.pass(10*time.Second, nil)
	if n := b.s.Durable.Nodes["n1"]; n.Phase != haengine.NodeQuarantined || b.pow["n1"] != haengine.PowerIsOff {
		t.Errorf("n1 is %s (%s) and %s", n.Phase, n.Reason, b.pow["n1"])
	}
	if c := b.count("claim", "n1"); c != 0 {
		t.Errorf("claimed on it %d times", c)
	}
	b.join()
	b.pass(20*time.Second, b.good)
	if a := b.app(); a.Phase != haengine.PhaseRunning || a.Grant.Node != "n2" {
		t.Errorf("orders is %s on %+v", a.Phase, a.Grant)
	}
}

// A node that runs an application is not touched: a replayed packet stops no
// service. The administrator is told.
func TestANodeThatRunsIsLeftAlone(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	b.event(reused)
	b.pass(time.Minute, b.good)
	if a := b.app(); a.Phase != haengine.PhaseRunning || a.Epoch != 1 {
		t.Errorf("orders is %s under epoch %d", a.Phase, a.Epoch)
	}
	if !b.incident("node/n1/quarantine") {
		t.Errorf("nobody was told: %v", b.s.Durable.Incidents)
	}
	b.keep["release"] = true // it ends in order and still runs
	b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann"})
	b.event(reused)
	if c := b.count("power-off", "n1"); c != 0 {
		t.Errorf("switched off while it releases in order")
	}
}

// What is shown on nodes and applications is one line that can be read; the
// failover's record has the whole text (E2).
func TestReasonsAreOneLine(t *testing.T) {
	b := newBench(t, 3)
	b.perform()
	long := "exit status 1\ndmesg: " + strings.Repeat("äöü ", 300)
	b.fail["boot n1"] = haengine.Failed{Why: long}
	b.fail["attach n2"] = haengine.Failed{Why: strings.Repeat("äöü ", 300)}
	b.event(haengine.AppApplied{Application: app(nil)})
	b.pass(10*time.Second, nil)
	a, n := b.app(), b.s.Durable.Nodes["n1"]
	if a.Phase != haengine.PhaseBlocked || !strings.Contains(a.Reason, "exported") || !strings.Contains(n.Reason, "exit status 1") {
		t.Fatalf("%s: %q; n1: %q", a.Phase, a.Reason, n.Reason)
	}
	for _, r := range []string{a.Reason, n.Reason, a.Failures[0].Why} {
		if strings.Contains(r, "\n") || utf8.RuneCountInString(r) > 210 || !utf8.ValidString(r) {
			t.Errorf("a reason of %d bytes: %q", len(r), r)
		}
	}
	if f := b.s.Durable.Failovers[1]; !strings.Contains(f.Attempts[0].Why, long) {
		t.Errorf("the record has %q only", f.Attempts[0].Why)
	}
}
