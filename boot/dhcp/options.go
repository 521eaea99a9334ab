package dhcp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"hotspare"
	"hotspare/boot"
)

// Mode says how a segment is served.
type Mode string

// Modes of a segment.
const (
	Authoritative Mode = "authoritative" // addresses and boot files
	Proxy         Mode = "proxy"         // boot files only; another server gives addresses
	// Off leaves port 67 alone: another server is configured by a Snippet to
	// point here. What it points to is the PXE boot service on port 4011, which
	// is served when Options.Interface is set.
	Off Mode = "off"
)

// Options of a Server. A server serves one link; appliances with several links run
// several servers.
type Options struct {
	Interface string     // Linux name of the segment's interface
	Server    netip.Addr // our IPv4 address there: option 54 and source of answers
	Mode      Mode       // "" is Authoritative
	Subnet               // the link's own network
	Relayed   []Subnet   // networks behind relays that forward to Server
	IPv6      *IPv6      // what machines are told over IPv6; nil: nothing, see RouterAdvertisement

	Site     boot.Site     // where boot files are
	Director boot.Director // what is meant for whom

	Reservations Reservations // nil: none
	// Exclude names addresses that the pool must never give, such as those of
	// applications. It is asked at every offer and renewal.
	Exclude func(netip.Addr) bool
	// Known says whether a machine is a node, so that a flood of invented MAC
	// addresses does not keep it waiting. nil: machines count as known once the
	// Director has named them.
	Known  func(boot.MAC) bool
	Limits Limits
	// ProbeWait is how long an address that is new to a machine is probed by ARP
	// before it is offered (RFC 5227). 0: 200 ms; negative: no probing.
	ProbeWait time.Duration
	// Watch is how often the segment is asked for other DHCP servers. 0: every 5
	// minutes; negative: never.
	Watch time.Duration
	// Vendor names the maker of a network card, for what is told of foreign
	// servers. nil: the list of Debian's package ieee-data, when it is there.
	Vendor func(boot.MAC) string

	Leases string // path of the lease file; "" keeps leases in memory only
	// RouterAdvertisement answers IPv6 router solicitations with a lifetime of 0.
	RouterAdvertisement bool

	// Alarm is told of what an operator should know: once when it begins. It is
	// called from where packets are answered and must not wait. nil: the log alone.
	Alarm    func(*hotspare.Error)
	Recorder *boot.Recorder
	Log      *slog.Logger
	Now      func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Mode == "" {
		o.Mode = Authoritative
	}
	o.Subnet = o.Subnet.withDefaults()
	relayed := make([]Subnet, 0, len(o.Relayed))
	for _, n := range o.Relayed {
		relayed = append(relayed, n.withDefaults())
	}
	o.Relayed = relayed
	if o.IPv6 != nil {
		x := o.IPv6.withDefaults()
		o.IPv6 = &x
	}
	o.Limits = o.Limits.withDefaults()
	if o.ProbeWait == 0 {
		o.ProbeWait = 200 * time.Millisecond
	}
	if o.Watch == 0 {
		o.Watch = 5 * time.Minute
	}
	if o.Reservations == nil {
		o.Reservations = &ReservationList{}
	}
	if o.Exclude == nil {
		o.Exclude = func(netip.Addr) bool { return false }
	}
	if o.Known == nil {
		o.Known = func(boot.MAC) bool { return false }
	}
	if !o.Site.Server.IsValid() {
		o.Site.Server = o.Server
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Alarm == nil {
		o.Alarm = func(*hotspare.Error) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	where := "dhcp"
	bad := func(field, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the DHCP server is not configured", Where: where + "." + field, Why: why, Fix: "correct the segment's configuration"}
	}
	switch o.Mode {
	case Off:
		if o.Interface == "" {
			return nil
		}
	case Authoritative, Proxy:
	default:
		return bad("mode", fmt.Sprintf("%q is none of authoritative, proxy, off", o.Mode))
	}
	switch {
	case o.Interface == "":
		return bad("interface", "it is missing")
	case !o.Server.Is4():
		return bad("server", fmt.Sprintf("%s is no IPv4 address", o.Server))
	case o.Director == nil:
		return bad("director", "it is missing")
	}
	mode := o.Mode
	if mode == Off {
		mode = Proxy
	}
	if err := o.Subnet.validate(mode, bad); err != nil {
		return err
	}
	nets := []Subnet{o.Subnet}
	for _, n := range o.Relayed {
		where = "dhcp.relayed " + n.Prefix.String()
		if err := n.validate(mode, bad); err != nil {
			return err
		}
		for _, other := range nets {
			if n.Prefix.Overlaps(other.Prefix) {
				return bad("prefix", "it overlaps "+other.Prefix.String())
			}
		}
		nets = append(nets, n)
	}
	if o.IPv6 != nil {
		where = "dhcp.ipv6"
		return o.IPv6.validate(bad)
	}
	return nil
}
