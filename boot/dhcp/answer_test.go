package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare/boot"
)

const goodToken = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"

type directorFunc func(boot.Request) (boot.Assignment, error)

func (f directorFunc) Assign(_ context.Context, r boot.Request) (boot.Assignment, error) { return f(r) }

// segment is a server without sockets.
func segment(t *testing.T, mode Mode, d directorFunc) *Server {
	t.Helper()
	o := options()
	o.Mode = mode
	o.Site = boot.Site{Server: o.Server, Loaders: boot.DefaultLoaders()}
	o.Director = d
	o.DNS = []netip.Addr{ip("10.77.0.1")}
	o.Now = func() time.Time { return epoch }
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	return newServer(o)
}

func starts(boot.Request) (boot.Assignment, error) {
	return boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: goodToken, Kernel: "k", Initrd: "i", Epoch: 2}, nil
}

func nobody(boot.Request) (boot.Assignment, error) { return boot.Assignment{}, nil }

type opt = dhcpv4.Modifier

func generic(code uint8, v string) opt {
	return dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(code), []byte(v))
}

var (
	biosPXE  = []opt{generic(60, "PXEClient:Arch:00000:UNDI:002001"), generic(93, "\x00\x00"), generic(97, "\x00\x67\x45\x23\x01\xab\x89\xef\xcd\x01\x23\x45\x67\x89\xab\xcd\xef")}
	uefiPXE  = []opt{generic(60, "PXEClient:Arch:00007:UNDI:003016"), generic(93, "\x00\x07"), generic(97, "\x00\x67\x45\x23\x01\xab\x89\xef\xcd\x01\x23\x45\x67\x89\xab\xcd\xef")}
	uefiHTTP = []opt{generic(60, "HTTPClient:Arch:00016:UNDI:003016"), generic(93, "\x00\x10")}
	iPXE     = []opt{generic(60, "PXEClient:Arch:00000:UNDI:002001"), generic(93, "\x00\x00"), generic(77, "iPXE"), generic(175, "\xb1\x05\x01\x1a\xf4\x10\x41\xeb\x03\x01\x00\x00\x18\x01\x01\x13\x01\x01")}
	system   = []opt{generic(60, "udhcp 1.35.0")}
)

// ask sends one packet through the wire format and gives the answer through it.
func ask(t *testing.T, s *Server, kind dhcpv4.MessageType, mods ...opt) (*dhcpv4.DHCPv4, answer) {
	t.Helper()
	return askOn(t, s, portDHCP, kind, mods...)
}

func askOn(t *testing.T, s *Server, port int, kind dhcpv4.MessageType, mods ...opt) (*dhcpv4.DHCPv4, answer) {
	t.Helper()
	d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(net.HardwareAddr(n1[:])), dhcpv4.WithMessageType(kind)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	protocol := boot.DHCP
	if s.o.Mode == Proxy {
		protocol = boot.ProxyDHCP
	}
	m, err := parse(d.ToBytes(), protocol)
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	if s.o.Mode == Proxy {
		a = s.answerProxy(context.Background(), m, m.have, port)
	} else {
		a = s.answer(context.Background(), m)
	}
	if a.later != nil {
		t.Fatal("a server without a link probes")
	}
	s.settle(m, a)
	if a.packet == nil {
		return nil, a
	}
	b := encode(a.packet)
	if !bytes.Equal(b, a.packet.ToBytes()) {
		t.Errorf("encoded as\n% x, the library does\n% x", b, a.packet.ToBytes())
	}
	out, err := dhcpv4.FromBytes(b)
	if err != nil {
		t.Fatalf("the answer cannot be read: %v", err)
	}
	return out, a
}

func with(base []opt, more ...opt) []opt { return append(append([]opt{}, base...), more...) }

func wantIP(a netip.Addr) net.IP { return net.IP(a.AsSlice()) }

// Both header fields and options carry the boot file, whoever asks.
func TestWhatEachClientIsTold(t *testing.T) {
	for _, c := range []struct {
		name, file, class string
		opts              []opt
		d                 directorFunc
	}{
		{"BIOS", "undionly.kpxe", "PXEClient", biosPXE, nobody},
		{"UEFI", "snponly.efi", "PXEClient", uefiPXE, starts},
		{"UEFI HTTP", "http://10.77.0.1/loader/snponly.efi", "HTTPClient", uefiHTTP, nobody},
		{"iPXE of a node that starts", "http://10.77.0.1/ipxe/" + goodToken, "", iPXE, starts},
		{"iPXE of an unknown machine", "http://10.77.0.1/ipxe/unassigned/52-54-00-77-00-01/0", "", iPXE, nobody},
		{"iPXE while the director fails", "http://10.77.0.1/ipxe/unassigned/52-54-00-77-00-01/0", "", iPXE, func(boot.Request) (boot.Assignment, error) {
			return boot.Assignment{}, errors.New("closed")
		}},
		{"operating system", "", "", system, starts},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, a := ask(t, segment(t, Authoritative, c.d), dhcpv4.MessageTypeDiscover, c.opts...)
			if out == nil || out.MessageType() != dhcpv4.MessageTypeOffer {
				t.Fatalf("%+v", a)
			}
			if out.BootFileName != c.file || out.BootFileNameOption() != c.file || out.ClassIdentifier() != c.class {
				t.Errorf("file %q, option 67 %q, class %q", out.BootFileName, out.BootFileNameOption(), out.ClassIdentifier())
			}
			if c.file != "" && (!out.ServerIPAddr.Equal(wantIP(ip("10.77.0.1"))) || out.TFTPServerName() != "10.77.0.1") {
				t.Errorf("next server %s, option 66 %q", out.ServerIPAddr, out.TFTPServerName())
			}
			if c.class == "PXEClient" != bytes.Equal(out.Options[43], pxeNoDiscovery) {
				t.Errorf("option 43 is % x with class %q", out.Options[43], c.class)
			}
			if noProxy := strings.Contains(c.name, "iPXE"); noProxy != bytes.Equal(out.Options[175], ipxeNoProxy) {
				t.Errorf("option 175 is % x", out.Options[175])
			}
			if !options().Range.Contains(addrOf(out.YourIPAddr)) || !out.ServerIdentifier().Equal(wantIP(ip("10.77.0.1"))) {
				t.Errorf("address %s from %s", out.YourIPAddr, out.ServerIdentifier())
			}
			if strings.Contains(a.text, goodToken) {
				t.Errorf("the trace shows the token: %s", a.text)
			}
			if a.reason.Text == "" {
				t.Error("no reason")
			}
		})
	}
}

func TestNetworkSettings(t *testing.T) {
	s := segment(t, Authoritative, starts)
	out, _ := ask(t, s, dhcpv4.MessageTypeDiscover, with(biosPXE, generic(61, "\x01any client id"), generic(82, "\x01\x04port"))...)
	if out.SubnetMask().String() != "ffffff00" || !out.Router()[0].Equal(wantIP(ip("10.77.0.254"))) || !out.DNS()[0].Equal(wantIP(ip("10.77.0.1"))) || !out.BroadcastAddress().Equal(wantIP(ip("10.77.0.255"))) {
		t.Errorf("%s", out.Summary())
	}
	for code, want := range map[uint8]uint32{51: 3600, 58: 1800, 59: 3150} {
		if got := binary.BigEndian.Uint32(out.Options[code]); got != want {
			t.Errorf("option %d is %d s, want %d", code, got, want)
		}
	}
	if len(out.Options[97]) != 17 || string(out.Options[61]) != "\x01any client id" || string(out.Options[82]) != "\x01\x04port" {
		t.Errorf("options 97, 61, 82 are not sent back: %q", out.Options)
	}
}

// One address through all stages of a boot, whatever client id each one sends.
func TestOneAddressPerBoot(t *testing.T) {
	s := segment(t, Authoritative, starts)
	seen := map[string]bool{}
	for i, stage := range [][]opt{biosPXE, iPXE, with(system, generic(61, "\xff\x00\x00\x00\x01duid")), with(system, generic(61, "\x01\x52\x54\x00\x77\x00\x01"))} {
		offer, _ := ask(t, s, dhcpv4.MessageTypeDiscover, stage...)
		ack, _ := ask(t, s, dhcpv4.MessageTypeRequest, with(stage, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())))...)
		if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck {
			t.Fatalf("stage %d is not acknowledged", i)
		}
		seen[ack.YourIPAddr.String()] = true
	}
	if len(seen) != 1 || len(s.Leases()) != 1 {
		t.Errorf("addresses %v", seen)
	}
	for a := range seen {
		if m, ok := s.MACOf(ip(a)); !ok || m != n1 {
			t.Errorf("%s belongs to %s %v", a, m, ok)
		}
		if got, ok := s.AddrOf(n1); !ok || got != ip(a) {
			t.Errorf("n1 has %s", got)
		}
	}
}

func TestRequests(t *testing.T) {
	requested := func(a string) opt { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(a))) }
	from := func(a string) opt { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(a))) }
	for _, c := range []struct {
		name string
		opts []opt
		want dhcpv4.MessageType
	}{
		{"selecting, a free address", []opt{requested("10.77.0.105"), from("10.77.0.1")}, dhcpv4.MessageTypeAck},
		{"selecting another server", []opt{requested("10.77.0.105"), from("10.77.0.9")}, dhcpv4.MessageTypeNone},
		{"after a reboot, an old address", []opt{requested("10.77.0.105")}, dhcpv4.MessageTypeAck},
		{"after a move from another network", []opt{requested("192.168.7.7")}, dhcpv4.MessageTypeNak},
		{"renewing what another has", []opt{dhcpv4.WithClientIP(net.ParseIP("10.77.0.107"))}, dhcpv4.MessageTypeNak},
		{"renewing", []opt{dhcpv4.WithClientIP(net.ParseIP("10.77.0.105"))}, dhcpv4.MessageTypeAck},
		{"naming no address", nil, dhcpv4.MessageTypeNone},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := segment(t, Authoritative, starts)
			s.own.table.bind(n2, ip("10.77.0.107"), true, time.Hour, epoch)
			out, a := ask(t, s, dhcpv4.MessageTypeRequest, with(system, c.opts...)...)
			got := dhcpv4.MessageTypeNone
			if out != nil {
				got = out.MessageType()
			}
			if got != c.want || a.text == "" {
				t.Errorf("%s (%s)", got, a.reason)
			}
			if got == dhcpv4.MessageTypeNak && (!out.YourIPAddr.IsUnspecified() || a.to.addr.Addr() != limitedBroadcast) {
				t.Errorf("a NAK with address %s to %s", out.YourIPAddr, a.to.addr)
			}
			if foreign := s.ForeignServers(); (len(foreign) == 1) != (c.name == "selecting another server") {
				t.Errorf("foreign servers %+v", foreign)
			}
		})
	}
}

func TestOtherMessages(t *testing.T) {
	s := segment(t, Authoritative, starts)
	s.own.table.bind(n1, ip("10.77.0.105"), true, time.Hour, epoch)
	out, a := ask(t, s, dhcpv4.MessageTypeInform, with(system, dhcpv4.WithClientIP(net.ParseIP("10.77.0.33")))...)
	if out == nil || out.MessageType() != dhcpv4.MessageTypeAck || !out.YourIPAddr.IsUnspecified() || out.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || a.to.addr != netip.MustParseAddrPort("10.77.0.33:68") {
		t.Errorf("INFORM: %+v to %s", out, a.to.addr)
	}
	if out, _ := ask(t, s, dhcpv4.MessageTypeRelease, dhcpv4.WithClientIP(net.ParseIP("10.77.0.105"))); out != nil {
		t.Error("RELEASE is answered")
	}
	if _, ok := s.MACOf(ip("10.77.0.105")); ok {
		t.Error("a released address is still in use")
	}
	offer, _ := ask(t, s, dhcpv4.MessageTypeDiscover, system...)
	if out, _ := ask(t, s, dhcpv4.MessageTypeDecline, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr))); out != nil {
		t.Error("DECLINE is answered")
	}
	again, _ := ask(t, s, dhcpv4.MessageTypeDiscover, system...)
	if again.YourIPAddr.Equal(offer.YourIPAddr) {
		t.Error("a declined address is offered again")
	}
}

// RFC 2131 section 4.1: where an answer goes.
func TestWhereAnswersGo(t *testing.T) {
	relay := []opt{dhcpv4.WithGatewayIP(net.ParseIP("10.77.0.2"))}
	for _, c := range []struct {
		name  string
		opts  []opt
		addr  string
		frame bool
	}{
		{"no address, can take unicast", nil, "10.77.0.", true},
		{"no address, asks for broadcast", []opt{dhcpv4.WithBroadcast(true)}, "255.255.255.255:68", false},
		{"through a relay", relay, "10.77.0.2:67", false},
		{"through a relay, asks for broadcast", append(relay, dhcpv4.WithBroadcast(true)), "10.77.0.2:67", false},
		{"has an address", []opt{dhcpv4.WithClientIP(net.ParseIP("10.77.0.105"))}, "10.77.0.105:68", false},
	} {
		out, a := ask(t, segment(t, Authoritative, starts), dhcpv4.MessageTypeDiscover, with(biosPXE, c.opts...)...)
		if !strings.HasPrefix(a.to.addr.String(), c.addr) || a.to.frame.IsZero() == c.frame {
			t.Errorf("%s: to %s, frame %s", c.name, a.to.addr, a.to.frame)
		}
		if want := strings.Contains(c.name, "broadcast"); out.IsBroadcast() != want {
			t.Errorf("%s: the broadcast flag is not copied", c.name)
		}
	}
	out, a := ask(t, segment(t, Authoritative, starts), dhcpv4.MessageTypeDiscover, dhcpv4.WithGatewayIP(net.ParseIP("10.99.0.2")))
	if out != nil || a.reason.Rule != boot.RuleNoAddress {
		t.Errorf("a relay of another network is answered: %s", a.reason)
	}
	nak, a := ask(t, segment(t, Authoritative, starts), dhcpv4.MessageTypeRequest, with(relay, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP("192.168.1.1"))))...)
	if nak.MessageType() != dhcpv4.MessageTypeNak || !nak.IsBroadcast() || a.to.addr.String() != "10.77.0.2:67" {
		t.Errorf("a NAK through a relay: %s to %s", nak.Summary(), a.to.addr)
	}
}

// SAFETY S17: boot tokens travel in answers, so no answer leaves the segment,
// whatever address the asker claims to have.
func TestNoAnswerLeavesTheSegment(t *testing.T) {
	for _, away := range []opt{dhcpv4.WithClientIP(net.ParseIP("192.0.2.7")), dhcpv4.WithGatewayIP(net.ParseIP("192.0.2.7"))} {
		noAnswerLeaves(t, away)
	}
}

func noAnswerLeaves(t *testing.T, away opt) {
	t.Helper()
	for _, mode := range []Mode{Authoritative, Proxy} {
		for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform} {
			for _, port := range []int{portDHCP, portPXE} {
				mods := with(iPXE, away, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP("10.77.0.105"))))
				out, a := askOn(t, segment(t, mode, starts), port, kind, mods...)
				if out == nil {
					continue
				}
				if options().Prefix.Contains(a.to.addr.Addr()) || a.to.addr.Addr() == limitedBroadcast {
					if out.MessageType() == dhcpv4.MessageTypeNak {
						continue
					}
				}
				t.Errorf("%s, %s on %d: %s goes to %s", mode, kind, port, out.MessageType(), a.to.addr)
			}
		}
	}
}

// While nothing can be decided, a machine that was known stays known.
func TestDirectorFailsWhileThePoolIsTight(t *testing.T) {
	fails := false
	s := segment(t, Authoritative, func(r boot.Request) (boot.Assignment, error) {
		if fails {
			return boot.Assignment{}, errors.New("closed")
		}
		return starts(r)
	})
	s.own.table.unknown = 0
	first, _ := ask(t, s, dhcpv4.MessageTypeDiscover, iPXE...)
	s.own.table.bind(n1, addrOf(first.YourIPAddr), true, time.Hour, epoch.Add(-2*time.Hour)) // expired since
	fails = true
	if again, a := ask(t, s, dhcpv4.MessageTypeDiscover, iPXE...); again == nil || !again.YourIPAddr.Equal(first.YourIPAddr) || a.reason.Rule != boot.RuleUndecided {
		t.Errorf("%+v", a)
	}
}

func TestProxy(t *testing.T) {
	d, r := dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest
	for _, c := range []struct {
		name string
		port int
		kind dhcpv4.MessageType
		opts []opt
		want dhcpv4.MessageType
		file string
	}{
		{"BIOS discovers", portDHCP, d, biosPXE, dhcpv4.MessageTypeOffer, "undionly.kpxe"},
		{"UEFI asks on 4011", portPXE, r, with(uefiPXE, dhcpv4.WithClientIP(net.ParseIP("10.77.0.60"))), dhcpv4.MessageTypeAck, "snponly.efi"},
		{"iPXE discovers", portDHCP, d, iPXE, dhcpv4.MessageTypeOffer, "http://10.77.0.1/ipxe/" + goodToken},
		{"requests on 67 are the other server's", portDHCP, r, biosPXE, dhcpv4.MessageTypeNone, ""},
		{"operating systems are the other server's", portDHCP, d, system, dhcpv4.MessageTypeNone, ""},
		{"discovers on 4011", portPXE, d, biosPXE, dhcpv4.MessageTypeNone, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, a := askOn(t, segment(t, Proxy, starts), c.port, c.kind, c.opts...)
			if c.want == dhcpv4.MessageTypeNone {
				if out != nil {
					t.Errorf("answered by %s", out.Summary())
				}
				return
			}
			if out == nil || out.MessageType() != c.want || out.BootFileName != c.file || out.ClassIdentifier() != "PXEClient" {
				t.Fatalf("%+v", a)
			}
			if !out.YourIPAddr.IsUnspecified() || out.Options.Has(dhcpv4.OptionIPAddressLeaseTime) || out.Options.Has(dhcpv4.OptionSubnetMask) {
				t.Error("a proxy gives an address")
			}
		})
	}
}

func TestNoAddressHasAReason(t *testing.T) {
	s := segment(t, Authoritative, nobody)
	s.own.table.unknown = 0
	out, a := ask(t, s, dhcpv4.MessageTypeDiscover, biosPXE...)
	if out != nil || a.reason.Rule != boot.RuleNoAddress || !strings.Contains(a.reason.Text, "unknown machines") || a.reason.Fix == "" {
		t.Errorf("%+v", a)
	}
}

func TestWhatIsReadFromAPacket(t *testing.T) {
	for _, c := range []struct {
		opts []opt
		want boot.Request
	}{
		{biosPXE, boot.Request{Stage: boot.StageFirmware, Arch: 0, UUID: "01234567-89ab-cdef-0123-456789abcdef", VendorClass: "PXEClient:Arch:00000:UNDI:002001"}},
		{uefiHTTP, boot.Request{Stage: boot.StageFirmware, Arch: 16, VendorClass: "HTTPClient:Arch:00016:UNDI:003016"}},
		{[]opt{generic(60, "PXEClient:Arch:00011:UNDI:003016")}, boot.Request{Stage: boot.StageFirmware, Arch: 11, VendorClass: "PXEClient:Arch:00011:UNDI:003016"}},
		{iPXE, boot.Request{Stage: boot.StageIPXE, UserClass: "iPXE", VendorClass: "PXEClient:Arch:00000:UNDI:002001", Features: boot.Features{HTTP: true, BzImage: true, Version: "1.0.0"}}},
		{[]opt{generic(77, "\x04iPXE")}, boot.Request{Stage: boot.StageIPXE, UserClass: "iPXE"}},
		{[]opt{generic(60, "evil\x1b[2J\n"), generic(97, "\x00short"), generic(175, "\x13\x09\x01")}, boot.Request{Stage: boot.StageSystem, VendorClass: "evil?[2J?"}},
	} {
		d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover)}, c.opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		m, err := parse(d.ToBytes(), boot.DHCP)
		c.want.Protocol, c.want.MAC = boot.DHCP, n1
		if err != nil || m.boot != c.want {
			t.Errorf("got  %+v\nwant %+v (%v)", m.boot, c.want, err)
		}
	}
}

// Whatever comes in: no panic, no answer to what is no request, and an answer
// that can be read.
func FuzzPacket(f *testing.F) {
	for _, opts := range [][]opt{biosPXE, uefiPXE, uefiHTTP, iPXE, system, {generic(82, "\x01\x00"), dhcpv4.WithGatewayIP(net.IP{10, 77, 0, 2})}} {
		for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeDecline} {
			d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(kind)}, opts...)...)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(d.ToBytes(), kind == dhcpv4.MessageTypeInform)
		}
	}
	o := options().withDefaults()
	o.Director, o.Log = directorFunc(starts), slog.New(slog.DiscardHandler)
	o.Site.Loaders = boot.DefaultLoaders()
	f.Fuzz(func(t *testing.T, b []byte, proxy bool) {
		s := newServer(o)
		protocol := boot.DHCP
		if proxy {
			s.o.Mode, protocol = Proxy, boot.ProxyDHCP
		}
		m, err := parse(b, protocol)
		if err != nil {
			if strings.Contains(err.Error(), "panic") {
				t.Errorf("the library panics: %v", err)
			}
			return
		}
		a := s.answer(context.Background(), m)
		if proxy {
			a = s.answerProxy(context.Background(), m, m.have, portPXE)
		}
		if a.packet == nil {
			return
		}
		raw := encode(a.packet)
		if !bytes.Equal(raw, a.packet.ToBytes()) {
			t.Errorf("encoded as\n% x, the library does\n% x", raw, a.packet.ToBytes())
		}
		out, err := dhcpv4.FromBytes(raw)
		if err != nil || out.OpCode != dhcpv4.OpcodeBootReply || !bytes.Equal(out.ClientHWAddr, m.mac[:]) {
			t.Errorf("answer %+v (%v)", out, err)
		}
		if y := addrOf(out.YourIPAddr); y.IsValid() && !o.Range.Contains(y) {
			t.Errorf("gives %s", y)
		}
		describe(m)
	})
}

// Parts of packets: the sub-options of relays and of PXE, and overloaded fields.
func FuzzOptionParts(f *testing.F) {
	f.Add([]byte("\x01\x01a\x05\x04\x0a\x4d\x00\x01"), []byte("\x06\x01\x07\x47\x04\x80\x00\x00\x00\xff"))
	f.Fuzz(func(t *testing.T, agent, vendor []byte) {
		if a, ok := agentAddr(agent, relayLink); ok && !a.Is4() {
			t.Errorf("%s", a)
		}
		if item := bootItem(vendor); item != nil && (len(item) != 6 || item[0] != 71) {
			t.Errorf("% x", item)
		}
		userClass(vendor)
		uuidOf(vendor)
		archOf(vendor, string(agent))
		sender(agent)
	})
}
