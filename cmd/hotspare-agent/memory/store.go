package memory

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// Store keeps artefacts by their digest.
type Store struct {
	client *http.Client
	limit  func() int64 // bytes that the store may hold in all, asked when something is fetched

	patience time.Duration // for an artefact of which nothing comes

	mu   sync.Mutex
	have map[string]*blob
}

// blob is one artefact, or one that is being fetched.
type blob struct {
	size  int64
	ready chan struct{} // closed when file or err is set
	file  *os.File      // read-only
	err   error
}

// NewStore makes an empty store. limit gives how much it may hold.
func NewStore(client *http.Client, limit func() int64) *Store {
	return &Store{client: client, limit: limit, patience: fetchPatience, have: map[string]*blob{}}
}

// Get gives an artefact, from memory or by HTTP. The file is the store's: it is
// read with ReadAt or duplicated, and not closed. A fetch that others wait for
// as well ends with the context of the one who began it.
func (s *Store) Get(ctx context.Context, a agentlink.Artefact) (*os.File, error) {
	for {
		b, mine, err := s.claim(a)
		if err != nil {
			return nil, err
		}
		if mine {
			file, err := s.fetch(ctx, a)
			s.settle(a, b, file, err)
			return file, err
		}
		select {
		case <-b.ready:
			if b.err == nil {
				return b.file, nil
			}
			if !errors.Is(b.err, context.Canceled) {
				return nil, b.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Store) claim(a agentlink.Artefact) (b *blob, mine bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.have[a.SHA256]; b != nil {
		return b, false, nil
	}
	held := a.Bytes
	for _, b := range s.have {
		held += b.size
	}
	if limit := s.limit(); held > limit {
		return nil, false, &hotspare.Error{
			Code: hotspare.CodeContents, What: "the node has too little memory for the artefact", Where: name(a),
			Why: fmt.Sprintf("%d bytes would be held, %d may be", held, limit), Fix: "preload less, or give the node more memory",
		}
	}
	b = &blob{size: a.Bytes, ready: make(chan struct{})}
	s.have[a.SHA256] = b
	return b, true, nil
}

func (s *Store) settle(a agentlink.Artefact, b *blob, file *os.File, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.file, b.err = file, err
	if err != nil && s.have[a.SHA256] == b {
		delete(s.have, a.SHA256)
	}
	close(b.ready)
}

// Keep drops every artefact but the named ones. One that is being fetched stays.
func (s *Store) Keep(artefacts []agentlink.Artefact) {
	keep := map[string]bool{}
	for _, a := range artefacts {
		keep[a.SHA256] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for digest, b := range s.have {
		if !keep[digest] && b.isReady() {
			_ = b.file.Close()
			delete(s.have, digest)
		}
	}
}

// Have gives the digests of what is there.
func (s *Store) Have() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for digest, b := range s.have {
		if b.isReady() && b.err == nil {
			out = append(out, digest)
		}
	}
	return out
}

func (b *blob) isReady() bool {
	select {
	case <-b.ready:
		return true
	default:
		return false
	}
}
