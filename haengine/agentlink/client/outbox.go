package client

import (
	"context"
	"sync"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// maxReports bounds the reports that wait for an acknowledgement; the oldest
// ones that are not conclusive go first.
const maxReports = 256

// Report sends a report, and again after each reconnection until the appliance
// has acknowledged it. It never blocks.
func (c *Client) Report(r agentlink.Report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextRep++
	r.Seq = c.nextRep
	if r.UpMillis == 0 {
		r.UpMillis = c.opt.Now().Milliseconds()
	}
	if len(c.reports) >= maxReports {
		c.reports = dropOldest(c.reports)
	}
	c.reports = append(c.reports, r)
	if c.conn != nil {
		_ = c.conn.send(agentlink.KindReport, r) // a broken link sends it again when it is back
	}
}

func dropOldest(reports []agentlink.Report) []agentlink.Report {
	for i, r := range reports {
		if !r.Conclusive && !r.Dropped {
			return append(reports[:i:i], reports[i+1:]...)
		}
	}
	return reports[1:]
}

// Sample sends what a monitor saw, if the link is up: a sample is worth
// nothing later.
func (c *Client) Sample(m agentlink.Sample) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.send(agentlink.KindSample, m)
	}
}

// Poke sends a heartbeat now instead of at the next tick.
func (c *Client) Poke() {
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// Flush waits until the appliance has acknowledged every report, or ctx is done.
func (c *Client) Flush(ctx context.Context) error {
	c.Poke()
	for {
		c.mu.Lock()
		left, acked := len(c.reports), c.acked
		c.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-acked:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) reportsSeen(seq uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.reports[:0]
	for _, r := range c.reports {
		if r.Seq > seq {
			kept = append(kept, r)
		}
	}
	c.reports = kept
	close(c.acked)
	c.acked = make(chan struct{})
}

// orderBook remembers orders, so that one that is sent again is not carried
// out again.
type orderBook struct {
	mu      sync.Mutex
	running map[string]bool
	done    map[string]agentlink.Result
	order   []string
}

const maxOrders = 256

// begin says whether an order is new; a finished one comes with its result.
func (b *orderBook) begin(id string) (fresh bool, result agentlink.Result, finished bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r, ok := b.done[id]; ok {
		return false, r, true
	}
	if b.running[id] {
		return false, agentlink.Result{}, false
	}
	b.running[id] = true
	return true, agentlink.Result{}, false
}

func (b *orderBook) finish(id string, r agentlink.Result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.running, id)
	if len(b.order) >= maxOrders {
		delete(b.done, b.order[0])
		b.order = b.order[1:]
	}
	b.order = append(b.order, id)
	b.done[id] = r
}

// take checks an order at the gate and hands it over once; its result goes out
// on whatever link is live when it is there.
func (c *Client) take(ctx context.Context, o agentlink.Order, wg *sync.WaitGroup) {
	fresh, result, finished := c.orders.begin(o.ID)
	switch {
	case finished:
		c.answer(result)
		return
	case !fresh:
		return // the result follows when the order is done
	}
	if err := c.gate.Admit(o); err != nil {
		c.log.Warn("order refused", "order", o.ID, "err", err)
		r := agentlink.Result{OrderID: o.ID, Code: hotspare.CodeOf(err), Why: err.Error()}
		c.orders.finish(o.ID, r)
		c.answer(r)
		return
	}
	wg.Go(func() {
		r := c.opt.Order(ctx, o)
		r.OrderID = o.ID
		c.orders.finish(o.ID, r)
		c.answer(r)
	})
}

func (c *Client) answer(r agentlink.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.send(agentlink.KindResult, r) // lost with the link: the appliance sends the order again
	}
}
