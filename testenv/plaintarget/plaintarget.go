// Package plaintarget serves plain volumes of the real store by the real target,
// without an appliance: for any initiator that is pointed at it, for conformance
// suites and for benchmarks. Everybody who proves the CHAP secret, or everybody
// if there is none, may use every volume.
//
// A control socket takes commands while it serves (control.go). It leaves the
// bytes to storage/cow, the wire to storage/iscsi and the fence to storage.
package plaintarget

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"hotspare"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/storage/iscsi"
)

// namePrefix begins the iSCSI name of every volume; the volume's name follows.
const namePrefix = "iqn.2026-11.io.hotspare:"

// Options of Run.
type Options struct {
	Dir      string           // of the store; made if it is missing; not used with Memory
	Listen   string           // host:port; port 0 takes a free one
	Portals  []string         // further ones, as Listen
	Volumes  map[string]int64 // name to size in bytes; missing ones are created
	ReadOnly []string         // names that are served read-only
	Chap     Credentials      // what initiators prove; none if empty
	Mutual   Credentials      // what the target proves when asked; none if empty
	Memory   bool             // keep all in memory: it ends with the run
	Socket   string           // path of the control socket; none if empty
	Out      io.Writer        // gets one JSON line per volume, then "ready"
	Log      *slog.Logger     // nil discards
}

func (o Options) withDefaults() Options {
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	bad := func(what, where, fix string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: what, Where: where, Fix: fix}
	}
	for name := range o.Volumes {
		if err := checkName(name); err != nil {
			return err
		}
	}
	switch {
	case o.Dir == "" && !o.Memory:
		return bad("the target has no directory", "dir", "name one, or keep the volumes in memory")
	case o.Mutual.User != "" && o.Chap.User == "":
		return bad("the target would prove itself to initiators that prove nothing", "mutual", "give chap too")
	case o.Mutual.User != "" && o.Mutual.Secret.Equal(o.Chap.Secret):
		return bad("both directions of CHAP have the same secret", "chap, mutual", "give each its own")
	}
	return nil
}

// checkName allows what an iSCSI name can end in (RFC 7143, 4.2.7.2), and upper
// case and the underscore, which initiators take too.
func checkName(name string) error {
	ok := name != "" && len(name) <= 128
	for i, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (letter || i > 0 && (c == '.' || c == '-' || c == '_'))
	}
	if !ok {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "a volume cannot have that name", Where: fmt.Sprintf("volume %.80q", name),
			Why: "it becomes the end of an iSCSI name", Fix: "use letters, digits and . - _, a letter or digit first, at most 128"}
	}
	return nil
}

// server is one run.
type server struct {
	opts    Options
	store   *cow.Store
	exports *storage.Exports
	portals []string
	began   time.Time

	mu       sync.Mutex // one command at a time
	readings map[string]reading
}

// Run serves until ctx ends, then closes the store and returns nil.
func Run(ctx context.Context, o Options) (err error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return err
	}
	var cleanup cleanup
	defer func() { err = errors.Join(err, cleanup.run()) }()
	if o.Memory {
		if o.Dir, err = memoryDir(); err != nil {
			return err
		}
		cleanup.add(func() error { return os.RemoveAll(o.Dir) })
	}
	s := &server{opts: o, began: time.Now(), readings: map[string]reading{}}
	if s.store, err = cow.Open(ctx, o.Dir, cow.Options{Log: o.Log}); err != nil {
		return err
	}
	cleanup.add(s.store.Close)
	s.exports, err = storage.OpenExports(filepath.Join(o.Dir, "exports.db"), storage.Options{
		Volumes: s.store, Lab: true, Log: o.Log,
		TargetName: func(volume, _ string) string { return namePrefix + volume },
	})
	if err != nil {
		return err
	}
	cleanup.add(s.exports.Close)
	listeners, err := listen(append([]string{o.Listen}, o.Portals...), &cleanup)
	if err != nil {
		return err
	}
	for _, ln := range listeners {
		s.portals = append(s.portals, ln.Addr().String())
	}
	lines, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	var control net.Listener
	if o.Socket != "" {
		if control, err = listenControl(o.Socket); err != nil {
			return err
		}
		cleanup.add(func() error { return ignoreClosed(control.Close()) })
	}
	if err := announce(o.Out, lines); err != nil {
		return err
	}
	return s.serve(ctx, listeners, control)
}

// serve runs the target on all portals, and the control socket if there is one,
// until ctx ends or one of them fails.
func (s *server) serve(ctx context.Context, listeners []net.Listener, control net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	target := iscsi.New(iscsi.Options{Directory: s.exports, Log: s.opts.Log})
	errs := make([]error, len(listeners)+1)
	var parts sync.WaitGroup
	for i, ln := range listeners {
		parts.Go(func() {
			defer cancel()
			errs[i] = target.Serve(ctx, ln)
		})
	}
	if control != nil {
		parts.Go(func() {
			defer cancel()
			errs[len(listeners)] = s.serveControl(ctx, control)
		})
	}
	parts.Wait()
	return errors.Join(errs...)
}

// listen opens the portals. Each is closed by cleanup, unless it was before.
func listen(addresses []string, cleanup *cleanup) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		// Sessions are pinged by the target: TCP need not do it too.
		ln, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp", address)
		if err != nil {
			return nil, &hotspare.Error{Code: hotspare.CodePortTaken, What: "the target cannot listen", Where: address,
				Fix: "choose another address", Err: err}
		}
		cleanup.add(func() error { return ignoreClosed(ln.Close()) })
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// cleanup undoes what Run has done, the last first.
type cleanup []func() error

func (c *cleanup) add(undo func() error) { *c = append(*c, undo) }

func (c *cleanup) run() error {
	var errs []error
	for _, undo := range slices.Backward(*c) {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

// Volume is what Run prints for a volume, and what the control socket answers.
type Volume struct {
	Name     string   `json:"name"`
	Portal   string   `json:"portal"`
	Portals  []string `json:"portals,omitempty"` // all of them, where there are several
	IQN      string   `json:"iqn"`
	LUN      int      `json:"lun"`
	Size     int64    `json:"size"` // bytes
	Epoch    uint64   `json:"epoch"`
	Granted  bool     `json:"granted"` // whether initiators may log in
	ReadOnly bool     `json:"read_only,omitempty"`
}

func announce(out io.Writer, lines []Volume) error {
	enc := json.NewEncoder(out)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("plaintarget: %w", err)
		}
	}
	if _, err := fmt.Fprintln(out, "ready"); err != nil {
		return fmt.Errorf("plaintarget: %w", err)
	}
	return nil
}

// prepare makes the volumes that are missing and grants all that are there.
func (s *server) prepare(ctx context.Context) ([]Volume, error) {
	for _, name := range slices.Sorted(maps.Keys(s.opts.Volumes)) {
		if _, err := s.store.Stat(name); hotspare.CodeOf(err) == hotspare.CodeNotFound {
			if err := s.store.Create(ctx, name, s.opts.Volumes[name]); err != nil {
				return nil, err
			}
			if err := s.grant(ctx, name, s.exports.Epoch(name)+1); err != nil {
				return nil, err
			}
		}
	}
	all := s.store.List()
	for _, name := range s.opts.ReadOnly {
		if !slices.ContainsFunc(all, func(i cow.Info) bool { return i.Name == name }) {
			return nil, &hotspare.Error{Code: hotspare.CodeNotFound, What: "no such volume to serve read-only", Where: "volume " + name, Fix: "name one that is served"}
		}
	}
	if len(all) == 0 {
		return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "there is no volume to serve", Where: s.opts.Dir, Fix: "give at least one, as NAME=SIZE"}
	}
	var lines []Volume
	for _, i := range all {
		if err := s.grantAgain(ctx, i.Name); err != nil {
			return nil, err
		}
		l, err := s.describe(i.Name)
		if err != nil {
			return nil, err
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// grantAgain brings the grant that an earlier run left in line with the options
// of this one. The same options change nothing, so the initiators of that run
// come back as if nothing had happened. A volume that was revoked stays so.
func (s *server) grantAgain(ctx context.Context, name string) error {
	_, live := s.exports.Live(name)
	epoch := s.exports.Epoch(name)
	if !live && epoch > 0 {
		return nil
	}
	err := s.grant(ctx, name, max(epoch, 1))
	if hotspare.CodeOf(err) != hotspare.CodeVolumeBusy {
		return err
	}
	rev, err := s.exports.Revoke(ctx, name, epoch+1)
	if err != nil {
		return err
	}
	return s.grant(ctx, name, rev.Epoch)
}

// grant lets everybody who proves the secret use the volume.
func (s *server) grant(ctx context.Context, name string, epoch uint64) error {
	i, err := s.store.Stat(name)
	if err != nil {
		return err
	}
	return s.exports.Grant(ctx, storage.Grant{
		Volume: name, Epoch: epoch, Initiator: storage.AnyInitiator,
		User: s.opts.Chap.User, Secret: s.opts.Chap.Secret, MutualUser: s.opts.Mutual.User, MutualSecret: s.opts.Mutual.Secret,
		ReadOnly: i.ReadOnly || slices.Contains(s.opts.ReadOnly, name),
	})
}

func (s *server) describe(name string) (Volume, error) {
	i, err := s.store.Stat(name)
	if err != nil {
		return Volume{}, err
	}
	iqn, err := s.exports.TargetName(name)
	if err != nil {
		return Volume{}, err
	}
	g, live := s.exports.Live(name)
	v := Volume{Name: name, Portal: s.portals[0], IQN: iqn, Size: i.Size, Epoch: s.exports.Epoch(name), Granted: live, ReadOnly: live && g.ReadOnly}
	if len(s.portals) > 1 {
		v.Portals = s.portals
	}
	return v, nil
}
