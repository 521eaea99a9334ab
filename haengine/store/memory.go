package store

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"hotspare/haengine"
)

// Memory is a journal without a disk. What Save was given goes through the same
// encoding as on disk, so that a state that cannot be written shows here too.
// The zero value is empty and ready.
type Memory struct {
	mu      sync.Mutex
	records [][]byte
}

// Save keeps a delta.
func (m *Memory) Save(_ context.Context, d haengine.Delta) error {
	if d.IsEmpty() {
		return nil
	}
	b, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("memory journal: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.records = append(m.records, b)
	return nil
}

// Load replays all deltas.
func (m *Memory) Load(context.Context) (haengine.Durable, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var d haengine.Durable
	for i, b := range m.records {
		var x haengine.Delta
		if err := json.Unmarshal(b, &x); err != nil {
			return d, fmt.Errorf("memory journal: record %d: %w", i, err)
		}
		d.Merge(x)
	}
	return d, nil
}
