package cow

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"hotspare"
	"hotspare/storage"
)

// Info describes a volume.
type Info struct {
	Name      string
	UID       string // random, never reused
	Size      int64  // bytes
	Allocated int64  // bytes that hold data, shared ones counted fully
	Parent    string // name of what it was cloned from, at that time
	Snapshot  bool
	ReadOnly  bool
	Created   time.Time
	Open      int   // devices that are open
	Failed    error // why it is stopped, nil if it is not
}

// Create makes an empty volume: all zeros, size bytes (a multiple of 512).
func (s *Store) Create(ctx context.Context, name string, size int64) error {
	if err := checkSize(name, size); err != nil {
		return err
	}
	return s.newVolume(ctx, name, "", func(*volume) superVolume { return superVolume{Size: size} })
}

// Clone makes dst a writable volume with the contents of src as they are now.
// It takes no longer for a larger src.
func (s *Store) Clone(ctx context.Context, src, dst string) error {
	return s.newVolume(ctx, dst, src, func(v *volume) superVolume {
		return superVolume{Size: v.Size, Parent: v.Name}
	})
}

// Snapshot makes snap a read-only volume with the contents of vol: exactly the
// writes that were acknowledged before it.
func (s *Store) Snapshot(ctx context.Context, vol, snap string) error {
	return s.newVolume(ctx, snap, vol, func(v *volume) superVolume {
		return superVolume{Size: v.Size, Parent: v.Name, Snapshot: true, ReadOnly: true}
	})
}

// newVolume logs and enters a volume, and makes it durable. src is "" for an
// empty one.
func (s *Store) newVolume(ctx context.Context, name, src string, describe func(*volume) superVolume) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if src != "" { // most of the data goes to the disk while others still work
		if err := s.flush(); err != nil {
			return err
		}
	}
	if err := s.enter(name, src, describe); err != nil {
		return err
	}
	return s.flush()
}

// enter does newVolume's change while nothing of src is being written.
func (s *Store) enter(name, src string, describe func(*volume) superVolume) error {
	unlock, err := s.still(src)
	if err != nil {
		return err
	}
	defer unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(); err != nil {
		return err
	}
	if s.volumes[name] != nil {
		return &hotspare.Error{Code: hotspare.CodeConflict, What: "a volume of that name exists", Where: "volume " + name, Fix: "choose another name"}
	}
	var from *volume
	if src != "" {
		if from = s.volumes[src]; from == nil {
			return notFound(src)
		}
		if p := from.stopped.Load(); p != nil {
			return *p
		}
	}
	sv := describe(from)
	sv.ID, sv.Name, sv.UID, sv.Created = s.super.NextVolume, name, storage.NewUID(), s.opts.Now().UTC()
	sv.Owned = s.super.Generation + 1
	desc, err := json.Marshal(sv)
	if err != nil {
		return fmt.Errorf("cow: describe volume: %w", err)
	}
	kind, body := recCreate, []byte(nil)
	if from != nil {
		kind, body = recClone, binary.LittleEndian.AppendUint64(nil, from.ID)
	}
	if _, err := s.logged(kind, putStr(body, string(desc))); err != nil {
		return err
	}
	s.addNew(sv, from)
	return nil
}

// still keeps everybody from writing to the volume, "" for none. It gives the way
// to let them again.
func (s *Store) still(name string) (unlock func(), err error) {
	if name == "" {
		return func() {}, nil
	}
	s.mu.RLock()
	v := s.volumes[name]
	s.mu.RUnlock()
	if v == nil {
		return nil, notFound(name)
	}
	v.writes.Lock()
	return v.writes.Unlock, nil
}

// ready says why the catalog cannot change. mu is held.
func (s *Store) ready() error {
	if s.closed {
		return errClosed
	}
	return s.failure()
}

// Delete removes a volume that nobody has open. Space that no other volume
// shares is given back in the background.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.remove(name); err != nil {
		return err
	}
	return s.flush()
}

func (s *Store) remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(); err != nil {
		return err
	}
	v := s.volumes[name]
	if v == nil {
		return notFound(name)
	}
	if v.opens > 0 {
		return &hotspare.Error{Code: hotspare.CodeVolumeBusy, What: "a volume in use is not deleted", Where: "volume " + name,
			Fix: "revoke its grant first"}
	}
	if _, err := s.logged(recDelete, binary.LittleEndian.AppendUint64(nil, v.ID)); err != nil {
		return err
	}
	s.drop(v)
	s.reclaim.Deleted++
	wake(s.reclaimWanted)
	return nil
}

// Resize grows a volume; open devices see the new size at once. Shrinking is
// refused.
func (s *Store) Resize(ctx context.Context, name string, size int64) error {
	if err := checkSize(name, size); err != nil {
		return err
	}
	return s.change(ctx, name, func(v *volume) (byte, []byte, error) {
		if size < v.Size {
			return 0, nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "a volume does not shrink", Where: "volume " + name,
				Why: fmt.Sprintf("it has %d bytes, %d were asked for", v.Size, size), Fix: "make a smaller volume and copy"}
		}
		return recResize, binary.LittleEndian.AppendUint64(nil, uint64(size)), nil
	}, func(v *volume) { s.resize(v, size) })
}

// SetReadOnly seals a volume for good: golden images are made so.
func (s *Store) SetReadOnly(ctx context.Context, name string) error {
	return s.change(ctx, name, func(*volume) (byte, []byte, error) { return recRead, nil, nil },
		(*volume).seal)
}

// change logs a change of one volume (kind and what follows the id) and does
// it, durably, while nothing of the volume is being written.
func (s *Store) change(ctx context.Context, name string, describe func(*volume) (byte, []byte, error), do func(*volume)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	err := func() error {
		unlock, err := s.still(name)
		if err != nil {
			return err
		}
		defer unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.ready(); err != nil {
			return err
		}
		v := s.volumes[name]
		if v == nil {
			return notFound(name)
		}
		kind, more, err := describe(v)
		if err != nil {
			return err
		}
		if _, err := s.logged(kind, append(binary.LittleEndian.AppendUint64(nil, v.ID), more...)); err != nil {
			return err
		}
		do(v)
		return nil
	}()
	if err != nil {
		return err
	}
	return s.flush()
}

// OpenVolume gives a device of the volume; several may be open at a time.
func (s *Store) OpenVolume(name string) (storage.Device, error) {
	d, err := s.openDevice(name)
	if err != nil {
		return nil, err // not d: a nil *device is no nil Device
	}
	return d, nil
}

func (s *Store) openDevice(name string) (*device, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failure(); err != nil {
		return nil, err
	}
	v := s.volumes[name]
	if v == nil {
		return nil, notFound(name)
	}
	if v.stripes == nil {
		v.stripes = new([stripes]sync.RWMutex)
	}
	v.opens++
	return &device{s: s, v: v}, nil
}

// VolumeUID gives the identity of a volume.
func (s *Store) VolumeUID(name string) (string, error) {
	i, err := s.Stat(name)
	return i.UID, err
}

// Stat describes one volume.
func (s *Store) Stat(name string) (Info, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v := s.volumes[name]
	if v == nil {
		return Info{}, notFound(name)
	}
	return v.info(), nil
}

// List describes all volumes, in the order of their names.
func (s *Store) List() []Info {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Info, 0, len(s.volumes))
	for _, v := range s.volumes {
		out = append(out, v.info())
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (v *volume) info() Info {
	i := Info{
		Name: v.Name, UID: v.UID, Size: v.Size, Allocated: v.blocks * blockSize, Parent: v.Parent,
		Snapshot: v.Snapshot, ReadOnly: v.ReadOnly, Created: v.Created, Open: v.opens,
	}
	if p := v.stopped.Load(); p != nil {
		i.Failed = *p
	}
	return i
}

func notFound(name string) error {
	return &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such volume", Where: "volume " + name, Fix: "list the volumes"}
}

func checkSize(name string, size int64) error {
	if size <= 0 || size%512 != 0 || clustersOf(size) > maxClusters {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "a volume cannot have that size", Where: "volume " + name,
			Why: fmt.Sprintf("%d bytes", size), Fix: "take a multiple of 512 up to 256 TiB"}
	}
	return nil
}

// checkName allows letters, digits and . _ : / @ + -; at most 255 bytes.
func checkName(name string) error {
	ok := name != "" && len(name) <= 255
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (letter || slices.Contains([]byte("._:/@+-"), c))
	}
	if !ok {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "a volume cannot have that name", Where: fmt.Sprintf("%.80q", name),
			Fix: "use letters, digits and . _ : / @ + -, at most 255"}
	}
	return nil
}
