package haengine

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"hotspare"
)

// work is one step in progress: a copy-on-write view of the state. What is not
// changed stays shared with the state before.
type work struct {
	r   Rules
	now Stamp
	s   State

	nodes     table[string, NodeState]
	pools     table[string, Pool]
	apps      table[string, AppState]
	failovers table[FailoverID, Failover]
	freezes   table[string, Freeze]
	pending   table[ActionID, Pending]
	images    table[string, ImageFacts]
	times     table[string, Measured]
	softApps  table[string, AppSoft]
	softNodes table[string, NodeSoft]
	softPend  table[ActionID, Pending]

	meta      bool // site, floors, incidents, counters or fences changed
	ownLeases bool
	all       bool // every application and node is looked at
	ticked    bool // time passed: standby is looked at
	touched   map[string]bool
	out       []Action
}

func (r Rules) begin(s State, now Stamp) *work {
	w := &work{r: r, now: now, s: s, touched: map[string]bool{}}
	w.s.Soft.Now, w.s.Soft.Said, w.s.delta = now, nil, Delta{}
	d, f := &w.s.Durable, &w.s.Soft
	w.nodes = table[string, NodeState]{m: &d.Nodes, clone: cloneNode}
	w.images = table[string, ImageFacts]{m: &d.Images}
	w.times = table[string, Measured]{m: &d.Times}
	w.pools = table[string, Pool]{m: &d.Pools}
	w.apps = table[string, AppState]{m: &d.Apps, clone: cloneApp}
	w.failovers = table[FailoverID, Failover]{m: &d.Failovers, clone: cloneFailover}
	w.freezes = table[string, Freeze]{m: &d.Freezes}
	w.pending = table[ActionID, Pending]{m: &d.Pending}
	w.softApps = table[string, AppSoft]{m: &f.Apps, clone: cloneAppSoft}
	w.softNodes = table[string, NodeSoft]{m: &f.Nodes}
	w.softPend = table[ActionID, Pending]{m: &f.Pending}
	return w
}

// finish gives out the orders that are due and closes the step.
func (w *work) finish() (State, []Action) {
	w.dispatch()
	d := Delta{
		Nodes: w.nodes.settle(), Pools: w.pools.settle(), Apps: w.apps.settle(),
		Failovers: w.failovers.settle(), Freezes: w.freezes.settle(), Pending: w.pending.settle(),
		Images: w.images.settle(), Times: w.times.settle(),
		Entries: w.s.Soft.Said,
	}
	if w.meta {
		m := w.s.Durable
		d.Meta = &Meta{m.Version, m.Site, m.Floors, m.Incidents, m.NextAction, m.NextFailover, m.Fences, m.Planned}
	}
	w.s.delta = d
	return w.s, w.out
}

// table is one map of the state, copied when first changed.
type table[K cmp.Ordered, V any] struct {
	m       *map[K]*V
	before  map[K]*V // the map as the step found it
	clone   func(V) V
	owned   bool
	changed map[K]*V
}

// settle undoes changes that changed nothing, so that a state that stays as it
// is costs no journal entry.
func (t *table[K, V]) settle() map[K]*V {
	for k, v := range t.changed {
		if old := t.before[k]; old != nil && v != nil && reflect.DeepEqual(old, v) {
			(*t.m)[k] = old
			delete(t.changed, k)
		}
	}
	return t.changed
}

func (t *table[K, V]) get(k K) *V { return (*t.m)[k] }

// edit gives an entry that may be changed in this step, or nil.
func (t *table[K, V]) edit(k K) *V {
	v := (*t.m)[k]
	if v == nil {
		return nil
	}
	if _, ok := t.changed[k]; ok {
		return v
	}
	c := *v
	if t.clone != nil {
		c = t.clone(c)
	}
	t.put(k, &c)
	return &c
}

func (t *table[K, V]) own() {
	if !t.owned {
		t.before = *t.m
		*t.m, t.owned, t.changed = maps.Clone(*t.m), true, map[K]*V{}
		if *t.m == nil {
			*t.m = map[K]*V{}
		}
	}
}

func (t *table[K, V]) put(k K, v *V) {
	t.own()
	(*t.m)[k], t.changed[k] = v, v
}

func (t *table[K, V]) del(k K) {
	if (*t.m)[k] == nil {
		return
	}
	t.own()
	delete(*t.m, k)
	t.changed[k] = nil
}

// keys gives the keys in order: nothing in the core depends on a map's order.
func (t *table[K, V]) keys() []K { return slices.Sorted(maps.Keys(*t.m)) }

func cloneApp(a AppState) AppState {
	if a.Grant != nil {
		g := cloneGrant(*a.Grant)
		a.Grant = &g
	}
	a.Old = slices.Clone(a.Old)
	for i := range a.Old {
		a.Old[i] = cloneGrant(a.Old[i])
	}
	a.Failures, a.Ledger = slices.Clone(a.Failures), slices.Clone(a.Ledger)
	return a
}

func cloneGrant(g Grant) Grant {
	if g.Exclusion != nil {
		x := *g.Exclusion
		x.Void = slices.Clone(x.Void)
		g.Exclusion = &x
	}
	return g
}

// cloneNode copies what is changed in place; facts and copies are replaced as a
// whole.
func cloneNode(n NodeState) NodeState {
	if n.Park != nil {
		p := *n.Park
		n.Park = &p
	}
	return n
}

func cloneFailover(f Failover) Failover {
	f.Attempts, f.Evidence, f.Steps = slices.Clone(f.Attempts), slices.Clone(f.Evidence), slices.Clone(f.Steps)
	return f
}

func cloneAppSoft(a AppSoft) AppSoft {
	a.Checks, a.Failing = maps.Clone(a.Checks), maps.Clone(a.Failing)
	return a
}

// seen gives what was seen of a node lately, for changing.
func (w *work) seen(node string) *NodeSoft {
	if w.softNodes.get(node) == nil {
		w.softNodes.put(node, &NodeSoft{Power: PowerUnknown})
	}
	return w.softNodes.edit(node)
}

// node gives what was seen of a node lately, for reading.
func (w *work) node(name string) NodeSoft {
	if n := w.softNodes.get(name); n != nil {
		return *n
	}
	return NodeSoft{Power: PowerUnknown}
}

// soft gives the counters of the application's current grant, for changing;
// they begin anew with every grant.
func (w *work) soft(a *AppState) *AppSoft {
	if f := w.softApps.get(a.Spec.Name); f == nil || f.Epoch != grantEpoch(a) {
		w.softApps.put(a.Spec.Name, &AppSoft{Epoch: grantEpoch(a), Since: w.now.At, Checks: map[string]*Check{}})
	}
	return w.softApps.edit(a.Spec.Name)
}

// watched gives the counters for reading.
func (w *work) watched(a *AppState) AppSoft {
	if f := w.softApps.get(a.Spec.Name); f != nil && f.Epoch == grantEpoch(a) {
		return *f
	}
	return AppSoft{Epoch: grantEpoch(a), Since: w.now.At}
}

func grantEpoch(a *AppState) Epoch {
	if a.Grant == nil {
		return 0
	}
	return a.Grant.Epoch
}

func (w *work) touch(app string) { w.touched[app] = true }

// say adds a line to the history.
func (w *work) say(a *AppState, node, format string, args ...any) {
	e := Entry{Stamp: w.now, Node: node, Text: fmt.Sprintf(format, args...)}
	if a != nil {
		e.App, e.Epoch, e.Failover = a.Spec.Name, a.Epoch, a.Failover
	}
	w.s.Soft.Said = append(w.s.Soft.Said, e)
}

// notify tells the administrator once per incident.
func (w *work) notify(incident string, n Notice) {
	if _, ok := w.s.Durable.Incidents[incident]; ok {
		return
	}
	w.s.Durable.Incidents = maps.Clone(w.s.Durable.Incidents)
	w.s.Durable.Incidents[incident] = w.now
	w.meta = true
	n.Incident, n.At = incident, w.now
	w.order(Notify{Order: Order{App: n.App, Node: n.Node}, Notice: n}, 0)
	w.s.Soft.Said = append(w.s.Soft.Said, Entry{Stamp: w.now, App: n.App, Node: n.Node, Code: n.Code, Text: "notice: " + n.Text})
}

// resolve closes every incident under a prefix and tells so.
func (w *work) resolve(prefix, text string) {
	for _, k := range slices.Sorted(maps.Keys(w.s.Durable.Incidents)) {
		if !strings.HasPrefix(k, prefix) {
			continue
		}
		w.s.Durable.Incidents = maps.Clone(w.s.Durable.Incidents)
		delete(w.s.Durable.Incidents, k)
		w.meta = true
		w.order(Notify{Notice: Notice{Incident: k, Text: text, Resolved: true, At: w.now}}, 0)
	}
}

// enter moves an application to a phase.
func (w *work) enter(a *AppState, p Phase, format string, args ...any) {
	a.Phase, a.Since, a.Resume, a.Code, a.Reason, a.Fix, a.Hold = p, w.now, "", "", "", "", nil
	text := string(p)
	if format != "" {
		text += ": " + fmt.Sprintf(format, args...)
	}
	node := ""
	if a.Grant != nil {
		node = a.Grant.Node
	}
	w.say(a, node, "%s", text)
}

// block stops an application where it is, visibly; it goes on by itself when
// what it waits for comes.
func (w *work) block(a *AppState, resume Phase, code hotspare.Code, reason, fix string) {
	reason = brief(reason)
	if a.Phase == PhaseBlocked && a.Resume == resume && a.Reason == reason {
		return
	}
	w.enter(a, PhaseBlocked, "%s", reason)
	a.Resume, a.Code, a.Reason, a.Fix = resume, code, reason, fix
	w.notify("app/"+a.Spec.Name+"/blocked", Notice{App: a.Spec.Name, Code: code, Text: a.Spec.Name + " is blocked: " + reason, Fix: fix})
}

// nodePhase moves a node to a phase.
func (w *work) nodePhase(n *NodeState, p NodePhase, reason string) {
	reason = brief(reason)
	n.Phase, n.Since, n.Reason = p, w.now, reason
	text := string(p)
	if reason != "" {
		text += ": " + reason
	}
	w.say(nil, n.Spec.Name, "node %s", text)
}
