package cow

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"hotspare"
	"hotspare/storage"
)

// ScrubOptions of NewScrub.
type ScrubOptions struct {
	// Volumes are the volumes and snapshots to read; nil: all of them but those
	// that Skip, if it is set, is true for.
	Volumes []string
	Skip    func(name string) bool
	// BytesPerSecond bounds how fast the disk is read; 0: no bound.
	BytesPerSecond int64
	// Progress is told how far the scrub is, after every cluster; nil: nobody is.
	Progress func(ScrubProgress)
}

// ScrubProgress says how far a scrub is.
type ScrubProgress struct {
	Volume        string // that is read now
	Done, Volumes int    // volumes that are done, and all
	Bytes         int64  // read and compared so far
}

// ScrubReport is what a scrub found.
type ScrubReport struct {
	Volumes int         // that were read to their end
	Bytes   int64       // read and compared; what volumes share was read once
	Bad     []BadBlock  // blocks that differ, by volume
	Unread  []ScrubFail // volumes that could not be read to their end
}

// OK says whether all that was to be read was read and is sound.
func (r ScrubReport) OK() bool { return len(r.Bad) == 0 && len(r.Unread) == 0 }

// BadBlock is a block of 4 KiB that does not match its checksum. Volumes that
// share it are all named.
type BadBlock struct {
	Volume string
	Off    int64 // in the volume, bytes
}

// ScrubFail says why a volume was not read to its end.
type ScrubFail struct {
	Volume string
	Err    error
}

// maxBad bounds the blocks that a report names for one volume: beyond it the disk
// is broken, and the volume is stopped since the first.
const maxBad = 100

// Scrub reads all data of volumes once and compares it with its checksums, while
// they are in use. A volume with a block that differs is stopped (STO-002), the
// others go on. Data that several volumes share is read once; to know that, it
// remembers what it has read: 32 MiB for each TiB of data.
type Scrub struct {
	s      *Store
	o      ScrubOptions
	pace   storage.Pace
	buf    []byte
	at     ScrubProgress
	report ScrubReport
	sound  blockSet // blocks of slots that were read and match

	mu      sync.Mutex
	spared  map[string]bool // volumes to let go of
	current string          // the volume that is open
	cancel  context.CancelCauseFunc
	closed  chan struct{} // closed when current is
}

// NewScrub makes a scrub that Run runs.
func (s *Store) NewScrub(o ScrubOptions) *Scrub {
	return &Scrub{s: s, o: o, pace: storage.Pace{BytesPerSecond: o.BytesPerSecond}, buf: make([]byte, clusterSize), spared: map[string]bool{}}
}

// errLetGo ends the reading of a volume that is about to be deleted.
var errLetGo = errors.New("cow: the scrub lets go of the volume")

// LetGo ends the reading of a volume, now and later in this scrub, so that it can
// be deleted. When it returns the scrub does not have it open.
func (sc *Scrub) LetGo(name string) {
	sc.mu.Lock()
	sc.spared[name] = true
	var closed chan struct{}
	if sc.current == name {
		sc.cancel(errLetGo)
		closed = sc.closed
	}
	sc.mu.Unlock()
	if closed != nil {
		<-closed
	}
}

// Run runs the scrub, once. The error is ctx's, or says that a named volume does
// not exist or that the store is stopped; what was found until then is in the
// report.
func (sc *Scrub) Run(ctx context.Context) (ScrubReport, error) {
	names := sc.o.Volumes
	if names == nil {
		for _, i := range sc.s.List() {
			if sc.o.Skip == nil || !sc.o.Skip(i.Name) {
				names = append(names, i.Name)
			}
		}
	}
	for i, name := range names {
		sc.at = ScrubProgress{Volume: name, Done: i, Volumes: len(names), Bytes: sc.report.Bytes}
		err := sc.open(ctx, name)
		missing := hotspare.CodeOf(err) == hotspare.CodeNotFound
		switch {
		case err == nil:
			sc.report.Volumes++
		case errors.Is(err, errLetGo), missing && sc.o.Volumes == nil: // deleted meanwhile
		case ctx.Err() != nil:
			return sc.report, context.Cause(ctx)
		case sc.s.failure() != nil:
			return sc.report, sc.s.failure()
		case missing:
			return sc.report, err
		default:
			sc.report.Unread = append(sc.report.Unread, ScrubFail{name, err})
		}
	}
	return sc.report, nil
}

// open reads a volume unless it is to be let go of.
func (sc *Scrub) open(ctx context.Context, name string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sc.mu.Lock()
	if sc.spared[name] {
		sc.mu.Unlock()
		return errLetGo
	}
	sc.current, sc.cancel, sc.closed = name, cancel, make(chan struct{})
	sc.mu.Unlock()
	defer func() {
		sc.mu.Lock()
		defer sc.mu.Unlock()
		sc.current = ""
		close(sc.closed)
	}()
	err := sc.volume(ctx, name)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (sc *Scrub) volume(ctx context.Context, name string) error {
	d, err := sc.s.openDevice(name)
	if err != nil {
		return err
	}
	defer d.Close()
	bad := 0
	return d.clusters(ctx, 0, d.Size(), func(c uint32, _ entry) error {
		before := sc.report.Bytes
		n, err := sc.cluster(d, c, maxBad-bad)
		if bad += n; err != nil {
			return err
		}
		if sc.at.Bytes = sc.report.Bytes; sc.o.Progress != nil {
			sc.o.Progress(sc.at)
		}
		return sc.pace.Wait(ctx, sc.report.Bytes-before)
	})
}

// cluster compares one cluster as it is mapped now, and gives the number of bad
// blocks in it. At most room of them are put into the report.
func (sc *Scrub) cluster(d *device, c uint32, room int) (bad int, err error) {
	var pieces [maxPieces]piece
	e, unlock, err := d.hold(c, &pieces)
	if err != nil {
		return 0, err
	}
	defer unlock()
	for b := 0; b < blocksPerCluster; {
		n, p, mapped := e.run(b, blocksPerCluster-1)
		if !mapped || sc.sound.all(p.slot, maskOf(b, b+n-1)) {
			b += n
			continue
		}
		err := d.s.readBlocks(p.slot, b, sc.buf[:n*blockSize])
		var worst *badBlock
		switch {
		case err == nil:
			sc.sound.add(p.slot, maskOf(b, b+n-1))
		case !errors.As(err, &worst):
			return bad, err
		case worst.block > b: // what lies before it is sound
			n = worst.block - b
			sc.sound.add(p.slot, maskOf(b, b+n-1))
		default:
			n = 1
			off := int64(c)*clusterSize + int64(b)*blockSize
			if bad++; bad <= room {
				sc.report.Bad = append(sc.report.Bad, BadBlock{d.v.Name, off})
			}
			_ = d.stop(dataDiffers, fmt.Errorf("byte %d of the volume: %w", off, err)) // the report names it
		}
		sc.report.Bytes += int64(n) * blockSize
		b += n
	}
	return bad, nil
}

// CheckMaps is the part of Check that reads no data: all maps are read and
// compared with their checksums, and every slot and every place in the map file
// is accounted for, as of one moment. It holds up nobody, also not a Delete.
func (s *Store) CheckMaps(ctx context.Context) (Report, error) {
	if err := s.failure(); err != nil {
		return Report{}, err
	}
	return s.account(ctx)
}

// blockSet is a set of blocks of slots, by pages, as slots in use lie together.
type blockSet map[uint32]*[1 << 12]uint16

func (b *blockSet) add(slot uint32, mask uint16) {
	if *b == nil {
		*b = blockSet{}
	}
	page := (*b)[slot>>12]
	if page == nil {
		page = new([1 << 12]uint16)
		(*b)[slot>>12] = page
	}
	page[slot&(1<<12-1)] |= mask
}

func (b blockSet) all(slot uint32, mask uint16) bool {
	page := b[slot>>12]
	return page != nil && page[slot&(1<<12-1)]&mask == mask
}
