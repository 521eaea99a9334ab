package dhcp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"hotspare"
	"hotspare/boot"
)

// The lease file is JSON lines: a header with format and version, then one
// record per change, the last one of a MAC address counting. It is rewritten
// beside itself and renamed when it is opened and when it has grown. A change is
// on disk before the machine is told of it.
const (
	leaseFormat  = "hotspare-leases"
	leaseVersion = 1
)

type leaseHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

type leaseFile struct {
	path  string
	f     *os.File
	grown int  // records since the last rewrite
	torn  bool // a write failed: the next one writes the whole file anew
}

// openLeases reads the leases at path, whose folder must exist. skipped counts
// lines that could not be read; a half last line is what a power cut leaves.
func openLeases(path string) (lf *leaseFile, leases []Lease, skipped int, err error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, 0, fmt.Errorf("read DHCP leases: %w", err)
	}
	leases, skipped, err = parseLeases(b)
	if err != nil {
		return nil, nil, 0, &hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: "the lease file cannot be read", Where: path, Why: err.Error(),
			Fix: "start the release that wrote it, or move the file away: machines then get new addresses", Err: err,
		}
	}
	left, err := filepath.Glob(path + ".new-*") // of a rewrite that was killed
	if err != nil {
		return nil, nil, 0, fmt.Errorf("look for leftovers of %s: %w", path, err)
	}
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return nil, nil, 0, fmt.Errorf("remove a leftover: %w", err)
		}
	}
	lf = &leaseFile{path: path}
	if err := lf.rewrite(leases); err != nil {
		return nil, nil, 0, err
	}
	return lf, leases, skipped, nil
}

func parseLeases(b []byte) (leases []Lease, skipped int, err error) {
	if len(b) == 0 {
		return nil, 0, nil
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<16)
	if !sc.Scan() {
		return nil, 0, errors.New("no header")
	}
	var h leaseHeader
	if err := json.Unmarshal(sc.Bytes(), &h); err != nil || h.Format != leaseFormat {
		return nil, 0, fmt.Errorf("the first line is no header of %s", leaseFormat)
	}
	if h.Version != leaseVersion {
		return nil, 0, fmt.Errorf("version %d, this release writes %d", h.Version, leaseVersion)
	}
	last := map[boot.MAC]Lease{}
	for sc.Scan() {
		var l Lease
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil || !l.Addr.Is4() || l.MAC.IsZero() {
			skipped++
			continue
		}
		last[l.MAC] = l
	}
	if sc.Err() != nil {
		skipped++
	}
	for _, l := range last {
		leases = append(leases, l)
	}
	return leases, skipped, nil
}

// append makes one change durable. There are n leases after it, and all gives
// them when the file is due to be rewritten.
func (lf *leaseFile) append(l Lease, n int, all func() []Lease) error {
	if lf == nil {
		return nil
	}
	if lf.torn || lf.grown > 1024+4*n {
		return lf.rewrite(all())
	}
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	lf.torn = true
	if _, err := lf.f.Write(append(b, '\n')); err != nil {
		return lf.wrap(err)
	}
	if err := lf.f.Sync(); err != nil {
		return lf.wrap(err)
	}
	lf.torn = false
	lf.grown++
	return nil
}

func (lf *leaseFile) rewrite(leases []Lease) (err error) {
	lf.torn = true
	tmp, err := os.CreateTemp(filepath.Dir(lf.path), filepath.Base(lf.path)+".new-*")
	if err != nil {
		return lf.wrap(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(lf.wrap(err), tmp.Close(), os.Remove(tmp.Name()))
		}
	}()
	w := bufio.NewWriter(tmp)
	enc := json.NewEncoder(w)
	if err := enc.Encode(leaseHeader{leaseFormat, leaseVersion}); err != nil {
		return err
	}
	for _, l := range leases {
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	if err := errors.Join(w.Flush(), tmp.Sync()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), lf.path); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(lf.path)); err != nil {
		return err
	}
	if lf.f != nil {
		lf.f.Close()
	}
	// The temporary file is the lease file now; appends go on at its end.
	lf.f, lf.grown, lf.torn = tmp, 0, false
	return nil
}

func (lf *leaseFile) close() error {
	if lf == nil || lf.f == nil {
		return nil
	}
	return lf.f.Close()
}

func (lf *leaseFile) wrap(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, io.ErrShortWrite) {
		return &hotspare.Error{Code: hotspare.CodeDiskFull, What: "DHCP leases cannot be written", Where: lf.path, Fix: "free space on that file system", Err: err}
	}
	return fmt.Errorf("write DHCP leases to %s: %w", lf.path, err)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
