package cow

import (
	"encoding/binary"
	"fmt"
	"sync"
)

// Checksums of data live in the file "sums", beside the data that is
// overwritten in place, so after a crash the two may disagree. Which places
// that can concern is written down first: a region (64 slots, 4 MiB) is dirty
// from a logged record until the next checkpoint, and only in a dirty region is
// data overwritten. Open recomputes the checksums of the regions that the log
// says were dirty; anywhere else a mismatch is corruption.
const (
	regionSlots = 64
	sumSize     = 4
	slotSums    = blocksPerCluster * sumSize
)

// regions remembers which regions are dirty, with the LSN of their records.
type regions struct {
	mu  sync.RWMutex
	lsn []uint64 // by region; 0 is clean
}

func (r *regions) get(region uint32) uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if int(region) >= len(r.lsn) {
		return 0
	}
	return r.lsn[region]
}

func (r *regions) set(region uint32, lsn uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := int(region) + 1 - len(r.lsn); n > 0 {
		r.lsn = append(r.lsn, make([]uint64, max(n, len(r.lsn)))...)
	}
	r.lsn[region] = lsn
}

func (r *regions) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.lsn)
}

// markDirty logs that the slot's region is dirty, if it was not.
func (s *Store) markDirty(slot uint32) (uint64, error) {
	region := slot / regionSlots
	if err := s.seal(region); err != nil {
		return 0, err
	}
	if lsn := s.dirty.get(region); lsn != 0 {
		return lsn, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if lsn := s.dirty.get(region); lsn != 0 || s.opts.plant == plantNoDirty {
		return lsn, nil
	}
	return s.logDirty(region)
}

// logDirty logs that regions are dirty. mu is held.
func (s *Store) logDirty(regions ...uint32) (lsn uint64, err error) {
	w := writer{}
	w.u32(uint32(len(regions)))
	for _, r := range regions {
		w.u32(r)
	}
	if lsn, err = s.logged(recDirty, w.b); err != nil {
		return 0, err
	}
	for _, r := range regions {
		s.dirty.set(r, lsn)
	}
	return lsn, nil
}

// mayOverwrite makes it durable that the slot's region is dirty: from here on a
// crash between data and checksum is no corruption.
func (s *Store) mayOverwrite(slot uint32) error {
	lsn, err := s.markDirty(slot)
	if err != nil {
		return err
	}
	return s.syncLog(lsn)
}

// syncLog makes the log durable up to lsn.
func (s *Store) syncLog(lsn uint64) error {
	log := s.log
	if log.synced.Load() >= lsn {
		return nil
	}
	err := log.sync(lsn, &s.mu)
	if err != nil {
		s.fail(fmt.Errorf("sync of the log: %w", err))
		return s.failure()
	}
	return nil
}

// sumsOf computes the checksums of whole blocks.
func sumsOf(p []byte) []byte {
	b := make([]byte, 0, slotSums)
	for ; len(p) > 0; p = p[blockSize:] {
		b = binary.LittleEndian.AppendUint32(b, checksum(p[:blockSize]))
	}
	return b
}

func dataOff(slot uint32, block int) int64 {
	return int64(slot)*clusterSize + int64(block)*blockSize
}

func sumOff(slot uint32, block int) int64 {
	return int64(slot)*slotSums + int64(block)*sumSize
}

// writeFresh writes whole blocks that no map shows yet, checksums first. On an
// error nothing has changed for anybody.
func (s *Store) writeFresh(slot uint32, block int, p []byte, passing bool) error {
	if _, err := s.sums.WriteAt(sumsOf(p), sumOff(slot, block)); err != nil {
		return s.writeError(err)
	}
	if _, err := s.writeData(p, dataOff(slot, block), passing); err != nil {
		return s.writeError(err)
	}
	s.written.Add(1)
	return nil
}

// overwrite writes whole blocks that a map may show. When the disk is full in
// the middle, it makes the checksums match what landed.
func (s *Store) overwrite(slot uint32, block int, p []byte) error {
	_, err := s.data.WriteAt(p, dataOff(slot, block))
	s.written.Add(1)
	if err != nil && isFull(err) {
		landed := make([]byte, len(p))
		if rerr := readFull(s.data, landed, dataOff(slot, block)); rerr != nil {
			s.fail(rerr)
			return s.failure()
		}
		p = landed
	} else if err != nil {
		return s.writeError(err)
	}
	if _, serr := s.sums.WriteAt(sumsOf(p), sumOff(slot, block)); serr != nil {
		s.fail(fmt.Errorf("write of checksums: %w", serr)) // data without its checksum
		return s.failure()
	}
	if err != nil {
		return s.full(err)
	}
	return nil
}

// writeError stops the store unless the disk is merely full.
func (s *Store) writeError(err error) error {
	if isFull(err) {
		return s.full(err)
	}
	s.fail(err)
	return s.failure()
}

// readBlocks reads whole blocks of a slot and checks them.
func (s *Store) readBlocks(slot uint32, block int, p []byte) error {
	if err := s.seal(slot / regionSlots); err != nil {
		return err
	}
	if err := readFull(s.data, p, dataOff(slot, block)); err != nil {
		return fmt.Errorf("cow: read of slot %d: %w", slot, err)
	}
	var want [slotSums]byte
	n := len(p) / blockSize
	if err := readFull(s.sums, want[:n*sumSize], sumOff(slot, block)); err != nil {
		return fmt.Errorf("cow: read of checksums of slot %d: %w", slot, err)
	}
	for i := range n {
		if checksum(p[i*blockSize:(i+1)*blockSize]) != binary.LittleEndian.Uint32(want[i*sumSize:]) {
			return &badBlock{slot, block + i}
		}
	}
	return nil
}

// badBlock says that a block does not match its checksum.
type badBlock struct {
	slot  uint32
	block int
}

func (b *badBlock) Error() string {
	return fmt.Sprintf("cow: block %d of slot %d (byte %d of %q) does not match its checksum", b.block, b.slot, dataOff(b.slot, b.block), dataName)
}
