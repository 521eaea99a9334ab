package dhcp

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare/boot"
)

// machine boots a diskless QEMU from its network card on the bridge and gives the
// file that its console goes to.
func machine(t *testing.T, args ...string) (console string) {
	t.Helper()
	run(t, "ip", "tuntap", "add", "hstap1", "mode", "tap")
	run(t, "ip", "link", "set", "hstap1", "master", "hsbr0", "up")
	console = filepath.Join(t.TempDir(), "serial.log")
	cmd := exec.Command("qemu-system-x86_64", append([]string{
		"-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max,-svm,-vmx", "-m", "256", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-netdev", "tap,id=net0,ifname=hstap1,script=no,downscript=no", "-serial", "file:" + console,
	}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			b, _ := os.ReadFile(console)
			t.Logf("QEMU says %s\nits console shows\n%s", out, b)
		}
	})
	return console
}

func nic(m boot.MAC) []string {
	return []string{"-machine", "pc,graphics=off", "-device", "virtio-net-pci,netdev=net0,mac=" + m.String() + ",romfile=/usr/lib/ipxe/qemu/pxe-virtio.rom,disable-legacy=on,bootindex=1"}
}

// asked runs a web server on our address and gives the paths that are asked for.
func asked(t *testing.T) <-chan string {
	t.Helper()
	ln, err := net.Listen("tcp", "10.77.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	paths := make(chan string, 64)
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case paths <- r.URL.Path:
		default:
		}
		_, _ = w.Write([]byte("#!ipxe\necho hotspare: the script is here\nsleep 60\n"))
	})}
	go func() { _ = web.Serve(ln) }()
	t.Cleanup(func() { _ = web.Close() })
	return paths
}

func wantPath(t *testing.T, paths <-chan string, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	select {
	case got := <-paths:
		if got != want {
			t.Errorf("it asks for %s, want %s", got, want)
		}
	case <-ctx.Done():
		t.Fatalf("the machine never asked for %s", want)
	}
}

// Mode off: Debian's dnsmasq gives the addresses and has the printed snippet in its
// configuration. SeaBIOS and iPXE take its address, go to our port 4011 for what to
// boot, and get a script with a token.
func TestMachineBootsByTheSnippetOfAnotherServer(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	paths := asked(t)
	o := segmentOptions(t)
	o.Mode, o.Recorder = Off, boot.NewRecorder(0, 0)
	s := w.start(o)
	site := s.o.Site
	site.Loaders = boot.DefaultLoaders()
	snippet, err := Snippet("dnsmasq", site)
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "hotspare.conf")
	if err := os.WriteFile(conf, []byte(snippet), 0o644); err != nil {
		t.Fatal(err)
	}
	w.client("ip", "address", "add", "10.77.0.9/24", "dev", "hscl0")
	dnsmasq(t, w.pid, "hscl0", "--dhcp-range=10.77.0.200,10.77.0.210,1h", "--conf-file="+conf)
	machine(t, nic(n2)...)
	wantPath(t, paths, "/ipxe/"+goodToken)
	trace, ok := s.o.Recorder.Trace(n2)
	if !ok || !strings.HasPrefix(trace.Entries[0].Request, "REQUEST") || !strings.HasPrefix(trace.Entries[0].Answer, "ACK") {
		t.Errorf("the trace is %+v", trace)
	}
}
