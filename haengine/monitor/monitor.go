package monitor

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"hotspare/haengine"
)

// Monitors runs the monitors of any number of applications from one vantage.
// Its methods may be called concurrently.
type Monitors struct {
	from haengine.Vantage
	emit func(haengine.Sample)

	mu      sync.Mutex
	watched map[string]*watch
	closed  bool
}

// watch is one application as it is looked at now.
type watch struct {
	app   haengine.Application
	epoch haengine.Epoch
	stop  context.CancelFunc
	looks *sync.WaitGroup // the looks under way at the application, those of earlier epochs too
}

// New makes Monitors. emit gets every sample, from several goroutines at once;
// it must not block for long.
func New(from haengine.Vantage, emit func(haengine.Sample)) *Monitors {
	return &Monitors{from: from, emit: emit, watched: map[string]*watch{}}
}

// Watch looks at app under the epoch from now on, in place of how it was looked
// at before. Watching the same again changes nothing. A look under way as it was
// is abandoned; the sample that it emits at the latest moment tells its epoch.
func (m *Monitors) Watch(app haengine.Application, epoch haengine.Epoch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	looks := new(sync.WaitGroup)
	if w := m.watched[app.Name]; w != nil {
		if w.epoch == epoch && w.app.Address == app.Address && reflect.DeepEqual(w.app.Monitors, app.Monitors) {
			return
		}
		w.stop()
		looks = w.looks
	}
	ctx, stop := context.WithCancel(context.Background())
	w := &watch{app: app, epoch: epoch, stop: stop, looks: looks}
	for _, mon := range app.Monitors {
		if mon.Kind == haengine.MonitorHeartbeat || !m.sees(mon) {
			continue
		}
		looks.Go(func() { m.run(ctx, w, mon) })
	}
	m.watched[app.Name] = w
}

func (m *Monitors) sees(mon haengine.Monitor) bool {
	if len(mon.From) == 0 {
		return m.from == haengine.FromAppliance
	}
	return slices.Contains(mon.From, m.from)
}

// Forget looks at the application no more, under any epoch. A look under way is
// abandoned, and nothing is emitted once Forget has returned.
func (m *Monitors) Forget(app string) {
	m.mu.Lock()
	w := m.watched[app]
	delete(m.watched, app)
	m.mu.Unlock()
	if w != nil {
		w.stop()
		w.looks.Wait()
	}
}

// Keep forgets every application that is not among names.
func (m *Monitors) Keep(names func(app string) bool) {
	m.mu.Lock()
	var gone []string
	for app := range m.watched {
		if !names(app) {
			gone = append(gone, app)
		}
	}
	m.mu.Unlock()
	for _, app := range gone {
		m.Forget(app)
	}
}

// Close forgets all and waits for what runs.
func (m *Monitors) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.Keep(func(string) bool { return false })
}

// run looks at once and then at every interval. A look that takes longer than
// the interval is followed by the next at once; looks never overlap.
func (m *Monitors) run(ctx context.Context, w *watch, mon haengine.Monitor) {
	every, timeout := mon.Every.D(), mon.Timeout.D()
	if every <= 0 {
		every = time.Second
	}
	if timeout <= 0 {
		timeout = 2 * time.Second
	}
	mon.Timeout = haengine.Duration(timeout)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		start := time.Now()
		look, cancel := context.WithTimeout(ctx, timeout)
		err := Look(look, mon, w.app.Address.Addr())
		cancel()
		if ctx.Err() != nil {
			return
		}
		s := haengine.Sample{
			App: w.app.Name, Monitor: mon.Name, From: m.from, Epoch: w.epoch, OK: err == nil, Latency: time.Since(start), At: start,
		}
		if err != nil {
			s.Why = err.Error()
		}
		m.emit(s)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
