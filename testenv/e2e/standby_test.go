package e2e

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"hotspare/testenv/lab"
)

// pool applies the pool's document with this standby policy.
func (w *world) pool(standby string) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "pool.yaml")
	if err := os.WriteFile(path, []byte("kind: pool\nname: rack1\n"+standby), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.hotspare("apply", "-f", path)
}

// parked waits until a node of the pool waits in standby with all that orders
// needs, and gives its name.
func (w *world) parked() string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	begun := time.Now()
	name, err := w.site.Parked(ctx)
	if err != nil {
		w.stuck(err)
	}
	w.t.Logf("%s is in standby after %.1f s", name, time.Since(begun).Seconds())
	return name
}

// fromStandby: the spare is past its firmware and runs the database's kernel
// already, so it becomes the database without a boot.
func fromStandby(w *world) {
	w.pool("standby: {nodes: 1, for: [orders]}\n")
	spare := w.parked()
	before := w.orders()
	cut := time.Now()
	w.fail(before.Status.Node, lab.PowerCut, "")
	after, record := w.moved(before, cut)
	if record.Way != "standby-switch" || after.Status.Node != spare {
		w.t.Errorf("it went to %s by %s, %s was in standby for it", after.Status.Node, record.Way, spare)
	}
	w.settled(before.Status.Node)
}

// fromStandbyByKexec: web's kernel is another than the one that the spare waits
// on, so the spare executes it, past its firmware all the same.
func fromStandbyByKexec(w *world) {
	w.pool("standby: {nodes: 1, for: [orders]}\n")
	spare := w.parked()
	before := w.application("web")
	w.hotspare("app", "failover", "web", "--to", spare)
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	after, record, err := w.site.Moved(ctx, "web", before.Status.Epoch)
	if err != nil {
		w.stuck(err)
	}
	if record.Way != "standby-kexec" || after.Status.Node != spare {
		w.t.Errorf("web went to %s by %s, asked for was %s", after.Status.Node, record.Way, spare)
	}
	w.t.Logf("web moved to %s by %s; phases %v", after.Status.Node, record.Way, record.Seconds)
}

// restartedAsAnnounced stops the appliance politely, for longer than a lease and a
// drop take: the nodes got longer leases before, so both applications go on.
func restartedAsAnnounced(w *world) {
	before, web := w.orders(), w.application("web")
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if err := w.site.Stop(ctx); err != nil {
		w.t.Fatal(err)
	}
	away := 45 * time.Second // the lease is 15 s
	w.t.Logf("the appliance is away for %s", away)
	time.Sleep(away)
	w.startAppliance()
	w.running()
	if _, err := w.client.AckAfter(ctx, time.Now()); err != nil {
		w.stuck(err)
	}
	if after := w.orders(); after.Status.Epoch != before.Status.Epoch || after.Status.Node != before.Status.Node {
		w.t.Errorf("orders moved: %+v, was %+v", after.Status, before.Status)
	}
	if after := w.application("web"); after.Status.Epoch != web.Status.Epoch || after.Status.Node != web.Status.Node {
		w.t.Errorf("web moved: %+v, was %+v", after.Status, web.Status)
	}
	w.wholeAndAlone()
	w.asker.returned()
}
