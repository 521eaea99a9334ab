package iscsi

import (
	"encoding/json"
	"fmt"

	"hotspare/storage"
)

// Reservations that survive a restart (APTPL, SPC-4, 5.12.3) are kept with the
// grant in the exports, so that they are gone in the transaction that revokes
// it. The generation starts anew, as after a power-on.
const (
	keptReservations = "reservations"
	keptVersion      = 1
)

// keptState is the durable form.
type keptState struct {
	Version    int                `json:"version"`
	Registered []keptRegistration `json:"registered"`
	Holder     string             `json:"holder,omitempty"`
	Kind       byte               `json:"kind,omitempty"`
}

type keptRegistration struct {
	Port string `json:"port"`
	Key  uint64 `json:"key"`
}

// keep makes next durable, or forgets what is durable if next is not to persist;
// u.mu is held.
func (u *unit) keep(a *storage.Attachment, next *reservations) error {
	if !next.persists {
		if !u.reservations.persists {
			return nil
		}
		return a.Keep(keptReservations, nil)
	}
	s := keptState{Version: keptVersion, Holder: next.holder, Kind: next.kind}
	for _, g := range next.registered {
		s.Registered = append(s.Registered, keptRegistration{g.port, g.key})
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("iscsi: encode reservations: %w", err)
	}
	return a.Keep(keptReservations, b)
}

// restore takes up what an earlier target kept; u.mu is held. What cannot be
// read keeps everybody out: the reservation may exclude the one who asks.
func (u *unit) restore(a *storage.Attachment) error {
	if u.restored {
		return nil
	}
	b, err := a.Kept(keptReservations)
	if err != nil {
		return err
	}
	if b != nil {
		r, err := parseKept(b)
		if err != nil {
			return err
		}
		u.reservations = r
	}
	u.restored = true
	return nil
}

func parseKept(b []byte) (reservations, error) {
	var s keptState
	if err := json.Unmarshal(b, &s); err != nil {
		return reservations{}, fmt.Errorf("iscsi: decode reservations: %w", err)
	}
	if s.Version != keptVersion {
		return reservations{}, fmt.Errorf("iscsi: reservations of version %d, this program knows %d", s.Version, keptVersion)
	}
	r := reservations{persists: true, holder: s.Holder, kind: s.Kind}
	for _, g := range s.Registered {
		r.registered = append(r.registered, registration{g.Port, g.Key})
	}
	return r, nil
}
