package group

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

func names(rs []haengine.Resource) string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Name)
	}
	return strings.Join(out, " ")
}

func TestOrder(t *testing.T) {
	r := func(name string, after ...string) haengine.Resource {
		return haengine.Resource{Name: name, After: after}
	}
	for _, c := range []struct {
		name string
		in   []haengine.Resource
		want string // "" : refused
	}{
		{"as listed", []haengine.Resource{r("a"), r("b"), r("c")}, "a b c"},
		{"dependencies first", []haengine.Resource{r("db", "addr"), r("addr", "data"), r("data")}, "data addr db"},
		{"the list breaks ties", []haengine.Resource{r("w"), r("db", "data"), r("x"), r("data")}, "w x data db"},
		{"a circle", []haengine.Resource{r("a", "b"), r("b", "a"), r("c")}, ""},
		{"itself", []haengine.Resource{r("a", "a")}, ""},
		{"unknown", []haengine.Resource{r("a", "z")}, ""},
		{"twice", []haengine.Resource{r("a"), r("a")}, ""},
		{"nothing", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Order(c.in)
			if c.want == "" && len(c.in) > 0 {
				if hotspare.CodeOf(err) != hotspare.CodeInvalid {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if err != nil || names(got) != c.want {
				t.Errorf("got %q, %v, want %q", names(got), err, c.want)
			}
		})
	}
}

// fake is a driver whose resources do what the test says, and which notes what
// was done.
type fake struct {
	mu     sync.Mutex
	slow   time.Duration // an online takes this long
	story  []string
	fails  map[string]error
	health map[string]Health
	online map[string]int
}

func newFake() *fake {
	return &fake{fails: map[string]error{}, health: map[string]Health{}, online: map[string]int{}}
}

// is sets what a resource's check finds, fail what an action on it gives.
func (f *fake) is(name string, h Health) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.health[name] = h
}

func (f *fake) fail(action string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails[action] = err
}

func (f *fake) delay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = d
}

func (f *fake) Online(_ context.Context, r haengine.Resource) error {
	f.mu.Lock()
	slow := f.slow
	f.mu.Unlock()
	time.Sleep(slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.story = append(f.story, "online "+r.Name)
	if err := f.fails["online "+r.Name]; err != nil {
		return err
	}
	f.online[r.Name]++
	f.health[r.Name] = Health{OK: true}
	return nil
}

func (f *fake) Check(_ context.Context, r haengine.Resource) (Health, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.health[r.Name], f.fails["check "+r.Name]
}

func (f *fake) Offline(_ context.Context, r haengine.Resource) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.story = append(f.story, "offline "+r.Name)
	return f.fails["offline "+r.Name]
}

func newGroup(t *testing.T, f *fake, change func(*Options)) (*Group, *[]agentlink.Report) {
	t.Helper()
	var reports []agentlink.Report
	start := time.Now()
	opt := Options{
		App: "orders", Epoch: 7,
		Resources: []haengine.Resource{{Name: "db", Kind: "fake", After: []string{"addr"}}, {Name: "data", Kind: "fake"}, {Name: "addr", Kind: "fake", After: []string{"data"}}},
		Drivers:   map[haengine.ResourceKind]Driver{"fake": f},
		Policy:    Policy{Restarts: 2, Window: time.Minute},
		Allowed:   func(context.Context) error { return nil },
		Report:    func(r agentlink.Report) { reports = append(reports, r) },
		Up:        func() time.Duration { return time.Since(start) },
	}
	if change != nil {
		change(&opt)
	}
	g, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	return g, &reports
}

func states(g *Group) string {
	var out []string
	for _, r := range g.States() {
		out = append(out, r.Name+"="+string(r.State))
	}
	return strings.Join(out, " ")
}

func TestGroupComesOnlineInOrderAndGoesInReverse(t *testing.T) {
	f := newFake()
	g, reports := newGroup(t, f, nil)
	if err := g.Online(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := states(g); got != "data=online addr=online db=online" {
		t.Error(got)
	}
	if err := g.Offline(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"online data", "online addr", "online db", "offline db", "offline addr", "offline data"}
	if !slices.Equal(f.story, want) {
		t.Errorf("story %v", f.story)
	}
	if got := states(g); got != "data=offline addr=offline db=offline" {
		t.Error(got)
	}
	if len(*reports) != 3 || (*reports)[0].Epoch != 7 {
		t.Errorf("reports %+v", *reports)
	}
}

func TestFailedStartLeavesNothingOnline(t *testing.T) {
	f := newFake()
	f.fail("online db", &hotspare.Error{Code: hotspare.CodeNotBlank, What: "no"})
	g, _ := newGroup(t, f, nil)
	err := g.Online(t.Context())
	if hotspare.CodeOf(err) != hotspare.CodeNotBlank {
		t.Errorf("got %v", err)
	}
	want := []string{"online data", "online addr", "online db", "offline db", "offline addr", "offline data"}
	if !slices.Equal(f.story, want) {
		t.Errorf("story %v", f.story)
	}
	f.fail("offline data", errors.New("busy"))
	g, _ = newGroup(t, f, nil)
	if err := g.Online(t.Context()); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("a group that is not wholly offline again must say so: %v", err)
	}
}

// Nothing comes online without a live grant (SAFETY S2).
func TestNothingComesOnlineWithoutTheGrant(t *testing.T) {
	f := newFake()
	n := 0
	g, _ := newGroup(t, f, func(o *Options) {
		o.Allowed = func(context.Context) error {
			if n++; n > 1 {
				return errors.New("the lease ended")
			}
			return nil
		}
	})
	if err := g.Online(t.Context()); err == nil {
		t.Fatal("the group came online")
	}
	if want := []string{"online data", "offline data"}; !slices.Equal(f.story, want) {
		t.Errorf("story %v", f.story)
	}
}

func TestOfflineGoesOnAfterAFailure(t *testing.T) {
	f := newFake()
	g, _ := newGroup(t, f, nil)
	if err := g.Online(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.fail("offline db", errors.New("does not stop"))
	if err := g.Offline(t.Context()); err == nil {
		t.Error("no error")
	}
	if got := states(g); got != "data=offline addr=offline db=failed" {
		t.Error(got)
	}
}

// story runs a group under Watch while play changes the world.
func watch(t *testing.T, change func(*Options), play func(f *fake, g *Group)) (*fake, []agentlink.Report, *Group) {
	t.Helper()
	f := newFake()
	var g *Group
	var reports *[]agentlink.Report
	synctest.Test(t, func(t *testing.T) {
		g, reports = newGroup(t, f, change)
		if err := g.Online(t.Context()); err != nil {
			t.Fatal(err)
		}
		*reports = nil
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); g.Watch(ctx) }()
		play(f, g)
		cancel()
		<-done
	})
	return f, *reports, g
}

func conclusive(reports []agentlink.Report) (out []string) {
	for _, r := range reports {
		if r.Conclusive {
			out = append(out, fmt.Sprintf("%s %s", r.Resource, r.State))
		}
	}
	return out
}

// SAFETY S7: the agent's own proof is the failure of what it has restarted as
// often as it may.
func TestLocalRestartsComeBeforeTheReport(t *testing.T) {
	crash := func(f *fake) {
		f.is("db", Health{Why: "exited"})
		time.Sleep(600 * time.Millisecond)
	}
	f, reports, _ := watch(t, nil, func(f *fake, _ *Group) {
		crash(f)
		crash(f)
	})
	if f.online["db"] != 3 || len(conclusive(reports)) != 0 {
		t.Errorf("two crashes: %d starts, conclusive %v", f.online["db"], conclusive(reports))
	}
	f, reports, g := watch(t, nil, func(f *fake, _ *Group) {
		crash(f)
		crash(f)
		crash(f)
		time.Sleep(10 * time.Second)
	})
	if got := conclusive(reports); f.online["db"] != 3 || !slices.Equal(got, []string{"db failed"}) {
		t.Errorf("three crashes: %d starts, conclusive %v", f.online["db"], got)
	}
	if !strings.Contains(states(g), "db=failed") {
		t.Error(states(g))
	}
	f, reports, _ = watch(t, nil, func(f *fake, _ *Group) {
		crash(f)
		crash(f)
		time.Sleep(2 * time.Minute) // the window passes
		crash(f)
	})
	if f.online["db"] != 4 || len(conclusive(reports)) != 0 {
		t.Errorf("crashes that lie apart: %d starts, conclusive %v", f.online["db"], conclusive(reports))
	}
	f, reports, _ = watch(t, func(o *Options) { o.Policy.Restarts = -1 }, func(f *fake, _ *Group) { crash(f) })
	if f.online["db"] != 1 || len(conclusive(reports)) != 1 {
		t.Errorf("no restarts allowed: %d starts, conclusive %v", f.online["db"], conclusive(reports))
	}
}

func TestRestartThatFailsIsAFailure(t *testing.T) {
	f, reports, _ := watch(t, nil, func(f *fake, _ *Group) {
		f.fail("online db", errors.New("exit status 1"))
		f.is("db", Health{Why: "exited"})
		time.Sleep(5 * time.Second)
	})
	tries := 0
	for _, s := range f.story {
		if s == "online db" {
			tries++
		}
	}
	if tries != 3 || len(conclusive(reports)) != 1 {
		t.Errorf("%d tries, conclusive %v", tries, conclusive(reports))
	}
}

// systemd may restart a unit by itself; those restarts count too.
func TestRestartsBySystemdCount(t *testing.T) {
	_, reports, _ := watch(t, nil, func(f *fake, _ *Group) {
		for i := range uint32(2) {
			f.is("db", Health{Pending: true, Why: "auto-restart", Restarts: i})
			time.Sleep(time.Second)
			f.is("db", Health{OK: true, Restarts: i + 1})
			time.Sleep(time.Second)
		}
	})
	if got := conclusive(reports); len(got) != 0 {
		t.Errorf("two restarts: conclusive %v", got)
	}
	_, reports, _ = watch(t, nil, func(f *fake, _ *Group) {
		f.is("db", Health{OK: true, Restarts: 3})
		time.Sleep(time.Second)
	})
	if got := conclusive(reports); !slices.Equal(got, []string{"db failed"}) {
		t.Errorf("three restarts: conclusive %v", got)
	}
}

func TestNotKnowingIsNoFailure(t *testing.T) {
	f, reports, _ := watch(t, nil, func(f *fake, _ *Group) {
		f.fail("check db", errors.New("systemd does not answer"))
		f.is("db", Health{Why: "?"})
		time.Sleep(time.Minute)
	})
	if f.online["db"] != 1 || len(reports) != 0 {
		t.Errorf("%d starts, reports %v", f.online["db"], reports)
	}
}

// A release in the middle of a local restart: what the restart brings online,
// the release takes offline.
func TestReleaseWaitsForALocalRestart(t *testing.T) {
	f, _, g := watch(t, nil, func(f *fake, g *Group) {
		f.delay(10 * time.Second)
		f.is("db", Health{Why: "exited"})
		time.Sleep(time.Second) // the restart is under way
		if err := g.Offline(context.Background()); err != nil {
			panic(err)
		}
	})
	if got := states(g); got != "data=offline addr=offline db=offline" {
		t.Error(got)
	}
	last := f.story[len(f.story)-4:]
	if want := []string{"online db", "offline db", "offline addr", "offline data"}; !slices.Equal(last, want) {
		t.Errorf("story %v", f.story)
	}
}

func TestHaltedGroupRestartsNothing(t *testing.T) {
	f, _, _ := watch(t, nil, func(f *fake, g *Group) {
		g.Halt()
		f.is("db", Health{Why: "killed by the drop"})
		time.Sleep(time.Minute)
	})
	if f.online["db"] != 1 {
		t.Errorf("%d starts", f.online["db"])
	}
}
