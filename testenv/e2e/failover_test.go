package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/lab"
	"hotspare/testenv/lab/site"
	"hotspare/ui/api"
)

// TestFailovers runs the failovers one after the other in one lab: boots are the
// cost. Each begins where the last one left orders.
func TestFailovers(t *testing.T) {
	w := newWorld(t)
	story := func(name string, always bool, tell func(w *world)) {
		if !always && !full() {
			return // make test-full
		}
		t.Run(name, func(t *testing.T) {
			inner := *w
			inner.t = t
			tell(&inner)
		})
		if t.Failed() {
			t.FailNow() // the next story would begin in an unknown world
		}
	}
	story("the power of the node is cut", true, proven(lab.PowerCut))
	story("the link is cut and the BMC is dead", true, linkCutBMCDead)
	story("the appliance is killed while the new node boots", true, killedWhile("starting"))
	story("the appliance is killed while it fences", false, killedWhile("fencing"))
	story("the appliance is killed while the service comes online", false, killedWhile("onlining"))
	story("the link is cut", false, proven(lab.LinkCut))
	story("the service hangs while the node lives", false, hangs)
	story("the service crashes once", false, mendedInPlace)
	story("the service crashes and does not come back", false, crashes)
	story("an operator moves it", false, planned)
	story("no node is eligible until one is added", false, nobodyEligible)
	story("the appliance is restarted as announced", false, restartedAsAnnounced)
	story("the spare waits in standby", true, fromStandby)
	story("the spare in standby runs another kernel", false, fromStandbyByKexec)
	w.client.Stop()
	result, err := w.client.Verify(t.Context())
	if err != nil || !result.OK() || result.Acked < 50 {
		t.Fatalf("rows: %+v, %v", result, err)
	}
	owners, instances := w.asker.seen()
	t.Logf("%d rows acknowledged, all there; %d owners and %d instances answered in their turn", result.Acked, owners, instances)
}

// proven does a fault after which the BMC can be asked: what it says is the whole
// proof. A power cut makes it say off; behind a cut link it is the only one who
// knows, on a network of its own.
func proven(fault string) func(*world) {
	return func(w *world) {
		before := w.orders()
		old := w.credentials("orders.data")
		cut := time.Now()
		w.fail(before.Status.Node, fault, "")
		_, record := w.moved(before, cut)
		if record.Evidence != "power" {
			w.t.Errorf("evidence %q, the BMC was there to ask", record.Evidence)
		}
		w.refused(old)
		w.settled(before.Status.Node)
	}
}

// hangs stops every process of the database; node, agent and TCP answer on.
func hangs(w *world) {
	before := w.orders()
	cut := time.Now()
	w.fail(before.Status.Node, lab.HangService, database)
	w.moved(before, cut)
	w.settled(before.Status.Node)
}

// mendedInPlace kills the database once: its agent's restart comes first, and
// nothing moves.
func mendedInPlace(w *world) {
	before := w.orders()
	cut := time.Now()
	w.fail(before.Status.Node, lab.KillService, database)
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if _, err := w.client.AckAfter(ctx, time.Now().Add(time.Second)); err != nil {
		w.stuck(err)
	}
	w.running()
	if after := w.orders(); after.Status.Epoch != before.Status.Epoch || after.Status.Node != before.Status.Node {
		w.t.Errorf("it moved from %s epoch %d to %s epoch %d", before.Status.Node, before.Status.Epoch, after.Status.Node, after.Status.Epoch)
	}
	w.t.Logf("mended on %s; longest silence %.1f s", before.Status.Node, w.silence(cut).Seconds())
	w.wholeAndAlone()
}

// crashes kills the database so that it cannot be started again: it moves once
// the agent's local restarts are spent, not before.
func crashes(w *world) {
	before := w.orders()
	cut := time.Now()
	w.fail(before.Status.Node, lab.CrashService, database)
	_, record := w.moved(before, cut)
	if !strings.Contains(record.Cause, "local restarts are spent") {
		w.t.Errorf("it moved for %q: the agent's restarts come first", record.Cause)
	}
	w.settled(before.Status.Node)
}

// settled heals a node that orders left and waits until it may be chosen again.
func (w *world) settled(node string) {
	w.t.Helper()
	w.heal(node)
	w.idle(node)
	w.asker.returned()
}

// refused replays the credentials of an earlier grant.
func (w *world) refused(old site.Credentials) {
	w.t.Helper()
	if out, err := w.login(old); err == nil {
		w.t.Errorf("credentials of an earlier grant were admitted: %s", out)
	} else if !strings.Contains(strings.ToLower(out), "login") && !strings.Contains(strings.ToLower(out), "log in") {
		w.t.Errorf("the replay failed for another reason than its log-in: %s", out)
	}
}

// linkCutBMCDead: nothing can be asked about the node. The storage fence and the
// agent's own drop bound are the proof, and the node, back again, gets nothing.
func linkCutBMCDead(w *world) {
	before := w.orders()
	node := before.Status.Node
	old := w.credentials("orders.data")
	if out, err := w.login(old); err != nil {
		w.t.Fatalf("the credentials are not the live ones, so that their refusal would prove nothing: %v: %s", err, out)
	}
	cut := time.Now()
	w.fail(node, lab.BMCDead, "")
	w.fail(node, lab.LinkCut, "")
	_, record := w.moved(before, cut)
	if record.Evidence != "storage+drop" {
		w.t.Errorf("evidence %q, but only the storage and the drop bound were left", record.Evidence)
	}
	w.refused(old)
	w.heal(node) // link and BMC are back; the old node wakes up in another world
	w.t.Logf("%s is back", node)
	w.idle(node)
	w.refused(old)
	w.wholeAndAlone()
	w.asker.returned()
}

// killedWhile kills the appliance in a phase of a failover and starts it again:
// the outcome is the same, and the other application does not notice.
func killedWhile(phase string) func(*world) {
	return func(w *world) {
		before := w.orders()
		web := w.application("web")
		ctx, cancel := context.WithTimeout(w.t.Context(), patience)
		defer cancel()
		cut := time.Now()
		w.fail(before.Status.Node, lab.PowerCut, "")
		if _, err := w.site.Until(ctx, "orders "+phase, func(s api.Snapshot) bool {
			app, ok := site.Application(s, "orders")
			return ok && app.Status.Phase == phase
		}); err != nil {
			w.stuck(err)
		}
		if err := w.site.Kill(ctx); err != nil {
			w.t.Fatal(err)
		}
		w.t.Logf("FAULT: the appliance was killed while orders was %s", phase)
		w.startAppliance()
		after, _ := w.moved(before, cut)
		if after.Status.Epoch != before.Status.Epoch+1 {
			w.t.Errorf("epoch %d after %d: an effect was repeated as another grant", after.Status.Epoch, before.Status.Epoch)
		}
		if now := w.application("web"); now.Status.Epoch != web.Status.Epoch || now.Status.Node != web.Status.Node {
			w.t.Errorf("web moved too: %+v, was %+v", now.Status, web.Status)
		}
		w.settled(before.Status.Node)
	}
}

func (w *world) application(name string) api.Application {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	snap, err := w.site.Running(ctx, name)
	if err != nil {
		w.stuck(err)
	}
	app, _ := site.Application(snap, name)
	return app
}

// planned: the agent stops everything in order, attests it, and the target saw its
// log-out; nobody is fenced while the service may still write.
func planned(w *world) {
	before := w.orders()
	old := w.credentials("orders.data")
	asked := time.Now()
	w.t.Log(w.hotspare("app", "failover", "orders", "--reason", "maintenance"))
	_, record := w.moved(before, asked)
	if record.Evidence != "release" {
		w.t.Errorf("evidence %q, the node was there to release it", record.Evidence)
	}
	w.refused(old)
	w.idle(before.Status.Node)
	w.asker.returned()
}

// nobodyEligible: the pool is empty. The application is reported down with the
// reason for every node, and goes on by itself as soon as a node is there.
func nobodyEligible(w *world) {
	before := w.orders()
	web := w.application("web")
	var spare []string
	for _, n := range w.lab.Nodes() {
		if n.Name != before.Status.Node && n.Name != web.Status.Node {
			spare = append(spare, n.Name)
			w.hotspare("delete", "node", n.Name)
		}
	}
	cut := time.Now()
	w.fail(before.Status.Node, lab.PowerCut, "")
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if _, err := w.site.Until(ctx, "orders down", func(s api.Snapshot) bool {
		app, ok := site.Application(s, "orders")
		return ok && app.Status.Phase == "down"
	}); err != nil {
		w.stuck(err)
	}
	why := w.hotspare("explain", "app", "orders")
	for _, node := range []string{before.Status.Node, web.Status.Node} {
		if !strings.Contains(why, "candidate "+node+": not eligible") {
			w.t.Errorf("no reason for %s:\n%s", node, why)
		}
	}
	w.t.Logf("down, with reasons; adding %v", spare)
	w.hotspare("apply", "-f", "../../examples/nodes.yaml")
	w.moved(before, cut)
}
