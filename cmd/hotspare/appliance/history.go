package appliance

import (
	"context"
	"time"

	"hotspare/haengine/store"
	"hotspare/ui/api"
)

// Events gives past events of the journal's history.
func (a *Appliance) Events(ctx context.Context, after uint64, limit int) ([]api.Event, error) {
	past, err := a.state.Events(ctx, after, limit)
	if err != nil {
		return nil, err
	}
	out := make([]api.Event, 0, len(past))
	for _, e := range past {
		out = append(out, eventView(e))
	}
	return out, nil
}

func eventView(e store.Event) api.Event {
	v := api.Event{ID: e.ID, At: e.Wall, Kind: "engine", Subject: e.App, Code: string(e.Code), Text: e.Text}
	if e.Failover != 0 {
		v.Kind = "failover " + failoverID(e.Failover)
	}
	if v.Subject == "" {
		v.Subject = e.Node
	} else if e.Node != "" {
		v.Subject += " on " + e.Node
	}
	return v
}

// followPause is how long the follower rests when the engine tells of no change;
// it bounds nothing but the wait after a missed wake-up.
const followPause = 2 * time.Second

// Follow gives every event after an id as it is journalled. The events are read
// from the journal, so a reader that resumes misses none.
func (a *Appliance) Follow(ctx context.Context, after uint64) (<-chan api.Event, error) {
	if after == 0 {
		last, err := a.state.Events(ctx, 0, 1)
		if err != nil {
			return nil, err
		}
		if len(last) > 0 {
			after = last[0].ID
		}
	}
	out := make(chan api.Event)
	changes := a.engine.Subscribe(ctx)
	go func() {
		defer close(out)
		rest := time.NewTicker(followPause)
		defer rest.Stop()
		for {
			fresh, err := a.state.Events(ctx, after, 5000)
			if err != nil {
				return
			}
			for _, e := range fresh {
				select {
				case out <- eventView(e):
					after = e.ID
				case <-ctx.Done():
					return
				}
			}
			if len(fresh) > 0 {
				continue
			}
			select {
			case _, ok := <-changes:
				if !ok {
					return
				}
			case <-rest.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
