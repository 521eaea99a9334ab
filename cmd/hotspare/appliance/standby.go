package appliance

import (
	"context"
	"fmt"
	"net/url"

	"hotspare"
	"hotspare/bmc"
	"hotspare/boot"
	"hotspare/boot/standby"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/images"
)

// This file is about nodes that wait in the standby environment: how they get
// there, what they keep ready, and how they become another kernel.

// Park boots an idle node into standby. A node whose agent came in this turn is
// left alone; so is one that is on (the engine knows that it carries nothing).
func (b *boots) Park(ctx context.Context, p haengine.ParkNode) error {
	n, ok := b.nodes(p.Node)
	if !ok {
		return &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such node", Where: p.Node, Fix: "hotspare get nodes"}
	}
	on, err := b.waitsOn(ctx, p.Image)
	if err != nil {
		return err
	}
	_, _, kernel, err := b.files(ctx, on)
	if err != nil {
		return err
	}
	x, err := b.attempts.park(n.Spec, p.Turn, on, kernel)
	if err != nil || !x.Redeemed.IsZero() {
		return err
	}
	q, spec, err := b.bmcs.queue(p.Node)
	if err != nil {
		return err
	}
	b.ladders.power(p.Node, "it is to wait in standby", 0)
	res, err := bmc.On(ctx, q, right(p.Turn), bmc.OnOptions{
		PXE: true, Interval: b.cfg.BMC.ReadGap.D(), Deadline: b.cfg.BMC.Deadline.D(), ExpectUUID: spec.UUID,
	})
	if err != nil {
		b.ladders.powerFailed(p.Node, err)
		return transient(err)
	}
	b.log.InfoContext(ctx, "node goes to standby", "node", p.Node, "on", on, "wasOn", res.WasOn)
	return nil
}

// kexec has a parked node execute the image's kernel for a grant. The join archive
// goes over the agent's link only.
func (b *boots) kexec(ctx context.Context, o haengine.Boot, n haengine.Node, img images.Image) error {
	x, err := b.attempts.begin(n, o, img.Ref())
	if err != nil || !x.Redeemed.IsZero() {
		return err
	}
	link := b.nearby(n.Name)
	kernel, initrd, err := b.artefacts(ctx, x, link)
	if err != nil {
		return err
	}
	secret, err := b.attempts.inLink(x)
	if err != nil {
		return err
	}
	archive, err := b.joinArchive(x, secret, link)
	if err != nil {
		return err
	}
	return b.send(ctx, o.Order, o.BootID, agentlink.Order{Kexec: &agentlink.Kexec{
		Kernel: kernel, Initrd: initrd, Cmdline: b.cmdline(img), Join: hotspare.NewSecret(string(archive)),
	}})
}

// artefacts names the kernel and the initramfs of an attempt for a node that
// fetches them with its token.
func (b *boots) artefacts(ctx context.Context, x attempt, link LinkConfig) (kernel, initrd agentlink.Artefact, err error) {
	k, i, _, err := b.files(ctx, x.Image)
	at := func(what boot.Artefact, f bootFile) agentlink.Artefact {
		u := url.URL{Scheme: "http", Host: b.cfg.httpAddr(link).String(), Path: boot.Path{Artefact: what, Token: x.BootToken}.String()}
		return agentlink.Artefact{URL: u.String(), SHA256: f.digest, Bytes: f.bytes}
	}
	return at(boot.ArtefactKernel, k), at(boot.ArtefactInitrd, i), err
}

// joinArchive makes the archive with which a boot joins over a link.
func (b *boots) joinArchive(x attempt, secret hotspare.Secret, link LinkConfig) ([]byte, error) {
	mode := agentlink.ModeStart
	if x.Mode == forStandby {
		mode = agentlink.ModeStandby
	}
	text, err := agentlink.EncodeBootConfig(agentlink.BootConfig{
		Node: x.Node, Appliance: b.cfg.link(link), CA: string(b.ca()), Token: secret, Mode: mode, Epoch: uint64(x.Epoch),
	})
	if err != nil {
		return nil, err
	}
	return standby.JoinArchive(map[string][]byte{agentlink.BootConfigPath: text}), nil
}

// Preload has a parked node read what claims of these images need. The order names
// each file by its digest: the node fetches none that it has.
func (p preparer) Preload(ctx context.Context, o haengine.Preload) error {
	n, ok := p.boots.nodes(o.Node)
	if !ok {
		return &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such node", Where: o.Node, Fix: "hotspare get nodes"}
	}
	var files []agentlink.Artefact
	for _, ref := range o.Images {
		img, err := p.boots.images.Resolve(ref)
		if err != nil {
			return err
		}
		x, err := p.boots.attempts.load(n.Spec, img.Ref())
		if err != nil {
			return err
		}
		kernel, initrd, err := p.boots.artefacts(ctx, x, p.boots.nearby(o.Node))
		if err != nil {
			return fmt.Errorf("preload of %s: %w", img.Ref(), err)
		}
		files = append(files, kernel, initrd)
	}
	return p.boots.send(ctx, o.Order, o.BootID, agentlink.Order{Preload: &agentlink.Preload{Artefacts: distinct(files)}})
}

// distinct leaves each file out that came before under another name.
func distinct(files []agentlink.Artefact) []agentlink.Artefact {
	have := map[string]bool{}
	var out []agentlink.Artefact
	for _, f := range files {
		if !have[f.SHA256] {
			have[f.SHA256] = true
			out = append(out, f)
		}
	}
	return out
}

// parked tells the engine of a node that came from its boot into standby.
func (a *agents) parked(ctx context.Context, x attempt, node, bootID string, facts agentlink.Facts) {
	e := haengine.Parked{Node: node, BootID: bootID, Turn: x.Turn, Kernel: x.Kernel}
	if facts.BootID != "" { // this process saw it join
		e.Facts = nodeFacts(facts)
	}
	a.submit(ctx, e)
}

// nodeFacts gives what placement needs of what an agent found.
func nodeFacts(f agentlink.Facts) *haengine.NodeFacts {
	n := &haengine.NodeFacts{Kexec: f.Kexec.Possible, NoKexec: f.Kexec.Why, Disk: len(f.Disks) > 0}
	if f.Vendor != "" || f.Product != "" {
		n.Model = f.Vendor + " " + f.Product
	}
	if !n.Disk {
		n.NoDisk = "it has no local disk"
	}
	return n
}
