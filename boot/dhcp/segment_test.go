package dhcp

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"go.uber.org/goleak"

	"hotspare"
	"hotspare/boot"
)

// The clients that nodes really have get an address, renew it and keep it over
// a restart of the server.
func TestRealClientsGetAnAddress(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	o.Director = directorFunc(starts)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	stop := w.serve(s)
	dir := t.TempDir()

	script := filepath.Join(dir, "udhcpc")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && echo \"udhcpc $ip $subnet $serverid $lease\"\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := w.client("busybox", "udhcpc", "-i", "hscl0", "-f", "-q", "-n", "-t", "5", "-T", "1", "-s", script)
	leases := s.Leases()
	if len(leases) != 1 || !leases[0].Bound || leases[0].MAC != n1 {
		t.Fatalf("leases %+v\n%s", leases, out)
	}
	addr := leases[0].Addr.String()
	if !strings.Contains(out, "udhcpc "+addr+" 255.255.255.0 10.77.0.1 3600") {
		t.Errorf("udhcpc says\n%s", out)
	}

	dhclient := func(want string) {
		t.Helper()
		// It goes to the background when it is bound, and is stopped by its own pid file.
		pid, leaseFile := filepath.Join(dir, "pid"), filepath.Join(dir, "dhclient.leases")
		out := w.client("dhclient", "-1", "-v", "-sf", "/bin/true", "-lf", leaseFile, "-pf", pid, "-cf", "/dev/null", "hscl0")
		w.client("dhclient", "-x", "-sf", "/bin/true", "-lf", leaseFile, "-pf", pid, "-cf", "/dev/null", "hscl0")
		if !strings.Contains(out, "bound to "+addr) || !strings.Contains(out, want) {
			t.Errorf("dhclient says\n%s", out)
		}
	}
	dhclient("DHCPOFFER of " + addr + " from 10.77.0.1")
	stop()
	s = w.start(o) // a restart, from the lease file
	if got, ok := s.AddrOf(n1); !ok || got.String() != addr {
		t.Fatalf("after a restart the machine has %s %v", got, ok)
	}
	dhclient("DHCPACK of " + addr + " from 10.77.0.1") // INIT-REBOOT: it asks for what it had
	if st := s.Stats(); st.Malformed+st.Panics+st.Failed+st.Dropped != 0 || st.Answered == 0 {
		t.Errorf("%+v", st)
	}
}

// A client without an address gets a frame of its own: unicast to its MAC, from
// our address, with checksums that are right. With the broadcast flag it gets a
// broadcast.
func TestAnswersOnTheWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	s := w.start(segmentOptions(t))
	st := w.station()
	check := func(name string, f []byte, d *dhcpv4.DHCPv4, mac net.HardwareAddr, to netip.Addr) {
		t.Helper()
		if !bytes.Equal(f[:6], mac) || netip.AddrFrom4([4]byte(f[30:34])) != to || netip.AddrFrom4([4]byte(f[26:30])) != ip("10.77.0.1") {
			t.Errorf("%s: frame to %s, datagram %s -> %s", name, net.HardwareAddr(f[:6]), net.IP(f[26:30]), net.IP(f[30:34]))
		}
		if fold(sum(0, f[14:34])) != 0 {
			t.Errorf("%s: bad IP checksum", name)
		}
		if !d.ServerIdentifier().Equal(net.IPv4(10, 77, 0, 1)) {
			t.Errorf("%s: server %s", name, d.ServerIdentifier())
		}
	}
	f, d := st.ask(dhcpv4.MessageTypeDiscover, biosPXE...)
	your := addrOf(d.YourIPAddr)
	check("unicast", f, d, net.HardwareAddr(n1[:]), your)
	udp := f[34:]
	n := int(udp[4])<<8 | int(udp[5])
	if c := fold(sum(sum(sum(0, f[26:34]), []byte{0, 17, udp[4], udp[5]}), udp[:n])); c != 0 {
		t.Errorf("bad UDP checksum, %#x", c)
	}
	f, d = st.ask(dhcpv4.MessageTypeDiscover, with(biosPXE, dhcpv4.WithBroadcast(true))...)
	check("broadcast", f, d, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, limitedBroadcast)
	f, d = st.ask(dhcpv4.MessageTypeRequest, with(biosPXE, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(192, 168, 1, 1))))...)
	check("NAK", f, d, net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, limitedBroadcast)

	// Hostile packets between good ones.
	junk := [][]byte{nil, {1}, bytes.Repeat([]byte{0xff}, 600), append(make([]byte, 240), 53)}
	for _, b := range junk {
		g, err := frame(net.HardwareAddr(n1[:]), boot.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.conn.WriteTo(g, &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}); err != nil {
			t.Fatal(err)
		}
	}
	st.ask(dhcpv4.MessageTypeDiscover, biosPXE...)
	if got := s.Stats(); got.Malformed != uint64(len(junk)) || got.Panics != 0 {
		t.Errorf("%+v", got)
	}
}

// A relay gets its answers at its own address, port 67, from the address that
// option 54 names.
func TestRelay(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	w.start(segmentOptions(t))
	w.client("ip", "address", "add", "10.77.0.2/24", "dev", "hscl0")
	var c *net.UDPConn
	w.inside(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 77, 0, 2), Port: 67})
		return err
	})
	defer func() { _ = c.Close() }()
	m := boot.MAC{0x52, 0x54, 0, 0x77, 0, 9}
	for _, x := range []struct {
		kind, want dhcpv4.MessageType
		mods       []opt
	}{
		{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeOffer, nil},
		{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeOffer, []opt{dhcpv4.WithBroadcast(true)}},
		{dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeNak, []opt{dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(1, 2, 3, 4)))}},
	} {
		d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(m[:]), dhcpv4.WithMessageType(x.kind), dhcpv4.WithGatewayIP(net.IPv4(10, 77, 0, 2)), generic(82, "\x01\x05port7")}, x.mods...)...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo(d.ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 67}); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		out, err := dhcpv4.FromBytes(buf[:n])
		if err != nil || out.MessageType() != x.want || string(out.Options[82]) != "\x01\x05port7" || from.String() != "10.77.0.1:67" {
			t.Errorf("%s from %s (%v)", out.Summary(), from, err)
		}
	}
}

// An address that somebody uses without a lease is found out and not given.
func TestAddressInUseIsNotOffered(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	free, _, err := tableOf(o).offer(n1, netip.Addr{}, true, epoch)
	if err != nil {
		t.Fatal(err)
	}
	// A squatter with another MAC address on the same wire.
	w.client("ip", "link", "add", "link", "hscl0", "name", "squat", "type", "macvlan", "mode", "bridge")
	w.client("ip", "address", "add", free.Addr.String()+"/24", "dev", "squat")
	w.client("ip", "link", "set", "squat", "up")
	w.client("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore") // the client must not answer for it
	s := w.start(o)
	_, d := w.station().ask(dhcpv4.MessageTypeDiscover, biosPXE...)
	if addrOf(d.YourIPAddr) == free.Addr {
		t.Errorf("%s is offered while somebody answers on it", free.Addr)
	}
	if !o.Range.Contains(addrOf(d.YourIPAddr)) || len(s.Leases()) != 1 {
		t.Errorf("offered %s, leases %+v", d.YourIPAddr, s.Leases())
	}
	if q := s.Quarantined(); len(q) != 1 || q[0].Addr != free.Addr || s.Stats().Conflicts != 1 {
		t.Errorf("in quarantine: %+v, counters %+v", q, s.Stats())
	}
}

// A router solicitation is answered by an advertisement that offers nothing.
func TestRouterAdvertisement(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	o.RouterAdvertisement = true
	w.start(o)
	st := w.station()
	ll := [16]byte{0: 0xfe, 1: 0x80, 8: 0x50, 9: 0x54, 11: 0xff, 12: 0xfe, 13: 0x77, 15: 1}
	if _, err := st.conn.WriteTo(solicitation(n1, ll), &packet.Addr{HardwareAddr: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 2}}); err != nil {
		t.Fatal(err)
	}
	if err := st.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for {
		n, _, err := st.conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no advertisement: %v", err)
		}
		f := buf[:n]
		if n < 70 || f[12] != 0x86 || f[13] != 0xdd || f[54] != icmpAdvertisement {
			continue
		}
		if !bytes.Equal(f[:6], n1[:]) || f[21] != 255 || f[22] != 0xfe || !bytes.Equal(f[38:54], ll[:]) || checksum6(f[22:54], f[54:70]) != 0 {
			t.Errorf("frame % x", f)
		}
		if !bytes.Equal(f[58:70], make([]byte, 12)) {
			t.Errorf("it offers something: % x", f[58:70])
		}
		return
	}
}

// solicitation builds a router solicitation as iPXE sends it.
func solicitation(src boot.MAC, from [16]byte) []byte {
	icmp := []byte{icmpSolicitation, 0, 0, 0, 0, 0, 0, 0, 1, 1, src[0], src[1], src[2], src[3], src[4], src[5]}
	b := append([]byte{0x33, 0x33, 0, 0, 0, 2}, src[:]...)
	b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(icmp)), 58, 255)
	b = append(b, from[:]...)
	b = append(b, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2)
	c := checksum6(b[22:54], icmp)
	icmp[2], icmp[3] = byte(c>>8), byte(c)
	return append(b, icmp...)
}

// An interface that is taken down and up again is served as before.
func TestTheInterfaceGoesDownAndUp(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	o.RouterAdvertisement, o.Watch = true, time.Minute
	w.start(o)
	w.station().ask(dhcpv4.MessageTypeDiscover, biosPXE...)
	run(t, "ip", "link", "set", "hsbr0", "down")
	run(t, "ip", "link", "set", "hsbr0", "up")
	st := w.station()
	eventually(t, "the bridge forwards", func() bool {
		return strings.Contains(run(t, "ip", "-o", "link", "show", "hsbr0"), "state UP")
	})
	_, d := st.ask(dhcpv4.MessageTypeDiscover, biosPXE...)
	if !o.Range.Contains(addrOf(d.YourIPAddr)) {
		t.Errorf("offered %s", d.YourIPAddr)
	}
	other := with(biosPXE, dhcpv4.WithHwAddr(n2[:])) // new: it needs the ARP socket
	if _, d := st.ask(dhcpv4.MessageTypeDiscover, other...); !o.Range.Contains(addrOf(d.YourIPAddr)) {
		t.Errorf("offered %s", d.YourIPAddr)
	}
}

func TestPortTakenNamesTheHolder(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newWire(t)
	holder := exec.Command("socat", "-u", "UDP4-RECV:67", "OPEN:/dev/null")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	deadline := time.Now().Add(10 * time.Second)
	for who := ""; who == ""; who, _ = PortHolder("udp", 67) {
		if time.Now().After(deadline) {
			t.Fatal("the other server does not take the port")
		}
		runtime.Gosched()
	}
	o := segmentOptions(t)
	o.Director = directorFunc(starts)
	_, err := New(o)
	if want := fmt.Sprintf("socat (pid %d)", holder.Process.Pid); hotspare.CodeOf(err) != hotspare.CodePortTaken || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestBadConfiguration(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	newWire(t)
	for name, c := range map[string]struct {
		change func(*Options)
		code   hotspare.Code
	}{
		"interface": {func(o *Options) { o.Interface = "eth77" }, hotspare.CodeNoInterface},
		"address":   {func(o *Options) { o.Server = ip("10.77.0.66") }, hotspare.CodeNoInterface},
		"mode":      {func(o *Options) { o.Mode = "primary" }, hotspare.CodeInvalid},
		"range":     {func(o *Options) { o.Range.To = ip("10.78.0.1") }, hotspare.CodeInvalid},
		"turned":    {func(o *Options) { o.Range = Range{o.Range.To, o.Range.From} }, hotspare.CodeInvalid},
		"director":  {func(o *Options) { o.Director = nil }, hotspare.CodeInvalid},
		"lease":     {func(o *Options) { o.LeaseTime = time.Second }, hotspare.CodeInvalid},
		"gateway":   {func(o *Options) { o.Gateway = ip("10.1.1.1") }, hotspare.CodeInvalid},
	} {
		o := segmentOptions(t)
		o.Director = directorFunc(starts)
		c.change(&o)
		s, err := New(o)
		if hotspare.CodeOf(err) != c.code || s != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Everything was given back: a good configuration starts.
	o := segmentOptions(t)
	o.Director = directorFunc(starts)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestServeEndsCleanly(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	o.Director, o.RouterAdvertisement, o.Watch, o.IPv6 = directorFunc(starts), true, time.Minute, lab6(t)
	for _, mode := range []Mode{Authoritative, Proxy, Off, "off, and nothing at all"} {
		if o.Mode = mode; mode != Authoritative && mode != Proxy && mode != Off {
			o.Mode, o.Interface = Off, ""
		}
		s, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		if mode == Authoritative {
			w.station().ask(dhcpv4.MessageTypeDiscover, biosPXE...)
			w.station().ask(dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 77, 0, 105))))
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
	if err := goleak.Find(goleak.IgnoreCurrent()); err != nil {
		t.Error(err)
	}
}

func TestPortHolderOfNobody(t *testing.T) {
	who, err := PortHolder("tcp", 1)
	if err != nil || who != "" {
		t.Errorf("%q %v", who, err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	who, err = PortHolder("tcp", uint16(ln.Addr().(*net.TCPAddr).Port))
	if err != nil || !strings.Contains(who, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("%q %v", who, err)
	}
	if err := portInodes(strings.NewReader("sl\nx y z\n"), 1, false, nil); err != nil {
		t.Error(err)
	}
}

// RFC 4861 section 6.1.1: what is no valid solicitation is not answered.
func TestSolicitationsThatAreNone(t *testing.T) {
	good := solicitation(n1, [16]byte{0: 0xfe, 1: 0x80, 15: 1})
	if mac, _, ok := parseSolicitation(good); !ok || mac != n1 {
		t.Fatalf("a good one is read as %s %v", mac, ok)
	}
	for name, change := range map[string]func([]byte) []byte{
		"it passed a router":  func(b []byte) []byte { b[21] = 254; return b },
		"another ICMPv6 type": func(b []byte) []byte { b[54] = 135; return b },
		"another code":        func(b []byte) []byte { b[55] = 1; return b },
		"a wrong checksum":    func(b []byte) []byte { b[56]++; return b },
		"it is cut short":     func(b []byte) []byte { return b[:60] },
		"its length is a lie": func(b []byte) []byte { b[19] = 200; return b },
		"it is from a group":  func(b []byte) []byte { b[6] |= 1; return b },
		"IPv4":                func(b []byte) []byte { b[12] = 8; b[13] = 0; return b },
		"another next header": func(b []byte) []byte { b[20] = 17; return b },
		"another IP version":  func(b []byte) []byte { b[14] = 0x45; return b },
	} {
		if _, _, ok := parseSolicitation(change(bytes.Clone(good))); ok {
			t.Errorf("taken although %s", name)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(solicitation(n1, [16]byte{0: 0xfe, 1: 0x80, 15: 1}))
	f.Add(arpProbe(n1, ip("10.77.0.1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if mac, to, ok := parseSolicitation(b); ok {
			if a := advertisement(n2, mac, to, nil); checksum6(a[22:54], a[54:]) != 0 || !bytes.Equal(a[:6], mac[:]) {
				t.Errorf("% x", a)
			}
		}
		arpSender(b)
	})
}
