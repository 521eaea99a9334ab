package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"

	"hotspare"
)

// Import brings a disk into the repository. The same contents under the same
// name and version are imported once: the second import gives the first one's
// image. A failed or cancelled import leaves nothing behind.
//
// Errors: CodeInvalid (request, file cannot be read), CodeImageDigest,
// CodeImageTruncated, CodeImageBacking, CodeImageFormat, CodeImageKernel,
// CodeImageExists, CodeDiskFull.
func (r *Repository) Import(ctx context.Context, req ImportRequest) (Image, error) {
	if err := req.validate(); err != nil {
		return Image{}, err
	}
	leave, err := r.enter(ctx)
	if err != nil {
		return Image{}, err
	}
	defer leave()
	img, err := r.importFile(ctx, req)
	if err != nil {
		if herr := r.heal(context.WithoutCancel(ctx)); herr != nil {
			err = errors.Join(err, fmt.Errorf("images: clean up after the import: %w", herr))
		}
		return Image{}, named(err, req.Path)
	}
	return img, nil
}

// named puts the file's name before the place that an error names.
func named(err error, path string) error {
	var e *hotspare.Error
	if !errors.As(err, &e) || e.Where == path || e.Code == hotspare.CodeInvalid || error(e) != err { //nolint:errorlint // only an error that is not wrapped yet
		return err
	}
	out := *e
	if out.Where == "" {
		out.Where = path
	} else {
		out.Where = path + ": " + e.Where
	}
	return &out
}

func (r *Repository) importFile(ctx context.Context, req ImportRequest) (Image, error) {
	f, fileSize, err := openRegular(req.Path)
	if err != nil {
		return Image{}, err
	}
	defer f.Close()
	img := Image{Name: req.Name, Version: req.Version, Format: req.Format, Cmdline: req.Cmdline, Labels: maps.Clone(req.Labels)}
	if img.Format == "" {
		if img.Format, err = detectFormat(f, fileSize); err != nil {
			return Image{}, err
		}
	}
	src, err := r.verify(ctx, &img, f, fileSize, req.SHA256)
	if err != nil {
		return Image{}, err
	}
	if img.Version == "" {
		img.Version = img.Digest[:12]
	}
	if old, ok, err := r.existing(img, req); ok || err != nil {
		return old, err
	}
	if err := r.inspect(ctx, &img, src, req); err != nil {
		return Image{}, err
	}
	if err := r.store(ctx, &img, src); err != nil {
		return Image{}, err
	}
	r.opts.Log.Info("image imported", "image", img.Ref(), "digest", img.Digest, "volume", img.Volume, "kernel", img.Kernel.Version, "arch", img.Arch)
	return r.Get(img.Name, img.Version)
}

// verify checks the file against the digest that was promised, then as an image
// of its format, and notes its digests and sizes.
func (r *Repository) verify(ctx context.Context, img *Image, f *os.File, fileSize int64, promised string) (source, error) {
	if img.Format == FormatQCOW2 && promised == "" {
		// Say at once what is wrong with a file, before minutes of hashing.
		if _, err := parseQCOW2Header(f, fileSize, r.opts.MaxDisk); err != nil {
			return nil, err
		}
	}
	var err error
	if img.SourceSHA256, err = hashReader(ctx, f, fileSize); err != nil {
		return nil, err
	}
	if promised != "" && promised != img.SourceSHA256 {
		return nil, imageError(hotspare.CodeImageDigest, "the file's SHA-256 differs", "",
			fmt.Sprintf("expected %s, got %s", promised, img.SourceSHA256), fixCopy)
	}
	src, err := openSource(f, fileSize, img.Format, r.opts.MaxDisk)
	if err != nil {
		return nil, err
	}
	img.SizeBytes = src.Size()
	img.Digest = img.SourceSHA256
	if img.Format != FormatRaw {
		if img.Digest, err = contentDigest(ctx, src); err != nil {
			return nil, err
		}
	}
	img.Volume = volumeName(img.Digest)
	return src, nil
}

// existing looks for the version among those that are there.
func (r *Repository) existing(img Image, req ImportRequest) (old Image, ok bool, err error) {
	old, err = r.Get(img.Name, img.Version)
	if err != nil {
		return Image{}, false, nil
	}
	differ := func(why string) (Image, bool, error) {
		return Image{}, false, imageError(hotspare.CodeImageExists, "that version exists with another content", img.Ref(), why,
			"give another version, or delete "+img.Ref()+" first")
	}
	if old.Digest != img.Digest {
		return differ(fmt.Sprintf("the disk of %s has digest %s, this one %s", old.Ref(), old.Digest, img.Digest))
	}
	for _, given := range []struct{ path, have string }{{req.Kernel, old.Kernel.Digest}, {req.Initrd, old.Initrd.Digest}} {
		if given.path == "" {
			continue
		}
		b, err := readGiven(given.path, maxKernel)
		if err != nil {
			return Image{}, false, err
		}
		if fmt.Sprintf("%x", sha256.Sum256(b)) != given.have {
			return differ(given.path + " differs from what was given then")
		}
	}
	if (req.Kernel == "") != (old.Kernel.Source != "given") || img.Cmdline != old.Cmdline {
		return differ("kernel or command line differ")
	}
	return old, true, nil
}

// inspect finds the system on the disk and takes kernel, modules and initrd.
func (r *Repository) inspect(ctx context.Context, img *Image, src source, req ImportRequest) error {
	disk := newBlockCache(src)
	sys, err := findSystem(disk, src.Size(), req.Kernel != "" && req.Modules != "")
	if err != nil {
		return err
	}
	img.RootPartition, img.RootFS, img.RootUUID, img.OSRelease = sys.root.number, sys.root.kind, sys.root.uuid, sys.release
	if err := r.takeKernel(ctx, img, sys, req); err != nil {
		return err
	}
	if req.Initrd == "" {
		return nil
	}
	f, _, err := openRegular(req.Initrd)
	if err != nil {
		return err
	}
	defer f.Close()
	img.Initrd, err = r.putBlob(f)
	return err
}

// store writes the disk's contents to their volume, unless an image has them
// already, and makes the image exist.
func (r *Repository) store(ctx context.Context, img *Image, src source) error {
	img.Created = r.opts.Now().UTC()
	for _, other := range r.List() {
		if other.Digest == img.Digest {
			img.DataBytes = other.DataBytes
			return r.commit(*img)
		}
	}
	if err := r.writeIntent(img.Volume); err != nil {
		return err
	}
	if err := r.fill(ctx, img, src); err != nil {
		if derr := r.deleteVolume(context.WithoutCancel(ctx), img.Volume); derr != nil {
			err = errors.Join(err, derr)
		}
		return err
	}
	if err := r.commit(*img); err != nil {
		return err
	}
	if err := os.Remove(r.intentPath(img.Volume)); err != nil {
		r.opts.Log.Warn("a finished import's note stays until the next start", "err", err)
	}
	return nil
}

func (r *Repository) fill(ctx context.Context, img *Image, src source) (err error) {
	disk, err := r.opts.Disks.Create(ctx, img.Volume, img.SizeBytes)
	if err != nil {
		return storeError("create the volume", err)
	}
	defer func() {
		if cerr := disk.Close(); err == nil && cerr != nil {
			err = storeError("close the volume", cerr)
		}
	}()
	sum, written, err := transfer(ctx, src, disk)
	if err != nil {
		return err
	}
	if sum != img.Digest {
		return imageError(hotspare.CodeImageDigest, "the file changed while it was imported", "",
			fmt.Sprintf("it began as %s and was written as %s", img.Digest, sum), "import it when nobody writes to it")
	}
	img.DataBytes = written
	if err := disk.Flush(); err != nil {
		return storeError("flush the volume", err)
	}
	if err := disk.Seal(ctx); err != nil {
		return storeError("seal the volume", err)
	}
	return nil
}

// storeError keeps the volume store's own code.
func storeError(doing string, err error) error {
	if hotspare.CodeOf(err) != "" {
		return fmt.Errorf("images: %s: %w", doing, err)
	}
	return diskError(doing, err)
}

// blockCache keeps the pieces of a disk that were read last. Looking for files
// reads the same tables over and over in small pieces, each of which would
// decompress a whole cluster of a qcow2 image.
type blockCache struct {
	src    source
	blocks map[int64][]byte
	order  []int64
}

const blockCacheSize = 512 // pieces of one grain

func newBlockCache(src source) *blockCache {
	return &blockCache{src: src, blocks: map[int64][]byte{}}
}

func (c *blockCache) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("images: negative offset")
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		b, err := c.block(at / grain)
		if err != nil {
			return n, err
		}
		if at%grain >= int64(len(b)) {
			return n, io.EOF
		}
		n += copy(p[n:], b[at%grain:])
	}
	return n, nil
}

func (c *blockCache) block(i int64) ([]byte, error) {
	if b, ok := c.blocks[i]; ok {
		return b, nil
	}
	off := i * grain
	if off >= c.src.Size() {
		return nil, io.EOF
	}
	b := make([]byte, min(grain, c.src.Size()-off))
	if n, err := c.src.ReadAt(b, off); n < len(b) {
		return nil, readShort(err, off+int64(n), c.src.Size())
	}
	if len(c.order) == blockCacheSize {
		delete(c.blocks, c.order[0])
		c.order = c.order[1:]
	}
	c.blocks[i], c.order = b, append(c.order, i)
	return b, nil
}
