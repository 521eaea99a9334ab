package dhcp

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare"
	"hotspare/boot"
)

// What the server records is what the diagnosis of a boot judges by.
func TestTracesCarryWhatADiagnosisNeeds(t *testing.T) {
	seconds := func(n uint16) opt { return func(d *dhcpv4.DHCPv4) { d.NumSeconds = n } }
	play := func(t *testing.T, s *Server, kind dhcpv4.MessageType, mods ...opt) boot.Entry {
		t.Helper()
		d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(net.HardwareAddr(n1[:])), dhcpv4.WithMessageType(kind)}, mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		m, err := parse(d.ToBytes(), boot.DHCP)
		if err != nil {
			t.Fatal(err)
		}
		a := s.answer(t.Context(), m)
		s.settle(m, a)
		s.record(m, boot.DHCP, a)
		trace, _ := s.o.Recorder.Trace(n1)
		return trace.Entries[len(trace.Entries)-1]
	}
	s := segment(t, Authoritative, nobody)
	s.o.Recorder = boot.NewRecorder(0, 0)
	e := play(t, s, dhcpv4.MessageTypeDiscover, with(uefiPXE, seconds(28))...)
	if e.Step != boot.StepDiscover || e.Detail.Stage != boot.StageFirmware || e.Detail.Arch != boot.ArchUEFI64 || e.Detail.Seconds != 28 || !e.Detail.Address.IsValid() || e.Detail.Silent {
		t.Errorf("a question: %+v", e)
	}
	e = play(t, s, dhcpv4.MessageTypeRequest, with(uefiPXE, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 0, 0, 1))), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 77, 0, 140))))...)
	if e.Step != boot.StepRequest || e.Detail.Server != ip("10.0.0.1") || !e.Detail.Silent || e.Reason.Code != hotspare.CodeForeignDHCP {
		t.Errorf("another server's offer: %+v", e)
	}
	trace, _ := s.o.Recorder.Trace(n1)
	l := boot.Ladders(trace, boot.Circumstances{Now: epoch.Add(time.Minute)})[0]
	if len(l.Findings) != 2 || l.Findings[0].Rule != "foreign-server" || !strings.Contains(l.Findings[0].Text, "took another server's offer, 10.0.0.1") || l.Findings[1].Rule != "link-late" {
		t.Errorf("%+v", l.Findings)
	}
	if e = play(t, s, dhcpv4.MessageTypeDiscover, system...); e.Detail.Stage != boot.StageSystem || e.Detail.Arch != 0 {
		t.Errorf("an operating system: %+v", e)
	}
}
