package dhcp

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare"
	"hotspare/boot"
)

// relayedSegment serves its own network and two behind relays; those of the second
// one write from an address outside it.
func relayedSegment(t *testing.T, mode Mode) *Server {
	t.Helper()
	o := options()
	o.Mode, o.Director, o.Now = mode, directorFunc(starts), func() time.Time { return epoch }
	o.Site = boot.Site{Server: o.Server, Loaders: boot.DefaultLoaders()}
	o.Relayed = []Subnet{
		{Prefix: netip.MustParsePrefix("10.88.0.0/24"), Range: Range{ip("10.88.0.20"), ip("10.88.0.29")}, Gateway: ip("10.88.0.1"), Domain: "rack.example"},
		{Prefix: netip.MustParsePrefix("10.99.0.0/24"), Range: Range{ip("10.99.0.20"), ip("10.99.0.29")}, Relays: []netip.Addr{ip("192.0.2.1")}},
	}
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	return newServer(o)
}

func via(giaddr string, agent string) []opt {
	return []opt{dhcpv4.WithGatewayIP(net.ParseIP(giaddr)), generic(82, agent)}
}

func TestTheRelayNamesTheSubnet(t *testing.T) {
	link := func(a string) string { return "\x05\x04" + string(ip(a).AsSlice()) }
	for _, c := range []struct {
		name, from, to string
		opts           []opt
	}{
		{"no relay", "10.77.0.", "", nil},
		{"giaddr in the network", "10.88.0.", "10.88.0.1:67", via("10.88.0.1", "\x01\x01a")},
		{"link selection by a relay that is named", "10.99.0.", "192.0.2.1:67", via("192.0.2.1", link("10.99.0.7"))},
		{"link selection by a relay of another network that is served", "10.99.0.", "10.88.0.1:67", via("10.88.0.1", link("10.99.0.7"))},
		{"link selection by a relay that nobody named", "", "", via("192.0.2.9", link("10.99.0.7"))},
		{"link selection of a network that the named relay is not of", "", "", via("192.0.2.1", link("10.88.0.7"))},
		{"a network that is not served", "", "", via("172.16.0.1", "")},
		{"link selection of one that is not served", "", "", via("10.88.0.1", link("172.16.0.1"))},
		{"our own address: a circle", "", "", via("10.77.0.1", "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, a := ask(t, relayedSegment(t, Authoritative), dhcpv4.MessageTypeDiscover, with(iPXE, c.opts...)...)
			if c.from == "" {
				if out != nil || a.reason.Rule != boot.RuleNoAddress {
					t.Errorf("answered: %+v", a)
				}
				return
			}
			if out == nil || !strings.HasPrefix(out.YourIPAddr.String(), c.from) || c.to != "" && a.to.addr.String() != c.to {
				t.Fatalf("%+v", a)
			}
			if len(c.opts) > 0 && string(out.Options[82]) == "" {
				t.Error("option 82 does not come back")
			}
			if out.ServerIdentifier().String() != "10.77.0.1" {
				t.Errorf("server identifier %s", out.ServerIdentifier())
			}
		})
	}
}

// RFC 5107: the relay puts itself into the way of renewals too.
func TestServerIdentifierOfTheRelay(t *testing.T) {
	s := relayedSegment(t, Authoritative)
	opts := with(system, via("10.88.0.1", "\x0b\x04\x0a\x58\x00\x01")...)
	offer, _ := ask(t, s, dhcpv4.MessageTypeDiscover, opts...)
	if offer.ServerIdentifier().String() != "10.88.0.1" {
		t.Fatalf("it says %s", offer.ServerIdentifier())
	}
	ack, a := ask(t, s, dhcpv4.MessageTypeRequest, with(opts, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)))...)
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck || len(s.ForeignServers()) != 0 {
		t.Errorf("%+v, foreign %+v", a, s.ForeignServers())
	}
}

// A machine behind a relay renews by unicast past it, and gives its address back.
func TestRenewalWithoutTheRelay(t *testing.T) {
	s := relayedSegment(t, Authoritative)
	addr, _, err := s.subnets[1].table.offer(n1, netip.Addr{}, true, epoch)
	if err != nil {
		t.Fatal(err)
	}
	s.subnets[1].table.bind(n1, addr.Addr, true, time.Hour, epoch)
	ciaddr := dhcpv4.WithClientIP(net.IP(addr.Addr.AsSlice()))
	out, a := ask(t, s, dhcpv4.MessageTypeRequest, with(system, ciaddr)...)
	if out == nil || out.MessageType() != dhcpv4.MessageTypeAck || a.to.addr != netip.AddrPortFrom(addr.Addr, 68) || out.DomainName() != "rack.example" || out.Router()[0].String() != "10.88.0.1" {
		t.Fatalf("%+v", a)
	}
	if got, ok := s.AddrOf(n1); !ok || got != addr.Addr {
		t.Errorf("%s %v", got, ok)
	}
	ask(t, s, dhcpv4.MessageTypeRelease, ciaddr)
	if _, ok := s.MACOf(addr.Addr); ok {
		t.Error("the release is not heard")
	}
}

// One machine may have an address in each of two networks; both survive a restart.
func TestLeasesInTwoSubnets(t *testing.T) {
	o := options()
	o.Leases, o.Director = t.TempDir()+"/leases", directorFunc(starts)
	o.Relayed = []Subnet{{Prefix: netip.MustParsePrefix("10.88.0.0/24"), Range: Range{ip("10.88.0.20"), ip("10.88.0.29")}}}
	o = o.withDefaults()
	s := newServer(o)
	if err := s.openLeases(); err != nil {
		t.Fatal(err)
	}
	for _, opts := range [][]opt{nil, via("10.88.0.1", "")} {
		offer, _ := ask(t, s, dhcpv4.MessageTypeDiscover, with(system, opts...)...)
		ask(t, s, dhcpv4.MessageTypeRequest, with(with(system, opts...), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())))...)
	}
	ask(t, s, dhcpv4.MessageTypeDiscover, with(system, dhcpv4.WithHwAddr(n2[:]))...)
	offer := s.own.table.byMAC[n2].Addr
	ask(t, s, dhcpv4.MessageTypeDecline, with(system, dhcpv4.WithHwAddr(n2[:]), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP(offer.AsSlice()))))...)
	before, quarantined := s.Leases(), s.Quarantined()
	if len(before) != 2 || len(quarantined) != 1 || quarantined[0].Addr != offer {
		t.Fatalf("%+v, quarantine %+v", before, quarantined)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = newServer(o)
	if err := s.openLeases(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	same := func(a, b Lease) bool {
		return a.MAC == b.MAC && a.Addr == b.Addr && a.Expires.Equal(b.Expires) && a.Bound == b.Bound
	}
	if after := s.Leases(); !slices.EqualFunc(after, before, same) {
		t.Errorf("leases %+v, were %+v", after, before)
	}
	if after := s.Quarantined(); !slices.EqualFunc(after, quarantined, same) {
		t.Errorf("in quarantine %+v, were %+v", after, quarantined)
	}
}

func TestSettingsThatAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"overlapping": func(o *Options) {
			o.Relayed = []Subnet{{Prefix: netip.MustParsePrefix("10.77.0.128/25"), Range: Range{ip("10.77.0.130"), ip("10.77.0.140")}}}
		},
		"relayed without a range": func(o *Options) { o.Relayed = []Subnet{{Prefix: netip.MustParsePrefix("10.88.0.0/24")}} },
		"domain":                  func(o *Options) { o.Domain = "no domain" },
		"search":                  func(o *Options) { o.Search = []string{"-x"} },
		"long search":             func(o *Options) { o.Search = slices.Repeat([]string{strings.Repeat("a", 60) + ".example"}, 5) },
		"ntp":                     func(o *Options) { o.NTP = []netip.Addr{ip("fd00::1")} },
		"an option of ours":       func(o *Options) { o.Extra = []Option{{Code: 67, Value: []byte("x")}} },
		"an empty option":         func(o *Options) { o.Extra = []Option{{Code: 26}} },
		"a lease of years":        func(o *Options) { o.LeaseTime = 10000 * time.Hour },
		"IPv6 without a server":   func(o *Options) { o.IPv6 = &IPv6{Prefix: netip.MustParsePrefix("fd00::/64")} },
		"IPv6 with a /48":         func(o *Options) { o.IPv6 = &IPv6{Server: ip("fd00::1"), Prefix: netip.MustParsePrefix("fd00::/48")} },
		"IPv6 beside its prefix":  func(o *Options) { o.IPv6 = &IPv6{Server: ip("fd01::1"), Prefix: netip.MustParsePrefix("fd00::/64")} },
	} {
		o := options()
		o.Director = directorFunc(starts)
		change(&o)
		err := o.withDefaults().validate()
		if hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseOption(t *testing.T) {
	for _, c := range []struct {
		code        int
		kind, value string
		want        string // "" is refused
	}{
		{26, "uint16", "9000", "\x23\x28"},
		{4, "ip", "10.0.0.1, 10.0.0.2", "\x0a\x00\x00\x01\x0a\x00\x00\x02"},
		{209, "text", "menu.cfg", "menu.cfg"},
		{121, "hex", "18:0a:01:02 0a000001", "\x18\x0a\x01\x02\x0a\x00\x00\x01"},
		{19, "bool", "true", "\x01"},
		{2, "uint32", "3600", "\x00\x00\x0e\x10"},
		{23, "uint8", "0x40", "\x40"},
		{23, "uint8", "256", ""},
		{4, "ip", "fd00::1", ""},
		{4, "ip", "", ""},
		{121, "hex", "1", ""},
		{19, "bool", "perhaps", ""},
		{209, "text", "", ""},
		{209, "text", strings.Repeat("x", 256), ""},
		{209, "string", "x", ""},
		{0, "text", "x", ""},
		{255, "text", "x", ""},
		{300, "text", "x", ""},
		{67, "text", "x", ""},
		{51, "uint32", "60", ""},
	} {
		o, err := ParseOption(c.code, c.kind, c.value, false)
		if c.want == "" {
			if hotspare.CodeOf(err) != hotspare.CodeInvalid {
				t.Errorf("%d %s %q: %v", c.code, c.kind, c.value, err)
			}
			continue
		}
		if err != nil || string(o.Value) != c.want || int(o.Code) != c.code {
			t.Errorf("%d %s %q: % x %v", c.code, c.kind, c.value, o.Value, err)
		}
	}
}

// What a client did not ask for it does not get, except what is always sent.
func TestOptionsAsAskedFor(t *testing.T) {
	s := segment(t, Authoritative, starts)
	s.own.Domain, s.own.NTP, s.own.Search = "lab.example", []netip.Addr{ip("10.77.0.123")}, []string{"lab.example", "example."}
	s.own.Extra = []Option{{Code: 26, Value: []byte{0x23, 0x28}}, {Code: 209, Value: []byte("x"), Always: true}}
	all, _ := ask(t, s, dhcpv4.MessageTypeDiscover, system...)
	if all.DomainName() != "lab.example" || all.NTPServers()[0].String() != "10.77.0.123" || len(all.Options[26]) != 2 || string(all.Options[119]) != "\x03lab\x07example\x00\x07example\x00" {
		t.Errorf("%s", all.Summary())
	}
	some, _ := ask(t, s, dhcpv4.MessageTypeDiscover, with(system, generic(55, "\x01\x03\x0f"))...)
	if some.DomainName() != "lab.example" || len(some.Options[42])+len(some.Options[119])+len(some.Options[26]) != 0 || string(some.Options[209]) != "x" || len(some.Router()) != 1 {
		t.Errorf("%s", some.Summary())
	}
}

// An answer is no longer than the client takes; what it cannot do without stays.
func TestLongAnswersAreShortened(t *testing.T) {
	s := segment(t, Authoritative, starts)
	for code := range uint8(4) {
		s.own.Extra = append(s.own.Extra, Option{Code: 200 + code, Value: make([]byte, 200)})
	}
	short, a := ask(t, s, dhcpv4.MessageTypeDiscover, iPXE...)
	if n := len(a.packet.ToBytes()); n > 576-28 || short.BootFileNameOption() == "" || len(short.Options[1]) != 4 || len(short.Options[175]) == 0 {
		t.Errorf("%d bytes: %s", n, short.Summary())
	}
	long, a := ask(t, s, dhcpv4.MessageTypeDiscover, with(iPXE, generic(57, "\x05\xc0"))...)
	if n := len(a.packet.ToBytes()); n > 1472-28 || len(long.Options[203]) != 200 || len(long.Options[200]) != 200 {
		t.Errorf("%d bytes: %s", n, long.Summary())
	}
}

// RFC 2132 section 9.3: options may continue in the fields file and sname.
func TestOptionOverload(t *testing.T) {
	d, err := dhcpv4.New(dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover), generic(52, "\x03"))
	if err != nil {
		t.Fatal(err)
	}
	b := d.ToBytes()
	copy(b[108:], "\x4d\x04iPXE\xff")                     // file: user class
	copy(b[44:], "\x3c\x09PXEClient\x5d\x02\x00\x07\xff") // sname: class and architecture
	m, err := parse(b, boot.DHCP)
	if err != nil || m.boot.Stage != boot.StageIPXE || m.boot.Arch != boot.ArchUEFI64 || m.BootFileName != "" || m.ServerHostName != "" {
		t.Errorf("%+v %v", m.boot, err)
	}
}

// Hostile packets are dropped and counted, and lead to no answer.
func TestHostilePackets(t *testing.T) {
	base := func(mods ...opt) []byte {
		d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		return d.ToBytes()
	}
	change := func(i int, v byte) []byte { b := base(); b[i] = v; return b }
	for name, b := range map[string][]byte{
		"empty": {}, "one byte": {1}, "no options": base()[:236], "cut in the options": base()[:242],
		"an option longer than the packet": append(base()[:243], 12, 255, 1),
		"a reply":                          change(0, 2), "Token Ring": change(1, 6), "an address of 16 bytes": change(2, 16), "an address of 255 bytes": change(2, 255), "no address": change(2, 0),
		"a group as sender": change(28, 0x53), "no cookie": change(236, 0), "17 relays": change(3, 17),
		"overload of nothing": base(generic(52, "\x04")), "overload twice": base(generic(52, "\x01\x02")), "BOOTP": base(func(d *dhcpv4.DHCPv4) { delete(d.Options, 53) }),
		"huge": append(base(), make([]byte, 5000)...),
		"overloaded fields that are cut": func() []byte {
			b := base(generic(52, "\x01"))
			for i := 108; i < 236; i++ {
				b[i] = 0x4d
			}
			return b
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			s := segment(t, Authoritative, starts)
			if s.admit(b) {
				s.work(context.Background(), nil, []job{{b, netip.MustParseAddrPort("0.0.0.0:68")}}, portDHCP, nil)
			}
			if st := s.Stats(); st.Malformed != 1 || st.Answered+st.Failed+st.Panics != 0 || len(s.Leases()) != 0 {
				t.Errorf("%+v, leases %+v", st, s.Leases())
			}
		})
	}
}
