package haengine_test

import (
	"testing"
	"time"

	"hotspare/haengine"
)

// A service that answers before its group is wholly online, and then hangs, would
// be seen by one channel only: the agent does not look at it yet. It is running
// when the claim has ended, and a claim that never ends costs the node its grant.
func TestRunningWaitsForTheClaim(t *testing.T) {
	b := newBench(t, 2)
	b.perform()
	b.event(haengine.AppApplied{Application: app(nil)})
	b.keep["claim"] = true
	b.pass(2*time.Second, nil)
	b.join()
	first := b.app().Grant.Node
	b.pass(30*time.Second, b.good)
	if p := b.app().Phase; p != haengine.PhaseOnlining {
		t.Fatalf("its check passes while the agent is still busy: it is %s", p)
	}
	b.pass(haengine.DefaultOnlineDeadline.D(), b.good)
	g := b.app().Grant
	if g == nil || g.Node == first || g.Epoch < 2 {
		t.Fatalf("a claim that never ended keeps its grant: %+v", g)
	}
}
