package haengine_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
)

func node(name string, change func(*haengine.Node)) haengine.Node {
	n := haengine.Node{
		Name: name, MACs: []string{"52:54:00:77:00:01"}, Pool: "rack1", Arch: "amd64", CPUs: 2, MemoryMiB: 512, DiskGiB: 10, Disk: &haengine.LocalDisk{Serial: "d1"}, Approved: true,
		BMC: haengine.BMC{Protocol: "ipmi", Address: netip.MustParseAddr("10.78.0.11"), User: "admin"},
	}
	if change != nil {
		change(&n)
	}
	return n.WithDefaults()
}

func app(change func(*haengine.Application)) haengine.Application {
	a := haengine.Application{
		Name: "orders", Image: "orders", Pools: []string{"rack1"}, Address: netip.MustParsePrefix("10.77.0.50/24"),
		Monitors: []haengine.Monitor{{Name: "sql", Kind: haengine.MonitorPostgres}},
	}
	if change != nil {
		change(&a)
	}
	return a.WithDefaults()
}

// engine steps a state through events, a second apart.
type engine struct {
	s   haengine.State
	now haengine.Stamp
}

func newEngine(events ...haengine.Event) *engine {
	e := &engine{s: haengine.NewState(haengine.Durable{}), now: haengine.Stamp{At: 1, Wall: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}}
	e.do(append([]haengine.Event{haengine.Restarted{}, haengine.PoolApplied{Pool: haengine.Pool{Name: "rack1"}}}, events...)...)
	return e
}

func (e *engine) do(events ...haengine.Event) (actions []haengine.Action) {
	for _, ev := range events {
		var a []haengine.Action
		e.s, a = haengine.Step(e.s, e.now, ev)
		actions = append(actions, a...)
		e.now.At, e.now.Wall = e.now.At.Add(time.Second), e.now.Wall.Add(time.Second)
	}
	return actions
}

// Every candidate is shown with all rules, and with what it lacks (E2).
func TestPlacementNamesWhatIsMissing(t *testing.T) {
	wants := func(a *haengine.Application) {
		a.Requires = haengine.Requirements{Arch: "amd64", CPUs: 2, MemoryMiB: 512, DiskGiB: 10, Labels: map[string]string{"rack": "b"}}
	}
	good := func(n *haengine.Node) { n.Labels = map[string]string{"rack": "b"} }
	for _, c := range []struct {
		name    string
		node    func(*haengine.Node)
		nearest string // "" when eligible
	}{
		{"fits", good, ""},
		{"not approved", func(n *haengine.Node) { good(n); n.Approved = false }, "approve it"},
		{"another pool", func(n *haengine.Node) { good(n); n.Pool = "rack2" }, "it is in pool rack2"},
		{"another architecture", func(n *haengine.Node) { good(n); n.Arch = "arm64" }, "it is arm64"},
		{"too few CPUs", func(n *haengine.Node) { good(n); n.CPUs = 1 }, "1 CPU short"},
		{"too little memory", func(n *haengine.Node) { good(n); n.MemoryMiB = 400 }, "112 MiB short"},
		{"too little disk", func(n *haengine.Node) { good(n); n.DiskGiB = 2 }, "8 GiB short"},
		{"no label", nil, "label it rack=b"},
		{"two things", func(n *haengine.Node) { good(n); n.CPUs, n.MemoryMiB = 1, 500 }, "1 CPU short, 12 MiB short"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := newEngine(haengine.NodeApplied{Node: node("n7", c.node)}, haengine.AppApplied{Application: app(wants)})
			f := e.s.Durable.Failovers[1]
			if f == nil || len(f.Candidates) != 1 {
				t.Fatalf("failover: %+v", f)
			}
			got := f.Candidates[0]
			if got.Eligible != (c.nearest == "") || c.nearest != "" && got.Nearest != "n7: "+c.nearest {
				t.Errorf("eligible %v, nearest %q, want %q", got.Eligible, got.Nearest, c.nearest)
			}
			if len(got.Rules) < 12 {
				t.Errorf("%d rules are shown, all are wanted", len(got.Rules))
			}
			if a := e.s.Durable.Apps["orders"]; (a.Phase == haengine.PhaseDown) == got.Eligible {
				t.Errorf("phase %s", a.Phase)
			}
		})
	}
}

// The best node is the one in the preferred pool, known to be off, with the
// least to spare.
func TestPlacementOrder(t *testing.T) {
	e := newEngine(
		haengine.FreezeSet{By: "ann", Reason: "set-up"},
		haengine.PoolApplied{Pool: haengine.Pool{Name: "rack2"}},
		haengine.NodeApplied{Node: node("big", func(n *haengine.Node) { n.MemoryMiB = 4096 })},
		haengine.NodeApplied{Node: node("on", nil)},
		haengine.NodeApplied{Node: node("unread", nil)},
		haengine.NodeApplied{Node: node("far", func(n *haengine.Node) { n.Pool = "rack2" })},
		haengine.NodeApplied{Node: node("fit", nil)},
		haengine.PowerRead{Node: "big", State: haengine.PowerIsOff},
		haengine.PowerRead{Node: "on", State: haengine.PowerIsOn},
		haengine.PowerRead{Node: "far", State: haengine.PowerIsOff},
		haengine.PowerRead{Node: "fit", State: haengine.PowerIsOff},
		haengine.AppApplied{Application: app(func(a *haengine.Application) { a.Pools = []string{"rack1", "rack2"} })},
		haengine.FreezeLifted{By: "ann"},
	)
	var got []string
	for _, c := range e.s.Durable.Failovers[1].Candidates {
		got = append(got, c.Node)
	}
	if want := []string{"fit", "big", "on", "unread", "far"}; !reflect.DeepEqual(got, want) {
		t.Errorf("tried in the order %v, want %v", got, want)
	}
}

// A grant that is unknown to the state, but not to the storage, is excluded like
// any other before the next one is used.
func TestHigherEpochOfTheStorageWins(t *testing.T) {
	e := newEngine(haengine.NodeApplied{Node: node("n1", nil)}, haengine.NodeApplied{Node: node("n2", nil)}, haengine.AppApplied{Application: app(nil)})
	actions := e.do(haengine.EpochFloor{App: "orders", Epoch: 41})
	a := e.s.Durable.Apps["orders"]
	if a.Epoch != 42 || a.Phase != haengine.PhaseFencing {
		t.Fatalf("epoch %d, %s", a.Epoch, a.Phase)
	}
	var revoke *haengine.Revoke
	for _, x := range actions {
		switch x := x.(type) {
		case haengine.Revoke:
			revoke = &x
		case haengine.Attach, haengine.Boot, haengine.Claim:
			t.Errorf("%s before the unknown holder is excluded", x.Kind())
		}
	}
	if revoke == nil || revoke.Below != 42 {
		t.Fatalf("revocation: %+v", revoke)
	}
	e.do(haengine.Done{ID: revoke.ID, Revocation: &haengine.Revocation{Below: 42}})
	bound := (a.Spec.Policy.Lease + a.Spec.Policy.DropBound + a.Spec.Policy.Margin).D()
	for e.do(haengine.Tick{}); e.s.Durable.Apps["orders"].Phase == haengine.PhaseFencing; e.do(haengine.Tick{}) {
		if e.now.At > haengine.Instant(10*time.Minute) {
			t.Fatal("never excluded")
		}
	}
	if waited := e.now.At.Sub(a.Old[len(a.Old)-1].ClaimedAt.At); waited < bound {
		t.Errorf("the holder was taken for gone after %s, the bound is %s", waited, bound)
	}
	if g := e.s.Durable.Apps["orders"].Grant; g == nil || g.Epoch < 42 {
		t.Errorf("granted: %+v", g)
	}
}

// An epoch is not used again when an application of the same name comes back.
func TestEpochsOutliveTheirApplication(t *testing.T) {
	e := newEngine(haengine.AppApplied{Application: app(nil)}, haengine.AppDeleted{Name: "orders", By: "bob"}, haengine.Tick{})
	if e.s.Durable.Apps["orders"] != nil {
		t.Fatal("still there")
	}
	e.do(haengine.NodeApplied{Node: node("n1", nil)}, haengine.AppApplied{Application: app(nil)})
	first := e.s.Durable.Apps["orders"].Grant.Epoch
	e.do(haengine.AppDeleted{Name: "orders", By: "bob"})
	for range 60 {
		for id, p := range e.s.Durable.Pending {
			switch a := p.Action.(type) {
			case haengine.PowerOff:
				off := haengine.PowerReading{State: haengine.PowerIsOff}
				e.do(haengine.Done{ID: id, Power: &haengine.PowerEvidence{Reads: []haengine.PowerReading{off, off}}})
			case haengine.Revoke:
				e.do(haengine.Done{ID: id, Revocation: &haengine.Revocation{Below: a.Below}})
			default:
				e.do(haengine.Done{ID: id})
			}
		}
		e.do(haengine.Tick{})
	}
	if e.s.Durable.Apps["orders"] != nil {
		t.Fatalf("not removed: %+v", e.s.Durable.Apps["orders"])
	}
	e.do(haengine.AppApplied{Application: app(nil)})
	if g := e.s.Durable.Apps["orders"].Grant; g == nil || g.Epoch <= first {
		t.Errorf("granted %+v after epoch %d", g, first)
	}
}

func TestPowerEvidenceIsProvenByTwoReadsAtTheEnd(t *testing.T) {
	on, off, odd := haengine.PowerReading{State: haengine.PowerIsOn}, haengine.PowerReading{State: haengine.PowerIsOff}, haengine.PowerReading{State: haengine.PowerUnknown}
	for _, c := range []struct {
		reads []haengine.PowerReading
		want  bool
	}{
		{nil, false},
		{[]haengine.PowerReading{off}, false},
		{[]haengine.PowerReading{off, off}, true},
		{[]haengine.PowerReading{on, off, off}, true},
		{[]haengine.PowerReading{off, off, on}, false},
		{[]haengine.PowerReading{off, on, off}, false},
		{[]haengine.PowerReading{off, off, odd}, false},
		{[]haengine.PowerReading{off, odd, off}, false},
	} {
		if got := (haengine.PowerEvidence{Reads: c.reads}).Proven(); got != c.want {
			t.Errorf("%v: %v", c.reads, got)
		}
	}
}

// What comes out of the journal is what went in, for every kind of action.
func TestPendingActionsSurviveTheirEncoding(t *testing.T) {
	o := haengine.Order{ID: 7, App: "orders", Node: "n1", Epoch: 3}
	for _, a := range []haengine.Action{
		haengine.ReadPower{Order: o}, haengine.PowerOff{Order: o, Turn: 4}, haengine.Revoke{Order: o, Below: 3},
		haengine.Attach{Order: o, Spec: app(nil), Way: haengine.WayColdISCSI}, haengine.Boot{Order: o, Turn: 4, Way: haengine.WayColdISCSI, Image: "orders"},
		haengine.Claim{Order: o, BootID: "b", Spec: app(nil)}, haengine.Install{Order: o, BootID: "b", Image: "orders"},
		haengine.ParkNode{Order: o, Turn: 4, Image: "orders"}, haengine.Preload{Order: o, BootID: "b", Images: []string{"orders"}},
		haengine.DisableCopies{Order: o, BootID: "b", Apps: []string{"orders"}}, haengine.Release{Order: o, BootID: "b"},
		haengine.ProbeAddress{Order: o, Address: netip.MustParsePrefix("10.77.0.50/24")}, haengine.ReturnNode{Order: o, Turn: 4},
		haengine.CancelBoot{Order: o}, haengine.DeleteRoot{Order: o}, haengine.Notify{Order: o, Notice: haengine.Notice{Incident: "x", Text: "y"}},
	} {
		in := haengine.Pending{Action: a, Tries: 2, Waiting: true, NotBefore: 9, Failover: 1}
		b, err := json.Marshal(&in)
		if err != nil {
			t.Fatal(err)
		}
		var out haengine.Pending
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(in, out) {
			t.Errorf("%s: %+v became %+v", a.Kind(), in, out)
		}
	}
	var p haengine.Pending
	if err := json.Unmarshal([]byte(`{"kind":"launch-rocket","action":{}}`), &p); err == nil {
		t.Error("an unknown action was read")
	}
}

func TestValidateSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*haengine.Application)
		what   string // "" when it is right
	}{
		{"as it is", nil, ""},
		{"upper case", func(a *haengine.Application) { a.Name = "Orders" }, "name"},
		{"a path", func(a *haengine.Application) { a.Name = "../x" }, "name"},
		{"no image", func(a *haengine.Application) { a.Image = "" }, "image"},
		{"no pools", func(a *haengine.Application) { a.Pools = nil }, "pools"},
		{"no address", func(a *haengine.Application) { a.Address = netip.Prefix{} }, "address"},
		{"volume named root", func(a *haengine.Application) { a.Volumes = []haengine.Volume{{Name: "root", SizeMiB: 1}} }, "volumes"},
		{"empty volume", func(a *haengine.Application) { a.Volumes = []haengine.Volume{{Name: "data"}} }, "sizeMiB"},
		{"strange format", func(a *haengine.Application) {
			a.Volumes = []haengine.Volume{{Name: "data", SizeMiB: 1, Format: "ntfs"}}
		}, "format"},
		{"mount of nothing", func(a *haengine.Application) {
			a.Resources = []haengine.Resource{{Name: "data", Kind: haengine.ResourceMount, Target: "/srv"}}
		}, "volume"},
		{"mount over root", func(a *haengine.Application) {
			a.Resources = []haengine.Resource{{Name: "data", Kind: haengine.ResourceMount, Target: "/"}}
		}, "target"},
		{"after a later one", func(a *haengine.Application) {
			a.Resources = []haengine.Resource{{Name: "a", Kind: haengine.ResourceAddress, After: []string{"b"}}, {Name: "b", Kind: haengine.ResourceAddress}}
		}, "after"},
		{"unit of two words", func(a *haengine.Application) {
			a.Resources = []haengine.Resource{{Name: "a", Kind: haengine.ResourceSystemd, Unit: "a b.service"}}
		}, "unit"},
		{"unknown monitor", func(a *haengine.Application) { a.Monitors[0].Kind = "smell" }, "kind"},
		{"short lease", func(a *haengine.Application) { a.Policy.Lease = haengine.Duration(time.Second) }, "lease"},
		{"unknown evidence", func(a *haengine.Application) { a.Policy.Evidence = []haengine.EvidenceKind{"hope"} }, "evidence"},
		{"unknown way", func(a *haengine.Application) { a.Policy.Ways = []haengine.Way{"teleport"} }, "ways"},
		{"a way twice", func(a *haengine.Application) {
			a.Policy.Ways = []haengine.Way{haengine.WayRAM, haengine.WayRAM}
		}, "ways"},
		{"an order without ways", func(a *haengine.Application) { a.Policy.WayOrder = haengine.OrderListed }, "wayOrder"},
		{"an outage longer than the lease", func(a *haengine.Application) {
			a.Policy.TolerateOutage = haengine.Duration(2 * time.Minute)
		}, "lease"}, // app has the default lease already
		{"an outage without self-fencing", func(a *haengine.Application) {
			a.Policy.TolerateOutage, a.Policy.Evidence = haengine.Duration(2*time.Minute), []haengine.EvidenceKind{haengine.EvidencePower}
		}, ""},
		{"unknown previous", func(a *haengine.Application) { a.Policy.Previous = "burn" }, "previous"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := app(nil)
			if c.change != nil {
				c.change(&a)
			}
			err := a.Validate()
			var e *hotspare.Error
			switch {
			case c.what == "" && err != nil:
				t.Error(err)
			case c.what != "" && (!errors.As(err, &e) || e.Code != hotspare.CodeInvalid || !strings.Contains(e.What, c.what) || e.Fix == ""):
				t.Errorf("%v, want something about %q and a mend", err, c.what)
			}
		})
	}
	if p := (haengine.Policy{TolerateOutage: haengine.Duration(2 * time.Minute)}).WithDefaults(); p.Lease <= p.TolerateOutage {
		t.Errorf("a tolerated outage of %s makes a lease of %s", p.TolerateOutage, p.Lease)
	}
	for what, s := range map[string]haengine.Standby{
		"negative": {Nodes: -1}, "powerBudget": {Nodes: 3, PowerBudget: 2}, "twice": {Nodes: 1, For: []string{"a", "a"}}, "name": {For: []string{"../x"}},
	} {
		var e *hotspare.Error
		if err := (haengine.Pool{Name: "rack1", Standby: &s}).Validate(); !errors.As(err, &e) || !strings.Contains(e.What+e.Why+e.Fix, what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, change := range map[string]func(*haengine.Node){
		"macs": func(n *haengine.Node) { n.MACs = []string{"5254.0077.0001"} }, "pool": func(n *haengine.Node) { n.Pool = "" },
		"arch": func(n *haengine.Node) { n.Arch = "vax" }, "cpus": func(n *haengine.Node) { n.CPUs = 0 },
		"bmc.address": func(n *haengine.Node) { n.BMC.Address = netip.Addr{} }, "bmc.cipherSuite": func(n *haengine.Node) { n.BMC.CipherSuite = 1 },
	} {
		if err := node("n1", change).Validate(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
