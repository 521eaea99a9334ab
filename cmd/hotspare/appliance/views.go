package appliance

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/ui/api"
)

// Snapshot gives the state as API and console show it.
func (a *Appliance) Snapshot(context.Context) (api.Snapshot, error) {
	st := a.engine.Snapshot()
	s := api.Snapshot{At: time.Now(), Images: a.imageViews(), Volumes: a.volumeViews()}
	for _, n := range sorted(st.Durable.Nodes) {
		s.Nodes = append(s.Nodes, a.nodeView(st, n))
	}
	for _, p := range sorted(st.Durable.Pools) {
		v := api.Pool{Pool: *p}
		for _, n := range st.Durable.Nodes {
			if n.Spec.Pool == p.Name {
				v.Nodes++
				if n.Phase == haengine.NodeIdle {
					v.Idle++
				}
			}
		}
		s.Pools = append(s.Pools, v)
	}
	for _, app := range sorted(st.Durable.Apps) {
		s.Applications = append(s.Applications, applicationView(st, app))
	}
	all := slices.Collect(maps.Values(st.Durable.Failovers))
	slices.SortFunc(all, func(x, y *haengine.Failover) int { return cmp.Compare(y.ID, x.ID) })
	for _, f := range all {
		s.Failovers = append(s.Failovers, failoverView(st, f))
	}
	s.Site = a.siteView(st)
	return s, nil
}

func sorted[V any](m map[string]V) []V {
	out := make([]V, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[k])
	}
	return out
}

func (a *Appliance) siteView(st haengine.State) api.Site {
	running, idle := 0, 0
	var not []string
	for _, app := range sorted(st.Durable.Apps) {
		if p := haengine.PhaseOf(st, app.Spec.Name); p == haengine.PhaseRunning {
			running++
		} else {
			not = append(not, app.Spec.Name+" is "+string(p))
		}
	}
	for _, n := range st.Durable.Nodes {
		if n.Phase == haengine.NodeIdle {
			idle++
		}
	}
	v := api.Site{Version: a.version, Verdict: fmt.Sprintf("%d of %d applications run, %d of %d nodes are spare", running, len(st.Durable.Apps), idle, len(st.Durable.Nodes))}
	if len(not) > 0 {
		v.Verdict += "; " + strings.Join(not, ", ")
	}
	if st.Soft.Isolated {
		v.Holds = append(v.Holds, "the appliance is cut off and only observes: "+st.Soft.IsolatedWhy)
	}
	for _, f := range sorted(st.Durable.Freezes) {
		v.Holds = append(v.Holds, frozen(f))
	}
	return v
}

func frozen(f *haengine.Freeze) string {
	s := fmt.Sprintf("%s is frozen by %s since %s", f.Scope, f.By, f.At.Wall.Format(time.RFC3339))
	if !f.Until.IsZero() {
		s += " until " + f.Until.Format(time.RFC3339)
	}
	if f.Reason != "" {
		s += ": " + f.Reason
	}
	return s
}

func (a *Appliance) nodeView(st haengine.State, n *haengine.NodeState) api.Node {
	v := api.Node{Node: n.Spec, Status: api.NodeStatus{
		Phase: string(n.Phase), Reason: n.Reason, Power: string(haengine.PowerUnknown), Application: n.Owner,
		Epoch: uint64(n.Epoch), BootID: n.BootID, Address: a.lease(n.Spec),
	}}
	if p := n.Park; p != nil {
		v.Status.Standby = &api.Parking{
			State: api.StandbyBooting, For: p.Apps, Image: p.Image, Kernel: p.Kernel, Since: wall(p.Since), Loaded: p.Loaded, Why: p.Refused,
		}
		if p.BootID != "" {
			v.Status.Standby.State = api.StandbyParked
		}
	}
	if s := st.Soft.Nodes[n.Spec.Name]; s != nil {
		if s.Power != "" {
			v.Status.Power = string(s.Power)
		}
		v.Status.LastSeen = wall(s.Heard)
		if s.BMCDead != "" && v.Status.Reason == "" {
			v.Status.Reason = "BMC: " + s.BMCDead
		}
	}
	for _, c := range n.Copies {
		v.Status.Copies = append(v.Status.Copies, api.LocalCopy{Application: c.App, Image: c.Image, Disk: c.Disk, Slot: c.Slot, State: string(c.State), Epoch: uint64(c.Epoch)})
	}
	if k, ok := a.inventory.of(n.Spec.Name); ok {
		inventoryView(&v.Status, k)
	}
	for _, s := range a.link.Sessions() {
		v.Status.Linked = v.Status.Linked || s.Node == n.Spec.Name
	}
	return v
}

func inventoryView(v *api.NodeStatus, k known) {
	if !k.At.IsZero() {
		v.Inventory, v.InventoryAt = factsView(k.Facts), &k.At
	}
	if h := k.Health; h != nil {
		v.Health = &api.NodeHealth{At: k.HealthAt, MemoryErrors: h.MemoryErrors, MemoryFatal: h.MemoryFatal}
		for _, t := range h.Temperatures {
			v.Health.Temperatures = append(v.Health.Temperatures, api.NodeTemperature{Name: boot.Plain(t.Name), MilliC: t.MilliC, Critical: t.Critical})
		}
		for _, l := range h.LinksDown {
			v.Health.LinksDown = append(v.Health.LinksDown, boot.Plain(l))
		}
	}
	if p := k.Progress; p != nil {
		v.Busy = &api.NodeWork{Step: boot.Plain(p.Step), Done: p.Done, Total: p.Total}
	}
}

// lease gives the address that DHCP last gave the node.
func (a *Appliance) lease(n haengine.Node) netip.Addr {
	for _, m := range n.MACs {
		mac, err := boot.ParseMAC(m)
		if err != nil {
			continue
		}
		for _, l := range a.dhcp.Leases() {
			if l.MAC == mac {
				return l.Addr
			}
		}
	}
	return netip.Addr{}
}

func wall(s haengine.Stamp) *time.Time {
	if s.Wall.IsZero() {
		return nil
	}
	return &s.Wall
}

func applicationView(st haengine.State, app *haengine.AppState) api.Application {
	name := app.Spec.Name
	s := api.ApplicationStatus{Phase: string(haengine.PhaseOf(st, name)), Reason: app.Reason, Epoch: uint64(app.Epoch), Since: wall(app.Since)}
	if app.Hold != nil {
		s.Reason = strings.TrimSpace(s.Reason + " held by " + app.Hold.Rule + ": " + app.Hold.Text + "; " + app.Hold.Lift)
	}
	if app.Fix != "" {
		s.Reason += "; fix: " + app.Fix
	}
	if g := app.Grant; g != nil {
		s.Node, s.Way, s.Epoch = g.Node, string(g.Way), uint64(g.Epoch)
	}
	var last *haengine.Failover
	for _, f := range st.Durable.Failovers {
		if f.App == name && (last == nil || f.ID > last.ID) {
			last = f
		}
	}
	if last != nil {
		s.Failover = failoverID(last.ID)
		s.Evidence, s.Proven = evidence(last)
	}
	if f := st.Durable.Freezes[haengine.Scope{App: name}.String()]; f != nil {
		s.Frozen = frozen(f)
	}
	if soft := st.Soft.Apps[name]; soft != nil {
		for _, c := range sorted(soft.Checks) {
			s.Checks = append(s.Checks, api.Check{Monitor: c.Monitor, Vantage: string(c.From), OK: c.OK, Why: c.Why, At: wall(c.At)})
		}
	}
	return api.Application{Application: app.Spec, Status: s}
}

func failoverID(id haengine.FailoverID) string { return fmt.Sprintf("f%d", id) }

// evidence gives the last valid evidence of a failover and what it proves.
func evidence(f *haengine.Failover) (kind, proven string) {
	for _, e := range f.Evidence {
		if e.Void != "" {
			continue
		}
		kind = string(e.Kind)
		switch e.Kind {
		case haengine.EvidenceStorage:
			proven = "one writer at once, one runner after the drop bound"
		default:
			proven = "one runner"
		}
	}
	return kind, proven
}

func failoverView(st haengine.State, f *haengine.Failover) api.Failover {
	kind, _ := evidence(f)
	v := api.Failover{
		ID: failoverID(f.ID), Application: f.App, Cause: string(f.Cause) + ": " + f.Why, From: f.From, To: f.To, Epoch: uint64(f.ToEpoch),
		Way: string(f.Way), Evidence: kind, Outcome: string(f.Outcome), Seconds: seconds(f), Candidates: candidateViews(f.Candidates),
	}
	start := startOf(f)
	v.StartedAt, v.EndedAt = start.Wall, wall(f.Marks.Ended)
	switch f.Outcome {
	case haengine.OutcomeOpen:
		v.Outcome = "running"
		if app := st.Durable.Apps[f.App]; app != nil {
			v.Reason = app.Reason
			if app.Phase == haengine.PhaseBlocked || app.Phase == haengine.PhaseDown {
				v.Outcome = string(app.Phase)
			}
			if g := app.Grant; g != nil {
				v.To, v.Epoch, v.Way = g.Node, uint64(g.Epoch), string(g.Way)
			}
		}
	case haengine.OutcomeRunning:
		v.Outcome = "succeeded"
	}
	v.Steps = timeline(f, start)
	return v
}

// startOf is the moment that a failover's times count from.
func startOf(f *haengine.Failover) haengine.Stamp {
	for _, s := range []haengine.Stamp{f.Marks.LastGood, f.Marks.Suspected, f.Marks.Failed, f.Marks.Decided} {
		if !s.IsZero() {
			return s
		}
	}
	return haengine.Stamp{}
}

func seconds(f *haengine.Failover) map[string]float64 {
	p := f.Phases
	return map[string]float64{
		"detect": p.Detect.Seconds(), "decide": p.Decide.Seconds(), "fence": p.Fence.Seconds(), "provision": p.Provision.Seconds(),
		"boot": p.Boot.Seconds(), "online": p.Online.Seconds(), "total": p.Total.Seconds(),
	}
}

// timeline merges marks, actions and evidence of a failover in order of time.
func timeline(f *haengine.Failover, start haengine.Stamp) []api.Step {
	var out []api.Step
	add := func(at haengine.Stamp, name, text string) {
		if !at.IsZero() {
			out = append(out, api.Step{At: at.Wall, After: at.Wall.Sub(start.Wall).Seconds(), Name: name, Text: text})
		}
	}
	add(f.Marks.LastGood, "last good", "the last check that passed")
	for _, o := range f.Observations {
		add(o.At, "observed", o.Channel+": "+o.Text)
	}
	add(f.Marks.Failed, "failed", f.Why)
	for _, t := range f.Attempts {
		add(t.Started, "granted", fmt.Sprintf("epoch %d to %s (%s)", t.Epoch, t.Node, t.Way))
		if t.Why != "" {
			add(t.Ended, "attempt ended", t.Why)
		}
	}
	for _, s := range f.Steps {
		add(s.Ordered, s.Kind, fmt.Sprintf("ordered for %s, epoch %d", cmp.Or(s.Node, f.App), s.Epoch))
		add(s.Ended, s.Kind, cmp.Or(s.Text, "done"))
	}
	for _, e := range f.Evidence {
		text := string(e.Kind) + ": " + e.Text
		if e.Void != "" {
			text += " (void: " + e.Void + ")"
		}
		add(e.At, "evidence", text)
	}
	add(f.Marks.Fenced, "fenced", "every earlier grant is excluded")
	add(f.Marks.Attached, "attached", "the volumes are exported to the new node")
	add(f.Marks.Joined, "joined", "the agent of the new node is there")
	add(f.Marks.Ended, "ended", cmp.Or(string(f.Outcome), "open"))
	slices.SortStableFunc(out, func(x, y api.Step) int { return x.At.Compare(y.At) })
	return out
}

func candidateViews(all []haengine.Candidate) []api.Candidate {
	var out []api.Candidate
	for _, c := range all {
		v := api.Candidate{Node: c.Node, Eligible: c.Eligible, Rank: c.Rank, Nearest: c.Nearest}
		for _, r := range c.Rules {
			v.Rules = append(v.Rules, api.Rule{Name: r.Name, OK: r.OK, Why: r.Text})
		}
		out = append(out, v)
	}
	return out
}

func (a *Appliance) imageViews() []api.Image {
	var out []api.Image
	for _, i := range a.images.List() {
		out = append(out, imageView(i))
	}
	return out
}

func (a *Appliance) volumeViews() []api.Volume {
	var out []api.Volume
	for _, i := range a.store.List() {
		v := api.Volume{
			Name: i.Name, SizeBytes: i.Size, Allocated: i.Allocated, Parent: i.Parent, Snapshot: i.Snapshot, ReadOnly: i.ReadOnly,
			Created: i.Created, Epoch: a.exports.Epoch(i.Name),
		}
		if i.Failed != nil {
			v.Stopped = api.ProblemOf(i.Failed)
		}
		if t, err := a.exports.TargetName(i.Name); err == nil {
			v.Target = t
		}
		if g, ok := a.exports.Live(i.Name); ok {
			v.GrantNode, v.GrantEpoch = g.Node, g.Epoch
		}
		for _, s := range a.exports.Sessions(i.Name) {
			v.Sessions = append(v.Sessions, api.Session{
				Initiator: s.Initiator, Address: s.Address, Node: s.Node, Epoch: s.Epoch, Since: s.Since, LastWrite: moment(s.LastWrite), InFlight: s.InFlight,
			})
		}
		stats := a.exports.Statistics(i.Name)
		v.ReadsOps, v.WritesOps = stats.Reads, stats.Writes
		v.LastWrite, v.LastFlush = moment(stats.LastWrite), moment(stats.LastFlush)
		v.Activity = activity(&stats, a.rates.of(i.Name))
		out = append(out, v)
	}
	slices.SortFunc(out, func(x, y api.Volume) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// moment gives a time as views show it; none for the zero time.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func notFound(kind, name string) error {
	return &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such " + kind, Where: name, Fix: "hotspare get " + kind + "s lists what exists"}
}
