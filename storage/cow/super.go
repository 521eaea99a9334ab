package cow

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// The file "super" is the store as of its last checkpoint: one line with magic,
// version and CRC32C, then JSON. It is replaced by rename, so it is always
// whole. All later changes are in the log that it names.
const (
	superName    = "super"
	superMagic   = "hotspare-cow"
	superVersion = 2
	dataName     = "data" // slots of 64 KiB
	sumsName     = "sums" // CRC32C of each block of each slot: 64 bytes a slot
)

type super struct {
	ID         string    `json:"id"`
	Created    time.Time `json:"created"`
	Generation uint32    `json:"generation"`
	NextVolume uint64    `json:"next_volume"`
	LSN        uint64    `json:"lsn"`   // last one that the maps hold
	Log        uint64    `json:"log"`   // number of the first file with what follows
	Space      uint64    `json:"space"` // number of the file that says what is in use
	// Garbage is above 0 if slots or nodes may be in use that no volume has any
	// more, and says about how many.
	Garbage int64         `json:"garbage"`
	Volumes []superVolume `json:"volumes"`
}

// superVolume is a volume's catalog entry. Root names the root node in the map
// file.
type superVolume struct {
	ID       uint64    `json:"id"`
	Name     string    `json:"name"`
	UID      string    `json:"uid"`
	Size     int64     `json:"size"`
	Owned    uint32    `json:"owned"` // generation of its last clone or snapshot
	Parent   string    `json:"parent,omitempty"`
	Snapshot bool      `json:"snapshot,omitempty"`
	ReadOnly bool      `json:"read_only,omitempty"`
	Created  time.Time `json:"created"`
	Blocks   int64     `json:"blocks,omitempty"`   // of 4 KiB that are mapped
	Root     uint32    `json:"root,omitempty"`     // place of the root node
	RootSum  uint32    `json:"root_sum,omitempty"` // its CRC32C
}

func encodeSuper(s super) ([]byte, error) {
	body, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	return append(fmt.Appendf(nil, "%s %d %08x\n", superMagic, superVersion, checksum(body)), body...), nil
}

func decodeSuper(b []byte) (super, error) {
	var s super
	line, body, ok := bytes.Cut(b, []byte("\n"))
	var version int
	var sum uint32
	if _, err := fmt.Sscanf(string(line), superMagic+" %d %x", &version, &sum); !ok || err != nil {
		return s, fmt.Errorf("%w: head of %s", errCodec, superName)
	}
	if version != superVersion {
		return s, fmt.Errorf("%w: %s has version %d, this program knows %d", errVersion, superName, version, superVersion)
	}
	if checksum(body) != sum {
		return s, fmt.Errorf("%w: checksum of %s", errCodec, superName)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return s, fmt.Errorf("%w: %s: %w", errCodec, superName, err)
	}
	return s, nil
}

// writeSuper replaces the file durably.
func writeSuper(fsys FileSystem, s super) error {
	b, err := encodeSuper(s)
	if err != nil {
		return err
	}
	const tmp = superName + ".new"
	if err := writeAll(fsys, tmp, b); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, superName); err != nil {
		return err
	}
	return fsys.SyncDir()
}

// writeAll makes a file of b, durably but for its name.
func writeAll(fsys FileSystem, name string, b []byte) error {
	f, err := fsys.Open(name, true)
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return closing(f, err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return closing(f, err)
	}
	if err := f.Sync(); err != nil {
		return closing(f, err)
	}
	return f.Close()
}

// readAll reads a whole file.
func readAll(fsys FileSystem, name string) ([]byte, error) {
	f, err := fsys.Open(name, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if got, err := f.ReadAt(b, 0); err != nil && !(errors.Is(err, io.EOF) && int64(got) == n) {
		return nil, err
	}
	return b, nil
}
