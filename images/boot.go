package images

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"hotspare"
)

// newVolumeName draws the name of an image's volume. The contents are not known
// before they are written.
func newVolumeName() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return "image-" + hex.EncodeToString(b)
}

// withoutDisk imports a kernel and an initrd, from which a machine runs in
// memory.
func (m *importing) withoutDisk(ctx context.Context) (Image, error) {
	m.img.Format = FormatNone
	if err := m.takeInitrd(); err != nil {
		return Image{}, err
	}
	if err := m.takeGivenKernel(ctx); err != nil {
		return Image{}, err
	}
	sum := sha256.Sum256([]byte("hotspare kernel and initrd 1\n" + m.img.Kernel.Digest + "\n" + m.img.Initrd.Digest + "\n"))
	m.img.Digest, m.img.DigestKind = hex.EncodeToString(sum[:]), "sha256-boot"
	m.img.SourceSHA256 = m.img.Digest
	return m.inMemory()
}

// squashfs imports a root that a machine copies into its memory.
func (m *importing) squashfs(ctx context.Context) (Image, error) {
	info, err := m.disk.Stat()
	if err != nil {
		return Image{}, fmt.Errorf("images: %w", err)
	}
	if _, err := checkSquashfs(m.disk, info.Size()); err != nil {
		return Image{}, err
	}
	m.req.Tell(Step{Text: "store the root file system"})
	if m.img.Root, err = m.r.putBlob(&countedReader{ctx: ctx, r: io.NewSectionReader(m.disk, 0, info.Size())}); err != nil {
		return Image{}, err
	}
	m.img.Digest, m.img.DigestKind, m.img.RootFS, m.img.SizeBytes = m.img.Root.Digest, "sha256", "squashfs", m.img.Root.Size
	if err := m.takeInitrd(); err != nil {
		return Image{}, err
	}
	if m.req.Kernel != "" {
		if err := m.takeGivenKernel(ctx); err != nil {
			return Image{}, err
		}
	}
	return m.inMemory()
}

// takeGivenKernel takes the kernel that the request names, and its modules if it
// names them.
func (m *importing) takeGivenKernel(ctx context.Context) error {
	data, err := readGiven(m.req.Kernel, maxKernel)
	if err != nil {
		return err
	}
	info := inspectKernel(data)
	if info.arch == "" {
		return noKernel(m.req.Kernel, "the file is not a kernel that is known (x86 bzImage, arm64 Image, EFI zboot)", nil)
	}
	m.img.Arch, m.img.Kernel.Source, m.img.Kernel.Version = info.arch, given, info.version
	if m.img.Kernel.Version == "" && m.req.Modules != "" {
		m.img.Kernel.Version = filepath.Base(filepath.Clean(m.req.Modules))
	}
	if m.img.Kernel.Version != "" && !versionGrammar.MatchString(m.img.Kernel.Version) {
		return noKernel(m.req.Kernel, "the file does not tell its version; name the modules directory by it", nil)
	}
	if m.img.Kernel.Blob, err = m.r.putBlob(bytes.NewReader(data)); err != nil || m.req.Modules == "" {
		return err
	}
	m.img.Modules, err = m.r.takeModules(ctx, system{}, m.img.Kernel.Version, m.req.Modules)
	return err
}

func (m *importing) inMemory() (Image, error) {
	m.img.Facts.Starts, m.img.Facts.Init = []Start{StartRAM}, InitUnknown
	if old, ok, err := m.known(); ok || err != nil {
		return old, err
	}
	return m.commit()
}

// treeEpoch is the time in the inodes of a disk that is made of an archive: it
// says nothing, but the same archive gives the same disk.
var treeEpoch = time.Unix(1577836800, 0) // 2020-01-01

// fromTar makes an ext4 disk of the archive in m.disk.
func (m *importing) fromTar(ctx context.Context, size int64) (string, error) {
	return m.makeDisk(ctx, m.img.SourceSHA256, func(t *treeBuilder) error {
		in := &countedReader{ctx: ctx, r: io.NewSectionReader(m.disk, 0, size), tell: func(n int64) { m.req.Tell(Step{"unpack the archive", n, size}) }}
		return t.apply(in, false)
	})
}

// fromLayers makes an ext4 disk of the layers of a container image. They were
// checked when they were fetched.
func (m *importing) fromLayers(ctx context.Context) error {
	m.img.Format, m.img.SourceSHA256 = FormatTar, m.req.SHA256
	path, err := m.makeDisk(ctx, m.req.SHA256, func(t *treeBuilder) error {
		for i, layer := range m.req.Layers {
			m.req.Tell(Step{Text: fmt.Sprintf("unpack layer %d of %d", i+1, len(m.req.Layers))})
			if err := m.layer(ctx, t, layer); err != nil {
				return fmt.Errorf("layer %d: %w", i+1, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	size, err := m.stage(path)
	if err != nil {
		return err
	}
	m.src, err = openRaw(m.disk, size, m.r.opts.MaxDisk)
	return err
}

func (m *importing) layer(ctx context.Context, t *treeBuilder, path string) error {
	f, size, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	pack, err := detectPacking(f)
	if err != nil {
		return err
	}
	in := &countedReader{ctx: ctx, r: io.NewSectionReader(f, 0, size)}
	if pack == "" {
		return t.apply(in, true)
	}
	// Unpacked beside it, so that the archive is read to its end and nothing
	// waits for the other for ever.
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := decompress(ctx, w, in, pack)
		w.CloseWithError(err)
		done <- err
	}()
	err = t.apply(r, true)
	r.CloseWithError(io.ErrClosedPipe)
	if derr := <-done; err == nil && derr != nil && !errors.Is(derr, io.ErrClosedPipe) {
		err = derr
	}
	return err
}

// makeDisk lets fill unpack a tree and makes an ext4 disk of it.
func (m *importing) makeDisk(ctx context.Context, seed string, fill func(*treeBuilder) error) (string, error) {
	if os.Geteuid() != 0 {
		return "", &hotspare.Error{Code: hotspare.CodeNotRoot, What: "a root file system can be imported by root only", Why: "its files are of many owners", Fix: "run the appliance as root, or make a disk image of it"}
	}
	staging := filepath.Join(m.r.dir, "staging")
	dir, err := os.MkdirTemp(staging, "tree-*")
	if err != nil {
		return "", diskError("unpack the archive", err)
	}
	tree, err := newTreeBuilder(ctx, dir, m.r.opts.MaxDisk)
	if err != nil {
		return "", err
	}
	err = fill(tree)
	if ferr := tree.finish(); err == nil {
		err = ferr
	}
	if err != nil {
		switch {
		case ctx.Err() != nil:
			return "", ctx.Err()
		case hotspare.CodeOf(diskError("", err)) == hotspare.CodeDiskFull:
			return "", diskError("unpack the archive", err)
		}
		return "", &hotspare.Error{Code: hotspare.CodeImageFormat, What: "the archive cannot be unpacked", Fix: fixCopy, Err: err}
	}
	m.req.Tell(Step{Text: "make the disk"})
	disk := filepath.Join(staging, filepath.Base(dir)+".raw")
	o := DiskOptions{Label: m.img.Name, Size: m.req.DiskSize, Seed: seed, Epoch: treeEpoch}
	if err := MakeDisk(ctx, dir, disk, o); err != nil {
		return "", err
	}
	return disk, os.RemoveAll(dir)
}
