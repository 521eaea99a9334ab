package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"hotspare/haengine"
)

// Story is a world that follows a script. Each line of the script is a verb with
// its arguments; the trace tells what came of it.
//
//	start [nodes=4] [apps=1] [evidence=power] [shared] [seed=1] [standby=2] [kernel=appliance] [ways=slot,install] [outage=2m] [slots]
//	run 30s                 let time pass
//	until running orders    let time pass until the application is in that phase (5 minutes at most)
//	cut-power n1            and restore-power n1
//	cut-link n1             and mend-link n1: nobody reaches the node
//	cut-path n1             and mend-path n1: the appliance does not reach the node
//	kill-bmc n1             and mend-bmc n1
//	lie-bmc n1              it says off and does nothing; truth-bmc n1 ends it
//	hang n1                 and resume n1: the service on the node
//	crash-service n1        its local restarts are spent
//	restart-service n1 8s   it crashes, and the agent's restart takes so long
//	bad-app n1              the application does not come online there
//	lose-heartbeats n1      and find-heartbeats n1
//	lose-acks n1            and find-acks n1: its heartbeats arrive, the answers are lost
//	crash                   and restart: the appliance
//	isolate                 and connect: the appliance's own network
//	freeze site|APP         and unfreeze site|APP, by ann
//	fail-over APP [NODE]    asked for by bob
//	policy APP slot,ram     the ways that the application's policy lists
//	late n1 60s             what is on its way to the node takes that much longer; on-time n1
//	no-boot n1              and can-boot n1: whatever it boots does not come up
//	lock-kernel n1          its standby kernel executes no other
//	reboot n1               by itself
//	plan-restart 60s        of the appliance, by ann
//	restart-ready           which agents do not have the longer lease yet
//	local-boot n1           whether it may start from its own disk
//	confirm-off NODE        by bob
//	add-node n5
//	explain APP
//	explain-failover 2
//	truth                   who serves what
type Story struct {
	s    *Sim
	told int
}

// NewStory gives a world that waits for its start.
func NewStory() *Story { return &Story{} }

// Do carries out one line of a script and gives the trace that it added.
func (st *Story) Do(line string) ([]string, error) {
	f := strings.Fields(line)
	if len(f) == 0 {
		return nil, nil
	}
	verb, args := f[0], f[1:]
	if verb == "start" {
		if err := st.start(args); err != nil {
			return nil, err
		}
	} else {
		if st.s == nil {
			return nil, fmt.Errorf("%s comes before start", verb)
		}
		if err := st.verb(verb, args); err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
	}
	out := st.s.trace[st.told:]
	st.told = len(st.s.trace)
	if len(st.s.violations) > 0 {
		return out, fmt.Errorf("a promise was broken: %s", strings.Join(st.s.violations, "; "))
	}
	return slices.Clone(out), nil
}

func (st *Story) start(args []string) error {
	cfg := Config{Seed: 1, Nodes: 4, Apps: 1}
	var evidence []haengine.EvidenceKind
	var ways []haengine.Way
	var standby haengine.Standby
	var outage haengine.Duration
	shared, slots := false, false
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		n, _ := strconv.Atoi(v)
		switch k {
		case "nodes":
			cfg.Nodes = n
		case "apps":
			cfg.Apps = n
		case "seed":
			cfg.Seed = uint64(n)
		case "shared":
			shared = true
		case "slots":
			slots = true
		case "standby":
			standby.Nodes = n
		case "kernel":
			standby.Kernel = v
		case "ways":
			ways = wayList(v)
		case "outage":
			d, err := time.ParseDuration(v)
			if err != nil {
				return err
			}
			outage = haengine.Duration(d)
		case "evidence":
			for _, e := range strings.Split(v, ",") {
				evidence = append(evidence, haengine.EvidenceKind(e))
			}
		default:
			return fmt.Errorf("start: unknown option %q", a)
		}
	}
	st.s = newSim(cfg)
	for _, a := range st.s.w.apps {
		p := &a.spec.Policy
		p.Evidence, p.Ways = evidence, ways
		if outage > 0 {
			p.Lease, p.TolerateOutage = 0, outage
		}
	}
	st.s.w.standby, st.s.w.facts = standby, standby.Nodes > 0 || ways != nil
	for _, n := range st.s.w.nodes {
		n.shared = shared
		if slots {
			st.s.w.installedAhead(n, st.s.w.apps[0].spec, "A")
		}
	}
	st.s.w.begin()
	return nil
}

func (st *Story) verb(verb string, args []string) error {
	s := st.s
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch verb {
	case "run":
		d, err := time.ParseDuration(arg(0))
		if err != nil {
			return err
		}
		s.runUntil(s.now+d, nil)
	case "until":
		return st.until(haengine.Phase(arg(0)), arg(1))
	case "crash":
		s.crash()
	case "restart":
		s.start()
	case "isolate":
		s.w.isolated = true
		s.submit(haengine.SelfHealth{Isolated: true, Why: "no carrier on eth0"})
	case "connect":
		s.w.isolated = false
		s.submit(haengine.SelfHealth{})
	case "freeze":
		s.submit(haengine.FreezeSet{Scope: scope(arg(0)), By: "ann", Reason: "switch maintenance"})
	case "unfreeze":
		s.submit(haengine.FreezeLifted{Scope: scope(arg(0)), By: "ann"})
	case "fail-over":
		s.submit(haengine.FailoverRequested{App: arg(0), To: arg(1), By: "bob"})
	case "policy":
		a := s.w.app(arg(0))
		if a == nil {
			return fmt.Errorf("there is no application %q", arg(0))
		}
		a.spec.Policy.Ways = wayList(arg(1))
		s.submit(haengine.AppApplied{Application: a.spec})
	case "plan-restart":
		d, err := time.ParseDuration(arg(0))
		if err != nil {
			return err
		}
		s.submit(haengine.PlannedRestart{For: haengine.Duration(d), By: "ann"})
	case "restart-ready":
		s.say("== waiting for %v", haengine.RestartReady(s.machine.State()))
	case "local-boot":
		ok, why := haengine.LocalBoot(s.machine.State(), arg(0))
		s.say("== %s starts from its own disk: %v: %s", arg(0), ok, why.Text)
	case "confirm-off":
		s.submit(haengine.ConfirmOff{Node: arg(0), By: "bob"})
	case "add-node":
		n := &node{name: arg(0)}
		s.w.nodes = append(s.w.nodes, n)
		s.every(300*time.Millisecond, time.Second, func() { s.w.beat(n) })
		s.submit(haengine.NodeApplied{Node: nodeSpec(n)})
	case "explain":
		st.tell(haengine.ExplainApp(s.machine.State(), arg(0)))
	case "explain-failover":
		n, err := strconv.Atoi(arg(0))
		f := s.machine.State().Durable.Failovers[haengine.FailoverID(n)]
		if err != nil || f == nil {
			return fmt.Errorf("there is no failover %s", arg(0))
		}
		st.tell(haengine.ExplainFailover(*f))
	case "truth":
		st.truth()
	default:
		n := s.w.node(arg(0))
		if n == nil {
			return fmt.Errorf("no such verb, or no node %q", arg(0))
		}
		return st.nodeVerb(verb, n, arg(1))
	}
	return nil
}

func (st *Story) nodeVerb(verb string, n *node, arg string) error {
	s := st.s
	switch verb {
	case "cut-power":
		n.lostPower = true
		s.w.setPower(n, false)
	case "restore-power":
		n.lostPower = false
	case "cut-link", "mend-link":
		n.cut = verb == "cut-link"
	case "cut-path", "mend-path":
		n.pathCut = verb == "cut-path"
	case "kill-bmc", "mend-bmc":
		n.bmcDead = verb == "kill-bmc"
	case "lie-bmc", "truth-bmc":
		n.bmcLies = verb == "lie-bmc"
	case "lose-heartbeats", "find-heartbeats":
		n.noHB = verb == "lose-heartbeats"
	case "lose-acks", "find-acks":
		n.noAck = verb == "lose-acks"
	case "late":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return err
		}
		n.late = d
	case "on-time":
		n.late = 0
	case "no-boot", "can-boot":
		n.noBoot = verb == "no-boot"
	case "lock-kernel":
		n.noKexec = true
	case "reboot":
		s.w.reboot(n)
	case "bad-app", "good-app":
		n.badApp = verb == "bad-app"
	case "hang", "resume", "crash-service", "restart-service":
		i := n.inst
		if i == nil {
			return fmt.Errorf("%s runs nothing", n.name)
		}
		switch verb {
		case "crash-service":
			i.up = false
			s.w.report(n, i, haengine.ResourceFailed, "exit status 1")
		case "restart-service":
			d, err := time.ParseDuration(arg)
			if err != nil {
				return err
			}
			s.w.restart(n, i, d)
		default:
			i.hung = verb == "hang"
		}
	default:
		return fmt.Errorf("no such verb")
	}
	return nil
}

// until lets time pass until an application is in a phase.
func (st *Story) until(p haengine.Phase, app string) error {
	s := st.s
	there := func() bool {
		return s.up() && haengine.PhaseOf(s.machine.State(), app) == p
	}
	s.runUntil(s.now+5*time.Minute, there)
	if !there() && len(s.violations) == 0 {
		return fmt.Errorf("it is %s after 5 minutes", s.stands())
	}
	return nil
}

// truth says who serves what.
func (st *Story) truth() {
	for _, a := range st.s.w.apps {
		by := "nobody"
		for _, n := range st.s.w.nodes {
			if n.serves(a.spec.Name) {
				by = fmt.Sprintf("%s, epoch %d", n.name, n.inst.key.epoch)
			}
		}
		st.s.say("== %s is served by %s", a.spec.Name, by)
	}
}

func (st *Story) tell(x haengine.Explanation) {
	s := st.s
	s.trace = append(s.trace, "           "+x.Title)
	for _, r := range x.Rows {
		s.trace = append(s.trace, fmt.Sprintf("           %-12s %s", r.Topic, r.Text))
	}
}

func wayList(s string) []haengine.Way {
	var out []haengine.Way
	for _, w := range strings.Split(s, ",") {
		out = append(out, haengine.Way(w))
	}
	return out
}

func scope(s string) haengine.Scope {
	if s == "" || s == "site" {
		return haengine.Scope{}
	}
	return haengine.Scope{App: s}
}
