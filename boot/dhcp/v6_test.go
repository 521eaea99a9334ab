package dhcp

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"hotspare/boot"
)

func bootOf(m boot.MAC) boot.Request { return boot.Request{MAC: m} }

// n1's link-local address, as firmware forms it.
var n1Local = netip.MustParseAddr("fe80::5054:ff:fe77:1")

func segment6(t *testing.T, addresses bool, d directorFunc) *Server {
	t.Helper()
	o := options()
	o.Director, o.Now, o.Recorder = d, func() time.Time { return epoch }, boot.NewRecorder(0, 0)
	o.Site = boot.Site{Server: o.Server, HTTPPort: 8080, Loaders: boot.DefaultLoaders()}
	o.IPv6 = &IPv6{Server: ip("fd77::1"), Prefix: netip.MustParsePrefix("fd77::/64"), Addresses: addresses, DNS: []netip.Addr{ip("fd77::53")}, Search: []string{"lab.example"}}
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	s := newServer(o)
	s.v6 = newV6(*o.IPv6, net.HardwareAddr{2, 0, 0, 0, 0, 1})
	return s
}

func class6(text string) dhcpv6.Modifier {
	return dhcpv6.WithOption(&dhcpv6.OptVendorClass{EnterpriseNumber: enterprise, Data: [][]byte{[]byte(text)}})
}

var (
	pxe6    = []dhcpv6.Modifier{class6("PXEClient:Arch:00007:UNDI:003016"), dhcpv6.WithArchType(iana.EFI_X86_64)}
	http6   = []dhcpv6.Modifier{class6("HTTPClient:Arch:00016:UNDI:003016"), dhcpv6.WithArchType(iana.EFI_X86_64_HTTP)}
	ipxe6   = []dhcpv6.Modifier{dhcpv6.WithUserClass([]byte("iPXE")), class6("PXEClient:Arch:00007:UNDI:003010"), dhcpv6.WithArchType(iana.EFI_X86_64)}
	system6 []dhcpv6.Modifier
)

// ask6 sends one message of n1 through the wire format and gives the answer.
func ask6(t *testing.T, s *Server, kind dhcpv6.MessageType, mods ...dhcpv6.Modifier) *dhcpv6.Message {
	t.Helper()
	m, err := dhcpv6.NewSolicit(n1[:], mods...)
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = kind
	if kind == dhcpv6.MessageTypeInformationRequest {
		m.Options.Del(dhcpv6.OptionIANA)
	}
	out, err := s.packet6(context.Background(), m.ToBytes(), n1Local)
	if err != nil {
		t.Fatal(err)
	}
	if out == nil {
		return nil
	}
	r, err := dhcpv6.MessageFromBytes(out)
	if err != nil || r.TransactionID != m.TransactionID || !r.Options.ClientID().Equal(m.Options.ClientID()) || !r.Options.ServerID().Equal(s.v6.duid) {
		t.Fatalf("%v %v", r, err)
	}
	return r
}

func given(m *dhcpv6.Message) netip.Addr {
	if m == nil || m.Options.OneIANA() == nil || m.Options.OneIANA().Options.OneAddress() == nil {
		return netip.Addr{}
	}
	return addr6(m.Options.OneIANA().Options.OneAddress().IPv6Addr)
}

// RFC 5970: every stage of a boot gets its URL, with our IPv6 address in it.
func TestWhatEachClientIsToldOverIPv6(t *testing.T) {
	for _, c := range []struct {
		name, url string
		mods      []dhcpv6.Modifier
		http      bool
	}{
		{"UEFI PXE", "tftp://[fd77::1]/snponly.efi", pxe6, false},
		{"UEFI HTTP", "http://[fd77::1]:8080/loader/snponly.efi", http6, true},
		{"iPXE", "http://[fd77::1]:8080/ipxe/" + goodToken, ipxe6, false},
		{"operating system", "", system6, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := segment6(t, true, starts)
			adv := ask6(t, s, dhcpv6.MessageTypeSolicit, c.mods...)
			if adv == nil || adv.MessageType != dhcpv6.MessageTypeAdvertise || adv.Options.BootFileURL() != c.url || !s.v6.Prefix.Contains(given(adv)) {
				t.Fatalf("%v", adv)
			}
			if got := len(adv.Options.VendorClass(enterprise)) > 0; got != c.http {
				t.Errorf("class HTTPClient: %v", got)
			}
			if adv.Options.DNS()[0].String() != "fd77::53" || adv.Options.DomainSearchList().Labels[0] != "lab.example" {
				t.Errorf("%v", adv)
			}
			trace, ok := s.o.Recorder.Trace(n1)
			if !ok || strings.Contains(trace.Entries[0].Answer, goodToken) || !strings.Contains(trace.Entries[0].Request, "over IPv6") {
				t.Errorf("%+v", trace)
			}
			// The same without an address, where a router gives them.
			s = segment6(t, false, starts)
			if r := ask6(t, s, dhcpv6.MessageTypeSolicit, c.mods...); r != nil {
				t.Errorf("a solicit is answered where addresses are not ours: %v", r)
			}
			r := ask6(t, s, dhcpv6.MessageTypeInformationRequest, c.mods...)
			if r == nil || r.MessageType != dhcpv6.MessageTypeReply || r.Options.BootFileURL() != c.url || given(r).IsValid() {
				t.Errorf("%v", r)
			}
		})
	}
}

// RFC 8415 section 18.3, message by message.
func TestMessagesOverIPv6(t *testing.T) {
	s := segment6(t, true, starts)
	ours := dhcpv6.WithServerID(s.v6.duid)
	others := dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: n2[:]})
	addr := given(ask6(t, s, dhcpv6.MessageTypeSolicit))
	for _, kind := range []dhcpv6.MessageType{dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew} {
		if r := ask6(t, s, kind, ours); r == nil || r.MessageType != dhcpv6.MessageTypeReply || given(r) != addr {
			t.Errorf("%s: %v", kind, r)
		}
		if r := ask6(t, s, kind, others); r != nil {
			t.Errorf("%s to another server is answered", kind)
		}
	}
	if r := ask6(t, s, dhcpv6.MessageTypeRebind); given(r) != addr {
		t.Errorf("rebind: %v", r)
	}
	if r := ask6(t, s, dhcpv6.MessageTypeSolicit, dhcpv6.WithRapidCommit); r == nil || r.MessageType != dhcpv6.MessageTypeReply || given(r) != addr || r.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
		t.Errorf("rapid commit: %v", r)
	}
	confirm := func(a string) *dhcpv6.Message {
		return ask6(t, s, dhcpv6.MessageTypeConfirm, dhcpv6.WithIANA(dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)}))
	}
	if r := confirm("fd77::9"); r == nil || r.Options.Status().StatusCode != 0 {
		t.Errorf("confirm: %v", r)
	}
	if r := confirm("fd99::9"); r == nil || r.Options.Status().StatusCode != 4 {
		t.Errorf("confirm of another network: %v", r)
	}
	if r := ask6(t, s, dhcpv6.MessageTypeRelease, ours); r == nil || r.Options.Status().StatusCode != 0 {
		t.Errorf("release: %v", r)
	}
	if r := ask6(t, s, dhcpv6.MessageTypeDecline, ours); r == nil || s.Stats().Conflicts != 1 {
		t.Errorf("decline: %v", r)
	}
	if next := given(ask6(t, s, dhcpv6.MessageTypeSolicit)); next == addr || !next.IsValid() {
		t.Errorf("after the decline it gets %s", next)
	}
	if r := ask6(t, s, dhcpv6.MessageTypeReconfigure); r != nil {
		t.Errorf("a server's message is answered: %v", r)
	}
}

// One address through all stages of a boot, whatever the client identifier; another
// one for another machine, and none that is excluded.
func TestAddressesOverIPv6(t *testing.T) {
	s := segment6(t, true, starts)
	first := given(ask6(t, s, dhcpv6.MessageTypeSolicit, pxe6...))
	uuid := dhcpv6.WithClientID(&dhcpv6.DUIDUUID{UUID: [16]byte{1, 2, 3}})
	again := ask6(t, s, dhcpv6.MessageTypeSolicit, append([]dhcpv6.Modifier{uuid}, ipxe6...)...)
	if given(again) != first {
		t.Errorf("%s, then %s", first, given(again))
	}
	other := s.v6.address(message6{boot: bootOf(n2)}, 0, s.o.Exclude)
	moved := s.v6.address(message6{boot: bootOf(n1)}, 0, func(a netip.Addr) bool { return a == first })
	if other == first || moved == first || !s.v6.Prefix.Contains(other) || !s.v6.Prefix.Contains(moved) {
		t.Errorf("%s %s %s", first, other, moved)
	}
	if second := s.v6.address(message6{boot: bootOf(n1)}, 1, s.o.Exclude); second == first {
		t.Error("two associations of one machine get one address")
	}
}

// Through relays (RFC 8415 section 19), of a network that is served and of another;
// the machine is known by option 79 (RFC 6939).
func TestRelaysOverIPv6(t *testing.T) {
	s := segment6(t, true, starts)
	sol, err := dhcpv6.NewSolicit(n2[:], append([]dhcpv6.Modifier{dhcpv6.WithClientID(&dhcpv6.DUIDEN{EnterpriseNumber: 9, EnterpriseIdentifier: []byte("x")})}, http6...)...)
	if err != nil {
		t.Fatal(err)
	}
	relay := func(link string, hops int) []byte {
		var d dhcpv6.DHCPv6 = sol
		for i := range hops {
			r, err := dhcpv6.EncapsulateRelay(d, dhcpv6.MessageTypeRelayForward, net.ParseIP(link), net.ParseIP("fe80::99"))
			if err != nil {
				t.Fatal(err)
			}
			r.AddOption(dhcpv6.OptInterfaceID([]byte{byte(i)}))
			if i == 0 {
				r.AddOption(dhcpv6.OptClientLinkLayerAddress(1, n2[:]))
			}
			d = r
		}
		return d.ToBytes()
	}
	out, err := s.packet6(context.Background(), relay("fd77::2", 2), ip("fd77::2"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := dhcpv6.RelayMessageFromBytes(out)
	if err != nil || r.MessageType != dhcpv6.MessageTypeRelayReply || !bytes.Equal(r.Options.InterfaceID(), []byte{1}) {
		t.Fatalf("%v %v", r, err)
	}
	inner, err := r.GetInnerMessage()
	if err != nil || inner.MessageType != dhcpv6.MessageTypeAdvertise || given(inner) != s.v6.address(message6{boot: bootOf(n2)}, 0, s.o.Exclude) {
		t.Errorf("%v %v", inner, err)
	}
	for name, b := range map[string][]byte{"of another network": relay("fd99::2", 1), "of nine relays": relay("fd77::2", 9), "empty": {}, "cut": relay("fd77::2", 1)[:50], "huge": make([]byte, 5000)} {
		if out, err := s.packet6(context.Background(), b, ip("fd77::2")); out != nil || err == nil {
			t.Errorf("a packet %s is answered", name)
		}
	}
}

// The advertisement makes machines ask: flags, and the network that is on the link.
func TestAdvertisementOfAServedNetwork(t *testing.T) {
	x := &IPv6{Prefix: netip.MustParsePrefix("fd77::/64"), Addresses: true}
	b := advertisement(n1, n2, [16]byte{}, x)
	if b[59] != 0xc0 || b[60]|b[61] != 0 || checksum6(b[22:54], b[54:]) != 0 {
		t.Errorf("flags %#x, lifetime % x", b[59], b[60:62])
	}
	if i := bytes.Index(b, []byte{3, 4, 64, 0x80}); i < 0 || !bytes.Equal(b[i+16:i+18], []byte{0xfd, 0x77}) {
		t.Errorf("no prefix: % x", b)
	}
	x.Addresses = false
	if b := advertisement(n1, n2, [16]byte{}, x); b[59] != 0x40 || bytes.Contains(b, []byte{3, 4, 64}) {
		t.Errorf("flags %#x", b[59])
	}
}

func FuzzPacket6(f *testing.F) {
	for _, mods := range [][]dhcpv6.Modifier{pxe6, http6, ipxe6, system6} {
		m, err := dhcpv6.NewSolicit(n1[:], mods...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.ToBytes())
		r, err := dhcpv6.EncapsulateRelay(m, dhcpv6.MessageTypeRelayForward, net.ParseIP("fd77::2"), net.ParseIP("fe80::99"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(r.ToBytes())
	}
	o := options()
	o.Director, o.IPv6 = directorFunc(starts), &IPv6{Server: ip("fd77::1"), Prefix: netip.MustParsePrefix("fd77::/64"), Addresses: true}
	o.Site.Loaders = boot.DefaultLoaders()
	o = o.withDefaults()
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newServer(o)
		s.v6 = newV6(*o.IPv6, net.HardwareAddr{2, 0, 0, 0, 0, 1})
		out, err := s.packet6(context.Background(), b, n1Local)
		if err != nil && strings.Contains(err.Error(), "panic") {
			t.Error(err)
		}
		if out != nil {
			if _, err := dhcpv6.FromBytes(out); err != nil {
				t.Errorf("the answer cannot be read: %v", err)
			}
		}
	})
}
