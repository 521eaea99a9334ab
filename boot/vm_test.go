package boot_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"hotspare/boot"
	"hotspare/boot/dhcp"
)

// A BIOS machine that nobody knows boots from its NIC: SeaBIOS, iPXE in the ROM,
// DHCP, our script. It says on its own screen who it is and what to do, and asks
// again. When an operator has approved it and something is assigned, it starts
// by itself.
func TestBIOSMachineWaitsUntilItIsAssigned(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRack(t, dhcp.Authoritative, source{})
	v := startVM(t, bios()...)
	screen := v.expect("hotspare: asks again in 2 s", 60*time.Second)
	for _, want := range []string{
		"MAC 52:54:00:77:00:01", "UUID 01234567-89ab-cdef-0123-456789abcdef", "serial SN-0001", "product lab-node",
		"the appliance does not know this machine", "what to do: add a node with this MAC address and approve it",
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("the screen does not show %q", want)
		}
	}
	r.director.assign(n1, boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: token(t), Kernel: "vmlinuz", Initrd: "initrd", Arch: "amd64", Epoch: 7, Reason: "orders is placed here"})
	v.expect("hotspare: node n1 starts under epoch 7: orders is placed here", 30*time.Second)
	// The source has no kernel: the machine says so and asks again, and never
	// falls back to its firmware.
	screen = v.expect("FAILED to load the kernel", 30*time.Second)
	if strings.Contains(screen, "No bootable device") {
		t.Error("the machine went on to its next boot device")
	}
	trace := logTrace(t, r)
	for _, want := range []string{"OFFER 10.77.0.", "the appliance does not know this machine", "node n1 starts under epoch 7", "kernel cannot be opened"} {
		if !strings.Contains(trace, want) {
			t.Errorf("the trace does not show %q", want)
		}
	}
}

// A machine that is assigned a start boots a real kernel with both archives: the
// second one is unpacked over the first, the kernel learns which NIC booted, and
// the join archive can be fetched by nobody else afterwards.
func TestBIOSMachineStartsAKernel(t *testing.T) {
	kernel := debianKernel(t) // outside: the namespace has no network
	if !inNamespace(t) {
		return
	}
	files := source{boot.ArtefactKernel: kernel, boot.ArtefactInitrd: busyboxArchive(t), boot.ArtefactJoin: archive(t, map[string]string{"join.txt": "join-secret-4711\n"})}
	r := newRack(t, dhcp.Authoritative, files)
	tok := token(t)
	r.director.assign(n1, boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: tok, Kernel: "vmlinuz", Initrd: "initrd", Arch: "amd64", Epoch: 3, Cmdline: "console=ttyS0 quiet hotspare.app=orders"})
	start := time.Now()
	v := startVM(t, bios()...)
	screen := v.expect("INIT-END", 120*time.Second)
	t.Logf("from power on to init: %s", time.Since(start).Round(100*time.Millisecond))
	for _, want := range []string{"join-secret-4711", "BOOTIF=01-52-54-00-77-00-01", "console=ttyS0 quiet hotspare.app=orders", "node n1 starts under epoch 3"} {
		if !strings.Contains(screen, want) {
			t.Errorf("the console does not show %q", want)
		}
	}
	logTrace(t, r)

	resp, err := http.Get("http://10.77.0.1/boot/" + tok + "/join")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusGone || strings.Contains(string(body), "secret-4711") {
		t.Errorf("a second fetch of the join archive gave %s: %s", resp.Status, body)
	}
	select {
	case f := <-r.refetch:
		if f.Node != "n1" || f.Epoch != 3 {
			t.Errorf("reported %+v", f)
		}
	default:
		t.Error("the second fetch was not reported")
	}
	// The machine must have reached iPXE's script without a wait for IPv6.
	trace, _ := r.recorder.Trace(n1)
	first, last := trace.Entries[0].At, trace.Entries[len(trace.Entries)-1].At
	t.Logf("first DHCP packet to last file: %s", last.Sub(first).Round(100*time.Millisecond))
}

// A kernel that does not start leaves the machine with a spent join archive. It
// says so and waits for a new attempt: fetching the archive again would look
// like a thief and quarantine the node.
func TestBIOSMachineNeverFetchesTheJoinArchiveTwice(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	// iPXE takes it, and it ends with an error when it is started.
	r := newRack(t, dhcp.Authoritative, source{boot.ArtefactKernel: []byte("#!ipxe\nexit 1\n"), boot.ArtefactInitrd: []byte("initrd"), boot.ArtefactJoin: []byte("join")})
	first := boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindStart, Token: token(t), Kernel: "vmlinuz", Initrd: "initrd", Epoch: 7}
	r.director.assign(n1, first)
	v := startVM(t, bios()...)
	v.expect("FAILED to start the kernel", 60*time.Second)
	v.expect("this boot attempt has failed, a new one is needed", 30*time.Second)
	second := first
	second.Token, second.Epoch = token(t), 8
	r.director.assign(n1, second)
	v.expect("node n1 starts under epoch 8", 30*time.Second)
	if len(r.refetch) > 0 {
		t.Errorf("the join archive was fetched twice: %+v", <-r.refetch)
	}
	logTrace(t, r)
}

// A machine that may boot its own disk is handed back with an error, so that
// its firmware goes on to the next device (here: none).
func TestBIOSMachineIsHandedBackToItsFirmware(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	r := newRack(t, dhcp.Authoritative, source{})
	r.director.assign(n1, boot.Assignment{Node: "n1", Approved: true, Kind: boot.KindLocal, Token: token(t), Reason: "it holds no application"})
	v := startVM(t, bios()...)
	v.expect("hotspare: node n1 boots from its own disk: it holds no application", 60*time.Second)
	v.expect("No bootable device", 30*time.Second)
}
