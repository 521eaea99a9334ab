package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"hotspare/storage"
	"hotspare/storage/cow"
)

// cluster and block are the store's units.
const (
	cluster = 64 << 10
	block   = 4 << 10
)

// storeFigures measure the store in this process. It lies in memory: a sync
// costs nothing there, so what remains of a clone is what comes on top of one.
func storeFigures(ctx context.Context, o options) ([]figure, error) {
	var all []figure
	for _, measure := range []func(context.Context, options, string) ([]figure, error){cloneFigures, chainFigures, copyFigures, startFigures} {
		dir := filepath.Join(o.memory, "store")
		fs, err := measure(ctx, o, dir)
		all = append(all, fs...)
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			return all, err
		}
	}
	return all, nil
}

// withStore opens a store with one volume, "v", for use.
func withStore(ctx context.Context, dir string, size int64, use func(*cow.Store, storage.Device) error) (err error) {
	s, err := cow.Open(ctx, dir, cow.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := s.Stat("v"); err != nil {
		if err := s.Create(ctx, "v", size); err != nil {
			return err
		}
	}
	d, err := s.OpenVolume("v")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return use(s, d)
}

// cloneFigures: clones and snapshots of a volume with one piece of 4 KiB in each
// of very many clusters, in an order without order; with as many snapshots.
func cloneFigures(ctx context.Context, o options, dir string) (fs []figure, err error) {
	size := int64(o.extents) * cluster
	snapshots := min(10_000, o.extents/10)
	err = withStore(ctx, dir, size, func(s *cow.Store, d storage.Device) error {
		buf := make([]byte, block)
		rng := rand.New(rand.NewPCG(1, 2))
		for i, c := range rng.Perm(o.extents) {
			buf[0]++
			if _, err := d.WriteAt(buf, int64(c)*cluster+int64(i%16)*block); err != nil {
				return err
			}
		}
		if err := d.Flush(); err != nil {
			return err
		}
		timed := func(do func(i int) error, from, n int) (float64, error) {
			var ms []float64
			for i := from; i < from+n; i++ {
				// A write in between, so that each has something to freeze.
				if _, err := d.WriteAt(buf, rng.Int64N(int64(o.extents))*cluster); err != nil {
					return 0, err
				}
				start := time.Now()
				if err := do(i); err != nil {
					return 0, err
				}
				ms = append(ms, time.Since(start).Seconds()*1e3)
			}
			return median(ms), nil
		}
		clone := func(i int) error { return s.Clone(ctx, "v", fmt.Sprintf("clone-%d", i)) }
		snap := func(i int) error { return s.Snapshot(ctx, "v", fmt.Sprintf("snap-%d", i)) }
		absolute := func(name string, v float64) {
			fs = append(fs, figure{Name: name, Value: v, Unit: "ms", Goal: 1, Better: "lower"})
		}
		ms, err := timed(clone, 0, 100)
		if err != nil {
			return err
		}
		absolute(fmt.Sprintf("store: clone at %d extents, on top of a sync", o.extents), ms)
		if ms, err = timed(snap, 0, 100); err != nil {
			return err
		}
		absolute(fmt.Sprintf("store: snapshot at %d extents, on top of a sync", o.extents), ms)
		if _, err = timed(snap, 100, snapshots-200); err != nil {
			return err
		}
		if ms, err = timed(snap, snapshots-100, 100); err != nil {
			return err
		}
		absolute(fmt.Sprintf("store: snapshot at %d snapshots, on top of a sync", snapshots), ms)
		return nil
	})
	if err != nil {
		return fs, err
	}
	mib, err := mapMemory(ctx, o, dir, size)
	fs = append(fs, figure{Name: fmt.Sprintf("store: memory of the maps at %d extents and %d snapshots", o.extents, snapshots), Value: mib, Unit: "MiB", Goal: 64, Better: "lower"})
	return fs, err
}

// mapMemory opens the store anew and reads all over the volume.
func mapMemory(ctx context.Context, o options, dir string, size int64) (mib float64, err error) {
	heap := func() float64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	before := heap()
	err = withStore(ctx, dir, size, func(_ *cow.Store, d storage.Device) error {
		buf := make([]byte, block)
		for range o.extents / 2 {
			if _, err := d.ReadAt(buf, rand.Int64N(int64(o.extents))*cluster); err != nil {
				return err
			}
		}
		mib = heap() - before
		return nil
	})
	return mib, err
}

// chainFigures: reads through a clone of a clone, a thousand deep, each of which
// wrote a little, beside reads of a volume without ancestors.
func chainFigures(ctx context.Context, o options, dir string) (fs []figure, err error) {
	const size = 256 << 20
	const depth = 1000
	sr := &series{name: fmt.Sprintf("store: 4k random read through %d clones", depth), unit: "1/s", peer: "flat volume", goal: 0.9, better: "higher"}
	err = withStore(ctx, dir, size, func(s *cow.Store, flat storage.Device) (err error) {
		if err := fill(flat, size); err != nil {
			return err
		}
		if err := s.Clone(ctx, "v", "c-0"); err != nil {
			return err
		}
		buf := make([]byte, block)
		for i := range depth {
			d, err := s.OpenVolume(fmt.Sprintf("c-%d", i))
			if err != nil {
				return err
			}
			for range 16 {
				if _, err := d.WriteAt(buf, rand.Int64N(size/block)*block); err != nil {
					return err
				}
			}
			if err := errors.Join(d.Close(), s.Clone(ctx, fmt.Sprintf("c-%d", i), fmt.Sprintf("c-%d", i+1))); err != nil {
				return err
			}
		}
		deep, err := s.OpenVolume(fmt.Sprintf("c-%d", depth))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, deep.Close()) }()
		for range o.rounds {
			for _, x := range []struct {
				d  storage.Device
				to *[]float64
			}{{deep, &sr.own}, {flat, &sr.other}} {
				n, start := 0, time.Now()
				for time.Since(start) < o.slice/2 {
					for range 64 {
						if _, err := x.d.ReadAt(buf, rand.Int64N(size/block)*block); err != nil {
							return err
						}
						n++
					}
				}
				*x.to = append(*x.to, float64(n)/time.Since(start).Seconds())
			}
		}
		return nil
	})
	return []figure{sr.figure()}, err
}

// copyFigures: the first write to each cluster of a clone beside overwriting.
func copyFigures(ctx context.Context, o options, dir string) ([]figure, error) {
	const size = 512 << 20
	sr := &series{name: "store: 4k first write to a cloned cluster", unit: "1/s", peer: "overwrite", goal: 0.5, better: "higher"}
	err := withStore(ctx, dir, size, func(s *cow.Store, d storage.Device) error {
		if err := fill(d, size); err != nil {
			return err
		}
		buf := make([]byte, block)
		sweep := func() (float64, error) {
			start := time.Now()
			order := rand.Perm(size / cluster)
			for _, c := range order {
				if _, err := d.WriteAt(buf, int64(c)*cluster); err != nil {
					return 0, err
				}
			}
			return float64(len(order)) / time.Since(start).Seconds(), nil
		}
		for i := range max(3, o.rounds) {
			if err := s.Clone(ctx, "v", fmt.Sprintf("c-%d", i)); err != nil {
				return err
			}
			first, err := sweep()
			if err != nil {
				return err
			}
			again, err := sweep()
			if err != nil {
				return err
			}
			sr.own, sr.other = append(sr.own, first), append(sr.other, again)
		}
		return nil
	})
	return []figure{sr.figure()}, err
}

// startFigures: opening a store with a thousand volumes of a few hundred
// clusters each, after a close and after a kill.
func startFigures(ctx context.Context, o options, dir string) ([]figure, error) {
	const volumes = 1000
	s, err := cow.Open(ctx, dir, cow.Options{})
	if err != nil {
		return nil, err
	}
	buf := make([]byte, block)
	for i := range volumes {
		name := fmt.Sprintf("v-%d", i)
		if err := s.Create(ctx, name, 10<<30); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		d, err := s.OpenVolume(name)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		for range 256 {
			if _, err := d.WriteAt(buf, rand.Int64N(10<<30/block)*block); err != nil {
				return nil, errors.Join(err, d.Close(), s.Close())
			}
		}
		if err := d.Close(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	var times []float64
	for range max(3, o.rounds) {
		start := time.Now()
		s, err := cow.Open(ctx, dir, cow.Options{})
		if err != nil {
			return nil, err
		}
		times = append(times, time.Since(start).Seconds())
		if err := s.Close(); err != nil {
			return nil, err
		}
	}
	return []figure{{Name: fmt.Sprintf("store: start with %d volumes", volumes), Value: median(times), Unit: "s", Goal: 2, Better: "lower"}}, nil
}

// fill writes a volume from end to end.
func fill(d storage.Device, size int64) error {
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i)
	}
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := d.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return d.Flush()
}
