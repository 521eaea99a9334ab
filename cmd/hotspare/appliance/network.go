package appliance

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hotspare"
	"hotspare/boot/dhcp"
	"hotspare/haengine"
	"hotspare/ui/api"
)

// network tells of what is wrong on the links: DHCP's alarms become notices and
// events of the history, once when a cause begins and once when it has gone.
type network struct {
	alarms  chan linkAlarm
	notify  func(context.Context, haengine.Notice) error
	record  func(context.Context, haengine.Entry) error
	stands  func() map[string]bool // the incidents that last
	log     *slog.Logger
	resting time.Duration // between looks at what has gone

	told map[string]haengine.Notice // by incident
}

type linkAlarm struct {
	link string
	err  *hotspare.Error
}

const (
	alarmRoom = 64               // alarms that may wait to be told
	alarmRest = 30 * time.Second // how soon one that has gone is noticed
)

func newNetwork() *network {
	return &network{alarms: make(chan linkAlarm, alarmRoom), resting: alarmRest, told: map[string]haengine.Notice{}}
}

// openNetwork joins it to what it tells.
func (a *Appliance) openNetwork() {
	n := a.network
	n.log = a.log.With("part", "network")
	n.notify = notifier{a.log.With("part", "notify")}.Notify
	n.record = func(ctx context.Context, e haengine.Entry) error {
		return a.state.Save(context.WithoutCancel(ctx), haengine.Delta{Entries: []haengine.Entry{e}})
	}
	n.stands = func() map[string]bool {
		out := map[string]bool{}
		for _, l := range a.dhcp {
			for _, x := range l.Alarms() {
				out[incident(l.Interface, x.Err)] = true
			}
		}
		return out
	}
	a.parts.run("notices of the network", n.run)
}

// incident names a cause: one cause, one message.
func incident(link string, e *hotspare.Error) string {
	return fmt.Sprintf("network/%s/%s/%s", link, e.Code, e.Where)
}

// alarm takes an alarm of a link's DHCP, which must not wait.
func (n *network) alarm(link string) func(*hotspare.Error) {
	return func(e *hotspare.Error) {
		select {
		case n.alarms <- linkAlarm{link, e}:
		default: // it is in the log, by DHCP, and stands in the API
		}
	}
}

func (n *network) run(ctx context.Context) error {
	tick := time.NewTicker(n.resting)
	defer tick.Stop()
	for {
		select {
		case x := <-n.alarms:
			n.begun(ctx, x)
		case <-tick.C:
			n.gone(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (n *network) begun(ctx context.Context, x linkAlarm) {
	e := x.err
	say := haengine.Notice{Incident: incident(x.link, e), Code: e.Code, Text: plainAlarm(e), Fix: e.Fix}
	n.told[say.Incident] = say
	n.tell(ctx, say)
}

// gone tells of every cause that was told of and lasts no more.
func (n *network) gone(ctx context.Context) {
	if len(n.told) == 0 {
		return
	}
	stands := n.stands()
	for _, k := range sortedKeys(n.told) {
		if stands[k] {
			continue
		}
		say := n.told[k]
		delete(n.told, k)
		say.Text, say.Fix, say.Resolved = "not seen any more: "+say.Text, "", true
		n.tell(ctx, say)
	}
}

func (n *network) tell(ctx context.Context, say haengine.Notice) {
	say.At = haengine.Stamp{Wall: time.Now()}
	text := say.Text
	if say.Fix != "" {
		text += "; fix: " + say.Fix
	}
	if err := n.record(ctx, haengine.Entry{Stamp: say.At, Code: say.Code, Text: text}); err != nil {
		n.log.ErrorContext(ctx, "an event is not in the history", "text", text, "err", err)
	}
	if err := n.notify(ctx, say); err != nil {
		n.log.WarnContext(ctx, "a notice was not delivered", "err", err)
	}
}

// plainAlarm gives the alarm in one sentence, without its code and its fix, which
// stand beside it.
func plainAlarm(e *hotspare.Error) string {
	text := e.What + " (" + e.Where + ")"
	if e.Why != "" {
		text += ": " + e.Why
	}
	return text
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Links gives the links and what DHCP sees on them.
func (a *Appliance) Links(context.Context) ([]api.Link, error) {
	out := []api.Link{}
	for _, l := range a.cfg.Network.links() {
		v := api.Link{
			Interface: l.Interface, Addresses: l.own(), DHCP: l.DHCP.Mode, HTTPS: a.httpsPort != 0, Why: isolated(l.Interface),
			Pools: []api.AddressPool{}, Foreign: []api.ForeignDHCP{}, Alarms: []api.NetworkAlarm{},
		}
		v.Up = v.Why == ""
		for _, d := range a.dhcp {
			if d.Interface == l.Interface {
				d.show(&v)
			}
		}
		out = append(out, v)
	}
	return out, nil
}

// show adds what a link's DHCP knows.
func (d dhcpLink) show(v *api.Link) {
	if d.DHCP.Mode == string(dhcp.Authoritative) {
		for _, u := range d.Usage() {
			v.Pools = append(v.Pools, api.AddressPool{Prefix: u.Prefix, Size: u.Size, Used: u.Used})
		}
	}
	s := d.Stats()
	v.Counters = &api.DHCPCounters{
		Received: s.Received, Answered: s.Answered, Malformed: s.Malformed, Dropped: s.Dropped, Limited: s.Limited, Unknown: s.Unknown,
		NoAddress: s.NoAddress, Conflicts: s.Conflicts, NAKs: s.NAKs, Failed: s.Failed,
	}
	for _, f := range d.ForeignServers() {
		x := api.ForeignDHCP{
			Server: f.Server, Vendor: f.Vendor, Offers: f.Offers(), First: f.First, Last: f.Last, Taken: f.Taken, Fix: f.Fix,
			Expected: f.Fix == "" && d.DHCP.Mode != string(dhcp.Authoritative),
		}
		if !f.MAC.IsZero() {
			x.MAC = f.MAC.String()
		}
		v.Foreign = append(v.Foreign, x)
	}
	for _, x := range d.Alarms() {
		v.Alarms = append(v.Alarms, api.NetworkAlarm{Code: string(x.Err.Code), Text: plainAlarm(x.Err), Fix: x.Err.Fix, First: x.First, Last: x.Last})
	}
	slices.SortStableFunc(v.Alarms, func(x, y api.NetworkAlarm) int { return cmp.Or(y.Last.Compare(x.Last)) })
}

// networkMetrics reads what DHCP counts when it is asked.
type networkMetrics struct{ a *Appliance }

var (
	descLinkUp    = desc("link_up", "1 while the link reaches the segment.", "link")
	descPackets   = desc("dhcp_packets_total", "DHCP packets by what became of them.", "link", "result")
	descPoolSize  = desc("dhcp_pool_size", "Addresses of the pool.", "link", "network")
	descPoolUsed  = desc("dhcp_pool_used", "Addresses of the pool that machines hold or that are left alone.", "link", "network")
	descForeign   = desc("dhcp_foreign_servers", "Other DHCP servers that something is to be done about.", "link")
	descStanding  = desc("network_alarms", "Alarms of the link that stand.", "link", "code")
	descConflicts = desc("dhcp_conflicts_total", "Addresses on which somebody else answered.", "link")
)

// Describe sends nothing: which series there are depends on the links.
func (networkMetrics) Describe(chan<- *prometheus.Desc) {}

// Collect sends the values of all links.
func (m networkMetrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, l := range m.a.cfg.Network.links() {
		gauge(descLinkUp, truth(isolated(l.Interface) == ""), l.Interface)
	}
	for _, d := range m.a.dhcp {
		count := func(desc *prometheus.Desc, v uint64, labels ...string) {
			out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), append([]string{d.Interface}, labels...)...)
		}
		s := d.Stats()
		for result, v := range map[string]uint64{
			"received": s.Received, "answered": s.Answered, "malformed": s.Malformed, "dropped": s.Dropped, "limited": s.Limited,
			"unknown": s.Unknown, "no-address": s.NoAddress, "nak": s.NAKs, "failed": s.Failed,
		} {
			count(descPackets, v, result)
		}
		count(descConflicts, s.Conflicts)
		if d.DHCP.Mode == string(dhcp.Authoritative) {
			for _, u := range d.Usage() {
				gauge(descPoolSize, float64(u.Size), d.Interface, u.Prefix.String())
				gauge(descPoolUsed, float64(u.Used), d.Interface, u.Prefix.String())
			}
		}
		unwanted := 0
		for _, f := range d.ForeignServers() {
			if f.Fix != "" {
				unwanted++
			}
		}
		gauge(descForeign, float64(unwanted), d.Interface)
		codes := map[string]int{}
		for _, x := range d.Alarms() {
			codes[string(x.Err.Code)]++
		}
		for code, n := range codes {
			gauge(descStanding, float64(n), d.Interface, code)
		}
	}
}
