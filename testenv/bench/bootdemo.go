package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"hotspare/testenv/images"
	"hotspare/testenv/lab"
	"hotspare/testenv/lab/load"
	"hotspare/testenv/lab/site"
	"hotspare/ui/api"
)

// demoPOST is the time of a server's firmware in the runs that have one.
const demoPOST = 90 * time.Second

// afterCut is how long after the cut an insert must have been sent to count as one
// of the other node.
const afterCut = 300 * time.Millisecond

// demo is the group's world: two nodes, one of them with the database.
type demo struct {
	*rack
	o      options
	client *load.Client
}

// demoFigures cuts the power of the node that runs PostgreSQL, again and again, and
// measures the time to the first insert that is acknowledged by the other node. Of
// it hotspare's own share is what is left without the detection of the failure and
// without what the image's own programs need from their init to the first insert on
// a local disk, which is measured in the same run.
func demoFigures(ctx context.Context, o options) (_ []figure, err error) {
	orders, err := ordersImage(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.work, "orders")
	kernel, err := kernelOf(ctx, orders, filepath.Join(dir, "root"))
	if err != nil {
		return nil, err
	}
	beside, err := databasePeer(ctx, dir, orders, kernel)
	if err != nil {
		return nil, err
	}
	var figures []figure
	if o.pattern.MatchString("standby") {
		if figures, err = demoStandby(ctx, o, orders, beside); err != nil {
			return figures, err
		}
	}
	if o.quick || !o.pattern.MatchString("post") {
		return figures, nil
	}
	post, err := demoWithPOST(ctx, o, orders)
	return append(figures, post...), err
}

// demoStandby is the demo from standby, with machines that have no firmware to
// speak of.
func demoStandby(ctx context.Context, o options, orders images.Image, beside lab.Direct) (_ []figure, err error) {
	d, err := startDemo(ctx, o, "demo", orders, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.down()) }()
	if err := d.soil(ctx, beside); err != nil {
		return nil, fmt.Errorf("the machine beside: %w", err)
	}
	outage := figure{Name: "power cut to the first insert, standby-switch", Unit: "s"}
	share := figure{Name: "of it hotspare's own share", Unit: "s", Goal: 1.5, Better: "lower"}
	detect := figure{Name: "of it the detection", Unit: "s"}
	own := figure{Name: "of it the image's programs, as on a local disk", Unit: "s"}
	var outages, shares, detects, owns []float64
	for i := range wayRounds(o) {
		b, err := d.recovered(ctx, beside)
		if err != nil {
			return nil, fmt.Errorf("the machine beside: %w", err)
		}
		took, err := d.cut(ctx, "standby-switch")
		if err != nil {
			return nil, err
		}
		mine := took.outage - took.detect - b
		if o.verbose {
			fmt.Printf("demo      round %d: outage %6.2f s, detection %5.2f s, the image's programs %5.2f s, hotspare %5.2f s\n", i+1, took.outage.Seconds(), took.detect.Seconds(), b.Seconds(), mine.Seconds())
		}
		outages, shares = append(outages, took.outage.Seconds()), append(shares, mine.Seconds())
		detects, owns = append(detects, took.detect.Seconds()), append(owns, b.Seconds())
	}
	outage.Value, share.Value, detect.Value, own.Value = median(outages), median(shares), median(detects), median(owns)
	return []figure{outage, share, detect, own}, nil
}

// soilTime is how long a client inserts before the power of the machine beside is
// cut: what its database has to recover then is what the demo's has.
const soilTime = 20 * time.Second

// soil leaves the disk of the machine beside as a cut of power does.
func (d *demo) soil(ctx context.Context, beside lab.Direct) (err error) {
	beside.Disks = slices.Clone(beside.Disks)
	beside.Disks[len(beside.Disks)-1].Keep = true
	m, err := d.lab.StartDirect(ctx, beside)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop(context.WithoutCancel(ctx))) }()
	if _, err := m.Power(ctx); err != nil {
		return err
	}
	client := d.inserts(ctx, peerAddress, "soil")
	defer client.Stop()
	wait, cancel := context.WithTimeout(ctx, rackPatience)
	defer cancel()
	first, err := client.AckAfter(wait, time.Now())
	if err != nil {
		return err
	}
	_, err = client.AckAfter(wait, first.At.Add(soilTime))
	return err
}

// inserts is the client of the demo.
func (d *demo) inserts(ctx context.Context, address, name string) *load.Client {
	return load.Start(ctx, load.Options{Address: address + ":5432", Dial: lab.Dialer(d.lab.ClientNamespace()), Name: name})
}

// recovered starts the machine beside after its power was cut, with the same client
// that the demo has, and gives the time from the image's init to the first insert
// that is acknowledged.
func (d *demo) recovered(ctx context.Context, beside lab.Direct) (took time.Duration, err error) {
	console := filepath.Join(d.lab.Dir(), beside.Name, "serial.log")
	if err := os.Remove(console); err != nil && !errors.Is(err, os.ErrNotExist) {
		return 0, err
	}
	m, err := d.lab.StartDirect(ctx, beside)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Stop(context.WithoutCancel(ctx))) }()
	client := d.inserts(ctx, peerAddress, fmt.Sprintf("beside-%d", time.Now().UnixNano()))
	defer client.Stop()
	wait, cancel := context.WithTimeout(ctx, rackPatience)
	defer cancel()
	if _, err := m.Power(wait); err != nil {
		return 0, err
	}
	init := saysInit(wait, console)
	first, err := client.AckAfter(wait, init)
	if err != nil {
		return 0, err
	}
	if init.IsZero() {
		return 0, errors.New("it did not tell when its init began")
	}
	return first.At.Sub(init), nil
}

// demoWithPOST is the demo with a firmware that takes its time, once from standby
// and once from off.
func demoWithPOST(ctx context.Context, o options, orders images.Image) (_ []figure, err error) {
	d, err := startDemo(ctx, o, "post", orders, demoPOST)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.down()) }()
	s := &series{name: fmt.Sprintf("power cut to the first insert, POST of %.0f s, standby-switch", demoPOST.Seconds()), unit: "s", peer: "cold-iscsi"}
	for _, way := range []string{"standby-switch", "cold-iscsi"} {
		took, err := d.cut(ctx, way)
		if err != nil {
			return nil, err
		}
		if o.verbose {
			fmt.Printf("demo      with POST, %s: outage %6.2f s\n", way, took.outage.Seconds())
		}
		if way == "cold-iscsi" {
			s.other = append(s.other, took.outage.Seconds())
		} else {
			s.own = append(s.own, took.outage.Seconds())
		}
	}
	return []figure{s.figure()}, nil
}

// startDemo brings the database up on one of two nodes, with a client that inserts.
func startDemo(ctx context.Context, o options, name string, orders images.Image, post time.Duration) (_ *demo, err error) {
	nodes := lab.Nodes(2)
	for i := range nodes {
		nodes[i].POSTDelay = post
	}
	r, err := startRack(ctx, o, name, lab.Options{Nodes: nodes, Kernel: orders.Kernel})
	if err != nil {
		return nil, err
	}
	d := &demo{rack: r, o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.down())
		}
	}()
	if err := d.takeImage(ctx, "orders", orders.Disk); err != nil {
		return nil, err
	}
	text := "kind: pool\nname: rack1\n"
	for _, n := range d.lab.Nodes() {
		text += "---\n" + nodeDocument(n)
	}
	if err := d.apply(ctx, text+"---\n"+ordersDocument("standby-switch, cold-iscsi")); err != nil {
		return nil, err
	}
	if _, err := d.started(ctx, "orders"); err != nil {
		return nil, err
	}
	d.client = d.inserts(ctx, databaseAddress, name)
	d.undo.Add("client", func(context.Context) error { d.client.Stop(); return nil })
	_, err = d.client.AckAfter(ctx, time.Now())
	return d, err
}

// demoTook is one hand-over.
type demoTook struct{ outage, detect time.Duration }

// cut has the other node wait for the way, cuts the power of the one that runs the
// database, and follows the hand-over.
func (d *demo) cut(ctx context.Context, way string) (demoTook, error) {
	snap, err := d.site.Snapshot(ctx)
	if err != nil {
		return demoTook{}, err
	}
	before, ok := site.Application(snap, "orders")
	if !ok || before.Status.Phase != "running" {
		return demoTook{}, fmt.Errorf("orders does not run: %s", site.Brief(snap))
	}
	spare := d.lab.Nodes()[0].Name
	if spare == before.Status.Node {
		spare = d.lab.Nodes()[1].Name
	}
	policy, ready := "standby: {nodes: 1, for: [orders]}\n", d.parked
	if way == "cold-iscsi" {
		policy, ready = "", d.off
	}
	if err := d.apply(ctx, "kind: pool\nname: rack1\n"+policy); err != nil {
		return demoTook{}, err
	}
	if err := ready(ctx, spare); err != nil {
		return demoTook{}, err
	}
	cut := time.Now()
	if err := d.lab.Fail(ctx, before.Status.Node, lab.PowerCut, ""); err != nil {
		return demoTook{}, err
	}
	wait, cancel := context.WithTimeout(ctx, rackPatience)
	defer cancel()
	_, record, err := d.site.Moved(wait, "orders", before.Status.Epoch)
	if err != nil {
		return demoTook{}, err
	}
	back, err := d.client.AckAfter(wait, cut.Add(afterCut))
	if err != nil {
		return demoTook{}, err
	}
	if d.o.verbose {
		printSteps(record, back.At)
	}
	if record.Way != way {
		return demoTook{}, fmt.Errorf("it was moved by %s instead of %s: %s", record.Way, way, record.Reason)
	}
	begin := lastBefore(d.client.Acks(), cut, back)
	failed, err := established(record)
	return demoTook{outage: back.At.Sub(begin), detect: max(0, failed.Sub(begin))}, err
}

// established gives the moment at which the failure was. The record's own "detect"
// counts from the last good check, which is before the cut.
func established(f api.Failover) (time.Time, error) {
	for _, s := range f.Steps {
		if s.Name == "failed" {
			return s.At, nil
		}
	}
	return time.Time{}, fmt.Errorf("the record of %s does not say when the failure was established: %+v", f.ID, f.Steps)
}

// lastBefore gives when the client's silence began: at the cut, or with an answer
// that was on its way then.
func lastBefore(acks []load.Ack, cut time.Time, back load.Ack) time.Time {
	begin := cut
	for _, a := range acks {
		if a.Seq < back.Seq && a.At.After(begin) {
			begin = a.At
		}
	}
	return begin
}
