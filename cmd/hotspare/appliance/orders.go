package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"hotspare"
	"hotspare/bmc"
	"hotspare/cmd/hotspare/appliance/manifest"
	"hotspare/haengine"
	"hotspare/images"
	"hotspare/ui/api"
)

// secretOf names the sealed password of a node's BMC.
func secretOf(node string) string { return "bmc/" + node }

// Apply takes all documents or none. Documents may refer to each other in any
// order.
func (a *Appliance) Apply(ctx context.Context, file string, src []byte, by string, dryRun bool) ([]api.Applied, error) {
	docs, err := manifest.Parse(file, src)
	if err != nil {
		return nil, err
	}
	return a.applyDocuments(ctx, docs, by, dryRun)
}

func (a *Appliance) applyDocuments(ctx context.Context, docs []manifest.Document, by string, dryRun bool) ([]api.Applied, error) {
	a.applying.Lock()
	defer a.applying.Unlock()
	st := a.engine.Snapshot()
	out := make([]api.Applied, 0, len(docs))
	var events []haengine.Event
	texts, err := a.seeds.refer(ctx, docs)
	if err != nil {
		return nil, err
	}
	for i := range docs {
		e, result, err := a.check(ctx, st, docs, &docs[i])
		if err != nil {
			return nil, err
		}
		events = append(events, e)
		out = append(out, api.Applied{Kind: docs[i].Kind, Name: docs[i].Name(), Result: result})
	}
	if dryRun {
		return out, nil
	}
	if err := a.seeds.put(ctx, texts); err != nil {
		return nil, err
	}
	for _, d := range docs {
		if d.Node != nil && !d.BMCPassword.IsZero() {
			if err := a.state.PutSecret(ctx, secretOf(d.Node.Name), d.BMCPassword); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range events {
		if x, ok := e.(haengine.NodeApplied); ok && st.Durable.Nodes[x.Node.Name] == nil {
			// Boots that were ordered for an earlier node of that name are not its.
			if err := a.attempts.forget(x.Node.Name); err != nil {
				return nil, err
			}
		}
		if x, ok := e.(haengine.AppApplied); ok {
			if err := a.tellImages(ctx, x.Application.Image); err != nil {
				return nil, err
			}
		}
		if err := a.engine.Submit(ctx, e); err != nil {
			return nil, err
		}
		if x, ok := e.(haengine.AppApplied); ok {
			// An application of that name may have left volumes with higher
			// epochs than a younger engine store knows.
			if floor := a.volumes.floor(x.Application.Name); floor > 0 {
				if err := a.engine.Submit(ctx, haengine.EpochFloor{App: x.Application.Name, Epoch: floor}); err != nil {
					return nil, err
				}
			}
		}
	}
	a.log.InfoContext(ctx, "resources applied", "documents", len(docs), "by", by)
	return out, a.seeds.drop(ctx)
}

// check fills in defaults, validates and says what applying would do.
func (a *Appliance) check(ctx context.Context, st haengine.State, docs []manifest.Document, d *manifest.Document) (haengine.Event, string, error) {
	switch {
	case d.Pool != nil:
		if err := d.Pool.Validate(); err != nil {
			return nil, "", located(err, d)
		}
		if s := d.Pool.Standby; s != nil && s.Kernel != "" {
			if _, err := a.boots.waitsOn(ctx, s.Kernel); err != nil {
				return nil, "", located(err, d)
			}
		}
		return haengine.PoolApplied{Pool: *d.Pool}, result(st.Durable.Pools[d.Pool.Name], *d.Pool), nil
	case d.Node != nil:
		*d.Node = d.Node.WithDefaults()
		if err := d.Node.Validate(); err != nil {
			return nil, "", located(err, d)
		}
		if err := alone(st, docs, d); err != nil {
			return nil, "", err
		}
		if err := refers(d, "pool", d.Node.Pool, st.Durable.Pools[d.Node.Pool] != nil, docs); err != nil {
			return nil, "", err
		}
		old := st.Durable.Nodes[d.Node.Name]
		if old == nil && d.BMCPassword.IsZero() {
			return nil, "", &hotspare.Error{
				Code: hotspare.CodeInvalid, What: "the node has no BMC password", Where: d.Source,
				Fix: "add bmc.password; it is sealed in the store and never shown again",
			}
		}
		if old == nil {
			return haengine.NodeApplied{Node: *d.Node}, result(nil, *d.Node), nil
		}
		return haengine.NodeApplied{Node: *d.Node}, result(&old.Spec, *d.Node), nil
	}
	*d.Application = d.Application.WithDefaults()
	app := *d.Application
	if err := app.Validate(); err != nil {
		return nil, "", located(err, d)
	}
	for _, p := range app.Pools {
		if err := refers(d, "pool", p, st.Durable.Pools[p] != nil, docs); err != nil {
			return nil, "", err
		}
	}
	if err := a.fits(st, app, d); err != nil {
		return nil, "", err
	}
	if old := st.Durable.Apps[app.Name]; old != nil {
		return haengine.AppApplied{Application: app}, result(&old.Spec, app), nil
	}
	return haengine.AppApplied{Application: app}, result(nil, app), nil
}

// fits checks an application against the image, the segment and its neighbours.
func (a *Appliance) fits(st haengine.State, app haengine.Application, d *manifest.Document) error {
	img, err := a.images.Resolve(app.Image)
	if err != nil {
		return &hotspare.Error{
			Code: hotspare.CodeUnknownRef, What: fmt.Sprintf("the image %q does not exist", app.Image), Where: d.Source, Err: err,
			Fix: "import it first: hotspare image import " + app.Image + " --file FILE",
		}
	}
	if want := app.Requires.Arch; want != "" && want != img.Arch {
		return &hotspare.Error{
			Code: hotspare.CodeArchMismatch, What: "the image cannot run on the wanted nodes", Where: d.Source,
			Why: fmt.Sprintf("it is for %s, requires.arch says %s", img.Arch, want), Fix: "use an image of that architecture",
		}
	}
	if err := fitsCloudInit(app, img, d); err != nil {
		return err
	}
	link, ok := a.cfg.Network.carries(app.Address.Addr())
	if !ok {
		return &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "the service address is not on the segment", Where: d.Source,
			Why: fmt.Sprintf("%s is not in %s", app.Address.Addr(), a.cfg.Network.served()), Fix: "give an address of a segment that is served",
		}
	}
	if app.Address.Addr() == link.Address.Addr() {
		return &hotspare.Error{Code: hotspare.CodeAddressInUse, What: "the service address is the appliance's own", Where: d.Source, Fix: "give another address"}
	}
	for _, other := range st.Durable.Apps {
		if other.Spec.Name != app.Name && other.Spec.Address.Addr() == app.Address.Addr() {
			return &hotspare.Error{
				Code: hotspare.CodeAddressInUse, What: "the service address belongs to another application", Where: d.Source,
				Why: other.Spec.Name + " has " + app.Address.Addr().String(), Fix: "give another address",
			}
		}
	}
	return nil
}

// result says what applying v over old does; a password may change unseen.
func result[T any](old *T, v T) string {
	switch {
	case old == nil:
		return "created"
	case sameText(*old, v):
		return "unchanged"
	}
	return "configured"
}

// sameText compares two specifications as the journal would write them: an
// empty list and none are the same.
func sameText(x, y any) bool {
	a, errA := json.Marshal(x)
	b, errB := json.Marshal(y)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// refers checks that a named resource exists or comes in the same documents.
func refers(d *manifest.Document, kind, name string, exists bool, docs []manifest.Document) error {
	if exists {
		return nil
	}
	for _, o := range docs {
		if o.Kind == kind && o.Name() == name {
			return nil
		}
	}
	return &hotspare.Error{
		Code: hotspare.CodeUnknownRef, What: fmt.Sprintf("the %s %q does not exist", kind, name), Where: d.Source,
		Fix: "apply it first, or correct the name: hotspare get " + kind + "s",
	}
}

// alone checks that a node can be told from every other, by what identifies it
// and by its BMC: "off", read from another machine's BMC, would prove nothing.
func alone(st haengine.State, docs []manifest.Document, d *manifest.Document) error {
	n := *d.Node
	bad := func(what, why, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: d.Source, Why: why, Fix: fix}
	}
	if n.UUID == "" {
		return bad("the node has no uuid", "its BMC must prove that it belongs to this machine before a reading of it counts",
			"add the system UUID: `dmidecode -s system-uuid` on the node, or `ipmitool mc guid`")
	}
	others := map[string]haengine.Node{}
	for name, o := range st.Durable.Nodes {
		others[name] = o.Spec
	}
	for i := range docs {
		if o := docs[i].Node; o != nil {
			others[o.Name] = o.WithDefaults()
		}
	}
	delete(others, n.Name)
	for _, o := range sorted(others) {
		switch {
		case bmc.SameUUID(o.UUID, n.UUID):
			return bad("two nodes have the same uuid", o.Name+" has it too", "correct one of them")
		case o.BMC.Address == n.BMC.Address && o.BMC.Port == n.BMC.Port:
			return bad("two nodes have the same BMC", o.Name+" has "+n.BMC.Address.String()+" too", "correct one of them")
		}
		for _, m := range n.MACs {
			if slices.Contains(o.MACs, m) {
				return bad("two nodes have the same MAC address", o.Name+" has "+m+" too", "correct one of them")
			}
		}
	}
	old := st.Durable.Nodes[n.Name]
	if old == nil || old.Spec.BMC == n.BMC && bmc.SameUUID(old.Spec.UUID, n.UUID) && slices.Equal(old.Spec.MACs, n.MACs) {
		return nil
	}
	if old.Park != nil {
		return &hotspare.Error{
			Code: hotspare.CodeConflict, What: "what identifies a node in standby cannot be changed", Where: d.Source,
			Why: n.Name + " waits as this machine: a reading of another one's BMC would count about it",
			Fix: "take `standby` out of the pool's document, wait until the node is off, then change it",
		}
	}
	if old.Phase != haengine.NodeIdle && old.Phase != haengine.NodeQuarantined && old.Phase != haengine.NodeMaintenance {
		return &hotspare.Error{
			Code: hotspare.CodeConflict, What: "what identifies a node in use cannot be changed", Where: d.Source,
			Why: fmt.Sprintf("%s is %s for %s: a reading of another BMC would count about it", n.Name, old.Phase, old.Owner),
			Fix: "move the application first: hotspare app failover " + old.Owner,
		}
	}
	return nil
}

// located adds the document's place to a validation error.
func located(err error, d *manifest.Document) error {
	if e, ok := errors.AsType[*hotspare.Error](err); ok {
		x := *e
		x.Where = d.Source + ": " + e.Where
		return &x
	}
	return err
}

// Delete removes a resource; nodes and applications go when they are free.
func (a *Appliance) Delete(ctx context.Context, kind, name, by string) error {
	st := a.engine.Snapshot()
	var e haengine.Event
	switch kind {
	case "node":
		if st.Durable.Nodes[name] == nil {
			return notFound(kind, name)
		}
		e = haengine.NodeDeleted{Name: name}
	case "pool":
		if st.Durable.Pools[name] == nil {
			return notFound(kind, name)
		}
		for _, n := range st.Durable.Nodes {
			if n.Spec.Pool == name {
				return &hotspare.Error{Code: hotspare.CodeConflict, What: "the pool has nodes", Where: name, Why: n.Spec.Name + " is in it", Fix: "delete or move its nodes first"}
			}
		}
		e = haengine.PoolDeleted{Name: name}
	case "application":
		if st.Durable.Apps[name] == nil {
			return notFound(kind, name)
		}
		e = haengine.AppDeleted{Name: name, By: by}
	default:
		return notFound("kind", kind)
	}
	if err := a.engine.Command(ctx, e); err != nil {
		return err
	}
	if kind == "node" {
		a.bmcs.keep(func(node string) bool { return node != name })
		a.inventory.forget(name)
	}
	a.applying.Lock()
	defer a.applying.Unlock()
	return a.seeds.drop(ctx)
}

// ImportImage takes a disk image of the appliance's file system.
func (a *Appliance) ImportImage(ctx context.Context, in api.ImageImport, by string) (api.Image, error) {
	if !filepath.IsAbs(in.File) {
		return api.Image{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "file is not an absolute path", Where: in.File, Fix: "give the path as the appliance sees it"}
	}
	if _, err := os.Lstat(in.File); err != nil {
		return api.Image{}, &hotspare.Error{Code: hotspare.CodeNotFound, What: "the image file cannot be read", Where: in.File, Err: err, Fix: "give a path on the appliance"}
	}
	format := images.Format(in.Format)
	if in.Format == "auto" {
		format = ""
	}
	a.log.InfoContext(ctx, "image import", "image", in.Name, "file", in.File, "by", by)
	img, err := a.images.Import(ctx, images.ImportRequest{
		Name: in.Name, Version: in.Version, Path: in.File, Format: format, SHA256: in.SHA256, Cmdline: in.Cmdline,
	})
	if err != nil {
		return api.Image{}, err
	}
	if img.Kernel.Version != "" { // a disk that starts by itself has none of ours
		if _, err := a.boots.initramfs(ctx, img); err != nil { // now rather than in the first failover
			return api.Image{}, err
		}
	}
	return imageView(img), a.tellImages(ctx)
}

func imageView(i images.Image) api.Image {
	v := api.Image{
		Name: i.Name, Version: i.Version, Digest: i.Digest, SourceSHA256: i.SourceSHA256, SizeBytes: i.SizeBytes, Arch: i.Arch,
		OS: i.OSRelease.PrettyName, Kernel: i.Kernel.Version, Created: i.Created,
		Volume: i.Volume, Origin: i.Origin, Firmware: i.Facts.Firmware, Init: i.Facts.Init, CloudInit: i.Facts.CloudInit, Signer: i.Signer.KeyID, Notes: i.Facts.Notes,
	}
	for _, s := range i.Facts.Starts {
		v.Starts = append(v.Starts, string(s))
	}
	if t := i.Tested; !t.At.IsZero() {
		v.Tested = &api.ImageTest{At: t.At, By: t.By, OK: t.OK, Way: t.Way, Machine: t.Machine, Text: t.Text}
	}
	return v
}

// DeleteImage removes an image version that no application names.
func (a *Appliance) DeleteImage(ctx context.Context, name, version, by string) error {
	img, err := a.images.Get(name, version)
	if err != nil {
		return err
	}
	for _, app := range a.engine.Snapshot().Durable.Apps {
		if used, err := a.images.Resolve(app.Spec.Image); err == nil && used.Ref() == img.Ref() {
			return &hotspare.Error{Code: hotspare.CodeConflict, What: "the image is in use", Where: img.Ref(), Why: "application " + app.Spec.Name + " is started from it", Fix: "delete the application or give it another image"}
		}
	}
	a.log.InfoContext(ctx, "image deleted", "image", img.Ref(), "by", by)
	if err := a.images.Delete(ctx, name, version); err != nil {
		return err
	}
	return a.tellImages(ctx)
}

// Command takes an operator's order to the engine.
func (a *Appliance) Command(ctx context.Context, c api.Command) (string, error) {
	e, err := event(c)
	if err != nil {
		return "", err
	}
	return "", a.engine.Command(ctx, e)
}

func event(c api.Command) (haengine.Event, error) {
	scope := haengine.Scope{}
	switch c.Kind {
	case "application":
		scope.App = c.Name
	case "pool":
		scope.Pool = c.Name
	}
	switch c.Kind + " " + c.Verb {
	case "application failover":
		return haengine.FailoverRequested{App: c.Name, To: c.To, By: c.By, Way: haengine.Way(c.Way)}, nil
	case "application freeze", "pool freeze", "site freeze":
		f := haengine.FreezeSet{Scope: scope, By: c.By, Reason: c.Reason}
		if c.Until != "" {
			d, err := time.ParseDuration(c.Until)
			if err != nil || d <= 0 {
				return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: fmt.Sprintf("%q is not a duration", c.Until), Where: "for", Fix: "write it as 30m or 2h"}
			}
			f.Until = time.Now().Add(d)
		}
		return f, nil
	case "application unfreeze", "pool unfreeze", "site unfreeze":
		return haengine.FreezeLifted{Scope: scope, By: c.By}, nil
	case "node confirm-off":
		return haengine.ConfirmOff{Node: c.Name, By: c.By}, nil
	case "node unquarantine":
		return haengine.Unquarantine{Node: c.Name, By: c.By}, nil
	}
	return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: fmt.Sprintf("a %s cannot be told to %s", c.Kind, c.Verb), Where: c.Name, Fix: "hotspare --help lists the orders"}
}
