package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Teardown undoes what was made, the last thing first. Every part has a name,
// which stands in its error. Add each part right after it was made.
type Teardown struct {
	mu    sync.Mutex
	parts []teardownPart
}

type teardownPart struct {
	name string
	undo func(context.Context) error
}

// Add registers a part.
func (t *Teardown) Add(name string, undo func(context.Context) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parts = append(t.parts, teardownPart{name, undo})
}

// Run undoes all parts once and goes on after an error; a second Run does
// nothing.
func (t *Teardown) Run(ctx context.Context) error {
	t.mu.Lock()
	parts := t.parts
	t.parts = nil
	t.mu.Unlock()
	var errs []error
	for i := len(parts) - 1; i >= 0; i-- {
		if err := parts[i].undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("tear down %s: %w", parts[i].name, err))
		}
	}
	return errors.Join(errs...)
}
