package initiators_test

import (
	"regexp"
	"strings"
	"testing"
)

// iscsidConf is what an operator sets for a root that must wait for its target:
// a long replacement timeout. Pings find a dead link within seconds.
const iscsidConf = `node.startup = manual
node.session.auth.authmethod = CHAP
node.session.auth.username = ` + chapUser + `
node.session.auth.password = ` + chapSecret + `
node.session.timeo.replacement_timeout = 600
node.conn[0].timeo.noop_out_interval = 2
node.conn[0].timeo.noop_out_timeout = 3
node.session.err_timeo.abort_timeout = 5
node.session.err_timeo.lu_reset_timeout = 5
node.session.initial_login_retry_max = 3
node.session.scan = auto
`

const mib = 1 << 20

// TestOpenISCSI takes Linux's initiator through the life of its volumes, in one
// machine: boots are what costs time.
func TestOpenISCSI(t *testing.T) {
	n := makeNetwork(t)
	g := startTarget(t, n.ns, 96*mib, []string{"data", "load", "paths"}, n.portal(0), n.portal(1))
	l := &linux{machine: bootMachine(t, n), n: n}
	for _, story := range []struct {
		name string
		run  func(t *testing.T, l *linux, g *target)
	}{
		{"discovery", discovery},
		{"authentication", authentication},
	} {
		if !t.Run(story.name, func(t *testing.T) {
			l.t, g.t = t, t
			story.run(t, l, g)
		}) {
			break // the others build on it
		}
	}
}

// linux is the machine as a user of iscsiadm sees it.
type linux struct {
	*machine
	n network
}

// node gives the arguments that name one target at one portal.
func (l *linux) node(volume string, portal int) string {
	return "-m node -T " + iqn(volume) + " -p " + l.n.portal(portal)
}

func (l *linux) set(volume string, portal int, name, value string) {
	l.t.Helper()
	l.sh("iscsiadm %s -o update -n %s -v %s", l.node(volume, portal), name, value)
}

var attached = regexp.MustCompile(`Attached scsi disk (\w+)\s+State: running`)

// login logs in and gives the name of the disk.
func (l *linux) login(volume string, portal int) string {
	l.t.Helper()
	l.sh("iscsiadm %s -l", l.node(volume, portal))
	return l.disk(volume, portal)
}

// disk gives the name of the disk of a session.
func (l *linux) disk(volume string, portal int) string {
	l.t.Helper()
	here := false
	out := l.sh("iscsiadm -m session -P 3")
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "Target: "):
			here = strings.HasPrefix(line, "Target: "+iqn(volume)+" ")
		case strings.HasPrefix(line, "Current Portal: ") && here:
			// A target's portals follow each other under its name.
			if here = strings.Contains(line, l.n.portal(portal)); !here {
				here = false
			}
		}
		if m := attached.FindStringSubmatch(line); m != nil && here {
			return m[1]
		}
	}
	l.t.Fatalf("no disk of %s at portal %d:\n%s", volume, portal, out)
	return ""
}

// discovery: both portals name the volumes.
func discovery(t *testing.T, l *linux, _ *target) {
	for i := range 2 {
		out := l.sh("iscsiadm -m discovery -t sendtargets -p %s", l.n.portal(i))
		for _, v := range []string{"data", "load", "paths"} {
			if !strings.Contains(out, l.n.portal(i)+",1 "+iqn(v)) {
				t.Errorf("portal %d does not name %s:\n%s", i, v, out)
			}
		}
	}
}

// authentication: CHAP, and mutual CHAP; a wrong secret of either side ends it.
func authentication(t *testing.T, l *linux, g *target) {
	l.set("data", 0, "node.session.auth.password", "not-the-secret-at-all")
	if out := l.fails("iscsiadm %s -l", l.node("data", 0)); !strings.Contains(out, "authorization failure") {
		t.Errorf("a wrong secret: %s", out)
	}
	l.set("data", 0, "node.session.auth.password", chapSecret)
	t.Log(l.login("data", 0))
	l.sh("iscsiadm %s -u", l.node("data", 0))
}
