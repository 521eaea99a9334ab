package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"hotspare/haengine/agentlink"
)

// Progress sends how far a long order is, if the link is up.
func (c *Client) Progress(p agentlink.Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.UpMillis == 0 {
		p.UpMillis = c.opt.Now().Milliseconds()
	}
	if c.conn != nil {
		_ = c.conn.send(agentlink.KindProgress, p)
	}
}

// ErrLinkDown says that there is no link to leave: the node stays.
var ErrLinkDown = errors.New("agentlink: the link is down")

// Leave gives the result of an order whose Order function has not returned, and
// ends the link for good once the appliance has read all that was sent: this
// boot ends. It returns when the appliance has closed its end, so nothing is
// under way on the wire any more. Without a live link it fails with ErrLinkDown,
// and the client goes on: the appliance would not know. After any other error the
// link is over as well.
func (c *Client) Leave(ctx context.Context, r agentlink.Result) error {
	c.mu.Lock()
	l := c.conn
	if l == nil {
		c.mu.Unlock()
		return ErrLinkDown
	}
	if err := l.send(agentlink.KindResult, r); err != nil {
		c.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrLinkDown, err)
	}
	c.leaving = true
	c.mu.Unlock()
	err := l.finish(ctx)
	l.close()
	return err
}

// finish sends what is queued and the end of the stream, and waits for the
// peer's.
func (l *link) finish(ctx context.Context) error {
	select {
	case l.out <- nil: // the writer's last word
	default:
		return errSlow
	}
	select {
	case <-l.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("agentlink: the appliance did not close the link: %w", ctx.Err())
	}
}

// Announce is one announcement of a node that has no token: Options as for New,
// of which Token, Beat, Acked, Order and State are not used.
func Announce(ctx context.Context, opt Options) (agentlink.Noted, error) {
	opt.Beat = func() agentlink.Heartbeat { return agentlink.Heartbeat{} }
	opt.Order = func(context.Context, agentlink.Order) agentlink.Result { return agentlink.Result{} }
	opt.Acked = func(_ time.Duration, _ agentlink.HeartbeatAck) {}
	c, err := New(opt)
	if err != nil {
		return agentlink.Noted{}, err
	}
	conn, e, err := c.open(ctx, func(conn net.Conn) error {
		return write(conn, agentlink.KindAnnounce, agentlink.Announce{Facts: opt.Facts})
	})
	if err != nil {
		return agentlink.Noted{}, err
	}
	_ = conn.Close()
	if e.Kind == agentlink.KindNoted {
		return agentlink.Decode[agentlink.Noted](e)
	}
	_, err = c.admitted(e)
	if err == nil {
		err = fmt.Errorf("%w: unexpected %q", agentlink.ErrFrameBody, e.Kind)
	}
	return agentlink.Noted{}, err
}
