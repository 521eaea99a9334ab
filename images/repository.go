package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"

	"hotspare"
)

// Options of a repository.
type Options struct {
	Disks Disks        // required
	Log   *slog.Logger // nil discards
	// MaxDisk bounds the size of a disk in bytes. Default 1 TiB.
	MaxDisk int64
	// MaxModules bounds the module tree of an image in bytes. Default 2 GiB.
	MaxModules int64
	// TrustedKeys are minisign public keys, as their .pub files have them.
	TrustedKeys []string
	// SignedOnly refuses what is not signed with a trusted key.
	SignedOnly bool
	// Now gives the time of an import. Default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxDisk == 0 {
		o.MaxDisk = 1 << 40
	}
	if o.MaxModules == 0 {
		o.MaxModules = 2 << 30
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	if o.Disks == nil {
		return errors.New("images: Options.Disks is needed")
	}
	return nil
}

// Repository holds the records and files of all images in one directory:
//
//	lock                            held by the process that has it open
//	records/<name>@<version>.json   one image; its presence is the image's existence
//	blobs/sha256/<hex>              kernels, initrds, configs, module trees
//	channels/<name>@<channel>.json  where a channel leads, and led before
//	incoming/<id>/                  uploads and downloads that are not complete
//	staging/                        what an import is doing; emptied by Open
//
// It is safe for concurrent use. Imports and deletions run one at a time.
type Repository struct {
	dir  string
	opts Options
	lock *os.File
	gate chan struct{} // holds one token: the right to change the repository

	mu      sync.RWMutex
	images  map[string]Image // by Ref
	broken  []error
	stopped bool

	keys     []minisign.PublicKey
	channels map[string]Channel // by Ref; guarded by mu
	incoming incoming
}

// Open opens the repository in dir, makes it if there is none, and removes what
// an interrupted import or deletion left. A record that cannot be read is set
// aside (see Problems) and does not keep the others from being used.
func Open(ctx context.Context, dir string, opts Options) (*Repository, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	keys, err := trustedKeys(opts.TrustedKeys)
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	for _, d := range []string{"records", "blobs/sha256", "channels", "incoming", "staging"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("images: make the repository: %w", err)
		}
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	r := &Repository{dir: dir, opts: opts, lock: lock, gate: make(chan struct{}, 1), images: map[string]Image{}, keys: keys, channels: map[string]Channel{}}
	r.incoming.dir = filepath.Join(dir, "incoming")
	r.gate <- struct{}{}
	if err := errors.Join(r.load(), r.loadChannels(), r.incoming.sweep(opts.Now())); err != nil {
		lock.Close()
		return nil, err
	}
	if err := r.heal(ctx); err != nil {
		lock.Close()
		return nil, err
	}
	return r, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("images: open the lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &hotspare.Error{Code: hotspare.CodeStoreLocked, What: "the image repository is in use", Where: dir,
			Why: "another process has it open", Fix: "stop the other hotspare process", Err: err}
	}
	return f, nil
}

// Close waits for a running import or deletion and gives the directory back.
func (r *Repository) Close() error {
	<-r.gate
	defer func() { r.gate <- struct{}{} }()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil
	}
	r.stopped = true
	return r.lock.Close()
}

// enter takes the right to change the repository.
func (r *Repository) enter(ctx context.Context) (leave func(), err error) {
	select {
	case <-r.gate:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	leave = func() { r.gate <- struct{}{} }
	r.mu.RLock()
	stopped := r.stopped
	r.mu.RUnlock()
	if stopped {
		leave()
		return nil, fmt.Errorf("images: %w", fs.ErrClosed)
	}
	return leave, nil
}

// Problems lists the records that could not be read when the repository was
// opened. Nothing is healed away while there are any.
func (r *Repository) Problems() []error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Clone(r.broken)
}

// List gives all images, sorted by name, within a name the newest first.
func (r *Repository) List() []Image {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]Image, 0, len(r.images))
	for _, img := range r.images {
		all = append(all, img)
	}
	slices.SortFunc(all, func(a, b Image) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return compareVersions(b.Version, a.Version)
	})
	return all
}

// Get gives one version of an image.
func (r *Repository) Get(name, version string) (Image, error) {
	r.mu.RLock()
	img, ok := r.images[name+":"+version]
	r.mu.RUnlock()
	if !ok {
		return Image{}, r.notFound(name + ":" + version)
	}
	return img, nil
}

// Resolve gives the image that ref means: "name:version" is that version,
// "name:channel" the one that the channel leads to now, "name" the one that was
// imported last.
func (r *Repository) Resolve(ref string) (Image, error) {
	name, version, ok := strings.Cut(ref, ":")
	if ok {
		if c, err := r.Channel(name, version); err == nil {
			version = c.Version
		}
		return r.Get(name, version)
	}
	for _, img := range r.List() {
		if img.Name == name {
			return img, nil
		}
	}
	return Image{}, r.notFound(ref)
}

func (r *Repository) notFound(ref string) error {
	var known []string
	for _, img := range r.List() {
		known = append(known, img.Ref())
	}
	why := "the repository is empty"
	if len(known) > 0 {
		why = "it has " + strings.Join(known, ", ")
	}
	return &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such image", Where: ref, Why: why,
		Fix: "import it: hotspare image import --name NAME FILE"}
}

// OpenKernel opens the kernel of an image for reading. *os.File is an
// io.ReadSeeker, as an HTTP server with ranges wants it.
func (r *Repository) OpenKernel(img Image) (*os.File, error) { return os.Open(img.Kernel.Path) }

// OpenModules reads the module tree of an image as an uncompressed tar.
func (r *Repository) OpenModules(img Image) (io.ReadCloser, error) {
	return openZstd(img.ModulesPath)
}

// Delete removes a version: first its record, then its volume and its files
// unless another version has the same. A version that a channel leads to is not
// removed. That no application uses it is for the caller to know.
func (r *Repository) Delete(ctx context.Context, name, version string) error {
	leave, err := r.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return r.remove(ctx, name, version)
}

// remove is Delete for who is in already.
func (r *Repository) remove(ctx context.Context, name, version string) error {
	img, err := r.Get(name, version)
	if err != nil {
		return err
	}
	for _, c := range r.Channels(name) {
		if c.Version == version {
			return &hotspare.Error{Code: hotspare.CodeConflict, What: "a channel leads to the image", Where: img.Ref(), Why: "it is " + c.Ref() + " now",
				Fix: "promote another version first: hotspare image promote " + name + ":VERSION " + c.Channel}
		}
	}
	if img.Volume != "" {
		if err := r.writeIntent(img.Volume); err != nil {
			return err
		}
	}
	if err := r.removeRecord(img); err != nil {
		return err
	}
	r.opts.Log.Info("image deleted", "image", img.Ref(), "volume", img.Volume)
	return r.heal(ctx)
}

func (r *Repository) blobPath(b Blob) string {
	if b.Digest == "" {
		return ""
	}
	return filepath.Join(r.dir, "blobs", "sha256", b.Digest)
}

// withPaths fills the paths that a record leaves out, so that a repository can
// be moved.
func (r *Repository) withPaths(img Image) Image {
	img.Kernel.Path = r.blobPath(img.Kernel.Blob)
	img.Kernel.ConfigPath = r.blobPath(img.Kernel.Config)
	img.ModulesPath = r.blobPath(img.Modules)
	img.InitrdPath = r.blobPath(img.Initrd)
	img.RootPath = r.blobPath(img.Root)
	return img
}
