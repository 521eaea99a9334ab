package nic

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
)

// earlyProbe is a probe for an address that is needed soon. It goes on listening
// until Add takes it over, so that nobody takes the address in between unseen.
type earlyProbe struct {
	conn   *packet.Conn
	probed chan struct{} // closed when the probes were sent and waited for
	taken  chan struct{} // closed by Add
	ended  chan struct{} // closed when nobody reads conn any more; then err is valid
	err    error
	cancel context.CancelFunc
}

// Probe begins to probe for an address that Add will need. It ends with ctx.
func (a *Addresses) Probe(ctx context.Context, p netip.Prefix) {
	if !p.Addr().Is4() {
		return
	}
	conn, err := a.openARP()
	if err != nil {
		return // Add says why
	}
	ctx, cancel := context.WithCancel(ctx)
	e := &earlyProbe{conn: conn, probed: make(chan struct{}), taken: make(chan struct{}), ended: make(chan struct{}), cancel: cancel}
	a.mu.Lock()
	old := a.probes[p]
	a.probes[p] = e
	a.mu.Unlock()
	if old != nil {
		old.cancel()
	}
	go func() {
		defer close(e.ended)
		e.err = a.probe(ctx, conn, p.Addr())
		close(e.probed)
		if e.err == nil {
			e.err = a.listen(ctx, e, p.Addr())
		}
		if ctx.Err() != nil {
			_ = conn.Close()
		}
	}()
}

// listen reads what others say of the address until Add takes over.
func (a *Addresses) listen(ctx context.Context, e *earlyProbe, addr netip.Addr) error {
	stop := context.AfterFunc(ctx, func() { _ = e.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_ = e.conn.SetReadDeadline(time.Time{})
	select {
	case <-e.taken: // before the deadline was taken away
		return nil
	default:
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := e.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		if q, err := parseARP(buf[:n]); err == nil && q.conflicts(addr, a.link.MAC) {
			return inUse(addr, q.senderMAC)
		}
	}
}

// probed gives a socket on which the address was probed for, and nobody was
// heard: that of an early probe if there is one.
func (a *Addresses) probed(ctx context.Context, p netip.Prefix) (*packet.Conn, error) {
	a.mu.Lock()
	e := a.probes[p]
	delete(a.probes, p)
	a.mu.Unlock()
	if e == nil {
		conn, err := a.openARP()
		if err != nil {
			return nil, err
		}
		if err := a.probe(ctx, conn, p.Addr()); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		return conn, nil
	}
	select {
	case <-e.probed:
	case <-ctx.Done():
		e.cancel()
		return nil, ctx.Err()
	}
	close(e.taken)
	_ = e.conn.SetReadDeadline(time.Unix(1, 0))
	<-e.ended
	defer e.cancel()
	if e.err != nil {
		return nil, errors.Join(e.err, e.conn.Close())
	}
	return e.conn, nil
}
