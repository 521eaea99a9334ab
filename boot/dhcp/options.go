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
	Off           Mode = "off"           // nothing: another server is configured to point here
)

// Range is a pool of addresses, both ends included.
type Range struct{ From, To netip.Addr }

// Contains says whether a is in the pool.
func (r Range) Contains(a netip.Addr) bool {
	return a.IsValid() && r.From.Compare(a) <= 0 && a.Compare(r.To) <= 0
}

// Size is the number of addresses.
func (r Range) Size() int {
	if !r.From.Is4() || !r.To.Is4() || r.To.Less(r.From) {
		return 0
	}
	return int(number(r.To)-number(r.From)) + 1
}

// Options of a Server.
type Options struct {
	Interface string        // Linux name of the segment's interface
	Server    netip.Addr    // our IPv4 address there: option 54 and source of answers
	Mode      Mode          // "" is Authoritative
	Prefix    netip.Prefix  // the machines' network
	Range     Range         // pool; Authoritative needs one
	Gateway   netip.Addr    // option 3; zero: none
	DNS       []netip.Addr  // option 6
	LeaseTime time.Duration // 0: one hour; it outlasts a boot with a large image

	Site     boot.Site     // where boot files are
	Director boot.Director // what is meant for whom

	// Reservations gives the fixed address of a MAC address. Reserved addresses
	// that lie inside Range must also be named by Exclude.
	Reservations func(boot.MAC) (netip.Addr, bool)
	// Exclude names addresses that the pool must never give, such as those of
	// applications. It is asked at every offer and renewal.
	Exclude func(netip.Addr) bool
	// Unknown is how many addresses machines that the Director does not know may
	// hold at once, so that invented MAC addresses cannot starve the known ones.
	// 0: half of the pool.
	Unknown int
	// ProbeWait is how long an address that is new to a machine is probed by ARP
	// before it is offered (RFC 5227). 0: 200 ms; negative: no probing.
	ProbeWait time.Duration

	Leases string // path of the lease file; "" keeps leases in memory only
	// RouterAdvertisement answers IPv6 router solicitations with a lifetime of 0.
	RouterAdvertisement bool

	Recorder *boot.Recorder
	Log      *slog.Logger
	Now      func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Mode == "" {
		o.Mode = Authoritative
	}
	if o.LeaseTime == 0 {
		o.LeaseTime = time.Hour
	}
	if o.Unknown == 0 {
		o.Unknown = max(1, o.Range.Size()/2)
	}
	if o.ProbeWait == 0 {
		o.ProbeWait = 200 * time.Millisecond
	}
	if o.Reservations == nil {
		o.Reservations = func(boot.MAC) (netip.Addr, bool) { return netip.Addr{}, false }
	}
	if o.Exclude == nil {
		o.Exclude = func(netip.Addr) bool { return false }
	}
	if !o.Site.Server.IsValid() {
		o.Site.Server = o.Server
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	bad := func(field, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the DHCP server is not configured", Where: "dhcp." + field, Why: why, Fix: "correct the segment's configuration"}
	}
	switch o.Mode {
	case Off:
		return nil
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
	case !o.Prefix.IsValid() || !o.Prefix.Addr().Is4():
		return bad("prefix", "want the IPv4 network of the machines")
	case o.Mode == Proxy:
		return nil
	case o.Range.Size() == 0:
		return bad("range", "want two IPv4 addresses, the lower one first")
	case !o.Prefix.Contains(o.Range.From) || !o.Prefix.Contains(o.Range.To):
		return bad("range", fmt.Sprintf("%s-%s is not inside %s", o.Range.From, o.Range.To, o.Prefix))
	case o.Range.Size() > 1<<16:
		return bad("range", "more than 65536 addresses")
	case o.Gateway.IsValid() && !o.Prefix.Contains(o.Gateway):
		return bad("gateway", fmt.Sprintf("%s is not inside %s", o.Gateway, o.Prefix))
	case o.LeaseTime < time.Minute:
		return bad("leaseTime", "shorter than a minute")
	}
	return nil
}
