package appliance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"hotspare"
	"hotspare/boot/dhcp"
	"hotspare/haengine"
)

// LinkConfig is one interface of the appliance and what is served on it.
type LinkConfig struct {
	Interface string       `yaml:"interface"`
	Address   netip.Prefix `yaml:"address"` // the appliance's own address on it
	Gateway   netip.Addr   `yaml:"gateway"`
	DNS       []netip.Addr `yaml:"dns"`
	DHCP      DHCPConfig   `yaml:"dhcp"`
	RouterAds bool         `yaml:"routerAdvertisements"` // answer IPv6 router solicitations with lifetime 0
}

// HTTPSConfig says whether boot files are served over TLS as well, with
// certificates of the appliance's boot CA.
type HTTPSConfig struct {
	Off  bool   `yaml:"off"`
	Port uint16 `yaml:"port"` // 0: 443, left out with a warning where somebody else holds it
}

// links gives all links, the one that stands in the network itself first.
func (n NetworkConfig) links() []LinkConfig {
	if n.Interface == "" && !n.Address.IsValid() && len(n.Links) > 0 {
		return n.Links
	}
	return append([]LinkConfig{n.LinkConfig}, n.Links...)
}

func (n NetworkConfig) withDefaults() NetworkConfig {
	n.LinkConfig = n.LinkConfig.withDefaults()
	n.Links = slices.Clone(n.Links)
	for i := range n.Links {
		n.Links[i] = n.Links[i].withDefaults()
	}
	return n
}

func (l LinkConfig) withDefaults() LinkConfig {
	if l.DHCP.Mode == "" {
		l.DHCP.Mode = string(dhcp.Off)
	}
	if l.DHCP.Lease == 0 {
		l.DHCP.Lease = haengine.Duration(10 * time.Minute)
	}
	return l
}

// validate checks each link, and that no two are in each other's way.
func (n NetworkConfig) validate(where string) error {
	bad := func(what, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: where, Fix: fix}
	}
	if port := n.HTTPS.Port; port != 0 && !n.HTTPS.Off && slices.Contains([]uint16{n.HTTPPort, n.ISCSIPort, n.AgentPort}, port) {
		return bad(fmt.Sprintf("network.https.port %d is another service's", port), "give it a port of its own, 443 by default")
	}
	type owned struct {
		link string
		net  netip.Prefix
	}
	var nets []owned
	seen := map[string]bool{}
	for i, l := range n.links() {
		name := "network"
		if l.Interface != "" && i > 0 || n.Interface == "" && len(n.Links) > 0 {
			name = fmt.Sprintf("network.links (%s)", l.Interface)
		}
		if err := l.validate(name, where); err != nil {
			return err
		}
		if seen[l.Interface] {
			return bad(name+" names an interface that another link has", "write one link for each interface; further networks behind relays go into dhcp.relayed")
		}
		seen[l.Interface] = true
		own := []netip.Prefix{l.Address.Masked()}
		for _, r := range l.DHCP.Relayed {
			own = append(own, r.Prefix.Masked())
		}
		for _, p := range own {
			for _, other := range nets {
				if other.link != name && other.net.Overlaps(p) {
					return bad(fmt.Sprintf("%s has %s, which overlaps %s of %s", name, p, other.net, other.link), "give each link networks of its own: an address must tell which link it is on")
				}
			}
			nets = append(nets, owned{name, p})
		}
	}
	return nil
}

func (l LinkConfig) validate(name, where string) error {
	bad := func(what, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: where, Fix: fix}
	}
	switch {
	case l.Interface == "":
		return bad(name+": interface is missing", "name the interface of the segment to serve, e.g. eno2")
	case !l.Address.IsValid() || !l.Address.Addr().Is4():
		return bad(name+": address is missing or not IPv4", "give the appliance's own address with its prefix length, e.g. 10.77.0.1/24")
	}
	switch l.DHCP.Mode {
	case "off", "proxy":
	case "authoritative":
		net := l.Address.Masked()
		if !net.Contains(l.DHCP.From) || !net.Contains(l.DHCP.To) || l.DHCP.To.Less(l.DHCP.From) {
			return bad(fmt.Sprintf("%s: dhcp range %s to %s is not within %s", name, l.DHCP.From, l.DHCP.To, net),
				"give `from` and `to` inside the network, in ascending order")
		}
	default:
		return bad(fmt.Sprintf("%s: dhcp.mode %q is not known", name, l.DHCP.Mode), "use authoritative, proxy or off")
	}
	if _, err := l.dhcpOptions(); err != nil {
		return err
	}
	_, err := newNodeAddresses(l, nil)
	return err
}

// networks are those that machines of the link have addresses in.
func (l LinkConfig) networks() []netip.Prefix {
	out := []netip.Prefix{l.Address.Masked()}
	for _, r := range l.DHCP.Relayed {
		out = append(out, r.Prefix.Masked())
	}
	if x := l.DHCP.IPv6; x != nil {
		out = append(out, x.Address.Masked())
	}
	return out
}

// own are the appliance's own addresses on the link.
func (l LinkConfig) own() []netip.Addr {
	out := []netip.Addr{l.Address.Addr()}
	if x := l.DHCP.IPv6; x != nil && l.servesDHCP() {
		out = append(out, x.Address.Addr())
	}
	return out
}

// holds gives the link that an address belongs to, as the appliance's own or as a
// machine's, behind a relay too.
func (n NetworkConfig) holds(a netip.Addr) (LinkConfig, bool) {
	a = a.Unmap().WithZone("")
	for _, l := range n.links() {
		if slices.ContainsFunc(l.networks(), func(p netip.Prefix) bool { return p.Contains(a) }) {
			return l, true
		}
	}
	return LinkConfig{}, false
}

// carries gives the link that a service address belongs to: an application answers
// on a link itself, not behind its relays.
func (n NetworkConfig) carries(a netip.Addr) (LinkConfig, bool) {
	for _, l := range n.links() {
		if l.Address.Masked().Contains(a) {
			return l, true
		}
	}
	return LinkConfig{}, false
}

// interfaceOf gives the interface that a service address belongs to.
func (n NetworkConfig) interfaceOf(a netip.Addr) (string, bool) {
	l, ok := n.carries(a)
	return l.Interface, ok
}

// toward gives the link over which the holder of an address reaches the appliance;
// where no link has that address, the first one.
func (n NetworkConfig) toward(a netip.Addr) LinkConfig {
	if l, ok := n.holds(a); ok {
		return l
	}
	return n.links()[0]
}

// served lists the networks of all links, for people.
func (n NetworkConfig) served() string {
	var out []string
	for _, l := range n.links() {
		out = append(out, l.Address.Masked().String())
	}
	return strings.Join(out, ", ")
}

// portal is where nodes of a link reach the iSCSI target.
func (c Config) portal(l LinkConfig) netip.AddrPort {
	return netip.AddrPortFrom(l.Address.Addr(), c.Network.ISCSIPort)
}

// link is where agents of a link reach the appliance.
func (c Config) link(l LinkConfig) netip.AddrPort {
	return netip.AddrPortFrom(l.Address.Addr(), c.Network.AgentPort)
}

// httpAddr is where boot files are served to a link.
func (c Config) httpAddr(l LinkConfig) netip.AddrPort {
	return netip.AddrPortFrom(l.Address.Addr(), c.Network.HTTPPort)
}
