package cow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// The log is a chain of files, each with a head of 128 bytes: magic (8), format
// version (4), number of the file (8), boot id (36, padded), CRC32C of all that
// (last 4). Records follow: length (4,
// with the record's head, a multiple of 8), CRC32C of the rest (4), LSN (8), kind
// (1), body, padding. All numbers are little-endian. A file ends at the first
// record that does not check; one that goes on in the next file says so in its
// last record.
const (
	logMagic      = "hscowlog"
	logVersion    = 2
	logHeadSize   = 128
	recordHead    = 17
	maxRecordSize = 1 << 20
	// logAhead is how far a file is filled before it is used: a sync of what is
	// overwritten needs no change of the file system's own metadata. The filling
	// is no length of a record.
	logAhead   = 1 << 20
	logFilling = 0xff
)

// Kinds of record.
const (
	recMap     byte = 1 // volume id, count, (cluster, entry)...
	recCreate  byte = 2 // catalog entry of a new, empty volume
	recClone   byte = 3 // source id, catalog entry of the clone or snapshot
	recDelete  byte = 4 // volume id
	recResize  byte = 5 // volume id, size
	recRead    byte = 6 // volume id: read-only from here on
	recBarrier byte = 7 // LSN up to which all data is durable; LSN up to which the log was
	recDirty   byte = 8 // count, regions whose checksums may lag behind their data
	recNext    byte = 9 // number of the file in which the log goes on
)

type record struct {
	lsn  uint64
	kind byte
	body []byte
}

// wal is the open log. Appending is serialised by the store's mutex, which also
// guards files, syncing by its own.
type wal struct {
	ahead int64
	files []*logFile // oldest first; records go to the last
	next  uint64     // number of the next file
	size  int64      // of records in all files
	lsn   uint64     // of the last record
	// barrier is the LSN up to which data and log are durable.
	barrier uint64

	syncMu sync.Mutex
	synced atomic.Uint64 // last LSN that is durable
}

type logFile struct {
	f      File
	num    uint64
	after  uint64 // LSN of the last record before it
	size   int64  // end of the last whole record
	zeroed int64  // end of the file
	synced bool   // all of it is durable; guarded by the store's mutex
}

func logName(num uint64) string { return fmt.Sprintf("log-%08d", num) }

func logHead(num uint64, boot string) []byte {
	h := make([]byte, logHeadSize)
	copy(h, logMagic)
	binary.LittleEndian.PutUint32(h[8:], logVersion)
	binary.LittleEndian.PutUint64(h[12:], num)
	copy(h[20:56], boot)
	binary.LittleEndian.PutUint32(h[124:], checksum(h[:124]))
	return h
}

// createLog makes an empty file of the log, durably but for its name. name is
// its own, or one that is renamed to it.
func createLog(fsys FileSystem, name string, num uint64, boot string, ahead int64) (*logFile, error) {
	f, err := fsys.Open(name, true)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(0); err != nil {
		return nil, closing(f, err)
	}
	b := append(logHead(num, boot), bytes.Repeat([]byte{logFilling}, int(ahead))...)
	if _, err := f.WriteAt(b, 0); err != nil {
		return nil, closing(f, err)
	}
	if err := f.Sync(); err != nil {
		return nil, closing(f, err)
	}
	return &logFile{f: f, num: num, size: logHeadSize, zeroed: int64(len(b))}, nil
}

func closing(f File, err error) error {
	f.Close()
	return err
}

func (l *logFile) empty() bool { return l.size == logHeadSize }

func (w *wal) last() *logFile { return w.files[len(w.files)-1] }

// append writes a record. After an error the log is as before, unless the
// returned broken is set: then its end is unknown.
func (w *wal) append(kind byte, body []byte) (lsn uint64, broken bool, err error) {
	l := w.last()
	rec := encodeRecord(record{lsn: w.lsn + 1, kind: kind, body: body})
	if end := l.size + int64(len(rec)); end > l.zeroed {
		if _, err := l.f.WriteAt(bytes.Repeat([]byte{logFilling}, int(w.ahead)+len(rec)), l.zeroed); err != nil {
			return 0, false, fmt.Errorf("extend the log: %w", err)
		}
		l.zeroed += w.ahead + int64(len(rec))
	}
	if _, err := l.f.WriteAt(rec, l.size); err != nil {
		if terr := l.f.Truncate(l.size); terr != nil {
			return 0, true, fmt.Errorf("append to log: %w (and truncate: %w)", err, terr)
		}
		l.zeroed = l.size
		return 0, false, fmt.Errorf("append to log: %w", err)
	}
	l.size += int64(len(rec))
	l.synced = false
	w.size += int64(len(rec))
	w.lsn++
	return w.lsn, false, nil
}

// rotate goes on in the new file l. Nothing has happened after an error that is
// not broken.
func (w *wal) rotate(l *logFile) (broken bool, err error) {
	if len(w.files) > 0 {
		if _, broken, err := w.append(recNext, binary.LittleEndian.AppendUint64(nil, l.num)); err != nil {
			return broken, err
		}
	}
	l.after = w.lsn
	w.files = append(w.files, l)
	w.next = l.num + 1
	return false, nil
}

// sync makes the log durable up to lsn at least, older files first: a file never
// is more durable than the one before it. mu is the store's.
func (w *wal) sync(lsn uint64, mu *sync.RWMutex) error {
	w.syncMu.Lock()
	defer w.syncMu.Unlock()
	if w.synced.Load() >= lsn {
		return nil // another's sync covered us
	}
	mu.Lock()
	last := w.lsn
	var todo []*logFile
	for _, l := range w.files {
		if !l.synced {
			l.synced = true // a failure stops the store for good
			todo = append(todo, l)
		}
	}
	mu.Unlock()
	for _, l := range todo {
		if err := l.f.Sync(); err != nil {
			return err
		}
	}
	w.synced.Store(last)
	return nil
}

// drop forgets the files before number num, which a checkpoint up to lsn has made
// useless. It gives them closed.
func (w *wal) drop(num, lsn uint64, mu *sync.RWMutex) (gone []*logFile, err error) {
	w.syncMu.Lock() // nobody syncs one of them
	defer w.syncMu.Unlock()
	mu.Lock()
	defer mu.Unlock()
	i := slices.IndexFunc(w.files, func(l *logFile) bool { return l.num >= num })
	gone = slices.Clone(w.files[:i])
	w.files = slices.Clone(w.files[i:])
	w.size = 0
	for _, l := range w.files {
		w.size += l.size
	}
	var errs []error
	for _, l := range gone {
		errs = append(errs, l.f.Close())
	}
	if w.synced.Load() < lsn {
		w.synced.Store(lsn)
	}
	w.barrier = max(w.barrier, lsn)
	return gone, errors.Join(errs...)
}

func (w *wal) close() error {
	var errs []error
	for _, l := range w.files {
		errs = append(errs, l.f.Close())
	}
	return errors.Join(errs...)
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
