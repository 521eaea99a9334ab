package initiator

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/testenv/plaintarget"
)

// serveVariable makes the test's program a target: "dir listen secret".
const serveVariable = "HOTSPARE_TEST_SERVE"

func TestMain(m *testing.M) {
	if v := os.Getenv(serveVariable); v != "" {
		serve(strings.SplitN(v, " ", 3))
		return
	}
	goleak.VerifyTestMain(m)
}

// serve is the target's process. It ends by being killed.
func serve(args []string) {
	err := plaintarget.Run(context.Background(), plaintarget.Options{
		Dir: args[0], Listen: args[1], Out: os.Stdout,
		Volumes: map[string]int64{"one": diskSize, "two": diskSize},
		Chap:    plaintarget.Credentials{User: "node", Secret: hotspare.NewSecret(args[2])},
		Mutual:  plaintarget.Credentials{User: "appliance", Secret: targetSecret},
	})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// ownTarget is the product's own target over its own store, in a process that
// can be killed.
type ownTarget struct {
	t      *testing.T
	dir    string
	portal netip.AddrPort
	secret string
	cmd    *exec.Cmd
}

func newOwnTarget(t *testing.T) *ownTarget {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	o := &ownTarget{t: t, dir: t.TempDir(), portal: portal, secret: nodeSecret.Reveal()}
	t.Cleanup(o.kill)
	return o
}

func (o *ownTarget) start() {
	o.t.Helper()
	o.cmd = exec.Command(os.Args[0])
	o.cmd.Env = append(os.Environ(), serveVariable+"="+o.dir+" "+o.portal.String()+" "+o.secret)
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs strings.Builder
	o.cmd.Stderr = &errs
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := o.cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan(); {
		if s.Text() == "ready" {
			return
		}
	}
	_ = o.cmd.Wait()
	o.t.Fatalf("the target did not start: %s", errs.String())
}

func (o *ownTarget) kill() {
	if o.cmd == nil {
		return
	}
	_ = o.cmd.Process.Kill()
	_ = o.cmd.Wait()
	o.cmd = nil
}

func (o *ownTarget) signal(s syscall.Signal) {
	o.t.Helper()
	if err := o.cmd.Process.Signal(s); err != nil {
		o.t.Fatal(err)
	}
}

func (o *ownTarget) setSecret(s string) { o.secret = s }

func (o *ownTarget) login(name string) order {
	x := vmLogin(name, o.portal, "iqn.2026-11.io.hotspare:"+name, 0)
	x["tuser"], x["tsecret"] = "appliance", targetSecret.Reveal()
	return x
}

func (o *ownTarget) check(string, uint64, int) {}
