package main_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
)

// appliance is the appliance's part of the test: the link's server with the
// lease in the test's hand, and the real target.
type appliance struct {
	ca     *server.CA
	link   *server.Server
	joined chan server.Session

	mu       sync.Mutex
	grant    bool
	lease    time.Duration // of each granted heartbeat
	drop     bool
	spent    map[[32]byte]bool
	last     agentlink.Heartbeat
	reports  []agentlink.Report
	samples  map[string]int
	progress []agentlink.Progress
	gone     []string
	heard    []server.Announcement
	marks    []agentlink.Mark
	approved bool              // what an announcement is answered with
	over     map[string]uint64 // what heartbeats are answered with
	reported chan struct{}
}

func (a *appliance) note(do func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do()
}

func (a *appliance) hear(_ context.Context, n server.Announcement) (noted agentlink.Noted) {
	a.note(func() {
		a.heard = append(a.heard, n)
		noted = agentlink.Noted{Again: haengine.Duration(6 * time.Second), Boot: a.approved}
	})
	return noted
}

func newAppliance(t *testing.T) *appliance {
	t.Helper()
	a := &appliance{joined: make(chan server.Session, 8), grant: true, lease: 15 * time.Second, spent: map[[32]byte]bool{}, samples: map[string]int{}, reported: make(chan struct{}, 64)}
	var err error
	if a.ca, err = server.EnsureCA(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	a.link, err = server.New(server.Options{
		Addr: netip.AddrPortFrom(hostAddr.Addr(), agentlink.Port).String(), CA: a.ca, Tokens: a, Handler: a, Announced: a.hear,
		Progress: func(_ context.Context, _ server.Session, p agentlink.Progress) {
			a.note(func() { a.progress = append(a.progress, p) })
		},
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.link.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

func (a *appliance) Redeem(_ context.Context, hash [32]byte, _ agentlink.Facts) (server.Identity, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.spent[hash] {
		return server.Identity{}, &hotspare.Error{Code: hotspare.CodeTokenReused, What: "the token was used before"}
	}
	a.spent[hash] = true
	return server.Identity{Node: "n1", Epoch: 7}, nil
}

func (a *appliance) Joined(_ context.Context, s server.Session) { a.joined <- s }

func (a *appliance) Heartbeat(_ context.Context, _ server.Session, h agentlink.Heartbeat) agentlink.HeartbeatAck {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = h
	if h.Marks != nil {
		a.marks = h.Marks
	}
	return agentlink.HeartbeatAck{Granted: a.grant && h.App != "", Drop: a.drop, Over: a.over, Lease: haengine.Duration(a.lease), Epoch: h.Epoch}
}

func (a *appliance) Report(_ context.Context, _ server.Session, r agentlink.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reports = append(a.reports, r)
	select {
	case a.reported <- struct{}{}:
	default:
	}
}

func (a *appliance) Sample(_ context.Context, _ server.Session, m agentlink.Sample) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.OK {
		a.samples[m.Monitor]++
	}
}

func (a *appliance) Gone(_ context.Context, s server.Session, why string) {
	a.note(func() { a.gone = append(a.gone, s.BootID+": "+why) })
}

// awaitJoin waits for the next boot that joins.
func (a *appliance) awaitJoin(t *testing.T, m *machine) server.Session {
	t.Helper()
	select {
	case s := <-a.joined:
		return s
	case <-m.done:
		t.Fatal("the machine ended before it joined")
	case <-time.After(4 * time.Minute):
		t.Fatal("no join within four minutes")
	}
	return server.Session{}
}

// order sends an order and logs its steps.
func (a *appliance) order(t *testing.T, s server.Session, o agentlink.Order) agentlink.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	r, err := a.link.Send(ctx, "n1", s.BootID, o)
	if err != nil {
		t.Fatalf("order %s: %v", o.ID, err)
	}
	for _, step := range r.Steps {
		t.Logf("  %s: %6d ms  %s %s", o.ID, step.Millis, step.Name, step.Why)
	}
	return r
}

// must sends an order that must be carried out.
func (a *appliance) must(t *testing.T, s server.Session, o agentlink.Order) agentlink.Result {
	t.Helper()
	r := a.order(t, s, o)
	if !r.OK {
		t.Fatalf("order %s: %s %s", o.ID, r.Code, r.Why)
	}
	return r
}

// refused sends an order that must be refused with a code.
func (a *appliance) refused(t *testing.T, s server.Session, o agentlink.Order, code hotspare.Code) {
	t.Helper()
	if r := a.order(t, s, o); r.OK || r.Code != code {
		t.Errorf("order %s: %+v, want a refusal with %s", o.ID, r, code)
	}
}

// awaitReport waits for a report that fits.
func (a *appliance) awaitReport(t *testing.T, limit time.Duration, what string, fits func(agentlink.Report) bool) agentlink.Report {
	t.Helper()
	deadline := time.After(limit)
	for {
		a.mu.Lock()
		for _, r := range a.reports {
			if fits(r) {
				a.mu.Unlock()
				return r
			}
		}
		a.mu.Unlock()
		select {
		case <-a.reported:
		case <-deadline:
			t.Fatalf("no report of %s within %s", what, limit)
		}
	}
}

// marked gives the names of the marks that the node has told.
func (a *appliance) marked() (names string) {
	a.note(func() {
		for _, m := range a.marks {
			names += " " + m.Name
		}
	})
	return names
}
