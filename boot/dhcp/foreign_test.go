package dhcp

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare"
	"hotspare/boot"
)

func answerFrame(t *testing.T, kind dhcpv4.MessageType, mods ...opt) []byte {
	t.Helper()
	d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 9)))}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	d.OpCode = dhcpv4.OpcodeBootReply
	b, err := frame(net.HardwareAddr(n2[:]), n1, netip.MustParseAddrPort("10.77.0.9:67"), netip.MustParseAddrPort("255.255.255.255:68"), d.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Who is to be mended, and how, depends on the mode and on what the other offers.
func TestWhatToDoAboutAnotherServer(t *testing.T) {
	address := []opt{dhcpv4.WithYourIP(net.IPv4(10, 77, 0, 60))}
	file := []opt{generic(67, "pxelinux.0"), generic(66, "10.77.0.9")}
	binl := []opt{generic(60, "PXEClient")}
	for _, c := range []struct {
		name string
		mode Mode
		opts []opt
		fix  string // "" means that nothing is wrong
	}{
		{"authoritative, it gives addresses", Authoritative, address, "mode: proxy"},
		{"authoritative, it is a proxy", Authoritative, file, "stop the boot service"},
		{"proxy, it gives addresses only", Proxy, address, ""},
		{"proxy, it gives boot files too", Proxy, with(address, file...), "options 66, 67"},
		{"proxy, it says PXEClient without a file", Proxy, with(address, binl...), "option 60"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := segment(t, c.mode, starts)
			var told []*hotspare.Error
			s.o.Alarm = func(e *hotspare.Error) { told = append(told, e) }
			f, ok := serverAnswer(answerFrame(t, dhcpv4.MessageTypeOffer, c.opts...))
			if !ok || f.MAC != n2 || f.Server != ip("10.77.0.9") {
				t.Fatalf("%+v %v", f, ok)
			}
			s.foreignSeen(f)
			got := s.ForeignServers()
			if len(got) != 1 || (got[0].Fix == "") != (c.fix == "") || !strings.Contains(got[0].Fix, c.fix) || (len(told) == 0) != (c.fix == "") {
				t.Errorf("%+v, told %+v", got, told)
			}
		})
	}
}

// Beside a proxy one server gives the addresses; two are told of.
func TestTwoServersGiveAddresses(t *testing.T) {
	s := segment(t, Proxy, starts)
	var told []*hotspare.Error
	s.o.Alarm = func(e *hotspare.Error) { told = append(told, e) }
	for _, server := range []string{"10.77.0.9", "10.77.0.8", "10.77.0.9"} {
		s.foreignSeen(Foreign{Server: ip(server), MAC: n2, Address: ip("10.77.0.60")})
	}
	if len(told) != 2 || !strings.Contains(told[0].Fix, "keep one") {
		t.Errorf("%+v", told)
	}
}

// A machine that takes the other's offer says so; its own offer here is free again,
// and what was seen of the other stays known.
func TestAMachineTakesAnotherOffer(t *testing.T) {
	s := segment(t, Authoritative, starts)
	s.o.Vendor = func(boot.MAC) string { return "Example Inc." }
	f, _ := serverAnswer(answerFrame(t, dhcpv4.MessageTypeOffer, dhcpv4.WithYourIP(net.IPv4(10, 77, 0, 60))))
	s.foreignSeen(f)
	ask(t, s, dhcpv4.MessageTypeDiscover, biosPXE...)
	_, a := ask(t, s, dhcpv4.MessageTypeRequest, with(biosPXE, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 9))), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 77, 0, 60))))...)
	if a.reason.Code != hotspare.CodeForeignDHCP || !strings.Contains(a.reason.Text, "10.77.0.9 (52:54:00:77:00:02, Example Inc.)") || a.reason.Fix == "" {
		t.Errorf("%+v", a)
	}
	got := s.ForeignServers()[0]
	if got.Taken != 1 || got.Taker != n1 || got.Address != ip("10.77.0.60") || len(s.Leases()) != 0 {
		t.Errorf("%+v, leases %+v", got, s.Leases())
	}
	nak, _ := serverAnswer(answerFrame(t, dhcpv4.MessageTypeNak))
	s.foreignSeen(nak)
	if got := s.ForeignServers()[0]; got.Address != ip("10.77.0.60") || got.Taken != 1 {
		t.Errorf("after a NAK: %+v", got)
	}
}

func TestForeignServersAreBounded(t *testing.T) {
	s := segment(t, Authoritative, starts)
	for i := range 1000 {
		s.foreignSeen(Foreign{Server: address(uint32(i + 1)), MAC: n2})
		s.foreignTaken(address(uint32(i+5000)), message{mac: n1})
	}
	if n := len(s.ForeignServers()); n != foreignMost {
		t.Errorf("%d are remembered", n)
	}
	if len(s.alarmed) > 256 {
		t.Errorf("%d alarms are remembered", len(s.alarmed))
	}
}

func TestVendors(t *testing.T) {
	list := filepath.Join(t.TempDir(), "oui.txt")
	if err := os.WriteFile(list, []byte("OUI/MA-L\t\tOrganization\n00-1B-21   (hex)\t\tIntel Corporate\r\n001B21     (base 16)\t\tIntel Corporate\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for m, want := range map[boot.MAC]string{{0, 0x1b, 0x21, 1, 2, 3}: "Intel Corporate", {0, 0x1b, 0x22}: "", {2, 0x1b, 0x21}: ""} {
		if got := VendorIn(list, m); got != want {
			t.Errorf("%s is of %q, want %q", m, got, want)
		}
	}
	if got := VendorIn(list+"x", boot.MAC{0, 0x1b, 0x21}); got != "" {
		t.Errorf("without a list: %q", got)
	}
}

func FuzzServerAnswer(f *testing.F) {
	d, err := dhcpv4.New(dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeOffer), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 77, 0, 9))), generic(3, "\x01\x02"), generic(67, "x"))
	if err != nil {
		f.Fatal(err)
	}
	d.OpCode = dhcpv4.OpcodeBootReply
	b, err := frame(net.HardwareAddr(n2[:]), n1, netip.MustParseAddrPort("10.77.0.9:67"), netip.MustParseAddrPort("255.255.255.255:68"), d.ToBytes())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := serverAnswer(b); ok && (!a.Server.Is4() || strings.ContainsAny(a.name()+a.Offers(), "\n\x1b")) {
			t.Errorf("%+v", a)
		}
	})
}
