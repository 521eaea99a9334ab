package cow

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// SpaceTeller is a FileSystem that knows how much space there is. Over one that
// does not, a full disk shows when a write fails.
type SpaceTeller interface {
	// Space gives the bytes that can still be written, and all there are.
	Space() (free, total int64, err error)
}

// Space is statfs of the directory.
func (o osFS) Space() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(o.dir, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// water watches the space. Writes that take new space are refused a little
// before the disk is full, so that maps, log and checksums still fit.
type water struct {
	teller    SpaceTeller // nil: unknown
	high, low float64     // used parts
	reserve   int64       // bytes; 0: a fiftieth of all, at most 64 MiB
	notify    func(Notice)

	taken   atomic.Uint64
	refused atomic.Bool
	mu      sync.Mutex
	isHigh  bool
	isFull  bool
}

const (
	maxReserve = 64 << 20
	askEvery   = 16 // slots
)

var errReserve = errors.New("cow: what is left is kept for maps and logs")

// admit says whether new space may be taken.
func (w *water) admit(s *Store) error {
	n := w.taken.Add(1)
	if w.teller == nil || n%askEvery != 0 && !w.refused.Load() {
		return nil
	}
	free, total, err := w.teller.Space()
	if err != nil {
		return nil // then the write itself finds out
	}
	w.note(free, total)
	reserve := w.reserve
	if reserve == 0 {
		reserve = min(maxReserve, total/50)
	}
	w.refused.Store(free < reserve)
	if free < reserve {
		return s.full(errReserve)
	}
	return nil
}

// note tells when a watermark is passed.
func (w *water) note(free, total int64) {
	if total <= 0 {
		return
	}
	used := 1 - float64(free)/float64(total)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.isHigh && used >= w.high:
		w.isHigh = true
		w.notify(Notice{Kind: SpaceHigh, Free: free, Total: total})
	case w.isHigh && used < w.low:
		w.isHigh, w.isFull = false, false
		w.notify(Notice{Kind: SpaceLow, Free: free, Total: total})
	}
}

// freed looks again after space was given back.
func (w *water) freed(*Store) {
	if w.teller == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.isFull = false
		return
	}
	if free, total, err := w.teller.Space(); err == nil {
		w.note(free, total)
	}
}

// full is the answer to who found the disk full; it has space looked for.
func (s *Store) full(cause error) error {
	err := diskFull(s.dir, cause)
	w := &s.water
	w.mu.Lock()
	first := !w.isFull
	w.isFull = true
	w.mu.Unlock()
	if first {
		n := Notice{Kind: SpaceFull, Err: err}
		if w.teller != nil {
			n.Free, n.Total, _ = w.teller.Space() // for people only
		}
		w.notify(n)
	}
	s.spaceWanted.Store(true)
	wake(s.reclaimWanted)
	return err
}
