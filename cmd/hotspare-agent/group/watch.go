package group

import (
	"context"
	"fmt"
	"time"

	"hotspare/haengine/agentlink"
)

// Watch checks the resources until ctx is done or the group is halted. A
// resource that has failed is brought online again, at most Policy.Restarts
// times within the window, restarts by systemd itself included; then its failure
// is reported as conclusive, once, and it is left alone.
func (g *Group) Watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.mu.Lock()
	g.unwatch = cancel
	g.mu.Unlock()
	tick := time.NewTicker(g.policy.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, m := range g.members {
			if g.isStopped() || ctx.Err() != nil {
				return
			}
			g.look(ctx, m)
		}
	}
}

// look checks one resource and acts on what it finds.
func (g *Group) look(ctx context.Context, m *member) {
	if g.begin(ctx) != nil {
		return
	}
	defer g.end()
	if m.failed || g.isStopped() {
		return
	}
	checkCtx, cancel := context.WithTimeout(ctx, max(10*g.policy.Every, 5*time.Second))
	defer cancel()
	h, err := m.driver.Check(checkCtx, m.Resource)
	if g.isStopped() {
		return
	}
	if err != nil {
		// Not knowing is no failure: other channels look at the service.
		g.log.Warn("resource not checked", "resource", m.Name, "err", err)
		return
	}
	g.count(m, h)
	switch {
	case h.OK && g.exhausted(m):
		g.conclude(m, fmt.Sprintf("restarted %d times within %s", len(m.restarts), g.policy.Window))
	case h.OK:
		if g.state(m) != agentlink.ResourceOnline {
			g.set(m, agentlink.ResourceOnline, "")
			g.report(m, agentlink.ResourceOnline, "", false)
		}
	case h.Pending:
		if g.state(m) == agentlink.ResourceOnline {
			g.set(m, agentlink.ResourceStarting, h.Why)
			g.report(m, agentlink.ResourceStarting, h.Why, false)
		}
	default:
		g.fail(ctx, m, h.Why)
	}
}

// count adds restarts that somebody else did, and forgets old ones.
func (g *Group) count(m *member, h Health) {
	now := g.opt.Up()
	for ; m.seen < h.Restarts; m.seen++ {
		m.restarts = append(m.restarts, now)
	}
	m.seen = h.Restarts // systemd counts from 0 again after a start
	kept := m.restarts[:0]
	for _, at := range m.restarts {
		if now-at < g.policy.Window {
			kept = append(kept, at)
		}
	}
	m.restarts = kept
}

// exhausted says whether more restarts happened than are allowed.
func (g *Group) exhausted(m *member) bool { return len(m.restarts) > max(g.policy.Restarts, 0) }

// fail meets a failure: a local restart if one is left, else the report.
func (g *Group) fail(ctx context.Context, m *member, why string) {
	g.set(m, agentlink.ResourceFailed, why)
	if len(m.restarts) >= g.policy.Restarts {
		g.conclude(m, fmt.Sprintf("%s; %d local restarts within %s", why, len(m.restarts), g.policy.Window))
		return
	}
	m.restarts = append(m.restarts, g.opt.Up())
	g.log.Warn("resource failed, local restart", "resource", m.Name, "why", why, "restart", len(m.restarts), "of", g.policy.Restarts)
	g.report(m, agentlink.ResourceFailed, fmt.Sprintf("%s; local restart %d of %d", why, len(m.restarts), g.policy.Restarts), false)
	if err := g.online(ctx, m); err != nil {
		return // the next look counts it again
	}
	m.seen = 0
}

// conclude reports that the resource does not come back by local means.
func (g *Group) conclude(m *member, why string) {
	m.failed = true
	g.set(m, agentlink.ResourceFailed, why)
	g.log.Error("resource failed for good", "resource", m.Name, "why", why)
	g.report(m, agentlink.ResourceFailed, why, true)
}
