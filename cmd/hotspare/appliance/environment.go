package appliance

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/boot/standby"
	"hotspare/haengine"
	"hotspare/images"
)

// bootFile is a file that nodes fetch.
type bootFile struct {
	path, digest string
	bytes        int64
}

// hostEnvironment is the environment on the kernel of the appliance's own host: no
// image is needed for it. It is built when it is first asked for, and again when
// the host has a newer kernel; what is served was signed by this appliance.
type hostEnvironment struct {
	cfg   Config
	cache string
	key   ed25519.PrivateKey
	root  string // "/", but in tests

	mu     sync.Mutex
	built  map[string]standby.Environment // by kernel release
	last   standby.Kernel                 // the newest when it was looked for
	looked time.Time
}

func openHostEnvironment(cfg Config, cache string) (*hostEnvironment, error) {
	key, err := environmentKey(filepath.Join(cfg.State, "environment.key"))
	if err != nil {
		return nil, err
	}
	return &hostEnvironment{cfg: cfg, cache: cache, key: key, root: "/", built: map[string]standby.Environment{}}, nil
}

// environmentKey reads the key that signs environments, or makes it at the first
// start.
func environmentKey(path string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		block := pem.EncodeToMemory(&pem.Block{Type: "HOTSPARE ED25519 SEED", Bytes: key.Seed()})
		return key, writeFile(path, block, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("key of the environments: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || len(block.Bytes) != ed25519.SeedSize {
		return nil, &hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: "the key of the environments cannot be read", Where: path,
			Fix: "move the file away: a new one is drawn, and the environments are built again",
		}
	}
	return ed25519.NewKeyFromSeed(block.Bytes), nil
}

// newest gives the newest kernel that the host had within the last minute: looking
// for it walks through all modules.
func (h *hostEnvironment) newest(ctx context.Context) (standby.Kernel, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.looked) < time.Minute {
		return h.last, nil
	}
	found, err := standby.HostKernels(ctx, h.root)
	if err != nil {
		return standby.Kernel{}, err
	}
	if len(found) == 0 {
		return standby.Kernel{}, noHostKernel(filepath.Join(h.root, "boot"), "")
	}
	h.last, h.looked = found[0], time.Now()
	return h.last, nil
}

func noHostKernel(where, version string) error {
	why := "there is none with its modules"
	if version != "" {
		why = version + " is not there any more"
	}
	return &hotspare.Error{
		Code: hotspare.CodeMissingTool, What: "this host has no kernel with its modules for nodes to wait on", Where: where, Why: why,
		Fix: "apt-get install linux-image-amd64, or name an image: standby.kernel of the pool, discovery.image of the configuration",
	}
}

// get gives the environment of a release, or of the newest for "".
func (h *hostEnvironment) get(ctx context.Context, version string) (standby.Environment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e, ok := h.built[version]; ok {
		return e, h.verify(e)
	}
	found, err := standby.HostKernels(ctx, h.root)
	if err != nil {
		return standby.Environment{}, err
	}
	i := 0
	if version != "" {
		i = slices.IndexFunc(found, func(k standby.Kernel) bool { return k.Version == version })
	}
	if i < 0 || len(found) == 0 {
		return standby.Environment{}, noHostKernel(filepath.Join(h.root, "boot"), version)
	}
	e, err := standby.BuildEnvironment(ctx, found[i], standby.Request{
		Agent: h.cfg.agentFor(runtime.GOARCH), Arch: runtime.GOARCH, Set: standby.Set(h.cfg.Modules),
	}, h.cache, h.key)
	if err == nil {
		h.built[found[i].Version] = e
	}
	return e, err
}

// verify holds what is about to be served against the signed manifest.
func (h *hostEnvironment) verify(e standby.Environment) error {
	text, err := os.ReadFile(e.Path)
	if err != nil {
		return err
	}
	m, err := standby.ParseManifest(text, h.key.Public().(ed25519.PublicKey))
	if err != nil {
		return err
	}
	if m != e.Manifest {
		return &hotspare.Error{Code: hotspare.CodeInitramfs, What: "the standby environment is not the one that was built", Where: e.Path, Fix: "remove the folder: it is built again"}
	}
	return nil
}

// hostImage stands in an attempt's image for the host's kernel of a release.
const hostImage = "host kernel "

// hostVersion gives the release of an attempt that is on the host's kernel.
func hostVersion(image string) (string, bool) { return strings.CutPrefix(image, hostImage) }

// waitsOn gives what a standby boot is on: an image's reference, resolved, or the
// host's kernel.
func (b *boots) waitsOn(ctx context.Context, ref string) (string, error) {
	if ref != "" && ref != haengine.KernelOfAppliance {
		img, err := b.images.Resolve(ref)
		return img.Ref(), err
	}
	k, err := b.host.newest(ctx)
	return hostImage + k.Version, err
}

// files gives the kernel and the initramfs of an attempt's image, built if they are
// not there yet, and the identity of the kernel.
func (b *boots) files(ctx context.Context, image string) (kernel, initrd bootFile, id string, err error) {
	if version, ok := hostVersion(image); ok {
		e, err := b.host.get(ctx, version)
		m := e.Manifest
		return bootFile{e.Kernel, m.Vmlinuz.SHA256, m.Vmlinuz.Bytes}, bootFile{e.Initrd, m.Initrd.SHA256, m.Initrd.Bytes}, kernelIdentity(version, m.Vmlinuz.SHA256), err
	}
	img, err := b.images.Resolve(image)
	if err != nil {
		return kernel, initrd, "", err
	}
	res, err := b.initramfs(ctx, img)
	return bootFile{img.Kernel.Path, img.Kernel.Digest, img.Kernel.Size}, bootFile{res.Path, res.Digest, res.Size}, kernelID(img), err
}

// kernelID is the identity of an image's kernel: a node that runs it for one image
// can become another image with the same one without a boot. The modules of a
// release belong to one build of its kernel.
func kernelID(img images.Image) string { return kernelIdentity(img.Kernel.Version, img.Kernel.Digest) }

func kernelIdentity(version, digest string) string {
	if version == "" || len(digest) < 16 {
		return ""
	}
	return version + " " + digest[:16]
}
