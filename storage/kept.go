package storage

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
)

// maxKept bounds what Keep takes, in bytes.
const maxKept = 64 << 10

// kept is what a target keeps for a grant. It is part of the volume's record, so
// a revocation takes it away in the transaction that makes the epoch durable.
type kept struct {
	Epoch  uint64            `json:"epoch"`
	Values map[string][]byte `json:"values"`
}

// Keep stores value under key for the session's grant, durably: it is there for
// every later session of the grant, also after a restart, until the grant is
// revoked. An empty value removes the key. It passes the session's gate: after a
// revocation it fails with ErrRevoked and changes nothing.
func (a *Attachment) Keep(key string, value []byte) error {
	if len(value) > maxKept {
		return fmt.Errorf("storage: keep %s: %d bytes, at most %d", key, len(value), maxKept)
	}
	if !a.gate.enter() {
		return ErrRevoked
	}
	defer a.gate.leave()
	v := a.volume
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.rec.Epoch != a.export.Epoch || v.rec.Grant == nil {
		return ErrRevoked
	}
	next := v.rec
	next.Kept = &kept{Epoch: a.export.Epoch, Values: map[string][]byte{}}
	if v.rec.Kept != nil {
		maps.Copy(next.Kept.Values, v.rec.Kept.Values)
	}
	if len(value) == 0 {
		delete(next.Kept.Values, key)
	} else {
		next.Kept.Values[key] = bytes.Clone(value)
	}
	if len(next.Kept.Values) == 0 {
		next.Kept = nil
	}
	if err := a.exports.save(v.name, next); err != nil {
		return fmt.Errorf("storage: keep %s of %s: %w", key, v.name, err)
	}
	v.rec = next
	return nil
}

// Kept gives what Keep stored under key for the session's grant, nil if there is
// nothing.
func (a *Attachment) Kept(key string) ([]byte, error) {
	a.volume.mu.Lock()
	defer a.volume.mu.Unlock()
	k := a.volume.rec.Kept
	switch {
	case k == nil:
		return nil, nil
	case k.Epoch != a.export.Epoch:
		return nil, errors.New("storage: what is kept belongs to another epoch")
	}
	return bytes.Clone(k.Values[key]), nil
}
