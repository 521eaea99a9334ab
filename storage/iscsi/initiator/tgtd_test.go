package initiator

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tgt is Debian's userspace target, the foreign end of these tests. It loses
// its configuration when it dies and gets it again at the next start.
type tgt struct {
	t       *testing.T
	portal  netip.AddrPort
	control string
	cmd     *exec.Cmd
	exited  chan struct{}
	targets []tgtTarget
}

// tgtTarget is one target with the disk as logical unit 1 (0 is tgt's own).
type tgtTarget struct {
	iqn, disk      string
	user, secret   string
	tuser, tsecret string // mutual CHAP
	digests        bool   // prefer CRC32C
}

// newTGT reserves a port of the loopback and a control socket.
func newTGT(t *testing.T) *tgt {
	t.Helper()
	for _, p := range []string{"tgtd", "tgtadm"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%s is missing: install the package tgt", p)
		}
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	g := &tgt{t: t, portal: portal, control: fmt.Sprint(portal.Port() & 0x7fff)} // at most 32767
	t.Cleanup(g.kill)
	return g
}

// add declares a target over a fresh sparse file of size bytes.
func (g *tgt) add(x tgtTarget, size int64) tgtTarget {
	g.t.Helper()
	x.disk = filepath.Join(g.t.TempDir(), "disk")
	if err := os.WriteFile(x.disk, nil, 0o600); err != nil {
		g.t.Fatal(err)
	}
	if err := os.Truncate(x.disk, size); err != nil {
		g.t.Fatal(err)
	}
	g.targets = append(g.targets, x)
	return x
}

// start runs tgtd and configures it.
func (g *tgt) start() {
	g.t.Helper()
	g.cmd = exec.Command("tgtd", "-f", "-C", g.control, "--iscsi", "portal="+g.portal.String())
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	g.exited = make(chan struct{})
	var out strings.Builder
	g.cmd.Stdout, g.cmd.Stderr = &out, &out
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	go func(c *exec.Cmd, exited chan struct{}) { _ = c.Wait(); close(exited) }(g.cmd, g.exited)
	g.adm(15*time.Second, "--op", "show", "--mode", "sys") // until it answers
	for n, x := range g.targets {
		tid := fmt.Sprint(n + 1)
		g.adm(0, "--op", "new", "--mode", "target", "--tid", tid, "-T", x.iqn)
		g.adm(0, "--op", "new", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "-b", x.disk)
		for _, key := range []string{"HeaderDigest", "DataDigest"} {
			if x.digests {
				g.adm(0, "--op", "update", "--mode", "target", "--tid", tid, "--name", key, "--value", "CRC32C")
			}
		}
		g.account(tid, x.user, x.secret)
		g.account(tid, x.tuser, x.tsecret, "--outgoing")
		g.adm(0, "--op", "bind", "--mode", "target", "--tid", tid, "-I", "ALL")
	}
}

func (g *tgt) account(tid, user, secret string, more ...string) {
	g.t.Helper()
	if user == "" {
		return
	}
	g.adm(0, "--op", "new", "--mode", "account", "--user", user, "--password", secret)
	g.adm(0, append([]string{"--op", "bind", "--mode", "account", "--tid", tid, "--user", user}, more...)...)
}

// adm runs tgtadm; with a time, it repeats until it succeeds.
func (g *tgt) adm(within time.Duration, args ...string) string {
	g.t.Helper()
	deadline := time.Now().Add(within)
	for {
		out, err := exec.Command("tgtadm", append([]string{"-C", g.control, "--lld", "iscsi"}, args...)...).CombinedOutput()
		if err == nil {
			return string(out)
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("tgtadm %v: %v\n%s", args, err, out)
		}
		select {
		case <-g.exited:
			g.t.Fatalf("tgtd ended: %v", g.cmd.Stderr)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// kill ends tgtd as a power failure would.
func (g *tgt) kill() {
	if g.cmd == nil {
		return
	}
	_ = g.cmd.Process.Kill()
	<-g.exited
	g.cmd = nil
}

// signal stops (SIGSTOP) or continues (SIGCONT) tgtd.
func (g *tgt) signal(s syscall.Signal) {
	g.t.Helper()
	if err := g.cmd.Process.Signal(s); err != nil {
		g.t.Fatal(err)
	}
}

func (g *tgt) setSecret(s string) { g.targets[0].secret = s }

// login is the order to the guest; disk "one" is the first target.
func (g *tgt) login(name string) order {
	x := g.targets[0]
	if name == "two" {
		x = g.targets[1]
	}
	o := vmLogin(name, g.portal, x.iqn, 1)
	o["user"] = x.user
	return o
}

func (g *tgt) check(name string, seed uint64, blocks int) {
	g.t.Helper()
	x := g.targets[0]
	if name == "two" {
		x = g.targets[1]
	}
	checkDisk(g.t, x.disk, seed, blocks)
}
