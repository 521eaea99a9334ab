package firmware

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/lab"
)

// TestUEFIHTTPS boots a machine whose firmware has the appliance's boot CA enrolled:
// the firmware fetches its loader over TLS, up to a running application. One that has
// not refuses the appliance, and one whose iPXE cannot trust the CA waits.
func TestUEFIHTTPS(t *testing.T) {
	if !full() {
		t.Skip("boots machines that trust the boot CA and one that does not; make test-full runs it")
	}
	nodes := lab.Nodes(3)
	enrolled := filepath.Join(t.TempDir(), "cacerts.esl")
	for i := range nodes {
		nodes[i].Firmware, nodes[i].HTTPBoot = lab.FirmwareUEFI, true
	}
	nodes[0].TrustCA, nodes[2].TrustCA = enrolled, enrolled
	w := newWorld(t, "https", "", nodes)
	w.hotspare("boot", "ca", "--form", "esl", "-o", enrolled)

	t.Run("the loader over HTTPS", func(t *testing.T) {
		w, n := *w, w.lab.Nodes()[0]
		w.t = t
		w.addNode(n, "https: loader")
		begun := time.Now()
		app := w.addApp(n)
		w.running(app, n)
		t.Logf("from the order to a running application in %.1f s", time.Since(begun).Seconds())
		if trace := w.hotspare("explain", "boot", n.MAC); !strings.Contains(trace, "snponly.efi over HTTPS") || !strings.Contains(trace, "GET /loader/snponly.efi") {
			t.Errorf("the boot trace does not show HTTPS:\n%s", trace)
		}
		if screen := w.console(n); !strings.Contains(screen, "https://10.77.0.1/loader/snponly.efi") {
			t.Errorf("the firmware did not fetch over HTTPS:\n%s", screen)
		}
		w.gone(app, n)
	})
	t.Run("a firmware that does not know the CA", func(t *testing.T) {
		w, n := *w, w.lab.Nodes()[1]
		w.t = t
		w.addNode(n, "https: loader")
		w.power(n, true)
		w.shows(n, "https://10.77.0.1/loader/snponly.efi", 1)
		w.shows(n, "Could not retrieve NBP file size from HTTP server", 1)
		if trace := w.hotspare("explain", "boot", n.MAC); strings.Contains(trace, "GET /loader/snponly.efi") {
			t.Errorf("it fetched the loader all the same:\n%s", trace)
		}
		w.power(n, false)
	})
	t.Run("all over HTTPS, with an iPXE that cannot", func(t *testing.T) {
		w, n := *w, w.lab.Nodes()[2]
		w.t = t
		w.addNode(n, "https: all")
		app := w.addApp(n)
		w.shows(n, "fetches everything over HTTPS, and its iPXE was built without it", 1)
		if trace := w.hotspare("explain", "boot", n.MAC); !strings.Contains(trace, "snponly.efi over HTTPS") || strings.Contains(trace, "GET /boot/") {
			t.Errorf("it got more than its loader:\n%s", trace)
		}
		w.hotspare("delete", "application", app)
		w.power(n, false)
	})
}
