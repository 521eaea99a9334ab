package store_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/store"
)

// withState makes a store whose database holds a state as an earlier release wrote
// it.
func withState(t *testing.T, dir string, state []byte) {
	t.Helper()
	if err := open(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "engine.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("state")).Put([]byte("durable"), state) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestAStateOfVersion1IsTakenOver reads what the release before ways and standby
// wrote in the middle of a switchover, goes on with it, and writes it as the
// present version.
func TestAStateOfVersion1IsTakenOver(t *testing.T) {
	old, err := os.ReadFile("testdata/state-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	withState(t, dir, old)
	s := open(t, dir)
	d, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st, actions := haengine.Step(haengine.NewState(d), haengine.Stamp{At: 1, Wall: time.Date(2026, 1, 1, 1, 0, 0, 0, time.UTC)}, haengine.Restarted{})
	if err := s.Save(t.Context(), st.Delta()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = open(t, dir).Load(t.Context()); err != nil || d.Version != haengine.StateVersion {
		t.Fatalf("version %d, %v", d.Version, err)
	}
	a := d.Apps["orders"]
	if a == nil || a.Grant == nil || a.Grant.Node != "n2" || a.Grant.Way != haengine.WayColdISCSI || len(a.Old) != 1 || a.Old[0].Exclusion.Proof == nil {
		t.Fatalf("orders: %+v", a)
	}
	if len(d.Pending) == 0 || len(actions) == 0 {
		t.Errorf("what was unfinished is forgotten: %v, %v", d.Pending, actions)
	}
}

// TestAStateOfANewerVersionIsRefused: an older release does not know what a parked
// node or a local copy is.
func TestAStateOfANewerVersionIsRefused(t *testing.T) {
	state, err := json.Marshal(haengine.Durable{Version: haengine.StateVersion + 1})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	withState(t, dir, state)
	if _, err := store.Open(dir, store.Options{}); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
		t.Fatalf("got %v", err)
	}
}
