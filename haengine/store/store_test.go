package store_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/store"
)

type journal interface {
	Save(context.Context, haengine.Delta) error
	Load(context.Context) (haengine.Durable, error)
}

// eachJournal runs a story against every implementation; reopen is a restart of
// the appliance.
func eachJournal(t *testing.T, story func(t *testing.T, j journal, reopen func() journal)) {
	t.Run("memory", func(t *testing.T) {
		m := &store.Memory{}
		story(t, m, func() journal { return m })
	})
	t.Run("disk", func(t *testing.T) {
		dir := t.TempDir()
		s := open(t, dir)
		story(t, s, func() journal {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			return s
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// step is a delta as the engine makes them: the n-th changes node n%3, adds an
// application and a pending action, and removes what an earlier one added.
func step(n int) haengine.Delta {
	at := haengine.Stamp{At: haengine.Instant(n), Wall: time.Unix(int64(n), 0).UTC()}
	name := fmt.Sprintf("n%d", n%3)
	d := haengine.Delta{
		Nodes: map[string]*haengine.NodeState{name: {
			Spec: haengine.Node{Name: name, Labels: map[string]string{"round": fmt.Sprint(n)}}, Phase: haengine.NodeOwned, Since: at, Epoch: haengine.Epoch(n),
		}},
		Apps: map[string]*haengine.AppState{fmt.Sprintf("a%d", n): {Phase: haengine.PhaseFencing, Epoch: haengine.Epoch(n), Since: at}},
		Pending: map[haengine.ActionID]*haengine.Pending{haengine.ActionID(n): {
			Action: haengine.Revoke{Order: haengine.Order{ID: haengine.ActionID(n), App: "a", Epoch: haengine.Epoch(n)}, Below: haengine.Epoch(n)}, Ordered: at, Tries: 1,
		}},
		Entries: []haengine.Entry{{Stamp: at, App: "a", Text: fmt.Sprintf("step %d", n)}},
		Meta:    &haengine.Meta{Version: haengine.StateVersion, NextAction: haengine.ActionID(n + 1), Floors: map[string]haengine.Epoch{"a": haengine.Epoch(n)}},
	}
	if n > 5 {
		d.Apps[fmt.Sprintf("a%d", n-5)] = nil
		d.Pending[haengine.ActionID(n-5)] = nil
	}
	return d
}

func text(t *testing.T, d haengine.Durable) string {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWhatWasSavedIsThereAfterARestart(t *testing.T) {
	eachJournal(t, func(t *testing.T, j journal, reopen func() journal) {
		var want haengine.Durable
		want.Merge(haengine.Delta{})
		for n := 1; n <= 40; n++ {
			if err := j.Save(t.Context(), step(n)); err != nil {
				t.Fatal(err)
			}
			want.Merge(step(n))
			if n%7 == 0 {
				j = reopen()
			}
		}
		got, err := j.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if text(t, got) != text(t, want) {
			t.Fatalf("got  %s\nwant %s", text(t, got), text(t, want))
		}
		if r, ok := got.Pending[40].Action.(haengine.Revoke); !ok || r.Below != 40 || len(got.Pending) != 5 || len(got.Apps) != 5 {
			t.Fatalf("pending: %+v", got.Pending)
		}
		got.Nodes["n1"].Phase = haengine.NodeIdle // the caller's copy is its own
		again, err := j.Load(t.Context())
		if err != nil || again.Nodes["n1"].Phase != haengine.NodeOwned {
			t.Fatalf("Load gave out its own state: %v", err)
		}
	})
}

// TestALostDatabaseIsRebuiltFromTheLog proves that the state does not hang on
// bbolt's file: it is damaged in several ways between two runs.
func TestALostDatabaseIsRebuiltFromTheLog(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"removed":   os.Remove,
		"emptied":   func(p string) error { return os.Truncate(p, 0) },
		"shortened": func(p string) error { return os.Truncate(p, 5000) },
		"zeroed meta": func(p string) error {
			return patch(p, 0, make([]byte, 8192))
		},
		"noise in the middle": func(p string) error {
			return patch(p, 8192, bytes.Repeat([]byte{0xa5}, 12000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			if err := s.PutSecret(t.Context(), "bmc/n1", hotspare.NewSecret("p")); err != nil {
				t.Fatal(err)
			}
			var want haengine.Durable
			for n := 1; n <= 12; n++ {
				if err := s.Save(t.Context(), step(n)); err != nil {
					t.Fatal(err)
				}
				want.Merge(step(n))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := spoil(filepath.Join(dir, "engine.db")); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir)
			defer s.Close()
			got, err := s.Load(t.Context())
			if err != nil || text(t, got) != text(t, want) {
				t.Fatalf("%v\ngot  %s\nwant %s", err, text(t, got), text(t, want))
			}
			if p, err := s.Secret(t.Context(), "bmc/n1"); err != nil || p.Reveal() != "p" {
				t.Fatalf("the secrets went with the database: %v", err)
			}
			if err := s.Save(t.Context(), step(13)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func patch(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, at)
	return err
}

// TestACrashAtEveryByteOfTheLog cuts the log after every byte of its last
// record: the state is then exactly that of the records before it.
func TestACrashAtEveryByteOfTheLog(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var before haengine.Durable
	for n := 1; n <= 3; n++ {
		if err := s.Save(t.Context(), step(n)); err != nil {
			t.Fatal(err)
		}
		before.Merge(step(n))
	}
	start := fileSize(t, filepath.Join(dir, "engine.log"))
	if err := s.Save(t.Context(), step(4)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "engine.log"))
	if err != nil {
		t.Fatal(err)
	}
	cuts := 0
	for cut := start; cut < int64(len(whole)); cut += 7 {
		torn := t.TempDir()
		if err := os.WriteFile(filepath.Join(torn, "engine.log"), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, torn)
		got, err := s.Load(t.Context())
		if err != nil || text(t, got) != text(t, before) {
			t.Fatalf("cut at byte %d of %d: %v\ngot %s", cut, len(whole), err, text(t, got))
		}
		if err := s.Save(t.Context(), step(4)); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(filepath.Join(torn, "engine.log")); !bytes.Equal(b, whole) {
			t.Fatalf("cut at byte %d: the log written anew differs", cut)
		}
		cuts++
	}
	if cuts < 50 {
		t.Fatalf("only %d cuts", cuts)
	}
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	i, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return i.Size()
}

func TestADamagedLogIsNotGuessed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for n := 1; n <= 5; n++ {
		if err := s.Save(t.Context(), step(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "engine.log")
	if err := patch(path, 200, []byte{0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(dir, store.Options{})
	if hotspare.CodeOf(err) != hotspare.CodeCorrupt || !strings.Contains(err.Error(), "byte ") {
		t.Fatalf("damage in the middle: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(dir, store.Options{}); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatalf("a lost log: %v", err)
	}
	if err := os.WriteFile(path, []byte("something else, longer than the magic line"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(dir, store.Options{}); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
		t.Fatalf("another format: %v", err)
	}
}

func TestTwoProcessesDoNotShareAStore(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	if _, err := store.Open(dir, store.Options{}); hotspare.CodeOf(err) != hotspare.CodeStoreLocked {
		t.Fatalf("got %v", err)
	}
}

func TestHistoryIsNumberedAndBounded(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(dir, store.Options{History: 10})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 25; n++ {
		if err := s.Save(t.Context(), step(n)); err != nil {
			t.Fatal(err)
		}
	}
	newest, err := s.Events(t.Context(), 0, 3)
	if err != nil || len(newest) != 3 || newest[2].ID != 25 || newest[2].Text != "step 25" {
		t.Fatalf("newest: %+v, %v", newest, err)
	}
	all, err := s.Events(t.Context(), 1, 100)
	if err != nil || len(all) != 10 || all[0].ID != 16 {
		t.Fatalf("kept: %d from %d, %v", len(all), all[0].ID, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	if err := s.Save(t.Context(), step(26)); err != nil {
		t.Fatal(err)
	}
	if last, err := s.Events(t.Context(), 25, 5); err != nil || len(last) != 1 || last[0].ID != 26 {
		t.Fatalf("numbers do not go on after a restart: %+v, %v", last, err)
	}
}

func TestSecretsAreSealedAndBoundToTheirNames(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	const canary = "c4nary-passw0rd"
	if err := s.PutSecret(t.Context(), "bmc/n1", hotspare.NewSecret(canary)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || bytes.Contains(b, []byte(canary)) {
			t.Fatalf("%s holds the secret in clear, or %v", f, err)
		}
		if i, _ := os.Stat(f); i.Mode().Perm() != 0o600 {
			t.Fatalf("%s has mode %v", f, i.Mode())
		}
	}
	s = open(t, dir)
	got, err := s.Secret(t.Context(), "bmc/n1")
	if err != nil || got.Reveal() != canary {
		t.Fatalf("%v", err)
	}
	if _, err := s.Secret(t.Context(), "bmc/n2"); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Fatalf("an unknown name: %v", err)
	}
	if err := s.DeleteSecret(t.Context(), "bmc/n1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Secret(t.Context(), "bmc/n1"); hotspare.CodeOf(err) != hotspare.CodeNotFound {
		t.Fatalf("a deleted secret: %v", err)
	}
	if err := s.PutSecret(t.Context(), "bmc/n1", hotspare.NewSecret(canary)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "engine.key"), bytes.Repeat([]byte{7}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	if _, err := s.Secret(t.Context(), "bmc/n1"); hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		t.Fatalf("with another key: %v", err)
	}
}

// TestADatabaseOfAnotherVersionIsLeftAlone: a release that was rolled back must
// not throw away what a newer one wrote.
func TestADatabaseOfAnotherVersionIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if err := s.Save(t.Context(), step(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "engine.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("version"), []byte("99")) })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(dir, store.Options{}); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
		t.Fatalf("got %v", err)
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, "*.broken-*")); len(aside) != 0 {
		t.Fatalf("put aside: %v", aside)
	}
}
