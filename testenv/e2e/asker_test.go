package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/mdlayher/packet"

	"hotspare/testenv/lab"
)

var service = netip.MustParseAddr("10.77.0.50")

// asker is a client on the segment that asks all the time who owns the service
// address (ARP, RFC 826) and which instance of the database answers on it. An
// instance is told by the time at which it started. Once a later owner or
// instance has answered, no earlier one may (SAFETY S1).
type asker struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu      sync.Mutex
	owners  []answer
	starts  []answer
	stale   []string
	broken  error
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// answer is a run of equal answers.
type answer struct {
	who         string
	first, last time.Time
	times       int
}

func startAsker(t *testing.T, ns string) *asker {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	a := &asker{dial: lab.Dialer(ns), cancel: cancel}
	var conn *packet.Conn
	var mac net.HardwareAddr
	err := lab.InNamespace(ns, func() error {
		ifi, err := net.InterfaceByName(lab.ClientInterface)
		if err != nil {
			return err
		}
		mac = ifi.HardwareAddr
		conn, err = packet.Listen(ifi, packet.Datagram, 0x0806, nil)
		return err
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	a.running.Go(func() { a.listen(conn) })
	a.running.Go(func() { a.askOwner(ctx, conn, mac) })
	a.running.Go(func() { a.askDatabase(ctx) })
	t.Cleanup(func() {
		cancel()
		conn.Close()
		a.running.Wait()
	})
	return a
}

// askOwner sends an ARP request ten times a second.
func (a *asker) askOwner(ctx context.Context, conn *packet.Conn, mac net.HardwareAddr) {
	q := make([]byte, 28)
	binary.BigEndian.PutUint16(q[0:], 1)
	binary.BigEndian.PutUint16(q[2:], 0x0800)
	q[4], q[5] = 6, 4
	binary.BigEndian.PutUint16(q[6:], 1)
	copy(q[8:14], mac)
	copy(q[14:18], netip.MustParseAddr("10.77.0.2").AsSlice())
	copy(q[24:28], service.AsSlice())
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := conn.WriteTo(q, &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}); err != nil && ctx.Err() == nil {
			a.fault(fmt.Errorf("ARP: %w", err))
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// listen notes everybody who says that the service address is his, asked or not.
func (a *asker) listen(conn *packet.Conn) {
	buf := make([]byte, 1514)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		if n >= 28 && bytes.Equal(buf[14:18], service.AsSlice()) {
			a.note(&a.owners, "owner "+net.HardwareAddr(buf[8:14]).String())
		}
	}
}

// askDatabase asks for the instance's start over a new connection each time.
func (a *asker) askDatabase(ctx context.Context) {
	for ctx.Err() == nil {
		var start time.Time
		look, cancel := context.WithTimeout(ctx, time.Second)
		conn, err := a.connect(look)
		if err == nil {
			err = conn.QueryRow(look, "select pg_postmaster_start_time()").Scan(&start)
			conn.Close(look)
		}
		cancel()
		if err == nil {
			a.note(&a.starts, "instance of "+start.UTC().Format(time.RFC3339Nano))
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (a *asker) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("postgres://orders@%s:5432/orders?sslmode=disable", service))
	if err != nil {
		return nil, err
	}
	cfg.DialFunc = a.dial
	return pgx.ConnectConfig(ctx, cfg)
}

// count gives how many rows of a client are there, up to a sequence number.
func (a *asker) count(ctx context.Context, client string, upTo int64) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := a.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, "select count(*) from entries where client = $1 and seq <= $2", client, upTo).Scan(&n)
	return n, err
}

// note adds an answer; one that was followed by another already is stale.
func (a *asker) note(list *[]answer, who string) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(*list); n > 0 && (*list)[n-1].who == who {
		(*list)[n-1].last = now
		(*list)[n-1].times++
		return
	}
	for i := range *list {
		if (*list)[i].who == who {
			a.stale = append(a.stale, fmt.Sprintf("%s answered at %s, after %s had", who, now.Format(time.StampMilli), (*list)[len(*list)-1].who))
		}
	}
	*list = append(*list, answer{who: who, first: now, last: now, times: 1})
}

func (a *asker) fault(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = err
}

// check says what was wrong so far, and fails when too little was seen.
func (a *asker) check(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		t.Fatal(a.broken)
	}
	for _, s := range a.stale {
		t.Errorf("stale answer: %s", s)
	}
	if len(a.owners) == 0 || len(a.starts) == 0 {
		t.Errorf("nobody was seen to answer: owners %v, instances %v", a.owners, a.starts)
	}
}

// returned forgets that a node may not answer: it was free and is chosen anew.
func (a *asker) returned() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.owners); n > 1 {
		a.owners = a.owners[n-1:]
	}
}

// seen gives the numbers of owners and instances that answered.
func (a *asker) seen() (owners, instances int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.owners), len(a.starts)
}
