package firmware

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare/testenv/lab"
)

// TestNobodyStartsItsOwnDisk powers machines on past hotspare that have something
// bootable on their local disks and nothing assigned: an unknown one, a spare, a
// spare with Secure Boot. Each stays in its loader and says why, although its
// firmware would boot the disk next (SAFETY S2a). That it would is seen once with
// the network cable out.
func TestNobodyStartsItsOwnDisk(t *testing.T) {
	if !full() {
		t.Skip("boots five machines; make test-full runs it")
	}
	nodes := lab.Nodes(3)
	nodes[1].Firmware = lab.FirmwareUEFI
	nodes[2].Firmware, nodes[2].SecureBoot = lab.FirmwareUEFI, true
	for i := range nodes {
		nodes[i].DiskMiB = 96
	}
	w := newWorld(t, "disk", "", nodes)
	disk := opaqueDisk(t, "10.77.0.90")
	nodes = w.lab.Nodes()
	for _, n := range nodes {
		dir := filepath.Join(w.lab.Dir(), n.Name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		copyFile(t, disk, filepath.Join(dir, "disk.raw"))
	}
	w.addNode(nodes[1])
	w.addNode(nodes[2])
	for i, why := range []string{"the appliance does not know this machine", "nothing is to be started on node n2 now", "nothing is to be started on node n3 now"} {
		n := nodes[i]
		t.Run(n.Name, func(t *testing.T) {
			w := *w
			w.t = t
			w.power(n, true)
			w.shows(n, "hotspare: this machine waits", 2)             // it goes on waiting
			screen := strings.Join(strings.Fields(w.console(n)), " ") // GRUB breaks lines
			if !strings.Contains(screen, why) {
				t.Errorf("the screen does not say %q:\n%s", why, screen)
			}
			if strings.Contains(w.console(n), served) {
				t.Errorf("it started its own disk:\n%s", w.console(n))
			}
			w.power(n, false)
			if n.SecureBoot {
				return // what is on the disk is not signed
			}
			if err := w.lab.Fail(t.Context(), n.Name, lab.LinkCut, ""); err != nil {
				t.Fatal(err)
			}
			w.power(n, true)
			w.shows(n, served, 1)
			w.power(n, false)
		})
	}
}
