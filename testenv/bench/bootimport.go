package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hotspare/images"
	"hotspare/storage"
	"hotspare/storage/cow"
)

const (
	importDisk  = 10 << 30 // bytes of the disk that is imported
	importData  = 2 << 30  // of it that are not zeros, in pieces of 64 MiB over the whole disk
	importPiece = 64 << 20
)

// importFigures sets the import of a sparse qcow2 of 10 GiB with 2 GiB of data
// against qemu-img convert of the same file to a raw file on the same disk. Both
// end with their result durable; the import also records the file's SHA-256 and
// the digest of the contents, which qemu-img does not. Beside sha256sum and
// qemu-img one after the other, what an operator would do by hand for the same
// result, it is measured too.
func importFigures(ctx context.Context, o options) (_ []figure, err error) {
	dir, err := os.MkdirTemp(o.work, "import-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	size, data := int64(importDisk), int64(importData)
	if o.quick {
		size, data = size/10, data/10
	}
	src := filepath.Join(dir, "disk.qcow2")
	if err := makeQCOW2(ctx, dir, src, size, data); err != nil {
		return nil, err
	}
	mib := float64(data) / (1 << 20)
	plain := &series{name: "import of a sparse qcow2, data", unit: "MiB/s", peer: "qemu-img convert and sync", better: "higher", goal: 0.8}
	checked := &series{name: "the same, with its SHA-256", unit: "MiB/s", peer: "sha256sum, qemu-img convert and sync", better: "higher", goal: 1}
	for round := range max(1, o.rounds) {
		var convert, sum, own time.Duration
		turns := []func() error{
			func() (err error) { convert, err = timeConvert(ctx, dir, src); return err },
			func() (err error) { own, err = timeImport(ctx, dir, src); return err },
		}
		if round%2 == 1 { // nobody always comes first
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			if err := errors.Join(turn(), settle(dir)); err != nil {
				return nil, err
			}
		}
		var err error
		if sum, err = timed(func() error { return command(ctx, "sha256sum", src) }); err != nil {
			return nil, err
		}
		if o.verbose {
			fmt.Printf("%-9s import %6.2f s, qemu-img %6.2f s, sha256sum %6.2f s\n", "images", own.Seconds(), convert.Seconds(), sum.Seconds())
		}
		plain.own, plain.other = append(plain.own, mib/own.Seconds()), append(plain.other, mib/convert.Seconds())
		checked.own, checked.other = append(checked.own, mib/own.Seconds()), append(checked.other, mib/(convert+sum).Seconds())
	}
	return []figure{plain.figure(), checked.figure()}, nil
}

// settle waits until the file system has done with what the last turn left to
// do: it has removed files of gigabytes, and the disk is told of each piece that
// has become free.
func settle(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

func timed(do func() error) (time.Duration, error) {
	begun := time.Now()
	err := do()
	return time.Since(begun), err
}

func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// makeQCOW2 makes a disk that a BIOS would start, as far as its first sector
// tells: an import asks for something that starts.
func makeQCOW2(ctx context.Context, dir, to string, size, data int64) error {
	raw := filepath.Join(dir, "disk.raw")
	defer os.Remove(raw)
	if err := makeRawDisk(raw, size, data); err != nil {
		return err
	}
	if err := command(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, to); err != nil {
		return err
	}
	return command(ctx, "sync", to)
}

// makeRawDisk makes the disk as it is: data in pieces over the whole of it.
func makeRawDisk(to string, size, data int64) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	noise := rand.NewChaCha8(sha256.Sum256([]byte("import")))
	first := make([]byte, 512)
	_, _ = noise.Read(first[:440])
	first[510], first[511] = 0x55, 0xaa
	if _, err := f.WriteAt(first, 0); err != nil {
		return err
	}
	pieces := data / importPiece
	for i := range pieces {
		w := io.NewOffsetWriter(f, max(1<<20, size/pieces*i/(1<<20)*(1<<20)))
		if _, err := io.CopyN(w, noise, importPiece-(1<<20)); err != nil {
			return err
		}
	}
	return nil
}

func timeConvert(ctx context.Context, dir, src string) (time.Duration, error) {
	out := filepath.Join(dir, "out.raw")
	defer os.Remove(out)
	return timed(func() error {
		return errors.Join(command(ctx, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", src, out), command(ctx, "sync", out))
	})
}

func timeImport(ctx context.Context, dir, src string) (took time.Duration, err error) {
	state := filepath.Join(dir, "state")
	defer func() { err = errors.Join(err, os.RemoveAll(state)) }()
	store, err := cow.Open(ctx, filepath.Join(state, "volumes"), cow.Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	repo, err := images.Open(ctx, filepath.Join(state, "images"), images.Options{Disks: importDisks{store}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	stop, err := profileTo("IMPORT")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	return timed(func() error {
		_, err := repo.Import(ctx, images.ImportRequest{Name: "bench", Path: src, Format: images.FormatQCOW2})
		return err
	})
}

// importDisks lets an import write to a volume store, as the appliance does.
type importDisks struct{ store *cow.Store }

func (d importDisks) Create(ctx context.Context, name string, size int64) (images.Disk, error) {
	if err := d.store.Create(ctx, name, size); err != nil {
		return nil, err
	}
	dev, err := d.store.OpenToFill(name)
	return importVolume{dev, d.store, name}, err
}

func (d importDisks) Delete(ctx context.Context, name string) error { return d.store.Delete(ctx, name) }

type importVolume struct {
	storage.Device
	store *cow.Store
	name  string
}

func (v importVolume) Seal(ctx context.Context) error {
	return errors.Join(v.Flush(), v.store.SetReadOnly(ctx, v.name))
}
