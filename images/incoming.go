package images

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"hotspare"
)

const (
	incomingVersion = 1
	// incomingAge is how long an upload or download that nobody goes on with is
	// kept.
	incomingAge = 7 * 24 * time.Hour
	maxUploads  = 16 // at a time
	// MaxAppend bounds one piece of an upload, in bytes.
	MaxAppend = 1 << 20
)

// Upload is a file that comes piece by piece. It outlives the process: who
// uploads asks for Offset and goes on from there.
type Upload struct {
	Version int       `json:"version"` // of this record
	ID      string    `json:"id"`
	Size    int64     `json:"size"`
	SHA256  string    `json:"sha256"` // that the whole file must have
	By      string    `json:"by"`
	Begun   time.Time `json:"begun"`
	Offset  int64     `json:"-"` // bytes that are here
	Path    string    `json:"-"` // of the file
}

// incoming keeps what is on its way, one folder each: upload-<id> with a record
// and the data, download-<key> for who fetches (images/fetch).
type incoming struct {
	dir string
	mu  sync.Mutex
}

var idGrammar = regexp.MustCompile(`^[a-z0-9]{8,64}$`)

// BeginUpload prepares the way of a file of size bytes with a SHA-256.
func (r *Repository) BeginUpload(_ context.Context, size int64, sum, by string) (Upload, error) {
	bad := func(field, why string) (Upload, error) {
		return Upload{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the upload cannot begin", Where: field, Why: why, Fix: "correct " + field}
	}
	switch {
	case size <= 0 || size > r.opts.MaxDisk:
		return bad("size", fmt.Sprintf("%d bytes; 1 to %d are allowed", size, r.opts.MaxDisk))
	case !sha256Grammar.MatchString(sum):
		return bad("sha256", "it is not 64 lower-case hex digits")
	}
	in := &r.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	all, err := in.uploads()
	if err != nil {
		return Upload{}, err
	}
	if len(all) >= maxUploads {
		return Upload{}, &hotspare.Error{Code: hotspare.CodeConflict, What: "too many uploads are under way", Where: fmt.Sprintf("%d of %d", len(all), maxUploads),
			Fix: "complete or end one of them"}
	}
	u := Upload{Version: incomingVersion, ID: strings.ToLower(rand.Text()), Size: size, SHA256: sum, By: by, Begun: r.opts.Now().UTC()}
	dir := filepath.Join(in.dir, "upload-"+u.ID)
	b, err := json.Marshal(u)
	if err != nil {
		return Upload{}, fmt.Errorf("images: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Upload{}, diskError("begin the upload", err)
	}
	if err := writeDurably(filepath.Join(dir, "upload.json"), b); err != nil {
		_ = os.RemoveAll(dir)
		return Upload{}, diskError("begin the upload", err)
	}
	u.Path = filepath.Join(dir, "data")
	return u, nil
}

// Upload gives an upload with its Offset.
func (r *Repository) Upload(id string) (Upload, error) {
	r.incoming.mu.Lock()
	defer r.incoming.mu.Unlock()
	return r.incoming.upload(id)
}

// Uploads lists the uploads that are under way.
func (r *Repository) Uploads() ([]Upload, error) {
	r.incoming.mu.Lock()
	defer r.incoming.mu.Unlock()
	return r.incoming.uploads()
}

func (in *incoming) upload(id string) (Upload, error) {
	none := &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such upload", Where: id, Why: "it was completed, ended, or given up for a week", Fix: "begin another"}
	if !idGrammar.MatchString(id) {
		return Upload{}, none
	}
	dir := filepath.Join(in.dir, "upload-"+id)
	b, err := os.ReadFile(filepath.Join(dir, "upload.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Upload{}, none
	}
	var u Upload
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	if err == nil && (u.Version != incomingVersion || u.ID != id) {
		err = fmt.Errorf("record of version %d for %q", u.Version, u.ID)
	}
	if err != nil {
		return Upload{}, &hotspare.Error{Code: hotspare.CodeCorrupt, What: "the upload's record cannot be read", Where: dir, Fix: "end it and begin another", Err: err}
	}
	u.Path = filepath.Join(dir, "data")
	info, err := os.Stat(u.Path)
	switch {
	case err == nil:
		u.Offset = info.Size()
	case !errors.Is(err, fs.ErrNotExist):
		return Upload{}, fmt.Errorf("images: %w", err)
	}
	return u, nil
}

func (in *incoming) uploads() ([]Upload, error) {
	entries, err := os.ReadDir(in.dir)
	if err != nil {
		return nil, fmt.Errorf("images: list the uploads: %w", err)
	}
	var all []Upload
	for _, e := range entries {
		if id, ok := strings.CutPrefix(e.Name(), "upload-"); ok {
			if u, err := in.upload(id); err == nil {
				all = append(all, u)
			}
		}
	}
	return all, nil
}

// Append adds a piece at off, which must be where the upload ends: a piece that
// was sent twice, or is missing, is noticed.
func (r *Repository) Append(_ context.Context, id string, off int64, p []byte) (Upload, error) {
	in := &r.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	u, err := in.upload(id)
	if err != nil {
		return Upload{}, err
	}
	switch {
	case off != u.Offset:
		return u, &hotspare.Error{Code: hotspare.CodeConflict, What: "the piece does not go on where the upload ends", Where: fmt.Sprintf("byte %d", off),
			Why: fmt.Sprintf("%d bytes are here", u.Offset), Fix: fmt.Sprintf("go on at byte %d", u.Offset)}
	case len(p) > MaxAppend || off+int64(len(p)) > u.Size:
		return u, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the piece is too large", Where: fmt.Sprintf("%d bytes at %d", len(p), off),
			Why: fmt.Sprintf("the file has %d bytes, a piece at most %d", u.Size, MaxAppend), Fix: "send what is left, in smaller pieces"}
	}
	f, err := os.OpenFile(u.Path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return u, diskError("store the piece", err)
	}
	_, err = f.WriteAt(p, off)
	if err == nil && (off+int64(len(p)))%(64<<20) < int64(len(p)) {
		err = f.Sync() // now and then: a power loss costs the last pieces only
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Truncate(u.Path, off) // a piece is there whole or not at all
		return u, diskError("store the piece", err)
	}
	u.Offset += int64(len(p))
	return u, nil
}

// EndUpload forgets an upload and its data.
func (r *Repository) EndUpload(id string) error {
	in := &r.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, err := in.upload(id); err != nil && hotspare.CodeOf(err) != hotspare.CodeCorrupt {
		return err
	}
	if err := os.RemoveAll(filepath.Join(in.dir, "upload-"+id)); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	return nil
}

// Download gives the folder in which a download with that key is kept until it
// is complete, and the way to give it up. A key is 8 to 64 of a-z and 0-9.
func (r *Repository) Download(key string) (dir string, remove func() error, err error) {
	if !idGrammar.MatchString(key) {
		return "", nil, fmt.Errorf("images: a download cannot have the key %q", key)
	}
	dir = filepath.Join(r.incoming.dir, "download-"+key)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, diskError("begin the download", err)
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// sweep removes what nobody went on with.
func (in *incoming) sweep(now time.Time) error {
	entries, err := os.ReadDir(in.dir)
	if err != nil {
		return fmt.Errorf("images: look for old uploads: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(in.dir, e.Name())
		last, err := lastChange(dir)
		if err != nil || now.Sub(last) < incomingAge {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("images: remove an old upload: %w", err)
		}
	}
	return nil
}

func lastChange(dir string) (time.Time, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return time.Time{}, err
	}
	last := info.ModTime()
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last, err
}
