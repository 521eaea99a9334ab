package appliance

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/monitor"
)

// watching keeps the monitors in step with the grants (an application is looked
// at from the moment in which its claim was ordered until its grant ends) and the
// BMCs' queues in step with the nodes.
func (a *Appliance) watching(ctx context.Context) error {
	ms := monitor.New(haengine.FromAppliance, func(s haengine.Sample) {
		if app := a.engine.Snapshot().Durable.Apps[s.App]; app != nil && app.Grant != nil && app.Grant.Epoch == s.Epoch {
			a.ladders.sample(app.Grant.Node, s)
		}
		if err := a.engine.Submit(ctx, s); err != nil && ctx.Err() == nil {
			a.log.WarnContext(ctx, "sample lost", "app", s.App, "monitor", s.Monitor, "err", err)
		}
	})
	defer ms.Close()
	changes := a.engine.Subscribe(ctx)
	for {
		st := a.engine.Snapshot()
		live := func(app string) bool {
			s := st.Durable.Apps[app]
			return s != nil && s.Grant != nil && s.Grant.Claimed
		}
		ms.Keep(live)
		a.bmcs.keep(func(node string) bool { return st.Durable.Nodes[node] != nil })
		for name, s := range st.Durable.Apps {
			if live(name) {
				ms.Watch(s.Spec, s.Grant.Epoch)
			}
		}
		select {
		case _, ok := <-changes:
			if ok {
				break
			}
			select {
			case <-a.engine.Done():
				return nil
			default: // this reader fell behind: the snapshot has it all
				changes = a.engine.Subscribe(ctx)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// sessionPoll is how often the target's sessions are compared with what the
// engine was told.
const sessionPoll = 250 * time.Millisecond

// storageSessions tells the engine when the sessions of an application's root
// begin and end: the target's own view of who lives.
func (a *Appliance) storageSessions(ctx context.Context) error {
	type key struct {
		app   string
		epoch haengine.Epoch
	}
	open := map[key]bool{}
	tick := time.NewTicker(sessionPoll)
	defer tick.Stop()
	for {
		seen := map[key]bool{}
		apps := a.engine.Snapshot().Durable.Apps
		for volume, sessions := range a.exports.AllSessions() {
			app, _, _ := strings.Cut(volume, ".") // see volumeName
			if apps[app] == nil {
				continue
			}
			for _, x := range sessions {
				seen[key{app, haengine.Epoch(x.Epoch)}] = true
			}
		}
		for k := range seen {
			if !open[k] {
				a.tell(ctx, haengine.StorageSession{App: k.app, Epoch: k.epoch, Open: true})
			}
		}
		for k := range open {
			if !seen[k] {
				a.tell(ctx, haengine.StorageSession{App: k.app, Epoch: k.epoch})
			}
		}
		open = seen
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *Appliance) tell(ctx context.Context, e haengine.Event) {
	if err := a.engine.Submit(ctx, e); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "event lost", "event", fmt.Sprintf("%T", e), "err", err)
	}
}

// compromised tells the engine of a node whose join secret somebody else may have
// (SAFETY, trust level L1). It must not block: a server's handler calls it.
func (a *Appliance) compromised(ctx context.Context, node, why string) {
	a.log.ErrorContext(ctx, "somebody can read boot traffic", "code", hotspare.CodeTokenReused, "node", node, "why", why)
	if node == "" {
		return // a token of a start that is long over
	}
	go a.tell(context.WithoutCancel(ctx), haengine.Quarantine{Node: node, Code: hotspare.CodeTokenReused, Reason: why})
}

// healthPoll is how often the appliance looks at its own link.
const healthPoll = time.Second

// selfHealth tells the engine when the appliance itself is cut off from the
// segment (SAFETY S5).
func (a *Appliance) selfHealth(ctx context.Context) error {
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	var last string
	for {
		why := a.isolated()
		if why != last {
			a.tell(ctx, haengine.SelfHealth{Isolated: why != "", Why: why})
			last = why
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// isolated says why the appliance cannot judge what it sees: none of its links
// reaches anybody, or one does not that an application answers on. A link that
// carries nothing may be down.
func (a *Appliance) isolated() string {
	links := a.cfg.Network.links()
	var down []string
	for _, l := range links {
		why := isolated(l.Interface)
		if why == "" {
			continue
		}
		if len(links) == 1 {
			return why
		}
		for _, app := range a.engine.Snapshot().Durable.Apps {
			if l.Address.Masked().Contains(app.Spec.Address.Addr()) {
				return why + ", and " + app.Spec.Name + " answers there"
			}
		}
		down = append(down, why)
	}
	if len(down) < len(links) {
		return ""
	}
	return strings.Join(down, "; ")
}

// isolated says why the interface reaches nobody, or "". IFF_RUNNING follows the
// operational state (RFC 2863; Linux Documentation/networking/operstates.rst).
func isolated(iface string) string {
	ifi, err := net.InterfaceByName(iface)
	switch {
	case err != nil:
		return "the interface " + iface + " is gone"
	case ifi.Flags&net.FlagUp == 0:
		return "the interface " + iface + " is down"
	case ifi.Flags&net.FlagRunning == 0:
		return "the interface " + iface + " has no link"
	}
	return ""
}
