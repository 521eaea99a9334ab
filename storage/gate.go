package storage

import (
	"sync"
	"sync/atomic"
)

// gate lets commands of one session in until it is shut, and tells when the
// last one that was let in has left. The state is one word, the number of
// commands inside plus shutBit, so entering costs two atomic adds.
type gate struct {
	state   atomic.Int64
	once    sync.Once
	drained chan struct{} // closed when the gate is shut and empty
}

const shutBit = int64(1) << 62

func newGate() *gate { return &gate{drained: make(chan struct{})} }

// enter says whether a command may run. After true, leave must follow.
func (g *gate) enter() bool {
	if g.state.Add(1) < shutBit {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.state.Add(-1) == shutBit {
		g.once.Do(func() { close(g.drained) })
	}
}

// shut closes the gate for good: every enter that begins after it fails. It
// gives the number of commands inside at that moment. Shutting twice is fine.
func (g *gate) shut() int64 {
	for {
		s := g.state.Load()
		if s >= shutBit {
			return s - shutBit
		}
		if g.state.CompareAndSwap(s, s+shutBit) {
			if s == 0 {
				g.once.Do(func() { close(g.drained) })
			}
			return s
		}
	}
}

func (g *gate) isShut() bool { return g.state.Load() >= shutBit }

// inside gives the number of commands that are under way.
func (g *gate) inside() int64 { return g.state.Load() &^ shutBit }
