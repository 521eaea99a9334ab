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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"

	"hotspare/boot"
)

const insideVar = "HOTSPARE_TEST_NETNS"

// inNamespace runs the calling test again in a process with a network namespace
// of its own, in which it returns true. Everything that the test makes there
// ends with the process; nothing reaches another network.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) == t.Name() {
		run(t, "ip", "link", "set", "lo", "up")
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root; make test runs as root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), insideVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("inside the namespace: %v\n%s", err, out)
	}
	t.Logf("%s", out)
	return false
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// wire is a segment: the server's interface hsbr0 here, the client's hscl0 with
// n1's address in a namespace of its own.
type wire struct {
	t   *testing.T
	pid string // of the process that holds the client's namespace
}

func newWire(t *testing.T) *wire {
	t.Helper()
	holder := exec.Command("sleep", "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	w := &wire{t: t, pid: fmt.Sprint(holder.Process.Pid)}
	run(t, "ip", "link", "add", "hsbr0", "type", "bridge", "forward_delay", "0")
	run(t, "ip", "address", "add", "10.77.0.1/24", "dev", "hsbr0")
	run(t, "ip", "address", "add", "10.77.0.3/24", "dev", "hsbr0") // a second one, never to be answered from
	run(t, "ip", "link", "add", "hsport", "type", "veth", "peer", "name", "hscl0", "address", n1.String(), "netns", w.pid)
	run(t, "ip", "link", "set", "hsport", "master", "hsbr0", "up")
	run(t, "ip", "link", "set", "hsbr0", "up")
	w.client("ip", "link", "set", "hscl0", "up")
	w.client("ip", "link", "set", "lo", "up")
	return w
}

// client runs a command in the client's namespace.
func (w *wire) client(args ...string) string {
	w.t.Helper()
	return run(w.t, "nsenter", append([]string{"-t", w.pid, "-n", "--"}, args...)...)
}

// inside runs f on a thread in the client's namespace. The thread is not given
// back: it ends with its goroutine.
func (w *wire) inside(f func() error) {
	w.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open("/proc/"+w.pid+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
}

// start runs a server on the wire until the test ends.
func (w *wire) start(o Options) *Server {
	w.t.Helper()
	o.Site = boot.Site{Loaders: boot.DefaultLoaders()}
	if o.Director == nil {
		o.Director = directorFunc(starts)
	}
	s, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.serve(s)
	return s
}

func (w *wire) serve(s *Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			w.t.Error(err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	w.t.Cleanup(stop)
	return stop
}

// station is the client's raw view of the wire.
type station struct {
	w    *wire
	conn *packet.Conn
}

func (w *wire) station() *station {
	w.t.Helper()
	s := &station{w: w}
	w.inside(func() error {
		ifi, err := net.InterfaceByName("hscl0")
		if err != nil {
			return err
		}
		s.conn, err = packet.Listen(ifi, packet.Raw, unix.ETH_P_ALL, nil)
		return err
	})
	w.t.Cleanup(func() { _ = s.conn.Close() })
	return s
}

// ask broadcasts a packet from no address and gives the frame of the answer.
func (s *station) ask(kind dhcpv4.MessageType, mods ...opt) (eth []byte, reply *dhcpv4.DHCPv4) {
	t := s.w.t
	t.Helper()
	d, err := dhcpv4.New(append([]opt{dhcpv4.WithHwAddr(n1[:]), dhcpv4.WithMessageType(kind)}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := frame(net.HardwareAddr(n1[:]), boot.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("255.255.255.255:67"), d.ToBytes())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.conn.WriteTo(b, &packet.Addr{HardwareAddr: net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}); err != nil {
		t.Fatal(err)
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for {
		n, _, err := s.conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no answer to %s: %v", kind, err)
		}
		f := buf[:n]
		if n < 42 || f[12] != 8 || f[13] != 0 || f[23] != 17 || f[36] != 0 || f[37] != 68 {
			continue
		}
		reply, err := dhcpv4.FromBytes(f[42:])
		if err != nil || reply.TransactionID != d.TransactionID {
			continue
		}
		return bytes.Clone(f), reply
	}
}

func segmentOptions(t *testing.T) Options {
	o := options()
	o.Gateway = netip.Addr{}
	o.Leases = filepath.Join(t.TempDir(), "leases")
	o.ProbeWait = 100 * time.Millisecond
	return o
}
