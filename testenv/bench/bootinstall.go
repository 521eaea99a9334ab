package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"hotspare/cmd/hotspare-agent/disk"
	"hotspare/haengine/agentlink/diskstream"
	"hotspare/images"
	"hotspare/storage/cow"
)

// installFigures sets the installation of an image on a disk against zstd and dd
// with the same contents: a sparse disk of 10 GiB with 2 GiB of data, to a loop
// device over a sparse file. Ours comes from the volume store by HTTP, compressed
// as it is sent, and is written by the agent's code; the peer's was compressed
// before, and is read from a file. All end with the disk durable. A dd that skips
// zeros is right on a disk that is empty alone. The agent then
// reads the disk back and compares its digest, which the peer does not: that is
// a figure of its own.
func installFigures(ctx context.Context, o options) (_ []figure, err error) {
	dir, err := os.MkdirTemp(o.work, "install-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	size, data := int64(importDisk), int64(importData)
	if o.quick {
		size, data = size/10, data/10
	}
	packed := filepath.Join(dir, "disk.zst")
	volume, err := makeInstall(ctx, dir, packed, size, data)
	if err != nil {
		return nil, err
	}
	server, src, err := startInstall(ctx, dir, volume, size)
	if err != nil {
		return nil, err
	}
	defer server.end()
	mib := float64(data) / (1 << 20)
	written := &series{name: "installation of a sparse disk, data", unit: "MiB/s", peer: "zstd -dc | dd conv=fsync", better: "higher", goal: 0.8}
	sparse := &series{name: "the same, beside a dd that skips zeros", unit: "MiB/s", peer: "zstd -dc | dd conv=sparse,fsync", better: "higher", goal: 0.8}
	verified := &series{name: "the same, read back and verified", unit: "MiB/s", peer: "zstd -dc | dd conv=fsync"}
	for round := range max(1, o.rounds) {
		var own, check, other, holes time.Duration
		beside := func(took *time.Duration, conv string) func() error {
			return func() error {
				return onLoop(ctx, dir, size, func(device string) (err error) {
					*took, err = timed(func() error {
						return command(ctx, "bash", "-ec", "set -o pipefail; zstd -qdc "+packed+" | dd of="+device+" bs=1M conv="+conv+" status=none")
					})
					return errors.Join(err, src.verify(ctx, device))
				})
			}
		}
		turns := []func() error{
			func() error {
				return onLoop(ctx, dir, size, func(device string) (err error) {
					if own, err = timed(func() error { return src.install(ctx, device) }); err != nil {
						return err
					}
					check, err = timed(func() error { return src.verify(ctx, device) })
					return err
				})
			},
			beside(&other, "fsync"), beside(&holes, "sparse,fsync"),
		}
		if round%2 == 1 { // nobody always comes first
			slices.Reverse(turns)
		}
		for _, turn := range turns {
			if err := errors.Join(turn(), settle(dir)); err != nil {
				return nil, err
			}
		}
		if o.verbose {
			fmt.Printf("%-9s written in %6.2f s, read back in %6.2f s; zstd and dd %6.2f s, skipping zeros %6.2f s\n", "install", own.Seconds(), check.Seconds(), other.Seconds(), holes.Seconds())
		}
		written.own, written.other = append(written.own, mib/own.Seconds()), append(written.other, mib/other.Seconds())
		sparse.own, sparse.other = append(sparse.own, mib/own.Seconds()), append(sparse.other, mib/holes.Seconds())
		verified.own, verified.other = append(verified.own, mib/(own+check).Seconds()), append(verified.other, mib/other.Seconds())
	}
	return []figure{written.figure(), sparse.figure(), verified.figure()}, nil
}

// makeInstall makes the peer's file and the image in a volume store, of the same
// contents, and gives the image's volume.
func makeInstall(ctx context.Context, dir, packed string, size, data int64) (volume string, err error) {
	raw := filepath.Join(dir, "disk.raw")
	if err := makeRawDisk(raw, size, data); err != nil {
		return "", err
	}
	defer os.Remove(raw)
	if err := command(ctx, "zstd", "-q", "-T0", raw, "-o", packed); err != nil {
		return "", fmt.Errorf("%w (Debian package zstd)", err)
	}
	store, err := cow.Open(ctx, filepath.Join(dir, "volumes"), cow.Options{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	repo, err := images.Open(ctx, filepath.Join(dir, "images"), images.Options{Disks: importDisks{store}})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, repo.Close()) }()
	img, err := repo.Import(ctx, images.ImportRequest{Name: "bench", Path: raw, Format: images.FormatRaw})
	return img.Volume, err
}

// onLoop gives a fresh disk for the time of do.
func onLoop(ctx context.Context, dir string, size int64, do func(device string) error) (err error) {
	file := filepath.Join(dir, "target")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", "--direct-io=on", file).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	device := strings.TrimSpace(string(out))
	defer func() { err = errors.Join(err, command(context.WithoutCancel(ctx), "losetup", "--detach", device)) }()
	return do(device)
}

// installSource is the appliance's end of an installation.
type installSource struct {
	URL    string
	Digest string
	Bytes  int64
}

// recordEvery is the agent's: so much is written before the disk's record says so,
// in a stream of its own.
const recordEvery = 256 << 20

var errInstallPiece = errors.New("a piece was written")

// install is what the agent does: streams of recordEvery, each made durable.
func (s installSource) install(ctx context.Context, device string) (err error) {
	dev, err := disk.OpenLocal(device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	part := &disk.Part{Disk: dev, Length: s.Bytes}
	for at := int64(0); ; at &^= diskstream.ChunkSize - 1 {
		at, err = s.stream(ctx, part, at)
		if serr := dev.Sync(); serr != nil {
			return serr
		}
		if !errors.Is(err, errInstallPiece) {
			return err
		}
	}
}

func (s installSource) stream(ctx context.Context, part *disk.Part, from int64) (int64, error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"?from="+strconv.FormatInt(from, 10), nil)
	if err != nil {
		return from, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return from, err
	}
	defer res.Body.Close()
	return diskstream.Decode(ctx, res.Body, part, s.Bytes, from, s.Digest, func(offset int64) {
		if offset-from >= recordEvery && offset < s.Bytes {
			end(errInstallPiece)
		}
	})
}

// verify is the agent's reading back.
func (s installSource) verify(ctx context.Context, device string) (err error) {
	dev, err := disk.OpenLocal(device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	got, err := diskstream.Digest(ctx, &disk.Part{Disk: dev, Length: s.Bytes}, s.Bytes, nil)
	if err == nil && got != s.Digest {
		err = fmt.Errorf("what was read back has the digest %s instead of %s", got, s.Digest)
	}
	return err
}

// startInstall starts the appliance's end in a process of its own. The digest of a
// volume is made once for all its installations: before it gets ready.
func startInstall(ctx context.Context, dir, volume string, size int64) (*peer, installSource, error) {
	p := &peer{name: ours, cmd: exec.CommandContext(ctx, "/proc/self/exe", "serve-install", "-dir", filepath.Join(dir, "volumes"), "-volume", volume, "-bytes", strconv.FormatInt(size, 10))}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, installSource{}, err
	}
	if err := p.start(); err != nil {
		return nil, installSource{}, err
	}
	var s installSource
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		err = errors.New("the source of the installation did not get ready")
	} else {
		err = json.Unmarshal(lines.Bytes(), &s)
	}
	if err != nil {
		p.end()
	}
	return p, s, err
}

// serveInstall is `bench serve-install`: it sends a volume as the appliance does.
func serveInstall(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("serve-install", flag.ContinueOnError)
	dir := fs.String("dir", "", "")
	volume := fs.String("volume", "", "")
	size := fs.Int64("bytes", 0, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	store, err := cow.Open(ctx, *dir, cow.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	dev, err := store.OpenVolume(*volume)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	digest, err := diskstream.Digest(ctx, dev, *size, nil)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := strconv.ParseInt(r.URL.Query().Get("from"), 10, 64)
		if err == nil {
			_, err = diskstream.Encode(r.Context(), w, dev, *size, from, digest)
		}
		if err != nil {
			panic(http.ErrAbortHandler) // a whole answer would look like the end
		}
	})}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := json.NewEncoder(os.Stdout).Encode(installSource{URL: "http://" + ln.Addr().String() + "/", Digest: digest, Bytes: *size}); err != nil {
		return err
	}
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
