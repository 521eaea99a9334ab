package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The map file is a head of 64 bytes (magic 8, version 4, number 8, CRC32C in
// the last 4) and then nodes, only ever appended. What a checkpoint no longer
// reaches is garbage; the file is written anew when that prevails.
const (
	mapMagic    = "hscowmap"
	mapVersion  = 1
	mapHeadSize = 64
	mapSlack    = 4 << 20 // garbage that is never worth a rewrite
)

func createMap(fsys FileSystem, num uint64) (File, error) {
	f, err := fsys.Open(mapName(num), true)
	if err != nil {
		return nil, err
	}
	h := make([]byte, mapHeadSize)
	copy(h, mapMagic)
	binary.LittleEndian.PutUint32(h[8:], mapVersion)
	binary.LittleEndian.PutUint64(h[12:], num)
	binary.LittleEndian.PutUint32(h[60:], checksum(h[:60]))
	if err := f.Truncate(0); err != nil {
		return nil, closing(f, err)
	}
	if _, err := f.WriteAt(h, 0); err != nil {
		return nil, closing(f, err)
	}
	return f, nil
}

func checkMapHead(b []byte, num uint64) error {
	if len(b) < mapHeadSize || string(b[:8]) != mapMagic || checksum(b[:60]) != binary.LittleEndian.Uint32(b[60:]) ||
		binary.LittleEndian.Uint64(b[12:]) != num {
		return fmt.Errorf("%w: head of %s", errCodec, mapName(num))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != mapVersion {
		return fmt.Errorf("%w: %s has version %d", errVersion, mapName(num), v)
	}
	return nil
}

// nodeWriter appends nodes to a map file.
type nodeWriter struct {
	f       File
	off     int64 // where buf begins
	buf     []byte
	written []*node
}

// put writes n and what is below, where it changed.
func (w *nodeWriter) put(n *node) error {
	if n == nil || n.off != 0 {
		return nil
	}
	for _, k := range n.kids {
		if err := w.put(k); err != nil {
			return err
		}
	}
	n.off = w.off + int64(len(w.buf))
	w.written = append(w.written, n)
	w.buf = append(w.buf, encodeNode(n)...)
	if len(w.buf) >= 1<<20 {
		return w.flush()
	}
	return nil
}

func (w *nodeWriter) flush() error {
	if _, err := w.f.WriteAt(w.buf, w.off); err != nil {
		return err
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// undo forgets the places of the nodes that were written.
func (w *nodeWriter) undo() {
	for _, n := range w.written {
		n.off = 0
	}
}

// checkpoint writes the changed nodes of the maps and a new super, and begins a
// new log. All commands wait meanwhile. When the disk is full, the old
// checkpoint and the log stay as they are.
func (s *Store) checkpoint() error {
	s.flushMu.Lock()
	defer s.flushMu.Unlock()
	freed, err := s.checkpointAlone()
	if err != nil {
		return err
	}
	s.recycle(freed)
	return nil
}

func (s *Store) checkpointAlone() ([]uint32, error) {
	s.io.Lock()
	defer s.io.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failure(); err != nil {
		return nil, err
	}
	if err := errors.Join(s.data.Sync(), s.sums.Sync()); err != nil {
		s.fail(fmt.Errorf("sync of data: %w", err))
		return nil, s.failure()
	}
	if err := s.writeCheckpoint(); err != nil {
		if !isFull(err) {
			s.fail(err)
			return nil, s.failure()
		}
		return nil, diskFull(s.dir, err)
	}
	s.dirty.reset()
	if len(s.alloc.orphans) >= max(minOrphans, s.alloc.sweepAt) || s.spaceWanted.Swap(false) {
		s.sweep(s.super.LSN)
	}
	return s.alloc.settle(s.super.LSN), nil
}

// writeCheckpoint does the work of checkpoint on the files. On ErrNoSpace
// nothing has changed. io and mu are held.
func (s *Store) writeCheckpoint() error {
	next := s.super
	w := &nodeWriter{f: s.mapFile, off: s.super.MapSize}
	rewrite := s.mapFile == nil || s.super.MapSize > 2*s.super.MapLive+mapSlack
	if rewrite {
		next.Map++
		f, err := createMap(s.fs, next.Map)
		if err != nil {
			return err
		}
		w.f, w.off = f, mapHeadSize
		s.forgetOffsets()
	}
	drop := func(err error) error {
		w.undo()
		if rewrite {
			return errors.Join(err, w.f.Close())
		}
		return err
	}
	for _, v := range s.byID {
		if err := w.put(v.root); err != nil {
			return drop(err)
		}
	}
	if err := w.flush(); err != nil {
		return drop(err)
	}
	if err := w.f.Sync(); err != nil {
		s.fail(fmt.Errorf("sync of maps: %w", err))
		return drop(err)
	}
	next.Log++
	next.LSN = s.lastLSN()
	log, err := createLog(s.fs, next.Log, next.LSN, s.opts.BootID)
	if err != nil {
		return drop(err)
	}
	next.MapSize = w.off
	if rewrite {
		next.MapLive = w.off
	}
	next.Volumes = s.catalog()
	if err := errors.Join(s.fs.SyncDir(), writeSuper(s.fs, next)); err != nil {
		log.f.Close()
		if !isFull(err) {
			s.fail(err)
		}
		return drop(err)
	}
	s.adopt(next, w.f, log, rewrite)
	return nil
}

// adopt makes the new files current and removes the old ones.
func (s *Store) adopt(next super, mapFile File, log *wal, rewrite bool) {
	old, oldMap, oldLog := s.super, s.mapFile, s.log
	s.super, s.mapFile, s.log = next, mapFile, log
	var errs []error
	if oldLog != nil {
		errs = append(errs, oldLog.f.Close(), s.fs.Remove(logName(old.Log)))
	}
	if rewrite && oldMap != nil {
		errs = append(errs, oldMap.Close(), s.fs.Remove(mapName(old.Map)))
	}
	if err := errors.Join(errs...); err != nil { // Open removes strays
		s.opts.Log.Warn("volume store: an old file was not removed", "dir", s.dir, "err", err)
	}
}

func (s *Store) lastLSN() uint64 {
	if s.log == nil {
		return s.super.LSN
	}
	return s.log.lsn
}

// forgetOffsets marks all nodes as not written.
func (s *Store) forgetOffsets() {
	seen := map[*node]struct{}{}
	for _, v := range s.byID {
		v.root.walk(seen, func(n *node) { n.off = 0 })
	}
}

// catalog gives the entries of all volumes with the places of their roots.
func (s *Store) catalog() []superVolume {
	vs := make([]superVolume, 0, len(s.byID))
	for _, v := range s.byID {
		sv := v.superVolume
		sv.Root = v.root.off
		vs = append(vs, sv)
	}
	return vs
}
