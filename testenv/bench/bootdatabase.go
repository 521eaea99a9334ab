package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hotspare/testenv/debian"
	"hotspare/testenv/images"
	"hotspare/testenv/lab"
)

// The database of the demo: unmodified PostgreSQL under its image's own systemd.
const (
	databaseAddress = "10.77.0.50"
	databaseInit    = "bench: the image's init begins"
)

func databaseURL(address string) string {
	return "postgres://orders@" + address + ":5432/orders?sslmode=disable"
}

// ordersDocument is the database's application, as examples/orders.yaml has it,
// for as many moves as a bench makes.
func ordersDocument(ways string) string {
	return `kind: application
name: orders
image: orders
pools: [rack1]
priority: 100
address: ` + databaseAddress + `/24
requires: {memoryMiB: 400}
volumes:
  - {name: data, sizeMiB: 1024, format: ext4}
  - {name: witness, sizeMiB: 1}
resources:
  - {name: witness, kind: witness, volume: witness}
  - {name: data, kind: mount, volume: data, target: /srv/orders, owner: "postgres:postgres"}
  - {name: address, kind: address, after: [data]}
  - name: database
    kind: systemd
    after: [address]
    unit: postgresql@15-main.service
    masks: [postgresql.service]
    prepare: [/usr/local/sbin/orders-prepare]
monitors:
  - {name: sql, kind: postgres, from: [appliance, node], port: 5432, database: orders, user: monitor, query: "select 1", expect: "1", every: 1s, timeout: 2s, failures: 2}
  - {name: agent, kind: heartbeat, every: 1s, timeout: 4s}
policy:
  evidence: [power, storage+drop]
  lease: 15s
  dropBound: 3s
  margin: 2s
  maxFailovers: 1000
  retryAfter: 5s
  ways: [` + ways + `]
`
}

// databasePeer is a machine that starts the image from a local disk, with its data
// on another one: the same kernel, the same disk, the same init.
func databasePeer(ctx context.Context, dir string, img images.Image, kernel debian.Kernel) (lab.Direct, error) {
	data, err := databaseDisk(ctx, dir, img)
	if err != nil {
		return lab.Direct{}, err
	}
	initrd, err := peerInitramfs(ctx, filepath.Join(dir, "database.cpio"), kernel, `$b mount -t ext4 /dev/vdb /root/srv/orders
$b echo "`+databaseInit+`" > /dev/console
$b mount --move /dev /root/dev
$b umount /proc
exec $b switch_root /root /sbin/init
`)
	if err != nil {
		return lab.Direct{}, err
	}
	return lab.Direct{Name: "peer", MAC: peerMAC, Kernel: kernel.Image, Initrd: initrd, Disks: []lab.DirectDisk{{File: img.Disk}, {File: data}}, Cmdline: peerCmdline}, nil
}

// databaseDisk makes the database's volume with its cluster, as its image makes it
// on a volume that is new.
func databaseDisk(ctx context.Context, dir string, img images.Image) (string, error) {
	root, disk := filepath.Join(dir, "data"), filepath.Join(dir, "data.raw")
	cluster := filepath.Join(root, "15")
	if err := os.MkdirAll(cluster, 0o755); err != nil {
		return "", err
	}
	packed := filepath.Join(dir, "cluster.tar.gz")
	for _, args := range [][]string{
		{"debugfs", "-R", "dump /usr/share/orders/cluster.tar.gz " + packed, img.Disk},
		{"tar", "--extract", "--gzip", "--file=" + packed, "--directory=" + cluster, "--numeric-owner"},
		{"chown", "5432:5432", root, cluster},
		{"mke2fs", "-q", "-t", "ext4", "-d", root, disk, "1G"},
	} {
		if err := command(ctx, args[0], args[1:]...); err != nil {
			return "", err
		}
	}
	return disk, nil
}

// peerStart is how long a machine beside took.
type peerStart struct {
	whole time.Duration // from its power-on to the first answer
	init  time.Duration // from the image's init to the first answer; 0 where it does not tell
}

// startDirect starts a machine beside and asks it until it answers.
func (r *rack) startDirect(ctx context.Context, d lab.Direct, url, want string) (took peerStart, err error) {
	console := filepath.Join(r.lab.Dir(), d.Name, "serial.log")
	if err := os.Remove(console); err != nil && !errors.Is(err, os.ErrNotExist) {
		return took, err
	}
	m, err := r.lab.StartDirect(ctx, d)
	if err != nil {
		return took, err
	}
	defer func() { err = errors.Join(err, m.Stop(context.WithoutCancel(ctx))) }()
	a, err := startAsker(ctx, r.lab, url, want)
	if err != nil {
		return took, err
	}
	defer func() { _ = a.stop() }() // it has ended where all went well
	on, err := m.Power(ctx)
	if err != nil {
		return took, err
	}
	watch, end := context.WithCancel(ctx)
	defer end()
	begun := make(chan time.Time, 1)
	go func() { begun <- saysInit(watch, console) }()
	at, err := a.answered()
	end()
	if init := <-begun; !init.IsZero() {
		took.init = at.Sub(init)
	}
	took.whole = at.Sub(on)
	return took, err
}

// saysInit gives the moment at which a console told that the image's init begins.
func saysInit(ctx context.Context, console string) time.Time {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		b, err := os.ReadFile(console)
		if err == nil && strings.Contains(string(b), databaseInit) {
			return time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Time{}
		}
	}
}

// databaseFigures is the database's part of the group "ways".
func (w *ways) databaseFigures(ctx context.Context, orders images.Image, kernel debian.Kernel) ([]figure, error) {
	dir := filepath.Join(w.dir, "database")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	peer, err := databasePeer(ctx, dir, orders, kernel)
	if err != nil {
		return nil, err
	}
	if err := w.takeImage(ctx, "orders", orders.Disk); err != nil {
		return nil, err
	}
	s := subject{name: "orders", document: ordersDocument, url: databaseURL(databaseAddress)}
	own := &series{name: "order to PostgreSQL's first insert, standby-switch", unit: "s", peer: "qemu -kernel, local disk", better: "lower", goal: 0.8}
	// The first start makes the cluster on its volume, which stays.
	if _, err := w.start(ctx, s, "standby-switch"); err != nil {
		return nil, fmt.Errorf("PostgreSQL's first start: %w", err)
	}
	for i := range wayRounds(w.o) {
		beside, err := w.startDirect(ctx, peer, databaseURL(peerAddress), "")
		if err != nil {
			return nil, fmt.Errorf("the machine beside: %w", err)
		}
		took, err := w.start(ctx, s, "standby-switch")
		if err != nil {
			return nil, fmt.Errorf("PostgreSQL: %w", err)
		}
		if w.o.verbose {
			fmt.Printf("ways      round %d: PostgreSQL      %6.2f s from its order; beside %6.2f s, of it %.2f s from its init\n", i+1, took.order.Seconds(), beside.whole.Seconds(), beside.init.Seconds())
		}
		own.own, own.other = append(own.own, took.order.Seconds()), append(own.other, beside.whole.Seconds())
	}
	return []figure{own.figure()}, nil
}
