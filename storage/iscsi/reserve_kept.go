package iscsi

import (
	"bytes"
	"encoding/json"
	"fmt"

	"hotspare"
	"hotspare/storage"
)

// Reservations that survive a restart (APTPL, SPC-4, 5.12.3) are kept with the
// grant in the exports, so that they are gone in the transaction that revokes
// it. The generation starts anew, as after a power-on.
const (
	keptReservations = "reservations"
	keptVersion      = 1
)

// keptState is the durable form. Of reservations that do not survive it holds
// only that there were some: those who had them are to hear of it.
type keptState struct {
	Version    int                `json:"version"`
	Registered []keptRegistration `json:"registered,omitempty"`
	Holder     string             `json:"holder,omitempty"`
	Kind       byte               `json:"kind,omitempty"`
	Volatile   bool               `json:"volatile,omitempty"`
}

type keptRegistration struct {
	Port string `json:"port"`
	Key  uint64 `json:"key"`
}

// keep makes next durable as far as it is to be; u.mu is held.
func (u *unit) keep(a *storage.Attachment, next *reservations) error {
	b, err := next.kept()
	if err != nil {
		return err
	}
	if bytes.Equal(b, u.kept) {
		return nil
	}
	if err := a.Keep(keptReservations, b); err != nil {
		return err
	}
	u.kept = b
	return nil
}

// kept gives the durable form of r, nil if nothing is to be kept.
func (r *reservations) kept() ([]byte, error) {
	if len(r.registered) == 0 && !r.persists {
		return nil, nil
	}
	s := keptState{Version: keptVersion, Volatile: !r.persists}
	if r.persists {
		s.Holder, s.Kind = r.holder, r.kind
		for _, g := range r.registered {
			s.Registered = append(s.Registered, keptRegistration{g.port, g.key})
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("iscsi: encode reservations: %w", err)
	}
	return b, nil
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
		r, lost, err := parseKept(b)
		if err != nil {
			return &hotspare.Error{Code: hotspare.CodeCorrupt, What: "the persistent reservations of a volume cannot be read",
				Where: "volume " + a.Export().Volume, Fix: "revoke the grant and make a new one: its reservations end with it", Err: err}
		}
		u.reservations, u.kept = r, b
		if lost {
			u.told = map[string]struct{}{}
		}
	}
	u.restored = true
	return nil
}

// parseKept reads the durable form; lost says that there were reservations that
// did not survive.
func parseKept(b []byte) (r reservations, lost bool, err error) {
	var s keptState
	if err := json.Unmarshal(b, &s); err != nil {
		return r, false, fmt.Errorf("iscsi: decode reservations: %w", err)
	}
	if s.Version != keptVersion {
		return r, false, fmt.Errorf("iscsi: reservations of version %d, this program knows %d", s.Version, keptVersion)
	}
	if s.Volatile {
		return r, true, nil
	}
	r = reservations{persists: true, holder: s.Holder, kind: s.Kind}
	for _, g := range s.Registered {
		r.registered = append(r.registered, registration{g.Port, g.Key})
	}
	return r, false, nil
}

// tellLoss lets every initiator port hear once, at its first log-in, that the
// target was restarted and lost reservations by it (SAM-5, 5.14); u.mu is held.
func (u *unit) tellLoss(l *lu) {
	if u.told == nil || len(u.told) >= maxRegistrations {
		return
	}
	if _, told := u.told[l.port]; !told {
		u.told[l.port] = struct{}{}
		l.attend(attentionPowerOn)
	}
}
