package store

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hotspare"
	"hotspare/haengine"
)

// The log is a magic line and records. A record is a head of 16 bytes (length
// of the body, CRC-32C of sequence and body, sequence; little endian) and a JSON
// body: record.
const (
	logMagic   = "hotspare engine log 1\n"
	logHead    = 16
	maxRecord  = 64 << 20
	compactLog = 32 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one journalled step, or with Whole set a state to start from.
type record struct {
	Whole *haengine.Durable `json:"whole,omitempty"`
	Delta *haengine.Delta   `json:"delta,omitempty"`
}

type logFile struct {
	f    *os.File
	path string
	seq  uint64 // of the last record
	size int64
	sync func(*os.File) error // of a new log; tests let it fail
}

func seal(seq uint64, body []byte) []byte {
	b := make([]byte, logHead, logHead+len(body))
	binary.LittleEndian.PutUint32(b[0:], uint32(len(body)))
	binary.LittleEndian.PutUint64(b[8:], seq)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b
}

// openLog opens or creates the log and gives each whole record to apply.
func openLog(path string, apply func(seq uint64, r record) error) (*logFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("engine log: %w", err)
	}
	l := &logFile{f: f, path: path, sync: (*os.File).Sync}
	if err := l.replay(apply); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

func (l *logFile) replay(apply func(uint64, record) error) error {
	info, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("engine log: %w", err)
	}
	if info.Size() < int64(len(logMagic)) {
		return l.begin(info.Size())
	}
	r := bufio.NewReaderSize(l.f, 1<<20)
	magic := make([]byte, len(logMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != logMagic {
		return &hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: "the engine's log is of another format", Where: l.path, Err: err,
			Fix: "use the version of hotspare that wrote it",
		}
	}
	at := int64(len(logMagic))
	for {
		seq, body, err := readRecord(r, info.Size()-at)
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, errTorn) {
			if err := l.f.Truncate(at); err != nil {
				return fmt.Errorf("engine log: cut the torn end: %w", err)
			}
			break
		}
		if err == nil && l.seq != 0 && seq != l.seq+1 {
			err = fmt.Errorf("record %d follows record %d", seq, l.seq)
		}
		var rec record
		if err == nil {
			err = json.Unmarshal(body, &rec)
		}
		if err != nil {
			return damaged(l.path, at, err)
		}
		if err := apply(seq, rec); err != nil {
			return err
		}
		l.seq = seq
		at += logHead + int64(len(body))
	}
	l.size = at
	_, err = l.f.Seek(at, io.SeekStart)
	return err
}

// begin writes the magic line of a new log. A shorter file can only be one whose
// first write was cut: nothing was journalled in it.
func (l *logFile) begin(size int64) error {
	if size > 0 {
		if err := l.f.Truncate(0); err != nil {
			return fmt.Errorf("engine log: %w", err)
		}
	}
	if _, err := l.f.WriteAt([]byte(logMagic), 0); err != nil {
		return fmt.Errorf("engine log: %w", err)
	}
	l.size = int64(len(logMagic))
	if _, err := l.f.Seek(l.size, io.SeekStart); err != nil {
		return err
	}
	return errors.Join(l.f.Sync(), syncDir(filepath.Dir(l.path)))
}

// errTorn marks a last record that does not reach its own end, or whose sum is
// wrong: its write was cut, so it was never acknowledged.
var errTorn = errors.New("torn record")

// readRecord reads one record out of the rest bytes that the file still has.
func readRecord(r io.Reader, rest int64) (uint64, []byte, error) {
	if rest == 0 {
		return 0, nil, io.EOF
	}
	if rest < logHead {
		return 0, nil, errTorn
	}
	head := make([]byte, logHead)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, nil, err
	}
	n := int64(binary.LittleEndian.Uint32(head[0:]))
	if n > rest-logHead {
		if n > maxRecord && rest-logHead > maxRecord {
			return 0, nil, fmt.Errorf("a record of %d bytes", n)
		}
		return 0, nil, errTorn
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	sum := crc32.Update(crc32.Checksum(head[8:], castagnoli), castagnoli, body)
	if sum != binary.LittleEndian.Uint32(head[4:]) {
		if n == rest-logHead {
			return 0, nil, errTorn
		}
		return 0, nil, errors.New("the checksum differs")
	}
	return binary.LittleEndian.Uint64(head[8:]), body, nil
}

func damaged(path string, at int64, err error) error {
	return &hotspare.Error{
		Code: hotspare.CodeCorrupt, What: "the engine's log is damaged", Where: fmt.Sprintf("%s: byte %d", path, at), Err: err,
		Why: "what follows cannot be trusted, and an older state could start an application twice",
		Fix: "restore the state folder from a backup: a restored appliance observes until each ownership is proven anew",
	}
}

// append makes one record durable.
func (l *logFile) append(r record) error {
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("engine log: %w", err)
	}
	b := seal(l.seq+1, body)
	if _, err := l.f.Write(b); err != nil {
		return l.failed("write", err)
	}
	if err := unix.Fdatasync(int(l.f.Fd())); err != nil {
		return l.failed("sync", err)
	}
	l.seq++
	l.size += int64(len(b))
	return nil
}

// failed closes the log: after a failed write or sync nobody knows what is on
// the disk, and trying again could report success for lost pages.
func (l *logFile) failed(what string, err error) error {
	_ = l.f.Close()
	e := &hotspare.Error{
		Code: hotspare.CodeVolumeFailed, What: "the engine's log cannot be written", Where: l.path, Err: fmt.Errorf("%s: %w", what, err),
		Why: "nothing may be done that is not journalled", Fix: "mend the disk and restart the appliance",
	}
	if errors.Is(err, unix.ENOSPC) {
		e.Code, e.Fix = hotspare.CodeDiskFull, "free space and restart the appliance"
	}
	return e
}

// compact replaces the log by one that begins with a whole state.
func (l *logFile) compact(d haengine.Durable) error {
	body, err := json.Marshal(record{Whole: &d})
	if err != nil {
		return fmt.Errorf("engine log: %w", err)
	}
	next := l.path + ".new"
	f, err := os.OpenFile(next, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("engine log: %w", err)
	}
	b := append([]byte(logMagic), seal(l.seq+1, body)...)
	if _, err := f.Write(b); err != nil {
		return errors.Join(fmt.Errorf("engine log: %w", err), f.Close(), os.Remove(next))
	}
	err = l.sync(f) // before the old log goes: the new one must be able to replace it
	if err == nil {
		err = os.Rename(next, l.path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(l.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("engine log: replace it: %w", err), f.Close())
	}
	old := l.f
	l.f, l.seq, l.size = f, l.seq+1, int64(len(b))
	return old.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = errors.Join(d.Sync(), d.Close())
	if errors.Is(err, fs.ErrInvalid) {
		return nil
	}
	return err
}
