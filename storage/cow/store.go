package cow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"hotspare"
)

// Options of Open.
type Options struct {
	// FileSystem is the file layer; default: the directory of the operating
	// system.
	FileSystem FileSystem
	// BootID names this boot of the machine; default: the kernel's. A store that
	// was open under another boot id met a power loss: what its log holds beyond
	// the last barrier is not trusted.
	BootID string
	// MapMemory bounds the memory, in bytes, for the maps of all volumes: half for
	// what is read, half for what is changed and waits for a checkpoint. Default
	// 64 MiB.
	MapMemory int64
	// HighWater and LowWater are parts of the disk that are in use: at the first,
	// Notify hears of it, below the second again. Defaults 0.90 and 0.85.
	HighWater, LowWater float64
	// Reserve is the space, in bytes, that writes to new places leave for maps and
	// logs; default a fiftieth of the disk, at most 64 MiB.
	Reserve int64
	// LogLimit is the size of the log in bytes at which the maps are written out;
	// default 16 MiB.
	LogLimit int64
	// Notify is told what an operator should hear of: a volume stopped for
	// corruption, the store stopped, space running out. It must not block, and is
	// called with locks held, so it must not call the store; nil discards.
	Notify func(Notice)
	// Log gets what an operator should know; nil discards.
	Log *slog.Logger
	// Now is the clock; default time.Now.
	Now func() time.Time

	plant plant // of tests
}

func (o Options) withDefaults(dir string) Options {
	if o.FileSystem == nil {
		o.FileSystem = OSFileSystem(dir)
	}
	if o.BootID == "" {
		o.BootID = bootID()
	}
	if o.LogLimit == 0 {
		o.LogLimit = 16 << 20
	}
	if o.MapMemory == 0 {
		o.MapMemory = 64 << 20
	}
	if o.HighWater == 0 {
		o.HighWater = 0.90
	}
	if o.LowWater == 0 {
		o.LowWater = min(0.85, o.HighWater)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Notify == nil {
		o.Notify = func(Notice) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) validate() error {
	if o.LogLimit < 4096 {
		return fmt.Errorf("cow: Options.LogLimit is %d, at least 4096", o.LogLimit)
	}
	if o.MapMemory < minMapMemory {
		return fmt.Errorf("cow: Options.MapMemory is %d, at least %d", o.MapMemory, minMapMemory)
	}
	if o.HighWater > 1 || o.LowWater > o.HighWater || o.LowWater < 0 || o.Reserve < 0 {
		return fmt.Errorf("cow: Options: watermarks %v and %v, reserve %d", o.HighWater, o.LowWater, o.Reserve)
	}
	return nil
}

const minMapMemory = 64 << 10

// Store is an open store. Its methods are safe for concurrent use.
//
// Locks, in the order in which they are taken: reclaimMu (one mark at a time),
// checkpointMu (one checkpoint, or begin of a mark, at a time), io (held shared by every command on data, alone
// by Close), a volume's writes, a volume's stripe (one cluster), an era, the
// unsealed regions, a lane of the flushes, the log's syncMu, mu (maps, catalog, allocation, order of the log), places, cache.
type Store struct {
	opts    Options
	fs      FileSystem
	dir     string
	lock    io.Closer
	data    File
	sums    File
	mapFile File
	log     *wal
	cache   *cache

	dirty    regions
	unsealed unsealed
	eras     eras
	water    water
	places   places

	reclaimMu    sync.Mutex
	checkpointMu sync.Mutex
	io           sync.RWMutex
	flushes      groupFlush

	dataMu     sync.Mutex
	written    atomic.Uint64 // writes to the data file
	dataSynced uint64        // of them, what is durable

	mu      sync.RWMutex
	super   super // Volumes, LSN, Log, Space: as of the last checkpoint
	volumes map[string]*volume
	byID    map[uint64]*volume
	slots   slots
	// recycling counts who is giving back the space of freed slots; recycled tells
	// when one is done.
	recycling int
	recycled  sync.Cond
	// frozen is the generation of the last freeze: nodes up to it do not change.
	frozen uint32
	// changed are the nodes that were made since the last checkpoint began;
	// writing is how many of those before are being written.
	changed []*node
	writing int
	// garbage counts slots and nodes that a volume let go of and others may have,
	// and deleted volumes: above 0 there may be something to reclaim.
	garbage int64
	round   chan struct{} // closed at the end of every checkpoint, and renewed
	lastErr error         // of the last checkpoint
	closed  bool
	reclaim ReclaimStatus
	mapFree int64 // freed nodes since space of the map was given back; places.mu is held

	failed atomic.Pointer[error] // a failed sync: the store is stopped

	checkpointWanted chan struct{}
	reclaimWanted    chan struct{}
	spaceWanted      atomic.Bool   // the disk was full: look for slots to free
	done             chan struct{} // closed by Close: ends what runs in the background
	background       sync.WaitGroup
}

var errVersion = errors.New("cow: format of another version")

// Open opens the store in dir, creating an empty one there if there is none. It
// reads the catalog and what is in use, not the maps. What a killed process or a
// power loss left it repairs from the log, so then its time grows with that.
func Open(ctx context.Context, dir string, opts Options) (*Store, error) {
	if opts.FileSystem == nil {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cow: open: %w", err)
		}
	}
	opts = opts.withDefaults(dir)
	if err := opts.validate(); err != nil {
		return nil, err
	}
	lock, err := opts.FileSystem.Lock()
	if errors.Is(err, ErrLocked) {
		return nil, &hotspare.Error{Code: hotspare.CodeStoreLocked, What: "the volume store is in use", Where: dir,
			Why: "another process has it open", Fix: "stop the other hotspare process", Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("cow: lock %s: %w", dir, err)
	}
	s := &Store{
		opts: opts, fs: opts.FileSystem, dir: dir, lock: lock,
		volumes: map[string]*volume{}, byID: map[uint64]*volume{},
		checkpointWanted: make(chan struct{}, 1), reclaimWanted: make(chan struct{}, 1),
		done: make(chan struct{}), round: make(chan struct{}),
		cache: newCache(opts.MapMemory/2, opts.plant),
	}
	s.recycled.L = &s.mu
	s.written.Store(1) // what a killed process wrote may not be durable
	s.slots.plant, s.places.plant = opts.plant, opts.plant
	s.water = water{high: opts.HighWater, low: opts.LowWater, reserve: opts.Reserve, notify: opts.Notify}
	s.water.teller, _ = opts.FileSystem.(SpaceTeller)
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(s.explainOpen(err), s.closeFiles())
	}
	s.background.Go(s.checkpointer)
	s.background.Go(s.reclaimer)
	if s.unsealed.n.Load() > 0 {
		s.background.Go(s.sealer)
	}
	return s, nil
}

// explainOpen turns a failure of recovery into what an operator can act on.
func (s *Store) explainOpen(err error) error {
	switch {
	case errors.Is(err, errVersion):
		return &hotspare.Error{Code: hotspare.CodeStoreFormat, What: "the volume store has another format", Where: s.dir,
			Fix: "start the release that wrote it", Err: err}
	case errors.Is(err, errCodec):
		return &hotspare.Error{Code: hotspare.CodeCorrupt, What: "the volume store's metadata is damaged", Where: s.dir,
			Why: "a checksum differs", Fix: "check the disk; restore the store from a backup", Err: err}
	case isFull(err):
		return diskFull(s.dir, err)
	}
	return fmt.Errorf("cow: open %s: %w", s.dir, err)
}

// Close writes the maps out, so that the next Open is quick, and closes the
// store. Devices that are still open fail afterwards.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.done)
	s.background.Wait()
	var err error
	if s.failure() == nil {
		err = s.checkpoint()
	}
	s.fail(errClosed)
	s.io.Lock() // the last command ends
	defer s.io.Unlock()
	return errors.Join(err, s.closeFiles())
}

var errClosed = errors.New("cow: the store is closed")

func (s *Store) closeFiles() error {
	var errs []error
	for _, f := range []File{s.data, s.sums, s.mapFile} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	errs = append(errs, s.closeLanes())
	if s.log != nil {
		errs = append(errs, s.log.close())
	}
	return errors.Join(append(errs, s.lock.Close())...)
}

// fail stops the store for good; the first cause stays.
func (s *Store) fail(cause error) {
	if s.failed.CompareAndSwap(nil, &cause) && !errors.Is(cause, errClosed) {
		s.opts.Log.Error("volume store stopped", "dir", s.dir, "err", cause)
		s.opts.Notify(Notice{Kind: StoreStopped, Err: s.failure()})
	}
}

// failure gives the reason why the store is stopped, nil if it is not.
func (s *Store) failure() error {
	p := s.failed.Load()
	if p == nil {
		return nil
	}
	if errors.Is(*p, errClosed) {
		return errClosed
	}
	return &hotspare.Error{Code: hotspare.CodeVolumeFailed, What: "the volumes are stopped", Where: s.dir,
		Why: "writing to the disk failed, and what it lost is unknown",
		Fix: "check the disk and its log, then restart hotspare: it recovers all that was flushed", Err: *p}
}

func diskFull(where string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeDiskFull, What: "no space is left for volumes", Where: where,
		Fix: "add space or delete volumes; nothing acknowledged is lost", Err: err}
}

// logged appends a record; s.mu is held. When the log has grown, it asks for a
// checkpoint.
func (s *Store) logged(kind byte, body []byte) (uint64, error) {
	lsn, broken, err := s.log.append(kind, body)
	if err != nil {
		if broken || !isFull(err) {
			s.fail(err)
			return 0, s.failure()
		}
		return 0, s.full(err)
	}
	if s.log.size > s.opts.LogLimit {
		wake(s.checkpointWanted)
	}
	return lsn, nil
}

// wake tells who waits at c, once.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
