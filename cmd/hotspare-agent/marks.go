package main

import (
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"hotspare/haengine/agentlink"
)

// initEnv tells the agent when PID 1 passed its mark: it is another process.
const initEnv = "HOTSPARE_INIT_MILLIS"

// markSpan is how long marks go with every heartbeat after the last of them was
// passed, or after the link came up. The appliance counts each of them once.
const markSpan = 20 * time.Second

// marks are the points that this boot has passed, for the appliance's ladder.
type marks struct {
	mu    sync.Mutex
	all   []agentlink.Mark
	fresh time.Duration // when they began to be worth telling, of CLOCK_BOOTTIME
}

// add keeps the first of each name: a link that comes back is no boot.
func (m *marks) add(name string, upMillis int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.all) >= agentlink.MaxMarks || slices.ContainsFunc(m.all, func(x agentlink.Mark) bool { return x.Name == name }) {
		return
	}
	m.all = append(m.all, agentlink.Mark{Name: name, UpMillis: upMillis})
	m.fresh = time.Duration(upMillis) * time.Millisecond
}

// inherit takes PID 1's mark.
func (m *marks) inherit() {
	if up, err := strconv.ParseInt(os.Getenv(initEnv), 10, 64); err == nil && up > 0 {
		m.add("init", up)
	}
}

// tell has all marks told anew: the appliance may be another process.
func (m *marks) tell(now time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fresh = now
}

// due gives what goes with a heartbeat at a time.
func (m *marks) due(now time.Duration) []agentlink.Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now-m.fresh > markSpan {
		return nil
	}
	return slices.Clone(m.all)
}
