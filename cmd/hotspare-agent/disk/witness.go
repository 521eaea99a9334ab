package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// WitnessEvery is the time between two witness records.
const WitnessEvery = 100 * time.Millisecond

// Witness writes agentlink.Witness records to a raw volume, O_DIRECT, so that
// each is a write that the target sees.
type Witness struct {
	dev    io.WriterAt
	file   *os.File
	blocks int64
	block  []byte // aligned
	record agentlink.Witness

	counter atomic.Uint64
	cancel  context.CancelFunc
	done    chan struct{}
	failed  atomic.Pointer[error]
}

// OpenWitness opens a device and finds the last record in it. Records of a
// higher epoch than epoch are an error: this grant is over.
func OpenWitness(ctx context.Context, path string, node, bootID string, epoch uint64) (*Witness, error) {
	var f *os.File
	wait, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	err := until(wait, notYet, func() (err error) {
		f, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the witness volume: %w", err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w, err := newWitness(f, f, size, agentlink.Witness{Node: node, BootID: bootID, Epoch: epoch})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	w.file = f
	return w, nil
}

func newWitness(r io.ReaderAt, dev io.WriterAt, size int64, record agentlink.Witness) (*Witness, error) {
	w := &Witness{dev: dev, blocks: size / agentlink.WitnessBlock, record: record, done: make(chan struct{})}
	if w.blocks < 1 {
		return nil, fmt.Errorf("the witness volume has %d bytes, less than one record", size)
	}
	var err error
	if w.block, err = aligned(agentlink.WitnessBlock); err != nil {
		return nil, err
	}
	last, found, err := lastRecord(r, w.blocks)
	if err != nil {
		return nil, err
	}
	if found && last.Epoch > record.Epoch {
		return nil, fmt.Errorf("the witness volume holds epoch %d of node %s, this grant is epoch %d", last.Epoch, last.Node, record.Epoch)
	}
	if found {
		w.counter.Store(last.Counter + 1)
	}
	return w, nil
}

// aligned gives page-aligned memory, as O_DIRECT needs it.
func aligned(size int) ([]byte, error) {
	memory, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory for the witness: %w", err)
	}
	return memory, nil
}

const readChunk = 32 * agentlink.WitnessBlock

// lastRecord finds the record with the highest counter. A torn record is one
// whose write was cut: it is passed over.
func lastRecord(r io.ReaderAt, blocks int64) (last agentlink.Witness, found bool, err error) {
	buf, err := aligned(readChunk)
	if err != nil {
		return last, false, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	size := blocks * agentlink.WitnessBlock
	for at := int64(0); at < size; at += readChunk {
		chunk := buf[:min(readChunk, size-at)]
		if _, err := r.ReadAt(chunk, at); err != nil {
			return last, false, fmt.Errorf("read the witness volume at byte %d: %w", at, err)
		}
		for ; len(chunk) > 0; chunk = chunk[agentlink.WitnessBlock:] {
			record, err := agentlink.DecodeWitness(chunk)
			switch {
			case errors.Is(err, agentlink.ErrWitnessTorn):
			case errors.Is(err, agentlink.ErrWitnessBlank):
				return last, found, nil // a ring is filled from its start
			case err != nil:
				return last, false, &hotspare.Error{
					Code: hotspare.CodeNotBlank, What: "the witness volume holds foreign data", Where: fmt.Sprintf("byte %d", at),
					Fix: "delete the volume if nothing in it is wanted", Err: err,
				}
			case !found || record.Counter > last.Counter:
				last, found = record, true
			}
		}
	}
	return last, found, nil
}

// Start writes the first record, then one every WitnessEvery until Stop.
func (w *Witness) Start(ctx context.Context) error {
	if err := w.write(); err != nil {
		return err
	}
	ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(w.done)
		tick := time.NewTicker(WitnessEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if err := w.write(); err != nil {
				w.failed.Store(&err)
				return
			}
		}
	}()
	return nil
}

func (w *Witness) write() error {
	counter := w.counter.Load()
	w.record.Counter, w.record.UnixNano = counter, time.Now().UnixNano()
	w.record.EncodeTo(w.block)
	at := int64(counter%uint64(w.blocks)) * agentlink.WitnessBlock
	if _, err := w.dev.WriteAt(w.block, at); err != nil {
		return fmt.Errorf("write witness record %d: %w", counter, err)
	}
	w.counter.Add(1)
	return nil
}

// Counter gives the number of the next record.
func (w *Witness) Counter() uint64 { return w.counter.Load() }

// Err gives the error that stopped the witness, or nil.
func (w *Witness) Err() error {
	if e := w.failed.Load(); e != nil {
		return *e
	}
	return nil
}

// Halt makes the writing end without waiting for a write that hangs.
func (w *Witness) Halt() {
	if w.cancel != nil {
		w.cancel()
	}
}

// Stop ends the writing and closes the device.
func (w *Witness) Stop(ctx context.Context) error {
	w.Halt()
	if w.cancel != nil {
		select {
		case <-w.done:
		case <-ctx.Done():
			return fmt.Errorf("the last witness record is not written: %w", ctx.Err())
		}
	}
	if w.file != nil {
		return w.file.Close()
	}
	return nil
}
