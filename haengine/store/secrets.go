package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"hotspare"
)

// secrets is a file of sealed values by name, apart from the database: that one
// can be rebuilt from the log, a password cannot.
type secrets struct {
	path   string
	sealer *sealer

	mu     sync.Mutex
	sealed map[string][]byte
}

const secretsVersion = 1

type secretsFile struct {
	Version int               `json:"version"`
	Sealed  map[string][]byte `json:"sealed"`
}

func openSecrets(key, path string) (*secrets, error) {
	sealer, err := openSealer(key)
	if err != nil {
		return nil, err
	}
	s := &secrets{path: path, sealer: sealer, sealed: map[string][]byte{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("engine store: secrets: %w", err)
	}
	var f secretsFile
	if err := json.Unmarshal(b, &f); err != nil || f.Version != secretsVersion {
		return nil, &hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: "the file of sealed secrets cannot be read", Where: path, Err: err,
			Fix: "restore it from a backup, or remove it and apply the nodes with their passwords again",
		}
	}
	if f.Sealed != nil {
		s.sealed = f.Sealed
	}
	return s, nil
}

func (s *secrets) put(name string, secret hotspare.Secret) error {
	sealed, err := s.sealer.seal(name, secret)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, had := s.sealed[name]
	s.sealed[name] = sealed
	if err := s.save(); err != nil {
		if delete(s.sealed, name); had {
			s.sealed[name] = old
		}
		return err
	}
	return nil
}

func (s *secrets) get(name string) (hotspare.Secret, error) {
	s.mu.Lock()
	sealed, ok := s.sealed[name]
	s.mu.Unlock()
	if !ok {
		return hotspare.Secret{}, &hotspare.Error{
			Code: hotspare.CodeNotFound, What: "no secret is kept under that name", Where: name, Fix: "apply the resource with its password",
		}
	}
	return s.sealer.open(name, sealed)
}

func (s *secrets) names(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name := range s.sealed {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (s *secrets) drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.sealed[name]; !ok {
		return nil
	}
	delete(s.sealed, name)
	return s.save()
}

// save replaces the file so that a crash leaves the old or the new one; the
// caller holds mu.
func (s *secrets) save() error {
	b, err := json.Marshal(secretsFile{secretsVersion, s.sealed})
	if err != nil {
		return fmt.Errorf("engine store: secrets: %w", err)
	}
	next := s.path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("engine store: secrets: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("engine store: secrets: %w", err)
	}
	if err := errors.Join(os.Rename(next, s.path), syncDir(filepath.Dir(s.path))); err != nil {
		return fmt.Errorf("engine store: secrets: %w", err)
	}
	return nil
}
