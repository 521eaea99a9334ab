package haengine

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// freshOff is how old a reading of off may be to spare the power-off before a
// boot.
const freshOff = 30 * time.Second

// Candidates gives every node with every rule that it passes or fails for the
// application, as placement would see them now; the eligible ones first, in the
// order in which they would be tried.
func Candidates(s State, app string) []Candidate {
	a := s.Durable.Apps[app]
	if a == nil {
		return nil
	}
	return Rules{}.begin(s, s.Soft.Now).candidates(a)
}

func (w *work) candidates(a *AppState) []Candidate {
	var out []Candidate
	for _, k := range w.nodes.keys() {
		out = append(out, w.candidate(a, w.nodes.get(k)))
	}
	slices.SortStableFunc(out, func(x, y Candidate) int {
		if x.Eligible != y.Eligible {
			if x.Eligible {
				return -1
			}
			return 1
		}
		if !x.Eligible {
			return strings.Compare(x.Node, y.Node)
		}
		if c := slices.Compare(x.order, y.order); c != 0 {
			return c
		}
		return strings.Compare(x.Node, y.Node)
	})
	for i := range out {
		if out[i].Eligible {
			out[i].Rank = i + 1
		}
		out[i].order = nil
	}
	return out
}

// candidate puts one node to all rules; none is skipped because an earlier one
// failed.
func (w *work) candidate(a *AppState, n *NodeState) Candidate {
	c := Candidate{Node: n.Spec.Name, Eligible: true}
	var missing []string
	rule := func(name string, ok bool, text, mend string) {
		c.Rules = append(c.Rules, Rule{name, ok, text})
		if !ok {
			c.Eligible = false
			missing = append(missing, mend)
		}
	}
	q, s := a.Spec.Requires, n.Spec
	if f := w.images.get(a.Spec.Image); q.Arch == "" && f != nil {
		q.Arch = f.Arch
	}
	rule("approved", s.Approved, yes(s.Approved, "approved", "not approved"), "approve it")
	pool := slices.Index(a.Spec.Pools, s.Pool)
	rule("pool", pool >= 0, "in pool "+s.Pool, "it is in pool "+s.Pool)
	rule("arch", q.Arch == "" || q.Arch == s.Arch, s.Arch+needs(q.Arch), "it is "+s.Arch)
	amount := func(name, unit string, has, want int) {
		rule(name, has >= want, fmt.Sprintf("%d%s, needs %d", has, unit, want), fmt.Sprintf("%d%s short", want-has, unit))
	}
	amount("cpus", " CPU", s.CPUs, q.CPUs)
	amount("memory", " MiB", s.MemoryMiB, q.MemoryMiB)
	amount("disk", " GiB", s.DiskGiB, q.DiskGiB)
	for _, k := range sortedKeys(q.Labels) {
		rule("label "+k, s.Labels[k] == q.Labels[k], fmt.Sprintf("%s=%q, needs %q", k, s.Labels[k], q.Labels[k]), fmt.Sprintf("label it %s=%s", k, q.Labels[k]))
	}
	if a.Asked != nil && a.Asked.To != "" {
		ok := a.Asked.To == s.Name
		rule("asked for", ok, yes(ok, "asked for", "the operator asked for "+a.Asked.To), "the operator asked for "+a.Asked.To)
	}
	w.availability(a, n, rule)
	c.Ways = w.waysOn(a, n)
	best := c.Ways[0]
	rule("way", best.OK, wayText(best), noWay(best))
	if best.OK {
		c.Way, c.Parked, c.Expect = best.Way, best.Parked, best.Expect
	}
	c.order = w.rank(a, n, pool, best)
	if len(missing) > 0 {
		c.Nearest = s.Name + ": " + strings.Join(missing, ", ")
	}
	return c
}

func wayText(c WayChoice) string { return string(c.Way) + ": " + c.Text }

func noWay(c WayChoice) string { return "no way is possible (" + wayText(c) + ")" }

// availability puts the rules about what the node is doing now.
func (w *work) availability(a *AppState, n *NodeState, rule func(name string, ok bool, text, mend string)) {
	name := a.Spec.Name
	own := n.Owner == name && (n.Phase == NodeOwned || n.Phase == NodeFencing || n.Phase == NodeReserved)
	free := n.Phase == NodeIdle || own && w.failureOf(a, n.Spec.Name) != nil || w.r.ownerIgnored && n.Phase == NodeOwned
	text := string(n.Phase)
	if n.Owner != "" {
		text += " for " + n.Owner
	}
	if n.Reason != "" {
		text += ": " + n.Reason
	}
	mend := "it is " + text
	if n.Phase == NodeOwned && !own && !free {
		text += w.preemption(a, n.Owner)
	}
	rule("free", free, text, mend)
	rule("not leaving", !n.Removing, yes(!n.Removing, "stays", "is being removed"), "it is being removed")
	seen := w.node(n.Spec.Name)
	bmc := "answers"
	if seen.BMCDead != "" {
		bmc = "does not answer: " + seen.BMCDead
	}
	rule("bmc", seen.BMCDead == "", bmc, "its BMC does not answer")
	f := w.frozen("", n.Spec.Name)
	if w.r.freezeIgnored {
		f = nil
	}
	rule("not frozen", f == nil, yes(f == nil, "not frozen", "its pool is frozen"), "lift the freeze")
	fence, why := fenceable(a.Spec.Policy, n.Spec)
	rule("fence", fence, why, "accept a second kind of evidence")
	fail := w.nodeFailure(a, n.Spec.Name)
	rested := fail == nil || a.Asked != nil && a.Asked.To == n.Spec.Name || w.now.Sub(fail.At) >= a.Spec.Policy.RetryAfter.D()
	text = "did not fail here"
	if fail != nil {
		text = fmt.Sprintf("failed here (%s); rests for %s", fail.Why, a.Spec.Policy.RetryAfter)
	}
	rule("rested", rested, text, fmt.Sprintf("the application failed on it; it rests for %s", a.Spec.Policy.RetryAfter))
}

// preemption says why a node with a weaker application is not taken.
func (w *work) preemption(a *AppState, owner string) string {
	v := w.apps.get(owner)
	switch {
	case v == nil:
		return ""
	case a.Spec.Policy.PreemptGap == 0:
		return fmt.Sprintf(" (priority %d against %d; the policy never preempts)", v.Spec.Priority, a.Spec.Priority)
	}
	return fmt.Sprintf(" (priority %d against %d; preemption is not offered by this version)", v.Spec.Priority, a.Spec.Priority)
}

// fenceable says whether the policy leaves a fence that can succeed when the
// node's power fails as a whole (SAFETY S2).
func fenceable(p Policy, n Node) (bool, string) {
	power, storage := slices.Contains(p.Evidence, EvidencePower), slices.Contains(p.Evidence, EvidenceStorage)
	switch {
	case !power && !storage:
		return false, "the policy accepts neither power nor storage evidence"
	case n.BMC.SharedPower && !storage:
		return false, "its BMC loses power with it, and the policy accepts nothing else"
	}
	return true, "can be fenced"
}

// rank gives the sort key of a node; the lowest is tried first.
func (w *work) rank(a *AppState, n *NodeState, pool int, best WayChoice) []int {
	failed, held, off, read := 0, 0, 1, 1
	if w.warmedFor(n.Spec.Name, a.Spec.Name) != "" {
		held = 1
	}
	if w.failureOf(a, n.Spec.Name) != nil || n.Reason != "" {
		failed = 1
	}
	seen := w.node(n.Spec.Name)
	if !seen.PowerAt.IsZero() {
		read = 0
	}
	if seen.Power == PowerIsOff {
		off = 0
	}
	q := a.Spec.Requires
	if best.Parked {
		off, read = 0, 0
	}
	return []int{failed, pool, held, best.rank, off, read, n.Spec.MemoryMiB - q.MemoryMiB, n.Spec.CPUs - q.CPUs}
}

// failureOf gives a failure of the application on a node, in whatever way.
func (w *work) failureOf(a *AppState, node string) *Failure {
	for i := range a.Failures {
		if a.Failures[i].Node == node {
			return &a.Failures[i]
		}
	}
	return nil
}

// nodeFailure gives one that is held against the node as a whole.
func (w *work) nodeFailure(a *AppState, node string) *Failure {
	for i := range a.Failures {
		if f := &a.Failures[i]; f.Node == node && !f.Parked {
			return f
		}
	}
	return nil
}

// Armable says which nodes of an application's pools could carry it as far as
// fencing goes, and why others could not; armed means at least one can.
func Armable(s State, app string) (armed bool, why []Reason) {
	a := s.Durable.Apps[app]
	if a == nil {
		return false, nil
	}
	for _, k := range sortedKeys(s.Durable.Nodes) {
		n := s.Durable.Nodes[k]
		if !slices.Contains(a.Spec.Pools, n.Spec.Pool) {
			continue
		}
		ok, text := fenceable(a.Spec.Policy, n.Spec)
		if ok {
			armed = true
			continue
		}
		why = append(why, Reason{"fence", k + ": " + text})
	}
	return armed, why
}

func yes(ok bool, t, f string) string {
	if ok {
		return t
	}
	return f
}

func needs(v string) string {
	if v == "" {
		return ""
	}
	return ", needs " + v
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
