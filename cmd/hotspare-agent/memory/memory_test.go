package memory

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"hotspare"
	"hotspare/haengine/agentlink"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var content = bytes.Repeat([]byte("an initramfs, "), 100_000)

// source serves content, and cuts the first answers after some bytes.
type source struct {
	*httptest.Server
	gets, cuts atomic.Int64
	status     atomic.Int64
}

func serve(t *testing.T) (*source, *Store) {
	t.Helper()
	s := &source{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.gets.Add(1)
		if code := s.status.Load(); code != 0 {
			w.Header().Set("Location", r.URL.Path)
			w.WriteHeader(int(code))
			return
		}
		from := 0
		if rest := r.Header.Get("Range"); rest != "" {
			from, _ = strconv.Atoi(rest[len("bytes=") : len(rest)-1])
			w.WriteHeader(http.StatusPartialContent)
		}
		if s.cuts.Add(-1) >= 0 {
			_, _ = w.Write(content[from : from+len(content)/10])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(content[from:])
	}))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	t.Cleanup(s.Close)
	store := NewStore(client, func() int64 { return 8 << 20 })
	store.patience = time.Second
	return s, store
}

func (s *source) artefact() agentlink.Artefact {
	sum := sha256.Sum256(content)
	return agentlink.Artefact{URL: s.URL, SHA256: hex.EncodeToString(sum[:]), Bytes: int64(len(content))}
}

func TestAnArtefactIsFetchedOnceAndGoesOnAfterCuts(t *testing.T) {
	s, store := serve(t)
	s.cuts.Store(3)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			f, err := store.Get(t.Context(), s.artefact())
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if _, err := f.WriteAt([]byte("x"), 0); err == nil {
				t.Error("the artefact can be written")
			}
		})
	}
	wg.Wait()
	if s.gets.Load() != 4 {
		t.Errorf("asked %d times, want one and three after cuts", s.gets.Load())
	}
	if have := store.Have(); len(have) != 1 || have[0] != s.artefact().SHA256 {
		t.Errorf("have %v", have)
	}
	store.Keep(nil)
	if len(store.Have()) != 0 {
		t.Error("what is not kept is there")
	}
}

func TestWhatIsNotTheArtefactIsNotKept(t *testing.T) {
	s, store := serve(t)
	for name, spoil := range map[string]func(*agentlink.Artefact){
		"another digest":  func(a *agentlink.Artefact) { a.SHA256 = hex.EncodeToString(make([]byte, 32)) },
		"shorter":         func(a *agentlink.Artefact) { a.Bytes-- },
		"longer":          func(a *agentlink.Artefact) { a.Bytes++ },
		"too much memory": func(a *agentlink.Artefact) { a.Bytes = 9 << 20 },
	} {
		a := s.artefact()
		spoil(&a)
		if _, err := store.Get(t.Context(), a); hotspare.CodeOf(err) != hotspare.CodeContents {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.status.Store(http.StatusForbidden)
	before := s.gets.Load()
	if _, err := store.Get(t.Context(), s.artefact()); err == nil || s.gets.Load() != before+1 {
		t.Errorf("forbidden: %v, asked %d times", err, s.gets.Load()-before)
	}
	if len(store.Have()) != 0 {
		t.Errorf("have %v", store.Have())
	}
	s.status.Store(0)
	if _, err := store.Get(t.Context(), s.artefact()); err != nil {
		t.Errorf("after failures: %v", err)
	}
}

func TestAFetchThatWasGivenUpIsTakenOver(t *testing.T) {
	s, store := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Get(ctx, s.artefact()); err == nil {
		t.Fatal("no error")
	}
	if _, err := store.Get(t.Context(), s.artefact()); err != nil {
		t.Errorf("%v", err)
	}
}

func TestConcatIsReadOnlyAndWhole(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("initrd"); err != nil {
		t.Fatal(err)
	}
	whole, err := Concat(f, 6, []byte("+join"))
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	got, err := io.ReadAll(whole)
	if err != nil || string(got) != "initrd+join" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := whole.WriteAt([]byte("x"), 0); !errors.Is(err, os.ErrPermission) && err == nil {
		t.Error("it can be written: the kernel would not execute it")
	}
}

// The address of an artefact holds the boot token, which opens the boot's files: it
// is in no error, whatever goes wrong, and what was asked for and of whom still is.
func TestNoErrorShowsTheToken(t *testing.T) {
	const token = "c4nary_0123456789abcdefghijklmnopqrstuvwxyz"
	for _, c := range []struct {
		name   string
		change func(*source, *agentlink.Artefact)
	}{
		{"refused", func(s *source, _ *agentlink.Artefact) { s.status.Store(http.StatusForbidden) }},
		{"the server fails", func(s *source, _ *agentlink.Artefact) { s.status.Store(http.StatusInternalServerError) }},
		{"nobody there", func(s *source, _ *agentlink.Artefact) { s.Close() }},
		{"another content", func(_ *source, a *agentlink.Artefact) { a.SHA256 = strings.Repeat("0", 64) }},
		{"too large", func(_ *source, a *agentlink.Artefact) { a.Bytes = 1 << 40 }},
		{"no URL", func(_ *source, a *agentlink.Artefact) { a.URL = "http://10.77.0.1:x/boot/" + token + "/kernel" }},
		{"a control character", func(_ *source, a *agentlink.Artefact) { a.URL += "\x7f" }},
		{"redirected for ever", func(s *source, _ *agentlink.Artefact) { s.status.Store(http.StatusFound) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, store := serve(t)
			a := s.artefact()
			a.URL += "/boot/" + token + "/kernel"
			c.change(s, &a)
			_, err := store.Get(t.Context(), a)
			if err == nil {
				t.Fatal("it arrived")
			}
			texts := []string{err.Error(), fmt.Sprintf("%+v", err)}
			for e := err; e != nil; e = errors.Unwrap(e) {
				texts = append(texts, e.Error(), fmt.Sprintf("%#v", e))
			}
			for _, text := range texts {
				if strings.Contains(text, token) {
					t.Fatalf("the token is shown: %s", text)
				}
			}
			if !strings.Contains(err.Error(), strings.TrimRight(path.Base(a.URL), "\x7f")) {
				t.Errorf("nobody knows what did not arrive: %v", err)
			}
		})
	}
}
