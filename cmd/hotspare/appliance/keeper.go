package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/storage/diskimage"
	"hotspare/ui/api"
)

// taskPrefix marks the snapshots that tasks take for themselves. Names of
// applications hold no +, so it meets no application's volume.
const taskPrefix = "task+"

// Names that an operator may give. Names with a dot are of applications, names
// with an @ of snapshots.
var (
	cloneName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,100}$`)
	snapshotName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]{0,100}$`)
)

const goldenPrefix = "image-"

// ChangeVolume does what takes no time.
func (a *Appliance) ChangeVolume(ctx context.Context, c api.VolumeChange) (api.Accepted, error) {
	var err error
	done := api.Accepted{ID: c.Volume}
	switch c.Verb {
	case "snapshot":
		done, err = a.snapshotVolume(ctx, c)
	case "clone":
		if err = checkCloneName(c.As); err == nil {
			err = a.store.Clone(ctx, c.Volume, c.As)
		}
		done = api.Accepted{ID: c.As, Text: c.As + " is a clone of " + c.Volume}
	case "resize":
		err = a.resizeVolume(ctx, c.Volume, c.Size)
		done.Text = fmt.Sprintf("%s has %d bytes", c.Volume, c.Size)
	case "delete":
		err = a.deleteVolume(ctx, c.Volume)
		done.Text = c.Volume + " is deleted"
	default:
		err = &hotspare.Error{Code: hotspare.CodeInvalid, What: "a volume cannot be told to " + c.Verb, Where: c.Volume, Fix: "hotspare volume --help lists the orders"}
	}
	if err != nil {
		return api.Accepted{}, err
	}
	a.log.InfoContext(ctx, "volume changed", "verb", c.Verb, "volume", c.Volume, "as", c.As, "by", c.By)
	return done, nil
}

func (a *Appliance) snapshotVolume(ctx context.Context, c api.VolumeChange) (api.Accepted, error) {
	if !snapshotName.MatchString(c.As) {
		return api.Accepted{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a snapshot cannot have that name", Where: fmt.Sprintf("%.80q", c.As), Fix: "use letters, digits and . _ : -"}
	}
	info, err := a.store.Stat(c.Volume)
	if err != nil {
		return api.Accepted{}, err
	}
	if info.Snapshot {
		return api.Accepted{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a snapshot never changes: it needs none", Where: c.Volume, Fix: "clone it"}
	}
	name := c.Volume + "@" + c.As
	if err := a.store.Snapshot(ctx, c.Volume, name); err != nil {
		return api.Accepted{}, err
	}
	return api.Accepted{ID: name, Text: name + " holds what " + c.Volume + " held"}, nil
}

func (a *Appliance) resizeVolume(ctx context.Context, name string, size int64) error {
	info, err := a.store.Stat(name)
	if err != nil {
		return err
	}
	if info.ReadOnly {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "snapshots and images never change", Where: name, Fix: "clone it and let the clone grow"}
	}
	return a.store.Resize(ctx, name, size)
}

func checkCloneName(name string) error {
	if cloneName.MatchString(name) && !strings.HasPrefix(name, goldenPrefix) {
		return nil
	}
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: "a volume of an operator cannot have that name", Where: fmt.Sprintf("%.80q", name),
		Why: "names with a dot are of applications, with @ of snapshots, with " + goldenPrefix + " of images", Fix: "use letters, digits, _ and -",
	}
}

// deleteVolume deletes a snapshot or a clone that an operator made.
func (a *Appliance) deleteVolume(ctx context.Context, name string) error {
	info, err := a.store.Stat(name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(name, goldenPrefix) && !info.Snapshot {
		return &hotspare.Error{Code: hotspare.CodeVolumeBusy, What: "the volume belongs to an image", Where: name, Fix: "delete the image: hotspare delete image NAME:VERSION"}
	}
	if strings.Contains(name, ".") && !info.Snapshot {
		return &hotspare.Error{
			Code: hotspare.CodeVolumeBusy, What: "the volume belongs to an application", Where: name,
			Why: "its data would be gone", Fix: "delete snapshots and clones only; the engine removes roots that nobody needs",
		}
	}
	if g, ok := a.exports.Live(name); ok {
		return &hotspare.Error{Code: hotspare.CodeVolumeBusy, What: "the volume is granted", Where: name, Why: fmt.Sprintf("to node %s, epoch %d", g.Node, g.Epoch), Fix: "revoke the grant first"}
	}
	a.scrubs.letGo(name)
	return a.store.Delete(ctx, name)
}

// BeginTask begins what takes its time.
func (a *Appliance) BeginTask(_ context.Context, r api.TaskRequest) (api.Task, error) {
	var x *task
	var err error
	switch r.Kind {
	case "export":
		x, err = a.beginExport(r)
	case "copy":
		x, err = a.beginCopy(r)
	case "scrub":
		x, err = a.scrubs.begin(r)
	default:
		err = &hotspare.Error{Code: hotspare.CodeInvalid, What: "there is no such task", Where: r.Kind, Fix: "hotspare --help lists the orders"}
	}
	if err != nil {
		return api.Task{}, err
	}
	return x.snapshot(), nil
}

// reserve is what exports and copies leave free on a file system: they may be on
// the one that the volumes grow on.
const reserveShare = 20 // a twentieth

func (a *Appliance) beginExport(r api.TaskRequest) (*task, error) {
	info, err := a.store.Stat(r.Volume)
	if err != nil {
		return nil, err
	}
	path, err := a.target(r.File, r.Local)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, &hotspare.Error{Code: hotspare.CodeConflict, What: "the file exists", Where: path, Fix: "remove it or choose another name: a file is never replaced"}
	}
	v := api.Task{Kind: "export", Volume: r.Volume, By: r.By, Total: info.Allocated, Text: fmt.Sprintf("writes %s as %s to %s", r.Volume, r.Format, path)}
	return a.tasks.begin("export to "+path, v, func(ctx context.Context, x *task) error {
		return a.still(ctx, x, info, func(name string) error {
			dev, err := a.store.OpenVolume(name)
			if err != nil {
				return err
			}
			defer dev.Close()
			_, total, err := space(filepath.Dir(path))
			if err != nil {
				return err
			}
			res, err := diskimage.Write(ctx, volumeSource{dev, a.store, name}, path, diskimage.Options{
				Format: diskimage.Format(r.Format), BytesPerSecond: r.Rate, Reserve: total / reserveShare,
				Progress: func(n int64) { x.progress(func(v *api.Task) { v.Done = n }) },
			})
			if err != nil {
				return err
			}
			x.set(func(v *api.Task) {
				v.Done, v.Total = res.Data, res.Data
				v.File = &api.WrittenFile{Path: res.Path, SizeBytes: res.Size, FileBytes: res.File}
				v.Text = fmt.Sprintf("%s is in %s", r.Volume, res.Path)
			})
			return nil
		})
	})
}

// volumeSource is a volume that does not change, for diskimage.
type volumeSource struct {
	storage.Device
	store *cow.Store
	name  string
}

func (s volumeSource) Extents(ctx context.Context, visit func(off, n int64) error) error {
	return s.store.Extents(ctx, s.name, 0, func(e cow.Extent) error { return visit(e.Off, e.Len) })
}

// still calls fn with a volume that holds what the described one holds now and
// does not change: itself, or a snapshot that goes again.
func (a *Appliance) still(ctx context.Context, x *task, info cow.Info, fn func(name string) error) (err error) {
	if info.Snapshot || info.ReadOnly {
		return fn(info.Name)
	}
	name := taskPrefix + x.snapshot().ID + "." + info.Name
	if err := a.store.Snapshot(ctx, info.Name, name); err != nil {
		return err
	}
	defer func() {
		if derr := a.store.Delete(context.WithoutCancel(ctx), name); derr != nil {
			a.log.WarnContext(ctx, "a task's snapshot was left: it goes at the next start", "volume", name, "err", derr)
		}
	}()
	return fn(name)
}

// dropTaskSnapshots removes what tasks of an earlier process left.
func (a *Appliance) dropTaskSnapshots(ctx context.Context) error {
	for _, i := range a.store.List() {
		if !strings.HasPrefix(i.Name, taskPrefix) {
			continue
		}
		if err := a.store.Delete(ctx, i.Name); err != nil {
			return err
		}
		a.log.InfoContext(ctx, "the snapshot of an unfinished task is removed", "volume", i.Name)
	}
	return nil
}

// target gives the place of what a task makes. Whoever asks over the network has
// the token but no account here, and writes into one folder only.
func (a *Appliance) target(name string, local bool) (string, error) {
	if filepath.IsAbs(name) && local {
		return filepath.Clean(name), nil
	}
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") || name == string(filepath.Separator) {
		return "", &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "the target is not a plain name", Where: fmt.Sprintf("%.200q", name),
			Why: "an absolute path may be given on the appliance itself only", Fix: "give a name without folders: it is made in " + a.exportFolder(),
		}
	}
	if err := os.MkdirAll(a.exportFolder(), 0o700); err != nil {
		return "", fmt.Errorf("folder of exports: %w", err)
	}
	return filepath.Join(a.exportFolder(), name), nil
}

func (a *Appliance) exportFolder() string { return filepath.Join(a.cfg.State, "exports") }

func (a *Appliance) beginCopy(r api.TaskRequest) (*task, error) {
	if (r.To == "") == (r.From == "") {
		return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a copy goes to another store or comes from one", Where: r.Volume, Fix: "give either `to` or `from`"}
	}
	folder, err := a.target(r.To+r.From, r.Local)
	if err != nil {
		return nil, err
	}
	if within(a.cfg.State, folder) && !within(a.exportFolder(), folder) {
		return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the folder holds the appliance's own state", Where: folder, Fix: "choose another one"}
	}
	as := r.As
	if as == "" {
		as = r.Volume
	}
	v := api.Task{Kind: "copy", Volume: r.Volume, By: r.By}
	if r.From != "" {
		if err := checkCloneName(as); err != nil {
			return nil, err
		}
		if _, err := os.Stat(filepath.Join(folder, "super")); err != nil { // opening would make an empty store
			return nil, &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no volume store", Where: folder, Err: err, Fix: "give the folder that a copy was made to"}
		}
		v.Text = fmt.Sprintf("copies %s from %s as %s", r.Volume, folder, as)
		return a.tasks.begin("copy in "+folder, v, func(ctx context.Context, x *task) error { return a.copyFrom(ctx, x, r, folder, as) })
	}
	info, err := a.store.Stat(r.Volume)
	if err != nil {
		return nil, err
	}
	v.Total, v.Text = info.Allocated, fmt.Sprintf("copies %s to %s as %s", r.Volume, folder, as)
	return a.tasks.begin("copy in "+folder, v, func(ctx context.Context, x *task) error {
		return a.still(ctx, x, info, func(name string) error { return a.copyTo(ctx, x, r, name, folder, as) })
	})
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func (a *Appliance) copyTo(ctx context.Context, x *task, r api.TaskRequest, name, folder, as string) (err error) {
	_, serr := os.Lstat(folder)
	to, err := cow.Open(ctx, folder, cow.Options{Log: a.log.With("part", "copy")})
	if err != nil {
		return err
	}
	defer func() {
		// A store that was made for this copy and has nothing goes again. No other
		// task works in this folder meanwhile.
		void := err != nil && errors.Is(serr, os.ErrNotExist) && len(to.List()) == 0
		err = errors.Join(err, to.Close())
		if void {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()
	free, total, err := space(folder)
	if err != nil {
		return err
	}
	if info, err := a.store.Stat(name); err == nil && free-info.Allocated < total/reserveShare {
		return &hotspare.Error{
			Code: hotspare.CodeDiskFull, What: "no space is left for the copy", Where: folder,
			Why: fmt.Sprintf("%d MiB are free, the copy takes %d MiB and %d MiB must stay free for others", free>>20, info.Allocated>>20, total/reserveShare>>20),
			Fix: "free space there or copy to another disk",
		}
	}
	if err := a.store.Copy(ctx, name, to, as, cow.CopyOptions{BytesPerSecond: r.Rate, Progress: x.copied}); err != nil {
		return err
	}
	x.set(func(v *api.Task) { v.Total, v.Text = v.Done, fmt.Sprintf("%s is in %s as %s", r.Volume, folder, as) })
	return nil
}

func (a *Appliance) copyFrom(ctx context.Context, x *task, r api.TaskRequest, folder, as string) error {
	from, err := cow.Open(ctx, folder, cow.Options{Log: a.log.With("part", "copy")})
	if err != nil {
		return err
	}
	defer from.Close()
	if info, err := from.Stat(r.Volume); err == nil {
		x.set(func(v *api.Task) { v.Total = info.Allocated })
	}
	if err := from.Copy(ctx, r.Volume, a.store, as, cow.CopyOptions{BytesPerSecond: r.Rate, Writable: true, Progress: x.copied}); err != nil {
		return err
	}
	x.set(func(v *api.Task) {
		v.Total, v.Text = v.Done, fmt.Sprintf("%s of %s is here as %s", r.Volume, folder, as)
	})
	return nil
}

func (x *task) copied(n int64) { x.progress(func(v *api.Task) { v.Done = n }) }

// space gives the free and all bytes of a folder's file system.
func space(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return 0, 0, &hotspare.Error{Code: hotspare.CodeNotFound, What: "the folder does not exist", Where: dir, Err: err, Fix: "make it first"}
		}
		return 0, 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}
