package lab

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"hotspare"
)

// TestMain lets the test binary be the lab's daemon as well: Up starts it so.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "lab-daemon" {
		ctx, stop := context.WithCancel(context.Background())
		go func() { // as the real command does with signals
			ch := make(chan os.Signal, 1)
			notifyTerm(ch)
			<-ch
			stop()
		}()
		if err := Serve(ctx, os.Args[2], slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			slog.Error("daemon", "err", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "leaderless" {
		leaveLeaderless(os.Args[2])
	}
	goleak.VerifyTestMain(m)
}

// leaveLeaderless ends the process's first thread and goes on in others, as a
// killed process does while one of its threads waits for the disk; then it makes
// the file.
func leaveLeaderless(file string) {
	go func() {
		for {
			b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(os.Getpid()), "stat"))
			if err == nil && strings.Contains(string(b), ") Z ") {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			slog.Error("leaderless", "err", err)
			os.Exit(1)
		}
		time.Sleep(time.Hour)
	}()
	for {
		go func() {
			runtime.LockOSThread() // those that are not the first stay where they are
			if unix.Gettid() == os.Getpid() {
				_, _, _ = unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
			}
			select {}
		}()
		time.Sleep(time.Millisecond)
	}
}

// up makes a lab of two machines that is gone after the test.
func up(t *testing.T, dir string) *Lab {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := Up(t.Context(), Options{Name: "t" + nameOf(t), Dir: dir, Nodes: Nodes(2), Accel: "tcg", Daemon: []string{self, "lab-daemon"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("daemon: %s", tail(filepath.Join(dir, "daemon.log"), 20))
		}
	})
	return l
}

// nameOf makes a short name that no other process's lab has.
func nameOf(t *testing.T) string {
	t.Helper()
	return strings.ToLower(filepath.Base(filepath.Dir(t.TempDir())))[max(0, len(filepath.Base(filepath.Dir(t.TempDir())))-8):]
}

// ipmi runs ipmitool against a node's BMC from inside the namespace.
func ipmi(t *testing.T, l *Lab, node NodeSpec, words ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	args := append([]string{"-I", "lanplus", "-C", "17", "-N", "1", "-R", "1", "-H", node.BMCAddr.String(), "-U", node.BMCUser, "-P", node.BMCPassword}, words...)
	out, err := Exec(ctx, l.Namespace(), "ipmitool", args...).CombinedOutput()
	return string(out), err
}

func power(t *testing.T, l *Lab, node string) NodeStatus {
	t.Helper()
	s, err := l.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Nodes {
		if n.Name == node {
			return n
		}
	}
	t.Fatalf("no node %s", node)
	return NodeStatus{}
}

// eventually is for what another process does in its own time.
func eventually(t *testing.T, what string, within time.Duration, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestLabFromUpToDown(t *testing.T) {
	l := up(t, t.TempDir())
	n1, n2 := l.Nodes()[0], l.Nodes()[1]

	// The BMC is a real one to ipmitool, and switches a real QEMU.
	if out, err := ipmi(t, l, n1, "chassis", "power", "status"); err != nil || !strings.Contains(out, "is off") {
		t.Fatalf("at first: %v: %s", err, out)
	}
	if out, err := ipmi(t, l, n1, "chassis", "bootdev", "pxe"); err != nil {
		t.Fatalf("bootdev: %v: %s", err, out)
	}
	if out, err := ipmi(t, l, n1, "chassis", "power", "on"); err != nil {
		t.Fatalf("power on: %v: %s", err, out)
	}
	eventually(t, "power on", 20*time.Second, func() bool { return power(t, l, "n1").Power == "on" })
	first := power(t, l, "n1")
	if first.PID == 0 || first.Boots != 1 {
		t.Fatalf("after power on: %+v", first)
	}
	// The command line is there a moment after the exec.
	eventually(t, "QEMU known by its command line", 10*time.Second, func() bool {
		return isQEMUOf(first.PID, "n1", filepath.Join(l.Dir(), "n1"))
	})
	if isQEMUOf(first.PID, "n2", filepath.Join(l.Dir(), "n2")) || isQEMUOf(os.Getpid(), "n1", filepath.Join(l.Dir(), "n1")) {
		t.Fatal("another process is taken for a QEMU of ours")
	}

	// Firmware comes to life and says so on the serial console.
	eventually(t, "firmware", 60*time.Second, func() bool {
		b, err := os.ReadFile(l.SerialLog("n1"))
		return err == nil && strings.Contains(string(b), "SeaBIOS")
	})

	// A cable and a processor can be stopped and healed while it runs.
	for _, kind := range []string{LinkCut, Freeze} {
		if err := l.Fail(t.Context(), "n1", kind, ""); err != nil {
			t.Fatal(err)
		}
	}
	if f := power(t, l, "n1").Faults; len(f) != 2 {
		t.Fatalf("faults: %v", f)
	}
	if err := l.Heal(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if f := power(t, l, "n1").Faults; len(f) != 0 {
		t.Fatalf("after heal: %v", f)
	}

	// A power cut is read as off by the BMC.
	if err := l.Fail(t.Context(), "n1", PowerCut, ""); err != nil {
		t.Fatal(err)
	}
	if describeErr(first.PID) == nil {
		t.Fatal("QEMU still runs after the power cut")
	}
	if out, err := ipmi(t, l, n1, "chassis", "power", "status"); err != nil || !strings.Contains(out, "is off") {
		t.Fatalf("after the cut: %v: %s", err, out)
	}

	// BMCs fail one by one.
	if err := l.Fail(t.Context(), "n2", BMCDead, ""); err != nil {
		t.Fatal(err)
	}
	if out, err := ipmi(t, l, n2, "chassis", "power", "status"); err == nil {
		t.Fatalf("a dead BMC answers: %s", out)
	}
	if _, err := ipmi(t, l, n1, "chassis", "power", "status"); err != nil {
		t.Fatal("the other BMC does not answer")
	}
	if err := l.Heal(t.Context(), "n2"); err != nil {
		t.Fatal(err)
	}
	if out, err := ipmi(t, l, n2, "chassis", "power", "status"); err != nil {
		t.Fatalf("after heal: %v: %s", err, out)
	}

	// Wrong requests say what is wrong.
	for _, c := range []struct {
		node, kind, unit string
		code             hotspare.Code
	}{{"n9", PowerCut, "", hotspare.CodeNotFound}, {"n1", "earthquake", "", hotspare.CodeInvalid}, {"n1", HangService, "", hotspare.CodeInvalid}} {
		if err := l.Fail(t.Context(), c.node, c.kind, c.unit); hotspare.CodeOf(err) != c.code {
			t.Errorf("fail %s %s: %v, want %s", c.node, c.kind, err, c.code)
		}
	}
}

func describeErr(pid int) error {
	_, err := describe(pid)
	return err
}

func TestSegmentJoinsApplianceAndClients(t *testing.T) {
	l := up(t, t.TempDir())
	var ln net.Listener
	err := InNamespace(l.Namespace(), func() (err error) {
		ln, err = net.Listen("tcp", "10.77.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = c.Write([]byte(c.RemoteAddr().String())) // the reader checks
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := Dialer(l.ClientNamespace())(ctx, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "10.77.0.2:") {
		t.Fatalf("the appliance saw %q, %v", buf[:n], err)
	}
	// Nothing leads out of it.
	if out, err := Exec(ctx, l.Namespace(), "ip", "route", "show", "default").CombinedOutput(); err != nil || len(out) != 0 {
		t.Fatalf("default route %q, %v", out, err)
	}
}

func TestUpHealsWhatAKilledDaemonLeft(t *testing.T) {
	dir := t.TempDir()
	l := up(t, dir)
	if err := l.PowerOn(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	left := power(t, l, "n1").PID
	daemon, err := FindProcess(dir, "daemon")
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if describeErr(left) != nil {
		t.Fatal("QEMU went with the daemon: this test would prove nothing")
	}
	if _, err := Open(t.Context(), dir, nil); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Fatalf("a lab without a daemon opens: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Up(t.Context(), Options{Name: l.spec.Name, Dir: dir, Nodes: Nodes(1), Accel: "tcg", Daemon: []string{self, "lab-daemon"}})
	if err != nil {
		t.Fatal(err)
	}
	if describeErr(left) == nil {
		t.Fatal("a QEMU of the killed daemon still runs")
	}
	if st := power(t, again, "n1"); st.Power != "off" || st.Boots != 0 {
		t.Fatalf("the new lab begins with %+v", st)
	}
	if err := again.Down(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []string{again.Namespace(), again.ClientNamespace()} {
		if _, err := os.Stat("/run/netns/" + ns); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("namespace %s is left: %v", ns, err)
		}
	}
	if err := Down(t.Context(), dir, l.spec.Name); err != nil {
		t.Fatalf("a second down: %v", err)
	}
}

func TestUpThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	name := "t" + nameOf(t)
	_, err := Up(t.Context(), Options{Name: name, Dir: dir, Nodes: Nodes(1), Accel: "tcg", Daemon: []string{"/bin/false"}})
	if err == nil || !strings.Contains(err.Error(), "at once") {
		t.Fatalf("up with a daemon that ends: %v", err)
	}
	if _, err := os.Stat("/run/netns/hs-" + name); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the namespace is left: %v", err)
	}
}

func TestForwardLeadsIntoTheNamespace(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	o := Options{Name: "t" + nameOf(t), Dir: dir, Nodes: Nodes(1), Accel: "tcg", Daemon: []string{self, "lab-daemon"}}
	o.Forwards = []Forward{{Listen: taken.Addr().String(), To: "127.0.0.1:8080"}}
	if _, err := Up(t.Context(), o); hotspare.CodeOf(err) != hotspare.CodePortTaken {
		t.Fatalf("a taken port: %v", err)
	}
	o.Forwards = []Forward{{Listen: "127.0.0.1:0", To: "127.0.0.1:8080"}}
	l, err := Up(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Down(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	var ln net.Listener
	if err := InNamespace(l.Namespace(), func() (err error) { ln, err = net.Listen("tcp", "127.0.0.1:8080"); return err }); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			_, _ = c.Write([]byte("inside")) // the reader checks
			c.Close()
		}
	}()
	conn, err := net.DialTimeout("tcp", l.Forwards()[0].Listen, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 16)
	if n, err := conn.Read(buf); string(buf[:n]) != "inside" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	twice := Nodes(2)
	twice[1].MAC = twice[0].MAC
	outside := Nodes(1)
	outside[0].BMCAddr = mustAddr("10.79.0.1")
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"no directory", Options{}, "directory"},
		{"long directory", Options{Dir: strings.Repeat("d", 81)}, "107 bytes"},
		{"name of a namespace", Options{Dir: "d", Name: "a/b"}, "name a/b"},
		{"accelerator", Options{Dir: "d", Accel: "warp"}, "auto, tcg or kvm"},
		{"one MAC twice", Options{Dir: "d", Nodes: twice}, "is that of n1 too"},
		{"BMC elsewhere", Options{Dir: "d", Nodes: outside}, "not in 10.78.0.0/24"},
	} {
		err := c.o.withDefaults().validate()
		if hotspare.CodeOf(err) != hotspare.CodeInvalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := (Options{Dir: "d"}).withDefaults().validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

func TestRequirementsNameWhatIsMissing(t *testing.T) {
	err := Requirements(Options{QEMU: "qemu-system-none", ROM: "/nowhere.rom"})
	if hotspare.CodeOf(err) != hotspare.CodeMissingTool || !strings.Contains(err.Error(), "ipxe-qemu") || !strings.Contains(err.Error(), "qemu-system-none") {
		t.Fatalf("got %v", err)
	}
	if err := Requirements(Options{}); err != nil {
		t.Fatalf("this machine: %v", err)
	}
}

func TestKVMIsBelievedOnlyWhenAKernelBoots(t *testing.T) {
	script := func(body string) string {
		f := filepath.Join(t.TempDir(), "qemu")
		if err := os.WriteFile(f, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
		return f
	}
	hangs, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := bootUnderKVM(hangs, script("echo 'Booting from ROM...'; exec sleep 60"), "k"); hotspare.CodeOf(err) != hotspare.CodeKVMHangs {
		t.Errorf("a guest that hangs: %v", err)
	}
	if err := bootUnderKVM(t.Context(), script("echo '[ 1.0] Kernel panic - not syncing: VFS: Unable to mount root fs'"), "k"); err != nil {
		t.Errorf("a kernel that boots: %v", err)
	}
	if err := bootUnderKVM(t.Context(), script("echo 'could not access KVM kernel module'; exit 1"), "k"); err == nil || !strings.Contains(err.Error(), "could not access") {
		t.Errorf("a QEMU that refuses: %v", err)
	}
}

func TestTeardownGoesBackwardsAndOn(t *testing.T) {
	var undo Teardown
	var order []string
	for _, name := range []string{"first", "second", "third"} {
		undo.Add(name, func(context.Context) error {
			order = append(order, name)
			if name == "second" {
				return errors.New("stuck")
			}
			return nil
		})
	}
	err := undo.Run(t.Context())
	if strings.Join(order, " ") != "third second first" {
		t.Errorf("order %v", order)
	}
	if err == nil || !strings.Contains(err.Error(), "tear down second: stuck") {
		t.Errorf("error %v", err)
	}
	if err := undo.Run(t.Context()); err != nil || len(order) != 3 {
		t.Errorf("a second run: %v, %v", err, order)
	}
}

func TestProcessIsKnownAgainAndNoOtherIsTakenForIt(t *testing.T) {
	dir := t.TempDir()
	p, err := StartProcess(t.Context(), ProcessOptions{Name: "sleeper", Dir: dir, Args: []string{"sleep", "100"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := StartProcess(t.Context(), ProcessOptions{Name: "sleeper", Dir: dir, Args: []string{"sleep", "100"}}); err == nil {
		t.Fatal("a second one of that name starts")
	}
	again, err := FindProcess(dir, "sleeper")
	if err != nil || !again.Alive() {
		t.Fatalf("found again: %+v, %v", again, err)
	}
	impostor := *again
	impostor.Start--
	if impostor.Alive() {
		t.Fatal("a pid with another start time is taken for the process")
	}
	if err := impostor.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !p.Alive() {
		t.Fatal("a signal to a process that is gone reached another one")
	}
	if err := again.Stop(t.Context(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Fatal("it still runs")
	}
	if _, err := FindProcess(dir, "sleeper"); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("its pid file is left: %v", err)
	}
	if err := p.Stop(t.Context(), time.Second); err != nil {
		t.Fatalf("a second stop: %v", err)
	}
}

// A killed process whose first thread is gone still holds its files and locks until
// the last one is: who starts the next one then finds the store in use.
func TestAProcessLivesUntilItsLastThreadHasEnded(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	leaderless := filepath.Join(dir, "leaderless")
	p, err := StartProcess(t.Context(), ProcessOptions{Name: "leaderless", Dir: dir, Args: []string{self, "leaderless", leaderless}})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(leaderless); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its first thread does not end: %s", tail(filepath.Join(dir, "leaderless.log"), 5))
		}
	}
	if !p.Alive() {
		t.Error("it is said to have ended while threads of it run")
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(p.PID), "task")); err == nil && len(left) > 1 {
		t.Errorf("killed and awaited, it has %d threads", len(left))
	}
}

func TestExecGivesTheExitStatus(t *testing.T) {
	l := up(t, t.TempDir())
	err := Exec(t.Context(), l.Namespace(), "sh", "-c", "exit 7").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Fatalf("got %v", err)
	}
	if err := Exec(t.Context(), "hs-nowhere", "true").Run(); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Fatalf("a namespace that does not exist: %v", err)
	}
}
