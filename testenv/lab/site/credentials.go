package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hotspare/storage"
)

// Credentials are everything that an initiator needs to log in to a volume. They
// are plain text: tests look for them where they must not be.
type Credentials struct{ Initiator, User, Secret, Target string }

// Credentials reads those of the live grant of a volume from a copy of the
// appliance's table, as a thief of the node's memory would have them.
func (s *Site) Credentials(ctx context.Context, volume string) (c Credentials, err error) {
	table, err := os.ReadFile(filepath.Join(s.opts.State, "exports.db"))
	if err != nil {
		return c, err
	}
	dir, err := os.MkdirTemp("", "hotspare-exports-")
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	copied := filepath.Join(dir, "exports.db")
	if err := os.WriteFile(copied, table, 0o600); err != nil {
		return c, err
	}
	snap, err := s.Snapshot(ctx)
	if err != nil {
		return c, err
	}
	uids := noVolumes{}
	for _, v := range snap.Volumes {
		uids[v.Name] = v.Target[strings.LastIndex(v.Target, ":")+1:]
	}
	x, err := storage.OpenExports(copied, storage.Options{Volumes: uids})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, x.Close()) }()
	live, ok := x.Live(volume)
	if !ok {
		return c, fmt.Errorf("%s has no live grant", volume)
	}
	target, err := x.TargetName(volume)
	if err != nil {
		return c, err
	}
	e, err := x.Find(live.Initiator, target)
	if err != nil {
		return c, err
	}
	return Credentials{live.Initiator, e.User, e.Secret.Reveal(), target}, nil
}

// noVolumes has identities and no devices: the copy is only read.
type noVolumes map[string]string

func (noVolumes) OpenVolume(name string) (storage.Device, error) {
	return nil, fmt.Errorf("%s: not here", name)
}

func (v noVolumes) VolumeUID(name string) (string, error) { return v[name], nil }
