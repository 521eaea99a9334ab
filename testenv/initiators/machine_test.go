package initiators_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/testenv/debian"
)

// patience is how long anything may take on a machine that has much else to do.
const patience = 4 * time.Minute

// guestModules are what the machine loads; what they depend on is found.
var guestModules = []string{"virtio_pci", "virtio_net", "sd_mod", "iscsi_tcp", "crc32c_generic", "ext4", "dm_multipath", "dm_round_robin"}

// network is a namespace with two cables to the machine: two segments, on each
// the target has a portal.
type network struct {
	t  *testing.T
	ns string
}

func (n network) tap(i int) string    { return fmt.Sprint("cable", i) }
func (n network) portal(i int) string { return fmt.Sprintf("10.79.%d.1:3260", i) }

const namespacePrefix = "hs-initiators-"

// makeNetwork makes the namespace, and removes those of runs that were killed.
func makeNetwork(t *testing.T) network {
	t.Helper()
	left, err := filepath.Glob("/run/netns/" + namespacePrefix + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range left {
		name := filepath.Base(file)
		if _, err := os.Stat("/proc/" + strings.TrimPrefix(name, namespacePrefix)); os.IsNotExist(err) {
			ip(t, "netns del "+name)
		}
	}
	n := network{t, fmt.Sprint(namespacePrefix, os.Getpid())}
	ip(t, "netns add "+n.ns)
	t.Cleanup(func() { ip(t, "netns del "+n.ns) })
	for i := range 2 {
		n.ip("tuntap add dev %s mode tap", n.tap(i))
		n.ip("addr add 10.79.%d.1/24 dev %s", i, n.tap(i))
		n.ip("link set %s up", n.tap(i))
	}
	return n
}

func (n network) ip(format string, a ...any) {
	n.t.Helper()
	ip(n.t, "-netns "+n.ns+" "+fmt.Sprintf(format, a...))
}

// cut and mend take a cable out and put it back: packets vanish without a word.
func (n network) cut(i int)  { n.t.Helper(); n.ip("link set %s down", n.tap(i)) }
func (n network) mend(i int) { n.t.Helper(); n.ip("link set %s up", n.tap(i)) }

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s (this test needs root and iproute2)", args, err, out)
	}
}

// machine is a running virtual machine with open-iscsi.
type machine struct {
	t  *testing.T
	in io.Writer

	mu     sync.Mutex
	next   int
	orders map[string]chan guestLine
	ready  chan struct{}
	dead   chan struct{} // closed when it says no more
}

// guestLine is a line from the guest: see guest.
type guestLine struct {
	ID, Text string
	Done     bool
	Exit     int
}

// bootMachine starts the machine and waits until it obeys.
func bootMachine(t *testing.T, n network) *machine {
	t.Helper()
	kernel, initramfs := guestFiles(t)
	console := filepath.Join(t.TempDir(), "console.log")
	args := []string{"netns", "exec", n.ns, "qemu-system-x86_64",
		"-accel", "tcg,thread=multi,tb-size=128", "-cpu", "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt", "-m", "384", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-kernel", kernel, "-initrd", initramfs,
		"-append", "console=ttyS0 loglevel=5 panic=-1 tsc=unstable", "-serial", "file:" + console, "-serial", "stdio"}
	for i := range 2 {
		args = append(args, "-netdev", fmt.Sprintf("tap,id=n%d,ifname=%s,script=no,downscript=no", i, n.tap(i)),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,romfile=,mac=52:54:00:79:00:0%d", i, i))
	}
	q := exec.Command("ip", args...)
	q.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	in, err := q.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := q.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	q.Stderr = &stderr
	if err := q.Start(); err != nil {
		t.Fatalf("QEMU does not start (package qemu-system-x86): %v", err)
	}
	m := &machine{t: t, in: in, orders: map[string]chan guestLine{}, ready: make(chan struct{}, 8), dead: make(chan struct{})}
	go m.read(out)
	t.Cleanup(func() {
		q.Process.Kill()
		<-m.dead
		q.Wait()
		if t.Failed() || os.Getenv("HOTSPARE_TEST_CONSOLE") != "" {
			log, _ := os.ReadFile(console)
			t.Logf("QEMU: %s\nconsole of the guest:\n%s", stderr.String(), log)
		}
	})
	m.booted()
	return m
}

// read hands the guest's lines to the orders that they belong to.
func (m *machine) read(r io.Reader) {
	defer close(m.dead)
	for s := bufio.NewScanner(r); s.Scan(); {
		var l guestLine
		if json.Unmarshal(bytes.TrimSpace(s.Bytes()), &l) != nil {
			continue
		}
		if l.ID == "ready" {
			m.ready <- struct{}{}
			continue
		}
		m.mu.Lock()
		c := m.orders[l.ID]
		m.mu.Unlock()
		if c != nil {
			c <- l
		}
	}
}

// booted waits until the machine obeys and sets it up: addresses, iscsid.
func (m *machine) booted() {
	m.t.Helper()
	select {
	case <-m.ready:
	case <-m.dead:
		m.t.Fatal("the machine ended while it booted")
	case <-time.After(patience):
		m.t.Fatal("the machine does not boot")
	}
	m.sh(`ip link set lo up
for i in 0 1; do ip addr add 10.79.$i.2/24 dev eth$i; ip link set eth$i up; done
mkdir -p /run/lock /run/lock/iscsi /mnt /var/lib/iscsi
iscsid`)
}

// order is a command that runs.
type order struct {
	m     *machine
	what  string
	id    string
	lines chan guestLine
	out   strings.Builder
}

// start makes the guest's shell run a command.
func (m *machine) start(sh string) *order {
	m.t.Helper()
	m.mu.Lock()
	m.next++
	o := &order{m: m, what: sh, id: fmt.Sprint(m.next), lines: make(chan guestLine, 4096)}
	m.orders[o.id] = o.lines
	m.mu.Unlock()
	b, err := json.Marshal(map[string]string{"id": o.id, "sh": sh})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.in.Write(append(b, '\n')); err != nil {
		m.t.Fatalf("the guest takes no orders: %v", err)
	}
	return o
}

// line waits for the next line and says whether there is one: the command may
// have ended, and then exit is its status.
func (o *order) line() (text string, exit int, more bool) {
	o.m.t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case l := <-o.lines:
		if l.Done {
			return "", l.Exit, false
		}
		o.out.WriteString(l.Text + "\n")
		return l.Text, 0, true
	case <-o.m.dead:
		o.m.t.Fatalf("the machine ended during: %s\n%s", o.what, o.out.String())
	case <-late.C:
		o.m.t.Fatalf("no word for %s during: %s\n%s", patience, o.what, o.out.String())
	}
	return "", 0, false
}

// end waits for the end and gives output and status.
func (o *order) end() (string, int) {
	o.m.t.Helper()
	for {
		if _, exit, more := o.line(); !more {
			o.m.mu.Lock()
			delete(o.m.orders, o.id)
			o.m.mu.Unlock()
			return o.out.String(), exit
		}
	}
}

// must waits for a good end and gives the output.
func (o *order) must() string {
	o.m.t.Helper()
	out, exit := o.end()
	if exit != 0 {
		o.m.t.Fatalf("%s: exit status %d:\n%s", o.what, exit, out)
	}
	return out
}

// sh runs a command that has to work.
func (m *machine) sh(format string, a ...any) string {
	m.t.Helper()
	return m.start(fmt.Sprintf(format, a...)).must()
}

// fails runs a command that has to fail.
func (m *machine) fails(format string, a ...any) string {
	m.t.Helper()
	o := m.start(fmt.Sprintf(format, a...))
	out, exit := o.end()
	if exit == 0 {
		m.t.Fatalf("%s: it works:\n%s", o.what, out)
	}
	return out
}

// guestFiles gives kernel and initramfs: Debian's kernel, open-iscsi and the
// tools of file systems from the host's packages, and the guest's program.
func guestFiles(t *testing.T) (kernel, initramfs string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	k, err := debian.FetchKernel(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "guest")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the guest's program: %v\n%s", err, out)
	}
	var a debian.Initramfs
	for name, from := range map[string]string{"/init": program, "/bin/busybox": "/bin/busybox", "/etc/mke2fs.conf": "/etc/mke2fs.conf"} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		a.File(name, 0o755, b)
	}
	a.Symlink("/bin/sh", "busybox")
	a.Symlink("/bin/guest", "/init")
	for _, p := range []string{"iscsid", "iscsiadm", "mke2fs", "e2fsck", "resize2fs", "dmsetup", "sg_persist"} {
		if err := a.Program(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Modules(ctx, k, guestModules...); err != nil {
		t.Fatal(err)
	}
	a.File("/etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\n"))
	a.File("/etc/group", 0o644, []byte("root:x:0:\n"))
	a.File("/etc/iscsi/initiatorname.iscsi", 0o600, []byte("InitiatorName=iqn.1993-08.org.debian:01:initiators\n"))
	a.File("/etc/iscsi/iscsid.conf", 0o600, []byte(iscsidConf))
	initramfs = filepath.Join(dir, "initramfs")
	if err := os.WriteFile(initramfs, a.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return k.Image, initramfs
}
