package haengine

import (
	"strings"
	"unicode/utf8"
)

// maxReason is the length of a reason that is shown on a node or an application,
// in characters; failover records keep the whole text.
const maxReason = 200

// brief gives the first line of a reason, cut where it is too long to be read.
func brief(s string) string {
	s, _, cut := strings.Cut(strings.TrimSpace(s), "\n")
	s = strings.TrimRight(s, " \t\r")
	if utf8.RuneCountInString(s) > maxReason {
		r := []rune(s)
		s, cut = string(r[:maxReason]), true
	}
	if cut {
		s += " ..."
	}
	return s
}

// quarantine puts a node aside that is not to be trusted. What it was chosen for
// is fenced and goes elsewhere; a node that may run an application now is left
// alone and alarmed about: stopping a service is not for whoever can replay a
// packet.
func (w *work) quarantine(e Quarantine) {
	n := w.nodes.get(e.Node)
	if n == nil {
		w.say(nil, e.Node, "an unknown node is not put aside: %s", e.Reason)
		return
	}
	key, who := "node/"+e.Node+"/quarantine", w.mayRun(e.Node)
	_, told := w.s.Durable.Incidents[key]
	aside := n.Phase == NodeQuarantined || n.Then == NodeQuarantined
	if told && (aside || who != "") {
		return // a repeated alarm is one incident
	}
	text, fix := "put aside", "find out what happened, then release "+e.Node+" from quarantine"
	if who != "" {
		text, fix = "it carries "+who+" and is left alone", "find out what happened; move "+who+" away, then put "+e.Node+" aside"
	}
	w.notify(key, Notice{Node: e.Node, App: who, Code: e.Code, Text: e.Node + ": " + e.Reason + ": " + text, Fix: fix})
	if who != "" {
		return
	}
	n = w.nodes.edit(e.Node)
	switch n.Phase {
	case NodeIdle, NodeQuarantined, NodeMaintenance:
		if n.Park != nil { // what waits there is not to be trusted
			w.fenceNode(n, NodeQuarantined, e.Reason)
			break
		}
		w.freeNode(n, NodeQuarantined, e.Reason)
	case NodeReserved, NodeOwned:
		if a := w.apps.edit(n.Owner); a != nil && a.Grant != nil && a.Grant.Node == e.Node {
			w.attemptFailed(a, e.Reason, true)
		} else {
			w.fenceNode(n, NodeQuarantined, e.Reason)
		}
	}
	if n.Phase == NodeFencing || n.Phase == NodeReturning { // however many of the pool are aside
		n.Then, n.Reason = NodeQuarantined, brief(e.Reason)
	}
	w.all = true
}

// mayRun names the application that a node may be running with right: under the
// live grant, or under one that ends in order.
func (w *work) mayRun(node string) string {
	for _, k := range w.apps.keys() {
		a := w.apps.get(k)
		if live(a) && a.Grant.Node == node {
			return k
		}
		for _, g := range a.Old {
			if x := g.Exclusion; g.Node == node && g.Claimed && x.Orderly && !x.Released && x.Proof == nil {
				return k
			}
		}
	}
	return ""
}

// mayQuarantine says whether one more node of the pool may be put aside without
// a person: never more than a quarter of it, at least one.
func (w *work) mayQuarantine(node string) bool {
	pool, aside := 0, 0
	me := w.nodes.get(node)
	if me == nil {
		return false
	}
	for _, k := range w.nodes.keys() {
		n := w.nodes.get(k)
		if n.Spec.Pool != me.Spec.Pool {
			continue
		}
		pool++
		if k != node && (n.Phase == NodeQuarantined || n.Then == NodeQuarantined) {
			aside++
		}
	}
	return aside < max(1, pool/4)
}
