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
		return a.explainBoot(name)
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

// machine gives the MAC address of a node or of a machine that is named by it.
func (a *Appliance) machine(name string) (boot.MAC, error) {
	mac, err := boot.ParseMAC(name)
	if err == nil {
		return mac, nil
	}
	if mac, ok := a.ladders.mac(name); ok {
		return mac, nil
	}
	return boot.MAC{}, &hotspare.Error{
		Code: hotspare.CodeInvalid, What: fmt.Sprintf("%.80q is neither a MAC address nor a node", name), Fix: "hotspare explain boot 52:54:00:77:00:01",
	}
}

// Boots gives the last boot of every machine that asked lately, the latest
// first, without its single steps.
func (a *Appliance) Boots(context.Context) ([]boot.Ladder, error) {
	out := []boot.Ladder{}
	for _, m := range a.recorder.Machines() {
		if len(out) == maxBootRows {
			break
		}
		if all := a.ladders.of(m.MAC); len(all) > 0 {
			for i := range all[0].Rungs {
				all[0].Rungs[i].Steps = nil
			}
			out = append(out, all[0])
		}
	}
	return out, nil
}

// maxBootRows bounds the list: a flood of invented machines must not make the
// console unusable.
const maxBootRows = 200

// BootsOf gives the boots of one machine, the newest first.
func (a *Appliance) BootsOf(_ context.Context, name string) ([]boot.Ladder, error) {
	mac, err := a.machine(name)
	if err != nil {
		return nil, err
	}
	all := a.ladders.of(mac)
	if len(all) == 0 {
		return nil, &hotspare.Error{
			Code: hotspare.CodeNotFound, What: "this machine has not asked for anything", Where: mac.String(),
			Why: "no DHCP, TFTP or HTTP request of it was seen", Fix: "check its cable, VLAN and boot order",
		}
	}
	return all, nil
}

func (a *Appliance) explainBoot(name string) (api.Explanation, error) {
	all, err := a.BootsOf(context.Background(), name)
	if err != nil {
		return api.Explanation{}, err
	}
	l := all[0]
	e := api.Explanation{Subject: "boot " + l.MAC.String(), Verdict: "unknown machine; " + l.Verdict, Boots: all}
	if l.Node != "" {
		e.Verdict = "node " + l.Node + "; " + l.Verdict
	}
	for _, f := range l.Findings {
		text := f.String()
		if f.Fix != "" {
			text += "; fix: " + f.Fix
		}
		e.Rows = append(e.Rows, api.Row{Name: string(f.Gravity), Text: text})
	}
	for _, r := range l.Rungs {
		for _, s := range r.Steps {
			text := s.Request
			if s.Answer != "" {
				text += " -> " + s.Answer
			}
			if s.Reason != "" {
				text += ": " + s.Reason
			}
			e.Rows = append(e.Rows, api.Row{At: s.At.Format("15:04:05.000"), Name: string(r.Name), Text: text})
		}
	}
	return e, nil
}
