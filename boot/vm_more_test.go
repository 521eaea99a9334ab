package boot_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotspare/boot"
	"hotspare/boot/dhcp"
)

// Beside another DHCP server, which gives the addresses, a proxy gives the boot
// file: a real iPXE takes both.
func TestBIOSMachineBesideAnotherDHCPServer(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRack(t, dhcp.Proxy, source{})

	other := exec.Command("sleep", "infinity")
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	pid := fmt.Sprint(other.Process.Pid)
	run(t, "ip", "link", "add", "hsport", "type", "veth", "peer", "name", "hsother", "netns", pid)
	run(t, "ip", "link", "set", "hsport", "master", "hsbr0", "up")
	run(t, "nsenter", "-t", pid, "-n", "ip", "address", "add", "10.77.0.9/24", "dev", "hsother")
	run(t, "nsenter", "-t", pid, "-n", "ip", "link", "set", "hsother", "up")
	dir := t.TempDir()
	conf := filepath.Join(dir, "udhcpd.conf")
	text := "start 10.77.0.60\nend 10.77.0.69\ninterface hsother\noption subnet 255.255.255.0\nlease_file " + dir + "/leases\npidfile " + dir + "/pid\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/leases", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	udhcpd := exec.Command("nsenter", "-t", pid, "-n", "busybox", "udhcpd", "-f", conf)
	udhcpd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := udhcpd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = udhcpd.Process.Kill(); _ = udhcpd.Wait() })

	v := startVM(t, bios()...)
	v.expect("this machine waits", 60*time.Second)
	r.director.assign(n1, boot.Assignment{Node: "n1", MAC: n1, Approved: true, Kind: boot.KindStart, Token: token(t), Kernel: "vmlinuz", Initrd: "initrd", Epoch: 5})
	screen := v.expect("node n1 starts under epoch 5", 60*time.Second)
	if !strings.Contains(screen, "net0: 10.77.0.6") {
		t.Error("the address is not the other server's")
	}
	if trace := logTrace(t, r); !strings.Contains(trace, "script: start") {
		t.Error("the fetch of the script is not in the machine's trace")
	}
}

// uefi is a machine with OVMF; features switch ways of booting off. Its own NIC
// driver and PXE client are the firmware's: no iPXE in a ROM.
func uefi(t *testing.T, features ...string) []string {
	t.Helper()
	vars := filepath.Join(t.TempDir(), "vars.fd")
	b, err := os.ReadFile("/usr/share/OVMF/OVMF_VARS_4M.fd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vars, b, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-machine", "q35",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
		"-drive", "if=pflash,unit=1,format=raw,file=" + vars,
		"-device", "virtio-net-pci,netdev=net0,mac=" + n1.String() + ",romfile=,bootindex=1",
		"-device", "virtio-rng-pci",
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n",
	}
	for _, f := range features {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/"+f+",string=n")
	}
	return args
}

// UEFI machines: over PXE the firmware fetches snponly.efi by TFTP, over HTTP
// boot by its URL; then iPXE runs the same script. Slow, so only in test-full.
func TestUEFIMachine(t *testing.T) {
	if os.Getenv("HOTSPARE_TEST_FULL") == "" {
		t.Skip("boots two machines with OVMF; make test-full runs it")
	}
	for name, c := range map[string]struct {
		features []string
		trace    string
	}{
		"PXE":  {nil, "snponly.efi over TFTP"},
		"HTTP": {[]string{"IPv4PXESupport"}, "GET /loader/snponly.efi"},
	} {
		t.Run(name, func(t *testing.T) {
			kernel := debianKernel(t)
			if !inNamespace(t) {
				return
			}
			files := source{boot.ArtefactKernel: kernel, boot.ArtefactInitrd: busyboxArchive(t), boot.ArtefactJoin: archive(t, map[string]string{"join.txt": "join-secret-4711\n"})}
			r := newRack(t, dhcp.Authoritative, files)
			r.director.assign(n1, boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: token(t), Kernel: "vmlinuz", Initrd: "initrd", Arch: "amd64", Epoch: 3, Cmdline: "console=ttyS0 quiet"})
			v := startVM(t, uefi(t, c.features...)...)
			screen := v.expect("INIT-END", 240*time.Second)
			for _, want := range []string{"join-secret-4711", "BOOTIF=01-52-54-00-77-00-01"} {
				if !strings.Contains(screen, want) {
					t.Errorf("the console does not show %q", want)
				}
			}
			if trace := logTrace(t, r); !strings.Contains(trace, c.trace) {
				t.Errorf("the trace does not show %q", c.trace)
			}
		})
	}
}
