package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hotspare/haengine"
)

// TestALogIsReplacedOnlyByOneThatIsOnDisk: whatever fails while the log is
// replaced, the old one stays as it is, and a restart finds all of it.
func TestALogIsReplacedOnlyByOneThatIsOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "engine.log")
	l, err := openLog(path, func(uint64, record) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := l.append(record{Delta: &haengine.Delta{}}); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lost := errors.New("the disk lost it")
	l.sync = func(*os.File) error { return lost }
	if err := l.compact(haengine.Durable{}); !errors.Is(err, lost) {
		t.Fatalf("compact: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the log was replaced by one that may not be on disk: %v", err)
	}
	if err := l.f.Close(); err != nil {
		t.Fatal(err)
	}
	records := 0
	again, err := openLog(path, func(_ uint64, r record) error { records++; return nil })
	if err != nil || records != 3 {
		t.Fatalf("%d records, %v", records, err)
	}
	if err := again.compact(haengine.Durable{}); err != nil { // the left-over of the first try is in its way no more
		t.Fatal(err)
	}
	var whole []json.RawMessage
	if err := again.f.Close(); err != nil {
		t.Fatal(err)
	}
	last, err := openLog(path, func(_ uint64, r record) error {
		b, err := json.Marshal(r)
		whole = append(whole, b)
		return err
	})
	if err != nil || len(whole) != 1 {
		t.Fatalf("%d records after the replacement, %v", len(whole), err)
	}
	if err := last.f.Close(); err != nil {
		t.Fatal(err)
	}
}
