package cow

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"hotspare"
)

const stripes = 64

// volume is one row of the catalog. What is not atomic is guarded by Store.mu.
type volume struct {
	superVolume // Blocks, Root and RootSum are as of its last checkpoint
	tree        tree
	blocks      int64 // mapped
	opens       int
	// writes is held shared by every change of the data, alone by what must not
	// meet one: clone, snapshot, resize, sealing.
	writes sync.RWMutex
	// stripes serialise commands on one cluster: a reader never sees data
	// without its checksum, and of two writers of one block one is last. nil
	// until the volume is opened: most snapshots never are.
	stripes  *[stripes]sync.RWMutex
	size     atomic.Int64 // Size for readers without the lock
	readOnly atomic.Bool  // ReadOnly for them
	stopped  atomic.Pointer[error]
}

func newVolume(sv superVolume) *volume {
	v := &volume{superVolume: sv, blocks: sv.Blocks}
	v.tree = tree{at: ref{sv.Root, sv.RootSum}, level: depthFor(clustersOf(sv.Size))}
	v.size.Store(sv.Size)
	v.readOnly.Store(sv.ReadOnly)
	return v
}

func clustersOf(size int64) int64 { return (size + clusterSize - 1) / clusterSize }

// device is an open volume; it implements storage.Device.
type device struct {
	s      *Store
	v      *volume
	closed atomic.Bool
	// passing says that new data need not stay in memory; see OpenToFill.
	passing bool
}

func (d *device) Size() int64 { return d.v.size.Load() }

// Close gives the volume free for Delete.
func (d *device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.s.mu.Lock()
	d.v.opens--
	d.s.mu.Unlock()
	return nil
}

// ready says why a command cannot run now, and checks its range.
func (d *device) ready(off, n int64) error {
	if d.closed.Load() {
		return errClosed
	}
	if err := d.s.failure(); err != nil {
		return err
	}
	if p := d.v.stopped.Load(); p != nil {
		return *p
	}
	if off < 0 || n < 0 || off > d.Size() || n > d.Size()-off {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "a command reaches beyond the end of the volume",
			Where: fmt.Sprintf("volume %s: %d bytes at %d, size %d", d.v.Name, n, off, d.Size())}
	}
	return nil
}

const dataDiffers = "its data does not match its checksum"

// stop ends all use of the volume after corruption was found.
func (d *device) stop(why string, cause error) error {
	err := error(&hotspare.Error{Code: hotspare.CodeCorrupt, What: "a volume is stopped", Where: "volume " + d.v.Name,
		Why: why, Fix: "check the disk; restore the volume from a checkpoint", Err: cause})
	if d.v.stopped.CompareAndSwap(nil, &err) {
		d.s.opts.Log.Error("volume stopped", "volume", d.v.Name, "err", cause)
		d.s.opts.Notify(Notice{Kind: VolumeStopped, Volume: d.v.Name, Err: err})
	}
	return err
}

// span is the part of a command that lies in one cluster.
type span struct {
	cluster uint32
	from    int // within the cluster
	n       int
}

// first gives the span at off of a range of n bytes.
func first(off, n int64) span {
	from := off % clusterSize
	return span{uint32(off / clusterSize), int(from), int(min(n, clusterSize-from))}
}

// entry gives the entry of a cluster, in buf, and the generation from which on
// the volume owns pieces.
func (d *device) entry(c uint32, buf *[maxPieces]piece) (entry, uint32, error) {
	e, since, err := d.s.lookup(d.v, c, buf)
	if err != nil {
		return nil, 0, d.damaged(err)
	}
	return e, since, nil
}

// damaged stops the volume if err says that its map is damaged.
func (d *device) damaged(err error) error {
	if errors.Is(err, errCodec) {
		return d.stop("its map does not match its checksum", err)
	}
	return err
}

// ReadAt reads; unmapped blocks are zeros.
func (d *device) ReadAt(p []byte, off int64) (int, error) {
	d.s.io.RLock()
	defer d.s.io.RUnlock()
	if err := d.ready(off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		sp := first(off+int64(done), int64(len(p)-done))
		if err := d.readSpan(sp, p[done:done+sp.n]); err != nil {
			return done, err
		}
		done += sp.n
	}
	return done, nil
}

func (d *device) readSpan(sp span, p []byte) error {
	lock := &d.v.stripes[sp.cluster%stripes]
	lock.RLock()
	defer lock.RUnlock()
	var buf [maxPieces]piece
	e, _, err := d.entry(sp.cluster, &buf)
	if err != nil {
		return err
	}
	return d.readEntry(e, sp, p)
}

// readEntry reads a span of a cluster that is mapped to e; its stripe is held.
func (d *device) readEntry(e entry, sp span, p []byte) error {
	for len(p) > 0 {
		b := sp.from / blockSize
		run, pc, mapped := e.run(b, (sp.from+sp.n-1)/blockSize)
		n := min(run*blockSize-sp.from%blockSize, sp.n)
		switch {
		case !mapped:
			clear(p[:n])
		case sp.from%blockSize == 0 && n%blockSize == 0:
			if err := d.readBlocks(pc.slot, b, p[:n]); err != nil {
				return err
			}
		default: // a part of a block: the checksum needs all of it
			buf := make([]byte, run*blockSize)
			if err := d.readBlocks(pc.slot, b, buf); err != nil {
				return err
			}
			copy(p[:n], buf[sp.from%blockSize:])
		}
		p = p[n:]
		sp.from += n
		sp.n -= n
	}
	return nil
}

// run gives the number of blocks from b to last that lie in the same piece, or
// that are all unmapped.
func (e entry) run(b, last int) (n int, p piece, mapped bool) {
	p, mapped = e.find(b)
	for n = 1; b+n <= last; n++ {
		q, ok := e.find(b + n)
		if ok != mapped || ok && q.slot != p.slot {
			break
		}
	}
	return n, p, mapped
}

func (d *device) readBlocks(slot uint32, block int, p []byte) error {
	err := d.s.readBlocks(slot, block, p)
	var bad *badBlock
	if errors.As(err, &bad) {
		return d.stop(dataDiffers, err)
	}
	return err
}

// Flush makes every write that was acknowledged before the call durable.
func (d *device) Flush() error {
	if d.closed.Load() {
		return errClosed
	}
	if p := d.v.stopped.Load(); p != nil {
		return *p
	}
	return d.s.flush()
}
