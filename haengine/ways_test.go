package haengine_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"hotspare/haengine"
)

func image(change func(*haengine.ImageFacts)) haengine.ImageSeen {
	f := haengine.ImageFacts{Ref: "orders", Image: "orders:7", Arch: "amd64", Kernel: "6.1-orders", Ways: haengine.Ways()}
	if change != nil {
		change(&f)
	}
	return haengine.ImageSeen{Image: f}
}

// parkOn brings a node into standby on a kernel; the pool's policy asked for it.
func (b *bench) parkOn(node, kernel string, facts haengine.NodeFacts, copies ...haengine.LocalCopy) {
	b.t.Helper()
	n := b.s.Durable.Nodes[node]
	if n.Park == nil {
		b.t.Fatalf("%s was not ordered into standby: %+v", node, n)
	}
	b.pow[node] = haengine.PowerIsOn
	b.event(haengine.Parked{Node: node, BootID: node + "-parked", Turn: n.Park.Turn, Kernel: kernel, Facts: &facts, Copies: copies})
	b.perform()
}

// hears is a second in which the parked boots speak.
func (b *bench) hears(nodes ...string) func() {
	return func() {
		b.good()
		for _, n := range nodes {
			b.event(haengine.Heartbeat{Node: n, BootID: n + "-parked"})
		}
	}
}

func standby(nodes int) haengine.PoolApplied {
	return haengine.PoolApplied{Pool: haengine.Pool{Name: "rack1", Standby: &haengine.Standby{Nodes: nodes}}}
}

// ready has orders running on n1, and n2 in standby.
func ready(t *testing.T, kernel string, facts haengine.NodeFacts, change func(*haengine.Application), copies ...haengine.LocalCopy) *bench {
	t.Helper()
	return readyOn(newBench(t, 2), kernel, facts, change, copies...)
}

func readyOn(b *bench, kernel string, facts haengine.NodeFacts, change func(*haengine.Application), copies ...haengine.LocalCopy) *bench {
	b.t.Helper()
	b.event(image(nil))
	b.up(app(change))
	b.event(standby(1))
	b.pass(10*time.Second, b.good)
	b.parkOn("n2", kernel, facts, copies...)
	b.pass(2*time.Second, b.hears("n2"))
	return b
}

func choice(b *bench, node string, way haengine.Way) haengine.WayChoice {
	for _, c := range haengine.Candidates(b.s, "orders") {
		if c.Node != node {
			continue
		}
		for _, w := range c.Ways {
			if w.Way == way {
				return w
			}
		}
	}
	b.t.Fatalf("%s is not weighed on %s", way, node)
	return haengine.WayChoice{}
}

// Every way is shown for every node, with why it is not possible (E2).
func TestEachWaySaysWhyNot(t *testing.T) {
	kexec := haengine.NodeFacts{Kexec: true, Disk: true}
	copyOf := func(state haengine.CopyState, slot string) haengine.LocalCopy {
		return haengine.LocalCopy{App: "orders", Image: "orders:7", Slot: slot, State: state}
	}
	listed := func(ways ...haengine.Way) func(*haengine.Application) {
		return func(a *haengine.Application) {
			a.Policy.Ways = append([]haengine.Way{haengine.WayColdISCSI}, ways...)
		}
	}
	for _, c := range []struct {
		name   string
		way    haengine.Way
		kernel string
		facts  haengine.NodeFacts
		change func(*haengine.Application)
		copies []haengine.LocalCopy
		want   string // "" when it is possible
	}{
		{"same kernel", haengine.WayStandbySwitch, "6.1-orders", kexec, nil, nil, ""},
		{"another kernel", haengine.WayStandbySwitch, "5.10", kexec, nil, nil, "parked on kernel 5.10, the image has 6.1-orders"},
		{"kexec", haengine.WayStandbyKexec, "5.10", kexec, nil, nil, ""},
		{"locked down", haengine.WayStandbyKexec, "5.10", haengine.NodeFacts{NoKexec: "lockdown"}, nil, nil, "lockdown"},
		{"from off", haengine.WayColdISCSI, "5.10", kexec, nil, nil, ""},
		{"no agent by default", haengine.WayColdSAN, "5.10", kexec, nil, nil, "the policy has to list it"},
		{"no agent, listed", haengine.WayColdSAN, "5.10", kexec, listed(haengine.WayColdSAN), nil, ""},
		{"no agent, no power evidence", haengine.WayColdSAN, "5.10", kexec, func(a *haengine.Application) {
			a.Policy.Ways = []haengine.Way{haengine.WayColdISCSI, haengine.WayColdSAN}
			a.Policy.Evidence = []haengine.EvidenceKind{haengine.EvidenceStorage}
		}, nil, "has to accept power evidence"},
		{"no agent, and volumes", haengine.WayColdSAN, "5.10", kexec, func(a *haengine.Application) {
			listed(haengine.WayColdSAN)(a)
			a.Volumes = []haengine.Volume{{Name: "data", SizeMiB: 64}}
		}, nil, "no agent is there to attach"},
		{"ram by default", haengine.WayRAM, "5.10", kexec, nil, nil, "the policy has to list it"},
		{"ram", haengine.WayRAM, "5.10", kexec, listed(haengine.WayRAM), nil, ""},
		{"install by default", haengine.WayInstall, "5.10", kexec, nil, nil, "it writes to a local disk"},
		{"install", haengine.WayInstall, "5.10", kexec, listed(haengine.WayInstall), nil, ""},
		{"install without a disk", haengine.WayInstall, "5.10", haengine.NodeFacts{Kexec: true, NoDisk: "none found"}, listed(haengine.WayInstall), nil, "none found"},
		{"no copy", haengine.WaySlot, "5.10", kexec, listed(haengine.WaySlot), nil, "no local disk of it holds orders:7"},
		{"a copy", haengine.WaySlot, "5.10", kexec, listed(haengine.WaySlot), []haengine.LocalCopy{copyOf(haengine.CopyReady, "A")}, ""},
		{"a copy that was started", haengine.WaySlot, "5.10", kexec, listed(haengine.WaySlot), []haengine.LocalCopy{copyOf(haengine.CopyStarted, "A")}, "no local disk"},
		{"a half-written copy", haengine.WaySlot, "5.10", kexec, listed(haengine.WaySlot), []haengine.LocalCopy{copyOf(haengine.CopyWriting, "A")}, "no local disk"},
		{"not listed", haengine.WayStandbyKexec, "5.10", kexec, listed(haengine.WayRAM), nil, "the policy does not list it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, 2)
			b.keep["install"] = true // the disk stays as it is
			readyOn(b, c.kernel, c.facts, c.change, c.copies...)
			got := choice(b, "n2", c.way)
			if got.OK != (c.want == "") || !strings.Contains(got.Text, c.want) {
				t.Errorf("%s: possible %v: %s; want %q", c.way, got.OK, got.Text, c.want)
			}
		})
	}
}

// Nothing but a cold start is possible with an image of which nothing is known: a
// state of an earlier version goes on as it was.
func TestAnUnknownImageStartsCold(t *testing.T) {
	b := newBench(t, 2)
	b.up(app(nil))
	if w := b.app().Grant.Way; w != haengine.WayColdISCSI {
		t.Errorf("started as %s", w)
	}
}

// The way whose measured time is the shortest is tried first, whatever was
// assumed; a policy that lists ways has its own order.
func TestWaysAreRankedByMeasuredTime(t *testing.T) {
	for _, c := range []struct {
		name  string
		kexec time.Duration
		cold  time.Duration
		ways  []haengine.Way
		order haengine.WayOrder
		want  haengine.Way
	}{
		{"assumed", 0, 0, nil, "", haengine.WayStandbySwitch},
		{"kexec measured", 10 * time.Second, 20 * time.Second, []haengine.Way{haengine.WayColdISCSI, haengine.WayStandbyKexec}, haengine.OrderMeasured, haengine.WayStandbyKexec},
		{"cold measured faster", 40 * time.Second, 20 * time.Second, []haengine.Way{haengine.WayStandbyKexec, haengine.WayColdISCSI}, haengine.OrderMeasured, haengine.WayColdISCSI},
		{"as listed", 40 * time.Second, 20 * time.Second, []haengine.Way{haengine.WayStandbyKexec, haengine.WayColdISCSI}, "", haengine.WayStandbyKexec},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := ready(t, "6.1-orders", haengine.NodeFacts{Model: "r640", Kexec: true}, func(a *haengine.Application) {
				a.Policy.Ways, a.Policy.WayOrder = c.ways, c.order
			})
			b.s.Durable.Times = map[string]*haengine.Measured{}
			for way, d := range map[haengine.Way]time.Duration{haengine.WayStandbyKexec: c.kexec, haengine.WayColdISCSI: c.cold} {
				if d > 0 {
					// The median counts, not the last or the mean.
					last := []haengine.Duration{haengine.Duration(d), haengine.Duration(time.Hour), haengine.Duration(d), haengine.Duration(time.Millisecond), haengine.Duration(d)}
					b.s.Durable.Times["orders|r640|"+string(way)] = &haengine.Measured{App: "orders", Model: "r640", Way: string(way), Last: last}
				}
			}
			cands := haengine.Candidates(b.s, "orders")
			i := slices.IndexFunc(cands, func(x haengine.Candidate) bool { return x.Node == "n2" })
			if got := cands[i].Way; got != c.want {
				t.Errorf("%s first, want %s: %+v", got, c.want, cands[i].Ways)
			}
		})
	}
}

// What a start took is kept, per application, model and way, and only the last few.
func TestStartsAreMeasured(t *testing.T) {
	b := newBench(t, 2)
	b.event(image(nil))
	b.up(app(nil))
	for i := range 7 {
		b.event(haengine.FailoverRequested{App: "orders", To: []string{"n2", "n1"}[i%2], By: "ann"})
		b.pass(10*time.Second, nil)
		b.join()
		b.pass(30*time.Second, b.good)
	}
	m := b.s.Durable.Times["orders|n2|cold-iscsi"]
	if m == nil || len(m.Last) != 4 || slices.ContainsFunc(m.Last, func(d haengine.Duration) bool { return d <= 0 || d.D() > 30*time.Second }) {
		t.Errorf("measured on n2: %+v", m)
	}
	b.event(haengine.AppDeleted{Name: "orders", By: "ann"})
	b.pass(2*time.Minute, nil)
	if b.app() == nil && len(b.s.Durable.Times) > 0 {
		t.Errorf("times of a removed application: %v", b.s.Durable.Times)
	}
}

// A start from standby that fails is held against the way: the node is tried in
// the next way at once, under another epoch, and not quarantined.
func TestAFailedKexecFallsBackOnTheSameNode(t *testing.T) {
	b := ready(t, "5.10", haengine.NodeFacts{Kexec: true}, func(a *haengine.Application) {
		a.Policy.Ways = []haengine.Way{haengine.WayStandbyKexec, haengine.WayColdISCSI}
	})
	b.keep["boot n2"] = true
	b.pow["n1"] = haengine.PowerIsOff
	parked := func() { b.event(haengine.Heartbeat{Node: "n2", BootID: "n2-parked"}) }
	b.pass(8*time.Second, parked)
	last := b.all[slices.IndexFunc(b.all, func(a haengine.Action) bool { return a.Kind() == "boot" && a.Head().Epoch == 2 })].(haengine.Boot)
	if last.Way != haengine.WayStandbyKexec || last.BootID != "n2-parked" {
		t.Fatalf("booted %+v", last)
	}
	delete(b.keep, "boot n2")
	b.event(haengine.Failed{ID: last.ID, Why: "kexec_file_load: operation not permitted"})
	b.perform()
	g := b.app().Grant
	if g == nil || g.Epoch != 3 || g.Way != haengine.WayColdISCSI || g.From != "" || g.Node != "n2" {
		t.Fatalf("%s %q: granted %+v", b.app().Phase, b.app().Reason, g)
	}
	if n := b.s.Durable.Nodes["n2"]; n.Phase == haengine.NodeQuarantined || n.Then == haengine.NodeQuarantined {
		t.Errorf("n2 is %s, then %s", n.Phase, n.Then)
	}
	old := b.app().Old[len(b.app().Old)-1]
	if old.Exclusion.Proof == nil || old.Exclusion.Proof.Kind != haengine.EvidencePower {
		b.pass(3*time.Second, nil)
		old = b.app().Old[len(b.app().Old)-1]
	}
	if p := old.Exclusion.Proof; p == nil {
		t.Errorf("epoch 2 has no evidence: %+v", old.Exclusion)
	}
}

// A state of version 1, written before there were ways and standby, goes on, and
// is written as version 2 with the first step.
func TestAStateOfVersion1GoesOn(t *testing.T) {
	if !haengine.Readable(1) || !haengine.Readable(haengine.StateVersion) || haengine.Readable(haengine.StateVersion+1) || haengine.Readable(-1) {
		t.Error("which versions are readable")
	}
	s := haengine.NewState(haengine.Durable{Version: 1})
	s, _ = haengine.Step(s, haengine.Stamp{At: 1}, haengine.Restarted{})
	if m := s.Delta().Meta; m == nil || m.Version != haengine.StateVersion {
		t.Errorf("the first step writes %+v", m)
	}
}
