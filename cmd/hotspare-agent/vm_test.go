package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
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

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/boot/standby"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/storage/iscsi"
)

// The network of the machine under test. It exists in a namespace of the test's
// own: inNamespace runs the test again inside.
var (
	hostAddr = netip.MustParsePrefix("10.77.0.1/24")
	nodeAddr = netip.MustParseAddr("10.77.0.100")
	nodeMAC  = "52:54:00:77:00:01"
)

const (
	insideVar = "HOTSPARE_AGENT_TEST_INSIDE"
	nodeUUID  = "00000000-0000-4000-8000-525400770001"
	tapName   = "hstap0"
)

// inNamespace runs the test once more in a network namespace of its own, and
// says whether this is that run.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) != "" {
		setUpTap(t)
		return true
	}
	if os.Getuid() != 0 {
		t.Fatal(&hotspare.Error{Code: hotspare.CodeNotRoot, What: "this test makes a network namespace", Fix: "run it as root"})
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=14m")
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out := &prefixed{t: t}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		t.Fatalf("the run in the namespace failed: %v", err)
	}
	return false
}

type prefixed struct{ t *testing.T }

func (p *prefixed) Write(b []byte) (int, error) {
	_, err := os.Stderr.Write(b)
	return len(b), err
}

func setUpTap(t *testing.T) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	must(err)
	must(netlink.LinkSetUp(lo))
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o600)
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP}
	must(netlink.LinkAdd(tap))
	must(netlink.AddrAdd(tap, &netlink.Addr{IPNet: &net.IPNet{IP: hostAddr.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}}))
	must(netlink.LinkSetUp(tap))
}

// serveDHCP gives the node its boot address.
func serveDHCP(t *testing.T) {
	t.Helper()
	handler := func(conn net.PacketConn, _ net.Addr, m *dhcpv4.DHCPv4) {
		reply, err := dhcpv4.NewReplyFromRequest(m,
			dhcpv4.WithYourIP(nodeAddr.AsSlice()), dhcpv4.WithServerIP(hostAddr.Addr().AsSlice()),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(hostAddr.Addr().AsSlice())),
			dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(600))
		if err != nil {
			return
		}
		switch m.MessageType() {
		case dhcpv4.MessageTypeDiscover:
			reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeOffer))
		case dhcpv4.MessageTypeRequest:
			reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeAck))
		default:
			return
		}
		_, _ = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
	}
	s, err := server4.NewServer(tapName, &net.UDPAddr{Port: 67}, handler)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve() }()
	t.Cleanup(func() { _ = s.Close(); <-done })
}

// appliance is the appliance's part of the test: the link's server with the
// lease in the test's hand, and the real target.
type appliance struct {
	ca     *server.CA
	link   *server.Server
	joined chan server.Session

	mu       sync.Mutex
	grant    bool
	drop     bool
	spent    map[[32]byte]bool
	last     agentlink.Heartbeat
	reports  []agentlink.Report
	samples  map[string]int
	reported chan struct{}
}

func newAppliance(t *testing.T) *appliance {
	t.Helper()
	a := &appliance{joined: make(chan server.Session, 8), grant: true, spent: map[[32]byte]bool{}, samples: map[string]int{}, reported: make(chan struct{}, 64)}
	var err error
	if a.ca, err = server.EnsureCA(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	a.link, err = server.New(server.Options{Addr: netip.AddrPortFrom(hostAddr.Addr(), agentlink.Port).String(), CA: a.ca, Tokens: a, Handler: a, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.link.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return a
}

func (a *appliance) Redeem(_ context.Context, hash [32]byte, _ agentlink.Facts) (server.Identity, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.spent[hash] {
		return server.Identity{}, &hotspare.Error{Code: hotspare.CodeTokenReused, What: "the token was used before"}
	}
	a.spent[hash] = true
	return server.Identity{Node: "n1", Epoch: 7}, nil
}

func (a *appliance) Joined(_ context.Context, s server.Session) { a.joined <- s }

func (a *appliance) Heartbeat(_ context.Context, _ server.Session, h agentlink.Heartbeat) agentlink.HeartbeatAck {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = h
	return agentlink.HeartbeatAck{Granted: a.grant && h.App != "", Drop: a.drop, Lease: haengine.Duration(15 * time.Second), Epoch: h.Epoch}
}

func (a *appliance) Report(_ context.Context, _ server.Session, r agentlink.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reports = append(a.reports, r)
	select {
	case a.reported <- struct{}{}:
	default:
	}
}

func (a *appliance) Sample(_ context.Context, _ server.Session, m agentlink.Sample) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m.OK {
		a.samples[m.Monitor]++
	}
}

func (a *appliance) Gone(context.Context, server.Session, string) {}

// awaitReport waits for a report that fits.
func (a *appliance) awaitReport(t *testing.T, limit time.Duration, what string, fits func(agentlink.Report) bool) agentlink.Report {
	t.Helper()
	deadline := time.After(limit)
	for {
		a.mu.Lock()
		for _, r := range a.reports {
			if fits(r) {
				a.mu.Unlock()
				return r
			}
		}
		a.mu.Unlock()
		select {
		case <-a.reported:
		case <-deadline:
			t.Fatalf("no report of %s within %s", what, limit)
		}
	}
}

// machine is a QEMU node.
type machine struct {
	cmd     *exec.Cmd
	console *consoleLog
	start   time.Time
	done    chan struct{}
}

// consoleLog keeps what a machine says and wakes those who wait for words.
type consoleLog struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
	echo io.Writer
}

func (c *consoleLog) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(b)
	_, _ = c.echo.Write(b)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (c *consoleLog) count(words string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Count(c.text.String(), words)
}

// cpu is x86-64-v2. With "max", QEMU 7.2 offers five-level paging, with which
// copy_from_kernel_nofault fails in Debian's 6.1.192 and every path in /proc
// reads "xxxx"; and it is slower.
const cpu = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+fsgsbase"

// bootNode starts a machine with the kernel and the initramfs of our own.
func bootNode(t *testing.T, kernel, initrd string) *machine {
	t.Helper()
	m := &machine{console: &consoleLog{more: make(chan struct{}, 1), echo: os.Stderr}, start: time.Now(), done: make(chan struct{})}
	m.cmd = exec.Command("qemu-system-x86_64", "-accel", "tcg,thread=multi,tb-size=128", "-machine", "pc,graphics=off", "-cpu", cpu,
		"-m", "512", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-uuid", nodeUUID, "-serial", "stdio",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 panic=-1 quiet BOOTIF=01-"+strings.ReplaceAll(nodeMAC, ":", "-"),
		"-netdev", "tap,id=n,ifname="+tapName+",script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,romfile=,mac="+nodeMAC,
		"-device", "virtio-rng-pci")
	m.cmd.Stdout, m.cmd.Stderr = m.console, m.console
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(&hotspare.Error{Code: hotspare.CodeMissingTool, What: "QEMU does not start", Fix: "apt-get install qemu-system-x86", Err: err})
	}
	go func() { defer close(m.done); _ = m.cmd.Wait() }()
	t.Cleanup(func() { _ = m.cmd.Process.Kill(); <-m.done })
	return m
}

// await waits until the console has said words n times.
func (m *machine) await(t *testing.T, limit time.Duration, n int, words string) {
	t.Helper()
	deadline := time.After(limit)
	for m.console.count(words) < n {
		select {
		case <-m.console.more:
		case <-m.done:
			if m.console.count(words) >= n {
				return
			}
			t.Fatalf("the machine ended before it said %q", words)
		case <-deadline:
			t.Fatalf("the machine did not say %q within %s", words, limit)
		}
	}
}

func (m *machine) awaitEnd(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case <-m.done:
	case <-time.After(limit):
		t.Fatalf("the machine runs still, %s later", limit)
	}
}

// buildInitramfs makes the initramfs of the agent and the archive of one boot.
func buildInitramfs(t *testing.T, ca []byte, mode agentlink.BootMode) (kernel, initrd string) {
	t.Helper()
	vmlinuz, modules, version := debianKernel(t, "cloud-amd64")
	agent := filepath.Join(t.TempDir(), "hotspare-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	result, err := standby.Build(t.Context(), standby.Request{Agent: agent, KernelVersion: version, ModulesDir: modules, Set: standby.Lab, Arch: "amd64"}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	big, err := os.ReadFile(result.Path)
	if err != nil {
		t.Fatal(err)
	}
	config, err := agentlink.EncodeBootConfig(agentlink.BootConfig{
		Node: "n1", Appliance: netip.AddrPortFrom(hostAddr.Addr(), agentlink.Port), CA: string(ca),
		Token: hotspare.NewSecret(strings.Repeat("ab", 32)), Mode: mode, Epoch: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("initramfs: %d bytes, %d unpacked, %d modules", result.Size, result.Unpacked, result.ModuleCount)
	initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, append(big, standby.JoinArchive(map[string][]byte{agentlink.BootConfigPath: config})...), 0o600); err != nil {
		t.Fatal(err)
	}
	return vmlinuz, initrd
}

// disks is the appliance's storage: the real store and the real target.
type disks struct {
	store   *cow.Store
	exports *storage.Exports
	portal  netip.AddrPort
}

var chapSecret = hotspare.NewSecret("0123456789abcdef")

// serveDisks opens a store and serves it.
func serveDisks(t *testing.T) *disks {
	t.Helper()
	dir := t.TempDir()
	store, err := cow.Open(t.Context(), dir, cow.Options{})
	if err != nil {
		t.Fatal(err)
	}
	exports, err := storage.OpenExports(filepath.Join(dir, "exports.db"), storage.Options{
		Volumes: store, TargetName: func(volume, _ string) string { return "iqn.2026-11.io.hotspare:" + volume },
	})
	if err != nil {
		t.Fatal(err)
	}
	d := &disks{store: store, exports: exports, portal: netip.AddrPortFrom(hostAddr.Addr(), 3260)}
	ln, err := net.Listen("tcp", d.portal.String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- iscsi.New(iscsi.Options{Directory: exports}).Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		if err := <-done; err != nil {
			t.Log("the target ended:", err)
		}
		_ = exports.Close()
		_ = store.Close()
	})
	return d
}

// fill makes a volume with the contents of a file, holes left out.
func (d *disks) fill(t *testing.T, name, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.store.Create(t.Context(), name, st.Size()); err != nil {
		t.Fatal(err)
	}
	dev, err := d.store.OpenVolume(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	buf := make([]byte, 1<<20)
	for at := int64(0); at < st.Size(); {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err != nil {
			break // only a hole is left
		}
		at = data &^ (1<<20 - 1)
		n, err := f.ReadAt(buf[:min(int64(len(buf)), st.Size()-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if _, err := dev.WriteAt(buf[:n], at); err != nil {
			t.Fatal(err)
		}
		at += int64(n)
	}
}

// grant exports a volume under an epoch and gives the log-in for the claim.
func (d *disks) grant(t *testing.T, volume, name, format string, epoch uint64) agentlink.Volume {
	t.Helper()
	initiator := fmt.Sprintf("iqn.2026-11.io.hotspare:n1.%s.%d", name, epoch)
	if err := d.exports.Grant(t.Context(), storage.Grant{Volume: volume, Epoch: epoch, Initiator: initiator, User: "n1", Secret: chapSecret}); err != nil {
		t.Fatal(err)
	}
	iqn, err := d.exports.TargetName(volume)
	if err != nil {
		t.Fatal(err)
	}
	return agentlink.Volume{Name: name, Portal: d.portal, IQN: iqn, Initiator: initiator, User: "n1", Secret: chapSecret, Format: format}
}

// debianKernel gives a Debian kernel and its modules from the cache that the
// project's tests share, fetched with apt once.
func debianKernel(t *testing.T, flavour string) (vmlinuz, modules, version string) {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(base, "hotspare-test")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	pkg := kernelPackage(t, cache, flavour)
	version = strings.TrimPrefix(pkg, "linux-image-")
	dir := filepath.Join(cache, pkg)
	if _, err := os.Stat(dir); err != nil {
		work, err := os.MkdirTemp(cache, "fetch-")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(work) }()
		command(t, work, "apt-get", "download", pkg)
		debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
		if err != nil || len(debs) != 1 {
			t.Fatalf("apt-get download gave %v, %v", debs, err)
		}
		root := filepath.Join(work, "root")
		command(t, work, "dpkg", "-x", debs[0], root)
		command(t, work, "depmod", "-b", root, version)
		if err := os.Rename(root, dir); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "boot/vmlinuz-"+version), filepath.Join(dir, "lib/modules", version), version
}

// kernelPackage names the package: the one in the cache, else what the meta
// package depends on now.
func kernelPackage(t *testing.T, cache, flavour string) string {
	t.Helper()
	if have, _ := filepath.Glob(filepath.Join(cache, "linux-image-[0-9]*-"+flavour)); len(have) > 0 {
		return filepath.Base(have[len(have)-1])
	}
	for line := range strings.Lines(command(t, "", "apt-cache", "depends", "--important", "linux-image-"+flavour)) {
		if _, name, ok := strings.Cut(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return name
		}
	}
	t.Fatalf("linux-image-%s depends on no kernel", flavour)
	return ""
}

func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
