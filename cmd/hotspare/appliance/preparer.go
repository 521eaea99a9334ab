package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/runner"
	"hotspare/images"
)

// preparer is runner.Preparer: what nodes keep ready in memory and on their disks.
type preparer struct{ boots *boots }

// Install has a node write an image to the local disk that its document names, and
// waits until what was written was read back.
func (p preparer) Install(ctx context.Context, i haengine.Install) (haengine.LocalCopy, error) {
	b := p.boots
	n, ok := b.nodes(i.Node)
	if !ok {
		return haengine.LocalCopy{}, noNode(i.Node)
	}
	if n.Spec.Disk == nil {
		return haengine.LocalCopy{}, &hotspare.Error{
			Code: hotspare.CodeDiskChoice, What: "no local disk may be written", Where: i.Node, Why: "the node's document names none",
			Fix: "add disk with its id to the node's document, or take the ways install and slot out of the application's policy",
		}
	}
	img, err := b.pinned(i.Node, i.App, i.Epoch, i.Image)
	if err != nil {
		return haengine.LocalCopy{}, err
	}
	src, err := b.disks.source(ctx, img)
	if err != nil {
		return haengine.LocalCopy{}, err
	}
	b.networkFirst(ctx, n, n.Turn)
	x, err := b.attempts.streams(forInstall, n.Spec, img.Ref())
	if err != nil {
		return haengine.LocalCopy{}, err
	}
	at := url.URL{Scheme: "http", Host: b.cfg.httpAddr(b.nearby(i.Node)).String(), Path: streamPath + x.BootToken}
	order := installOrder(*n.Spec.Disk, img, src)
	order.Source.URL = at.String()
	res, err := b.ask(ctx, i.Order, i.BootID, agentlink.Order{Install: &order})
	if !runner.IsTransient(err) { // nil too: it has ended, so nobody may read the image any more
		err = errors.Join(err, b.attempts.streamed(x.BootToken))
	}
	if err != nil {
		return haengine.LocalCopy{}, err
	}
	if res.Installed == nil {
		return haengine.LocalCopy{}, fmt.Errorf("the agent of %s does not say where it installed %s", i.Node, img.Ref())
	}
	return haengine.LocalCopy{
		App: i.App, Epoch: i.Epoch, Image: img.Ref(), Disk: res.Installed.Disk, Slot: res.Installed.Slot, Digest: src.digest, State: haengine.CopyReady,
	}, nil
}

// installOrder says what an agent writes where. Which slot it takes, the agent
// chooses: it sees the disk.
func installOrder(d haengine.LocalDisk, img images.Image, src diskSource) agentlink.Install {
	o := agentlink.Install{
		Disk: selector(d), Source: agentlink.Source{Digest: src.digest, Bytes: src.bytes}, Image: img.Ref(), Kernel: img.Kernel.Version,
	}
	if d.Overwrite {
		o.Consent = agentlink.ConsentOverwrite
	}
	if d.Slots > 0 {
		o.Layout = &agentlink.SlotLayout{Slots: d.SlotNames(), SlotBytes: int64(d.SlotGiB) << 30}
		return o
	}
	o.Head, o.Partitions = head(img), src.partitions
	return o
}

// head is how much of an image's start is kept from the disk, so that no firmware
// starts it: boot code and the partition table's own sectors. A file system on the
// whole disk must be found where it is.
func head(img images.Image) int64 {
	switch {
	case img.RootPartition != 0:
		return 8 << 10 // MBR and GPT header, of sectors of 512 and of 4096 bytes
	case img.RootFS == "ext4":
		return 1 << 10
	case img.RootFS == "btrfs":
		return 8 << 10
	}
	return 0
}

func selector(d haengine.LocalDisk) agentlink.DiskSelector {
	return agentlink.DiskSelector{ID: d.ID, WWN: d.WWN, Serial: d.Serial, MinBytes: int64(d.MinGiB) << 30, MaxBytes: int64(d.MaxGiB) << 30}
}

// DisableCopies has a node that carries nothing make sure that nothing starts its
// copies of these applications.
func (p preparer) DisableCopies(ctx context.Context, d haengine.DisableCopies) error {
	return p.boots.send(ctx, d.Order, d.BootID, agentlink.Order{Wipe: &agentlink.Wipe{Apps: d.Apps}})
}

// Preload has a parked node read what claims of these images need. The order names
// each file by its digest: the node fetches none that it has.
func (p preparer) Preload(ctx context.Context, o haengine.Preload) error {
	n, ok := p.boots.nodes(o.Node)
	if !ok {
		return noNode(o.Node)
	}
	link := p.boots.nearby(o.Node)
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
		kernel, initrd, err := p.boots.artefacts(ctx, x, link)
		if err != nil {
			return fmt.Errorf("preload of %s: %w", img.Ref(), err)
		}
		files = append(files, kernel, initrd)
		// A root that runs from memory takes its size twice while it is started.
		if root, ok := rootFile(img); ok && root.bytes < int64(n.Spec.MemoryMiB)<<20/8 {
			files = append(files, p.boots.artefact(x, boot.ArtefactRoot, root, link))
		}
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

func noNode(name string) error {
	return &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such node", Where: name, Fix: "hotspare get nodes"}
}

// diskFacts says whether the local disk that a node's document names is there and
// may be written, from what its agent found.
func diskFacts(d *haengine.LocalDisk, found []agentlink.Disk) (ok bool, why string) {
	if d == nil {
		return false, "its document names none"
	}
	fits := slices.DeleteFunc(slices.Clone(found), func(f agentlink.Disk) bool { return !selector(*d).Fits(f) })
	switch {
	case len(fits) == 0:
		return false, "none is what its document names"
	case len(fits) > 1:
		return false, fmt.Sprintf("%d are what its document names; give id, wwn or serial", len(fits))
	case fits[0].ID == "":
		return false, "the disk has no identity: it could not be told from another one later"
	case fits[0].ReadOnly:
		return false, fits[0].ID + " is read-only"
	case d.Overwrite, fits[0].Holds == "blank", fits[0].Holds == "hotspare slots", fits[0].Holds == "hotspare install":
		return true, ""
	}
	return false, fmt.Sprintf("%s holds %s; add overwrite if nothing of it is wanted", fits[0].ID, fits[0].Holds)
}

// copiesOf gives the copies of applications that an agent found on its node's disks.
// One whose digest is known not to be its image's is none that may be started.
func copiesOf(disks []agentlink.Disk, digest func(image string) string) []haengine.LocalCopy {
	out := []haengine.LocalCopy{}
	for _, d := range disks {
		for _, c := range d.Copies {
			if c.State == agentlink.CopyEmpty {
				continue
			}
			x := haengine.LocalCopy{
				App: c.App, Epoch: haengine.Epoch(c.Epoch), Image: c.Image, Disk: d.ID, Slot: c.Slot, Digest: c.Digest, State: haengine.CopyState(c.State),
			}
			if want := digest(c.Image); x.State == haengine.CopyReady && want != "" && want != c.Digest {
				x.State = haengine.CopyFailed
			}
			out = append(out, x)
		}
	}
	return out
}
