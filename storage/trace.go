package storage

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// TraceEntry is one line of traces/<volume>.jsonl: a write that landed on the
// volume. The end-to-end tests read it as the witness of who wrote when.
type TraceEntry struct {
	Version   int    `json:"v"` // 1
	Seq       uint64 `json:"seq"`
	UnixNano  int64  `json:"unix_nano"`
	Initiator string `json:"initiator"`
	Epoch     uint64 `json:"epoch"`
	Node      string `json:"node"`
	BootID    string `json:"boot_id"`
	Op        string `json:"op"`     // "write" or "discard"
	LBA       int64  `json:"lba"`    // in blocks of 512 bytes
	Length    int64  `json:"length"` // in bytes
	Data      string `json:"data"`   // first 64 bytes in hexadecimal
}

const traceVersion = 1

// trace appends entries with one write each, so that a killed process loses
// none that it acknowledged.
type trace struct {
	mu  sync.Mutex
	f   *os.File
	seq uint64
}

// TracePath gives the file of a volume's trace inside dir.
func TracePath(dir, volume string) string {
	return filepath.Join(dir, strings.ReplaceAll(volume, string(filepath.Separator), "_")+".jsonl")
}

// openTrace opens the trace of a volume and goes on after its last whole entry.
func openTrace(dir, volume string) (*trace, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("storage: trace of %s: %w", volume, err)
	}
	f, err := os.OpenFile(TracePath(dir, volume), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("storage: trace of %s: %w", volume, err)
	}
	t := &trace{f: f}
	sc := bufio.NewReader(f)
	var whole int64
	for {
		line, err := sc.ReadBytes('\n')
		var e TraceEntry
		if err != nil || json.Unmarshal(line, &e) != nil {
			break
		}
		whole += int64(len(line))
		t.seq = e.Seq
	}
	if err := f.Truncate(whole); err != nil {
		return nil, errors.Join(fmt.Errorf("storage: trace of %s: %w", volume, err), f.Close())
	}
	return t, nil
}

func (t *trace) add(a *Attachment, p []byte, off int64, now time.Time) error {
	return t.put(a, TraceEntry{Op: "write", LBA: off / 512, Length: int64(len(p)), Data: hex.EncodeToString(p[:min(64, len(p))])}, now)
}

func (t *trace) addDiscard(a *Attachment, off, n int64, now time.Time) error {
	return t.put(a, TraceEntry{Op: "discard", LBA: off / 512, Length: n}, now)
}

func (t *trace) put(a *Attachment, e TraceEntry, now time.Time) error {
	e.Version, e.UnixNano = traceVersion, now.UnixNano()
	e.Initiator, e.Epoch, e.Node, e.BootID = a.initiator, a.export.Epoch, a.node, a.bootID
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seq++
	e.Seq = t.seq
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("storage: trace: %w", err)
	}
	if _, err := t.f.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("storage: trace: %w", err)
	}
	return nil
}

func (t *trace) close() error {
	if t == nil {
		return nil
	}
	return t.f.Close()
}
