package images

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hotspare"
)

// Use is one reason to keep an image. Ref is as its user spells it: name,
// name:version or name:channel.
type Use struct {
	Ref string
	By  string // e.g. "application orders"
}

// Users knows who uses images: the appliance.
type Users interface {
	ImageUses(ctx context.Context) ([]Use, error)
}

// Retention says what is kept although nobody uses it.
type Retention struct {
	// Newest versions of each name. Default 2.
	Newest int
	// Age below which nothing is removed. Default 0.
	Age time.Duration
	// Names limits the collection to these images; none: all.
	Names []string
}

func (o Retention) withDefaults() Retention {
	if o.Newest == 0 {
		o.Newest = 2
	}
	return o
}

// Garbage is what a collection removes, or would remove.
type Garbage struct {
	Remove []GarbageItem `json:"remove"`
	Keep   []GarbageItem `json:"keep"`
	Bytes  int64         `json:"bytes"` // that Remove frees, as written at import
}

// GarbageItem is one version, and why it goes or stays.
type GarbageItem struct {
	Ref   string `json:"ref"`
	Why   string `json:"why"`
	Bytes int64  `json:"bytes,omitempty"` // that its removal frees, after those before it
}

// planGarbage decides what is removed. It is pure: images newest first within a
// name, channels, uses and the time are given. Whatever a use or a channel may
// mean is kept; a use that means nothing known keeps all versions of its name.
func planGarbage(all []Image, channels []Channel, uses []Use, o Retention, now time.Time) Garbage {
	why := map[string]string{}
	keep := func(ref, reason string) {
		if why[ref] == "" {
			why[ref] = reason
		}
	}
	lead := map[string]string{}
	for _, c := range channels {
		lead[c.Ref()] = c.Name + ":" + c.Version
	}
	newest := map[string]int{}
	for _, u := range uses {
		keepUse(all, lead, u, keep)
	}
	for _, c := range channels {
		keep(c.Name+":"+c.Version, "channel "+c.Channel+" leads to it")
		if p := c.Previous(); p != "" {
			keep(c.Name+":"+p, "channel "+c.Channel+" can be rolled back to it")
		}
	}
	for _, img := range all {
		newest[img.Name]++
		switch {
		case len(o.Names) > 0 && !slices.Contains(o.Names, img.Name):
			keep(img.Ref(), "it was not asked for")
		case newest[img.Name] <= o.Newest:
			keep(img.Ref(), fmt.Sprintf("it is one of the newest %d", o.Newest))
		case now.Sub(img.Created) < o.Age:
			keep(img.Ref(), "it is younger than "+o.Age.String())
		}
	}
	return weigh(all, why)
}

func keepUse(all []Image, lead map[string]string, u Use, keep func(ref, reason string)) {
	if to := lead[u.Ref]; to != "" {
		keep(to, u.By+" uses it as "+u.Ref)
		return
	}
	known := false
	for _, img := range all {
		if img.Ref() == u.Ref || img.Name == u.Ref && !known {
			keep(img.Ref(), u.By+" uses it")
			known = true
		}
	}
	for _, img := range all {
		if name, _, _ := cut(u.Ref); !known && img.Name == name {
			keep(img.Ref(), fmt.Sprintf("%s names %s, which does not exist", u.By, u.Ref))
		}
	}
}

// weigh counts what a removal frees: volumes and files that no kept version has.
func weigh(all []Image, why map[string]string) Garbage {
	var g Garbage
	used := map[string]bool{}
	parts := func(img Image) map[string]int64 {
		m := map[string]int64{}
		if img.Volume != "" {
			m["volume "+img.Volume] = img.DataBytes
		}
		for _, b := range img.blobs() {
			if b.Digest != "" {
				m["blob "+b.Digest] = b.Size
			}
		}
		return m
	}
	for _, img := range all {
		if why[img.Ref()] != "" {
			g.Keep = append(g.Keep, GarbageItem{Ref: img.Ref(), Why: why[img.Ref()]})
			for p := range parts(img) {
				used[p] = true
			}
		}
	}
	for _, img := range all {
		if why[img.Ref()] != "" {
			continue
		}
		item := GarbageItem{Ref: img.Ref(), Why: "nobody uses it"}
		for p, n := range parts(img) {
			if !used[p] {
				used[p] = true
				item.Bytes += n
			}
		}
		g.Bytes += item.Bytes
		g.Remove = append(g.Remove, item)
	}
	return g
}

// PreviewGarbage says what CollectGarbage would remove, and why the rest stays.
func (r *Repository) PreviewGarbage(ctx context.Context, users Users, o Retention) (Garbage, error) {
	uses, err := users.ImageUses(ctx)
	if err != nil {
		return Garbage{}, fmt.Errorf("images: ask who uses images: %w", err)
	}
	if p := r.Problems(); len(p) > 0 {
		return Garbage{}, fmt.Errorf("images: nothing is removed while a record cannot be read: %w", p[0])
	}
	return planGarbage(r.List(), r.Channels(""), uses, o.withDefaults(), r.opts.Now()), nil
}

// CollectGarbage removes the versions that nobody uses, one by one, and asks
// again before each. It gives what it removed.
func (r *Repository) CollectGarbage(ctx context.Context, users Users, o Retention) (Garbage, error) {
	leave, err := r.enter(ctx)
	if err != nil {
		return Garbage{}, err
	}
	defer leave()
	var done Garbage
	for {
		g, err := r.PreviewGarbage(ctx, users, o)
		if err != nil {
			return done, err
		}
		done.Keep = g.Keep
		if len(g.Remove) == 0 {
			return done, r.incoming.sweep(r.opts.Now())
		}
		item := g.Remove[0]
		name, version, _ := cut(item.Ref)
		if err := r.remove(ctx, name, version); err != nil {
			return done, err
		}
		done.Remove = append(done.Remove, item)
		done.Bytes += item.Bytes
	}
}

// Verify reads the files of an image and compares them with their digests. What
// is on its volume the volume store compares with its own checksums.
func (r *Repository) Verify(ctx context.Context, img Image) error {
	for _, b := range img.blobs() {
		if b.Digest == "" {
			continue
		}
		if err := r.verifyBlob(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repository) verifyBlob(ctx context.Context, b Blob) error {
	path := filepath.Join(r.dir, "blobs", "sha256", b.Digest)
	f, err := os.Open(path)
	if err != nil {
		return corruptBlob(path, "", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return corruptBlob(path, "", err)
	}
	c, err := checkFile(ctx, f, info.Size(), nil, nil, nil)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return corruptBlob(path, "", err)
	case c.sha256 != b.Digest || info.Size() != b.Size:
		return corruptBlob(path, "its digest is "+c.sha256, nil)
	}
	return nil
}

func corruptBlob(path, why string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeCorrupt, What: "a file of the image repository is damaged", Where: path, Why: why, Fix: "check the disk, delete the image and import it again", Err: err}
}

// cut splits name:version.
func cut(ref string) (name, version string, ok bool) { return strings.Cut(ref, ":") }
