package storage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Revocation is the evidence that no session below an epoch can write a volume
// any more. It exists only as the result of a Revoke that went all the way.
type Revocation struct {
	Volume   string    // volume
	Below    uint64    // every epoch below this one is excluded
	Epoch    uint64    // durable epoch of the volume after the revocation
	Sessions int       // sessions that were closed by this call
	Drained  int64     // commands that were under way and had to finish
	At       time.Time // when the last of it was true
}

// Revoke ends every right on the volume below the epoch. It returns nil only
// when all of this is true, in this order:
//
//  1. the epoch is durable and the live grant, if it is lower, is removed in
//     the same transaction: from here on old credentials are refused, also after
//     a crash at any later point;
//  2. the gates of all lower sessions are shut: no command that begins now
//     reaches the volume;
//  3. every command that was under way has landed or failed;
//  4. the sessions are closed by the target, and with them their persistent
//     reservations, which live and die with (volume, epoch);
//  5. what landed is flushed.
//
// A session or grant at or above the epoch is left alone. Calling again is safe
// and waits for what an interrupted call left. When ctx ends first, the error
// says so; the rights are gone nonetheless, but there is no evidence yet.
func (e *Exports) Revoke(ctx context.Context, volume string, below uint64) (Revocation, error) {
	v, err := e.row(volume)
	if err != nil {
		return Revocation{}, err
	}
	rev := Revocation{Volume: volume, Below: below}
	cut, err := e.exclude(v, &rev)
	if err != nil {
		return Revocation{}, fmt.Errorf("storage: revoke %s below %d: %w", volume, below, err)
	}
	for _, a := range cut {
		a.cut()
	}
	for _, a := range cut {
		for _, done := range []<-chan struct{}{a.gate.drained, a.ended} {
			select {
			case <-done:
			case <-ctx.Done():
				return Revocation{}, fmt.Errorf("storage: revoke %s below %d: waiting for the session of %s: %w",
					volume, below, a.initiator, context.Cause(ctx))
			}
		}
	}
	rev.Sessions = len(cut)
	if len(cut) > 0 {
		if err := e.flush(volume); err != nil {
			return Revocation{}, fmt.Errorf("storage: revoke %s below %d: %w", volume, below, err)
		}
	}
	rev.At = e.opts.Now()
	e.opts.Log.Info("volume revoked", "volume", volume, "below", below, "epoch", rev.Epoch, "sessions", rev.Sessions, "drained", rev.Drained)
	return rev, nil
}

// exclude does steps 1 and 2 and gives the sessions to wait for.
func (e *Exports) exclude(v *volume, rev *Revocation) ([]*Attachment, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if next, changed := v.rec.revoked(rev.Below); changed {
		if err := e.save(v.name, next); err != nil {
			return nil, err
		}
		v.rec = next
	}
	rev.Epoch = v.rec.Epoch
	var cut []*Attachment
	for a := range v.attached {
		if a.export.Epoch < rev.Below {
			rev.Drained += a.gate.shut()
			cut = append(cut, a)
		}
	}
	return cut, nil
}

// flush makes what the revoked sessions wrote durable, so that the next owner
// builds on ground that stays.
func (e *Exports) flush(volume string) error {
	dev, err := e.opts.Volumes.OpenVolume(volume)
	if err != nil {
		return err
	}
	err = dev.Flush()
	if cerr := dev.Close(); err == nil {
		err = cerr
	}
	return err
}

// Session is one live session, for people.
type Session struct {
	Initiator string
	Address   string
	Node      string
	BootID    string
	Epoch     uint64
	Since     time.Time
	LastWrite time.Time // zero if it never wrote
	InFlight  int64     // its commands under way now
}

// Sessions gives the live sessions of a volume.
func (e *Exports) Sessions(volume string) []Session {
	e.mu.Lock()
	v := e.volumes[volume]
	e.mu.Unlock()
	if v == nil {
		return nil
	}
	return e.sessions(v)
}

// AllSessions gives the live sessions of all volumes that have any, by volume.
func (e *Exports) AllSessions() map[string][]Session {
	e.mu.Lock()
	vs := slices.Collect(maps.Values(e.volumes))
	e.mu.Unlock()
	out := map[string][]Session{}
	for _, v := range vs {
		if ss := e.sessions(v); len(ss) > 0 {
			out[v.name] = ss
		}
	}
	return out
}

func (e *Exports) sessions(v *volume) []Session {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []Session
	for a := range v.attached {
		s := Session{Initiator: a.initiator, Address: a.address, Node: a.node, BootID: a.bootID, Epoch: a.export.Epoch, Since: a.since, InFlight: a.gate.inside()}
		s.LastWrite = e.watch.wall(a.lastWrite.Load())
		out = append(out, s)
	}
	return out
}
