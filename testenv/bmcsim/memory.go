package bmcsim

import (
	"context"
	"sync"
	"time"
)

// MemoryMachine is a Machine that is only a state in memory, for tests that
// need a BMC and no guest. The zero value is off; set its ID before use.
type MemoryMachine struct {
	// ID is what UUID gives.
	ID string
	// Delay is how long switching takes.
	Delay time.Duration

	mu     sync.Mutex
	on     bool
	starts []string
	next   string
	once   bool
	post   time.Duration
}

// PowerState implements Machine.
func (m *MemoryMachine) PowerState() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}

// PowerOn implements Machine: it notes the boot device of this start.
func (m *MemoryMachine) PowerOn(ctx context.Context) error {
	if !sleepUntil(ctx, time.Now().Add(m.Delay)) {
		return context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on {
		return nil
	}
	m.on = true
	m.starts = append(m.starts, m.next)
	if m.once {
		m.next, m.once = "", false
	}
	return nil
}

// PowerOff implements Machine.
func (m *MemoryMachine) PowerOff(ctx context.Context) error {
	if !sleepUntil(ctx, time.Now().Add(m.Delay)) {
		return context.Cause(ctx)
	}
	m.Set(false)
	return nil
}

// PowerSoft implements SoftOff.
func (m *MemoryMachine) PowerSoft(ctx context.Context) error { return m.PowerOff(ctx) }

// SetNextBoot implements Machine.
func (m *MemoryMachine) SetNextBoot(device string, once bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next, m.once = device, once
}

// SetPOSTDelay implements POSTDelayer.
func (m *MemoryMachine) SetPOSTDelay(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.post = d
}

// POSTDelay gives the delay that was set.
func (m *MemoryMachine) POSTDelay() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.post
}

// UUID implements Machine.
func (m *MemoryMachine) UUID() string { return m.ID }

// Set switches without asking the BMC, as a cut cable does.
func (m *MemoryMachine) Set(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = on
}

// Starts lists the boot device of each start, "" for the default.
func (m *MemoryMachine) Starts() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.starts...)
}
