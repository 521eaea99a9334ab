package boot_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"hotspare/boot"
	"hotspare/boot/dhcp"
	"hotspare/boot/httpboot"
	"hotspare/boot/ipxe"
	"hotspare/boot/tftp"
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
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.timeout=5m")
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

var (
	server = netip.MustParseAddr("10.77.0.1")
	n1     = boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}
)

// director is the appliance's part: it says what is assigned to whom.
type director struct {
	mu  sync.Mutex
	mac map[boot.MAC]boot.Assignment
}

func (d *director) assign(m boot.MAC, a boot.Assignment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mac == nil {
		d.mac = map[boot.MAC]boot.Assignment{}
	}
	d.mac[m] = a
}

func (d *director) Assign(_ context.Context, r boot.Request) (boot.Assignment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Path.Token == "" {
		return d.mac[r.MAC], nil
	}
	for _, a := range d.mac {
		if boot.SameToken(a.Token, r.Path.Token) {
			return a, nil
		}
	}
	return boot.Assignment{}, nil
}

type memFile struct{ *bytes.Reader }

func (memFile) Close() error { return nil }

// source holds the artefacts of a boot in memory.
type source map[boot.Artefact][]byte

func (s source) Open(_ context.Context, _ string, a boot.Artefact) (httpboot.File, error) {
	b, ok := s[a]
	if !ok {
		return httpboot.File{}, errors.New("no such artefact")
	}
	return httpboot.File{ReadSeekCloser: memFile{bytes.NewReader(b)}}, nil
}

// rack is one segment with all boot services on a bridge of its own.
type rack struct {
	dhcp     *dhcp.Server
	director *director
	recorder *boot.Recorder
	refetch  chan httpboot.Refetch
}

func loader(name string) (io.ReadSeekCloser, error) { return os.Open("/usr/lib/ipxe/" + name) }

// newRack starts DHCP, TFTP and HTTP as the appliance does.
func newRack(t *testing.T, mode dhcp.Mode, files source) *rack {
	t.Helper()
	run(t, "ip", "link", "add", "hsbr0", "type", "bridge", "forward_delay", "0")
	run(t, "ip", "address", "add", "10.77.0.1/24", "dev", "hsbr0")
	run(t, "ip", "link", "set", "hsbr0", "up")

	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	r := &rack{director: &director{}, recorder: boot.NewRecorder(0, 0), refetch: make(chan httpboot.Refetch, 8)}
	site := boot.Site{Server: server, Loaders: boot.DefaultLoaders(), Again: 2 * time.Second}
	var err error
	r.dhcp, err = dhcp.New(dhcp.Options{
		Interface: "hsbr0", Server: server, Mode: mode,
		Subnet: dhcp.Subnet{
			Prefix: netip.MustParsePrefix("10.77.0.0/24"),
			Range:  dhcp.Range{From: netip.MustParseAddr("10.77.0.100"), To: netip.MustParseAddr("10.77.0.199")},
		},
		Site: site, Director: r.director, Leases: filepath.Join(t.TempDir(), "leases"), RouterAdvertisement: true,
		Recorder: r.recorder, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	opener := map[string]tftp.Opener{}
	for _, name := range site.Loaders {
		opener[name] = func() (io.ReadSeekCloser, error) { return loader(name) }
	}
	tf, err := tftp.New(tftp.Options{Listen: "10.77.0.1:69", Files: opener, MACOf: r.dhcp.MACOf, Recorder: r.recorder, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	h, err := httpboot.New(httpboot.Options{
		Site: site, Director: r.director, Source: files, Script: ipxe.Write, Loader: loader, MACOf: r.dhcp.MACOf,
		Refetch: func(_ context.Context, f httpboot.Refetch) { r.refetch <- f }, Recorder: r.recorder, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{Handler: h}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = web.Serve(ln) })
	wg.Go(func() { noError(t, r.dhcp.Serve(ctx)) })
	wg.Go(func() { noError(t, tf.Serve(ctx)) })
	t.Cleanup(func() { cancel(); _ = web.Close(); wg.Wait() })
	return r
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// vm is one lab machine that boots from its NIC.
type vm struct {
	t      *testing.T
	serial string
	cmd    *exec.Cmd
}

func startVM(t *testing.T, args ...string) *vm {
	t.Helper()
	run(t, "ip", "tuntap", "add", "hstap1", "mode", "tap")
	run(t, "ip", "link", "set", "hstap1", "master", "hsbr0", "up")
	v := &vm{t: t, serial: filepath.Join(t.TempDir(), "serial.log")}
	v.cmd = exec.Command("qemu-system-x86_64", append([]string{
		"-accel", "tcg,thread=multi,tb-size=128", "-cpu", "max,-svm,-vmx", "-m", "384", "-nodefaults", "-no-user-config", "-display", "none",
		"-uuid", "01234567-89ab-cdef-0123-456789abcdef",
		"-smbios", "type=1,manufacturer=hotspare,product=lab-node,serial=SN-0001,uuid=01234567-89ab-cdef-0123-456789abcdef",
		"-netdev", "tap,id=net0,ifname=hstap1,script=no,downscript=no",
		"-serial", "file:" + v.serial, "-no-reboot",
	}, args...)...)
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := &bytes.Buffer{}
	v.cmd.Stdout, v.cmd.Stderr = out, out
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = v.cmd.Process.Kill()
		_ = v.cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(v.serial)
			t.Logf("QEMU: %s\nserial console:\n%s", out, tail(b, 6000))
		}
	})
	return v
}

func bios() []string {
	return []string{"-machine", "pc,graphics=off", "-device", "virtio-net-pci,netdev=net0,mac=" + n1.String() + ",romfile=/usr/lib/ipxe/qemu/pxe-virtio.rom,disable-legacy=on,bootindex=1"}
}

// expect waits until the console shows the text, and gives all of it.
func (v *vm) expect(text string, within time.Duration) string {
	v.t.Helper()
	deadline := time.Now().Add(within)
	for {
		b, err := os.ReadFile(v.serial)
		if err == nil && bytes.Contains(b, []byte(text)) {
			return string(b)
		}
		if time.Now().After(deadline) {
			v.t.Fatalf("the console did not show %q within %s", text, within)
		}
		time.Sleep(50 * time.Millisecond) // the console is a file; nothing announces its growth
	}
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

func token(t *testing.T) string {
	t.Helper()
	s, err := boot.NewToken(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func logTrace(t *testing.T, r *rack) string {
	t.Helper()
	trace, ok := r.recorder.Trace(n1)
	if !ok {
		t.Fatal("no trace of the machine")
	}
	var b strings.Builder
	for _, e := range trace.Entries {
		fmt.Fprintf(&b, "%s %-4s %s -> %s: %s\n", e.At.Format("05.000"), e.Protocol, e.Request, e.Answer, e.Reason)
	}
	t.Logf("boot trace:\n%s", b.String())
	return b.String()
}
