package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/diskstream"
	"hotspare/images"
	"hotspare/storage/cow"
)

// streamPath is where nodes fetch the contents of a disk that they install, with a
// token of that installation behind it. The digest that the contents must have goes
// over the agent's link.
const streamPath = "/disk/"

// Bounds of what installations take of the appliance: each stream compresses with
// all processors, and running nodes come first.
const (
	maxStreams  = 4
	streamWait  = 20 * time.Second // for a turn; below what an agent waits for the first byte
	streamStall = time.Minute      // in which a node must take a MiB
)

// diskStreams serves the contents of images' disks to nodes that install them.
type diskStreams struct {
	store *cow.Store
	token func(token string) (x attempt, ok bool)
	find  func(ref string) (images.Image, error)
	tell  func(boot.Entry)
	log   *slog.Logger
	path  string // of the record of digests

	approved func(node string) bool

	turns   chan struct{}
	making  sync.Mutex // a digest: one volume is read at a time
	mu      sync.Mutex
	digests map[string]string // by volume: golden volumes never change
}

// diskSource is the contents of an image's disk as a node gets them.
type diskSource struct {
	digest     string
	bytes      int64
	partitions []agentlink.Partition
}

const digestsVersion = 1

type digestsFile struct {
	Version int               `json:"version"`
	Digests map[string]string `json:"digests"`
}

// openDiskStreams makes d ready, with the digests that it made before.
func openDiskStreams(d *diskStreams) (*diskStreams, error) {
	d.turns, d.digests = make(chan struct{}, maxStreams), map[string]string{}
	b, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return d, nil
	}
	if err != nil {
		return nil, fmt.Errorf("digests of disks: %w", err)
	}
	var f digestsFile
	if json.Unmarshal(b, &f) == nil && f.Version == digestsVersion && f.Digests != nil {
		d.digests = f.Digests // anything else is made again
	}
	return d, nil
}

// source gives what a node is told of an image's disk. The digest of a disk that
// was never installed is made now, which reads it once.
func (d *diskStreams) source(ctx context.Context, img images.Image) (diskSource, error) {
	dev, err := d.store.OpenVolume(img.Volume)
	if err != nil {
		return diskSource{}, err
	}
	defer dev.Close()
	s := diskSource{bytes: img.SizeBytes}
	if img.RootPartition != 0 {
		parts, err := images.Partitions(dev, img.SizeBytes)
		if err != nil {
			return s, err
		}
		for _, p := range parts {
			s.partitions = append(s.partitions, agentlink.Partition{Number: p.Number, Offset: p.Offset, Bytes: p.Bytes})
		}
	}
	if s.digest = d.known(img.Volume); s.digest != "" {
		return s, nil
	}
	d.making.Lock()
	defer d.making.Unlock()
	if s.digest = d.known(img.Volume); s.digest != "" {
		return s, nil
	}
	if s.digest, err = diskstream.Digest(ctx, dev, img.SizeBytes, nil); err != nil {
		return s, fmt.Errorf("digest of %s: %w", img.Ref(), err)
	}
	return s, d.keep(img.Volume, s.digest)
}

// known gives the digest of a volume if it was made before.
func (d *diskStreams) known(volume string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.digests[volume]
}

func (d *diskStreams) keep(volume, digest string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.digests[volume] = digest
	b, err := json.Marshal(digestsFile{Version: digestsVersion, Digests: d.digests})
	if err == nil {
		err = writeFile(d.path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("digests of disks: %w", err)
	}
	return nil
}

// diskDigest gives the digest of an image's disk, "" when it is not known.
func (b *boots) diskDigest(image string) string {
	img, err := b.images.Resolve(image)
	if err != nil || img.Volume == "" {
		return ""
	}
	return b.disks.known(img.Volume)
}

// before has the streams answered before other boot paths.
func (d *diskStreams) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token, ok := strings.CutPrefix(r.URL.Path, streamPath); ok {
			d.serve(w, r, token)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (d *diskStreams) serve(w http.ResponseWriter, r *http.Request, token string) {
	refuse := func(status int, text string) {
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, text, status)
	}
	x, ok := d.token(token)
	switch {
	case !ok || x.Mode != forInstall || !d.approved(x.Node):
		refuse(http.StatusForbidden, "this token opens no disk")
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", "GET")
		refuse(http.StatusMethodNotAllowed, "a disk is fetched with GET")
		return
	}
	from, err := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
	if r.URL.Query().Get("from") == "" {
		from, err = 0, nil
	}
	img, ierr := d.find(x.Image)
	if err != nil || ierr != nil || from < 0 || from >= img.SizeBytes || from%diskstream.ChunkSize != 0 {
		d.log.WarnContext(r.Context(), "a disk cannot be sent", "node", x.Node, "image", x.Image, "from", from, "err", errors.Join(err, ierr))
		refuse(http.StatusBadRequest, "there is nothing to send from there")
		return
	}
	select {
	case d.turns <- struct{}{}:
		defer func() { <-d.turns }()
	case <-time.After(streamWait):
		refuse(http.StatusServiceUnavailable, "other nodes are being installed; ask again")
		return
	case <-r.Context().Done():
		return
	}
	d.send(w, r, x, img, from)
}

func (d *diskStreams) send(w http.ResponseWriter, r *http.Request, x attempt, img images.Image, from int64) {
	began := time.Now()
	src, err := d.source(r.Context(), img)
	if err == nil {
		var dev interface {
			ReadAt(p []byte, off int64) (int, error)
			Close() error
		}
		if dev, err = d.store.OpenVolume(img.Volume); err == nil {
			defer dev.Close()
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Cache-Control", "no-store")
			out := &paced{w: w, control: http.NewResponseController(w)}
			_, err = diskstream.Encode(r.Context(), out, dev, img.SizeBytes, from, src.digest)
			d.told(x, img, from, out.sent, time.Since(began), err)
			if err != nil {
				panic(http.ErrAbortHandler) // a whole answer would look like the end
			}
			return
		}
	}
	d.log.ErrorContext(r.Context(), "a disk cannot be sent", "node", x.Node, "image", img.Ref(), "err", err)
	http.Error(w, "the appliance cannot send this disk now", http.StatusServiceUnavailable)
}

func (d *diskStreams) told(x attempt, img images.Image, from, sent int64, took time.Duration, err error) {
	text := fmt.Sprintf("%s from %d MiB on: %d MiB sent in %s", img.Ref(), from>>20, sent>>20, took.Round(time.Millisecond))
	if err != nil {
		text += "; the node went away and may go on"
	}
	d.log.Info("disk sent", "node", x.Node, "image", img.Ref(), "from", from, "bytes", sent, "took", took, "err", err)
	for _, mac := range x.MACs[:min(1, len(x.MACs))] {
		d.tell(boot.Entry{
			At: time.Now(), MAC: mac, Protocol: boot.HTTP, Node: x.Node, Request: "GET " + streamPath + boot.ShortToken(x.BootToken), Answer: "200",
			Reason: boot.Reason{Rule: boot.RuleFile, Text: "sends its disk: " + text},
		})
	}
}

// paced ends a stream that nobody takes.
type paced struct {
	w       http.ResponseWriter
	control *http.ResponseController
	sent    int64
	until   int64 // the deadline holds until so much was sent
}

func (p *paced) Write(b []byte) (int, error) {
	if p.sent >= p.until {
		if err := p.control.SetWriteDeadline(time.Now().Add(streamStall)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return 0, err
		}
		p.until = p.sent + 1<<20
	}
	n, err := p.w.Write(b)
	p.sent += int64(n)
	return n, err
}

// rootFile gives the file of a root that runs from memory.
func rootFile(img images.Image) (bootFile, bool) {
	switch {
	case img.Volume != "":
		return bootFile{}, false
	case img.RootPath != "":
		return bootFile{img.RootPath, img.Root.Digest, img.Root.Size}, true
	case img.InitrdPath != "":
		return bootFile{img.InitrdPath, img.Initrd.Digest, img.Initrd.Size}, true
	}
	return bootFile{}, false
}

// noRoot is the refusal of a way that has no root to give.
func noRoot(img images.Image) error {
	return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the image has no root that runs from memory", Where: img.Ref(), Fix: "import a squashfs, or a kernel with an initrd"}
}
