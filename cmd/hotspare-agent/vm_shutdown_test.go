package main_test

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"hotspare/haengine"
	"hotspare/haengine/agentlink"
)

// Somebody on the node types "systemctl poweroff" while the database runs. The
// root and the data lie on the network: both are closed in good order before the
// machine goes off, which takes the agent and its sessions to the very end.
func TestANodeShutsDownCleanlyWithItsRootOnTheNetwork(t *testing.T) {
	full(t)
	if !inNamespace(t) {
		return
	}
	a, d, m, _ := startOrders(t, func(c *agentlink.Claim) {
		a := &c.Application
		a.Resources = append(a.Resources, haengine.Resource{Name: "end", Kind: haengine.ResourceScript, After: []string{"witness"},
			Online: []string{"/usr/bin/systemd-run", "--on-active=10s", "--timer-property=AccuracySec=100ms", "/usr/bin/systemctl", "poweroff"}})
	})
	started := time.Now()
	m.awaitEnd(t, 4*time.Minute)
	t.Logf("off %.1f s after the order to go off was set", time.Since(started).Seconds()-10)
	a.note(func() {
		for _, r := range a.reports {
			if r.Dropped {
				t.Errorf("the service was dropped: %+v", r)
			}
		}
	})
	for _, volume := range []string{"root", "data"} {
		if _, err := d.exports.Revoke(t.Context(), volume, 8); err != nil { // lets go of it
			t.Fatal(err)
		}
		file := d.drain(t, volume)
		out, err := exec.Command("dumpe2fs", "-h", file).Output()
		if err != nil {
			t.Fatal(err)
		}
		head := string(out)
		if !strings.Contains(head, "Filesystem state:         clean") || strings.Contains(head, "needs_recovery") {
			t.Errorf("volume %s was not closed in good order:\n%s", volume, head)
		}
		if text, err := exec.Command("e2fsck", "-fn", file).CombinedOutput(); err != nil {
			t.Errorf("volume %s: %v\n%s", volume, err, text)
		}
	}
}
