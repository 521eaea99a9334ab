package units

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Folders below the root that holds /run.
const (
	liveDir    = "run/hotspare/live"
	unitDir    = "run/systemd/system"
	networkDir = "run/systemd/network"
	nmDir      = "run/NetworkManager/conf.d"
)

// dropInName sorts before an operator's own drop-ins, which may add to it.
const dropInName = "50-hotspare.conf"

// Gate holds the units of one application's service group.
type Gate struct {
	root string // "/" but in tests
	app  string
}

// NewGate makes the gate of an application; root is "/" but in tests.
func NewGate(root, app string) Gate { return Gate{root: root, app: app} }

// Slice is the systemd slice in which the group's units run.
func (g Gate) Slice() string { return "hotspare-" + escape(g.app) + ".slice" }

func (g Gate) live() string { return filepath.Join(g.root, liveDir, g.app) }

// Close writes drop-ins so that none of the units starts while the grant is not
// live, whatever the image enables, and removes the mark of a live grant.
func (g Gate) Close(names []string) error {
	if strings.ContainsAny(g.app, "/\n%") || g.app == "" || g.app[0] == '.' {
		return fmt.Errorf("application name %q cannot name a file", g.app)
	}
	if err := g.Revoke(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(g.root, liveDir), 0o755); err != nil {
		return err
	}
	for _, name := range names {
		if err := checkUnit(name); err != nil {
			return err
		}
		text := "# Written by hotspare-agent for application " + g.app + ".\n" +
			"[Unit]\nConditionPathExists=/" + liveDir + "/" + g.app + "\n"
		if strings.HasSuffix(name, ".service") {
			text += "[Service]\nSlice=" + g.Slice() + "\n"
		}
		if err := write(filepath.Join(g.root, unitDir, name+".d", dropInName), text); err != nil {
			return err
		}
	}
	return nil
}

// Open marks the grant as live: the units may start.
func (g Gate) Open() error { return os.WriteFile(g.live(), nil, 0o644) }

// Revoke takes the mark away. It does not stop what runs.
func (g Gate) Revoke() error {
	if err := os.Remove(g.live()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReserveNIC keeps the image's own network services from the NIC that carries
// the root: systemd-networkd and NetworkManager are told to leave it alone;
// ifupdown, which knows no exception, and the services that wait for one of them
// are not started.
func ReserveNIC(root string, mac net.HardwareAddr) error {
	files := map[string]string{
		filepath.Join(networkDir, "00-hotspare.network"): fmt.Sprintf("[Match]\nMACAddress=%s\n[Link]\nUnmanaged=yes\n", mac),
		filepath.Join(nmDir, "00-hotspare.conf"):         fmt.Sprintf("[keyfile]\nunmanaged-devices=mac:%s\n", mac),
	}
	for _, unit := range []string{
		"systemd-networkd-wait-online.service", "NetworkManager-wait-online.service", "ifupdown-wait-online.service",
		"networking.service", "ifup@.service",
	} {
		files[filepath.Join(unitDir, unit+".d", dropInName)] = "# The network is hotspare-agent's.\n[Unit]\nConditionPathExists=!/run/hotspare/agent\n"
	}
	for name, text := range files {
		if err := write(filepath.Join(root, name), text); err != nil {
			return err
		}
	}
	return nil
}

func write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

var unitSuffixes = []string{".service", ".socket", ".timer", ".path", ".target", ".mount", ".automount", ".slice", ".scope", ".swap"}

// checkUnit refuses names that systemd would not take, or that leave the folder.
func checkUnit(name string) error {
	if name == "" || name[0] == '.' || len(name) > 255 {
		return fmt.Errorf("unit name %q", name)
	}
	for _, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune(":-_.\\@", c):
		default:
			return fmt.Errorf("unit name %q holds %q", name, c)
		}
	}
	for _, suffix := range unitSuffixes {
		if strings.HasSuffix(name, suffix) {
			return nil
		}
	}
	return fmt.Errorf("unit name %q has no known suffix", name)
}

// escape writes a name as a part of a unit's name, as systemd-escape does; '-'
// would make levels of slices.
func escape(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == ':' || (c == '.' && i > 0) {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	return b.String()
}
