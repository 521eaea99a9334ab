package group

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// Health is what a check of a resource found.
type Health struct {
	OK       bool
	Pending  bool   // neither up nor failed: e.g. systemd restarts it by itself
	Restarts uint32 // done by something else since Online, e.g. by systemd
	Why      string
}

// Driver brings one kind of resource online and offline. Offline of a resource
// that is not online is no failure.
type Driver interface {
	Online(ctx context.Context, r haengine.Resource) error
	Check(ctx context.Context, r haengine.Resource) (Health, error) // an error: it could not be found out
	Offline(ctx context.Context, r haengine.Resource) error
}

// Policy is how failures of resources are met.
type Policy struct {
	Restarts int           // local restarts within Window; less than 1: none
	Window   time.Duration // default 10 min
	Every    time.Duration // between checks; default 500 ms
	StepTime time.Duration // for one resource to come online or go offline; default 5 min
}

func (p Policy) withDefaults() Policy {
	if p.Window == 0 {
		p.Window = 10 * time.Minute
	}
	if p.Every == 0 {
		p.Every = 500 * time.Millisecond
	}
	if p.StepTime == 0 {
		p.StepTime = 5 * time.Minute
	}
	return p
}

// Options are the parts of a Group.
type Options struct {
	App       string
	Epoch     uint64
	Resources []haengine.Resource
	Drivers   map[haengine.ResourceKind]Driver
	Policy    Policy
	// Allowed returns nil while the grant is live; nothing comes online
	// without it. It may wait.
	Allowed func(ctx context.Context) error
	Report  func(agentlink.Report) // Seq and UpMillis are filled in by the link
	Step    func(agentlink.Step)   // what was done, with its duration; may be nil
	Up      func() time.Duration   // CLOCK_BOOTTIME
	Log     *slog.Logger
}

// Group is one application's service group on this node.
type Group struct {
	opt     Options
	policy  Policy
	members []*member // in the order of coming online
	log     *slog.Logger

	work chan struct{} // one place: who brings resources online or offline has it

	mu      sync.Mutex
	stopped bool
	unwatch context.CancelFunc // ends what Watch is doing
}

type member struct {
	haengine.Resource
	driver   Driver
	state    agentlink.ResourceState
	why      string
	restarts []time.Duration // moments of the local restarts within the window
	seen     uint32          // Health.Restarts that were counted already
	failed   bool            // reported as conclusive
}

// New makes a group. Unknown kinds and circular orders are refused.
func New(opt Options) (*Group, error) {
	resources, err := Order(opt.Resources)
	if err != nil {
		return nil, err
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Step == nil {
		opt.Step = func(agentlink.Step) {}
	}
	g := &Group{opt: opt, policy: opt.Policy.withDefaults(), log: opt.Log, work: make(chan struct{}, 1)}
	for _, r := range resources {
		driver, ok := opt.Drivers[r.Kind]
		if !ok {
			return nil, invalid("resource %q is of kind %q, which this agent does not know", r.Name, r.Kind)
		}
		g.members = append(g.members, &member{Resource: r, driver: driver, state: agentlink.ResourceOffline})
	}
	return g, nil
}

// States gives the state of every resource, in the order of coming online.
func (g *Group) States() []agentlink.Resource {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]agentlink.Resource, 0, len(g.members))
	for _, m := range g.members {
		out = append(out, agentlink.Resource{Name: m.Name, Kind: m.Kind, State: m.state, Why: m.why})
	}
	return out
}

// Online brings all resources online. When one fails, those that are online are
// taken offline again and the error is returned.
func (g *Group) Online(ctx context.Context) error {
	if err := g.begin(ctx); err != nil {
		return err
	}
	defer g.end()
	for i, m := range g.members {
		if err := g.online(ctx, m); err != nil {
			err = fmt.Errorf("resource %s: %w", m.Name, err)
			if undo := g.offline(context.WithoutCancel(ctx), g.members[:i+1]); undo != nil {
				err = errors.Join(err, fmt.Errorf("and the group is not wholly offline again: %w", undo))
			}
			return err
		}
	}
	return nil
}

func (g *Group) online(ctx context.Context, m *member) error {
	if err := g.opt.Allowed(ctx); err != nil {
		return err
	}
	if g.isStopped() {
		return errStopped
	}
	g.set(m, agentlink.ResourceStarting, "")
	err := g.timed(ctx, "online "+m.Name, func(ctx context.Context) error { return m.driver.Online(ctx, m.Resource) })
	if err != nil {
		g.set(m, agentlink.ResourceFailed, err.Error())
		g.report(m, agentlink.ResourceFailed, err.Error(), false)
		return err
	}
	g.set(m, agentlink.ResourceOnline, "")
	g.report(m, agentlink.ResourceOnline, "", false)
	return nil
}

var errStopped = errors.New("the service group was stopped")

// Offline takes all resources offline in reverse order. It goes on after a
// failure and returns all of them.
func (g *Group) Offline(ctx context.Context) error {
	g.Halt()
	if err := g.begin(ctx); err != nil { // a local restart that is under way ends first
		return fmt.Errorf("a resource is still being brought online: %w", err)
	}
	defer g.end()
	return g.offline(ctx, g.members)
}

func (g *Group) begin(ctx context.Context) error {
	select {
	case g.work <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *Group) end() { <-g.work }

// Halt ends watching and keeps anything from coming online again. It waits for
// nothing.
func (g *Group) Halt() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	if g.unwatch != nil {
		g.unwatch()
	}
}

func (g *Group) isStopped() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stopped
}

func (g *Group) offline(ctx context.Context, members []*member) error {
	var errs []error
	for i := len(members) - 1; i >= 0; i-- {
		m := members[i]
		if g.state(m) == agentlink.ResourceOffline {
			continue
		}
		g.set(m, agentlink.ResourceStopping, "")
		err := g.timed(ctx, "offline "+m.Name, func(ctx context.Context) error { return m.driver.Offline(ctx, m.Resource) })
		if err != nil {
			g.set(m, agentlink.ResourceFailed, err.Error())
			errs = append(errs, fmt.Errorf("resource %s: %w", m.Name, err))
			continue
		}
		g.set(m, agentlink.ResourceOffline, "")
	}
	return errors.Join(errs...)
}

// timed runs a step within StepTime and tells how long it took.
func (g *Group) timed(ctx context.Context, name string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, g.policy.StepTime)
	defer cancel()
	start := g.opt.Up()
	err := do(ctx)
	end := g.opt.Up()
	s := agentlink.Step{Name: name, OK: err == nil, UpMillis: end.Milliseconds(), Millis: (end - start).Milliseconds()}
	if err != nil {
		s.Why = err.Error()
	}
	g.opt.Step(s)
	return err
}

func (g *Group) set(m *member, s agentlink.ResourceState, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m.state, m.why = s, why
}

func (g *Group) state(m *member) agentlink.ResourceState {
	g.mu.Lock()
	defer g.mu.Unlock()
	return m.state
}

func (g *Group) report(m *member, s agentlink.ResourceState, why string, conclusive bool) {
	g.opt.Report(agentlink.Report{
		App: g.opt.App, Epoch: g.opt.Epoch, Resource: m.Name, State: s, Why: why, Conclusive: conclusive,
	})
}
