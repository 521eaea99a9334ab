// Package load is a client that inserts rows into the demo's database without
// pause, notes every insert that the database acknowledged, and later looks
// whether all of them are there (SAFETY S14, seen from where it matters). It
// knows the table that recipe orders makes, and nothing of the appliance.
package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options of a Client.
type Options struct {
	Address  string // numeric host:port of the service
	User     string // default orders
	Database string // default orders
	Name     string // of this client, in the rows; default client
	// Dial makes the connections, e.g. from inside a namespace. Default: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Timeout bounds one connect and one insert; default 1 s. A service that moved
	// is found again within about that time.
	Timeout time.Duration
	// Pause between two inserts; default 10 ms.
	Pause time.Duration
}

func (o Options) withDefaults() Options {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.User, "orders")
	def(&o.Database, "orders")
	def(&o.Name, "client")
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Pause == 0 {
		o.Pause = 10 * time.Millisecond
	}
	return o
}

// Ack is one insert that the database acknowledged.
type Ack struct {
	Seq  int64
	Sent time.Time
	At   time.Time
}

// Client inserts rows from Start to Stop.
type Client struct {
	opts   Options
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	seq     int64 // the last number that was tried; none is tried twice
	acks    []Ack
	errors  int
	lastErr error
	changed chan struct{} // closed and replaced at every acknowledged insert
}

// Start begins to insert, in a goroutine that Stop ends.
func Start(ctx context.Context, opts Options) *Client {
	ctx, cancel := context.WithCancel(ctx)
	c := &Client{opts: opts.withDefaults(), cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.run(ctx)
	}()
	return c
}

// Stop ends the inserting and waits for the last one.
func (c *Client) Stop() {
	c.cancel()
	<-c.done
}

// Acks gives the acknowledged inserts so far.
func (c *Client) Acks() []Ack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Ack(nil), c.acks...)
}

// Errors counts failed connects and inserts, and gives the last one.
func (c *Client) Errors() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.errors, c.lastErr
}

// AckAfter waits for an insert that was sent after a moment and acknowledged.
func (c *Client) AckAfter(ctx context.Context, after time.Time) (Ack, error) {
	for {
		c.mu.Lock()
		n := len(c.acks)
		if n > 0 && c.acks[n-1].Sent.After(after) {
			i := n - 1
			for i > 0 && c.acks[i-1].Sent.After(after) {
				i--
			}
			a := c.acks[i]
			c.mu.Unlock()
			return a, nil
		}
		changed, last := c.changed, c.lastErr
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return Ack{}, fmt.Errorf("no insert was acknowledged: %w (last: %w)", ctx.Err(), errOr(last))
		}
	}
}

func errOr(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

func (c *Client) run(ctx context.Context) {
	var conn *pgx.Conn
	defer func() { closeConn(conn) }()
	pause := time.NewTicker(c.opts.Pause)
	defer pause.Stop()
	for ctx.Err() == nil {
		var err error
		if conn == nil {
			conn, err = c.connect(ctx)
		}
		if err == nil {
			err = c.insert(ctx, conn)
		}
		if err != nil && ctx.Err() == nil {
			c.mu.Lock()
			c.errors++
			c.lastErr = err
			c.mu.Unlock()
			closeConn(conn)
			conn = nil
		}
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// closeConn ends a connection without waiting for a peer that may be dead.
func closeConn(conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	conn.Close(ctx) //nolint:errcheck // it is given up
}

func (c *Client) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig("postgres://" + c.opts.User + "@" + c.opts.Address + "/" + c.opts.Database + "?sslmode=disable")
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		return c.opts.Dial(ctx, network, address)
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip, nothing prepared on a server that may go
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	return pgx.ConnectConfig(ctx, cfg)
}

func (c *Client) insert(ctx context.Context, conn *pgx.Conn) error {
	c.mu.Lock()
	c.seq++
	seq := c.seq
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	sent := time.Now()
	tag, err := conn.Exec(ctx, "insert into entries (client, seq, body) values ($1, $2, $3)", c.opts.Name, seq, body(seq))
	if err != nil {
		return err
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("insert %d: %s", seq, tag)
	}
	c.mu.Lock()
	c.acks = append(c.acks, Ack{Seq: seq, Sent: sent, At: time.Now()})
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	return nil
}

// body is what row seq must hold.
func body(seq int64) string { return fmt.Sprintf("order %d of %x", seq, seq*2654435761) }

// Result is what Verify has found.
type Result struct {
	Acked   int     `json:"acked"`
	Rows    int     `json:"rows"`              // of this client in the table; more than Acked when an answer was lost
	Lost    []int64 `json:"lost,omitempty"`    // acknowledged, and not there
	Changed []int64 `json:"changed,omitempty"` // there with another content
	Strange []int64 `json:"strange,omitempty"` // never sent
}

// OK says that nothing acknowledged is missing and nothing else is there.
func (r Result) OK() bool { return len(r.Lost)+len(r.Changed)+len(r.Strange) == 0 }

// Verify reads the table and compares it with what was acknowledged. It is for
// a client that was stopped.
func (c *Client) Verify(ctx context.Context) (Result, error) {
	var conn *pgx.Conn
	for {
		var err error
		if conn, err = c.connect(ctx); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return Result{}, fmt.Errorf("verify: %w (last: %w)", ctx.Err(), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
	defer closeConn(conn)
	rows, err := conn.Query(ctx, "select seq, body from entries where client = $1", c.opts.Name)
	if err != nil {
		return Result{}, fmt.Errorf("verify: %w", err)
	}
	there := map[int64]string{}
	for rows.Next() {
		var seq int64
		var text string
		if err := rows.Scan(&seq, &text); err != nil {
			return Result{}, fmt.Errorf("verify: %w", err)
		}
		there[seq] = text
	}
	if err := rows.Err(); err != nil {
		return Result{}, fmt.Errorf("verify: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return compare(c.acks, c.seq, there), nil
}

func compare(acks []Ack, tried int64, there map[int64]string) Result {
	r := Result{Acked: len(acks), Rows: len(there)}
	for _, a := range acks {
		if _, ok := there[a.Seq]; !ok {
			r.Lost = append(r.Lost, a.Seq)
		}
	}
	for seq, text := range there {
		switch {
		case seq < 1 || seq > tried:
			r.Strange = append(r.Strange, seq)
		case text != body(seq):
			r.Changed = append(r.Changed, seq)
		}
	}
	return r
}
