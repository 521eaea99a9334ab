package images

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"hotspare"
)

// writeDurably replaces the file at path in one step that survives power loss.
func writeDurably(path string, b []byte) (err error) {
	dir, base := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+base+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// diskError gives err the code of a full disk when it is one.
func diskError(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &hotspare.Error{Code: hotspare.CodeDiskFull, What: "the disk is full", Where: doing,
			Fix: "free space or delete images that are not used, then import again", Err: err}
	}
	return fmt.Errorf("images: %s: %w", doing, err)
}

// blobWriter writes a file of the blob store: under staging first, by digest
// once it is whole.
type blobWriter struct {
	f    *os.File
	hash hash.Hash
	size int64
}

func (r *Repository) newBlob() (*blobWriter, error) {
	f, err := os.CreateTemp(filepath.Join(r.dir, "staging"), "blob-*")
	if err != nil {
		return nil, diskError("stage a file", err)
	}
	return &blobWriter{f: f, hash: sha256.New()}, nil
}

func (w *blobWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.hash.Write(p[:n])
	w.size += int64(n)
	return n, err
}

// abort drops what was written. It does nothing after finish.
func (w *blobWriter) abort() {
	if w.f != nil {
		w.f.Close()
		_ = os.Remove(w.f.Name())
		w.f = nil
	}
}

// finish makes the blob durable. Until a record names it, heal may remove it.
func (r *Repository) finish(w *blobWriter) (Blob, error) {
	b := Blob{Digest: hex.EncodeToString(w.hash.Sum(nil)), Size: w.size}
	if err := w.f.Sync(); err != nil {
		return Blob{}, diskError("write a file of the repository", err)
	}
	path := r.blobPath(b)
	if err := os.Rename(w.f.Name(), path); err != nil {
		return Blob{}, fmt.Errorf("images: place a file: %w", err)
	}
	w.f.Close()
	w.f = nil
	if err := syncDir(filepath.Dir(path)); err != nil {
		return Blob{}, fmt.Errorf("images: %w", err)
	}
	return b, nil
}

// putBlob stores all that src gives.
func (r *Repository) putBlob(src io.Reader) (Blob, error) {
	w, err := r.newBlob()
	if err != nil {
		return Blob{}, err
	}
	defer w.abort()
	if _, err := io.Copy(w, src); err != nil {
		return Blob{}, diskError("copy a file into the repository", err)
	}
	return r.finish(w)
}

// zstdFile reads a compressed file.
type zstdFile struct {
	*zstd.Decoder
	f *os.File
}

func (z zstdFile) Close() error {
	z.Decoder.Close()
	return z.f.Close()
}

func openZstd(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	d, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("images: %w", err)
	}
	return zstdFile{d, f}, nil
}
