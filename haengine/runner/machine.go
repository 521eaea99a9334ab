package runner

import (
	"context"
	"fmt"

	"hotspare/haengine"
)

// Machine is the engine without goroutines and clocks: one event at a time goes
// in, is journalled, and the actions to perform come out.
type Machine struct {
	rules   haengine.Rules
	journal Journal
	state   haengine.State
	broken  error
}

// NewMachine loads the journalled state. The first event must be
// haengine.Restarted; Runner submits it by itself.
func NewMachine(ctx context.Context, j Journal, rules haengine.Rules) (*Machine, error) {
	d, err := j.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the engine's journal: %w", err)
	}
	return &Machine{rules: rules, journal: j, state: haengine.NewState(d)}, nil
}

// State gives the present state. It is immutable.
func (m *Machine) State() haengine.State { return m.state }

// Apply takes one event: Step, then the journal, then the actions may be
// performed. After an error of the journal nothing may be performed any more and
// every later Apply fails: what is journalled is unknown until it is loaded anew.
func (m *Machine) Apply(ctx context.Context, now haengine.Stamp, e haengine.Event) ([]haengine.Action, error) {
	if m.broken != nil {
		return nil, m.broken
	}
	next, actions := m.rules.Step(m.state, now, e)
	if d := next.Delta(); !d.IsEmpty() {
		if err := m.journal.Save(ctx, d); err != nil {
			m.broken = fmt.Errorf("journal the engine's state: %w", err)
			return nil, m.broken
		}
	}
	m.state = next
	return actions, nil
}

// Heartbeat takes an agent's heartbeat and gives the answer that must be sent:
// decided with the state that this very heartbeat led to, so that no lease is
// renewed after the engine began to count on its end.
func (m *Machine) Heartbeat(ctx context.Context, now haengine.Stamp, h haengine.Heartbeat) (Lease, []haengine.Action, error) {
	actions, err := m.Apply(ctx, now, h)
	if err != nil {
		return Lease{Reason: haengine.Reason{Rule: "journal", Text: "the engine cannot write its journal"}}, nil, err
	}
	if h.App == "" {
		return Lease{}, actions, nil
	}
	l := Lease{}
	l.Granted, l.Reason = m.rules.LeaseAllowed(m.state, h.Node, h.BootID, h.App, h.Epoch)
	if a := m.state.Durable.Apps[h.App]; a != nil {
		l.Epoch = a.Epoch
		l.Duration = haengine.LeaseOf(a, h.Epoch)
	}
	return l, actions, nil
}

// Lease is the answer to a heartbeat. A refused one orders the agent to drop the
// application at once.
type Lease struct {
	Granted  bool
	Reason   haengine.Reason
	Duration haengine.Duration // from the moment at which the agent sent the heartbeat
	Epoch    haengine.Epoch    // the engine's present epoch of the application
}
