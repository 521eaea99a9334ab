package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/cmd/hotspare-agent/archive"
	"hotspare/cmd/hotspare-agent/disk"
	"hotspare/cmd/hotspare-agent/pid1"
	"hotspare/cmd/hotspare-agent/slots"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/diskstream"
)

// Where the parts of a root are mounted that is not one device.
const (
	lowerDir = pid1.RunDir + "/lower"
	upperDir = pid1.RunDir + "/upper"
)

// mountRoot puts the image's root at pid1.NewRoot.
func (a *agent) mountRoot(ctx context.Context, l *load) error {
	image := l.claim.Image
	fstype := image.RootFS
	if fstype == "" {
		fstype = "ext4"
	}
	switch image.Root {
	case agentlink.RootInRAM:
		return a.rootInRAM(ctx, image)
	case agentlink.RootInSlot, agentlink.RootOnDisk:
		return a.rootOnDisk(ctx, l, fstype)
	}
	device, err := l.device(agentlink.RootVolume)
	if err != nil {
		return err
	}
	return disk.MountRoot(ctx, disk.Partition(device, image.RootPartition), fstype, image.RootSubvolume, pid1.NewRoot)
}

// rootInRAM makes the root of an archive that is in memory, or comes there now.
func (a *agent) rootInRAM(ctx context.Context, image agentlink.Image) error {
	f, err := a.memory.Get(ctx, *image.RAM)
	if err != nil {
		return err
	}
	var head [6]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return err
	}
	if string(head[:4]) == "hsqs" { // squashfs 4.0, little endian
		if err := pid1.Load("squashfs", "loop", "overlay"); err != nil {
			return err
		}
		device, err := disk.Loop(f, true)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(lowerDir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(device, lowerDir, "squashfs", unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("mount the squashfs: %w", err)
		}
		return disk.Overlay(lowerDir, upperDir, pid1.NewRoot)
	}
	plain, err := plainArchive(f, image.RAM.Bytes, head[:])
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", pid1.NewRoot, "tmpfs", 0, "mode=0755"); err != nil {
		return err
	}
	return archive.Unpack(plain, pid1.NewRoot)
}

// plainArchive gives a cpio archive, decompressed into memory where needed.
func plainArchive(f *os.File, size int64, head []byte) (io.ReaderAt, error) {
	src := io.NewSectionReader(f, 0, size)
	var r io.Reader
	switch {
	case string(head) == "070701", string(head) == "070702":
		return src, nil
	case head[0] == 0x28 && head[1] == 0xb5 && head[2] == 0x2f && head[3] == 0xfd:
		zr, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer zr.Close()
		r = zr
	case head[0] == 0x1f && head[1] == 0x8b:
		gr, err := gzip.NewReader(src)
		if err != nil {
			return nil, err
		}
		r = gr
	default:
		return nil, &hotspare.Error{
			Code: hotspare.CodeImageFormat, What: "the image in memory is of no known form", Where: fmt.Sprintf("it begins with %q", head),
			Fix: "give a squashfs, or a newc cpio archive that is plain or compressed with zstd or gzip",
		}
	}
	fd, err := unix.MemfdCreate("hotspare-root", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	out := os.NewFile(uintptr(fd), "root")
	limit := int64(meminfo("MemAvailable")) * 1024 / 3
	n, err := io.Copy(out, io.LimitReader(r, limit+1))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("decompress the image: %w", err), out.Close())
	}
	if n > limit {
		return nil, errors.Join(fmt.Errorf("the image has more than %d bytes, a third of what is free in memory", limit), out.Close())
	}
	return out, nil
}

// rootOnDisk makes the root of a local copy. A slot stays as it was installed:
// what the root writes goes to memory, so that its digest holds for every start,
// and each grant gets a fresh root, as on a volume.
func (a *agent) rootOnDisk(ctx context.Context, l *load, fstype string) (err error) {
	want := l.claim.Image.Local
	chosen, err := choose(localDisks(a.site()), want.Disk)
	if err != nil {
		return err
	}
	dev, err := disk.OpenLocal("/dev/" + chosen.Name)
	if err != nil {
		return err
	}
	rec, c, err := a.checkCopy(ctx, l, chosen.ID, dev)
	for _, p := range rec.Partitions {
		if err == nil {
			err = dev.AddPartition(p.Number, p.Offset, p.Bytes)
		}
	}
	err = errors.Join(err, dev.Close())
	if err != nil {
		return err
	}
	device := disk.Partition("/dev/"+chosen.Name, rec.Partition(c.Slot))
	if l.claim.Image.Root == agentlink.RootOnDisk {
		return disk.MountRoot(ctx, disk.Partition(device, l.claim.Image.RootPartition), fstype, l.claim.Image.RootSubvolume, pid1.NewRoot)
	}
	if err := pid1.Load("overlay", "loop"); err != nil {
		return err
	}
	if l.claim.Image.RootPartition != 0 { // the slot holds a whole disk
		f, err := os.Open(device)
		if err != nil {
			return err
		}
		loop, err := disk.Loop(f, true)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		device = disk.Partition(loop, l.claim.Image.RootPartition)
	}
	if err := disk.MountPristine(device, fstype, l.claim.Image.RootSubvolume, lowerDir); err != nil {
		return err
	}
	return disk.Overlay(lowerDir, upperDir, pid1.NewRoot)
}

// checkCopy finds the copy that a claim names, verifies it and notes the start.
func (a *agent) checkCopy(ctx context.Context, l *load, id string, dev *disk.Local) (slots.Record, slots.Copy, error) {
	want := l.claim.Image.Local
	rec, err := slots.Read(dev, dev.Size)
	if err != nil {
		return rec, slots.Copy{}, localCopy(dev, "the disk holds no copy", err)
	}
	c := rec.Find(want.Slot)
	switch {
	case c == nil:
		return rec, slots.Copy{}, localCopy(dev, "the disk has no such slot", fmt.Errorf("slot %q", want.Slot))
	case c.App != l.app.Name:
		return rec, *c, localCopy(dev, "the copy was installed for another application", fmt.Errorf("for %q", c.App))
	case c.Digest != want.Digest:
		return rec, *c, localCopy(dev, "the copy is of another image", fmt.Errorf("%s with digest %s", c.Image, c.Digest))
	case c.State != agentlink.CopyReady && (c.State != agentlink.CopyStarted || l.claim.Image.Root != agentlink.RootOnDisk):
		return rec, *c, localCopy(dev, "the copy is not to be started", fmt.Errorf("its state is %q", c.State))
	}
	if c.State == agentlink.CopyReady && !a.remembers(id, c.Slot, c.Digest) {
		at, length, err := rec.Place(c.Slot, dev.Size)
		if err != nil {
			return rec, *c, err
		}
		if err := a.timed(l, "verify "+id+" "+c.Slot, func() error {
			got, err := diskstream.Digest(ctx, copyPart(dev, &rec, at, length), c.Bytes, nil)
			if err == nil && got != c.Digest {
				c.State, c.Active = agentlink.CopyFailed, false
				err = errors.Join(localCopy(dev, "the copy differs from what was installed", fmt.Errorf("its digest is %s instead of %s", got, c.Digest)), rec.Write(dev))
			}
			return err
		}); err != nil {
			return rec, *c, err
		}
	}
	c.Started++
	c.Epoch = l.epoch
	if l.claim.Image.Root == agentlink.RootOnDisk {
		c.State = agentlink.CopyStarted
	}
	rec.Activate(c.Slot)
	return rec, *c, rec.Write(dev)
}

func localCopy(dev *disk.Local, what string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeContents, What: what, Where: dev.Path, Err: err, Fix: "install the image on this node again"}
}
