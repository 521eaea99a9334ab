package slots

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"hotspare/haengine/agentlink"
)

// Device is an opened disk.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

var _ Device = (*os.File)(nil)

const (
	recordMagic = "HSLOCAL1"
	recordHead  = 24
	recordGap   = 512 << 10 // between its two places
	headGap     = 256 << 10 // where the head of a whole disk's contents is kept
	recordMax   = 64 << 10
	recordArea  = 1 << 20

	formatVersion = 1
)

// Record is what stands on a disk about its copies.
type Record struct {
	Version int                   `json:"version"`
	Layout  *agentlink.SlotLayout `json:"layout,omitempty"` // nil: the disk is one installation
	Copies  []Copy                `json:"copies"`
	Site    string                `json:"site,omitempty"`  // of the appliance that wrote it: another one's copies are not ours
	Table   bool                  `json:"table,omitempty"` // the partition table of the layout is there

	// Of a disk that is one installation: the first Head bytes of the contents are
	// in the record's area and zeros on the disk, and this was in their table.
	Head       int64                 `json:"head,omitempty"`
	Partitions []agentlink.Partition `json:"partitions,omitempty"`

	seq uint64
	at  int64 // of the record's area
}

// Copy is one copy, with how far its writing has come.
type Copy struct {
	agentlink.Copy
	Written int64 `json:"written,omitempty"` // bytes that are on the disk, while it is being written
}

// ErrNone says that the disk holds no record.
var ErrNone = errors.New("slots: the disk holds no record of hotspare's")

// Read looks for a record on a disk of size bytes.
func Read(dev io.ReaderAt, size int64) (Record, error) {
	if size < 4<<20 {
		return Record{}, ErrNone
	}
	for _, at := range []int64{tableAt, size - recordArea} {
		r, err := readAt(dev, at)
		if err == nil && (r.Layout != nil) == (at == tableAt) {
			return r, nil
		}
		if err != nil && !errors.Is(err, ErrNone) {
			return Record{}, err
		}
	}
	return Record{}, ErrNone
}

func readAt(dev io.ReaderAt, at int64) (Record, error) {
	best := Record{}
	found := false
	for i := range int64(2) {
		b := make([]byte, recordMax)
		if _, err := dev.ReadAt(b, at+i*recordGap); err != nil {
			return Record{}, fmt.Errorf("read the record of local copies: %w", err)
		}
		r, err := parse(b)
		if err == nil && (!found || r.seq > best.seq) {
			best, found = r, true
		}
	}
	if !found {
		return Record{}, ErrNone
	}
	best.at = at
	return best, nil
}

// parse reads one place of a record.
func parse(b []byte) (Record, error) {
	if len(b) < recordHead || string(b[:8]) != recordMagic {
		return Record{}, ErrNone
	}
	n := binary.LittleEndian.Uint32(b[16:])
	if int64(n) > int64(len(b)-recordHead) || binary.LittleEndian.Uint32(b[20:]) != checksum(b[8:20], b[recordHead:recordHead+n]) {
		return Record{}, ErrNone // torn: the other place is whole
	}
	var r Record
	if err := json.Unmarshal(b[recordHead:recordHead+n], &r); err != nil {
		return Record{}, fmt.Errorf("slots: %w", err)
	}
	if r.Version != formatVersion {
		return Record{}, fmt.Errorf("slots: the record is of version %d, this agent reads %d", r.Version, formatVersion)
	}
	if r.Layout != nil {
		if err := CheckLayout(*r.Layout); err != nil {
			return Record{}, err
		}
	}
	if r.Head < 0 || r.Head > agentlink.MaxHead {
		return Record{}, fmt.Errorf("slots: a head of %d bytes", r.Head)
	}
	r.seq = binary.LittleEndian.Uint64(b[8:])
	return r, nil
}

func checksum(parts ...[]byte) uint32 {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for _, p := range parts {
		_, _ = h.Write(p)
	}
	return h.Sum32()
}

// Write makes the record durable, in the place of the older of its two.
func (r *Record) Write(dev Device) error {
	r.Version = formatVersion
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(text) > recordMax-recordHead {
		return fmt.Errorf("slots: the record has %d bytes, possible are %d", len(text), recordMax-recordHead)
	}
	b := make([]byte, recordMax)
	copy(b, recordMagic)
	binary.LittleEndian.PutUint64(b[8:], r.seq+1)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(text)))
	copy(b[recordHead:], text)
	binary.LittleEndian.PutUint32(b[20:], checksum(b[8:20], text))
	if _, err := dev.WriteAt(b, r.at+int64((r.seq+1)%2)*recordGap); err != nil {
		return fmt.Errorf("write the record of local copies: %w", err)
	}
	if err := dev.Sync(); err != nil {
		return fmt.Errorf("write the record of local copies: %w", err)
	}
	r.seq++
	return nil
}

// Find gives the copy of a slot; "" is the whole disk.
func (r *Record) Find(slot string) *Copy {
	for i := range r.Copies {
		if r.Copies[i].Slot == slot {
			return &r.Copies[i]
		}
	}
	return nil
}

// Activate makes one copy the one of its application that is to be started.
func (r *Record) Activate(slot string) {
	chosen := r.Find(slot)
	if chosen == nil {
		return
	}
	for i := range r.Copies {
		if c := &r.Copies[i]; c.App == chosen.App {
			c.Active = c.Slot == slot
		}
	}
}

// Public gives the copies as the node tells of them.
func (r *Record) Public() []agentlink.Copy {
	var out []agentlink.Copy
	for _, c := range r.Copies {
		out = append(out, c.Copy)
	}
	return out
}

// Place gives where a slot's contents begin and how long they may be.
func (r *Record) Place(slot string, size int64) (at, length int64, err error) {
	if r.Layout == nil {
		if slot != "" {
			return 0, 0, fmt.Errorf("slots: the disk is one installation and has no slot %q", slot)
		}
		return 0, size - recordArea, nil
	}
	for i, name := range r.Layout.Slots {
		if at := slotAt(*r.Layout, i); name == slot && at+r.Layout.SlotBytes <= size {
			return at, r.Layout.SlotBytes, nil
		}
	}
	return 0, 0, fmt.Errorf("slots: the disk has no slot %q", slot)
}

// HeadAt gives where on the disk the head of the contents is kept.
func (r *Record) HeadAt() int64 { return r.at + headGap }

// Partition gives the number of a slot's partition.
func (r *Record) Partition(slot string) int {
	if r.Layout != nil {
		for i, name := range r.Layout.Slots {
			if name == slot {
				return i + 2
			}
		}
	}
	return 0
}
