package dhcp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"hotspare"
	"hotspare/boot"
)

func invented(i int) boot.MAC {
	m := boot.MAC{2}
	binary.BigEndian.PutUint32(m[2:], uint32(i))
	return m
}

func nobodyKnown(boot.MAC) bool { return false }

// A flood of invented MAC addresses leaves nodes alone, takes bounded memory, and
// what is over the limit is dropped.
func TestAFloodOfInventedMachines(t *testing.T) {
	l := newLimiter(Limits{}.withDefaults())
	l.learn(n1, true)
	isNode := func(m boot.MAC) bool { return m == n2 }
	now, passed, nodes := epoch, 0, 0
	for i := range 100_000 { // 20,000 a second for 5 s
		now = now.Add(50 * time.Microsecond)
		if l.admit(invented(i), nobodyKnown, now) == admitted {
			passed++
		}
		if i%20_000 == 0 {
			for _, m := range []boot.MAC{n1, n2} {
				if l.admit(m, isNode, now) == admitted {
					nodes++
				}
			}
		}
		if len(l.machine) > tracked {
			t.Fatalf("%d machines are remembered", len(l.machine))
		}
	}
	if nodes != 10 {
		t.Errorf("of 10 packets of nodes %d passed", nodes)
	}
	if passed < 4000+5*500-10 || passed > 4000+5*500+10 {
		t.Errorf("%d packets of unknown machines passed, want a burst of 4000 and 500 a second", passed)
	}
}

func TestOneMachineFloods(t *testing.T) {
	l := newLimiter(Limits{}.withDefaults())
	passed := 0
	for i := range 10_000 {
		if l.admit(n1, func(boot.MAC) bool { return true }, epoch.Add(time.Duration(i)*time.Millisecond)) == admitted {
			passed++
		}
	}
	if passed < 128 || passed > 132 {
		t.Errorf("%d of its packets passed in 10 s, want a burst of 30 and 10 a second", passed)
	}
	if l.admit(n2, nobodyKnown, epoch.Add(10*time.Second)) != admitted {
		t.Error("another machine suffers")
	}
}

// The operator is told once when machines are turned away, and again only after the
// cause was gone for a while.
func TestTheOperatorIsToldOnce(t *testing.T) {
	s := segment(t, Authoritative, nobody)
	now := epoch
	s.o.Now = func() time.Time { return now }
	var told []*hotspare.Error
	s.o.Alarm = func(e *hotspare.Error) { told = append(told, e) }
	s.own.table.unknown = 1
	for i := range 20 {
		ask(t, s, dhcpv4.MessageTypeDiscover, with(system, dhcpv4.WithHwAddr(macOf(i)))...)
	}
	if len(told) != 1 || told[0].Code != hotspare.CodeDHCPRefuses || told[0].Fix == "" || s.Stats().NoAddress != 19 {
		t.Fatalf("told %+v, counted %+v", told, s.Stats())
	}
	now = now.Add(alarmQuiet + time.Minute)
	for i := range 2 {
		ask(t, s, dhcpv4.MessageTypeDiscover, with(system, dhcpv4.WithHwAddr(macOf(100+i)))...)
	}
	if len(told) != 2 {
		t.Errorf("told %d times", len(told))
	}
	// A pool that is full is another matter.
	s.own.table.unknown = 1000
	for i := range 20 {
		ask(t, s, dhcpv4.MessageTypeDiscover, with(system, dhcpv4.WithHwAddr(macOf(200+i)))...)
	}
	if len(told) != 3 || told[2].Code != hotspare.CodePoolEmpty {
		t.Errorf("told %+v", told)
	}
}

func macOf(i int) []byte { m := invented(i); return m[:] }

// Offers to unknown machines are held for a short time only.
func TestOffersOfUnknownMachinesEndSoon(t *testing.T) {
	o := options()
	o.Unknown = 10
	tab := tableOf(o)
	for i := range 10 {
		if _, _, err := tab.offer(invented(i), netip.Addr{}, false, epoch); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := tab.offer(n1, netip.Addr{}, true, epoch.Add(time.Second)); !errors.Is(err, errPoolEmpty) {
		t.Errorf("a full pool: %v", err)
	}
	if _, _, err := tab.offer(n1, netip.Addr{}, true, epoch.Add(offerHoldUnknown)); err != nil {
		t.Errorf("after their offers ended: %v", err)
	}
}

func TestReservationsAreChecked(t *testing.T) {
	nets := []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("10.88.0.0/24")}
	good := Reservation{n1, ip("10.77.0.20"), "n1"}
	for name, list := range map[string][]Reservation{
		"an address twice":                {good, {n2, good.Addr, "n2"}},
		"two addresses in one network":    {good, {n1, ip("10.77.0.21"), "n1"}},
		"a network that is not served":    {{n1, ip("192.0.2.1"), "n1"}},
		"the network's own address":       {{n1, ip("10.77.0.0"), "n1"}},
		"the broadcast address":           {{n1, ip("10.88.0.255"), "n1"}},
		"no MAC address":                  {{boot.MAC{}, ip("10.77.0.20"), "n1"}},
		"IPv6":                            {{n1, ip("fd00::1"), "n1"}},
		"no address":                      {{n1, netip.Addr{}, "n1"}},
		"an error after one that is good": {good, {n2, netip.Addr{}, "n2"}},
	} {
		r := &ReservationList{}
		if err := r.Replace(list, nets); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := r.Reserved(n1, nets[0]); ok {
			t.Errorf("%s: the list was taken in part", name)
		}
	}
	r := &ReservationList{}
	if err := r.Replace([]Reservation{good, {n1, ip("10.88.0.20"), "n1"}}, nets); err != nil {
		t.Fatal(err)
	}
	if a, ok := r.Reserved(n1, nets[1]); !ok || a != ip("10.88.0.20") {
		t.Errorf("%s %v", a, ok)
	}
	if m, ok := r.Owner(good.Addr); !ok || m != n1 {
		t.Errorf("%s %v", m, ok)
	}
}

// A node whose address somebody else holds boots all the same, and has its own
// address again at its next boot. Nobody gets an address that is reserved.
func TestAReservedAddressThatIsHeld(t *testing.T) {
	o := options()
	list := &ReservationList{}
	o.Reservations = list
	tab := tableOf(o)
	squatter, _, _ := tab.offer(n2, netip.Addr{}, false, epoch)
	tab.bind(n2, squatter.Addr, false, time.Hour, epoch)
	if err := list.Replace([]Reservation{{n1, squatter.Addr, "n1"}}, []netip.Prefix{o.Prefix}); err != nil {
		t.Fatal(err)
	}
	l, _, err := tab.offer(n1, netip.Addr{}, true, epoch)
	if err != nil || l.Addr == squatter.Addr {
		t.Fatalf("%+v %v", l, err)
	}
	if _, v := tab.bind(n1, l.Addr, true, time.Hour, epoch); v != grant {
		t.Fatal("it is not confirmed")
	}
	later := epoch.Add(59 * time.Minute)
	if _, v := tab.bind(n1, l.Addr, true, time.Hour, later); v != grant {
		t.Error("it may not renew what it runs on")
	}
	later = epoch.Add(61 * time.Minute)
	if l, _, err := tab.offer(n2, squatter.Addr, false, later); err != nil || l.Addr == squatter.Addr {
		t.Errorf("the other one gets %+v again (%v)", l, err)
	}
	if l, _, err := tab.offer(n1, netip.Addr{}, true, later); err != nil || l.Addr != squatter.Addr {
		t.Errorf("its next boot gets %+v (%v)", l, err)
	}
}

// Whoever waits for the disk takes along what others have entered.
func TestChangesShareASync(t *testing.T) {
	lf, _, _, err := openLeases(filepath.Join(t.TempDir(), "leases"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lf.close() }()
	lf.writing.Lock() // the disk is busy
	var wg sync.WaitGroup
	batches := map[*leaseBatch]int{}
	for i := range 50 {
		b := lf.enter(Lease{MAC: invented(i + 1), Addr: address(number(ip("10.77.0.100")) + uint32(i)), Expires: epoch, Bound: true})
		batches[b]++
		wg.Go(func() {
			if err := lf.commit(b, nil); err != nil {
				t.Error(err)
			}
		})
	}
	lf.writing.Unlock()
	wg.Wait()
	if len(batches) != 1 || lf.grown != 50 {
		t.Errorf("%d batches, %d records", len(batches), lf.grown)
	}
	if b := lf.enter(Lease{MAC: n1, Addr: ip("10.77.0.100")}); batches[b] != 0 {
		t.Error("a change joined a batch that is written already")
	}
}

// A lease is in the file before the machine is told of it, and many at once lose
// none, also over a rewrite of the file.
func TestNoLeaseIsLostInACrowd(t *testing.T) {
	o := options()
	o.Prefix, o.Range = netip.MustParsePrefix("10.77.0.0/16"), Range{ip("10.77.1.0"), ip("10.77.4.255")}
	o.Director, o.Leases = directorFunc(starts), filepath.Join(t.TempDir(), "leases")
	o = o.withDefaults()
	s := newServer(o)
	if err := s.openLeases(); err != nil {
		t.Fatal(err)
	}
	s.file.grown = 1000 // a rewrite is due in the middle
	var wg sync.WaitGroup
	for i := range 300 {
		wg.Go(func() {
			m := message{mac: invented(i + 1), net: s.own}
			l, _, err := s.own.tableOffer(s, m.mac)
			if err != nil {
				t.Error(err)
				return
			}
			m.DHCPv4 = &dhcpv4.DHCPv4{Options: dhcpv4.Options{}}
			a := s.bind(m, l.Addr, decision{known: true})
			if s.settle(m, a); a.packet == nil || a.packet.MessageType() != dhcpv4.MessageTypeAck || s.Stats().Failed != 0 {
				t.Errorf("%+v", a)
			}
		})
	}
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := newServer(o)
	if err := again.openLeases(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if n := len(again.Leases()); n != 300 {
		t.Errorf("%d of 300 leases are there", n)
	}
}

func (n *subnet) tableOffer(s *Server, m boot.MAC) (Lease, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n.table.offer(m, netip.Addr{}, true, s.o.Now())
}

// The stock: addresses are probed ahead, those that are probed are given first, and
// what was probed long ago is probed again.
func TestTheStockOfProbedAddresses(t *testing.T) {
	tab := tableOf(options())
	batch := tab.toProbe(epoch)
	if len(batch) != 10 {
		t.Fatalf("%d addresses are to be probed, want all 10", len(batch))
	}
	if _, probe, _ := tab.offer(n1, netip.Addr{}, true, epoch); !probe {
		t.Error("before that an offer is made without a probe")
	}
	quiet := ip("10.77.0.107")
	if tab.byMAC[n1].Addr == quiet {
		quiet = ip("10.77.0.108")
	}
	tab.setQuiet(quiet, epoch)
	l, probe, err := tab.offer(n2, netip.Addr{}, true, epoch)
	if err != nil || probe || l.Addr != quiet {
		t.Errorf("%+v, probe %v, %v", l, probe, err)
	}
	if len(tab.quiet) != 0 {
		t.Error("a given address stays in the stock")
	}
	tab.setQuiet(quiet, epoch)
	if len(tab.quiet) != 0 {
		t.Error("a held address comes into the stock")
	}
	if n := len(tab.toProbe(epoch)); n != 8 {
		t.Errorf("%d addresses are to be probed, want the 8 that nobody has", n)
	}
	for _, a := range tab.toProbe(epoch) {
		tab.setQuiet(a, epoch)
	}
	if n := len(tab.toProbe(epoch.Add(time.Minute))); n != 0 {
		t.Errorf("%d addresses are probed again after a minute", n)
	}
	if n := len(tab.toProbe(epoch.Add(stockFresh * 7 / 8))); n != 8 {
		t.Errorf("%d addresses are probed again in good time, want 8", n)
	}
}
