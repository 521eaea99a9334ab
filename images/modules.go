package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"github.com/klauspost/compress/zstd"

	"hotspare"
)

const (
	maxModuleFiles = 50000
	maxModuleDepth = 32
)

// moduleTree writes lib/modules/<version> as a reproducible tar: regular files
// only, sorted, names relative to the tree, no times and no owners. The files of
// a directory come before its directories, so that a reader finds modules.dep
// and its kin first. Links (build, source) lead out of the tree and are left
// out.
type moduleTree struct {
	ctx   context.Context
	w     *tar.Writer
	limit int64 // bytes that are still allowed
	files int
	dep   bool // modules.dep was there
}

// takeModules stores the module tree of a kernel: from the given directory, or
// from the image.
func (r *Repository) takeModules(ctx context.Context, sys system, version, given string) (Blob, error) {
	blob, err := r.newBlob()
	if err != nil {
		return Blob{}, err
	}
	defer blob.abort()
	// One encoder thread: the same tree gives the same bytes.
	zw, err := zstd.NewWriter(blob, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return Blob{}, fmt.Errorf("images: %w", err)
	}
	defer zw.Close()
	t := &moduleTree{ctx: ctx, w: tar.NewWriter(zw), limit: r.opts.MaxModules}
	where := "/lib/modules/" + version
	switch {
	case given != "":
		where = given
		err = t.addDir(given)
	case sys.rootFS.fileSystem == nil:
		return Blob{}, noKernel(where, "the kernel is given, its modules are not, and the root is "+sys.root.kind, nil)
	default:
		var n *file
		if n, _, err = sys.rootFS.lookup(where); err == nil {
			err = t.addImage(sys.rootFS, n, "", 0)
		}
	}
	if err == nil && !t.dep {
		err = noKernel(where, "modules.dep is missing: run depmod", nil)
	}
	for _, step := range []func() error{t.w.Close, zw.Close} {
		if err == nil {
			err = step()
		}
	}
	switch {
	case err == nil:
		return r.finish(blob)
	case hotspare.CodeOf(err) != "" || ctx.Err() != nil:
		return Blob{}, err
	case errors.Is(err, fs.ErrNotExist):
		return Blob{}, noKernel(where, "the module tree is missing", err)
	}
	if full := diskError("store the kernel modules", err); hotspare.CodeOf(full) == hotspare.CodeDiskFull {
		return Blob{}, full
	}
	return Blob{}, noKernel(where, "the module tree cannot be read", err)
}

// add writes one file.
func (t *moduleTree) add(name string, size int64, open func() (io.Reader, error)) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	t.files++
	t.limit -= size
	if size > maxModule || t.limit < 0 || t.files > maxModuleFiles {
		return fmt.Errorf("%s: the tree is larger than allowed", name)
	}
	h := &tar.Header{Name: name, Size: size, Mode: 0o644, Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if err := t.w.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	src, err := open()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := io.CopyN(t.w, src, size); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	t.dep = t.dep || name == "modules.dep"
	return nil
}

// addImage writes the directory n of an image. Names are those that list lets
// pass: without slashes, none twice.
func (t *moduleTree) addImage(f files, n *file, prefix string, depth int) error {
	if depth > maxModuleDepth {
		return fmt.Errorf("%s: more than %d directories deep", prefix, maxModuleDepth)
	}
	all, err := f.list(n)
	if err != nil {
		return err
	}
	type directory struct {
		name string
		n    *file
	}
	var below []directory
	for _, e := range all {
		child, err := f.follow(e)
		if err != nil {
			return err
		}
		name := path.Join(prefix, e.name)
		switch {
		case child.is(modeDir):
			if t.files++; t.files > maxModuleFiles {
				return fmt.Errorf("%s: the tree is larger than allowed", name)
			}
			below = append(below, directory{name, child})
		case child.is(modeRegular):
			err = t.add(name, child.size, func() (io.Reader, error) {
				r, err := f.contents(child)
				if err != nil {
					return nil, err
				}
				return io.NewSectionReader(r, 0, child.size), nil
			})
		}
		if err != nil {
			return err
		}
	}
	for _, d := range below {
		if err := t.addImage(f, d.n, d.name, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// addDir writes a directory of this host. os.Root keeps it from being led
// elsewhere.
func (t *moduleTree) addDir(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return t.addRoot(root, ".", 0)
}

func (t *moduleTree) addRoot(root *os.Root, dir string, depth int) error {
	if depth > maxModuleDepth {
		return fmt.Errorf("%s: more than %d directories deep", dir, maxModuleDepth)
	}
	entries, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if err := t.addRootFile(root, path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := t.addRoot(root, path.Join(dir, e.Name()), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (t *moduleTree) addRootFile(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return t.add(name, info.Size(), func() (io.Reader, error) { return f, nil })
}
