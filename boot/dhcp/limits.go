package dhcp

import (
	"sync"
	"time"

	"hotspare/boot"
)

// Limits keep a flood from starving the machines that matter. What is over a
// limit is dropped unread and counted; the sender asks again by itself.
type Limits struct {
	// PerMachine is how many packets a second one MAC address may send, after a
	// burst of three times as many. 0: 10.
	PerMachine int
	// Unknown is how many packets a second all machines together may send that are
	// not known, after a burst of eight times as many. 0: 500.
	Unknown int
}

// tracked bounds the MAC addresses that are remembered at once.
const tracked = 1 << 13

func (l Limits) withDefaults() Limits {
	if l.PerMachine <= 0 {
		l.PerMachine = 10
	}
	if l.Unknown <= 0 {
		l.Unknown = 500
	}
	return l
}

// bucket is a token bucket: it begins full.
type bucket struct {
	used float64 // tokens that are missing
	at   time.Time
}

func (b *bucket) take(rate, burst float64, now time.Time) bool {
	if d := now.Sub(b.at); d > 0 {
		b.used, b.at = max(0, b.used-rate*d.Seconds()), now
	}
	if b.used+1 > burst {
		return false
	}
	b.used++
	return true
}

// limiter decides whether a packet is worked on at all.
type limiter struct {
	Limits
	mu      sync.Mutex
	machine map[boot.MAC]*bucket
	known   map[boot.MAC]struct{} // whom the Director has named
	unknown bucket
}

func newLimiter(l Limits) *limiter {
	return &limiter{Limits: l, machine: map[boot.MAC]*bucket{}, known: map[boot.MAC]struct{}{}}
}

// verdicts of admit.
type admission int

const (
	admitted   admission = iota
	tooMany              // of this machine
	tooForeign           // of unknown machines together
)

// admit takes a token for a packet of m.
func (l *limiter) admit(m boot.MAC, isNode func(boot.MAC) bool, now time.Time) admission {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.machine[m]
	if b == nil {
		if len(l.machine) >= tracked {
			l.forget(now)
		}
		b = &bucket{}
		l.machine[m] = b
	}
	rate := float64(l.PerMachine)
	if !b.take(rate, 3*rate, now) {
		return tooMany
	}
	if _, ok := l.known[m]; ok || isNode(m) {
		return admitted
	}
	if all := float64(l.Unknown); !l.unknown.take(all, 8*all, now) {
		return tooForeign
	}
	return admitted
}

// forget makes room: the machines whose buckets are full again count as never
// seen; if there are none, an eighth of all are forgotten.
func (l *limiter) forget(now time.Time) {
	for m, b := range l.machine {
		if now.Sub(b.at).Seconds()*float64(l.PerMachine) >= b.used {
			delete(l.machine, m)
		}
	}
	for m := range l.machine {
		if len(l.machine) <= tracked*7/8 {
			return
		}
		delete(l.machine, m)
	}
}

// learn notes whether the Director knows m.
func (l *limiter) learn(m boot.MAC, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !known {
		delete(l.known, m)
		return
	}
	if len(l.known) >= tracked {
		for old := range l.known {
			delete(l.known, old)
			break
		}
	}
	l.known[m] = struct{}{}
}
