// Package sim runs the real engine against a simulated world.
//
// One goroutine, one heap of events ordered by (time, number), one seed: the
// same seed gives the same run, event by event. The world holds the ground truth
// that the engine only sees through probes, heartbeats and BMCs: who is powered,
// who runs the application, who can write, who answers on its address. The core
// (haengine.Rules.Step) and the machine around it (runner.Machine: step, journal,
// act) are the product's own; BMCs, nodes with their agents, the storage target's
// admission and the clients are models.
//
// Run throws random faults at it, then heals everything and waits for a quiet
// end; Story follows a script and gives a trace that reads as prose.
package sim

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"hotspare/haengine"
	"hotspare/haengine/runner"
)

// Config is what a run is made of.
type Config struct {
	Seed   uint64
	Nodes  int           // default 4
	Apps   int           // default 2
	Faulty time.Duration // time with faults; default 120 s
	Quiet  time.Duration // time to recover at most; default 400 s
	Only   []string      // kinds of faults to draw from; empty: all
	Rules  haengine.Rules

	babbles bool // a planted bug of the agent: it names what it released in its heartbeats

	audit func(before haengine.State, now haengine.Stamp, e haengine.Event, after haengine.State, actions []haengine.Action)
}

func (c Config) withDefaults() Config {
	if c.Nodes == 0 {
		c.Nodes = 4
	}
	if c.Apps == 0 {
		c.Apps = 2
	}
	if c.Faulty == 0 {
		c.Faulty = 120 * time.Second
	}
	if c.Quiet == 0 {
		c.Quiet = 400 * time.Second
	}
	return c
}

// Result is what a run showed.
type Result struct {
	Violations []string
	Counts     map[string]int // what was exercised
	Trace      []string
	Events     int
}

// Sim is a world with an engine in it.
type Sim struct {
	cfg   Config
	rng   *rand.Rand
	now   time.Duration
	queue events
	seq   int

	journal *journal
	machine *runner.Machine // nil while the appliance is down
	life    int             // of the appliance, counted at each start
	started time.Duration   // of the present life
	calm    time.Duration   // until when something explained any waiting
	w       world

	violations []string
	counts     map[string]int
	trace      []string
	handled    int
}

// event is something that will happen.
type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

// epochStart is when every simulated world begins.
var epochStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newSim(cfg Config) *Sim {
	cfg = cfg.withDefaults()
	s := &Sim{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0x5eed)),
		journal: &journal{}, counts: map[string]int{},
	}
	s.w.init(s)
	return s
}

// after has something happen later.
func (s *Sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.queue, event{s.now + d, s.seq, do})
}

// every repeats something for ever.
func (s *Sim) every(first, d time.Duration, do func()) {
	var again func()
	again = func() { do(); s.after(d, again) }
	s.after(first, again)
}

// runUntil lets the world go on until a moment, or until stop says so.
func (s *Sim) runUntil(end time.Duration, stop func() bool) {
	for len(s.queue) > 0 && s.queue[0].at <= end {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.do()
		s.handled++
		s.check()
		if len(s.violations) > 0 || stop != nil && stop() {
			return
		}
	}
	s.now = end
}

func (s *Sim) stamp() haengine.Stamp {
	return haengine.Stamp{At: haengine.Instant(s.now-s.started) + 1, Wall: epochStart.Add(s.now)}
}

// say adds a line to the trace.
func (s *Sim) say(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%8.2fs  ", s.now.Seconds())+fmt.Sprintf(format, args...))
}

// violate notes that a promise was broken.
func (s *Sim) violate(rule, format string, args ...any) {
	text := rule + ": " + fmt.Sprintf(format, args...)
	s.violations = append(s.violations, fmt.Sprintf("seed %d, %.2fs: %s", s.cfg.Seed, s.now.Seconds(), text))
	s.say("!! %s", text)
}

func (s *Sim) up() bool { return s.machine != nil }

// start begins a life of the appliance.
func (s *Sim) start() {
	m, err := runner.NewMachine(context.Background(), s.journal, s.cfg.Rules)
	if err != nil {
		s.violate("L3", "the journal cannot be loaded: %v", err)
		return
	}
	s.machine, s.started = m, s.now
	s.life++
	s.submit(haengine.Restarted{})
	if s.up() {
		s.w.applianceStarted()
	}
}

// crash ends the appliance at once.
func (s *Sim) crash() {
	s.machine = nil
	s.counts["appliance crash"]++
	s.say("** the appliance dies")
}

// submit gives an event to the engine and has the actions performed.
func (s *Sim) submit(e haengine.Event) {
	if !s.up() {
		return
	}
	before := s.machine.State()
	actions, err := s.machine.Apply(context.Background(), s.stamp(), e)
	if s.cfg.audit != nil && err == nil {
		s.cfg.audit(before, s.stamp(), e, s.machine.State(), actions)
	}
	s.stepped(before, e, actions, err)
}

// stepped looks at one step of the engine and passes its actions to the world.
func (s *Sim) stepped(before haengine.State, e haengine.Event, actions []haengine.Action, err error) {
	if err != nil { // the journal failed: the process ends, whatever was written
		s.crash()
		s.after(s.between(500*time.Millisecond, 5*time.Second), s.start)
		return
	}
	st := s.machine.State()
	for _, x := range st.Soft.Said {
		s.tell(x)
	}
	s.checkStep(before, st, e, actions)
	if s.w.crashBeforeActing > 0 && len(actions) > 0 {
		s.w.crashBeforeActing--
		if s.w.crashBeforeActing == 0 {
			s.crash()
			s.after(s.between(time.Second, 10*time.Second), s.start)
			return
		}
	}
	for _, a := range actions {
		s.counts["action "+a.Kind()]++
		s.w.perform(a)
	}
}

// tell writes the engine's own words into the trace.
func (s *Sim) tell(x haengine.Entry) {
	who := x.App
	if who == "" {
		who = x.Node
	} else if x.Node != "" {
		who += "@" + x.Node
	}
	if who == "" {
		who = "-"
	}
	s.say("%-10s %s", who, x.Text)
}

func (s *Sim) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(s.rng.Int64N(int64(hi-lo)+1))
}

func (s *Sim) chance(p float64) bool { return s.rng.Float64() < p }

// journal keeps the durable state in memory; a load goes through its encoding,
// as a real one does.
type journal struct {
	d      haengine.Durable
	saves  int
	failAt int  // the save with this number fails ...
	keep   bool // ... with its delta on disk, or without
}

var errJournal = errors.New("simulated failure of the journal")

func (j *journal) Save(_ context.Context, d haengine.Delta) error {
	j.saves++
	if j.saves == j.failAt {
		if j.keep {
			j.d.Merge(d)
		}
		return errJournal
	}
	j.d.Merge(d)
	return nil
}

func (j *journal) Load(context.Context) (haengine.Durable, error) {
	b, err := json.Marshal(j.d)
	if err != nil {
		return haengine.Durable{}, err
	}
	var d haengine.Durable
	err = json.Unmarshal(b, &d)
	return d, err
}
