package standby

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
)

// note is kept beside a cached archive: <key>.json beside <key>.img. It is
// written last; without it, or with a file that differs from it, the archive is
// built again.
type note struct {
	Version int    `json:"version"`
	Result  Result `json:"result"`
}

// cached gives the archive from the cache, or builds it while it holds the
// key's lock, so that it is built once.
func cached(ctx context.Context, dir string, in inputs) (Result, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Result{}, cacheError(dir, err)
	}
	key := in.key()
	img, about := filepath.Join(dir, key+".img"), filepath.Join(dir, key+".json")
	if res, ok := reuse(img, about); ok {
		return res, nil
	}
	unlock, err := lockFile(ctx, filepath.Join(dir, key+".lock"))
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if res, ok := reuse(img, about); ok { // another one built it meanwhile
		return res, nil
	}
	removeTorn(dir, key)
	start := time.Now()
	data, res, err := in.make(ctx)
	if err != nil {
		return Result{}, err
	}
	b, err := json.Marshal(note{formatVersion, res})
	if err != nil {
		return Result{}, cacheError(dir, err)
	}
	if err := replace(img, data); err != nil {
		return Result{}, cacheError(img, err)
	}
	if err := replace(about, b); err != nil {
		return Result{}, cacheError(about, err)
	}
	res.Path = img
	in.req.Log.Info("initramfs built", "kernel", in.req.KernelVersion, "set", in.req.Set, "size", res.Size, "unpacked", res.Unpacked,
		"modules", res.ModuleCount, "absent", res.Absent, "took", time.Since(start).Round(time.Millisecond))
	return res, nil
}

// removeTorn removes what a killed builder of this key left. The caller holds the
// key's lock.
func removeTorn(dir, key string) {
	torn, err := filepath.Glob(filepath.Join(dir, "."+key+".*"))
	if err != nil {
		return // only for a malformed pattern
	}
	for _, name := range torn {
		_ = os.Remove(name) // a leftover wastes space only
	}
}

// reuse gives the cached archive if it is whole.
func reuse(img, about string) (Result, bool) {
	b, err := os.ReadFile(about)
	var n note
	if err != nil || json.Unmarshal(b, &n) != nil || n.Version != formatVersion {
		return Result{}, false
	}
	f, err := os.Open(img)
	if err != nil {
		return Result{}, false
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil || hex.EncodeToString(h.Sum(nil)) != n.Result.Digest {
		return Result{}, false
	}
	n.Result.Path, n.Result.Reused = img, true
	return n.Result, true
}

// lockFile takes a lock that other processes see too. If ctx ends first, the
// lock is given back as soon as it arrives.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, cacheError(path, err)
	}
	fd := int(f.Fd())
	if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { f.Close() }, nil
	}
	locked := make(chan error, 1)
	go func() { locked <- flockWait(fd) }() // ends when the other builder does
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, cacheError(path, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		go func() { _ = errors.Join(<-locked, f.Close()) }() // nobody waits for it any more
		return nil, ctx.Err()
	}
}

func flockWait(fd int) error {
	for {
		if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// replace writes a file in one step.
func replace(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(f.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

func cacheError(where string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &hotspare.Error{Code: hotspare.CodeDiskFull, What: "the disk is full", Where: where,
			Fix: "free space for the cache of initramfs archives", Err: err}
	}
	return cannot(where, fmt.Sprintf("the cache cannot be written: %v", err), "", err)
}
