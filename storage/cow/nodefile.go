package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

// The map file is a head of 64 bytes in a unit of 256 (magic 8, version 4, CRC32C
// in the last 4) and then nodes, each in a run of units, its place. A checkpoint
// writes nodes to free places only. The places that it makes free are given out
// again when it is durable.
const (
	mapName     = "map"
	mapMagic    = "hscowmap"
	mapVersion  = 2
	mapHeadSize = 64
	unitSize    = 256
	mapSlack    = 4 << 20 // free space in the file that is not worth giving back
)

func mapHead() []byte {
	h := make([]byte, mapHeadSize)
	copy(h, mapMagic)
	binary.LittleEndian.PutUint32(h[8:], mapVersion)
	binary.LittleEndian.PutUint32(h[60:], checksum(h[:60]))
	return h
}

func checkMapHead(b []byte) error {
	if len(b) < mapHeadSize || string(b[:8]) != mapMagic || checksum(b[:60]) != binary.LittleEndian.Uint32(b[60:]) {
		return fmt.Errorf("%w: head of %s", errCodec, mapName)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != mapVersion {
		return fmt.Errorf("%w: %s has version %d", errVersion, mapName, v)
	}
	return nil
}

func unitsOf(size int) uint8 { return uint8((size + unitSize - 1) / unitSize) }

func placeOff(place uint32) int64 { return int64(place) * unitSize }

// readNode reads and checks a node. It leaves the cache alone.
func (s *Store) readNode(w want) (*node, error) {
	buf := make([]byte, maxNode)
	if err := readFull(s.mapFile, buf, placeOff(w.at.place)); err != nil {
		return nil, fmt.Errorf("cow: read of a map node: %w", err)
	}
	size := int64(binary.LittleEndian.Uint32(buf)) + nodeHead
	if size > maxNode || checksum(buf[:size]) != w.at.sum {
		return nil, fmt.Errorf("%w: node at byte %d of %q does not match its checksum", errCodec, placeOff(w.at.place), mapName)
	}
	n, err := decodeNode(buf[nodeHead:size])
	if err != nil {
		return nil, err
	}
	if n.level != w.level {
		return nil, fmt.Errorf("%w: node at byte %d of %q has level %d, not %d", errCodec, placeOff(w.at.place), mapName, n.level, w.level)
	}
	n.at, n.units = w.at, unitsOf(int(size))
	return n, nil
}

// fetcher loads the nodes that one walk misses.
type fetcher struct {
	last  want
	tries int
}

// fetch loads a node into the cache and pins it. Between the walk that missed
// the node and the read, the node may have been replaced and its place written
// again; then the walk finds another one. Only who asks again for the same node
// hears that it is damaged.
func (f *fetcher) fetch(s *Store, w want, pin *pins) error {
	n, err := s.readNode(w)
	switch {
	case err == nil:
		s.cache.add(n)
		pin[w.level] = n
		return nil
	case errors.Is(err, errCodec) && (f.last != w || f.tries < 3):
		if f.last != w {
			f.last, f.tries = w, 0
		}
		f.tries++
		return nil
	}
	return err
}

// run is a run of units.
type run struct {
	place uint32
	units uint8
}

// grave is a node that no tree of a volume has any more. A changed one has no
// place yet, but a checkpoint under way may give it one.
type grave struct {
	n     *node
	place run
}

// places says which units of the map file are in use.
type places struct {
	plant plant

	mu     sync.Mutex
	busy   bitmap
	cursor uint32
	// dead are nodes that the next checkpoint does not need. dying are places
	// that the checkpoint under way does not need, held those that none needs but
	// that a mark may still read, while holds is above 0.
	dead  []grave
	dying []run
	held  []run
	holds int
}

// take gives a place of so many units.
func (p *places) take(units uint8) uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at := p.cursor; ; {
		at = p.busy.firstClear(at)
		n := uint8(1)
		for n < units && !p.busy.has(at+uint32(n)) {
			n++
		}
		if n == units {
			for i := range uint32(units) {
				p.busy.set(at + i)
			}
			p.cursor = at + uint32(units)
			return at
		}
		at += uint32(n)
	}
}

// bury notes that a volume has replaced a node that nobody else has.
func (p *places) bury(n *node, clean bool) {
	g := grave{n: n}
	if clean {
		g = grave{place: run{n.at.place, n.units}}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = append(p.dead, g)
	if p.plant == plantPlaceEarly && clean {
		p.release([]run{g.place})
		p.dead = p.dead[:len(p.dead)-1]
		p.cursor = min(p.cursor, g.place.place)
	}
}

// buryPlaces notes that no tree has these.
func (p *places) buryPlaces(rs []run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range rs {
		p.dead = append(p.dead, grave{place: r})
	}
}

// begin takes what the next checkpoint does not need; places are taken from the
// start of the file again, so that it does not grow more than it must.
func (p *places) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.dead {
		switch {
		case g.n == nil:
			p.dying = append(p.dying, g.place)
		case g.n.at != (ref{}):
			p.dying = append(p.dying, run{g.n.at.place, g.n.units})
		}
	}
	p.dead = nil
	p.cursor = 0
}

// needed gives the units that the checkpoint under way needs.
func (p *places) needed() bitmap {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.busy.clone()
	for _, rs := range [][]run{p.dying, p.held} {
		for _, r := range rs {
			for i := range uint32(r.units) {
				b.clear(r.place + i)
			}
		}
	}
	return b
}

// commit is called when the checkpoint is durable. It gives the places that
// became free.
func (p *places) commit() []run {
	p.mu.Lock()
	defer p.mu.Unlock()
	free := p.dying
	p.dying = nil
	if p.holds > 0 {
		p.held = append(p.held, free...)
		return nil
	}
	p.release(free)
	return free
}

// undo gives places back that a failed checkpoint took.
func (p *places) undo(rs []run) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release(rs)
}

func (p *places) release(rs []run) {
	for _, r := range rs {
		for i := range uint32(r.units) {
			p.busy.clear(r.place + i)
		}
	}
}

// hold keeps places from being given out again, until as many calls of unhold.
// It gives the units that trees have now.
func (p *places) hold() bitmap {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holds++
	b := p.busy.clone()
	clearRun := func(r run) {
		for i := range uint32(r.units) {
			b.clear(r.place + i)
		}
	}
	for _, g := range p.dead {
		if g.n == nil {
			clearRun(g.place)
		} else if g.n.at != (ref{}) {
			clearRun(run{g.n.at.place, g.n.units})
		}
	}
	for _, rs := range [][]run{p.dying, p.held} {
		for _, r := range rs {
			clearRun(r)
		}
	}
	return b
}

func (p *places) unhold() []run {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holds--
	if p.holds > 0 {
		return nil
	}
	free := p.held
	p.held = nil
	p.release(free)
	return free
}

// nodeWriter writes changed nodes to free places.
type nodeWriter struct {
	s       *Store
	buf     []byte
	bufAt   uint32
	written []*node
}

// put writes n and the changed nodes below it, where they are not written yet.
func (w *nodeWriter) put(n *node) error {
	if n.at != (ref{}) {
		return nil
	}
	for _, k := range n.kids {
		if k != nil {
			if err := w.put(k); err != nil {
				return err
			}
		}
	}
	b := encodeNode(n)
	units := unitsOf(len(b))
	at := w.s.places.take(units)
	n.at, n.units = ref{at, checksum(b)}, units
	w.written = append(w.written, n)
	if next := int64(w.bufAt)*unitSize + int64(len(w.buf)); next != placeOff(at) || len(w.buf) >= 1<<20 {
		if err := w.flush(); err != nil {
			return err
		}
		w.bufAt = at
	}
	w.buf = append(w.buf, b...)
	w.buf = append(w.buf, make([]byte, int(units)*unitSize-len(b))...)
	return nil
}

func (w *nodeWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	_, err := w.s.mapFile.WriteAt(w.buf, placeOff(w.bufAt))
	w.buf = w.buf[:0]
	return err
}

// undo makes the written nodes changed again.
func (w *nodeWriter) undo() {
	var rs []run
	for _, n := range w.written {
		rs = append(rs, run{n.at.place, n.units})
		n.at, n.units = ref{}, 0
	}
	w.s.places.undo(rs)
}

// freed forgets what became free, and gives space of the file back when much of
// it is free.
func (s *Store) freed(rs []run) {
	for _, r := range rs {
		s.cache.drop(r.place)
	}
	p := &s.places
	p.mu.Lock()
	defer p.mu.Unlock() // nobody takes a place while its hole is punched
	s.mapFree += int64(len(rs))
	end := p.busy.end()
	free := (int64(end) - p.busy.count) * unitSize
	if free < mapSlack || free < p.busy.count*unitSize || s.mapFree*unitSize < mapSlack/4 {
		return
	}
	s.mapFree = 0
	const page = 4096 / unitSize
	for at := uint32(page); at < end; {
		at = (p.busy.firstClear(at) + page - 1) / page * page
		stop, ok := p.busy.firstSet(at)
		if !ok {
			stop = end
		}
		if stop/page > at/page {
			if err := s.mapFile.Punch(placeOff(at), placeOff(stop/page*page)-placeOff(at)); err != nil {
				s.opts.Log.Warn("volume store: free space of the map was not given back", "dir", s.dir, "err", err)
				return
			}
		}
		at = max(stop, at+1)
	}
}
