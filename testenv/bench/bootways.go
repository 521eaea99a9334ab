package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hotspare/testenv/debian"
	"hotspare/testenv/images"
	"hotspare/testenv/lab"
	"hotspare/ui/api"
)

// The small service: one process, no init.
const (
	tinyAddress = "10.77.0.51"
	tinyAnswer  = "it is the small service"
	peerAddress = "10.77.0.61" // of the machine beside it: nobody's ARP cache knows of both
	peerMAC     = "52:54:00:77:00:61"
)

// wayGoals are the ways in the order of a round, with the goal of the ratio of
// their times to the peer's.
func wayGoals() []wayGoal {
	return []wayGoal{{"standby-switch", 0.25}, {"standby-kexec", 1.3}, {"cold-iscsi", 1.6}}
}

type wayGoal struct {
	way  string
	goal float64
}

// ways is the group's world.
type ways struct {
	*rack
	o    options
	peer lab.Direct
}

// waysFigures measures how long a node takes from its order to the first right
// answer of a small HTTP service, by each way, through the real appliance, beside
// the same kernel and disk started by qemu -kernel.
func waysFigures(ctx context.Context, o options) (_ []figure, err error) {
	orders, err := ordersImage(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.work, "tiny")
	kernel, disk, err := tinyImage(ctx, dir, orders)
	if err != nil {
		return nil, err
	}
	initrd, err := peerInitramfs(ctx, filepath.Join(dir, "peer.cpio"), kernel, tinyPeer)
	if err != nil {
		return nil, err
	}
	r, err := startRack(ctx, o, "ways", lab.Options{Nodes: lab.Nodes(1), Kernel: orders.Kernel})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.down()) }()
	w := &ways{rack: r, o: o, peer: lab.Direct{Name: "peer", MAC: peerMAC, Kernel: kernel.Image, Initrd: initrd, Disks: []lab.DirectDisk{{File: disk}}, Cmdline: peerCmdline}}
	if err := w.takeImage(ctx, "tiny", disk); err != nil {
		return nil, err
	}
	if err := w.apply(ctx, "kind: pool\nname: rack1\n---\n"+nodeDocument(w.lab.Nodes()[0])); err != nil {
		return nil, err
	}
	figures, err := w.measure(ctx)
	if err != nil || !o.pattern.MatchString("database") {
		return figures, err
	}
	database, err := w.databaseFigures(ctx, orders, kernel)
	return append(figures, database...), err
}

// subject is an application that is started again and again.
type subject struct {
	name      string
	document  func(ways string) string
	url, want string // that answers when it is there
}

// measure runs the rounds; each has every way and the peer once.
func (w *ways) measure(ctx context.Context) ([]figure, error) {
	tiny := subject{name: "tiny", document: tinyDocument, url: "http://" + tinyAddress + "/", want: tinyAnswer}
	all := map[string]*series{}
	whole := map[string]*series{}
	goals := slices.DeleteFunc(wayGoals(), func(g wayGoal) bool { return !w.o.pattern.MatchString(g.way) })
	if len(goals) == 0 {
		return nil, nil
	}
	for _, g := range goals {
		all[g.way] = &series{name: "order to the first answer, " + g.way, unit: "s", peer: "qemu -kernel, local disk", better: "lower", goal: g.goal}
		whole[g.way] = &series{name: "the same from the operator's word on", unit: "s", peer: "qemu -kernel, local disk"}
	}
	for i := range wayRounds(w.o) {
		peer, err := w.startDirect(ctx, w.peer, "http://"+peerAddress+"/", tinyAnswer)
		if err != nil {
			return nil, fmt.Errorf("the machine beside: %w", err)
		}
		for _, g := range goals {
			took, err := w.start(ctx, tiny, g.way)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", g.way, err)
			}
			if w.o.verbose {
				fmt.Printf("ways      round %d: %-15s %6.2f s from its order, %6.2f s from the word; beside %6.2f s\n", i+1, g.way, took.order.Seconds(), took.word.Seconds(), peer.whole.Seconds())
			}
			for _, s := range []struct {
				*series
				took time.Duration
			}{{all[g.way], took.order}, {whole[g.way], took.word}} {
				s.own, s.other = append(s.own, s.took.Seconds()), append(s.other, peer.whole.Seconds())
			}
		}
	}
	var out []figure
	for _, g := range goals {
		out = append(out, all[g.way].figure(), whole[g.way].figure())
	}
	return out, nil
}

// wayRounds is how often each way is measured.
func wayRounds(o options) int {
	if o.quick {
		return 1
	}
	return o.runs
}

// wayTook is one start.
type wayTook struct {
	order time.Duration // from the journalled claim or boot order
	word  time.Duration // from the command that let it start
}

// start lets the node become the application in one way, and gives the node back.
func (w *ways) start(ctx context.Context, x subject, way string) (wayTook, error) {
	node := w.lab.Nodes()[0].Name
	parks := strings.HasPrefix(way, "standby-")
	pool := "kind: pool\nname: rack1\n"
	if parks {
		pool += "standby: {nodes: 1}\n"
	}
	// Frozen, it is known and is not started: a node is parked for it, with all
	// that it may need in its memory.
	if _, err := w.site.Hotspare(ctx, "app", "freeze", x.name); err != nil {
		return wayTook{}, err
	}
	if err := w.apply(ctx, pool+"---\n"+x.document(way)); err != nil {
		return wayTook{}, err
	}
	ready := w.off
	if parks {
		ready = w.parked
	}
	if err := ready(ctx, node); err != nil {
		return wayTook{}, err
	}
	a, err := startAsker(ctx, w.lab, x.url, x.want)
	if err != nil {
		return wayTook{}, err
	}
	defer func() { _ = a.stop() }() // it has ended where all went well
	let := time.Now()
	if _, err := w.site.Hotspare(ctx, "app", "unfreeze", x.name); err != nil {
		return wayTook{}, err
	}
	at, err := a.answered()
	if err != nil {
		return wayTook{}, err
	}
	record, err := w.started(ctx, x.name)
	if err != nil {
		return wayTook{}, err
	}
	if w.o.verbose {
		printSteps(record, at)
	}
	ordered, err := orderedAt(record, way)
	if err != nil {
		return wayTook{}, err
	}
	return wayTook{order: at.Sub(ordered), word: at.Sub(let)}, w.gone(ctx, x.name)
}

// orderedAt gives the moment at which the order was journalled that made the node
// start: the claim of a node that is parked on the right kernel, else the boot.
func orderedAt(f api.Failover, way string) (time.Time, error) {
	if f.Way != way {
		return time.Time{}, fmt.Errorf("it was started by %s", f.Way)
	}
	order := "boot"
	if way == "standby-switch" {
		order = "claim"
	}
	for _, s := range f.Steps {
		if s.Name == order && strings.HasPrefix(s.Text, "ordered") {
			return s.At, nil
		}
	}
	return time.Time{}, fmt.Errorf("the record of %s says of no %s: %+v", f.ID, order, f.Steps)
}

func printSteps(f api.Failover, answer time.Time) {
	for _, s := range f.Steps {
		fmt.Printf("          %s %+7.3f s  %-14s %s\n", s.At.Format("05.000"), s.After, s.Name, s.Text)
	}
	fmt.Printf("          %s %+7.3f s  the first answer\n", answer.Format("05.000"), answer.Sub(f.StartedAt).Seconds())
}

// tinyDocument is the service's application.
func tinyDocument(way string) string {
	return `kind: application
name: tiny
image: tiny
pools: [rack1]
priority: 50
address: ` + tinyAddress + `/24
requires: {memoryMiB: 256}
resources:
  - {name: address, kind: address}
  - {name: server, kind: process, command: [/bin/busybox, httpd, -f, -p, "80", -h, /www]}
monitors:
  - {name: page, kind: http, from: [appliance], url: /, expect: small service, every: 1s, timeout: 2s, failures: 2}
  - {name: agent, kind: heartbeat, every: 1s, timeout: 4s}
policy:
  evidence: [power, storage+drop]
  lease: 15s
  dropBound: 3s
  margin: 2s
  maxFailovers: 1000
  ways: [` + way + `]
`
}

// tinyImage makes the service's disk: Debian's kernel with its modules, one
// program, one page.
func tinyImage(ctx context.Context, dir string, from images.Image) (debian.Kernel, string, error) {
	root := filepath.Join(dir, "root")
	kernel, err := kernelOf(ctx, from, root)
	if err != nil {
		return kernel, "", err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return kernel, "", fmt.Errorf("%w (Debian package busybox-static)", err)
	}
	for _, d := range []string{"bin", "www", "dev", "proc", "sys", "run", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return kernel, "", err
		}
	}
	for file, text := range map[string][]byte{
		"bin/busybox": busybox, "www/index.html": []byte(tinyAnswer + "\n"), "etc/os-release": []byte("ID=tiny\nPRETTY_NAME=\"a small service\"\n"),
	} {
		if err := os.WriteFile(filepath.Join(root, file), text, 0o755); err != nil {
			return kernel, "", err
		}
	}
	disk := filepath.Join(dir, "tiny.raw")
	return kernel, disk, command(ctx, "mke2fs", "-q", "-t", "ext4", "-d", root, disk, "512M")
}

// peerCmdline is the kernel's as the appliance gives it to nodes of a lab.
const peerCmdline = "panic=10 quiet loglevel=4 console=ttyS0,115200 mitigations=off net.ifnames=0"

// peerInit is the shortest way from a kernel to a root on a local disk: modules,
// address, root. What is started there follows.
const peerInit = `#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs none /dev
$b mount -t proc none /proc
while read m; do $b insmod $m; done < ` + debian.ModuleList + `
$b ip link set lo up
$b ip link set eth0 up
$b ip addr add ` + peerAddress + `/24 dev eth0
while ! [ -b /dev/vda ]; do $b usleep 1000; done
$b mount -t ext4 /dev/vda /root
`

// tinyPeer makes the service the first process.
const tinyPeer = `$b mount --move /dev /root/dev
$b umount /proc
exec $b switch_root /root /bin/busybox httpd -f -p 80 -h /www
`

// peerInitramfs holds the peer's init and no module that it does not need.
func peerInitramfs(ctx context.Context, out string, k debian.Kernel, then string) (string, error) {
	var a debian.Initramfs
	if err := a.Modules(ctx, k, "virtio_pci", "virtio_net", "virtio_blk", "crc32c_generic", "ext4"); err != nil {
		return "", err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", fmt.Errorf("%w (Debian package busybox-static)", err)
	}
	a.File("/bin/busybox", 0o755, busybox)
	a.File("/init", 0o755, []byte(peerInit+then))
	for _, d := range []string{"/dev", "/proc", "/root"} {
		a.Dir(d)
	}
	return out, os.WriteFile(out, a.Bytes(), 0o644)
}
