package load

import (
	"context"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// database speaks as much of PostgreSQL's protocol (version 3, chapter 55 of its
// manual) as the client uses, and can die at an insert.
type database struct {
	t    *testing.T
	ln   net.Listener
	dies int64 // the insert with this number is stored and never acknowledged

	mu   sync.Mutex
	rows map[int64]string
}

func start(t *testing.T, dies int64) *database {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &database{t: t, ln: ln, dies: dies, rows: map[int64]string{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { d.serve(conn) })
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return d
}

func (d *database) serve(conn net.Conn) {
	defer conn.Close()
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() != nil {
		return
	}
	var args []string
	for {
		msg, err := b.Receive()
		if err != nil {
			return
		}
		switch m := msg.(type) {
		case *pgproto3.Parse:
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Bind:
			args = nil
			for _, p := range m.Parameters {
				args = append(args, string(p))
			}
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Describe:
			b.Send(d.describe(len(args)))
		case *pgproto3.Execute:
			if !d.execute(b, args) {
				return
			}
		case *pgproto3.Sync:
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if b.Flush() != nil {
				return
			}
		case *pgproto3.Terminate:
			return
		}
	}
}

func (d *database) describe(args int) pgproto3.BackendMessage {
	if args == 3 {
		return &pgproto3.NoData{}
	}
	return &pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{
		{Name: []byte("seq"), DataTypeOID: 20, DataTypeSize: 8}, {Name: []byte("body"), DataTypeOID: 25, DataTypeSize: -1},
	}}
}

func (d *database) execute(b *pgproto3.Backend, args []string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(args) == 3 {
		seq, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			d.t.Errorf("insert of %q", args)
			return false
		}
		d.rows[seq] = args[2]
		if seq == d.dies {
			return false
		}
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("INSERT 0 1")})
		return true
	}
	for seq, text := range d.rows {
		b.Send(&pgproto3.DataRow{Values: [][]byte{[]byte(strconv.FormatInt(seq, 10)), []byte(text)}})
	}
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT " + strconv.Itoa(len(d.rows)))})
	return true
}

func TestAnInsertWithoutAnAnswerIsNeitherAcknowledgedNorLost(t *testing.T) {
	d := start(t, 5)
	c := Start(t.Context(), Options{Address: d.ln.Addr().String(), Pause: time.Millisecond})
	defer c.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	begun := time.Now()
	if _, err := c.AckAfter(ctx, begun); err != nil {
		t.Fatal(err)
	}
	for len(c.Acks()) < 20 {
		if _, err := c.AckAfter(ctx, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	c.Stop()
	for _, a := range c.Acks() {
		if a.Seq == 5 {
			t.Error("the insert whose connection died counts as acknowledged")
		}
		if a.At.Before(a.Sent) {
			t.Errorf("insert %d was answered before it was sent", a.Seq)
		}
	}
	if n, err := c.Errors(); n == 0 || err == nil {
		t.Error("the death of the connection is not counted")
	}
	r, err := c.Verify(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// One row is there whose answer never came, and perhaps the one of Stop.
	if !r.OK() || r.Rows < r.Acked+1 || r.Rows > r.Acked+2 {
		t.Errorf("%+v: want nothing lost and one or two rows more than acknowledged", r)
	}
	// The same database after it forgot one, and changed one.
	lost := c.Acks()[7].Seq
	changed := c.Acks()[9].Seq
	d.mu.Lock()
	delete(d.rows, lost)
	d.rows[changed] = "something else"
	d.rows[1<<40] = "never sent"
	d.mu.Unlock()
	r, err = c.Verify(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if r.OK() || !slices.Equal(r.Lost, []int64{lost}) || !slices.Equal(r.Changed, []int64{changed}) || !slices.Equal(r.Strange, []int64{1 << 40}) {
		t.Errorf("a table that lost %d and changed %d gives %+v", lost, changed, r)
	}
}

func TestAServiceThatHangsIsGivenUpInTime(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := Start(t.Context(), Options{Address: ln.Addr().String(), Timeout: 50 * time.Millisecond})
	defer c.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if a, err := c.AckAfter(ctx, time.Time{}); err == nil {
		t.Fatalf("acknowledged: %+v", a)
	}
	if n, _ := c.Errors(); n < 3 {
		t.Errorf("%d attempts in 2 s with a timeout of 50 ms", n)
	}
}
