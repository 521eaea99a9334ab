package appliance

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/dhcp"
	"hotspare/haengine"
)

// DHCPConfig says how DHCP is served on the segment; docs/dhcp.md tells more.
type DHCPConfig struct {
	Mode  string            `yaml:"mode"` // authoritative, proxy, off
	From  netip.Addr        `yaml:"from"`
	To    netip.Addr        `yaml:"to"`
	Lease haengine.Duration `yaml:"lease"`
	// BootService serves PXE's port 4011 in mode off, for machines that another
	// server's configuration sends there.
	BootService  bool                `yaml:"bootService"`
	Settings     SubnetSettings      `yaml:"settings"`     // what machines are told beside their address
	Unknown      int                 `yaml:"unknown"`      // addresses that unknown machines may hold; 0: half of the range
	Relayed      []RelayedConfig     `yaml:"relayed"`      // networks behind relays
	Reservations []ReservationConfig `yaml:"reservations"` // addresses of nodes
	PerMachine   int                 `yaml:"perMachine"`   // packets a second of one MAC address; 0: 10
	UnknownRate  int                 `yaml:"unknownRate"`  // packets a second of all unknown machines; 0: 500
	Watch        haengine.Duration   `yaml:"watch"`        // how often other DHCP servers are looked for; 0: 5m
	IPv6         *IPv6Config         `yaml:"ipv6"`         // what machines are told over IPv6
}

// SubnetSettings are DHCP options of a network.
type SubnetSettings struct {
	Domain  string         `yaml:"domain"`
	Search  []string       `yaml:"search"`
	NTP     []netip.Addr   `yaml:"ntp"`
	Options []OptionConfig `yaml:"options"`
}

// OptionConfig is any further DHCP option.
type OptionConfig struct {
	Code   int    `yaml:"code"`
	Kind   string `yaml:"kind"` // ip, text, uint8, uint16, uint32, bool, hex
	Value  string `yaml:"value"`
	Always bool   `yaml:"always"` // also to clients that do not ask for it
}

// RelayedConfig is a network behind a relay.
type RelayedConfig struct {
	Prefix   netip.Prefix      `yaml:"prefix"`
	From     netip.Addr        `yaml:"from"`
	To       netip.Addr        `yaml:"to"`
	Gateway  netip.Addr        `yaml:"gateway"`
	DNS      []netip.Addr      `yaml:"dns"`
	Lease    haengine.Duration `yaml:"lease"` // 0: that of the segment
	Unknown  int               `yaml:"unknown"`
	Relays   []netip.Addr      `yaml:"relays"` // addresses outside the prefix that its relays write from
	Settings SubnetSettings    `yaml:"settings"`
}

// ReservationConfig gives a node the same address always, at its first MAC address.
type ReservationConfig struct {
	Node    string     `yaml:"node"`
	Address netip.Addr `yaml:"address"`
}

// IPv6Config says what machines are told over IPv6.
type IPv6Config struct {
	Address   netip.Prefix `yaml:"address"`   // the appliance's own on the segment, a /64
	Addresses bool         `yaml:"addresses"` // machines get theirs here; else from a router
	DNS       []netip.Addr `yaml:"dns"`
	Search    []string     `yaml:"search"`
}

// options gives the server's options as far as the configuration says them.
func (c LinkConfig) dhcpOptions() (dhcp.Options, error) {
	d := c.DHCP
	own, err := d.Settings.subnet(dhcp.Subnet{
		Prefix: c.Address.Masked(), Range: dhcp.Range{From: d.From, To: d.To}, Gateway: c.Gateway, DNS: c.DNS, LeaseTime: d.Lease.D(), Unknown: d.Unknown,
	})
	if err != nil {
		return dhcp.Options{}, err
	}
	o := dhcp.Options{
		Interface: c.Interface, Server: c.Address.Addr(), Mode: dhcp.Mode(d.Mode), Subnet: own, RouterAdvertisement: c.RouterAds,
		Limits: dhcp.Limits{PerMachine: d.PerMachine, Unknown: d.UnknownRate}, Watch: d.Watch.D(),
	}
	for _, r := range d.Relayed {
		lease := r.Lease
		if lease == 0 {
			lease = d.Lease
		}
		n, err := r.Settings.subnet(dhcp.Subnet{
			Prefix: r.Prefix.Masked(), Range: dhcp.Range{From: r.From, To: r.To}, Gateway: r.Gateway, DNS: r.DNS, LeaseTime: lease.D(), Unknown: r.Unknown, Relays: r.Relays,
		})
		if err != nil {
			return dhcp.Options{}, err
		}
		o.Relayed = append(o.Relayed, n)
	}
	if x := d.IPv6; x != nil {
		o.IPv6 = &dhcp.IPv6{Server: x.Address.Addr(), Prefix: x.Address.Masked(), Addresses: x.Addresses, DNS: x.DNS, Search: x.Search}
	}
	return o, nil
}

func (s SubnetSettings) subnet(n dhcp.Subnet) (dhcp.Subnet, error) {
	n.Domain, n.Search, n.NTP = s.Domain, s.Search, s.NTP
	for _, c := range s.Options {
		e, err := dhcp.ParseOption(c.Code, c.Kind, c.Value, c.Always)
		if err != nil {
			return n, err
		}
		n.Extra = append(n.Extra, e)
	}
	return n, nil
}

// serveDHCP starts DHCP on each link where it is not off.
func (a *Appliance) serveDHCP(site boot.Site) error {
	nodes := &nodeIndex{nodes: func() map[string]*haengine.NodeState { return a.engine.Snapshot().Durable.Nodes }}
	var all dhcpLinks
	for i, c := range a.cfg.Network.links() {
		if !c.servesDHCP() {
			continue
		}
		o, err := c.dhcpOptions()
		if err != nil {
			return err
		}
		log := a.log.With("part", "dhcp")
		if len(a.cfg.Network.links()) > 1 {
			log = log.With("link", c.Interface)
		}
		o.Site, o.Director, o.Exclude, o.Known = siteAt(site, c.Address.Addr()), a.director(&c), a.serviceAddress, nodes.known
		if o.Reservations, err = newNodeAddresses(c, nodes); err != nil {
			return err
		}
		o.Leases, o.Recorder, o.Alarm, o.Log = filepath.Join(a.cfg.State, c.leaseFile(i)), a.recorder, a.network.alarm(c.Interface), log
		s, err := dhcp.New(o)
		if err != nil {
			return err
		}
		all = append(all, dhcpLink{c, s})
		a.parts.run("DHCP on "+c.Interface, s.Serve)
	}
	a.dhcp = all
	a.ladders.dhcp.Store(&all)
	return nil
}

// servesDHCP says whether any of it is on.
func (l LinkConfig) servesDHCP() bool {
	return l.DHCP.Mode != string(dhcp.Off) || l.DHCP.BootService
}

// leaseFile names the file of a link's leases: that of the first link is where it
// was when there was one link only.
func (l LinkConfig) leaseFile(i int) string {
	if i == 0 {
		return "leases.json"
	}
	return "leases-" + l.Interface + ".json"
}

// dhcpLink is DHCP on one link.
type dhcpLink struct {
	LinkConfig
	*dhcp.Server
}

// dhcpLinks is DHCP on all links. No two have a network in common, so an address
// is one link's; nil has none.
type dhcpLinks []dhcpLink

// MACOf gives the machine that has a lease of an address.
func (d dhcpLinks) MACOf(a netip.Addr) (boot.MAC, bool) {
	for _, l := range d {
		if m, ok := l.Server.MACOf(a); ok {
			return m, true
		}
	}
	return boot.MAC{}, false
}

// Leases gives those of all links.
func (d dhcpLinks) Leases() []dhcp.Lease {
	var out []dhcp.Lease
	for _, l := range d {
		out = append(out, l.Server.Leases()...)
	}
	return out
}

// ForeignServers gives those of all links.
func (d dhcpLinks) ForeignServers() []dhcp.Foreign {
	var out []dhcp.Foreign
	for _, l := range d {
		out = append(out, l.Server.ForeignServers()...)
	}
	return out
}

// nodeIndex finds nodes by MAC address. DHCP asks it for every packet, of a flood
// too: the index is made anew once a second at most.
type nodeIndex struct {
	nodes func() map[string]*haengine.NodeState

	mu   sync.Mutex
	at   time.Time
	name map[boot.MAC]string
	mac  map[string]boot.MAC // of a node, the one that boots
}

func (x *nodeIndex) fresh() {
	if x.name != nil && time.Since(x.at) < time.Second {
		return
	}
	x.at, x.name, x.mac = time.Now(), map[boot.MAC]string{}, map[string]boot.MAC{}
	for name, n := range x.nodes() {
		for i, s := range n.Spec.MACs {
			m, err := boot.ParseMAC(s)
			if err != nil {
				continue
			}
			x.name[m] = name
			if i == 0 {
				x.mac[name] = m
			}
		}
	}
}

func (x *nodeIndex) known(m boot.MAC) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fresh()
	_, ok := x.name[m]
	return ok
}

// boots gives the node that boots from m.
func (x *nodeIndex) boots(m boot.MAC) (string, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fresh()
	name := x.name[m]
	return name, name != "" && x.mac[name] == m
}

func (x *nodeIndex) first(node string) (boot.MAC, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fresh()
	m, ok := x.mac[node]
	return m, ok
}

// nodeAddresses is dhcp.Reservations by the nodes' names. An address stays reserved
// while its node is not there.
type nodeAddresses struct {
	index  *nodeIndex
	ofNode map[string][]netip.Addr
	owner  map[netip.Addr]string
}

func newNodeAddresses(c LinkConfig, index *nodeIndex) (*nodeAddresses, error) {
	r := &nodeAddresses{index: index, ofNode: map[string][]netip.Addr{}, owner: map[netip.Addr]string{}}
	nets := []netip.Prefix{c.Address.Masked()}
	for _, x := range c.DHCP.Relayed {
		nets = append(nets, x.Prefix.Masked())
	}
	for _, x := range c.DHCP.Reservations {
		in := slices.IndexFunc(nets, func(p netip.Prefix) bool { return p.Contains(x.Address) })
		why := ""
		switch {
		case x.Node == "":
			why = "it names no node"
		case in < 0:
			why = "the address is in none of the networks that are served"
		case r.owner[x.Address] != "":
			why = "the address is reserved for " + r.owner[x.Address] + " already"
		case slices.ContainsFunc(r.ofNode[x.Node], nets[in].Contains):
			why = "the node has an address in that network already"
		}
		if why != "" {
			return nil, &hotspare.Error{
				Code: hotspare.CodeInvalid, What: fmt.Sprintf("the reservation of %s for %q cannot be used", x.Address, x.Node), Where: "network.dhcp.reservations", Why: why,
				Fix: "give each node one address of its own in each network",
			}
		}
		r.owner[x.Address], r.ofNode[x.Node] = x.Node, append(r.ofNode[x.Node], x.Address)
	}
	return r, nil
}

// Reserved is dhcp.Reservations.
func (r *nodeAddresses) Reserved(m boot.MAC, in netip.Prefix) (netip.Addr, bool) {
	if len(r.owner) == 0 {
		return netip.Addr{}, false
	}
	node, ok := r.index.boots(m)
	if !ok {
		return netip.Addr{}, false
	}
	for _, a := range r.ofNode[node] {
		if in.Contains(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// Owner is dhcp.Reservations.
func (r *nodeAddresses) Owner(a netip.Addr) (boot.MAC, bool) {
	node, ok := r.owner[a]
	if !ok {
		return boot.MAC{}, false
	}
	m, _ := r.index.first(node) // zero, which is nobody, while the node is not there
	return m, true
}

// Snippet writes what another DHCP server's configuration needs so that its machines
// boot from the appliance that is configured so: dnsmasq, kea or isc. With several
// links iface says which one the other server gives addresses on.
func Snippet(c Config, server, iface string) (string, error) {
	links := c.Network.links()
	i := slices.IndexFunc(links, func(l LinkConfig) bool { return l.Interface == iface })
	if iface == "" && len(links) == 1 {
		i = 0
	}
	if i < 0 {
		var names []string
		for _, l := range links {
			names = append(names, l.Interface)
		}
		return "", &hotspare.Error{
			Code: hotspare.CodeInvalid, What: fmt.Sprintf("the link %q is not configured", iface), Why: "the links are " + strings.Join(names, ", "),
			Fix: "name the link that the other server gives addresses on: --link " + names[0],
		}
	}
	return dhcp.Snippet(server, boot.Site{Server: links[i].Address.Addr(), HTTPPort: c.Network.HTTPPort, Loaders: overlaid(boot.DefaultLoaders(), c.Firmware.Loaders)})
}
