package httpboot

import (
	"io"
	"net/http"
	"sync"
)

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

// counter counts the bytes of an answer and keeps sendfile working.
type counter struct {
	http.ResponseWriter
	status int
	n      int64
	err    error
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.note(int64(n), err)
	return n, err
}

// ReadFrom lets net/http use sendfile(2).
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.note(n, err)
	return n, err
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counter) note(n int64, err error) {
	c.n += n
	if err != nil && c.err == nil {
		c.err = err
	}
}

func (c *counter) code() int {
	if c.status == 0 {
		return http.StatusOK
	}
	return c.status
}
