package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hotspare"
)

// recordVersion is the version of the records' format. Version 1 had neither
// DigestKind (its digests are plain SHA-256 of the disk) nor Facts; its records
// are read on.
const recordVersion = 2

// record is the durable form of an Image: {"version", "image", "sha256"}, where
// sha256 covers the bytes of image, so that a damaged record is seen.
type record struct {
	Version int             `json:"version"`
	Image   json.RawMessage `json:"image"`
	SHA256  string          `json:"sha256"`
}

// intent is written before a volume is created or a record removed. As long as
// it exists, the volume may exist without a record; heal settles it.
type intent struct {
	Version int    `json:"version"`
	Volume  string `json:"volume"`
}

func encodeRecord(img Image) ([]byte, error) {
	body, err := json.Marshal(img)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return json.Marshal(record{Version: recordVersion, Image: body, SHA256: hex.EncodeToString(sum[:])})
}

func decodeRecord(b []byte) (Image, error) {
	var rec record
	if err := json.Unmarshal(b, &rec); err != nil {
		return Image{}, err
	}
	if rec.Version < 1 || rec.Version > recordVersion {
		return Image{}, &hotspare.Error{Code: hotspare.CodeStoreFormat, What: "the image record is of another version",
			Why: fmt.Sprintf("version %d, this program knows %d", rec.Version, recordVersion), Fix: "use the hotspare that wrote it, or import the image again"}
	}
	if sum := sha256.Sum256(rec.Image); hex.EncodeToString(sum[:]) != rec.SHA256 {
		return Image{}, errors.New("its checksum differs")
	}
	var img Image
	if err := json.Unmarshal(rec.Image, &img); err != nil {
		return Image{}, err
	}
	if rec.Version == 1 && img.Volume != "" {
		img.Facts.Starts, img.Facts.Init = []Start{StartKernel}, InitUnknown // no other could be imported
	}
	if !nameGrammar.MatchString(img.Name) || !versionGrammar.MatchString(img.Version) || !sha256Grammar.MatchString(img.Digest) {
		return Image{}, errors.New("a field has an impossible value")
	}
	return img, nil
}

func (r *Repository) recordPath(img Image) string {
	return filepath.Join(r.dir, "records", img.Name+"@"+img.Version+".json")
}

// load reads all records.
func (r *Repository) load() error {
	dir := filepath.Join(r.dir, "records")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("images: read the records: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") { // a write that did not finish
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("images: %w", err)
			}
			continue
		}
		b, err := os.ReadFile(path)
		var img Image
		if err == nil {
			img, err = decodeRecord(b)
		}
		if err == nil && filepath.Base(r.recordPath(img)) != e.Name() {
			err = fmt.Errorf("it is the record of %s", img.Ref())
		}
		if err != nil {
			err = &hotspare.Error{Code: hotspare.CodeCorrupt, What: "an image record cannot be read", Where: path,
				Fix: "restore the file from a backup, or remove it and import the image again", Err: err}
			r.opts.Log.Error("image record set aside", "err", err)
			r.broken = append(r.broken, err)
			continue
		}
		r.images[img.Ref()] = r.withPaths(img)
	}
	return nil
}

// commit makes img exist.
func (r *Repository) commit(img Image) error {
	b, err := encodeRecord(img)
	if err != nil {
		return fmt.Errorf("images: encode the record: %w", err)
	}
	if err := writeDurably(r.recordPath(img), b); err != nil {
		return diskError("write the image's record", err)
	}
	r.mu.Lock()
	r.images[img.Ref()] = r.withPaths(img)
	r.mu.Unlock()
	return nil
}

func (r *Repository) removeRecord(img Image) error {
	path := r.recordPath(img)
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("images: remove the record: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	r.mu.Lock()
	delete(r.images, img.Ref())
	r.mu.Unlock()
	return nil
}

func (r *Repository) writeIntent(volume string) error {
	b, err := json.Marshal(intent{Version: recordVersion, Volume: volume})
	if err != nil {
		return fmt.Errorf("images: encode the intent: %w", err)
	}
	if err := writeDurably(r.intentPath(volume), b); err != nil {
		return diskError("note what is about to be done", err)
	}
	return nil
}

func (r *Repository) intentPath(volume string) string {
	return filepath.Join(r.dir, "staging", "intent-"+volume+".json")
}

// heal brings the volume store and the files in line with the records: it
// deletes the volumes of intents that no record names, all files of staging,
// and all blobs that no record names. The caller holds the gate.
func (r *Repository) heal(ctx context.Context) error {
	if len(r.broken) > 0 {
		r.opts.Log.Warn("images are not healed while a record cannot be read", "records", len(r.broken))
	}
	volumes, blobs := map[string]bool{}, map[string]bool{}
	for _, img := range r.List() {
		volumes[img.Volume] = true
		for _, b := range img.blobs() {
			blobs[b.Digest] = true
		}
	}
	staging := filepath.Join(r.dir, "staging")
	entries, err := os.ReadDir(staging)
	if err != nil {
		return fmt.Errorf("images: read staging: %w", err)
	}
	for _, e := range entries {
		volume, ok := intentVolume(e.Name())
		if ok && len(r.broken) > 0 {
			continue
		}
		if ok && !volumes[volume] {
			if err := r.deleteVolume(ctx, volume); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(filepath.Join(staging, e.Name())); err != nil {
			return fmt.Errorf("images: clear staging: %w", err)
		}
	}
	if len(r.broken) > 0 {
		return nil
	}
	return r.sweepBlobs(blobs)
}

// intentVolume gives the volume of an intent's file name. The name says it all:
// the contents may be torn, the name cannot.
func intentVolume(file string) (string, bool) {
	v, ok := strings.CutPrefix(file, "intent-")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(v, ".json")
}

func (r *Repository) deleteVolume(ctx context.Context, volume string) error {
	err := r.opts.Disks.Delete(ctx, volume)
	if err == nil || errors.Is(err, fs.ErrNotExist) || hotspare.CodeOf(err) == hotspare.CodeNotFound {
		return nil
	}
	return fmt.Errorf("images: delete volume %s: %w", volume, err)
}

func (r *Repository) sweepBlobs(keep map[string]bool) error {
	dir := filepath.Join(r.dir, "blobs", "sha256")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("images: read the blobs: %w", err)
	}
	for _, e := range entries {
		if keep[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("images: remove an unused blob: %w", err)
		}
	}
	return nil
}
