package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"hotspare"
	"hotspare/haengine"
)

const dbVersion = "1"

var (
	bucketMeta    = []byte("meta")    // version, seq
	bucketState   = []byte("state")   // durable: the merged state
	bucketHistory = []byte("history") // id -> Event
	keyVersion    = []byte("version")
	keySeq        = []byte("seq")
	keyDurable    = []byte("durable")
)

// Options of Open.
type Options struct {
	Log     *slog.Logger // nil discards
	History int          // events kept; default 20,000
}

// Store is the durable side of the engine. Its methods are safe for concurrent
// use; Save is called by one goroutine.
type Store struct {
	log     *slog.Logger
	history int
	secrets *secrets

	mu      sync.Mutex
	db      *bbolt.DB
	wal     *logFile
	durable haengine.Durable
	failure error
	lastID  uint64
}

// Event is one entry of the history under its number, counted from 1.
type Event struct {
	ID uint64 `json:"id"`
	haengine.Entry
}

// Open opens or creates the store in dir. One process may have it open
// (CodeStoreLocked otherwise).
func Open(dir string, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.History <= 0 {
		o.History = 20_000
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("engine store: %w", err)
	}
	secrets, err := openSecrets(filepath.Join(dir, "engine.key"), filepath.Join(dir, "engine.secrets"))
	if err != nil {
		return nil, err
	}
	s := &Store{log: o.Log, history: o.History, secrets: secrets}
	if err := s.openDB(filepath.Join(dir, "engine.db")); err != nil {
		return nil, err
	}
	if err := s.openState(filepath.Join(dir, "engine.log")); err != nil {
		return nil, errors.Join(err, s.db.Close())
	}
	return s, nil
}

// openDB opens the bbolt file; one that is damaged is put aside. An error that
// says nothing about the file (no memory, no descriptors, no rights) does not.
func (s *Store) openDB(path string) error {
	db, err := openBolt(path)
	if errors.Is(err, errDamaged) {
		aside := fmt.Sprintf("%s.broken-%d", path, time.Now().Unix())
		s.log.Error("the engine's database cannot be opened and is rebuilt from the log", "path", path, "aside", aside, "err", err)
		if err := os.Rename(path, aside); err != nil {
			return fmt.Errorf("engine store: %w", err)
		}
		db, err = openBolt(path)
	}
	if errors.Is(err, berrors.ErrTimeout) {
		return &hotspare.Error{
			Code: hotspare.CodeStoreLocked, What: "another process has the engine's store open", Where: path,
			Fix: "stop the other appliance: fuser " + path,
		}
	}
	if err != nil {
		return fmt.Errorf("engine store: %w", err)
	}
	s.db = db
	return nil
}

// errDamaged says that the contents of the database cannot be used.
var errDamaged = errors.New("damaged")

// truncated says whether bbolt's error comes from a file that is shorter than
// its two meta pages, for which it has no error value.
func truncated(path string, err error) bool {
	i, serr := os.Stat(path)
	return err != nil && serr == nil && i.Size() > 0 && i.Size() < 2*int64(os.Getpagesize())
}

// openBolt opens the file and reads all of it once: a damaged page must show
// now and not in the middle of a failover.
func openBolt(path string) (db *bbolt.DB, err error) {
	defer func() {
		if p := recover(); p != nil { // bbolt panics at some damaged pages
			err = fmt.Errorf("%w: bbolt: %v", errDamaged, p)
		}
	}()
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	switch {
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, io.ErrUnexpectedEOF), truncated(path, err):
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	case err != nil:
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{bucketMeta, bucketState, bucketHistory} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		if v := meta.Get(keyVersion); v != nil && string(v) != dbVersion {
			return &hotspare.Error{
				Code: hotspare.CodeStoreFormat, What: fmt.Sprintf("the engine's database is of version %q", v), Where: path,
				Fix: "use the version of hotspare that wrote it; this one writes version " + dbVersion,
			}
		}
		for range tx.Check() {
			return fmt.Errorf("%w: the file's pages are inconsistent", errDamaged)
		}
		return meta.Put(keyVersion, []byte(dbVersion))
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// openState merges the database's state with what the log has beyond it.
func (s *Store) openState(path string) error {
	var at uint64
	err := s.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketMeta).Get(keySeq); b != nil {
			at = binary.BigEndian.Uint64(b)
		}
		if k, _ := tx.Bucket(bucketHistory).Cursor().Last(); k != nil {
			s.lastID = binary.BigEndian.Uint64(k)
		}
		if b := tx.Bucket(bucketState).Get(keyDurable); b != nil {
			return json.Unmarshal(b, &s.durable)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("engine store: state: %w", err)
	}
	var behind int
	s.wal, err = openLog(path, func(seq uint64, r record) error {
		if seq <= at {
			return nil
		}
		behind++
		if r.Whole != nil {
			s.durable = *r.Whole
			return nil
		}
		if r.Delta != nil {
			s.durable.Merge(*r.Delta)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if s.wal.seq < at {
		return errors.Join(damaged(path, s.wal.size, fmt.Errorf("the log ends at record %d, the database has %d", s.wal.seq, at)), s.wal.f.Close())
	}
	if !haengine.Readable(s.durable.Version) {
		return errors.Join(&hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: fmt.Sprintf("the engine's state is of version %d", s.durable.Version), Where: path,
			Fix: fmt.Sprintf("use the version of hotspare that wrote it; this one reads up to version %d", haengine.StateVersion),
		}, s.wal.f.Close())
	}
	if behind > 0 {
		s.log.Info("applied what the log had beyond the database", "records", behind)
		return s.commit(nil)
	}
	return nil
}

// commit writes the merged state and new history to the database.
func (s *Store) commit(entries []haengine.Entry) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		b, err := json.Marshal(s.durable)
		if err != nil {
			return err
		}
		if err := tx.Bucket(bucketState).Put(keyDurable, b); err != nil {
			return err
		}
		h := tx.Bucket(bucketHistory)
		for _, e := range entries {
			s.lastID++
			b, err := json.Marshal(Event{s.lastID, e})
			if err != nil {
				return err
			}
			if err := h.Put(key(s.lastID), b); err != nil {
				return err
			}
		}
		if err := s.forget(h); err != nil {
			return err
		}
		return tx.Bucket(bucketMeta).Put(keySeq, key(s.wal.seq))
	})
}

// forget drops the oldest events beyond the bound.
func (s *Store) forget(h *bbolt.Bucket) error {
	if s.lastID <= uint64(s.history) {
		return nil
	}
	oldest := s.lastID - uint64(s.history)
	c := h.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) <= oldest; k, _ = c.First() {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

func key(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// Save journals a delta. It returns nil only when the delta would survive a loss
// of power. After an error the store takes nothing more: the state in memory is
// ahead of the journal.
func (s *Store) Save(_ context.Context, d haengine.Delta) error {
	if d.IsEmpty() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return s.failure
	}
	if err := s.save(d); err != nil {
		s.failure = err
		return err
	}
	return nil
}

func (s *Store) save(d haengine.Delta) error {
	if err := s.wal.append(record{Delta: &d}); err != nil {
		return err
	}
	s.durable.Merge(d)
	if err := s.commit(d.Entries); err != nil {
		return fmt.Errorf("engine store: %w", err)
	}
	if s.wal.size > compactLog {
		if err := s.wal.compact(s.durable); err != nil {
			return err
		}
		if err := s.commit(nil); err != nil {
			return fmt.Errorf("engine store: %w", err)
		}
	}
	return nil
}

// Load gives the durable state as journalled, in values of its own.
func (s *Store) Load(context.Context) (haengine.Durable, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var d haengine.Durable
	b, err := json.Marshal(s.durable)
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err != nil {
		return haengine.Durable{}, fmt.Errorf("engine store: %w", err)
	}
	return d, nil
}

// Events gives the first limit events after an id, oldest first; with after 0
// the newest limit events.
func (s *Store) Events(_ context.Context, after uint64, limit int) ([]Event, error) {
	s.mu.Lock()
	if after == 0 && s.lastID > uint64(limit) {
		after = s.lastID - uint64(limit)
	}
	s.mu.Unlock()
	var out []Event
	err := s.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketHistory).Cursor()
		for k, v := c.Seek(key(after + 1)); k != nil && len(out) < limit; k, v = c.Next() {
			var e Event
			if err := json.Unmarshal(v, &e); err != nil {
				return err
			}
			out = append(out, e)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("engine store: history: %w", err)
	}
	return out, nil
}

// PutSecret seals a secret under a name.
func (s *Store) PutSecret(_ context.Context, name string, secret hotspare.Secret) error {
	return s.secrets.put(name, secret)
}

// Secret opens the secret of a name; CodeNotFound when there is none.
func (s *Store) Secret(_ context.Context, name string) (hotspare.Secret, error) {
	return s.secrets.get(name)
}

// SecretNames lists the names with a prefix under which secrets are kept.
func (s *Store) SecretNames(prefix string) []string { return s.secrets.names(prefix) }

// DeleteSecret forgets a secret.
func (s *Store) DeleteSecret(_ context.Context, name string) error { return s.secrets.drop(name) }

// Close gives the files back.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = errors.New("engine store: closed")
	}
	return errors.Join(s.wal.f.Close(), s.db.Close())
}
