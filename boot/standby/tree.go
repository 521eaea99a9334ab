package standby

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxFile bounds a file of the tree, also after decompression.
const maxFile = 256 << 20

// errStop ends a walk early.
var errStop = errors.New("stop")

// tree is lib/modules/<version>, wherever it is kept.
type tree struct {
	tar, dir string
}

// walk gives every regular file to take, which may read it. Names are relative
// to the tree. take may return errStop.
func (t tree) walk(ctx context.Context, take func(name string, r io.Reader) error) error {
	checked := func(name string, r io.Reader) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return take(name, r)
	}
	err := t.each(checked)
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

func (t tree) each(take func(name string, r io.Reader) error) error {
	if t.dir != "" {
		return walkDir(t.dir, take)
	}
	f, err := os.Open(t.tar)
	if err != nil {
		return err
	}
	defer f.Close()
	return walkTar(f, take)
}

func walkDir(dir string, take func(name string, r io.Reader) error) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return take(name, f)
	})
}

func walkTar(f io.Reader, take func(name string, r io.Reader) error) error {
	src := bufio.NewReaderSize(f, 256<<10)
	var r io.Reader = src
	if magic, _ := src.Peek(4); bytes.Equal(magic, []byte("\x28\xb5\x2f\xfd")) {
		zr, err := zstd.NewReader(src)
		if err != nil {
			return err
		}
		defer zr.Close()
		r = zr
	}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if !fs.ValidPath(name) {
			return fmt.Errorf("%q is not a path inside the tree", h.Name)
		}
		if err := take(name, tr); err != nil {
			return err
		}
	}
}

// digest addresses the contents of the tree.
func (t tree) digest(ctx context.Context) (string, error) {
	h := sha256.New()
	if t.dir == "" {
		f, err := os.Open(t.tar)
		if err != nil {
			return "", err
		}
		defer f.Close()
		if _, err := io.Copy(h, f); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	err := t.walk(ctx, func(name string, r io.Reader) error {
		file := sha256.New()
		if _, err := io.Copy(file, r); err != nil {
			return err
		}
		fmt.Fprintf(h, "%x %q\n", file.Sum(nil), name)
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// metadata is what depmod wrote.
type metadata struct {
	dep, softdep, alias, builtin []byte
}

func (t tree) metadata(ctx context.Context) (metadata, error) {
	var m metadata
	left := map[string]*[]byte{"modules.dep": &m.dep, "modules.softdep": &m.softdep, "modules.alias": &m.alias, "modules.builtin": &m.builtin}
	err := t.walk(ctx, func(name string, r io.Reader) error {
		into, ok := left[name]
		if !ok {
			return nil
		}
		b, err := readLimited(r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*into = b
		if delete(left, name); len(left) == 0 {
			return errStop
		}
		return nil
	})
	if err == nil && m.dep == nil {
		err = fmt.Errorf("modules.dep: %w", fs.ErrNotExist)
	}
	return m, err
}

// read gives the contents of the named files, decompressed.
func (t tree) read(ctx context.Context, names []string) (map[string][]byte, error) {
	left, got := map[string]bool{}, map[string][]byte{}
	for _, n := range names {
		left[n] = true
	}
	if len(left) == 0 {
		return got, nil
	}
	err := t.walk(ctx, func(name string, r io.Reader) error {
		if !left[name] {
			return nil
		}
		b, err := decompress(name, r)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		got[name] = b
		if delete(left, name); len(left) == 0 {
			return errStop
		}
		return nil
	})
	for name := range left {
		err = errors.Join(err, fmt.Errorf("%s: %w", name, fs.ErrNotExist))
	}
	return got, err
}

// decompress reads a module: .ko, .ko.xz, .ko.zst, .ko.gz.
func decompress(name string, r io.Reader) ([]byte, error) {
	switch {
	case strings.HasSuffix(name, ".xz"):
		xr, err := xz.NewReader(bufio.NewReader(r))
		if err != nil {
			return nil, err
		}
		return readLimited(xr)
	case strings.HasSuffix(name, ".zst"):
		zr, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer zr.Close()
		return readLimited(zr)
	case strings.HasSuffix(name, ".gz"):
		gr, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		return readLimited(gr)
	}
	return readLimited(r)
}

func readLimited(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return b, err
}
