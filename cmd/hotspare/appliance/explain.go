package appliance

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/ui/api"
)

// Explain answers "why?" with the engine's own reasons.
func (a *Appliance) Explain(_ context.Context, kind, name string) (api.Explanation, error) {
	st := a.engine.Snapshot()
	switch kind {
	case "app":
		if st.Durable.Apps[name] == nil {
			return api.Explanation{}, notFound("app", name)
		}
		e := explanation(haengine.ExplainApp(st, name))
		e.Candidates = candidateViews(haengine.Candidates(st, name))
		return e, nil
	case "failover":
		n, err := strconv.ParseUint(strings.TrimPrefix(name, "f"), 10, 64)
		f := st.Durable.Failovers[haengine.FailoverID(n)]
		if err != nil || f == nil {
			return api.Explanation{}, notFound("failover", name)
		}
		e := explanation(haengine.ExplainFailover(*f))
		e.Candidates = candidateViews(f.Candidates)
		return e, nil
	case "node":
		n := st.Durable.Nodes[name]
		if n == nil {
			return api.Explanation{}, notFound("node", name)
		}
		return explainNode(st, n), nil
	case "boot":
		mac, err := boot.ParseMAC(name)
		if n := st.Durable.Nodes[name]; err != nil && n != nil && len(n.Spec.MACs) > 0 {
			mac, err = boot.ParseMAC(n.Spec.MACs[0])
		}
		if err != nil {
			return api.Explanation{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: fmt.Sprintf("%q is neither a MAC address nor a node", name), Fix: "hotspare explain boot 52:54:00:77:00:01"}
		}
		return a.explainBoot(mac)
	}
	return api.Explanation{}, notFound("kind", kind)
}

func explanation(e haengine.Explanation) api.Explanation {
	out := api.Explanation{Subject: e.Title}
	for _, r := range e.Rows {
		if r.Topic != "candidate" { // they come with all their rules
			out.Rows = append(out.Rows, api.Row{Name: r.Topic, Text: r.Text})
		}
	}
	return out
}

func explainNode(st haengine.State, n *haengine.NodeState) api.Explanation {
	e := api.Explanation{Subject: "node " + n.Spec.Name, Verdict: string(n.Phase)}
	if n.Reason != "" {
		e.Verdict += ": " + n.Reason
	}
	add := func(name, text string) {
		if text != "" {
			e.Rows = append(e.Rows, api.Row{Name: name, Text: text})
		}
	}
	add("since", n.Since.Wall.Format(time.RFC3339))
	if n.Owner != "" {
		add("carries", fmt.Sprintf("%s, epoch %d", n.Owner, n.Epoch))
	}
	if n.OffProof != nil {
		add("proof", string(n.OffProof.Kind)+": "+n.OffProof.Text)
	}
	if s := st.Soft.Nodes[n.Spec.Name]; s != nil {
		add("power", fmt.Sprintf("%s, read at %s", s.Power, s.PowerAt.Wall.Format(time.RFC3339)))
		add("BMC", s.BMCDead)
	}
	return e
}

func (a *Appliance) explainBoot(mac boot.MAC) (api.Explanation, error) {
	t, ok := a.recorder.Trace(mac)
	if !ok {
		return api.Explanation{}, &hotspare.Error{
			Code: hotspare.CodeNotFound, What: "this machine has not asked for anything", Where: mac.String(),
			Why: "no DHCP, TFTP or HTTP request of it was seen since the appliance started", Fix: "check its cable, VLAN and boot order",
		}
	}
	e := api.Explanation{Subject: "boot " + mac.String(), Verdict: "unknown machine"}
	if t.Node != "" {
		e.Verdict = "node " + t.Node
	}
	for _, x := range t.Entries {
		e.Rows = append(e.Rows, api.Row{At: x.At.Format("15:04:05.000"), Name: string(x.Protocol), Text: x.Request + " -> " + x.Answer + ": " + x.Reason.String()})
	}
	if n := len(t.Entries); n > 0 {
		e.Verdict += "; last: " + t.Entries[n-1].Reason.String()
	}
	return e, nil
}
