package appliance

import (
	"context"
	"log/slog"
	"testing"

	"hotspare/ui/api"
)

// Whoever sees that a task has ended may begin the same again.
func TestATaskThatIsSeenToHaveEndedIsInNobodysWay(t *testing.T) {
	ts := &tasks{log: slog.New(slog.DiscardHandler)}
	for range 20000 {
		x, err := ts.begin("the same", api.Task{}, func(context.Context, *task) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		for x.snapshot().State == "running" {
			x.mu.Lock()
			changed, state := x.changed, x.view.State
			x.mu.Unlock()
			if state == "running" {
				<-changed
			}
		}
	}
	if err := ts.stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}
