package initiator

import (
	"sync"
	"time"
)

// EventKind says what happened to a session.
type EventKind int

// Kinds of events.
const (
	// Lost: the connection failed; I/O waits in the kernel and log-ins are tried.
	Lost EventKind = iota + 1
	// Recovered: logged in again; I/O goes on.
	Recovered
	// Refused: the target refuses to log us in again, which is what a revoked
	// grant looks like. I/O waits still.
	Refused
)

// String gives the word for logs and reports.
func (k EventKind) String() string {
	switch k {
	case Lost:
		return "lost"
	case Recovered:
		return "recovered"
	case Refused:
		return "refused"
	}
	return "unknown"
}

// Event is one change of a session. At carries the monotonic clock.
type Event struct {
	Kind EventKind
	At   time.Time
	Why  string
}

// State is what a session is in.
type State int

// States of a session.
const (
	StateUp      State = iota + 1 // logged in, I/O flows
	StateLost                     // recovery under way, I/O waits
	StateRefused                  // recovery refused by the target, I/O waits
	StateClosed                   // logged out or closed
)

// String gives the word for logs and reports.
func (s State) String() string {
	switch s {
	case StateUp:
		return "up"
	case StateLost:
		return "lost"
	case StateRefused:
		return "refused"
	case StateClosed:
		return "closed"
	}
	return "unknown"
}

// Status is a session's state with its history. Since carries the monotonic
// clock; for StateRefused it is the time when the session was lost, not of the
// refusal, so that a caller's bound counts from the right moment.
type Status struct {
	State State
	Since time.Time
	Why   string
}

// eventBuffer is how many events wait for a slow reader. The oldest is dropped
// then: the newest tells the truth, and Status tells it at any time.
const eventBuffer = 64

// teller keeps the status and hands out the events.
type teller struct {
	events chan Event

	mu     sync.Mutex
	status Status
	closed bool
}

func newTeller() *teller { return &teller{events: make(chan Event, eventBuffer)} }

func (t *teller) now() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status
}

// lost, recovered and refused change the status and tell it, once per change.
func (t *teller) lost(why string) {
	t.change(Lost, Status{State: StateLost, Since: time.Now(), Why: why})
}

func (t *teller) recovered() {
	t.change(Recovered, Status{State: StateUp, Since: time.Now()})
}

func (t *teller) refused(why string) {
	if now := t.now(); now.State != StateRefused {
		t.change(Refused, Status{State: StateRefused, Since: now.Since, Why: why})
	}
}

// up sets the first state, which is no event.
func (t *teller) up() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status = Status{State: StateUp, Since: time.Now()}
}

func (t *teller) change(k EventKind, s Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.status = s
	e := Event{Kind: k, At: time.Now(), Why: s.Why}
	for {
		select {
		case t.events <- e:
			return
		default:
		}
		select {
		case <-t.events:
		default:
		}
	}
}

// close ends the events; the last status stays readable.
func (t *teller) close(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	t.status = Status{State: StateClosed, Since: time.Now(), Why: why}
	close(t.events)
}
