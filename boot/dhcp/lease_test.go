package dhcp

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/boot"
)

var (
	n1    = boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}
	n2    = boot.MAC{0x52, 0x54, 0, 0x77, 0, 2}
	epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func options() Options {
	return Options{
		Interface: "hsbr0", Server: ip("10.77.0.1"), ProbeWait: -1, Watch: -1,
		Subnet: Subnet{
			Prefix: netip.MustParsePrefix("10.77.0.0/24"), Gateway: ip("10.77.0.254"),
			Range: Range{ip("10.77.0.100"), ip("10.77.0.109")}, LeaseTime: time.Hour,
		},
	}
}

func tableOf(o Options) *table {
	o = o.withDefaults()
	return newTable(o, o.Subnet)
}

func reserve(t *testing.T, o Options, list ...Reservation) *ReservationList {
	t.Helper()
	r := &ReservationList{}
	if err := r.Replace(list, []netip.Prefix{o.Prefix}); err != nil {
		t.Fatal(err)
	}
	return r
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestAMachineKeepsItsAddress(t *testing.T) {
	tab := tableOf(options())
	first, fresh, err := tab.offer(n1, netip.Addr{}, true, epoch)
	if err != nil || !fresh || first.Bound {
		t.Fatalf("%+v %v %v", first, fresh, err)
	}
	if l, v := tab.bind(n1, first.Addr, true, time.Hour, epoch); v != grant || !l.Bound {
		t.Fatalf("%+v %v", l, v)
	}
	// The next stage of the boot, a renewal, and a boot long after it expired.
	for _, at := range []time.Duration{time.Second, 30 * time.Minute, 100 * time.Hour} {
		l, fresh, err := tab.offer(n1, ip("10.77.0.105"), true, epoch.Add(at))
		if err != nil || l.Addr != first.Addr || fresh != (at > time.Hour) {
			t.Errorf("after %s: %+v, fresh %v, %v", at, l, fresh, err)
		}
	}
	// An empty table gives the same address again: it follows from the MAC.
	again, _, _ := tableOf(options()).offer(n1, netip.Addr{}, true, epoch)
	if again.Addr != first.Addr {
		t.Errorf("%s, then %s", first.Addr, again.Addr)
	}
}

func TestReservations(t *testing.T) {
	o := options()
	o.Reservations = reserve(t, o, Reservation{n1, ip("10.77.0.20"), "n1"})
	tab := tableOf(o)
	l, _, err := tab.offer(n1, ip("10.77.0.101"), true, epoch)
	if err != nil || l.Addr != ip("10.77.0.20") {
		t.Fatalf("%+v %v", l, err)
	}
	if _, v := tab.bind(n1, ip("10.77.0.101"), true, time.Hour, epoch); v != refuse {
		t.Error("another address than the reserved one is granted")
	}
	if _, v := tab.bind(n1, ip("10.77.0.20"), true, time.Hour, epoch); v != grant {
		t.Error("the reserved address is refused")
	}
	if _, v := tab.bind(n2, ip("10.77.0.20"), true, time.Hour, epoch); v != refuse {
		t.Error("a reserved address is granted to another machine")
	}
}

func TestRefusals(t *testing.T) {
	excluded := ip("10.77.0.103")
	o := options()
	o.Exclude = func(a netip.Addr) bool { return a == excluded }
	tab := tableOf(o)
	tab.bind(n2, ip("10.77.0.101"), true, time.Hour, epoch)
	for name, a := range map[string]netip.Addr{
		"of another network": ip("192.168.1.5"), "another machine's": ip("10.77.0.101"), "excluded": excluded,
		"outside the range": ip("10.77.0.99"), "the server's": ip("10.77.0.1"), "the gateway's": ip("10.77.0.254"), "broadcast": ip("10.77.0.255"),
	} {
		if l, v := tab.bind(n1, a, true, time.Hour, epoch); v != refuse {
			t.Errorf("an address %s is answered by %v %+v", name, v, l)
		}
	}
	// After the other's lease has expired the address is still not granted
	// unasked: it must be offered (and probed) first.
	if _, v := tab.bind(n1, ip("10.77.0.101"), true, time.Hour, epoch.Add(2*time.Hour)); v != refuse {
		t.Error("another machine's old address is granted without an offer")
	}
}

// An address that becomes an application's while a machine holds it is not torn
// from under that machine; its next boot gets another one.
func TestALiveLeaseIsRenewedWhenItBecomesExcluded(t *testing.T) {
	excluded := netip.Addr{}
	o := options()
	o.Exclude = func(a netip.Addr) bool { return a == excluded }
	tab := tableOf(o)
	l, _, _ := tab.offer(n1, netip.Addr{}, true, epoch)
	tab.bind(n1, l.Addr, true, time.Hour, epoch)
	excluded = l.Addr
	if _, v := tab.bind(n1, l.Addr, true, time.Hour, epoch.Add(30*time.Minute)); v != grant {
		t.Error("a live lease is not renewed")
	}
	next, _, err := tab.offer(n1, l.Addr, true, epoch.Add(31*time.Minute))
	if err != nil || next.Addr == excluded {
		t.Errorf("the next boot gets %s (%v)", next.Addr, err)
	}
	if _, v := tab.bind(n2, excluded, true, time.Hour, epoch.Add(2*time.Hour)); v != refuse {
		t.Error("another machine gets the excluded address")
	}
}

func TestUnknownMachinesCannotStarveTheKnown(t *testing.T) {
	o := options()
	o.Unknown = 4
	tab := tableOf(o)
	given := 0
	for i := range 50 {
		m := boot.MAC{2, 0, 0, 0, 1, byte(i)}
		l, _, err := tab.offer(m, netip.Addr{}, false, epoch)
		if err != nil {
			continue
		}
		given++
		tab.bind(m, l.Addr, false, time.Hour, epoch)
	}
	if given != 4 {
		t.Errorf("%d unknown machines have an address, want 4", given)
	}
	if _, v := tab.bind(boot.MAC{2, 9, 9, 9, 9, 9}, ip("10.77.0.109"), false, time.Hour, epoch); v == grant {
		t.Error("a request without an offer goes around the limit")
	}
	for i := range 6 {
		if _, _, err := tab.offer(boot.MAC{0x52, 0, 0, 0, 0, byte(i)}, netip.Addr{}, true, epoch); err != nil {
			t.Errorf("known machine %d: %v", i, err)
		}
	}
	if _, _, err := tab.offer(boot.MAC{0x52, 0, 0, 0, 0, 7}, netip.Addr{}, true, epoch); !errors.Is(err, errPoolEmpty) {
		t.Errorf("a full pool: %v", err)
	}
	if _, _, err := tab.offer(boot.MAC{2, 0, 0, 0, 2, 1}, netip.Addr{}, false, epoch.Add(2*time.Hour)); err != nil {
		t.Errorf("after their leases expired: %v", err)
	}
}

func TestConflicts(t *testing.T) {
	tab := tableOf(options())
	l, _, _ := tab.offer(n1, netip.Addr{}, true, epoch)
	if _, ok := tab.avoid(n1, l.Addr, epoch); !ok {
		t.Fatal("a conflict is not noted")
	}
	if _, ok := tab.avoid(n2, l.Addr, epoch); ok {
		t.Error("a machine declines what it does not have")
	}
	other, _, _ := tab.offer(n1, l.Addr, true, epoch)
	if other.Addr == l.Addr {
		t.Error("the address is offered again at once")
	}
	// A hostile client that declines everything takes a quarter of the pool.
	noted := 1
	for range 100 {
		l, _, err := tab.offer(n1, netip.Addr{}, true, epoch)
		if err != nil {
			t.Fatalf("the pool was declined away: %v", err)
		}
		if _, ok := tab.avoid(n1, l.Addr, epoch); ok {
			noted++
		}
	}
	if noted != 2 {
		t.Errorf("%d addresses are avoided, want 2 of 10", noted)
	}
	if again, _, _ := tab.offer(n1, l.Addr, true, epoch.Add(conflictHold)); !again.Addr.IsValid() {
		t.Error("no offer after the conflict")
	}
}

// The table against a plain model: whatever is asked, no address has two live
// holders, and nothing forbidden is given.
func TestTableAgainstAModel(t *testing.T) {
	grants := 0
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		o := options()
		o.Unknown = 3
		o.Exclude = func(a netip.Addr) bool { return a == ip("10.77.0.104") }
		reserved := boot.MAC{0x52}
		o.Reservations = reserve(t, o, Reservation{reserved, ip("10.77.0.30"), "n0"})
		tab, now := tableOf(o), epoch
		held := map[netip.Addr]boot.MAC{} // the model: who may use what, until when
		until := map[netip.Addr]time.Time{}
		for range 300 {
			m := boot.MAC{0x52, 0, 0, 0, 0, byte(rnd.IntN(20))}
			a := address(number(ip("10.77.0.98")) + uint32(rnd.IntN(14)))
			known := m[5] < 10
			switch rnd.IntN(6) {
			case 0, 1:
				if l, _, err := tab.offer(m, a, known, now); err == nil && rnd.IntN(3) > 0 {
					a = l.Addr
				}
				fallthrough
			case 2:
				l, v := tab.bind(m, a, known, time.Hour, now)
				if v != grant {
					continue
				}
				grants++
				if h, ok := held[l.Addr]; ok && h != m && now.Before(until[l.Addr]) {
					t.Fatalf("seed %d: %s is granted to %s while %s has it", seed, l.Addr, m, h)
				}
				if l.Addr != ip("10.77.0.30") && (!o.Range.Contains(l.Addr) || o.Exclude(l.Addr)) || l.Addr == ip("10.77.0.30") && m != reserved {
					t.Fatalf("seed %d: %s is granted to %s", seed, l.Addr, m)
				}
				for old, h := range held { // one address per machine
					if h == m {
						delete(held, old)
					}
				}
				held[l.Addr], until[l.Addr] = m, l.Expires
			case 3:
				if _, ok := tab.release(m, a, now); ok {
					delete(held, a)
				}
			case 4:
				if tab.byMAC[m] != nil && tab.byMAC[m].Addr == a {
					tab.avoid(m, a, now)
					delete(held, a)
				}
			case 5:
				now = now.Add(time.Duration(rnd.IntN(1800)) * time.Second)
			}
			if n := tab.unknownLive(now); n > o.Unknown {
				t.Fatalf("seed %d: %d unknown machines have addresses", seed, n)
			}
			if len(tab.byMAC) != len(tab.byAddr) {
				t.Fatalf("seed %d: the two maps differ", seed)
			}
		}
	}
	if grants < 5000 {
		t.Errorf("only %d grants: the run proves little", grants)
	}
}

// add makes one change durable.
func (lf *leaseFile) add(l Lease, all func() []Lease) error { return lf.commit(lf.enter(l), all) }

func TestLeasesSurviveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	lf, got, skipped, err := openLeases(path)
	if err != nil || len(got) != 0 || skipped != 0 {
		t.Fatal(got, skipped, err)
	}
	a := Lease{MAC: n1, Addr: ip("10.77.0.100"), Expires: epoch, Known: true, Bound: true}
	b := a
	b.Expires = epoch.Add(time.Hour)
	for _, l := range []Lease{a, {MAC: n2, Addr: ip("10.77.0.101"), Expires: epoch, Bound: true}, b} {
		if err := lf.add(l, nil); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name string, wantSkipped int) {
		t.Helper()
		lf, got, skipped, err := openLeases(path)
		if err != nil || skipped != wantSkipped || len(got) != 2 {
			t.Fatalf("%s: %v, skipped %d, %v", name, got, skipped, err)
		}
		for _, l := range got {
			if l.MAC == n1 && l != b {
				t.Errorf("%s: %+v, want %+v", name, l, b)
			}
		}
		if err := lf.close(); err != nil {
			t.Error(err)
		}
	}
	if err := lf.close(); err != nil {
		t.Fatal(err)
	}
	check("clean", 0)
	leftover := path + ".new-123"
	if err := os.WriteFile(leftover, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := must[*os.File](t)(os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0))
	if _, err := f.WriteString(`{"mac":"52:54:00:77:00:01","addr":"10.7`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	check("after a power cut in a write", 1)
	check("and then", 0)
	if _, err := os.Stat(leftover); !os.IsNotExist(err) {
		t.Errorf("what a killed rewrite left is still there: %v", err)
	}
}

// Cut the lease file after every byte: it opens, and what was acknowledged and
// lies before the cut is there.
func TestLeaseFileCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "leases")
	lf, _, _, err := openLeases(path)
	if err != nil {
		t.Fatal(err)
	}
	var ends []int64
	for i := range 5 {
		if err := lf.add(Lease{MAC: boot.MAC{2, 0, 0, 0, 0, byte(i + 1)}, Addr: address(number(ip("10.77.0.100")) + uint32(i)), Expires: epoch, Bound: true}, nil); err != nil {
			t.Fatal(err)
		}
		fi := must[os.FileInfo](t)(os.Stat(path))
		ends = append(ends, fi.Size())
	}
	if err := lf.close(); err != nil {
		t.Fatal(err)
	}
	whole := must[[]byte](t)(os.ReadFile(path))
	header := strings.IndexByte(string(whole), '\n') + 1
	for n := header; n <= len(whole); n++ {
		want := 0
		for _, e := range ends {
			if int64(n) >= e-1 { // the line's end itself is no loss
				want++
			}
		}
		leases, _, err := parseLeases(whole[:n])
		if err != nil || len(leases) != want {
			t.Fatalf("cut at %d: %d leases, want %d (%v)", n, len(leases), want, err)
		}
	}
}

func TestLeaseFileOfAnotherRelease(t *testing.T) {
	for _, content := range []string{`{"format":"hotspare-leases","version":2}` + "\n", `{"format":"dnsmasq","version":1}` + "\n", "1700000000 52:54:00:77:00:01 10.0.0.1 * *\n", "\n"} {
		path := filepath.Join(t.TempDir(), "leases")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, _, err := openLeases(path); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
			t.Errorf("%q: %v", content, err)
		}
		if b := must[[]byte](t)(os.ReadFile(path)); string(b) != content {
			t.Errorf("a file that was refused was changed: %q", b)
		}
	}
}

func TestLeaseFileIsRewrittenWhenItHasGrown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	lf, _, _, err := openLeases(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lf.close() }()
	l := Lease{MAC: n1, Addr: ip("10.77.0.100"), Expires: epoch, Bound: true}
	lf.grown = 2000
	if err := lf.add(l, func() []Lease { return []Lease{l} }); err != nil {
		t.Fatal(err)
	}
	l.Expires = epoch.Add(time.Minute)
	if err := lf.add(l, nil); err != nil {
		t.Fatal(err)
	}
	b := must[[]byte](t)(os.ReadFile(path))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	var last Lease
	if len(lines) != 3 || json.Unmarshal([]byte(lines[2]), &last) != nil || last != l {
		t.Errorf("the file is\n%s", b)
	}
	if left, _ := filepath.Glob(path + ".new-*"); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	// A rewrite that fails, and a write that fails, are made good by the next one.
	good := lf.path
	lf.path, lf.grown = filepath.Join(t.TempDir(), "gone", "leases"), 2000
	if err := lf.add(l, func() []Lease { return []Lease{l} }); err == nil || !lf.torn {
		t.Errorf("a failed rewrite is not noticed: %v", err)
	}
	lf.path = good
	if err := lf.add(l, func() []Lease { return []Lease{l} }); err != nil || lf.torn {
		t.Errorf("the write after it: %v", err)
	}
	lf.f.Close()
	if err := lf.add(l, nil); err == nil {
		t.Fatal("a write to a closed file succeeded")
	}
	if err := lf.add(l, func() []Lease { return []Lease{l} }); err != nil {
		t.Errorf("the write after it: %v", err)
	}
}

// A lease that was written and not synced is no lease: a pipe takes the write and
// refuses the sync.
func TestLeaseIsSyncedBeforeItIsTold(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	lf := &leaseFile{path: "pipe", f: w}
	if err := lf.add(Lease{MAC: n1, Addr: ip("10.77.0.100")}, nil); err == nil || !lf.torn {
		t.Errorf("a failed sync is not noticed: %v", err)
	}
}

func FuzzParseLeases(f *testing.F) {
	f.Add([]byte(`{"format":"hotspare-leases","version":1}` + "\n" + `{"mac":"52:54:00:77:00:01","addr":"10.77.0.100","expires":"2026-01-01T00:00:00Z","bound":true}` + "\n"))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		leases, _, err := parseLeases(b)
		if err != nil && leases != nil {
			t.Error("leases beside an error")
		}
		for _, l := range leases {
			if l.MAC.IsZero() != l.Quarantine || !l.Addr.Is4() {
				t.Errorf("%+v", l)
			}
		}
	})
}
