package httpboot

import (
	"io"
	"math"
	"net/http"
	"time"
)

// slice is how much of a file goes out under one deadline; fastSlice to a machine
// that took so much at so much a second or more, which saves a tenth of the
// processor's time. Socket buffers are smaller: they do not make a machine fast.
const (
	slice     = 1 << 20
	fastSlice = 16 << 20
)

// counter counts the bytes of an answer. It keeps sendfile(2) working, and gives
// every slice of the answer its own deadline: a firmware may be slow for many
// minutes, a client that takes nothing is cut.
type counter struct {
	http.ResponseWriter
	stall  time.Duration
	status int
	n      int64
	err    error
}

// extend begins a new deadline. A writer without deadlines (of a test) has none.
func (c *counter) extend() {
	_ = http.NewResponseController(c.ResponseWriter).SetWriteDeadline(time.Now().Add(c.stall))
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(b []byte) (int, error) {
	c.extend()
	n, err := c.ResponseWriter.Write(b)
	c.note(int64(n), err)
	return n, err
}

// ReadFrom lets net/http use sendfile(2), which it does for an *os.File below
// one io.LimitedReader and no more.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	src, left := r, int64(math.MaxInt64)
	if l, ok := r.(*io.LimitedReader); ok {
		src, left = l.R, l.N
	}
	var done int64
	for start := time.Now(); done < left; {
		c.extend()
		want := min(slice, left-done)
		if done >= fastSlice && float64(done) >= fastSlice*time.Since(start).Seconds() {
			want = min(fastSlice, left-done)
		}
		n, err := io.Copy(c.ResponseWriter, &io.LimitedReader{R: src, N: want})
		done += n
		c.note(n, err)
		if err != nil {
			return done, err
		}
		if n < want {
			break
		}
	}
	return done, nil
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
