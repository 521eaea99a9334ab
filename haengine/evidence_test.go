package haengine_test

import (
	"math"
	"testing"
	"time"

	"hotspare/haengine"
)

// An epoch that cannot be is nobody's grant: it changes no application, and the
// one whose agent claims it gets no lease. An epoch never wraps to 0 (S4).
func TestAnEpochThatCannotBeIsNotBelieved(t *testing.T) {
	for _, wild := range []haengine.Epoch{haengine.MaxEpoch + 1, math.MaxUint64 - 1, math.MaxUint64} {
		b := newBench(t, 2)
		b.up(app(nil))
		b.event(haengine.Heartbeat{Node: "n2", BootID: "x", App: "orders", Epoch: wild})
		if ok, _ := haengine.LeaseAllowed(b.s, "n2", "x", "orders", wild); ok {
			t.Errorf("epoch %d got a lease", wild)
		}
		if !b.incident("node/n2/epoch") {
			t.Errorf("nobody was told of epoch %d: %v", wild, b.s.Durable.Incidents)
		}
		b.event(haengine.EpochFloor{App: "orders", Epoch: wild})
		b.pass(time.Minute, b.good)
		if a := b.app(); a.Epoch != 1 || a.Phase != haengine.PhaseRunning {
			t.Errorf("after epoch %d: epoch %d, %s", wild, a.Epoch, a.Phase)
		}
		if !b.incident("app/orders/epoch") {
			t.Errorf("nobody was told of the storage's epoch %d", wild)
		}
	}
}

// A heartbeat is believed as far as a restored state can lag behind; from there
// on only the storage is.
func TestAHeartbeatIsBelievedAsFarAsAStateCanLag(t *testing.T) {
	for _, c := range []struct {
		ahead haengine.Epoch
		want  bool
	}{{1, true}, {50, true}, {haengine.MaxLag, true}, {haengine.MaxLag + 1, false}, {1 << 40, false}} {
		b := newBench(t, 2)
		b.up(app(nil))
		b.event(haengine.Heartbeat{Node: "n2", BootID: "x", App: "orders", Epoch: 1 + c.ahead})
		if got := b.app().Epoch > 1; got != c.want {
			t.Errorf("%d ahead: believed %v", c.ahead, got)
		}
	}
	b := newBench(t, 2)
	b.up(app(nil))
	b.event(haengine.EpochFloor{App: "orders", Epoch: 1 << 40})
	if a := b.app(); a.Epoch != 1<<40+1 {
		t.Errorf("the storage's word gave epoch %d", a.Epoch)
	}
}

// An orderly release is evidence only when the target had no session of the
// data volumes left to close (S2.6); a revocation that was tried twice cannot
// say what its first try closed.
func TestAReleaseCountsOnlyAfterTheLogOut(t *testing.T) {
	for _, c := range []struct {
		name     string
		sessions int
		tries    int
		want     bool
	}{{"logged out", 0, 1, true}, {"a session was left", 1, 1, false}, {"tried twice", 0, 2, false}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, 2)
			b.up(app(nil))
			b.keep["revoke"], b.keep["power-off n1"] = true, true
			b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann"})
			b.pass(10*time.Second, nil)
			old := func() *haengine.Grant { return &b.app().Old[0] }
			if !old().Exclusion.Released || old().Exclusion.Proof != nil {
				t.Fatalf("after the release: %+v", old().Exclusion)
			}
			seen := 0
			for range c.tries {
				b.pass(time.Minute/2, nil)
				var last haengine.Revoke
				n := 0
				for _, a := range b.all {
					if r, is := a.(haengine.Revoke); is {
						last, n = r, n+1
					}
				}
				if n == seen {
					t.Fatal("the revocation was not ordered again")
				}
				if seen = n; n < c.tries {
					b.event(haengine.Failed{ID: last.ID, Why: "lost", Transient: true})
					continue
				}
				b.event(haengine.Done{ID: last.ID, Revocation: &haengine.Revocation{Below: last.Below, Sessions: c.sessions}})
			}
			b.event(haengine.Tick{})
			p := old().Exclusion.Proof
			if got := p != nil && p.Kind == haengine.EvidenceRelease; got != c.want {
				t.Fatalf("release evidence: %v (%+v)", got, p)
			}
			if c.want {
				return
			}
			if a := b.app(); a.Grant.Attached {
				t.Fatalf("%s goes on without evidence", a.Phase)
			}
			delete(b.keep, "power-off n1") // the node left is fenced all the same
			for _, a := range b.all {
				if a.Kind() == "power-off" && a.Head().Node == "n1" {
					b.answer(a)
				}
			}
			if p := old().Exclusion.Proof; p == nil || p.Kind != haengine.EvidencePower {
				t.Errorf("after the power fence: %+v", p)
			}
		})
	}
}

// The service address is asked again when the agent has joined: what was silent
// before the boot may answer now (S2).
func TestTheAddressIsAskedAgainBeforeTheClaim(t *testing.T) {
	b := newBench(t, 1)
	b.perform()
	b.event(haengine.AppApplied{Application: app(nil)})
	b.pass(5*time.Second, nil)
	if n := b.count("probe-address", ""); n != 1 {
		t.Fatalf("asked %d times before the join", n)
	}
	b.keep["probe-address"] = true
	b.join()
	if n := b.count("claim", ""); n != 0 {
		t.Fatal("claimed on the word of a probe from before the boot")
	}
	if n := b.count("probe-address", ""); n != 2 {
		t.Fatalf("asked %d times in all", n)
	}
	last := b.all[len(b.all)-1]
	b.event(haengine.Done{ID: last.Head().ID, Address: &haengine.AddressProbe{By: "52:54:00:aa:aa:aa"}})
	if a := b.app(); a.Phase != haengine.PhaseBlocked {
		t.Errorf("the address answers and it is %s", a.Phase)
	}
	delete(b.keep, "probe-address")
	b.pass(10*time.Second, nil)
	if n := b.count("claim", ""); n != 1 {
		t.Errorf("claimed %d times after the address fell silent: %s", n, b.app().Phase)
	}
}

// A freeze of the pool of the node left holds the revocation too (S9).
func TestAFrozenPoolHoldsTheRevocation(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	b.keep["release"] = true
	b.event(haengine.FailoverRequested{App: "orders", To: "n2", By: "ann"})
	b.event(haengine.FreezeSet{Scope: haengine.Scope{Pool: "rack1"}, By: "ann", Reason: "switch maintenance"})
	for _, a := range b.all {
		if a.Kind() == "release" {
			b.event(haengine.Done{ID: a.Head().ID})
		}
	}
	b.pass(time.Minute, nil)
	if n := b.count("revoke", ""); n != 0 {
		t.Error("revoked while the pool is frozen")
	}
	b.event(haengine.FreezeLifted{Scope: haengine.Scope{Pool: "rack1"}, By: "ann"})
	b.pass(10*time.Second, nil)
	if n := b.count("revoke", ""); n == 0 {
		t.Error("not revoked after the freeze was lifted")
	}
}

// Leases of grants that are over are forgotten when nothing waits for them.
func TestOldLeasesAreForgotten(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	for i := range 4 {
		to := []string{"n2", "n1"}[i%2]
		b.event(haengine.FailoverRequested{App: "orders", To: to, By: "ann"})
		b.pass(10*time.Second, nil)
		b.join()
		b.pass(30*time.Second, b.good)
		if a := b.app(); a.Phase != haengine.PhaseRunning || a.Grant.Node != to {
			t.Fatalf("%s %q on %+v", a.Phase, a.Reason, a.Grant)
		}
	}
	if n := len(b.s.Soft.Leases); n != 1 {
		t.Errorf("%d leases are remembered: %v", n, b.s.Soft.Leases)
	}
}

// A boot joins for one grant: the old boot of a node that its BMC took for off
// is not the next application's, though their epochs may be equal (S2, S12).
func TestAnOldBootDoesNotJoinForTheNextGrant(t *testing.T) {
	b := newBench(t, 1)
	b.perform()
	b.event(haengine.AppApplied{Application: app(nil)})
	b.pass(2*time.Second, nil)
	b.join()
	b.event(haengine.Dropped{Node: "n1", BootID: "n1-boot1", App: "orders", Epoch: 1, Why: "exit status 1"})
	b.pass(5*time.Second, nil)
	b.event(haengine.AppApplied{Application: app(func(a *haengine.Application) { a.Name, a.Image = "web", "web" })})
	b.event(haengine.Unquarantine{Node: "n1", By: "ann"})
	b.keep["boot"] = true
	b.pass(5*time.Second, nil)
	for _, name := range []string{"orders", "web"} {
		a := b.s.Durable.Apps[name]
		if a.Grant == nil || !a.Grant.Booted {
			continue
		}
		b.event(haengine.Joined{Node: "n1", BootID: "n1-boot1", App: "orders", Epoch: a.Grant.Epoch})
		if g := b.s.Durable.Apps[name].Grant; g.BootID != "" {
			t.Errorf("%s took the old boot for its own: %+v", name, g)
		}
		return
	}
	t.Fatal("nothing boots")
}
