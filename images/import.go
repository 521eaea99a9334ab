package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"hotspare"
)

// Import brings a disk into the repository. The same contents under the same
// name and version are imported once: the second import gives the first one's
// image. A failed or cancelled import leaves nothing behind.
//
// Errors: CodeInvalid (request, file cannot be read), CodeImageDigest,
// CodeImageTruncated, CodeImageBacking, CodeImageFormat, CodeImageKernel,
// CodeImageExists, CodeImageSignature, CodeDiskFull, and CodeNotRoot and
// CodeMissingTool for formats that a tool converts.
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
	if herr := r.heal(context.WithoutCancel(ctx)); herr != nil {
		if err == nil { // the image is there, and the next start heals
			r.opts.Log.Warn("the import's files are not cleared away", "err", herr)
			return img, nil
		}
		err = errors.Join(err, fmt.Errorf("images: clean up after the import: %w", herr))
	}
	if err != nil {
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

// An importing is one import under way.
type importing struct {
	r    *Repository
	req  ImportRequest
	img  Image
	key  *minisign.PublicKey // that the signature names; nil: not signed
	file *os.File            // as it was given
	size int64
	disk *os.File // file, or what was made of it; of the disk formats
	src  source
}

const given = "given" // the source of a kernel that the request named

func (r *Repository) importFile(ctx context.Context, req ImportRequest) (Image, error) {
	key, err := r.readSignature(req.Signature)
	if err != nil {
		return Image{}, err
	}
	if req.Tell == nil {
		req.Tell = func(Step) {}
	}
	m := &importing{r: r, req: req, key: key, img: Image{
		Name: req.Name, Version: req.Version, Format: req.Format, Origin: req.Origin, Cmdline: req.Cmdline, Labels: maps.Clone(req.Labels),
	}}
	defer m.close()
	return m.run(ctx)
}

func (m *importing) close() {
	for _, f := range []*os.File{m.file, m.disk} {
		if f != nil {
			f.Close()
		}
	}
}

func (m *importing) run(ctx context.Context) (Image, error) {
	switch {
	case len(m.req.Layers) > 0:
		if err := m.fromLayers(ctx); err != nil {
			return Image{}, err
		}
		return m.fromDisk(ctx, nil)
	case m.req.Path == "":
		return m.withoutDisk(ctx)
	}
	var err error
	if m.file, m.size, err = openRegular(m.req.Path); err != nil {
		return Image{}, err
	}
	before, err := stamp(m.file)
	if err != nil {
		return Image{}, err
	}
	pack, err := detectPacking(m.file)
	if err != nil {
		return Image{}, err
	}
	if pack == "" {
		if err := m.decide(m.file, m.size); err != nil {
			return Image{}, err
		}
	}
	// What needs no conversion and was not promised to be anything is read once
	// for the disk and, at the same time, once for its SHA-256. Otherwise nothing
	// is read from the file before it is known to be the right one.
	hashed := func() error { return nil }
	if pack == "" && m.key == nil && m.req.SHA256 == "" && (m.img.Format == FormatRaw || m.img.Format == FormatQCOW2) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		done := make(chan struct{})
		var herr error // read after done is closed
		go func() {
			defer close(done)
			var c checked
			if c, herr = checkFile(ctx, m.file, m.size, nil, nil, nil); herr != nil {
				cancel()
			}
			m.img.SourceSHA256 = c.sha256
		}()
		hashed = func() error {
			<-done
			return herr
		}
		defer hashed() // before the file is closed
		defer cancel()
	} else if err := m.check(ctx); err != nil {
		return Image{}, err
	}
	if err := m.open(ctx, pack); err != nil {
		return Image{}, err
	}
	if m.img.Format == FormatSquashfs {
		return m.squashfs(ctx)
	}
	return m.fromDisk(ctx, func() error {
		if err := hashed(); err != nil {
			return err
		}
		after, err := stamp(m.file)
		if err == nil && after != before {
			err = imageError(hotspare.CodeImageDigest, "the file changed while it was imported", "", "", "import it when nobody writes to it")
		}
		return err
	})
}

// stamp tells a file that was written to from one that was not.
func stamp(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("images: look at the file: %w", err)
	}
	return fmt.Sprint(st.Size, st.Mtim, st.Ctim), nil
}

// decide fixes the format.
func (m *importing) decide(f *os.File, size int64) error {
	var err error
	if m.img.Format == "" {
		if m.img.Format, err = detectFormat(f, size); err != nil {
			return err
		}
	}
	if m.img.Format == FormatQCOW2 {
		// Say at once what is wrong with a file, before minutes of reading.
		_, err = parseQCOW2Header(f, size, m.r.opts.MaxDisk)
	}
	return err
}

// check holds the file against the digest that was promised and its signature.
func (m *importing) check(ctx context.Context) error {
	c, err := checkFile(ctx, m.file, m.size, m.key, m.req.Signature, func(n int64) { m.req.Tell(Step{"check the file", n, m.size}) })
	if err != nil {
		return err
	}
	m.img.SourceSHA256, m.img.Signer = c.sha256, c.signer
	if m.req.SHA256 != "" && m.req.SHA256 != c.sha256 {
		return imageError(hotspare.CodeImageDigest, "the file's SHA-256 differs", "", fmt.Sprintf("expected %s, got %s", m.req.SHA256, c.sha256), fixCopy)
	}
	return nil
}

// open gives the disk that the file holds, after unpacking and converting it.
func (m *importing) open(ctx context.Context, pack packing) error {
	m.disk = m.file
	size := m.size
	if pack != "" {
		path, err := m.r.unpack(ctx, m.file, m.size, pack, m.r.opts.MaxDisk, func(n int64) { m.req.Tell(Step{"unpack", n, m.size}) })
		if err != nil {
			return err
		}
		if size, err = m.stage(path); err != nil {
			return err
		}
		if err := m.decide(m.disk, size); err != nil {
			return err
		}
	}
	read := m.img.Format
	var path string
	var err error
	switch m.img.Format {
	case FormatVMDK, FormatVHD, FormatVHDX:
		m.req.Tell(Step{Text: "convert " + string(m.img.Format)})
		path, err = m.r.convert(ctx, m.disk, size, m.img.Format)
	case FormatTar:
		path, err = m.fromTar(ctx, size)
	}
	if err != nil {
		return err
	}
	if path != "" {
		if size, err = m.stage(path); err != nil {
			return err
		}
		read = FormatRaw
	}
	if read == FormatSquashfs {
		return nil
	}
	m.src, err = openSource(m.disk, size, read, m.r.opts.MaxDisk)
	return err
}

// stage goes on with a file that was made of the one before.
func (m *importing) stage(path string) (int64, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return 0, err
	}
	if m.disk != nil && m.disk != m.file {
		m.disk.Close()
	}
	m.disk = f
	return size, nil
}

// fromDisk takes the system and the contents of m.src. whole is asked before the
// image exists: was the file what it seemed?
func (m *importing) fromDisk(ctx context.Context, whole func() error) (Image, error) {
	img := &m.img
	img.SizeBytes, img.DigestKind = m.src.Size(), DigestTree
	if old, err := m.r.Get(img.Name, img.Version); img.Version != "" && err == nil && old.Volume != "" && old.SizeBytes != img.SizeBytes {
		return Image{}, imageError(hotspare.CodeImageExists, "that version exists with another content", img.Ref(),
			fmt.Sprintf("its disk has %d bytes, this one %d", old.SizeBytes, img.SizeBytes), "give another version, or delete "+img.Ref()+" first")
	}
	if slices.ContainsFunc(m.r.List(), func(o Image) bool { return o.SizeBytes == img.SizeBytes }) {
		// It may be here already: look before anything is written.
		sum, _, err := transfer(ctx, m.src, nil, func(n int64) { m.req.Tell(Step{"compare", n, img.SizeBytes}) })
		if err != nil {
			return Image{}, err
		}
		img.Digest = sum
		if whole != nil {
			if err := whole(); err != nil {
				return Image{}, err
			}
		}
		if old, ok, err := m.known(); ok || err != nil {
			return old, err
		}
	}
	if err := m.inspect(ctx); err != nil {
		return Image{}, err
	}
	if err := m.fill(ctx); err != nil {
		return Image{}, err
	}
	if whole != nil {
		if err := whole(); err != nil {
			return Image{}, err
		}
	}
	if old, ok, err := m.known(); ok || err != nil {
		return old, err
	}
	return m.commit()
}

// known gives the image that the repository has already.
func (m *importing) known() (Image, bool, error) {
	if m.img.Version == "" {
		m.img.Version = m.img.Digest[:12]
	}
	if _, err := m.r.Channel(m.img.Name, m.img.Version); err == nil {
		return Image{}, false, imageError(hotspare.CodeImageExists, "that version is the name of a channel", m.img.Ref(), "", "give another version")
	}
	return m.r.existing(m.img, m.req)
}

func (m *importing) commit() (Image, error) {
	img := m.img
	img.Created = m.r.opts.Now().UTC()
	if err := m.r.commit(img); err != nil {
		return Image{}, err
	}
	if img.Volume != "" {
		if err := os.Remove(m.r.intentPath(img.Volume)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.r.opts.Log.Warn("a finished import's note stays until the next start", "err", err)
		}
	}
	m.r.opts.Log.Info("image imported", "image", img.Ref(), "digest", img.Digest, "volume", img.Volume, "kernel", img.Kernel.Version, "arch", img.Arch, "starts", img.Facts.Starts)
	return m.r.Get(img.Name, img.Version)
}

// inspect finds the system on the disk and takes kernel, modules and initrd. A
// disk that starts by itself needs no kernel that is found.
func (m *importing) inspect(ctx context.Context) error {
	m.req.Tell(Step{Text: "look for the system"})
	img, disk := &m.img, newBlockCache(m.src)
	sys, err := findSystem(disk, m.src.Size(), m.req.Kernel != "" && m.req.Modules != "")
	if err == nil {
		img.RootSubvolume = sys.subvol
		img.RootPartition, img.RootFS, img.RootUUID, img.OSRelease = sys.root.number, sys.root.kind, sys.root.uuid, sys.release
	}
	img.Facts = sys.observe(disk)
	if err == nil {
		err = m.r.takeKernel(ctx, img, sys, m.req)
	}
	if err != nil {
		if hotspare.CodeOf(err) != hotspare.CodeImageKernel || !img.Facts.Has(StartSAN) || m.req.Kernel != "" {
			return err
		}
		img.Kernel, img.Modules = Kernel{}, Blob{}
		img.Facts.Notes = append(img.Facts.Notes, "it starts by its own boot loader only: "+noteOf(err))
		img.Arch = archOf(img.Facts)
		return nil
	}
	img.Facts.Starts = append([]Start{StartKernel}, img.Facts.Starts...)
	if u := img.Facts.Userland; u != "" && u != img.Arch && (u != "386" || img.Arch != "amd64") {
		img.Facts.Notes = append(img.Facts.Notes, fmt.Sprintf("the kernel is for %s and the programs are for %s", img.Arch, u))
	}
	return m.takeInitrd()
}

func (m *importing) takeInitrd() error {
	if m.req.Initrd == "" {
		return nil
	}
	f, _, err := openRegular(m.req.Initrd)
	if err != nil {
		return err
	}
	defer f.Close()
	m.img.Initrd, err = m.r.putBlob(f)
	return err
}

// noteOf gives an error's own words without code and advice.
func noteOf(err error) string {
	var e *hotspare.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	parts := []string{e.What}
	for _, s := range []string{e.Where, e.Why} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// archOf gives the architecture of a disk whose kernel is not known.
func archOf(f Facts) string {
	if f.Userland != "" {
		return f.Userland
	}
	for _, w := range f.Firmware {
		if a, ok := strings.CutPrefix(w, "uefi-"); ok {
			return a
		}
	}
	return "amd64" // boot code of a BIOS
}

// fill writes the disk's contents to a volume, unless an image has them already.
func (m *importing) fill(ctx context.Context) (err error) {
	img, r := &m.img, m.r
	for _, other := range r.List() {
		if img.Digest != "" && other.Digest == img.Digest && other.DigestKind == img.DigestKind {
			img.Volume, img.DataBytes = other.Volume, other.DataBytes
			return nil
		}
	}
	img.Volume = newVolumeName()
	if err := r.writeIntent(img.Volume); err != nil {
		return err
	}
	disk, err := r.opts.Disks.Create(ctx, img.Volume, img.SizeBytes)
	if err != nil {
		return storeError("create the volume", err)
	}
	defer func() {
		if cerr := disk.Close(); err == nil && cerr != nil {
			err = storeError("close the volume", cerr)
		}
	}()
	sum, written, err := transfer(ctx, m.src, disk, func(n int64) { m.req.Tell(Step{"write the volume", n, img.SizeBytes}) })
	if err != nil {
		return err
	}
	if img.Digest != "" && sum != img.Digest {
		return imageError(hotspare.CodeImageDigest, "the file changed while it was imported", "",
			fmt.Sprintf("it began as %s and was written as %s", img.Digest, sum), "import it when nobody writes to it")
	}
	img.Digest, img.DataBytes = sum, written
	m.req.Tell(Step{"make it durable", img.SizeBytes, img.SizeBytes})
	if err := disk.Flush(); err != nil {
		return storeError("flush the volume", err)
	}
	if err := disk.Seal(ctx); err != nil {
		return storeError("seal the volume", err)
	}
	return nil
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
	switch {
	case old.DigestKind != img.DigestKind && old.SourceSHA256 == img.SourceSHA256 && old.SourceSHA256 != "":
		// Imported by an earlier version, which knew another digest.
	case old.DigestKind != img.DigestKind:
		return differ("it was imported by an earlier version of hotspare from another file")
	case old.Digest != img.Digest:
		return differ(fmt.Sprintf("the disk of %s has digest %s, this one %s", old.Ref(), old.Digest, img.Digest))
	}
	for _, g := range []struct{ path, have string }{{req.Kernel, old.Kernel.Digest}, {req.Initrd, old.Initrd.Digest}} {
		if g.path == "" {
			continue
		}
		b, err := readGiven(g.path, maxKernel)
		if err != nil {
			return Image{}, false, err
		}
		if fmt.Sprintf("%x", sha256.Sum256(b)) != g.have {
			return differ(g.path + " differs from what was given then")
		}
	}
	if (req.Kernel == "") != (old.Kernel.Source != given) || img.Cmdline != old.Cmdline {
		return differ("kernel or command line differ")
	}
	return old, true, nil
}

// storeError keeps the volume store's own code.
func storeError(doing string, err error) error {
	if hotspare.CodeOf(err) != "" {
		return fmt.Errorf("images: %s: %w", doing, err)
	}
	return diskError(doing, err)
}
