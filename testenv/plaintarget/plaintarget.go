// Package plaintarget serves plain volumes of the real store by the real target,
// without an appliance: for any initiator that is pointed at it, for conformance
// suites and for benchmarks. Everybody who proves the CHAP secret, or everybody
// if there is none, may use every volume.
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
	"path/filepath"
	"slices"
	"strings"

	"hotspare"
	"hotspare/storage"
	"hotspare/storage/cow"
	"hotspare/storage/iscsi"
)

// Credentials are one direction of CHAP, written "user:secret".
type Credentials struct {
	User   string
	Secret hotspare.Secret
}

// ParseCredentials reads "user:secret"; "" gives none.
func ParseCredentials(s string) (Credentials, error) {
	if s == "" {
		return Credentials{}, nil
	}
	user, secret, ok := strings.Cut(s, ":")
	if !ok || user == "" || len(secret) < 12 {
		return Credentials{}, &hotspare.Error{Code: hotspare.CodeInvalid, What: "credentials are not understood", Where: "chap",
			Fix: "write user:secret with a secret of at least 12 bytes"}
	}
	return Credentials{User: user, Secret: hotspare.NewSecret(secret)}, nil
}

// Options of Run.
type Options struct {
	Dir      string           // of the store; made if it is missing
	Listen   string           // host:port; port 0 takes a free one
	Volumes  map[string]int64 // name to size in bytes; missing ones are created
	ReadOnly []string         // names that are served read-only
	Chap     Credentials      // what initiators prove; none if empty
	Mutual   Credentials      // what the target proves when asked; none if empty
	Out      io.Writer        // gets one JSON line per volume, then "ready"
	Log      *slog.Logger     // nil discards
}

// line is what Run prints for a volume.
type line struct {
	Name   string `json:"name"`
	Portal string `json:"portal"`
	IQN    string `json:"iqn"`
	LUN    int    `json:"lun"`
}

// Run serves until ctx ends, then closes the store and returns nil.
func Run(ctx context.Context, o Options) (err error) {
	if o.Out == nil {
		o.Out = io.Discard
	}
	store, err := cow.Open(ctx, o.Dir, cow.Options{Log: o.Log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	exports, err := storage.OpenExports(filepath.Join(o.Dir, "exports.db"), storage.Options{
		Volumes: store, Lab: true, Log: o.Log,
		TargetName: func(volume, _ string) string { return "iqn.2026-11.io.hotspare:" + volume },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, exports.Close()) }()
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return &hotspare.Error{Code: hotspare.CodePortTaken, What: "the target cannot listen", Where: o.Listen,
			Fix: "choose another address", Err: err}
	}
	defer ln.Close()
	lines, err := prepare(ctx, o, store, exports, ln.Addr().String())
	if err != nil {
		return err
	}
	target := iscsi.New(iscsi.Options{Directory: exports, Log: o.Log})
	enc := json.NewEncoder(o.Out)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("plaintarget: %w", err)
		}
	}
	if _, err := fmt.Fprintln(o.Out, "ready"); err != nil {
		return fmt.Errorf("plaintarget: %w", err)
	}
	return target.Serve(ctx, ln)
}

// prepare makes and grants the volumes.
func prepare(ctx context.Context, o Options, store *cow.Store, exports *storage.Exports, portal string) ([]line, error) {
	var lines []line
	for _, name := range slices.Sorted(maps.Keys(o.Volumes)) {
		if _, err := store.Stat(name); hotspare.CodeOf(err) == hotspare.CodeNotFound {
			if err := store.Create(ctx, name, o.Volumes[name]); err != nil {
				return nil, err
			}
		}
		// A run's grants may differ from the last one's: every run has its epoch.
		rev, err := exports.Revoke(ctx, name, exports.Epoch(name)+1)
		if err != nil {
			return nil, err
		}
		err = exports.Grant(ctx, storage.Grant{
			Volume: name, Epoch: rev.Epoch, Initiator: storage.AnyInitiator,
			User: o.Chap.User, Secret: o.Chap.Secret, MutualUser: o.Mutual.User, MutualSecret: o.Mutual.Secret,
			ReadOnly: slices.Contains(o.ReadOnly, name),
		})
		if err != nil {
			return nil, err
		}
		iqn, err := exports.TargetName(name)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line{Name: name, Portal: portal, IQN: iqn})
	}
	return lines, nil
}
