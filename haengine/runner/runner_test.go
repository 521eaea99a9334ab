package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare/haengine"
	"hotspare/haengine/runner"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plant is an appliance without machines: every part does what it is told at
// once and notes it. A node joins as soon as it is booted.
type plant struct {
	mu      sync.Mutex
	journal journal
	done    []string // kinds of actions in the order of their beginning
	ahead   []string // actions begun before they were journalled
	block   map[string]chan struct{}
	fail    map[string]error
	r       *runner.Runner
	boots   int
	notices []haengine.Notice
}

// journal keeps what a restart would find.
type journal struct {
	mu  sync.Mutex
	d   haengine.Durable
	err error
}

func (j *journal) Save(_ context.Context, d haengine.Delta) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	j.d.Merge(d)
	return nil
}

func (j *journal) Load(context.Context) (haengine.Durable, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	b, err := json.Marshal(j.d)
	if err != nil {
		return haengine.Durable{}, err
	}
	var d haengine.Durable
	return d, json.Unmarshal(b, &d)
}

func (j *journal) pending(id haengine.ActionID) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.d.Pending[id] != nil
}

// begin notes an action, checks that it was journalled first, and blocks or
// fails as the test wants it.
func (p *plant) begin(ctx context.Context, kind string, o haengine.Order) error {
	p.mu.Lock()
	p.done = append(p.done, kind)
	if !p.journal.pending(o.ID) && kind != "read-power" && kind != "probe-address" {
		p.ahead = append(p.ahead, kind)
	}
	gate, err := p.block[kind], p.fail[kind]
	p.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (p *plant) count(kind string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, k := range p.done {
		if k == kind {
			n++
		}
	}
	return n
}

func (p *plant) ReadPower(ctx context.Context, _ string) (haengine.PowerState, error) {
	return haengine.PowerIsOff, p.begin(ctx, "read-power", haengine.Order{})
}

func (p *plant) PowerOff(ctx context.Context, a haengine.PowerOff) (haengine.PowerEvidence, error) {
	off := haengine.PowerReading{State: haengine.PowerIsOff}
	return haengine.PowerEvidence{Reads: []haengine.PowerReading{off, off}}, p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Boot(ctx context.Context, a haengine.Boot) error {
	if err := p.begin(ctx, a.Kind(), a.Order); err != nil {
		return err
	}
	p.mu.Lock()
	p.boots++
	boot := "boot-" + string(rune('0'+p.boots))
	r := p.r
	p.mu.Unlock()
	return r.Submit(ctx, haengine.Joined{Node: a.Node, BootID: boot, App: a.App, Epoch: a.Epoch})
}

func (p *plant) CancelBoot(ctx context.Context, a haengine.CancelBoot) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Return(ctx context.Context, a haengine.ReturnNode) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Attach(ctx context.Context, a haengine.Attach) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Revoke(ctx context.Context, a haengine.Revoke) (haengine.Revocation, error) {
	return haengine.Revocation{Below: a.Below}, p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) DeleteRoot(ctx context.Context, a haengine.DeleteRoot) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Claim(ctx context.Context, a haengine.Claim) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Release(ctx context.Context, a haengine.Release) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Park(ctx context.Context, a haengine.ParkNode) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Install(ctx context.Context, a haengine.Install) (haengine.LocalCopy, error) {
	return haengine.LocalCopy{Disk: "wwn-1"}, p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) Preload(ctx context.Context, a haengine.Preload) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) DisableCopies(ctx context.Context, a haengine.DisableCopies) error {
	return p.begin(ctx, a.Kind(), a.Order)
}

func (p *plant) AddressSilent(ctx context.Context, _ string, _ netip.Prefix) (bool, string, error) {
	return true, "", p.begin(ctx, "probe-address", haengine.Order{})
}

func (p *plant) Notify(_ context.Context, n haengine.Notice) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notices = append(p.notices, n)
	return nil
}

// run starts a runner on the plant; the cleanup stops it and wants a clean end.
func (p *plant) run(t *testing.T) (*runner.Runner, func()) {
	t.Helper()
	r, err := runner.New(t.Context(), runner.Options{
		Journal: &p.journal, Power: p, Booter: p, Volumes: p, Agents: p, Preparer: p, Prober: p, Notifier: p, Clock: runner.NewClock(10 * time.Millisecond),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.r = r
	p.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error, 1)
	go func() { end <- r.Run(ctx) }()
	return r, func() {
		cancel()
		if err := <-end; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func application() haengine.Application {
	return haengine.Application{
		Name: "orders", Image: "orders", Pools: []string{"rack1"}, Address: netip.MustParsePrefix("10.77.0.50/24"),
		Monitors: []haengine.Monitor{{Name: "tcp", Kind: haengine.MonitorTCP, Port: 80}, {Name: "agent", Kind: haengine.MonitorHeartbeat}},
	}
}

// declare gives the runner two nodes and one application.
func declare(t *testing.T, r *runner.Runner) {
	t.Helper()
	events := []haengine.Event{haengine.PoolApplied{Pool: haengine.Pool{Name: "rack1"}}}
	for _, n := range []string{"n1", "n2"} {
		events = append(events, haengine.NodeApplied{Node: haengine.Node{Name: n, MACs: []string{"52:54:00:77:00:01"}, Pool: "rack1", CPUs: 1, MemoryMiB: 512, Approved: true}})
	}
	events = append(events, haengine.AppApplied{Application: application()})
	for _, e := range events {
		if err := r.Submit(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// until waits for a state by the runner's own changes.
func until(t *testing.T, r *runner.Runner, what string, ok func(haengine.State) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	changes := r.Subscribe(ctx)
	for !ok(r.Snapshot()) {
		if _, open := <-changes; !open {
			t.Fatalf("never %s: %+v", what, r.Snapshot().Durable.Apps["orders"])
		}
	}
}

func phase(p haengine.Phase) func(haengine.State) bool {
	return func(s haengine.State) bool { a := s.Durable.Apps["orders"]; return a != nil && a.Phase == p }
}

// serve speaks as the agent and the monitor of the current grant until it runs.
func serve(t *testing.T, r *runner.Runner) {
	t.Helper()
	until(t, r, "onlining", phase(haengine.PhaseOnlining))
	g := r.Snapshot().Durable.Apps["orders"].Grant
	l, err := r.Heartbeat(t.Context(), haengine.Heartbeat{Node: g.Node, BootID: g.BootID, App: "orders", Epoch: g.Epoch})
	if err != nil || !l.Granted || l.Duration != haengine.DefaultLease {
		t.Fatalf("heartbeat: %+v, %v", l, err)
	}
	if err := r.Submit(t.Context(), haengine.Sample{App: "orders", Monitor: "tcp", From: haengine.FromAppliance, OK: true}); err != nil {
		t.Fatal(err)
	}
	until(t, r, "running", phase(haengine.PhaseRunning))
}

func TestFailoverFromFirstStartToTheNextNode(t *testing.T) {
	p := &plant{}
	r, stop := p.run(t)
	defer stop()
	declare(t, r)
	serve(t, r)
	g := *r.Snapshot().Durable.Apps["orders"].Grant
	if err := r.Submit(t.Context(), haengine.AgentReport{Node: g.Node, BootID: g.BootID, App: "orders", Epoch: g.Epoch, State: haengine.ResourceFailed, Exhausted: true, Why: "exit status 1"}); err != nil {
		t.Fatal(err)
	}
	until(t, r, "moved", func(s haengine.State) bool {
		x := s.Durable.Apps["orders"].Grant
		return x != nil && x.Epoch == g.Epoch+1
	})
	l, err := r.Heartbeat(t.Context(), haengine.Heartbeat{Node: g.Node, BootID: g.BootID, App: "orders", Epoch: g.Epoch})
	if err != nil || l.Granted || l.Reason.Rule != "stale-epoch" {
		t.Errorf("the old node's heartbeat: %+v, %v", l, err)
	}
	serve(t, r)
	if x := r.Snapshot().Durable.Apps["orders"].Grant; x.Node == g.Node || x.Epoch != 2 {
		t.Errorf("it runs on %s, epoch %d", x.Node, x.Epoch)
	}
	if len(p.ahead) > 0 {
		t.Errorf("begun before they were journalled: %v", p.ahead)
	}
}

// A crash leaves unfinished actions: the next run repeats them under their own
// numbers, and nothing that had ended.
func TestRestartRepeatsWhatHadNotEnded(t *testing.T) {
	p := &plant{block: map[string]chan struct{}{"attach": make(chan struct{})}}
	r, stop := p.run(t)
	declare(t, r)
	until(t, r, "attaching", phase(haengine.PhaseAttaching))
	attach := func(s haengine.State) (id haengine.ActionID) {
		for n, x := range s.Durable.Pending {
			if x.Action.Kind() == "attach" {
				id = n
			}
		}
		return id
	}
	first := attach(r.Snapshot())
	stop()
	p.block = nil
	r, stop = p.run(t)
	defer stop()
	serve(t, r)
	if n := p.count("attach"); n != 2 {
		t.Errorf("attach was begun %d times, not twice", n)
	}
	if n := p.count("boot"); n != 1 {
		t.Errorf("boot was begun %d times, not once", n)
	}
	if got := attach(r.Snapshot()); first == 0 || got != 0 {
		t.Errorf("attach was number %d, %d is left", first, got)
	}
}

// A withdrawn action's performer is stopped, not waited for.
func TestWithdrawnActionIsCancelled(t *testing.T) {
	p := &plant{block: map[string]chan struct{}{"claim": make(chan struct{})}}
	r, stop := p.run(t)
	defer stop()
	declare(t, r)
	until(t, r, "onlining", phase(haengine.PhaseOnlining))
	g := *r.Snapshot().Durable.Apps["orders"].Grant
	if err := r.Submit(t.Context(), haengine.Dropped{Node: g.Node, BootID: g.BootID, App: "orders", Epoch: g.Epoch, Why: "its volume is gone"}); err != nil {
		t.Fatal(err)
	}
	until(t, r, "moved on, with the claim ended", func(s haengine.State) bool {
		for _, x := range s.Durable.Pending {
			if x.Action.Kind() == "claim" && x.Action.Head().Epoch == g.Epoch {
				return false
			}
		}
		return s.Durable.Apps["orders"].Epoch > g.Epoch
	})
}

// Without its journal the engine does nothing more, and says so to everybody.
func TestJournalFailureStopsEverything(t *testing.T) {
	p := &plant{}
	r, err := runner.New(t.Context(), runner.Options{
		Journal: &p.journal, Power: p, Booter: p, Volumes: p, Agents: p, Preparer: p, Prober: p, Notifier: p, Clock: runner.NewClock(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	p.r = r // a boot may come before the journal breaks
	p.mu.Unlock()
	end := make(chan error, 1)
	go func() { end <- r.Run(t.Context()) }()
	declare(t, r)
	until(t, r, "attaching", func(s haengine.State) bool { return s.Durable.Apps["orders"].Grant != nil })
	broken := errors.New("disk full")
	p.journal.mu.Lock()
	p.journal.err = broken
	p.journal.mu.Unlock()
	if err := r.Submit(t.Context(), haengine.FreezeSet{By: "ann", Reason: "test"}); !errors.Is(err, broken) && !errors.Is(err, runner.ErrStopped) {
		t.Errorf("Submit: %v", err)
	}
	if err := <-end; !errors.Is(err, broken) {
		t.Errorf("Run: %v", err)
	}
	if err := r.Submit(t.Context(), haengine.Tick{}); !errors.Is(err, runner.ErrStopped) {
		t.Errorf("Submit after the end: %v", err)
	}
	if len(r.Snapshot().Durable.Freezes) != 0 {
		t.Error("a state that was not journalled is shown")
	}
}

// A reader that falls behind is cut off; others and the engine go on.
func TestSlowWatcherIsCutOff(t *testing.T) {
	p := &plant{}
	r, stop := p.run(t)
	slow := r.Subscribe(t.Context())
	declare(t, r)
	for range 300 {
		for _, e := range []haengine.Event{haengine.FreezeSet{Scope: haengine.Scope{App: "orders"}, By: "ann"}, haengine.FreezeLifted{Scope: haengine.Scope{App: "orders"}, By: "ann"}} {
			if err := r.Submit(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	var seqs []uint64
	for c := range slow { // ends because the channel was closed
		seqs = append(seqs, c.Seq)
	}
	if !slices.IsSorted(seqs) || len(seqs) < 100 || len(seqs) > 400 {
		t.Errorf("%d changes were seen", len(seqs))
	}
	stop()
	if _, open := <-r.Subscribe(t.Context()); open {
		t.Error("a change after the end")
	}
}

// Commands that make no sense are refused with a reason and change nothing.
func TestCommandRefused(t *testing.T) {
	p := &plant{}
	r, stop := p.run(t)
	defer stop()
	declare(t, r)
	serve(t, r)
	on := r.Snapshot().Durable.Apps["orders"].Grant.Node
	for _, e := range []haengine.Event{
		haengine.FailoverRequested{App: "nothing", By: "bob"},
		haengine.FailoverRequested{App: "orders", To: on, By: "bob"},
		haengine.FailoverRequested{App: "orders", To: "n9", By: "bob"},
		haengine.NodeDeleted{Name: on},
		haengine.MaintenanceSet{Node: on, On: true, By: "bob"},
		haengine.ConfirmOff{By: "bob"},
	} {
		if err := r.Command(t.Context(), e); err == nil {
			t.Errorf("%#v was taken", e)
		}
	}
	if a := r.Snapshot().Durable.Apps["orders"]; a.Phase != haengine.PhaseRunning || a.Asked != nil {
		t.Errorf("it is %s", a.Phase)
	}
}
