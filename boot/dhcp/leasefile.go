package dhcp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/boot"
)

// The lease file is JSON lines: a header with format and version, then one
// record per change, a later one of a machine or an address taking the place of an
// earlier one; a record without a machine is an address in quarantine. It is rewritten
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

// leaseFile is the file. Changes are entered under the server's lock, in the order
// in which they happen, and written by whoever waits first for his own: he takes
// along what others have entered meanwhile, so that many share one sync.
type leaseFile struct {
	path string

	mu    sync.Mutex // guards batch; taken last
	batch *leaseBatch

	writing sync.Mutex // guards what follows
	f       *os.File
	size    int  // records of the last rewrite
	grown   int  // records since then
	torn    bool // a write failed: the next one writes the whole file anew
}

// leaseBatch is changes that are written together.
type leaseBatch struct {
	leases []Lease
	done   bool // guarded by leaseFile.writing, as is err
	err    error
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
	// A machine may have a lease in each of several subnets: the last record of
	// each address of each machine counts, in the order of the file.
	type key struct {
		m boot.MAC
		a netip.Addr
	}
	last := map[key]int{}
	for sc.Scan() {
		var l Lease
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil || !l.Addr.Is4() || l.MAC.IsZero() != l.Quarantine {
			skipped++
			continue
		}
		k := key{l.MAC, l.Addr}
		if i, ok := last[k]; ok {
			leases[i].Quarantine, leases[i].MAC = false, boot.MAC{} // replaced
		}
		last[k] = len(leases)
		leases = append(leases, l)
	}
	if sc.Err() != nil {
		skipped++
	}
	leases = slices.DeleteFunc(leases, func(l Lease) bool { return l.MAC.IsZero() && !l.Quarantine })
	return leases, skipped, nil
}

// enter adds a change to those that are to be written; commit waits for them.
func (lf *leaseFile) enter(l Lease) *leaseBatch {
	if lf == nil {
		return nil
	}
	lf.mu.Lock()
	defer lf.mu.Unlock()
	if lf.batch == nil {
		lf.batch = &leaseBatch{}
	}
	lf.batch.leases = append(lf.batch.leases, l)
	return lf.batch
}

// take gives the changes entered so far and begins a new batch.
func (lf *leaseFile) take() *leaseBatch {
	lf.mu.Lock()
	defer lf.mu.Unlock()
	b := lf.batch
	lf.batch = nil
	return b
}

// commit returns when the changes of b are durable, or could not be made so. all
// gives every lease, when the file is due to be rewritten. The caller holds no lock.
func (lf *leaseFile) commit(b *leaseBatch, all func() []Lease) error {
	if b == nil {
		return nil
	}
	lf.writing.Lock()
	defer lf.writing.Unlock()
	if b.done {
		return b.err
	}
	// Only the holder of writing takes batches: what is entered now is b.
	b = lf.take()
	b.done = true
	if lf.torn || lf.grown > 1024+4*lf.size {
		// Changes are entered together with the change of the table, so that all
		// leases, read after the batch was taken, have it in them.
		b.err = lf.rewrite(all())
	} else {
		b.err = lf.write(b.leases)
	}
	return b.err
}

// write appends changes and makes them durable by one sync.
func (lf *leaseFile) write(leases []Lease) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	for _, l := range leases {
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("encode lease: %w", err)
		}
	}
	lf.torn = true
	if _, err := lf.f.Write(buf.Bytes()); err != nil {
		return lf.wrap(err)
	}
	if err := unix.Fdatasync(int(lf.f.Fd())); err != nil {
		return lf.wrap(err)
	}
	lf.torn = false
	lf.grown += len(leases)
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
	lf.f, lf.size, lf.grown, lf.torn = tmp, len(leases), 0, false
	return nil
}

func (lf *leaseFile) close() error {
	if lf == nil {
		return nil
	}
	lf.writing.Lock()
	defer lf.writing.Unlock()
	if lf.f == nil {
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
