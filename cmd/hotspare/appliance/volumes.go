package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/images"
	"hotspare/storage"
	"hotspare/storage/cow"
)

// volumes is runner.Volumes over the copy-on-write store and its exports: one
// volume per application volume, "orders.data", and one root clone per grant,
// "orders.root.e7". Names of applications hold no dot, so the names of two
// applications never meet.
type volumes struct {
	store   *cow.Store
	exports *storage.Exports
	images  *images.Repository
	log     *slog.Logger
	letGo   func(volume string) // closes it in what only reads it, before it is deleted; nil: nothing does

	mu sync.Mutex // one change of grants at a time
}

func volumeName(app, volume string) string { return app + "." + volume }

func rootName(app string, epoch haengine.Epoch) string {
	return app + ".root.e" + strconv.FormatUint(uint64(epoch), 10)
}

// rootEpoch reads the epoch from the name of a root clone of app.
func rootEpoch(app, volume string) (haengine.Epoch, bool) {
	s, ok := strings.CutPrefix(volume, app+".root.e")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return haengine.Epoch(n), err == nil
}

// Attach makes what is missing and grants it to the node under the epoch.
// Repeating it keeps the grant and its secrets.
func (v *volumes) Attach(ctx context.Context, a haengine.Attach) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a.Way.NeedsVolume() {
		if err := v.attachRoot(ctx, a); err != nil {
			return err
		}
	}
	witnesses := map[string]bool{}
	for _, r := range a.Spec.Resources {
		if r.Kind == haengine.ResourceWitness {
			witnesses[r.Volume] = true
		}
	}
	for _, vol := range a.Spec.Volumes {
		name, size := volumeName(a.App, vol.Name), vol.SizeMiB<<20
		if err := v.ensure(ctx, name, func() error { return v.store.Create(ctx, name, size) }); err != nil {
			return fmt.Errorf("volume %s of %s: %w", vol.Name, a.App, err)
		}
		if err := v.grow(ctx, name, size); err != nil {
			return err
		}
		if err := v.grant(ctx, a, name, vol.ReadOnly, witnesses[vol.Name]); err != nil {
			return err
		}
	}
	return nil
}

// attachRoot makes the grant's own clone of the image.
func (v *volumes) attachRoot(ctx context.Context, a haengine.Attach) error {
	img, err := v.images.Resolve(a.Spec.Image)
	if err != nil {
		return err
	}
	root := rootName(a.App, a.Epoch)
	if err := v.ensure(ctx, root, func() error { return v.store.Clone(ctx, img.Volume, root) }); err != nil {
		return fmt.Errorf("root of %s: %w", a.App, err)
	}
	return v.grant(ctx, a, root, false, false)
}

// rootImage gives the image that the grant's root was cloned from, whatever ref
// stands for by now: one version's kernel must not meet another one's root.
func (v *volumes) rootImage(app string, epoch haengine.Epoch, ref string) (images.Image, error) {
	root, err := v.store.Stat(rootName(app, epoch))
	if err != nil {
		return images.Image{}, err
	}
	if img, err := v.images.Resolve(ref); err == nil && img.Volume == root.Parent {
		return img, nil
	}
	for _, img := range v.images.List() {
		if img.Volume == root.Parent {
			return img, nil
		}
	}
	return images.Image{}, &hotspare.Error{
		Code: hotspare.CodeNotFound, What: "the image of the application's root is gone", Where: root.Name,
		Why: "it was cloned from " + root.Parent, Fix: "import the image again; the next attempt takes what the application names",
	}
}

func (v *volumes) ensure(ctx context.Context, name string, create func() error) error {
	if _, err := v.store.Stat(name); err == nil {
		return nil
	} else if !missing(err) {
		return err
	}
	v.log.InfoContext(ctx, "make volume", "volume", name)
	return create()
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || hotspare.CodeOf(err) == hotspare.CodeNotFound
}

// grow follows a larger size in the specification; a volume never shrinks.
func (v *volumes) grow(ctx context.Context, name string, size int64) error {
	info, err := v.store.Stat(name)
	if err != nil || info.Size >= size {
		return err
	}
	return v.store.Resize(ctx, name, size)
}

// grant admits the node's initiator under the epoch. Name and secret are drawn
// for this (volume, epoch): no earlier grant's ghost knows them.
func (v *volumes) grant(ctx context.Context, a haengine.Attach, volume string, readOnly, trace bool) error {
	if live, ok := v.exports.Live(volume); ok && live.Epoch == uint64(a.Epoch) && live.Node == a.Node {
		return nil
	}
	draw := strings.ToLower(rand.Text())
	return v.exports.Grant(ctx, storage.Grant{
		Volume: volume, Epoch: uint64(a.Epoch), Node: a.Node, ReadOnly: readOnly, Trace: trace,
		Initiator: fmt.Sprintf("iqn.2026-11.io.hotspare:%s:%s.e%d.%s", a.Node, a.App, a.Epoch, draw[:12]),
		User:      fmt.Sprintf("%s.e%d.%s", a.App, a.Epoch, draw[12:20]),
		Secret:    hotspare.NewSecret(rand.Text()),
	})
}

// logins gives the claim's log-ins: root first, then the application's volumes
// in their order.
func (v *volumes) logins(c haengine.Claim, portal netip.AddrPort) ([]agentlink.Volume, error) {
	out := make([]agentlink.Volume, 0, len(c.Spec.Volumes)+1)
	add := func(name, volume, format string, readOnly bool) error {
		live, ok := v.exports.Live(volume)
		if !ok || live.Epoch != uint64(c.Epoch) || live.Node != c.Node {
			return &hotspare.Error{
				Code: hotspare.CodeStaleEpoch, What: "the volume is not granted to this claim", Where: volume,
				Why: fmt.Sprintf("the claim is of epoch %d on %s", c.Epoch, c.Node), Fix: "nothing: a newer grant exists",
			}
		}
		target, err := v.exports.TargetName(volume)
		if err != nil {
			return err
		}
		x, err := v.exports.Find(live.Initiator, target)
		if err != nil {
			return err
		}
		out = append(out, agentlink.Volume{
			Name: name, Portal: portal, IQN: x.TargetName, LUN: 0, Initiator: live.Initiator,
			User: x.User, Secret: x.Secret, Format: format, ReadOnly: readOnly,
		})
		return nil
	}
	if c.Way.NeedsVolume() {
		if err := add(agentlink.RootVolume, rootName(c.App, c.Epoch), "", false); err != nil {
			return nil, err
		}
	}
	for _, vol := range c.Spec.Volumes {
		if err := add(vol.Name, volumeName(c.App, vol.Name), vol.Format, vol.ReadOnly); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// of lists the volumes of an application that exist: its data and every root.
// Snapshots of them are read-only and are not granted; one that is counts too.
func (v *volumes) of(app string) []string {
	var out []string
	for _, i := range v.store.List() {
		if i.Snapshot {
			if _, granted := v.exports.Live(i.Name); !granted {
				continue
			}
		}
		if strings.HasPrefix(i.Name, app+".") {
			out = append(out, i.Name)
		}
	}
	return out
}

// Revoke ends every right below r.Below on all of the application's volumes,
// those of removed specifications and old roots too.
func (v *volumes) Revoke(ctx context.Context, r haengine.Revoke) (haengine.Revocation, error) {
	v.mu.Lock() // an attach under way must not grant a volume that this list misses
	defer v.mu.Unlock()
	out := haengine.Revocation{Below: r.Below}
	for _, name := range v.of(r.App) {
		rev, err := v.exports.Revoke(ctx, name, uint64(r.Below))
		if err != nil {
			return haengine.Revocation{}, fmt.Errorf("revoke %s: %w", name, err)
		}
		if _, root := rootEpoch(r.App, name); !root {
			out.Sessions += rev.Sessions // a released node keeps its root until it is off
		}
		out.Drained += int(rev.Drained)
		if rev.At.After(out.At) {
			out.At = rev.At
		}
	}
	return out, nil
}

// DeleteRoot reaps the root clone of an excluded grant.
func (v *volumes) DeleteRoot(ctx context.Context, d haengine.DeleteRoot) error {
	name := rootName(d.App, d.Epoch)
	if _, err := v.store.Stat(name); missing(err) {
		return nil
	}
	if _, err := v.exports.Revoke(ctx, name, uint64(d.Epoch)+1); err != nil {
		return fmt.Errorf("revoke %s: %w", name, err)
	}
	if v.letGo != nil {
		v.letGo(name)
	}
	if err := v.store.Delete(ctx, name); err != nil && !missing(err) {
		return err
	}
	return nil
}

// floor gives the highest epoch that the store knows of an application.
func (v *volumes) floor(app string) haengine.Epoch {
	var top haengine.Epoch
	for _, name := range v.of(app) {
		top = max(top, haengine.Epoch(v.exports.Epoch(name)))
		if e, ok := rootEpoch(app, name); ok {
			top = max(top, e)
		}
	}
	return top
}

// goldenDisks lets the image repository put disk contents into the store.
type goldenDisks struct {
	store *cow.Store
	letGo func(volume string)
}

func (g goldenDisks) Create(ctx context.Context, name string, size int64) (images.Disk, error) {
	if err := g.store.Create(ctx, name, size); err != nil {
		return nil, err
	}
	dev, err := g.store.OpenToFill(name)
	if err != nil {
		return nil, errors.Join(err, g.store.Delete(ctx, name))
	}
	return goldenDisk{dev, g.store, name}, nil
}

func (g goldenDisks) Delete(ctx context.Context, name string) error {
	g.letGo(name)
	return g.store.Delete(ctx, name)
}

type goldenDisk struct {
	storage.Device
	store *cow.Store
	name  string
}

func (d goldenDisk) Seal(ctx context.Context) error {
	if err := d.Flush(); err != nil {
		return err
	}
	return d.store.SetReadOnly(ctx, d.name)
}
