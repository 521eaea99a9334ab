package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/images/build"
)

// Options of a Builder.
type Options struct {
	CacheDir string       // images live in CacheDir/NAME-DIGEST; required
	AptDir   string       // default /etc/apt
	Out      io.Writer    // what the tools print, for people; nil: only shown when they fail
	Log      *slog.Logger // nil: discard
}

func (o Options) withDefaults() Options {
	if o.AptDir == "" {
		o.AptDir = "/etc/apt"
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Image is one built image.
type Image struct {
	Version  int       `json:"version"` // of this record: 1
	Name     string    `json:"name"`
	Digest   string    `json:"digest"` // of the recipe
	Disk     string    `json:"-"`      // raw file, whole-disk ext4
	Kernel   string    `json:"-"`      // copy of the image's kernel, for direct boots and the KVM probe
	Initrd   string    `json:"-"`      // the image's own initramfs, for measurements only
	Suite    string    `json:"suite"`
	Built    time.Time `json:"built"`
	BuildS   float64   `json:"build_s"`
	Packages []string  `json:"packages"` // name=version of all that is installed
	Reused   bool      `json:"-"`
}

// Builder builds images and keeps them.
type Builder struct{ opts Options }

// New makes a builder.
func New(opts Options) (*Builder, error) {
	opts = opts.withDefaults()
	if opts.CacheDir == "" {
		return nil, errors.New("images: no cache directory given")
	}
	abs, err := filepath.Abs(opts.CacheDir) // mmdebstrap's hooks run elsewhere
	if err != nil {
		return nil, err
	}
	opts.CacheDir = abs
	return &Builder{opts: opts}, nil
}

// Build gives the image of a recipe, from the cache when the recipe is still
// the same. Two processes that build the same image wait for one another. An
// interrupted build leaves nothing that a later one would take for an image.
func (b *Builder) Build(ctx context.Context, name string) (Image, error) {
	recipe, err := Load(name)
	if err != nil {
		return Image{}, err
	}
	digest, err := Digest(name)
	if err != nil {
		return Image{}, err
	}
	if err := os.MkdirAll(b.opts.CacheDir, 0o755); err != nil {
		return Image{}, fmt.Errorf("image cache: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(b.opts.CacheDir, name+".lock"))
	if err != nil {
		return Image{}, err
	}
	defer unlock()

	dir := filepath.Join(b.opts.CacheDir, name+"-"+digest[:16])
	if img, err := read(dir); err == nil && img.Digest == digest {
		img.Reused = true
		return img, nil
	}
	if err := requirements(); err != nil {
		return Image{}, err
	}
	if err := b.sweep(name); err != nil {
		return Image{}, err
	}
	staging, err := os.MkdirTemp(b.opts.CacheDir, name+".building-")
	if err != nil {
		return Image{}, fmt.Errorf("image cache: %w", err)
	}
	defer func() { _ = os.RemoveAll(staging) }() // sweep removes what is left
	img := Image{Version: 1, Name: name, Digest: digest, Suite: recipe.Suite}
	if err := b.make(ctx, recipe, staging, &img); err != nil {
		return Image{}, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return Image{}, fmt.Errorf("image cache: %w", err)
	}
	if err := os.Rename(filepath.Join(staging, "image"), dir); err != nil {
		return Image{}, fmt.Errorf("image cache: %w", err)
	}
	return read(dir)
}

// Cached gives an image that Build has made, without building.
func (b *Builder) Cached(name string) (Image, bool) {
	digest, err := Digest(name)
	if err != nil {
		return Image{}, false
	}
	img, err := read(filepath.Join(b.opts.CacheDir, name+"-"+digest[:16]))
	return img, err == nil && img.Digest == digest
}

// make runs the tools: staging/root is filled, staging/image is the result.
func (b *Builder) make(ctx context.Context, recipe Recipe, staging string, img *Image) error {
	start := time.Now()
	host, err := build.HostSuite("/etc/os-release")
	if err != nil {
		return err
	}
	sources, err := build.Sources(b.opts.AptDir, host, recipe.Suite)
	if err != nil {
		return err
	}
	work := filepath.Join(staging, "recipe")
	if err := unpack(recipe.Name, work); err != nil {
		return err
	}
	root := filepath.Join(staging, "root")
	b.opts.Log.Info("bootstrap the image", "image", recipe.Name, "suite", recipe.Suite)
	if err := b.run(ctx, "mmdebstrap", bootstrapArgs(recipe, work, root, sources)...); err != nil {
		return err
	}
	out := filepath.Join(staging, "image")
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	if img.Packages, err = build.Installed(ctx, root); err != nil {
		return err
	}
	if err := keepKernel(root, out); err != nil {
		return err
	}
	if err := b.disk(ctx, recipe, root, filepath.Join(out, "disk.raw")); err != nil {
		return err
	}
	img.Built, img.BuildS = time.Now().UTC(), time.Since(start).Seconds()
	record, err := json.MarshalIndent(img, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "image.json"), append(record, '\n'), 0o644)
}

// bootstrapArgs are mmdebstrap's: a minimal root without recommended packages
// and without documents, then the recipe's files and scripts.
func bootstrapArgs(recipe Recipe, work, root string, sources []string) []string {
	args := []string{"--mode=root", "--variant=minbase", "--format=directory", "--include=" + strings.Join(recipe.Packages, ",")}
	for _, opt := range append(build.AptOptions(), `Apt::Install-Recommends "false"`) {
		args = append(args, "--aptopt="+opt)
	}
	for _, opt := range []string{
		"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/man/*",
		"path-exclude=/usr/share/info/*", "path-exclude=/usr/share/locale/*", "force-unsafe-io",
	} {
		args = append(args, "--dpkgopt="+opt)
	}
	own, common := filepath.Join(work, recipe.Name), filepath.Join(work, "common")
	if _, err := os.Stat(filepath.Join(own, "before.sh")); err == nil {
		args = append(args, "--essential-hook="+shell("sh", filepath.Join(own, "before.sh"))+` "$1"`)
	}
	args = append(args,
		"--customize-hook="+shell("cp", "-a", filepath.Join(common, "files")+"/.")+` "$1"/`,
		"--customize-hook="+shell("cp", "-a", filepath.Join(own, "files")+"/.")+` "$1"/`,
		"--customize-hook="+shell("cp", filepath.Join(own, "setup.sh"))+` "$1"/setup.sh && chroot "$1" sh /setup.sh && rm "$1"/setup.sh`,
		"--customize-hook="+shell("sh", filepath.Join(common, "finish.sh"))+` "$1" `+recipe.Name,
		recipe.Suite, root)
	return append(args, sources...)
}

// shell quotes words for a hook's command line.
func shell(words ...string) string {
	for i, w := range words {
		words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(words, " ")
}

// disk makes the file system. mke2fs copies the tree by itself: no mount.
func (b *Builder) disk(ctx context.Context, recipe Recipe, root, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(recipe.SizeMiB<<20), f.Close()); err != nil {
		return fmt.Errorf("make %s: %w", file, err)
	}
	return b.run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", recipe.Name, "-d", root, file)
}

// run runs a tool; its whole output goes into the error when it fails.
func (b *Builder) run(ctx context.Context, name string, args ...string) error {
	var kept bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = io.MultiWriter(b.opts.Out, &kept), io.MultiWriter(b.opts.Out, &kept)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	// Ask it to stop, so that mmdebstrap unmounts what it has mounted; its
	// children are in its group and get the signal too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &hotspare.Error{
			Code: hotspare.CodeMissingTool, What: "a step of the image build failed", Where: name, Err: err,
			Why: lastLines(kept.String(), 12), Fix: "read the lines above; check the network and the host's apt sources, then run it again",
		}
	}
	return nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// keepKernel copies kernel and initramfs beside the disk.
func keepKernel(root, out string) error {
	for _, kind := range []struct{ glob, to string }{{"vmlinuz-*", "vmlinuz"}, {"initrd.img-*", "initrd"}} {
		found, err := filepath.Glob(filepath.Join(root, "boot", kind.glob))
		if err != nil || len(found) == 0 {
			return &hotspare.Error{Code: hotspare.CodeImageKernel, What: "the image has no /boot/" + kind.glob, Where: root, Fix: "add a kernel package to the recipe", Err: err}
		}
		b, err := os.ReadFile(found[len(found)-1])
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(out, kind.to), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func read(dir string) (Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, "image.json"))
	if err != nil {
		return Image{}, err
	}
	var img Image
	if err := json.Unmarshal(b, &img); err != nil {
		return Image{}, err
	}
	if img.Version != 1 {
		return Image{}, fmt.Errorf("image record of version %d", img.Version)
	}
	img.Disk, img.Kernel, img.Initrd = filepath.Join(dir, "disk.raw"), filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	for _, f := range []string{img.Disk, img.Kernel, img.Initrd} {
		if _, err := os.Stat(f); err != nil {
			return Image{}, err
		}
	}
	return img, nil
}

// requirements are checked before the first byte is fetched.
func requirements() error {
	if os.Geteuid() != 0 {
		return &hotspare.Error{Code: hotspare.CodeNotRoot, What: "images are built by root", Why: "the tree holds files of many owners", Fix: "run it with sudo"}
	}
	for tool, pkg := range map[string]string{"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "dpkg-query": "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			return &hotspare.Error{Code: hotspare.CodeMissingTool, What: "a program is missing", Where: tool, Fix: "apt-get install " + pkg, Err: err}
		}
	}
	return nil
}

// sweep removes what an interrupted build left: mounts first, then the tree.
func (b *Builder) sweep(name string) error {
	left, err := filepath.Glob(filepath.Join(b.opts.CacheDir, name+".building-*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := build.Remove(dir); err != nil {
			return fmt.Errorf("remove an unfinished build: %w", err)
		}
	}
	return nil
}

// lock takes an advisory lock that dies with the process.
func lock(ctx context.Context, file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the image cache: %w", err)
	}
	var flock error // read after locked is closed
	locked := make(chan struct{})
	go func() {
		flock = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		close(locked)
	}()
	select {
	case <-locked:
		if flock != nil {
			f.Close()
			return nil, fmt.Errorf("lock the image cache: %w", flock)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		// The goroutine ends with the lock, which it lets go by closing.
		go func() {
			<-locked
			f.Close()
		}()
		return nil, ctx.Err()
	}
}
