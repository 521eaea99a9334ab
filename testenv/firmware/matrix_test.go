package firmware

import (
	"os"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/lab"
)

// TestFirmwares boots a machine of each firmware to a running application.
func TestFirmwares(t *testing.T) {
	nodes := lab.Nodes(4)
	kinds := []struct {
		name  string
		full  bool
		set   func(*lab.NodeSpec)
		trace []string // what `explain boot` must show
	}{
		{"UEFI PXE", false, func(n *lab.NodeSpec) {}, []string{"x86-64 UEFI (7)", "snponly.efi over TFTP"}},
		{"UEFI Secure Boot", false, func(n *lab.NodeSpec) { n.SecureBoot = true }, []string{"x86-64 UEFI (7)", "shimx64.efi over TFTP", "grubx64.efi"}},
		{"UEFI HTTP", true, func(n *lab.NodeSpec) { n.HTTPBoot = true }, []string{"x86-64 UEFI HTTP (16)", "snponly.efi over HTTP"}},
		{"BIOS PXE", true, func(n *lab.NodeSpec) { n.Firmware = lab.FirmwareBIOS }, []string{"x86 BIOS (0)"}},
	}
	for i, k := range kinds {
		nodes[i].Firmware = lab.FirmwareUEFI
		k.set(&nodes[i])
	}
	w := newWorld(t, "matrix", "", nodes)
	for i, k := range kinds {
		if k.full && !full() {
			continue
		}
		n := w.lab.Nodes()[i]
		t.Run(k.name, func(t *testing.T) {
			w := *w
			w.t = t
			w.addNode(n)
			begun := time.Now()
			app := w.addApp(n)
			w.running(app, n)
			t.Logf("%s: from the order to a running application in %.1f s", k.name, time.Since(begun).Seconds())
			trace := w.hotspare("explain", "boot", n.MAC)
			for _, want := range k.trace {
				if !strings.Contains(trace, want) {
					t.Errorf("the boot trace does not show %q:\n%s", want, trace)
				}
			}
			if n.SecureBoot {
				w.secured(n, trace)
			}
			w.gone(app, n)
		})
	}
}

// secured checks that GRUB started the kernel and that the token, which stands in
// the names of the files that shim and GRUB fetch, is in no trace and no log.
func (w *world) secured(n lab.NodeSpec, trace string) {
	w.t.Helper()
	screen := w.console(n)
	if !strings.Contains(screen, "all fetched, the kernel starts") {
		w.t.Errorf("GRUB did not start the kernel:\n%s", screen)
	}
	_, token, ok := strings.Cut(screen, "NBP filename is /grub/")
	token, _, more := strings.Cut(token, "/")
	if !ok || !more || len(token) != 43 {
		w.t.Fatalf("the firmware does not show what it fetches:\n%s", screen)
	}
	log, err := os.ReadFile(w.site.Log())
	if err != nil {
		w.t.Fatal(err)
	}
	if strings.Contains(trace, token) || strings.Contains(string(log), token) {
		w.t.Error("the boot token is shown")
	}
}
