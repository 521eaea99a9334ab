package cow

import (
	"sync"
	"sync/atomic"
)

// cache holds clean nodes of the maps of all volumes, up to a number of bytes.
// What was not used since the hand last passed goes first (the clock algorithm).
type cache struct {
	limit int64
	plant plant

	mu    sync.RWMutex
	nodes map[uint32]*cached // by place
	ring  []*cached
	hand  int
	bytes int64
}

type cached struct {
	n    *node
	used atomic.Bool
	at   int // in ring
}

func newCache(limit int64, p plant) *cache {
	return &cache{limit: limit, plant: p, nodes: map[uint32]*cached{}}
}

// get gives the node of this level that was written under r. A place can be
// written again, so the checksum decides too.
func (c *cache) get(r ref, level uint8) *node {
	c.mu.RLock()
	defer c.mu.RUnlock()
	x := c.nodes[r.place]
	if x == nil || x.n.level != level || x.n.at != r && c.plant != plantStaleCache {
		return nil
	}
	if !x.used.Load() {
		x.used.Store(true)
	}
	return x.n
}

// add enters a clean node.
func (c *cache) add(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := c.nodes[n.at.place]; x != nil {
		if c.plant == plantStaleCache {
			return
		}
		c.remove(x)
	}
	x := &cached{n: n, at: len(c.ring)}
	c.nodes[n.at.place] = x
	c.ring = append(c.ring, x)
	c.bytes += n.size()
	for c.bytes > c.limit && len(c.ring) > 1 {
		c.evict(x)
	}
}

// evict removes one node, not keep.
func (c *cache) evict(keep *cached) {
	for {
		if c.hand >= len(c.ring) {
			c.hand = 0
		}
		x := c.ring[c.hand]
		if x != keep && !x.used.Swap(false) {
			c.remove(x)
			return
		}
		c.hand++
	}
}

// remove takes the last of the ring into the place of x.
func (c *cache) remove(x *cached) {
	last := c.ring[len(c.ring)-1]
	c.ring[x.at], last.at = last, x.at
	c.ring[len(c.ring)-1] = nil
	c.ring = c.ring[:len(c.ring)-1]
	delete(c.nodes, x.n.at.place)
	c.bytes -= x.n.size()
}

// drop forgets what was at a place that became free.
func (c *cache) drop(place uint32) {
	if c.plant == plantStaleCache {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if x := c.nodes[place]; x != nil {
		c.remove(x)
	}
}
