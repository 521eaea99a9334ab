package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"

	"hotspare/haengine/agentlink"
)

const writeTimeout = 3 * time.Second

// maxRenewPause is the time between two requests for a new certificate.
const maxRenewPause = 10 * time.Second

var errSlow = errors.New("agentlink: the appliance does not read the link")

// link is one live connection: frames go out through a queue, so that no
// caller ever waits for the network.
type link struct {
	conn *tls.Conn
	out  chan []byte
	done chan struct{}
	once sync.Once
	gone chan struct{} // closed when the reader has ended
}

// close ends the link; the reader and the writer notice.
func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		_ = l.conn.NetConn().Close()
	})
}

func (l *link) send(kind agentlink.Kind, body any) error {
	frame, err := agentlink.Encode(kind, body)
	if err != nil {
		return err
	}
	select {
	case l.out <- frame:
		return nil
	default:
		l.close()
		return errSlow
	}
}

func (l *link) write() {
	for {
		select {
		case frame := <-l.out:
			if frame == nil { // of finish: nothing follows
				_ = l.conn.CloseWrite()
				return
			}
			_ = l.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
			if _, err := l.conn.Write(frame); err != nil {
				l.close()
				return
			}
		case <-l.done:
			return
		}
	}
}

// session runs one connection to its end and says why it ended.
func (c *Client) session(ctx context.Context, wg *sync.WaitGroup) error {
	conn, clock, err := c.connect(ctx)
	if err != nil {
		return err
	}
	l := &link{conn: conn, out: make(chan []byte, 256), done: make(chan struct{}), gone: make(chan struct{})}
	defer l.close()
	stop := context.AfterFunc(ctx, l.close)
	defer stop()

	var own sync.WaitGroup
	defer own.Wait()
	own.Go(l.write)
	beats := &beats{sent: map[uint64]time.Duration{}}
	c.opt.State(State{Up: true, Why: "linked to " + c.opt.Addr + " as " + c.Node(), ServerTime: clock})
	if err := c.attach(l); err != nil {
		l.close()
		return err
	}
	defer c.detach(l)
	own.Go(func() { c.beat(l, beats) })
	err = c.read(ctx, l, beats, wg)
	close(l.gone)
	l.close()
	return err
}

// attach makes l the live link and sends what waits: reports that were not
// acknowledged.
func (c *Client) attach(l *link) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = l
	for _, r := range c.reports {
		if err := l.send(agentlink.KindReport, r); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) detach(l *link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == l {
		c.conn = nil
	}
}

// beats remembers when the heartbeats of one connection were sent.
type beats struct {
	mu   sync.Mutex
	next uint64
	sent map[uint64]time.Duration
}

func (b *beats) stamp(now time.Duration) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	b.sent[b.next] = now
	delete(b.sent, b.next-64)
	return b.next
}

func (b *beats) take(seq uint64) (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	sent, ok := b.sent[seq]
	delete(b.sent, seq)
	return sent, ok
}

// beat sends heartbeats and asks for a new certificate at half its life.
func (c *Client) beat(l *link, b *beats) {
	tick := time.NewTicker(c.opt.Every)
	defer tick.Stop()
	var asked time.Time
	for {
		h := c.opt.Beat()
		h.Seq = b.stamp(c.opt.Now()) // before it is queued: the lease counts from here
		if h.Seq%agentlink.HealthEvery != 1 {
			h.Health = nil
		}
		if err := l.send(agentlink.KindHeartbeat, h); err != nil {
			return
		}
		if now := time.Now(); now.After(c.renewAt()) && now.Sub(asked) > c.renewPause() {
			if err := c.askRenewal(l); err != nil {
				c.log.Warn("renewal of the certificate not asked for", "err", err)
			}
			asked = now
		}
		select {
		case <-tick.C:
		case <-c.poke:
		case <-l.done:
			return
		}
	}
}

// renewAt is half the life of the certificate after it came.
func (c *Client) renewAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renewed.Add(c.life / 2)
}

// renewPause leaves a certificate with a short life several requests.
func (c *Client) renewPause() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(maxRenewPause, c.life/8)
}

func (c *Client) askRenewal(l *link) error {
	csr, err := c.csr()
	if err != nil {
		return err
	}
	return l.send(agentlink.KindRenew, agentlink.Renew{CSR: csr})
}

func (c *Client) read(ctx context.Context, l *link, b *beats, wg *sync.WaitGroup) error {
	for {
		_ = l.conn.SetReadDeadline(time.Now().Add(c.opt.AckTimeout))
		e, err := agentlink.Read(l.conn, agentlink.MaxFrame)
		if err != nil {
			return fmt.Errorf("the link to %s broke: %w", c.opt.Addr, err)
		}
		switch e.Kind {
		case agentlink.KindHeartbeatAck:
			ack, err := agentlink.Decode[agentlink.HeartbeatAck](e)
			if err != nil {
				return err
			}
			c.reportsSeen(ack.Reports)
			for app, epoch := range ack.Over {
				c.gate.Saw(app, epoch)
			}
			if sent, ok := b.take(ack.Seq); ok {
				c.opt.Acked(sent, ack)
			}
		case agentlink.KindOrder:
			o, err := agentlink.DecodeOrder(e)
			if err != nil {
				return err
			}
			c.take(ctx, o, wg)
		case agentlink.KindRenewed:
			r, err := agentlink.Decode[agentlink.Renewed](e)
			if err != nil {
				return err
			}
			c.mu.Lock()
			c.cert, c.life, c.renewed = [][]byte{r.Certificate}, r.Life.D(), time.Now()
			c.mu.Unlock()
		default:
			return fmt.Errorf("%w: unexpected %q", agentlink.ErrFrameBody, e.Kind)
		}
	}
}
