package httpboot

import "sync"

// maxTaken bounds the memory of spent tokens. A token lives ten minutes at most,
// so the oldest of this many is long dead.
const maxTaken = 8192

// taken remembers which tokens' join archives were served.
type taken struct {
	mu    sync.Mutex
	set   map[[32]byte]struct{}
	order [][32]byte
}

// take is true for the first caller with key only.
func (t *taken) take(key [32]byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.set[key]; ok {
		return false
	}
	if t.set == nil {
		t.set = map[[32]byte]struct{}{}
	}
	if len(t.order) >= maxTaken {
		delete(t.set, t.order[0])
		t.order = t.order[1:]
	}
	t.set[key] = struct{}{}
	t.order = append(t.order, key)
	return true
}

// giveBack forgets key, whose archive was not served after all.
func (t *taken) giveBack(key [32]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.set, key)
	for i := len(t.order) - 1; i >= 0; i-- {
		if t.order[i] == key {
			t.order = append(t.order[:i], t.order[i+1:]...)
			return
		}
	}
}
