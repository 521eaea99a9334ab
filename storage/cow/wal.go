package cow

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
)

// The log is a file of records behind a head of 64 bytes: magic (8), format
// version (4), number of the log (8), boot id (36, padded), CRC32C of all that
// (last 4). A record is its length (4, with the record's head, a multiple of 8),
// CRC32C of the rest (4), LSN (8), kind (1), body, padding. All numbers are
// little-endian. The log ends at the first record that does not check.
const (
	logMagic      = "hscowlog"
	logVersion    = 1
	logHeadSize   = 64
	recordHead    = 17
	maxRecordSize = 1 << 20
)

// Kinds of record.
const (
	recMap     byte = 1 // volume id, count, (cluster, entry)...
	recCreate  byte = 2 // catalog entry of a new, empty volume
	recClone   byte = 3 // source id, catalog entry of the clone or snapshot
	recDelete  byte = 4 // volume id
	recResize  byte = 5 // volume id, size
	recRead    byte = 6 // volume id: read-only from here on
	recBarrier byte = 7 // LSN up to which all data is durable; offset up to which this log was
	recDirty   byte = 8 // region whose checksums may lag behind its data
)

type record struct {
	lsn  uint64
	kind byte
	body []byte
}

// wal is the open log. Appending is serialised by the store's mutex, syncing by
// its own.
type wal struct {
	f    File
	num  uint64
	size int64  // end of the last whole record
	lsn  uint64 // of the last record
	// barrier is the LSN up to which data and log are durable.
	barrier uint64

	syncMu    sync.Mutex
	synced    atomic.Uint64 // last LSN that is durable
	syncedOff atomic.Int64
}

func logName(num uint64) string { return fmt.Sprintf("log-%08d", num) }

// createLog makes an empty log and syncs it; its name becomes durable with the
// next SyncDir.
func createLog(fsys FileSystem, num, lsn uint64, boot string) (*wal, error) {
	f, err := fsys.Open(logName(num), true)
	if err != nil {
		return nil, err
	}
	h := make([]byte, logHeadSize)
	copy(h, logMagic)
	binary.LittleEndian.PutUint32(h[8:], logVersion)
	binary.LittleEndian.PutUint64(h[12:], num)
	copy(h[20:60], boot)
	binary.LittleEndian.PutUint32(h[60:], checksum(h[:60]))
	if err := f.Truncate(0); err != nil {
		return nil, closing(f, err)
	}
	if _, err := f.WriteAt(h, 0); err != nil {
		return nil, closing(f, err)
	}
	if err := f.Sync(); err != nil {
		return nil, closing(f, err)
	}
	w := &wal{f: f, num: num, size: logHeadSize, lsn: lsn, barrier: lsn}
	w.synced.Store(lsn)
	w.syncedOff.Store(logHeadSize)
	return w, nil
}

func closing(f File, err error) error {
	f.Close()
	return err
}

// append writes a record. After an error the log is as before, unless the
// returned broken is set: then its end is unknown.
func (w *wal) append(kind byte, body []byte) (lsn uint64, broken bool, err error) {
	rec := encodeRecord(record{lsn: w.lsn + 1, kind: kind, body: body})
	if _, err := w.f.WriteAt(rec, w.size); err != nil {
		if terr := w.f.Truncate(w.size); terr != nil {
			return 0, true, fmt.Errorf("append to log: %w (and truncate: %w)", err, terr)
		}
		return 0, false, fmt.Errorf("append to log: %w", err)
	}
	w.size += int64(len(rec))
	w.lsn++
	return w.lsn, false, nil
}

// sync makes the log durable up to lsn at least. at tells the current last LSN
// and size; it is called when the sync begins.
func (w *wal) sync(lsn uint64, at func() (uint64, int64)) error {
	w.syncMu.Lock()
	defer w.syncMu.Unlock()
	if w.synced.Load() >= lsn {
		return nil // another's sync covered us
	}
	last, size := at()
	if err := w.f.Sync(); err != nil {
		return err
	}
	w.synced.Store(last)
	w.syncedOff.Store(size)
	return nil
}

func encodeRecord(r record) []byte {
	n := recordHead + len(r.body)
	n += -n & 7
	b := make([]byte, n)
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.LittleEndian.PutUint64(b[8:], r.lsn)
	b[16] = r.kind
	copy(b[recordHead:], r.body)
	binary.LittleEndian.PutUint32(b[4:], checksum(b[8:])^uint32(n))
	return b
}

// decodeRecord reads the record at the start of b; n is 0 if there is no whole
// one. The body keeps its padding.
func decodeRecord(b []byte) (r record, n int) {
	if len(b) < recordHead {
		return record{}, 0
	}
	n = int(binary.LittleEndian.Uint32(b))
	if n < recordHead || n > maxRecordSize || n%8 != 0 || n > len(b) {
		return record{}, 0
	}
	if checksum(b[8:n])^uint32(n) != binary.LittleEndian.Uint32(b[4:]) {
		return record{}, 0
	}
	return record{lsn: binary.LittleEndian.Uint64(b[8:]), kind: b[16], body: b[recordHead:n]}, n
}

// logContents is what a log holds.
type logContents struct {
	boot    string
	records []record
	barrier uint64 // highest LSN that a barrier covers
	end     int64
}

// parseLog reads a whole log after the LSN that its store's checkpoint has. A
// record that does not check ends it, unless a later barrier proves that the
// place had been durable: that is corruption.
func parseLog(b []byte, num, after uint64) (logContents, error) {
	if len(b) < logHeadSize || string(b[:8]) != logMagic || checksum(b[:60]) != binary.LittleEndian.Uint32(b[60:]) {
		return logContents{}, fmt.Errorf("%w: head of %s", errCodec, logName(num))
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != logVersion {
		return logContents{}, fmt.Errorf("%w: %s has version %d", errVersion, logName(num), v)
	}
	if got := binary.LittleEndian.Uint64(b[12:]); got != num {
		return logContents{}, fmt.Errorf("%w: %s says that it is number %d", errCodec, logName(num), got)
	}
	c := logContents{barrier: after, end: logHeadSize}
	for _, x := range b[20:60] {
		if x != 0 {
			c.boot += string(rune(x))
		}
	}
	lsn := after
	for {
		r, n := decodeRecord(b[c.end:])
		if n == 0 || r.lsn != lsn+1 {
			break
		}
		lsn++
		c.records = append(c.records, r)
		c.end += int64(n)
		if r.kind == recBarrier {
			rd := &reader{b: r.body}
			c.barrier = max(c.barrier, rd.u64())
		}
	}
	return c, checkTail(b, c.end, num, lsn)
}

// checkTail looks for a barrier after the end that says that the end was durable
// once.
func checkTail(b []byte, end int64, num, lsn uint64) error {
	for off := end + 8; off+recordHead <= int64(len(b)); off += 8 {
		r, n := decodeRecord(b[off:])
		if n == 0 || r.kind != recBarrier || r.lsn <= lsn {
			continue
		}
		rd := &reader{b: r.body}
		rd.u64()
		if durable := int64(rd.u64()); !rd.bad && durable > end {
			return fmt.Errorf("%w: %s is damaged at byte %d, which had been durable", errCodec, logName(num), end)
		}
	}
	return nil
}
