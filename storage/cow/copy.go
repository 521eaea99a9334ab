package cow

import (
	"context"
	"errors"
	"fmt"

	"hotspare"
	"hotspare/storage"
)

// CopyOptions of Copy.
type CopyOptions struct {
	// BytesPerSecond bounds how fast data is copied; 0: no bound.
	BytesPerSecond int64
	// Writable leaves the copy writable; else it is sealed, as a snapshot is.
	Writable bool
	// Progress is told how many bytes were copied so far; nil: nobody is.
	Progress func(done int64)
}

// copyChunk is how much is read and written at a time.
const copyChunk = 1 << 20

// partial marks the volume that a copy grows in.
const partial = "+partial"

// Copy makes as, in the store to, a volume with the contents of name: a snapshot
// or any other volume that does not change meanwhile. Only data is copied, what
// is a hole stays one. The copy appears under its name when it is whole and
// durable; until then it is the volume as+"+partial", which is removed after an
// error, and by the next Copy to that name if the process ended first.
func (s *Store) Copy(ctx context.Context, name string, to *Store, as string, o CopyOptions) error {
	src, err := s.openDevice(name)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := checkName(as + partial); err != nil {
		return err
	}
	if _, err := to.Stat(as); err == nil {
		return &hotspare.Error{Code: hotspare.CodeConflict, What: "a volume of that name exists", Where: "volume " + as, Fix: "choose another name"}
	}
	half := as + partial
	if err := to.Delete(ctx, half); err != nil && hotspare.CodeOf(err) != hotspare.CodeNotFound {
		return err // another copy to that name is under way
	}
	if err := to.Create(ctx, half, src.Size()); err != nil {
		return err
	}
	if err = s.copyData(ctx, src, to, half, o); err == nil {
		from := src.v.Name
		if src.v.Snapshot {
			from = src.v.Parent // taken for the copy, often
		}
		err = to.newVolume(ctx, as, half, func(v *volume) superVolume {
			return superVolume{Size: v.Size, Parent: from, Snapshot: !o.Writable, ReadOnly: !o.Writable}
		})
	}
	// Also after the end of ctx: nothing is left behind.
	if derr := to.Delete(context.WithoutCancel(ctx), half); derr != nil {
		err = errors.Join(err, fmt.Errorf("remove %s: %w", half, derr))
	}
	return err
}

func (s *Store) copyData(ctx context.Context, src *device, to *Store, half string, o CopyOptions) error {
	dst, err := to.openDevice(half)
	if err != nil {
		return err
	}
	defer dst.Close()
	pace := storage.Pace{BytesPerSecond: o.BytesPerSecond}
	buf := make([]byte, copyChunk)
	var done int64
	err = s.Extents(ctx, src.v.Name, 0, func(e Extent) error {
		for e.Len > 0 {
			p := buf[:min(e.Len, copyChunk)]
			if err := pace.Wait(ctx, int64(len(p))); err != nil {
				return err
			}
			if _, err := src.ReadAt(p, e.Off); err != nil {
				return err
			}
			if _, err := dst.WriteAt(p, e.Off); err != nil {
				return err
			}
			e.Off, e.Len = e.Off+int64(len(p)), e.Len-int64(len(p))
			if done += int64(len(p)); o.Progress != nil {
				o.Progress(done)
			}
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return dst.Flush()
}
