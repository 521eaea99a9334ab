package initiators_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hotspare/testenv/plaintarget"
)

// The test binary is also the target, in a process that can be killed: with this
// variable set it serves as the options in it say.
const serveVariable = "HOTSPARE_TEST_TARGET"

const (
	chapUser, chapSecret     = "node", "secret-of-the-node"
	mutualUser, mutualSecret = "appliance", "secret-of-the-target"
)

func TestMain(m *testing.M) {
	text := os.Getenv(serveVariable)
	if text == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := serve(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(text string) error {
	var o plaintarget.Options
	err := json.Unmarshal([]byte(text), &o)
	if err != nil {
		return err
	}
	o.Out = os.Stdout
	if o.Chap, err = plaintarget.ParseCredentials(chapUser + ":" + chapSecret); err != nil {
		return err
	}
	if o.Mutual, err = plaintarget.ParseCredentials(mutualUser + ":" + mutualSecret); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	return plaintarget.Run(ctx, o)
}

// target is a target in a process of its own, in a network namespace if it has
// one.
type target struct {
	t         *testing.T
	namespace string
	opts      plaintarget.Options
	cmd       *exec.Cmd
	control   net.Conn
	answers   *bufio.Scanner
}

// startTarget runs a target with the volumes (name to size in bytes).
func startTarget(t *testing.T, namespace string, volumes map[string]int64, portals ...string) *target {
	t.Helper()
	dir := t.TempDir()
	g := &target{t: t, namespace: namespace, opts: plaintarget.Options{
		Dir: filepath.Join(dir, "store"), Socket: filepath.Join(dir, "sock"), Listen: portals[0], Portals: portals[1:], Volumes: volumes}}
	t.Cleanup(g.kill)
	g.run()
	return g
}

// run starts the process; again after kill, on the same ports.
func (g *target) run() {
	g.t.Helper()
	text, err := json.Marshal(g.opts)
	if err != nil {
		g.t.Fatal(err)
	}
	args := []string{os.Args[0]}
	if g.namespace != "" { // ip(8) becomes the program that it starts
		args = []string{"ip", "netns", "exec", g.namespace, os.Args[0]}
	}
	g.cmd = exec.Command(args[0], args[1:]...)
	g.cmd.Env = append(os.Environ(), serveVariable+"="+string(text))
	g.cmd.Stderr = os.Stderr
	g.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if sc.Text() == "ready" {
			return
		}
		var v plaintarget.Volume
		if err := json.Unmarshal(sc.Bytes(), &v); err != nil {
			g.t.Fatalf("%s: %v", sc.Text(), err)
		}
		g.opts.Listen = v.Portal
	}
	g.t.Fatal("the target ended before it was ready")
}

// kill ends the target as kill -9 does.
func (g *target) kill() {
	if g.control != nil {
		g.control.Close()
		g.control = nil
	}
	if g.cmd != nil {
		g.cmd.Process.Kill()
		g.cmd.Wait()
	}
}

// ask sends a command to the control socket and fills into with the answer.
func (g *target) ask(command string, into any) {
	g.t.Helper()
	if g.control == nil {
		c, err := net.Dial("unix", g.opts.Socket)
		if err != nil {
			g.t.Fatal(err)
		}
		g.control, g.answers = c, bufio.NewScanner(c)
	}
	if _, err := fmt.Fprintln(g.control, command); err != nil {
		g.t.Fatal(err)
	}
	if !g.answers.Scan() {
		g.t.Fatalf("%s: no answer: %v", command, g.answers.Err())
	}
	var ok struct{ OK bool }
	if err := json.Unmarshal(g.answers.Bytes(), &ok); err != nil || !ok.OK {
		g.t.Fatalf("%s: %s", command, g.answers.Text())
	}
	if into == nil {
		return
	}
	if err := json.Unmarshal(g.answers.Bytes(), into); err != nil {
		g.t.Fatalf("%s: %v", command, err)
	}
}

func iqn(volume string) string { return "iqn.2026-11.io.hotspare:" + volume }
