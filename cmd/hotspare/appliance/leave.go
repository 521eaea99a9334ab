package appliance

import (
	"context"
	"strings"
	"time"

	"hotspare/haengine"
)

// leaveBound is how long a stop waits until every agent has its longer lease: some
// heartbeats.
const leaveBound = 5 * time.Second

// leave announces that the appliance will be away, so that no agent gives its
// application up while the appliance is upgraded. Whoever has not got the longer
// lease in time keeps the usual one, and is named.
func (a *Appliance) leave(ctx context.Context) {
	away := a.cfg.PlannedOutage
	if away == nil || *away == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveBound)
	defer cancel()
	if err := a.engine.Submit(ctx, haengine.PlannedRestart{For: *away, By: "the stop of the appliance"}); err != nil {
		a.log.WarnContext(ctx, "the restart was not announced: agents keep their usual leases", "err", err)
		return
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		waiting := haengine.RestartReady(a.engine.Snapshot())
		if len(waiting) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			a.log.WarnContext(ctx, "some agents keep their usual leases", "applications", strings.Join(waiting, ", "))
			return
		case <-tick.C:
		}
	}
}
