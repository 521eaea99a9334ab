package main

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// Target is one log-in.
type Target struct {
	Portal             netip.AddrPort
	IQN                string
	LUN                uint64
	InitiatorName      string
	User               string
	Secret             hotspare.Secret
	ReplacementTimeout time.Duration
}

// DiskChange is what a disk session tells of its link to the target.
type DiskChange int

// The changes of a disk session.
const (
	DiskLost      DiskChange = iota // the link broke; recovery is under way
	DiskRecovered                   // logged in again
	DiskRefused                     // the target does not admit this grant any more
)

// DiskEvent is one change with its cause.
type DiskEvent struct {
	Change DiskChange
	Why    string
}

// DiskSession is one volume that is logged in. It recovers by itself.
type DiskSession interface {
	Device() string // e.g. /dev/sda
	Events() <-chan DiskEvent
	Logout(ctx context.Context) error
}

// Initiator logs in to volumes.
type Initiator interface {
	Login(ctx context.Context, t Target) (DiskSession, error)
}

func targetOf(v agentlink.Volume) Target {
	return Target{Portal: v.Portal, IQN: v.IQN, LUN: v.LUN, InitiatorName: v.Initiator, User: v.User, Secret: v.Secret}
}

// refusalGrace is how long a refused session may wait for the appliance's word
// that the grant still holds. An appliance that restarts may refuse for a moment.
const refusalGrace = 2 * time.Second

// diskHealth says whether the node may still count on its volumes.
type diskHealth struct {
	mu      sync.Mutex
	lost    map[string]time.Duration // volume -> since when
	refused map[string]time.Duration
	why     map[string]string
}

func newDiskHealth() *diskHealth {
	return &diskHealth{lost: map[string]time.Duration{}, refused: map[string]time.Duration{}, why: map[string]string{}}
}

func (h *diskHealth) note(volume string, e DiskEvent, now time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.why[volume] = e.Why
	switch e.Change {
	case DiskRecovered:
		delete(h.lost, volume)
		delete(h.refused, volume)
	case DiskRefused:
		if _, ok := h.refused[volume]; !ok {
			h.refused[volume] = now
		}
		fallthrough
	case DiskLost:
		if _, ok := h.lost[volume]; !ok {
			h.lost[volume] = now
		}
	}
}

// forget drops a volume that was logged out in good order.
func (h *diskHealth) forget(volume string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.lost, volume)
	delete(h.refused, volume)
}

// lostFor gives the longest loss.
func (h *diskHealth) lostFor(now time.Duration) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	var longest time.Duration
	for _, since := range h.lost {
		longest = max(longest, now-since)
	}
	return longest
}

// verdict says whether the service must be dropped, and why. A session may be lost
// for the policy's lease, or for the last one that was granted (span) if that is
// longer: before an announced restart the appliance grants leases that outlast it,
// and its target is away as long. granted is when the last heartbeat was sent that
// the appliance has granted.
func (h *diskHealth) verdict(now, lease, span, granted time.Duration) (why string, drop bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for volume, since := range h.refused {
		if now-since >= lease || (now-since >= refusalGrace && granted < since) {
			return "the target refuses volume " + volume + ": " + h.why[volume], true
		}
	}
	for volume, since := range h.lost {
		if now-since >= max(lease, span) {
			return "volume " + volume + " is lost for " + (now - since).Round(time.Millisecond).String() + ": " + h.why[volume], true
		}
	}
	return "", false
}
