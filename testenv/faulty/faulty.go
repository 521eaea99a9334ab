// Package faulty has file layers that lose, tear and fail on purpose, for tests
// of what stands on them.
package faulty

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"hotspare/storage/cow"
)

// sector is the unit in which a disk tears a write.
const sector = 512

// FS is a cow.FileSystem in memory that knows, for every file, what is durable
// and what only the page cache has. Kill ends the process that uses it and loses
// nothing; PowerLoss loses and tears what was not synced, as the seed decides.
type FS struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	files   map[string]*inode
	dirOps  []dirOp // not yet durable, in order
	durable map[string]*inode
	locked  bool
	epoch   int // handles of an older one are dead

	calls    int          // calls that may fail, since the start
	failAt   int          // the call that fails; 0: none
	failWith error        // with this
	sticky   bool         // and all after it
	full     int64        // bytes that fit; 0: any
	onCall   func(c Call) // sees every call before it runs
}

// Call describes one call to the layer.
type Call struct {
	N    int // from 1
	Op   string
	File string
	Off  int64
	Size int
}

type inode struct {
	name    string
	now     []byte // as the page cache shows it
	synced  []byte // as the disk holds it
	pending []write
	// errs counts failed syncs: as Linux does, each handle is told once of those
	// since it was opened.
	errs int
	err  error
}

// write is one that is not synced. data nil means a truncation to off.
type write struct {
	off  int64
	data []byte
}

type dirOp struct {
	do func(m map[string]*inode)
}

var (
	_ cow.FileSystem = (*FS)(nil)
	_ cow.FileSystem = (*Process)(nil)
)

// NewFS makes an empty file system whose losses follow from the seed.
func NewFS(seed uint64) *FS {
	return &FS{rnd: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)), files: map[string]*inode{}, durable: map[string]*inode{}}
}

// FailAt makes the n-th call from now (1 is the next) fail with err, and all
// after it if sticky is set. n = 0 ends that.
func (f *FS) FailAt(n int, err error, sticky bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failAt, f.failWith, f.sticky = 0, err, sticky
	if n > 0 {
		f.failAt = f.calls + n
	}
}

// OnCall installs a function that sees every call before it runs; nil removes it.
func (f *FS) OnCall(fn func(Call)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onCall = fn
}

// Calls gives the number of calls that could have failed so far.
func (f *FS) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Limit sets how many bytes all files together may have; a write beyond gives
// ENOSPC. 0 lifts it. Holes and zero pages count nothing.
func (f *FS) Limit(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = n
}

// Process gives the file system as one process sees it: after Kill or PowerLoss
// nothing works there any more, whatever still runs in it.
func (f *FS) Process() *Process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &Process{f, f.epoch}
}

// Process is a FS until its process ends.
type Process struct {
	f     *FS
	epoch int
}

// alive locks if the process is alive.
func (p *Process) alive(op, name string) error {
	p.f.mu.Lock()
	if p.epoch != p.f.epoch {
		p.f.mu.Unlock()
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrClosed}
	}
	return nil
}

// Open opens or creates a file.
func (p *Process) Open(name string, create bool) (cow.File, error) {
	if err := p.alive("open", name); err != nil {
		return nil, err
	}
	defer p.f.mu.Unlock()
	return p.f.open(name, create)
}

// Rename renames a file over another.
func (p *Process) Rename(from, to string) error {
	if err := p.alive("rename", from); err != nil {
		return err
	}
	defer p.f.mu.Unlock()
	return p.f.rename(from, to)
}

// Remove removes a file.
func (p *Process) Remove(name string) error {
	if err := p.alive("remove", name); err != nil {
		return err
	}
	defer p.f.mu.Unlock()
	return p.f.remove(name)
}

// List gives the names of all files.
func (p *Process) List() ([]string, error) { return p.f.List() }

// SyncDir makes the directory durable.
func (p *Process) SyncDir() error {
	if err := p.alive("syncdir", ""); err != nil {
		return err
	}
	defer p.f.mu.Unlock()
	return p.f.syncDir()
}

// Lock takes the lock; Kill breaks it.
func (p *Process) Lock() (io.Closer, error) { return p.f.Lock() }

// Kill ends all handles and the lock, as the end of a process does.
func (f *FS) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.epoch++
	f.locked = false
	f.failAt, f.onCall = 0, nil
}

// PowerLoss kills, and then takes a random part of what was not synced: each
// write is kept, lost, or torn at a sector; of the directory's changes a prefix
// is kept.
func (f *FS) PowerLoss() {
	f.Kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, op := range f.dirOps[:f.rnd.IntN(len(f.dirOps)+1)] {
		op.do(f.durable)
	}
	f.dirOps = nil
	mood := f.rnd.IntN(4) // some losses are total, some almost none
	for _, n := range f.durable {
		for _, w := range n.pending {
			keep := f.rnd.IntN(3) != 0
			switch mood {
			case 0:
				keep = false
			case 1:
				keep = true
			}
			if !keep {
				continue
			}
			if w.data == nil {
				n.synced = resize(n.synced, w.off)
				continue
			}
			data := w.data
			if mood != 1 && f.rnd.IntN(4) == 0 { // torn: sectors of it
				f.tear(n, w)
				continue
			}
			n.synced = put(n.synced, data, w.off)
		}
		n.pending = nil
		n.now = slices.Clone(n.synced)
	}
	f.files = map[string]*inode{}
	for k, v := range f.durable {
		f.files[k] = v
	}
}

// tear keeps some sectors of a write.
func (f *FS) tear(n *inode, w write) {
	for off := 0; off < len(w.data); off += sector {
		if f.rnd.IntN(2) == 0 {
			end := min(off+sector, len(w.data))
			n.synced = put(n.synced, w.data[off:end], w.off+int64(off))
		}
	}
}

// Flip inverts one bit of a file, durably.
func (f *FS) Flip(name string, off int64, bit uint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.files[name]
	if n == nil || off >= int64(len(n.now)) {
		return fmt.Errorf("faulty: no byte %d in %s: %w", off, name, fs.ErrNotExist)
	}
	n.now[off] ^= 1 << bit
	if off < int64(len(n.synced)) {
		n.synced[off] ^= 1 << bit
	}
	return nil
}

// Sizes gives the bytes of every file that are not in a page of zeros.
func (f *FS) Sizes() map[string]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]int64{}
	for k, n := range f.files {
		out[k] = used(n.now)
	}
	return out
}

const page = 4096

// used counts the pages that are not all zeros.
func used(b []byte) int64 {
	var n int64
	for ; len(b) > 0; b = b[min(page, len(b)):] {
		for _, x := range b[:min(page, len(b))] {
			if x != 0 {
				n += page
				break
			}
		}
	}
	return n
}

func put(b, p []byte, off int64) []byte {
	if need := off + int64(len(p)); need > int64(len(b)) {
		b = resize(b, need)
	}
	copy(b[off:], p)
	return b
}

func resize(b []byte, n int64) []byte {
	if n <= int64(len(b)) {
		return b[:n:n]
	}
	return append(b, make([]byte, n-int64(len(b)))...)
}

// call counts and may fail a call; f.mu is held.
func (f *FS) call(op, file string, off int64, size int) error {
	f.calls++
	if f.onCall != nil {
		f.onCall(Call{f.calls, op, file, off, size})
	}
	if f.failAt != 0 && (f.calls == f.failAt || f.sticky && f.calls > f.failAt) {
		return &fs.PathError{Op: op, Path: file, Err: f.failWith}
	}
	return nil
}

// Open opens or creates a file.
func (f *FS) Open(name string, create bool) (cow.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open(name, create)
}

func (f *FS) open(name string, create bool) (cow.File, error) {
	if err := f.call("open", name, 0, 0); err != nil {
		return nil, err
	}
	n := f.files[name]
	if n == nil {
		if !create {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		n = &inode{name: name}
		f.files[name] = n
		f.dirOps = append(f.dirOps, dirOp{func(m map[string]*inode) { m[name] = n }})
	}
	return &file{f, n, f.epoch, n.errs}, nil
}

// Rename renames a file over another.
func (f *FS) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rename(from, to)
}

func (f *FS) rename(from, to string) error {
	if err := f.call("rename", from, 0, 0); err != nil {
		return err
	}
	n := f.files[from]
	if n == nil {
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	}
	do := func(m map[string]*inode) {
		delete(m, from)
		m[to] = n
	}
	do(f.files)
	f.dirOps = append(f.dirOps, dirOp{do})
	return nil
}

// Remove removes a file.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.remove(name)
}

func (f *FS) remove(name string) error {
	if err := f.call("remove", name, 0, 0); err != nil {
		return err
	}
	if f.files[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	delete(f.files, name)
	f.dirOps = append(f.dirOps, dirOp{func(m map[string]*inode) { delete(m, name) }})
	return nil
}

// List gives the names of all files.
func (f *FS) List() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for k := range f.files {
		names = append(names, k)
	}
	slices.Sort(names)
	return names, nil
}

// SyncDir makes the directory durable.
func (f *FS) SyncDir() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.syncDir()
}

func (f *FS) syncDir() error {
	if err := f.call("syncdir", "", 0, 0); err != nil {
		return err
	}
	for _, op := range f.dirOps {
		op.do(f.durable)
	}
	f.dirOps = nil
	return nil
}

// Lock takes the lock; Kill breaks it.
func (f *FS) Lock() (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locked {
		return nil, cow.ErrLocked
	}
	f.locked = true
	return &lock{f, f.epoch}, nil
}

type lock struct {
	f     *FS
	epoch int
}

func (l *lock) Close() error {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	if l.epoch == l.f.epoch {
		l.f.locked = false
	}
	return nil
}

// file is one handle.
type file struct {
	f     *FS
	n     *inode
	epoch int
	seen  int // of n.errs
}

// begin locks and counts; the handle of a killed process is dead.
func (h *file) begin(op string, off int64, size int) error {
	h.f.mu.Lock()
	if h.epoch != h.f.epoch {
		return &fs.PathError{Op: op, Path: h.n.name, Err: fs.ErrClosed}
	}
	return h.f.call(op, h.n.name, off, size)
}

func (h *file) ReadAt(p []byte, off int64) (int, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if off >= int64(len(h.n.now)) {
		return 0, io.EOF
	}
	n := copy(p, h.n.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *file) WriteAt(p []byte, off int64) (int, error) {
	err := h.begin("write", off, len(p))
	defer h.f.mu.Unlock()
	if err != nil {
		return 0, err
	}
	fits := len(p)
	if h.f.full > 0 {
		fits = h.fits(p, off)
	}
	part := slices.Clone(p[:fits])
	h.n.now = put(h.n.now, part, off)
	if fits > 0 {
		h.n.pending = append(h.n.pending, write{off, part})
	}
	if fits < len(p) {
		return fits, &fs.PathError{Op: "write", Path: h.n.name, Err: unix.ENOSPC}
	}
	return fits, nil
}

// fits gives how much of a write there is space for.
func (h *file) fits(p []byte, off int64) int {
	var sum int64
	for _, n := range h.f.files {
		sum += used(n.now)
	}
	for n := 0; n < len(p); {
		end := min(len(p), n+page-int((off+int64(n))%page))
		at := (off + int64(n)) / page * page
		have := false
		if at < int64(len(h.n.now)) {
			have = used(h.n.now[at:min(at+page, int64(len(h.n.now)))]) > 0
		}
		if !have {
			if sum+page > h.f.full {
				return n
			}
			sum += page
		}
		n = end
	}
	return len(p)
}

func (h *file) Sync() error {
	err := h.begin("sync", 0, 0)
	defer h.f.mu.Unlock()
	if err != nil {
		if h.epoch == h.f.epoch {
			h.n.pending = nil // as Linux does: the pages are clean and the data is lost
			h.n.errs, h.n.err = h.n.errs+1, err
			h.seen = h.n.errs
		}
		return err
	}
	if h.seen < h.n.errs {
		h.seen = h.n.errs
		return h.n.err
	}
	for _, w := range h.n.pending {
		if w.data == nil {
			h.n.synced = resize(h.n.synced, w.off)
		} else {
			h.n.synced = put(h.n.synced, w.data, w.off)
		}
	}
	h.n.pending = nil
	return nil
}

func (h *file) Truncate(size int64) error {
	err := h.begin("truncate", size, 0)
	defer h.f.mu.Unlock()
	if err != nil {
		return err
	}
	h.n.now = resize(h.n.now, size)
	h.n.pending = append(h.n.pending, write{size, nil})
	return nil
}

func (h *file) Size() (int64, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	return int64(len(h.n.now)), nil
}

func (h *file) Punch(off, n int64) error {
	err := h.begin("punch", off, int(n))
	defer h.f.mu.Unlock()
	if err != nil {
		return err
	}
	end := min(off+n, int64(len(h.n.now)))
	if off < end {
		zeros := make([]byte, end-off)
		copy(h.n.now[off:], zeros)
		h.n.pending = append(h.n.pending, write{off, zeros})
	}
	return nil
}

func (h *file) Close() error { return nil }
