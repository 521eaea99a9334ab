package appliance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hotspare"
	"hotspare/images"
	"hotspare/images/build"
	"hotspare/images/fetch"
	"hotspare/ui/api"
)

// ImagesConfig says where images may come from and which are believed.
type ImagesConfig struct {
	TrustedKeys []string      `yaml:"trustedKeys"`  // minisign public keys: the second line of a .pub file
	SignedOnly  bool          `yaml:"signedOnly"`   // refuse what is not signed with one of them
	MaxDisk     int64         `yaml:"maxDiskBytes"` // bound of one disk and one file; default 1 TiB
	Sources     SourcesConfig `yaml:"sources"`
}

// SourcesConfig says from where images may be fetched. Addresses of the appliance
// itself, link-local and private ones are refused unless allowed.
type SourcesConfig struct {
	Allow       []netip.Prefix              `yaml:"allow"`
	Deny        []netip.Prefix              `yaml:"deny"`
	Proxy       string                      `yaml:"proxy"`       // e.g. http://proxy.example:3128; the environment is not read
	Credentials map[string]CredentialConfig `yaml:"credentials"` // by host, as in the URL
}

// CredentialConfig is a user and the file that holds the password.
type CredentialConfig struct {
	User         string `yaml:"user"`
	PasswordFile string `yaml:"passwordFile"`
}

// repository gives the options of the image repository.
func (c ImagesConfig) repository() images.Options {
	return images.Options{TrustedKeys: c.TrustedKeys, SignedOnly: c.SignedOnly, MaxDisk: c.MaxDisk}
}

// fetcher is made per import: it holds nothing that is worth keeping, and a
// password file may have changed.
func (a *Appliance) fetcher() (*fetch.Fetcher, error) {
	c := a.cfg.Images
	o := fetch.Options{Allow: c.Sources.Allow, Deny: c.Sources.Deny, Proxy: c.Sources.Proxy, MaxBytes: c.MaxDisk, Log: a.log.With("part", "images"), Credentials: map[string]fetch.Credential{}}
	for host, x := range c.Sources.Credentials {
		b, err := os.ReadFile(x.PasswordFile)
		if err != nil {
			return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a password file cannot be read", Where: x.PasswordFile, Fix: "correct images.sources.credentials", Err: err}
		}
		o.Credentials[host] = fetch.Credential{User: x.User, Password: hotspare.NewSecret(strings.TrimSpace(string(b)))}
	}
	return fetch.New(o)
}

// BeginImageTask begins an import, a build, a verification or a collection.
func (a *Appliance) BeginImageTask(ctx context.Context, r api.ImageTask) (api.Task, error) {
	var x *task
	var err error
	switch r.Kind {
	case "import":
		x, err = a.beginImageImport(r)
	case "build":
		x, err = a.beginImageBuild(r)
	case "verify":
		x, err = a.beginImageVerify(r)
	case "collect":
		x, err = a.beginImageCollect(r)
	default:
		err = &hotspare.Error{Code: hotspare.CodeInvalid, What: "there is no such task", Where: r.Kind, Fix: "hotspare image --help lists the orders"}
	}
	if err != nil {
		return api.Task{}, err
	}
	return x.snapshot(), nil
}

// importOf checks a request before its task begins.
func importOf(r api.ImageTask) (images.ImportRequest, error) {
	in := r.Import
	bad := func(what, why, fix string) (images.ImportRequest, error) {
		return images.ImportRequest{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: in.Name, Why: why, Fix: fix}
	}
	sources := 0
	for _, s := range []string{in.File, in.URL, in.Upload} {
		if s != "" {
			sources++
		}
	}
	if sources > 1 || sources == 0 && (in.Kernel == "" || in.Initrd == "") {
		return bad("the image cannot be imported", fmt.Sprintf("%d sources are named", sources), "name a file, a URL or an upload, or a kernel and an initrd")
	}
	for _, p := range []string{in.File, in.Kernel, in.Initrd, in.Modules} {
		switch {
		case p == "":
		case !r.Local:
			return bad("paths are taken over the unix socket only", p+" is a file of the appliance", "upload the file: hotspare image upload, or run the command on the appliance")
		case !filepath.IsAbs(p):
			return bad("a path is not absolute", p, "give the path as the appliance sees it")
		}
	}
	format := images.Format(in.Format)
	if in.Format == "auto" {
		format = ""
	}
	if in.Signature != "" && fetch.IsReference(in.URL) {
		return bad("a registry's image carries no minisign signature", in.URL, "name it by digest, or import its file")
	}
	return images.ImportRequest{
		Name: in.Name, Version: in.Version, Path: in.File, Format: format, SHA256: in.SHA256, Signature: []byte(in.Signature),
		Kernel: in.Kernel, Initrd: in.Initrd, Modules: in.Modules, Cmdline: in.Cmdline, Labels: in.Labels, DiskSize: in.DiskBytes,
	}, nil
}

func (a *Appliance) beginImageImport(r api.ImageTask) (*task, error) {
	req, err := importOf(r)
	if err != nil {
		return nil, err
	}
	in := r.Import
	if in.Upload != "" {
		u, err := a.images.Upload(in.Upload)
		if err != nil {
			return nil, err
		}
		if u.Offset != u.Size {
			return nil, &hotspare.Error{Code: hotspare.CodeConflict, What: "the upload is not complete", Where: u.ID, Why: fmt.Sprintf("%d of %d bytes are here", u.Offset, u.Size), Fix: "send the rest"}
		}
		req.Path, req.SHA256 = u.Path, u.SHA256
	}
	v := api.Task{Kind: "image import", Volume: in.Name, By: r.By, Text: "imports " + in.Name}
	return a.tasks.begin("import of image "+in.Name, v, func(ctx context.Context, x *task) error {
		req.Tell = tellStep(x)
		done := func() error { return nil }
		if in.URL != "" {
			if done, err = a.fetchImage(ctx, x, in, &req); err != nil {
				return err
			}
		}
		if err := a.finishImport(ctx, x, req, in.Channel, r.By); err != nil {
			switch hotspare.CodeOf(err) {
			case hotspare.CodeImageDigest, hotspare.CodeImageTruncated, hotspare.CodeImageFormat, hotspare.CodeImageSignature:
				err = errors.Join(err, done()) // another try must not find the same bytes again
			}
			return err
		}
		if in.Upload != "" {
			done = func() error { return a.images.EndUpload(in.Upload) }
		}
		if err := done(); err != nil {
			a.log.WarnContext(ctx, "what an image was imported from stays for a week", "image", in.Name, "err", err)
		}
		return nil
	})
}

// tellStep shows in a task how far an import is.
func tellStep(x *task) func(images.Step) {
	return func(s images.Step) {
		x.progress(func(v *api.Task) { v.Text, v.Done, v.Total = s.Text, s.Done, s.Total })
	}
}

// fetchImage downloads what a URL names. done removes the download; until then a
// further import of the same URL goes on with it.
func (a *Appliance) fetchImage(ctx context.Context, x *task, in api.ImageSource, req *images.ImportRequest) (done func() error, err error) {
	f, err := a.fetcher()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.Sum256([]byte(in.URL + "\n" + in.Arch))
	dir, remove, err := a.images.Download(hex.EncodeToString(sum[:16]))
	if err != nil {
		return nil, err
	}
	tell := func(n, total int64) {
		x.progress(func(v *api.Task) { v.Text, v.Done, v.Total = "downloads "+in.Name, n, total })
	}
	req.Origin = originOf(in.URL)
	if !fetch.IsReference(in.URL) {
		req.Path, err = f.Get(ctx, in.URL, dir, tell)
		return remove, err
	}
	arch := in.Arch
	if arch == "" {
		arch = "amd64"
	}
	got, err := f.Pull(ctx, in.URL, dir, arch, tell)
	if err != nil {
		return remove, err
	}
	switch {
	case req.SHA256 != "" && req.SHA256 != got.Digest:
		return remove, &hotspare.Error{Code: hotspare.CodeImageDigest, What: "the manifest's SHA-256 differs", Where: req.Origin, Why: "expected " + req.SHA256 + ", got " + got.Digest, Fix: "check the reference"}
	case a.cfg.Images.SignedOnly:
		return remove, &hotspare.Error{Code: hotspare.CodeImageSignature, What: "the signature is not accepted", Where: req.Origin, Why: "only signed images are taken, and those of a registry carry no minisign signature", Fix: "import the signed file"}
	}
	req.Path, req.Layers, req.SHA256 = got.File, got.Layers, ""
	if len(got.Layers) > 0 {
		req.SHA256 = got.Digest
	}
	return remove, nil
}

// originOf gives a URL without what may be secret in it.
func originOf(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// finishImport imports, prepares the first boot and promotes.
func (a *Appliance) finishImport(ctx context.Context, x *task, req images.ImportRequest, channel, by string) error {
	a.log.InfoContext(ctx, "image import", "image", req.Name, "origin", req.Origin, "by", by)
	img, err := a.images.Import(ctx, req)
	if err != nil {
		return err
	}
	if img.Facts.Has(images.StartKernel) { // now rather than in the first failover
		x.set(func(v *api.Task) { v.Text = "makes the initramfs" })
		if _, err := a.boots.initramfs(ctx, img); err != nil {
			return err
		}
	}
	if channel != "" {
		if _, err := a.images.Promote(ctx, img.Name, img.Version, channel, by, "imported"); err != nil {
			return err
		}
	}
	if err := a.tellImages(ctx); err != nil {
		return err
	}
	x.set(func(v *api.Task) {
		v.Done, v.Total = max(img.SizeBytes, v.Done), max(img.SizeBytes, v.Done)
		v.Image, v.Text = img.Ref(), img.Ref()+" is imported"
	})
	return nil
}

func (a *Appliance) beginImageBuild(r api.ImageTask) (*task, error) {
	if !r.Local {
		return nil, &hotspare.Error{Code: hotspare.CodeUnauthorized, What: "images are built over the unix socket only", Why: "a recipe runs code as root on the appliance", Fix: "run hotspare image build on the appliance"}
	}
	recipe, err := build.Parse([]byte(r.Recipe))
	if err != nil {
		return nil, err
	}
	if a.cfg.Images.SignedOnly {
		return nil, &hotspare.Error{Code: hotspare.CodeImageSignature, What: "the image cannot be built here", Where: recipe.Name, Why: "only signed images are taken (images.signedOnly)", Fix: "build it elsewhere, sign the disk and import it"}
	}
	v := api.Task{Kind: "image build", Volume: recipe.Name, By: r.By, Text: "builds " + recipe.Name}
	return a.tasks.begin("build of image "+recipe.Name, v, func(ctx context.Context, x *task) error {
		// Beside the repository, not in it: its staging is emptied by each import.
		dir, err := os.MkdirTemp(a.cfg.State, buildPrefix)
		if err != nil {
			return fmt.Errorf("build folder: %w", err)
		}
		defer func() {
			if err := build.Remove(dir); err != nil {
				a.log.WarnContext(ctx, "a build folder stays", "folder", dir, "err", err)
			}
		}()
		disk := filepath.Join(dir, "disk.raw")
		res, err := build.Build(ctx, recipe, disk, build.Options{Work: dir, Log: a.log.With("part", "images"), Tell: func(s string) { x.set(func(v *api.Task) { v.Text = s }) }})
		if err != nil {
			return err
		}
		req := images.ImportRequest{
			Name: recipe.Name, Version: r.Import.Version, Path: disk, Format: images.FormatRaw, Cmdline: recipe.Cmdline, Origin: "recipe " + res.Recipe[:16], Tell: tellStep(x),
		}
		return a.finishImport(ctx, x, req, r.Import.Channel, r.By)
	})
}

func (a *Appliance) beginImageVerify(r api.ImageTask) (*task, error) {
	img, err := a.images.Resolve(r.Image)
	if err != nil {
		return nil, err
	}
	v := api.Task{Kind: "image verify", Volume: img.Ref(), Image: img.Ref(), By: r.By, Text: "compares " + img.Ref() + " with its digests"}
	return a.tasks.begin("verification of image "+img.Ref(), v, func(ctx context.Context, x *task) error {
		if err := a.images.Verify(ctx, img); err != nil {
			return err
		}
		if img.Volume != "" {
			dev, err := a.store.OpenVolume(img.Volume)
			if err != nil {
				return err
			}
			defer dev.Close()
			// The store compares every block that is read with its checksum.
			got, err := images.DigestOf(ctx, volumeSource{dev, a.store, img.Volume}, img.DigestKind, tellStep(x))
			if err != nil {
				return err
			}
			if got != img.Digest {
				return &hotspare.Error{Code: hotspare.CodeCorrupt, What: "the image's volume is not what was imported", Where: img.Volume, Why: "its digest is " + got + ", recorded is " + img.Digest, Fix: "check the disk; import the image again as a new version"}
			}
		}
		x.set(func(v *api.Task) { v.Text = img.Ref() + " is what was imported" })
		return nil
	})
}

// imageUsers says who uses images: applications by their specification, and
// everything that was booted and is not forgotten.
type imageUsers struct{ a *Appliance }

// ImageUses lists the images that are in use.
func (u imageUsers) ImageUses(context.Context) ([]images.Use, error) {
	if u.a.engine == nil || u.a.attempts == nil {
		return nil, errors.New("the engine does not run yet")
	}
	var out []images.Use
	for _, app := range u.a.engine.Snapshot().Durable.Apps {
		out = append(out, images.Use{Ref: app.Spec.Image, By: "application " + app.Spec.Name})
	}
	u.a.attempts.find(func(x attempt) bool {
		if x.Image != "" {
			out = append(out, images.Use{Ref: x.Image, By: "the boot of node " + x.Node})
		}
		return false
	})
	return out, nil
}

func retentionOf(r api.ImageRetention) images.Retention {
	names := slices.DeleteFunc(slices.Clone(r.Names), func(s string) bool { return s == "" })
	return images.Retention{Newest: r.Newest, Age: time.Duration(r.Days) * 24 * time.Hour, Names: names}
}

// ImageGarbage says what a collection would remove.
func (a *Appliance) ImageGarbage(ctx context.Context, r api.ImageRetention) (api.ImageGarbage, error) {
	g, err := a.images.PreviewGarbage(ctx, imageUsers{a}, retentionOf(r))
	return garbageView(g), err
}

func garbageView(g images.Garbage) api.ImageGarbage {
	view := func(all []images.GarbageItem) []api.ImageVerdict {
		out := []api.ImageVerdict{}
		for _, i := range all {
			out = append(out, api.ImageVerdict{Image: i.Ref, Why: i.Why, Bytes: i.Bytes})
		}
		return out
	}
	return api.ImageGarbage{Remove: view(g.Remove), Keep: view(g.Keep), Bytes: g.Bytes}
}

func (a *Appliance) beginImageCollect(r api.ImageTask) (*task, error) {
	v := api.Task{Kind: "image gc", By: r.By, Text: "removes images that nobody uses"}
	return a.tasks.begin("collection of images", v, func(ctx context.Context, x *task) error {
		g, err := a.images.CollectGarbage(ctx, imageUsers{a}, retentionOf(r.Retention))
		x.set(func(v *api.Task) {
			v.Done, v.Total = g.Bytes, g.Bytes
			v.Text = fmt.Sprintf("%d versions removed, %d kept", len(g.Remove), len(g.Keep))
		})
		return errors.Join(err, a.tellImages(ctx))
	})
}

// RecordImageTest keeps the outcome of a test-boot.
func (a *Appliance) RecordImageTest(ctx context.Context, ref, digest string, t api.ImageTest) (api.Image, error) {
	img, err := a.images.Resolve(ref)
	if err != nil {
		return api.Image{}, err
	}
	img, err = a.images.RecordTest(ctx, img.Name, img.Version, digest, images.Test{At: time.Now().UTC(), By: t.By, OK: t.OK, Way: t.Way, Machine: t.Machine, Text: t.Text})
	if err != nil {
		return api.Image{}, err
	}
	a.log.InfoContext(ctx, "an image was tested", "image", img.Ref(), "ok", t.OK, "by", t.By)
	return imageView(img), nil
}

// Channels lists channels, of one image or of all.
func (a *Appliance) Channels(_ context.Context, name string) ([]api.ImageChannel, error) {
	var out []api.ImageChannel
	for _, c := range a.images.Channels(name) {
		out = append(out, channelView(c))
	}
	return out, nil
}

func channelView(c images.Channel) api.ImageChannel {
	v := api.ImageChannel{Name: c.Name, Channel: c.Channel, Version: c.Version, Previous: c.Previous(), History: []api.ImagePromotion{}}
	for _, p := range c.History {
		v.History = append(v.History, api.ImagePromotion{Version: p.Version, At: p.At, By: p.By, Reason: p.Reason, Back: p.Back})
	}
	return v
}

// ChangeChannel promotes, rolls back or deletes. What runs goes on with what it
// was started from; the next start takes the new version.
func (a *Appliance) ChangeChannel(ctx context.Context, c api.ChannelChange) (api.ImageChannel, error) {
	var out images.Channel
	var err error
	switch c.Verb {
	case "promote":
		out, err = a.images.Promote(ctx, c.Name, c.Version, c.Channel, c.By, c.Reason)
	case "rollback":
		out, err = a.images.Rollback(ctx, c.Name, c.Channel, c.By, c.Reason)
	default:
		for _, app := range a.engine.Snapshot().Durable.Apps {
			if app.Spec.Image == c.Name+":"+c.Channel {
				return api.ImageChannel{}, &hotspare.Error{Code: hotspare.CodeConflict, What: "the channel is in use", Where: app.Spec.Image, Why: "application " + app.Spec.Name + " names it", Fix: "give the application another image first"}
			}
		}
		err = a.images.DeleteChannel(ctx, c.Name, c.Channel)
	}
	if err != nil {
		return api.ImageChannel{}, err
	}
	return channelView(out), a.tellImages(ctx)
}

// Upload begins, shows, adds to and ends uploads.
func (a *Appliance) Upload(ctx context.Context, c api.UploadChange) (api.ImageUpload, error) {
	var u images.Upload
	var err error
	switch c.Verb {
	case "begin":
		u, err = a.images.BeginUpload(ctx, c.Size, c.SHA256, c.By)
	case "append":
		u, err = a.images.Append(ctx, c.ID, c.Offset, c.Data)
	case "end":
		return api.ImageUpload{}, a.images.EndUpload(c.ID)
	default:
		u, err = a.images.Upload(c.ID)
	}
	if err != nil {
		return api.ImageUpload{}, err
	}
	return api.ImageUpload{ID: u.ID, SizeBytes: u.Size, OffsetBytes: u.Offset, SHA256: u.SHA256, By: u.By, Begun: u.Begun, PieceBytes: images.MaxAppend}, nil
}

// buildPrefix begins the names of the folders that images are built in.
const buildPrefix = "build-"

// dropBuilds removes what builds of a killed process left, mounts first.
func (a *Appliance) dropBuilds() error {
	left, err := filepath.Glob(filepath.Join(a.cfg.State, buildPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if err := build.Remove(dir); err != nil {
			return fmt.Errorf("an unfinished build cannot be removed: %w", err)
		}
		a.log.Info("the folder of an unfinished build is removed", "folder", dir)
	}
	return nil
}
