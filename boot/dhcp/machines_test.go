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

// Mode off: another server gives the addresses and has the printed snippet in its
// configuration. SeaBIOS and iPXE take its address, go to our port 4011 for what to
// boot, and get a script with a token.
func TestMachineBootsByTheSnippetOfAnotherServer(t *testing.T) {
	for name, serve := range map[string]func(t *testing.T, w *wire, snippet string){
		"dnsmasq": func(t *testing.T, w *wire, snippet string) {
			dnsmasq(t, w.pid, "hscl0", "--dhcp-range=10.77.0.200,10.77.0.210,1h", "--conf-file="+write(t, t.TempDir(), snippet))
		},
		"kea": func(t *testing.T, w *wire, snippet string) {
			dir := t.TempDir()
			conf := write(t, dir, `{"Dhcp4":{"valid-lifetime":600,"interfaces-config":{"interfaces":["hscl0"]},"lease-database":{"type":"memfile","persist":false},
				"subnet4":[{"subnet":"10.77.0.0/24","pools":[{"pool":"10.77.0.200 - 10.77.0.210"}]}],`+snippet[strings.Index(snippet, `"client-classes"`):]+`}}`)
			start(t, w.pid, "env", "KEA_PIDFILE_DIR="+dir, "KEA_LOCKFILE_DIR="+dir, "kea-dhcp4", "-c", conf)
		},
		"isc": func(t *testing.T, w *wire, snippet string) {
			dir := t.TempDir()
			conf := write(t, dir, "authoritative;\n"+snippet+"subnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.200 10.77.0.210; }\n")
			leases := filepath.Join(dir, "leases")
			if err := os.WriteFile(leases, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			start(t, w.pid, "dhcpd", "-4", "-f", "-d", "-cf", conf, "-lf", leases, "-pf", filepath.Join(dir, "pid"), "hscl0")
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "dnsmasq" && os.Getenv("HOTSPARE_TEST_FULL") == "" {
				t.Skip("make test-full boots by the other servers too")
			}
			if inNamespace(t) {
				bootBySnippet(t, name, serve)
			}
		})
	}
}

func bootBySnippet(t *testing.T, name string, serve func(t *testing.T, w *wire, snippet string)) {
	t.Helper()
	w := newWire(t)
	paths := asked(t)
	o := segmentOptions(t)
	o.Mode, o.Recorder = Off, boot.NewRecorder(0, 0)
	s := w.start(o)
	snippet, err := Snippet(name, s.o.Site)
	if err != nil {
		t.Fatal(err)
	}
	w.client("ip", "address", "add", "10.77.0.9/24", "dev", "hscl0")
	serve(t, w, snippet)
	machine(t, nic(n2)...)
	wantPath(t, paths, "/ipxe/"+goodToken)
	trace, ok := s.o.Recorder.Trace(n2)
	if !ok || !strings.HasPrefix(trace.Boots[0].Entries[0].Request, "REQUEST") || !strings.HasPrefix(trace.Boots[0].Entries[0].Answer, "ACK") {
		t.Errorf("the trace is %+v", trace)
	}
}

// OVMF boots over IPv6 alone: it hears our advertisement, gets an address and a URL
// by DHCPv6, and asks for the loader by TFTP over IPv6.
func TestUEFIMachineOverIPv6(t *testing.T) {
	if os.Getenv("HOTSPARE_TEST_FULL") == "" {
		t.Skip("make test-full boots UEFI over IPv6")
	}
	if !inNamespace(t) {
		return
	}
	w := newWire(t)
	o := segmentOptions(t)
	o.IPv6, o.Recorder = lab6(t), boot.NewRecorder(0, 0)
	s := w.start(o)
	c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.ParseIP("fd77::1"), Port: 69})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	vars, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Fatal(err)
	}
	machine(t, "-machine", "q35",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
		"-drive", "if=pflash,unit=1,format=raw,file="+write(t, t.TempDir(), string(vars)),
		"-device", "virtio-net-pci,netdev=net0,mac="+n2.String()+",romfile=,bootindex=1", "-device", "virtio-rng-pci",
		"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		t.Fatalf("no request for the loader: %v; trace %+v", err, s.o.Recorder.Machines())
	}
	if want := s.v6.address(message6{boot: bootOf(n2)}, 0, s.o.Exclude); !strings.HasPrefix(string(b[:n]), "\x00\x01snponly.efi\x00") || from.Addr() != want {
		t.Errorf("%q from %s, want %s", b[:n], from, want)
	}
}
