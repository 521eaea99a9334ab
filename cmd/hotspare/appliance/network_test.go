package appliance

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/ui/api"
	"hotspare/ui/api/client"
)

// segment is a further link: lnk0 here with the appliance's address, and its other
// end in a namespace of its own, which a machine would be in.
type segment struct {
	t   *testing.T
	pid string
	end string // the interface in that namespace
}

// newSegment makes the link; its interface here is name, at address.
func newSegment(t *testing.T, name, address string) *segment {
	t.Helper()
	s := holding(t, name+"e")
	must(t, "ip", "link", "add", name, "type", "veth", "peer", "name", s.end, "netns", s.pid)
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
	must(t, "ip", "address", "add", address, "dev", name)
	must(t, "ip", "link", "set", name, "up")
	s.run("ip", "link", "set", s.end, "up")
	return s
}

// firstSegment puts the other end of the first link into a namespace for the time of the
// test.
func firstSegment(t *testing.T) *segment {
	t.Helper()
	s := holding(t, "seg1")
	must(t, "ip", "link", "set", "seg1", "netns", s.pid)
	t.Cleanup(func() {
		must(t, "nsenter", "-t", s.pid, "-n", "ip", "link", "set", "seg1", "netns", fmt.Sprint(os.Getpid()))
		must(t, "ip", "link", "set", "seg1", "up")
	})
	s.run("ip", "link", "set", "seg1", "up")
	return s
}

func holding(t *testing.T, end string) *segment {
	t.Helper()
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	s := &segment{t: t, pid: fmt.Sprint(holder.Process.Pid), end: end}
	s.run("ip", "link", "set", "lo", "up")
	return s
}

func must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// run runs a command where the machine is.
func (s *segment) run(args ...string) string {
	s.t.Helper()
	return must(s.t, append([]string{"nsenter", "-t", s.pid, "-n", "--"}, args...)...)
}

// lease has busybox's client ask as a firmware does, and gives what it was told.
func (s *segment) lease() string {
	s.t.Helper()
	script := filepath.Join(s.t.TempDir(), "udhcpc")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip address replace $ip/$mask dev $interface\necho \"told $ip $serverid $router\"\necho \"boots $boot_file of $siaddr\"\n"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	return s.run("busybox", "udhcpc", "-i", s.end, "-f", "-q", "-n", "-t", "8", "-T", "1", "-V", "PXEClient:Arch:00007:UNDI:003016", "-x", "0x5d:0007", "-s", script)
}

// A machine of each link gets an address of its own network, boots from the
// appliance's address there, and reaches agents' port and iSCSI target at it.
func TestTwoLinks(t *testing.T) {
	one, two := firstSegment(t), newSegment(t, "lnk0", "10.88.0.1/24")
	must(t, "ip", "address", "add", "fd88::1/64", "dev", "lnk0") // the kernel still checks it when the appliance starts
	two.run("ip", "address", "add", "fd88::2/64", "dev", two.end, "nodad")
	c := config(t)
	c.Network.Links = []LinkConfig{{
		Interface: "lnk0", Address: netip.MustParsePrefix("10.88.0.1/24"), Gateway: netip.MustParseAddr("10.88.0.254"),
		DHCP: DHCPConfig{Mode: "authoritative", From: netip.MustParseAddr("10.88.0.100"), To: netip.MustParseAddr("10.88.0.109"), IPv6: &IPv6Config{Address: netip.MustParsePrefix("fd88::1/64"), Addresses: true}},
	}}
	c = c.WithDefaults()
	if err := c.Validate("test"); err != nil {
		t.Fatal(err)
	}
	a := start(t, c)
	defer func() { stopAppliance(t, a) }()
	cl := client.New(client.Options{Socket: c.Socket})
	defer cl.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	var boot api.BootCA
	if err := cl.Get(t.Context(), "/api/v1/boot-ca", &boot); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, []byte(boot.Certificate), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		s             *segment
		network, own  string
		router, iface string
	}{{one, "10.77.0.1", "10.77.0.1", "", "seg0"}, {two, "10.88.0.10", "10.88.0.1", "10.88.0.254", "lnk0"}} {
		if out := x.s.lease(); !strings.Contains(out, "told "+x.network) || !strings.Contains(out, " "+x.own+" "+x.router) || !strings.Contains(out, "boots snponly.efi of "+x.own+"\n") {
			t.Fatalf("on %s the client was told\n%s", x.iface, out)
		}
		unassigned := "://" + x.own + "/ipxe/unassigned/52-54-00-77-00-09/7"
		if out := x.s.run("curl", "-sSf", "-m", "20", "http"+unassigned); !strings.Contains(out, "this machine waits") {
			t.Errorf("over HTTP at %s: %s", x.own, out)
		}
		if out := x.s.run("curl", "-sSf", "-m", "30", "--cacert", ca, "https"+unassigned); !strings.Contains(out, "this machine waits") {
			t.Errorf("over HTTPS at %s: %s", x.own, out)
		}
		x.s.run("curl", "-sSf", "-m", "20", "-o", "/dev/null", "tftp://"+x.own+"/undionly.kpxe")
		for _, port := range []uint16{c.Network.AgentPort, c.Network.ISCSIPort} {
			x.s.run("timeout", "20", "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", x.own, port))
		}
	}
	// DHCPv6 sends machines to the IPv6 address: it serves the same files.
	for _, from := range []string{"http://[fd88::1]/loader/undionly.kpxe", "https://[fd88::1]/loader/undionly.kpxe", "tftp://[fd88::1]/undionly.kpxe"} {
		eventually(t, from, func() bool { // until the kernel has checked the address
			return exec.Command("nsenter", "-t", two.pid, "-n", "curl", "-gsSf", "-m", "20", "--cacert", ca, "-o", "/dev/null", from).Run() == nil
		})
	}
	if a := c.Network.toward(netip.MustParseAddr("10.88.0.105")); a.Interface != "lnk0" {
		t.Errorf("a node of the second link is sent to %s", a.Interface)
	}
	var links []api.Link
	if err := cl.Get(t.Context(), "/api/v1/links", &links); err != nil {
		t.Fatal(err)
	}
	if len(links) != 2 || links[1].Interface != "lnk0" || !links[1].Up || !links[1].HTTPS || len(links[1].Pools) != 1 || links[1].Pools[0].Size != 10 || links[1].Pools[0].Used != 1 || links[1].Counters.Answered == 0 {
		t.Errorf("%+v", links)
	}
	// Leases survive a restart, each in the file of its link.
	stopAppliance(t, a)
	a = start(t, c)
	if n := len(a.dhcp.Leases()); n != 2 {
		t.Errorf("%d leases after a restart", n)
	}
}

// A node's boot is decided on the link that it asks on: what it is given names the
// appliance's address there, and it starts nothing whose address is elsewhere.
func TestAnApplicationBelongsToALink(t *testing.T) {
	newSegment(t, "lnk0", "10.88.0.1/24")
	c := config(t)
	c.Network.Links = []LinkConfig{{Interface: "lnk0", Address: netip.MustParsePrefix("10.88.0.1/24")}}
	c = c.WithDefaults()
	a := start(t, c)
	defer stopAppliance(t, a)
	if l, ok := c.Network.carries(netip.MustParseAddr("10.88.0.51")); !ok || l.Interface != "lnk0" {
		t.Fatal("an address of the second link belongs to it")
	}
	links := c.Network.links()
	ctx := withLink(t.Context(), links[1])
	if got := c.Network.asked(ctx).Interface; got != "lnk0" {
		t.Errorf("asked on %s", got)
	}
	if got := c.Network.asked(t.Context()).Interface; got != "seg0" {
		t.Errorf("nobody asked: %s", got)
	}
	if got := c.portal(c.Network.toward(netip.MustParseAddr("10.88.0.7"))).String(); got != "10.88.0.1:3260" {
		t.Errorf("portal %s", got)
	}
	ran := haengine.Boot{Order: haengine.Order{App: "web", Epoch: 3, Node: "n1"}, Way: haengine.WayColdISCSI}
	if _, err := a.attempts.begin(haengine.Node{Name: "n1", MACs: []string{"52:54:00:77:00:01"}}, ran, "web:1"); err != nil {
		t.Fatal(err)
	}
	if why := a.elsewhere("n1", links[0]); why != "" {
		t.Fatalf("no application is known, so nothing is elsewhere: %s", why)
	}
	app := haengine.Application{
		Name: "web", Image: "web", Pools: []string{"rack1"}, Address: netip.MustParsePrefix("10.88.0.51/24"),
		Resources: []haengine.Resource{{Name: "address", Kind: haengine.ResourceAddress}},
	}.WithDefaults()
	if err := a.engine.Submit(t.Context(), haengine.AppApplied{Application: app}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the application is known", func() bool { return a.engine.Snapshot().Durable.Apps["web"] != nil })
	if why := a.elsewhere("n1", links[1]); why != "" {
		t.Errorf("on its own link: %s", why)
	}
	why := a.elsewhere("n1", links[0])
	for _, want := range []string{"link seg0", "10.88.0.51", "on lnk0"} {
		if !strings.Contains(why, want) {
			t.Errorf("%q does not say %q", why, want)
		}
	}
	if text := a.isolated(); text != "" {
		t.Errorf("both links are up: %s", text)
	}
	must(t, "ip", "link", "set", "lnk0", "down")
	if text := a.isolated(); !strings.Contains(text, "lnk0") || !strings.Contains(text, "web answers there") {
		t.Errorf("the link of an application is down: %q", text)
	}
	must(t, "ip", "link", "set", "lnk0", "up")
	must(t, "ip", "link", "set", "seg0", "down")
	if text := a.isolated(); text != "" {
		t.Errorf("a link that carries nothing is down: %s", text)
	}
	must(t, "ip", "link", "set", "seg0", "up")
}

func TestLinksThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"no link":                           {"network: {}\n", "interface is missing"},
		"no address":                        {"network: {links: [{interface: a}]}\n", "network.links (a): address"},
		"an interface twice":                {"network: {links: [{interface: a, address: 10.0.0.1/24}, {interface: a, address: 10.0.1.1/24}]}\n", "another link has"},
		"one network twice":                 {"network: {links: [{interface: a, address: 10.0.0.1/24}, {interface: b, address: 10.0.0.2/24}]}\n", "overlaps"},
		"a relayed network of another link": {"network:\n  links:\n  - {interface: a, address: 10.0.0.1/24, dhcp: {mode: authoritative, from: 10.0.0.5, to: 10.0.0.9, relayed: [{prefix: 10.0.1.0/24, from: 10.0.1.5, to: 10.0.1.9}]}}\n  - {interface: b, address: 10.0.1.1/24}\n", "overlaps"},
		"a range of another link":           {"network: {interface: a, address: 10.0.0.1/24, links: [{interface: b, address: 10.0.1.1/24, dhcp: {mode: authoritative, from: 10.0.0.5, to: 10.0.0.9}}]}\n", "network.links (b): dhcp range"},
		"an unknown field":                  {"network: {links: [{interfase: a}]}\n", "interface"},
		"HTTPS on HTTP's port":              {"network: {interface: a, address: 10.0.0.1/24, https: {port: 80}}\n", "another service"},
	} {
		if _, err := loadSegment(t, c.text); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := loadSegment(t, "network: {links: [{interface: a, address: 10.0.0.1/24}, {interface: b, address: 10.0.1.1/24}]}\n")
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Network.links(); len(l) != 2 || l[0].Interface != "a" || l[1].DHCP.Mode != "off" {
		t.Errorf("%+v", l)
	}
}

// HTTPS is on where its port is free, and keeps an appliance from starting only
// where the configuration asks for that port.
func TestHTTPSBesideAnotherServer(t *testing.T) {
	other, err := net.Listen("tcp4", "10.77.0.1:443")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	c := config(t)
	a := start(t, c)
	links, err := a.Links(t.Context())
	if err != nil || links[0].HTTPS || a.bootSite().HTTPSPort != 0 {
		t.Errorf("HTTPS is said to be served: %+v, %v", links, err)
	}
	stopAppliance(t, a)
	c.Network.HTTPS.Port = 443
	if _, err := Start(t.Context(), Options{Config: c}); hotspare.CodeOf(err) != hotspare.CodePortTaken || !strings.Contains(err.Error(), "443") {
		t.Fatalf("got %v", err)
	}
	c.Network.HTTPS.Port = 8443
	a = start(t, c)
	defer stopAppliance(t, a)
	ca, err := a.BootCA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(ca.Certificate)) {
		t.Fatal("the CA is no PEM")
	}
	for name, pool := range map[string]*x509.CertPool{"its CA": roots, "no CA": x509.NewCertPool()} {
		conn, err := tls.Dial("tcp", "10.77.0.1:8443", &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
		if (err == nil) != (pool == roots) {
			t.Errorf("with %s: %v", name, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}

// The boot CA is the same after a restart. Half of one is never replaced by another:
// machines have the first one enrolled.
func TestTheBootCAStays(t *testing.T) {
	b := &bootCA{dir: t.TempDir()}
	first, err := b.authority()
	if err != nil {
		t.Fatal(err)
	}
	again := &bootCA{dir: b.dir}
	second, err := again.authority()
	if err != nil || !second.Certificate.Equal(first.Certificate) {
		t.Fatalf("after a restart: %v", err)
	}
	if i, err := os.Stat(filepath.Join(b.dir, bootCAKey)); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", i.Mode(), err)
	}
	if err := os.Remove(filepath.Join(b.dir, bootCAKey)); err != nil {
		t.Fatal(err)
	}
	if _, err := (&bootCA{dir: b.dir}).authority(); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("without its key: %v", err)
	}
}

// output is what a program says, while it says it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// daemon runs a program that goes on where the machine is.
func (s *segment) daemon(args ...string) (stop func()) {
	s.t.Helper()
	var out output
	cmd := exec.Command("nsenter", append([]string{"-t", s.pid, "-n", "--"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("%s says\n%s", args[0], out.String())
		}
	})
	s.t.Cleanup(stop)
	return stop
}

// A foreign DHCP server on the segment becomes a notice: it stands in the API with
// the mend, is an event of the history, and is counted.
func TestAForeignServerIsTold(t *testing.T) {
	s := firstSegment(t)
	c := config(t)
	c.Network.DHCP.Watch = haengine.Duration(500 * time.Millisecond)
	s.run("ip", "address", "add", "10.77.0.9/24", "dev", "seg1")
	s.daemon("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=seg1", "--bind-interfaces", "--dhcp-range=10.77.0.200,10.77.0.220,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--user=root")
	a := start(t, c)
	defer stopAppliance(t, a)
	cl := client.New(client.Options{Socket: c.Socket})
	defer cl.Close()
	var link api.Link
	eventually(t, "the server stands in the API", func() bool {
		var links []api.Link
		if err := cl.Get(t.Context(), "/api/v1/links", &links); err != nil || len(links) != 1 {
			t.Fatalf("%+v, %v", links, err)
		}
		link = links[0]
		return len(link.Foreign) > 0 && len(link.Alarms) > 0
	})
	if f := link.Foreign[0]; f.Server.String() != "10.77.0.9" || f.Expected || !strings.Contains(f.Fix, "mode: proxy") || f.MAC == "" {
		t.Errorf("%+v", f)
	}
	if x := link.Alarms[0]; x.Code != string(hotspare.CodeForeignDHCP) || !strings.Contains(x.Text, "10.77.0.9") || !strings.Contains(x.Fix, "10.77.0.9") {
		t.Errorf("%+v", x)
	}
	eventually(t, "it is an event of the history", func() bool {
		var events []api.Event
		if err := cl.Get(t.Context(), "/api/v1/events", &events); err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Code == string(hotspare.CodeForeignDHCP) && strings.Contains(e.Text, "10.77.0.9") && strings.Contains(e.Text, "; fix: ") {
				return true
			}
		}
		return false
	})
	for _, want := range []string{`hotspare_dhcp_foreign_servers{link="seg0"} 1`, `hotspare_network_alarms{code="NET-`, `hotspare_dhcp_pool_size{link="seg0",network="10.77.0.0/24"} 100`} {
		if text := must(t, "curl", "-sS", "http://127.0.0.1:8080/metrics"); !strings.Contains(text, want) {
			t.Errorf("the metrics do not show %s", want)
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// A cause is told of once when it begins and once when it has gone.
func TestNoticesOfTheNetwork(t *testing.T) {
	var said []haengine.Notice
	var history []haengine.Entry
	n := newNetwork()
	stands := map[string]bool{}
	n.notify = func(_ context.Context, x haengine.Notice) error { said = append(said, x); return nil }
	n.record = func(_ context.Context, e haengine.Entry) error { history = append(history, e); return nil }
	n.stands = func() map[string]bool { return stands }
	e := &hotspare.Error{Code: hotspare.CodePoolEmpty, What: "a machine gets no address", Where: "10.77.0.0/24 on seg0", Why: "none is free", Fix: "make the range larger"}
	n.begun(t.Context(), linkAlarm{"seg0", e})
	stands[incident("seg0", e)] = true
	n.gone(t.Context())
	if len(said) != 1 || said[0].Fix != e.Fix || said[0].Resolved || !strings.Contains(history[0].Text, "; fix: make the range larger") {
		t.Fatalf("%+v %+v", said, history)
	}
	clear(stands)
	n.gone(t.Context())
	n.gone(t.Context())
	if len(said) != 2 || !said[1].Resolved || said[1].Incident != said[0].Incident || len(history) != 2 {
		t.Fatalf("%+v", said)
	}
}
