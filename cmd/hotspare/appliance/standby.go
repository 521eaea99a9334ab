package appliance

import (
	"context"
	"net/url"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/standby"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
	"hotspare/images"
)

// This file is about nodes that wait in the standby environment: how they get
// there, what they keep ready, and how they become another kernel.

// Park boots an idle node into standby. A node whose agent came in this turn is
// left alone; so is one that is on (the engine knows that it carries nothing).
func (b *boots) Park(ctx context.Context, p haengine.ParkNode) error {
	n, ok := b.nodes(p.Node)
	if !ok {
		return noNode(p.Node)
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
	b.ladders.power(p.Node, "it is to wait in standby", 0)
	res, err := b.powerOn(ctx, n, p.Turn)
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
	return b.artefact(x, boot.ArtefactKernel, k, link), b.artefact(x, boot.ArtefactInitrd, i, link), err
}

// artefact names a file for a node that fetches it with the token of an attempt.
func (b *boots) artefact(x attempt, what boot.Artefact, f bootFile, link LinkConfig) agentlink.Artefact {
	u := url.URL{Scheme: "http", Host: b.cfg.httpAddr(link).String(), Path: boot.Path{Artefact: what, Token: x.BootToken}.String()}
	return agentlink.Artefact{URL: u.String(), SHA256: f.digest, Bytes: f.bytes}
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

// parked tells the engine of a node that came from its boot into standby.
func (a *agents) parked(ctx context.Context, x attempt, s server.Session) {
	e := haengine.Parked{Node: s.Node, BootID: s.BootID, Turn: x.Turn, Kernel: x.Kernel}
	if s.Facts.BootID != "" { // this process saw it join
		var disk *haengine.LocalDisk
		if n, ok := a.boots.nodes(s.Node); ok {
			disk = n.Spec.Disk
		}
		e.Facts = nodeFacts(s.Facts, disk)
	}
	if !s.Resumed { // what the disks hold changes while it waits
		e.Copies = copiesOf(s.Facts.Disks, a.boots.diskDigest)
	}
	a.submit(ctx, e)
}

// nodeFacts gives what placement needs of what an agent found.
func nodeFacts(f agentlink.Facts, disk *haengine.LocalDisk) *haengine.NodeFacts {
	n := &haengine.NodeFacts{Kexec: f.Kexec.Possible, NoKexec: f.Kexec.Why}
	n.Disk, n.NoDisk = diskFacts(disk, f.Disks)
	if f.Vendor != "" || f.Product != "" {
		n.Model = f.Vendor + " " + f.Product
	}
	return n
}
