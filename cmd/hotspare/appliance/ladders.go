package appliance

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
	"hotspare/storage/iscsi"
)

// ladders adds to the traces of machines what they do not ask the boot servers:
// the orders that started them, the marks and words of their agents, their
// log-ins to volumes, and the checks of what they serve. It decides nothing.
type ladders struct {
	rec  *boot.Recorder
	now  func() time.Time
	node func(name string) (*haengine.NodeState, bool)
	dhcp atomic.Pointer[dhcpLinks] // empty while and where DHCP is off
	log  *slog.Logger

	mu     sync.Mutex
	boots  map[string]*kernelBoot // by boot id
	checks map[string]bool        // by application, epoch and monitor: the last word
}

// kernelBoot is what is known of one running kernel.
type kernelBoot struct {
	start time.Time // when it began, by the appliance's clock; zero: not known
	marks map[string]bool
	seen  time.Time

	recalled bool // the marks that an earlier process recorded are among marks
}

// maxKernels and maxChecks bound what is remembered; the oldest go first.
const (
	maxKernels = 512
	maxChecks  = 1024
)

func newLadders(rec *boot.Recorder, node func(string) (*haengine.NodeState, bool), log *slog.Logger) *ladders {
	return &ladders{
		rec: rec, now: time.Now, node: node, log: log,
		boots: map[string]*kernelBoot{}, checks: map[string]bool{},
	}
}

// mac gives the address under which a node's boot is traced: of its cards, the
// one that was heard last.
func (l *ladders) mac(node string) (boot.MAC, bool) {
	n, ok := l.node(node)
	if !ok {
		return boot.MAC{}, false
	}
	macs := macsOf(n.Spec)
	if len(macs) == 0 {
		return boot.MAC{}, false
	}
	if len(macs) > 1 {
		for _, e := range l.rec.Machines() {
			for _, m := range macs {
				if e.MAC == m {
					return m, true
				}
			}
		}
	}
	return macs[0], true
}

func macsOf(n haengine.Node) []boot.MAC {
	var out []boot.MAC
	for _, s := range n.MACs {
		if m, err := boot.ParseMAC(s); err == nil {
			out = append(out, m)
		}
	}
	return out
}

// add records an entry of a node.
func (l *ladders) add(node string, e boot.Entry) {
	if l == nil {
		return
	}
	mac, ok := l.mac(node)
	if !ok {
		return
	}
	e.MAC, e.Node = mac, node
	if e.At.IsZero() {
		e.At = l.now()
	}
	l.rec.Record(e)
}

// power tells that a node is powered on for a reason, before it is: the machine
// may ask before its BMC has answered.
func (l *ladders) power(node, why string, epoch haengine.Epoch) {
	l.add(node, boot.Entry{
		Protocol: boot.BMC, Step: boot.StepPower, Request: "power on, once from the network", Answer: "ordered",
		Reason: boot.Reason{Rule: boot.RuleStart, Text: why}, Detail: boot.Detail{Epoch: uint64(epoch)},
	})
}

// powerFailed tells that the BMC did not do it.
func (l *ladders) powerFailed(node string, err error) {
	l.add(node, boot.Entry{
		Protocol: boot.BMC, Step: boot.StepPower, Request: "power on, once from the network", Answer: "failed",
		Reason: reasonOf(err), Detail: boot.Detail{Failed: true},
	})
}

// reasonOf gives an error as a reason, without its private cause.
func reasonOf(err error) boot.Reason {
	var e *hotspare.Error
	if !errors.As(err, &e) {
		return boot.Reason{Text: "the appliance failed; its log says why", Code: hotspare.CodeInternal}
	}
	text := e.What
	if e.Why != "" {
		text += ": " + e.Why
	}
	return boot.Reason{Code: e.Code, Text: text, Fix: e.Fix}
}

// coded is a text that begins with a code, as agents send them.
var coded = regexp.MustCompile(`^([A-Z]{2,5}-[0-9]{3}): (.*)$`)

// agentReason gives what an agent said as a reason. The code is one of the
// registry or none: it is a node's word.
func agentReason(why string) boot.Reason {
	if m := coded.FindStringSubmatch(why); m != nil {
		text, fix, _ := strings.Cut(m[2], "; fix: ")
		return boot.Reason{Code: hotspare.Code(m[1]), Text: text, Fix: fix}
	}
	return boot.Reason{Text: why}
}

// redeemed tells of a request to join, and of its refusal. Of a token that is
// not known only the machine's own word says whose it is.
func (l *ladders) redeemed(node string, f agentlink.Facts, err error) {
	if l == nil {
		return
	}
	e := boot.Entry{
		At: l.now(), Protocol: boot.Agent, Step: boot.StepAdmit, Request: "join, boot " + short(f.BootID), Answer: "certificate",
		Reason: boot.Reason{Rule: boot.RuleStart, Text: "the token is good"}, Node: node,
	}
	if err != nil {
		e.Answer, e.Reason, e.Detail.Failed = "refused", reasonOf(err), true
	}
	if mac, ok := l.mac(node); ok {
		e.MAC = mac
	} else {
		for _, s := range f.MACs {
			if mac, err := boot.ParseMAC(s); err == nil {
				e.MAC = mac
				break
			}
		}
		if _, known := l.rec.Trace(e.MAC); !known {
			return // nobody who booted here: no room for inventions
		}
	}
	l.rec.Record(e)
}

func short(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

// kernel gives what is known of the kernel of a boot; mu is held.
func (l *ladders) kernel(bootID string) *kernelBoot {
	k := l.boots[bootID]
	if k == nil {
		if len(l.boots) >= maxKernels {
			oldest := ""
			for id, x := range l.boots {
				if oldest == "" || x.seen.Before(l.boots[oldest].seen) {
					oldest = id
				}
			}
			delete(l.boots, oldest)
		}
		k = &kernelBoot{marks: map[string]bool{}}
		l.boots[bootID] = k
	}
	k.seen = l.now()
	return k
}

// clock learns when a kernel began: it was up for that long when it said so. The
// earliest reckoning is the least delayed.
func (k *kernelBoot) clock(now time.Time, upMillis int64) {
	if upMillis <= 0 {
		return
	}
	if start := now.Add(-time.Duration(upMillis) * time.Millisecond); k.start.IsZero() || start.Before(k.start) {
		k.start = start
	}
}

// at gives a moment of the kernel's clock by the appliance's. It is never in the
// future: a node's word does not reach there.
func (k *kernelBoot) at(now time.Time, upMillis int64) time.Time {
	if k.start.IsZero() || upMillis <= 0 {
		return now
	}
	if t := k.start.Add(time.Duration(upMillis) * time.Millisecond); t.Before(now) {
		return t
	}
	return now
}

// mark records a mark once for each boot.
func (l *ladders) mark(s server.Session, name string, upMillis int64) {
	l.mu.Lock()
	k := l.kernel(s.BootID)
	if !k.recalled {
		k.recalled = true
		l.recall(k, s)
	}
	if k.marks[name] || len(k.marks) >= agentlink.MaxMarks {
		l.mu.Unlock()
		return
	}
	k.marks[name] = true
	at := k.at(l.now(), upMillis)
	l.mu.Unlock()
	e := boot.Entry{At: at, Protocol: boot.Agent, Step: boot.StepMark, Request: "mark " + name, Detail: boot.Detail{Mark: name, BootID: s.BootID}}
	if upMillis > 0 {
		e.Answer = fmt.Sprintf("%.3f s after the kernel began", float64(upMillis)/1000)
	}
	l.add(s.Node, e)
}

// recall finds the marks that are in the trace already: an agent tells all of
// them anew to an appliance that was started again.
func (l *ladders) recall(k *kernelBoot, s server.Session) {
	mac, ok := l.mac(s.Node)
	if !ok {
		return
	}
	t, _ := l.rec.Trace(mac)
	for _, e := range t.Entries {
		if e.Step == boot.StepMark && e.Detail.BootID == s.BootID {
			k.marks[e.Detail.Mark] = true
		}
	}
}

// joined tells of a session of an agent.
func (l *ladders) joined(s server.Session) {
	if l == nil || s.Resumed {
		return
	}
	l.mark(s, boot.MarkJoined, 0)
}

// beat takes the marks and the phase of a heartbeat.
func (l *ladders) beat(s server.Session, h agentlink.Heartbeat) {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.kernel(s.BootID).clock(l.now(), h.Metrics.UptimeMillis)
	l.mu.Unlock()
	for _, m := range h.Marks[:min(len(h.Marks), agentlink.MaxMarks)] {
		l.mark(s, m.Name, m.UpMillis)
	}
	switch h.Phase {
	case agentlink.PhaseClaiming:
		l.mark(s, boot.MarkClaim, 0)
	case agentlink.PhaseOnlining:
		l.mark(s, boot.MarkSwitch, 0)
	case agentlink.PhaseOnline:
		l.mark(s, boot.MarkOnline, 0)
	}
}

// report takes an agent's word about a resource.
func (l *ladders) report(s server.Session, r agentlink.Report) {
	if l == nil || r.State == agentlink.ResourceStopping {
		return
	}
	name := r.Resource
	if name == "" {
		name = "service group of " + r.App
	}
	e := boot.Entry{Protocol: boot.Agent, Step: boot.StepReport, Request: name, Answer: string(r.State), Detail: boot.Detail{BootID: s.BootID, Epoch: r.Epoch}}
	if r.State == agentlink.ResourceFailed || r.Dropped {
		e.Detail.Failed, e.Reason = true, agentReason(r.Why)
	}
	l.mu.Lock()
	e.At = l.kernel(s.BootID).at(l.now(), r.UpMillis)
	l.mu.Unlock()
	l.add(s.Node, e)
}

// result takes the steps of a claim.
func (l *ladders) result(node, bootID string, res agentlink.Result) {
	if l == nil {
		return
	}
	for _, s := range res.Steps {
		l.mu.Lock()
		end := l.kernel(bootID).at(l.now(), s.UpMillis)
		l.mu.Unlock()
		took := time.Duration(s.Millis) * time.Millisecond
		e := boot.Entry{
			At: end.Add(-took), Protocol: boot.Agent, Step: boot.StepOrder, Request: s.Name, Answer: "done",
			Detail: boot.Detail{Mark: s.Name, BootID: bootID, Took: took},
		}
		if !s.OK {
			e.Answer, e.Detail.Failed, e.Reason = "failed", true, agentReason(s.Why)
			if e.Reason.Code == "" {
				e.Reason.Code = res.Code
			}
		}
		l.add(node, e)
	}
}

// initiatorName is what volumes.grant draws.
var initiatorName = regexp.MustCompile(`^iqn\.2026-11\.io\.hotspare:([^:]+):(.+)\.e([0-9]+)\.[a-z0-9]+$`)

// login takes a log-in to a volume. Whose it is says the initiator name, which a
// stranger may have made up: only a node's own address counts.
func (l *ladders) login(a iscsi.LoginAsked, err error) {
	m := initiatorName.FindStringSubmatch(a.Initiator)
	if l == nil || m == nil {
		return
	}
	mac, ok := l.mac(m[1])
	from, perr := netip.ParseAddrPort(a.Address)
	if !ok || perr != nil || !l.from(m[1], from.Addr().Unmap()) {
		return
	}
	epoch, _ := strconv.ParseUint(m[3], 10, 64)
	_, target, _ := strings.Cut(a.Target, ":")
	e := boot.Entry{
		At: a.Began, MAC: mac, Node: m[1], Protocol: boot.ISCSI, Step: boot.StepLogin, Request: "log-in to " + target, Answer: "session",
		Reason: boot.Reason{Rule: boot.RuleStart, Text: fmt.Sprintf("epoch %d of %s", epoch, m[2])}, Detail: boot.Detail{Epoch: epoch, Took: l.now().Sub(a.Began)},
	}
	if err != nil {
		e.Answer, e.Reason, e.Detail.Failed = "refused", reasonOf(err), true
		e.Reason.Text += fmt.Sprintf("; it came with epoch %d of %s", epoch, m[2])
	}
	l.rec.Record(e)
}

// from says whether an address is a node's by its lease. Where hotspare gives no
// addresses nothing tells better than the name.
func (l *ladders) from(node string, addr netip.Addr) bool {
	s := l.links()
	if len(s) == 0 {
		return true
	}
	n, ok := l.node(node)
	if !ok {
		return false
	}
	mac, leased := s.MACOf(addr)
	if !leased {
		return true
	}
	for _, m := range macsOf(n.Spec) {
		if m == mac {
			return true
		}
	}
	return false
}

// sample takes what a monitor saw, when that differs from what it saw before.
func (l *ladders) sample(node string, s haengine.Sample) {
	if l == nil || node == "" {
		return
	}
	key := fmt.Sprintf("%s/%d/%s/%s", s.App, s.Epoch, s.Monitor, s.From)
	l.mu.Lock()
	last, known := l.checks[key]
	if len(l.checks) >= maxChecks && !known {
		clear(l.checks)
	}
	l.checks[key] = s.OK
	l.mu.Unlock()
	if known && last == s.OK {
		return
	}
	e := boot.Entry{Protocol: boot.Check, Step: boot.StepService, Request: fmt.Sprintf("%s of %s", s.Monitor, s.App), Answer: "passes", Detail: boot.Detail{Epoch: uint64(s.Epoch)}}
	if !s.OK {
		e.Answer, e.Detail.Failed, e.Reason = "fails", true, boot.Reason{Text: s.Why}
	}
	l.add(node, e)
}

// links is DHCP on the links where it is served.
func (l *ladders) links() dhcpLinks {
	if s := l.dhcp.Load(); s != nil {
		return *s
	}
	return nil
}

// lease gives the machine that has an address of hotspare's DHCP.
func (l *ladders) lease(addr netip.Addr) (boot.MAC, bool) {
	return l.links().MACOf(addr)
}

// foreign names the other DHCP servers of the segment.
func (l *ladders) foreign() []boot.Foreign {
	var out []boot.Foreign
	for _, f := range l.links().ForeignServers() {
		out = append(out, boot.Foreign{Server: f.Server, About: f.Vendor})
	}
	return out
}

// of gives the ladders of a machine, the newest first.
func (l *ladders) of(mac boot.MAC) []boot.Ladder {
	t, ok := l.rec.Trace(mac)
	if !ok || len(t.Boots) == 0 {
		return nil
	}
	return boot.Ladders(t, boot.Circumstances{Now: l.now(), Foreign: l.foreign()})
}

// trouble gives what a machine's last boots say against it, for its own screen:
// the gravest finding, or "".
func (l *ladders) trouble(mac boot.MAC) string {
	if l == nil {
		return ""
	}
	for i, x := range l.of(mac) {
		if i > 1 {
			break
		}
		for _, f := range x.Findings {
			if f.Gravity != boot.Noted {
				text := "last seen: " + f.String()
				if f.Fix != "" {
					text += " (" + f.Fix + ")"
				}
				return text
			}
		}
	}
	return ""
}
