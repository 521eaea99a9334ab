package iscsi

import (
	"encoding/hex"
	"sync"
	"sync/atomic"

	"hotspare/storage"
)

// unit is the state of one logical unit that its sessions share: who is there,
// reservations, and the lock of commands that must be atomic. It belongs to one
// volume under one epoch.
type unit struct {
	epoch uint64
	// atomic is held shared by writes and alone by COMPARE AND WRITE and ORWRITE.
	atomic sync.RWMutex

	mu           sync.Mutex
	sessions     map[*lu]struct{}
	reservations reservations
	restored     bool                // what an earlier target kept was looked at
	kept         []byte              // what is kept now
	told         map[string]struct{} // ports that know of lost reservations; nil: none were lost
	protected    bool                // the SWP bit of the control mode page
}

func newUnit(epoch uint64) *unit {
	return &unit{epoch: epoch, sessions: map[*lu]struct{}{}}
}

func (u *unit) members() []*lu {
	u.mu.Lock()
	defer u.mu.Unlock()
	ls := make([]*lu, 0, len(u.sessions))
	for l := range u.sessions {
		ls = append(ls, l)
	}
	return ls
}

// reset aborts all tasks of all sessions and tells every one, the asking one
// too (SAM-5, 6.3.3). Persistent reservations stay, the others go (SPC-4, 5.12).
func (u *unit) reset() {
	for _, l := range u.members() {
		l.c.abortAll()
		l.attend(attentionReset)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reservations.legacy = nil
	u.protected = false
}

// powerCycle ends all sessions, as a target cold reset demands (RFC 7143,
// 11.5.1), and with them the registrations that do not survive a power loss. It
// does not wait for the sessions.
func (u *unit) powerCycle() {
	u.mu.Lock()
	if !u.reservations.persists {
		u.reservations = reservations{}
	}
	u.mu.Unlock()
	for _, l := range u.members() {
		l.c.revoked()
	}
}

// lu is a session's view of the logical unit: the nexus.
type lu struct {
	unit *unit
	att  *storage.Attachment
	c    *conn
	port string // the initiator port's name, as reservations know it

	size    atomic.Int64 // bytes of the volume that the initiator knows of
	waiting atomic.Int32 // number of attentions, to pass by mu

	mu         sync.Mutex
	attentions []sense                // unit attentions to report, oldest first
	copies     map[byte]*copyProgress // of EXTENDED COPY, by list identifier
}

func newLU(u *unit, a *storage.Attachment, c *conn) (*lu, error) {
	l := &lu{unit: u, att: a, c: c, port: c.nexus.initiator + ",i,0x" + hex.EncodeToString(c.nexus.isid[:])}
	l.size.Store(a.Size())
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.restore(a); err != nil {
		return nil, err
	}
	u.sessions[l] = struct{}{}
	u.tellLoss(l)
	return l, nil
}

// leave ends the session's part in the unit. Its registrations stay (SPC-4,
// 5.12.5), its legacy reservation goes.
func (l *lu) leave() {
	l.unit.mu.Lock()
	defer l.unit.mu.Unlock()
	delete(l.unit.sessions, l)
	if l.unit.reservations.legacy == l {
		l.unit.reservations.legacy = nil
	}
}

// maxAttentions bounds what waits for a session that asks nothing.
const maxAttentions = 8

// attend notes a unit attention.
func (l *lu) attend(s sense) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.attentions) < maxAttentions {
		l.attentions = append(l.attentions, s)
		l.waiting.Store(int32(len(l.attentions)))
	}
}

// attention takes the oldest unit attention. That the volume has grown is found
// here: every session learns of it with its next command.
func (l *lu) attention() (sense, bool) {
	if now, known := l.att.Size(), l.size.Load(); now != known && l.size.CompareAndSwap(known, now) {
		l.attend(attentionCapacity)
	}
	if l.waiting.Load() == 0 {
		return sense{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.attentions) == 0 {
		return sense{}, false
	}
	s := l.attentions[0]
	l.attentions = l.attentions[1:]
	l.waiting.Store(int32(len(l.attentions)))
	return s, true
}

func (l *lu) blocks() uint64 { return uint64(l.att.Size()) / blockSize }
