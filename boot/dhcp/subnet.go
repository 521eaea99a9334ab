package dhcp

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
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

// Subnet is one network of machines and what they are told. The link's own network
// is one; each network behind a relay is a further one.
type Subnet struct {
	Prefix    netip.Prefix  // the machines' network
	Range     Range         // pool; Authoritative needs one
	Gateway   netip.Addr    // option 3; zero: none
	DNS       []netip.Addr  // option 6
	NTP       []netip.Addr  // option 42
	Domain    string        // option 15
	Search    []string      // option 119
	LeaseTime time.Duration // 0: one hour; it outlasts a boot with a large image
	Extra     []Option      // any further options; ParseOption reads them
	// Unknown is how many addresses machines that the Director does not know may
	// hold at once, so that invented MAC addresses cannot starve the known ones.
	// 0: half of the pool.
	Unknown int
	// Relays are addresses outside Prefix that relays of this network write from:
	// they name the network by link selection (RFC 3527). A relay whose address
	// (giaddr) lies in Prefix needs no mention.
	Relays []netip.Addr
}

func (n Subnet) withDefaults() Subnet {
	if n.LeaseTime == 0 {
		n.LeaseTime = time.Hour
	}
	if n.Unknown == 0 {
		n.Unknown = max(1, n.Range.Size()/2)
	}
	return n
}

// bad makes an error of a field and why it is refused.
type bad func(field, why string) error

func (n Subnet) validate(mode Mode, bad bad) error {
	if !n.Prefix.IsValid() || !n.Prefix.Addr().Is4() {
		return bad("prefix", "want the IPv4 network of the machines")
	}
	if mode == Proxy {
		return nil
	}
	switch {
	case n.Range.Size() == 0:
		return bad("range", "want two IPv4 addresses, the lower one first")
	case !n.Prefix.Contains(n.Range.From) || !n.Prefix.Contains(n.Range.To):
		return bad("range", fmt.Sprintf("%s-%s is not inside %s", n.Range.From, n.Range.To, n.Prefix))
	case n.Range.Size() > 1<<16:
		return bad("range", "more than 65536 addresses")
	case n.Gateway.IsValid() && !n.Prefix.Contains(n.Gateway):
		return bad("gateway", fmt.Sprintf("%s is not inside %s", n.Gateway, n.Prefix))
	case n.LeaseTime < time.Minute:
		return bad("leaseTime", "shorter than a minute")
	case n.LeaseTime > 365*24*time.Hour:
		return bad("leaseTime", "longer than a year")
	case n.Domain != "" && !validDomain(n.Domain):
		return bad("domain", fmt.Sprintf("%q is no domain name", n.Domain))
	case len(n.NTP) > 8 || len(n.DNS) > 8:
		return bad("dns, ntp", "more than 8 servers")
	}
	for _, a := range n.NTP {
		if !a.Is4() {
			return bad("ntp", fmt.Sprintf("%s is no IPv4 address", a))
		}
	}
	for _, d := range n.Search {
		if !validDomain(d) {
			return bad("search", fmt.Sprintf("%q is no domain name", d))
		}
	}
	if len(searchList(n.Search)) > 255 {
		return bad("search", "the list is longer than 255 bytes")
	}
	for _, e := range n.Extra {
		if err := e.validate(); err != nil {
			return bad("extra", err.Error())
		}
	}
	return nil
}

// validDomain takes names of letters, digits and hyphens (RFC 1123 section 2.1).
func validDomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	return true
}

// searchList is option 119 (RFC 3397), without compression.
func searchList(domains []string) []byte {
	var b []byte
	for _, d := range domains {
		for label := range strings.SplitSeq(strings.TrimSuffix(d, "."), ".") {
			b = append(append(b, byte(len(label))), label...)
		}
		b = append(b, 0)
	}
	return b
}
