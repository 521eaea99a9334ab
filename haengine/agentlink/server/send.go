package server

import (
	"context"
	"fmt"
	"time"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// orderKey names an order to one boot of one node.
type orderKey struct {
	to agentlink.Identity
	id string
}

// waiting is the callers of Send that wait for one order's result.
type waiting struct {
	callers int
	result  chan struct{} // closed when value is set
	value   agentlink.Result
	settled bool
}

// Send carries an order to a boot of a node and waits for its Result. It goes
// on over reconnections: the order is sent again, and the agent knows it by its
// id. It fails with CodeUnavailable when no session of that boot is there for
// longer than ReconnectGrace, and with ctx's error; then the order may or may
// not have been carried out, and sending the same id again tells which. A
// Result that is not OK is no error of Send.
func (s *Server) Send(ctx context.Context, node, bootID string, o agentlink.Order) (agentlink.Result, error) {
	if o.BootID == "" {
		o.BootID = bootID
	}
	if o.BootID != bootID {
		return agentlink.Result{}, fmt.Errorf("agentlink: order %s is bound to boot %s, not to %s", o.ID, o.BootID, bootID)
	}
	frame, err := agentlink.EncodeOrder(o)
	if err != nil {
		return agentlink.Result{}, err
	}
	to := agentlink.Identity{Node: node, BootID: bootID}
	key := orderKey{to: to, id: o.ID}
	w := s.await(key)
	defer s.forget(key, w)
	for {
		sess, err := s.session(ctx, to)
		if err != nil {
			return agentlink.Result{}, err
		}
		if err := sess.send(frame); err != nil {
			s.log.Info("order not sent on this link", "node", node, "order", o.ID, "err", err)
		}
		// A link that did not take the frame is being closed: wait for its
		// end, then for the next one.
		select {
		case <-w.result:
			return w.value, nil
		case <-sess.done:
		case <-ctx.Done():
			return agentlink.Result{}, ctx.Err()
		}
	}
}

func (s *Server) await(key orderKey) *waiting {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiting[key]
	if w == nil || w.settled {
		w = &waiting{result: make(chan struct{})}
		s.waiting[key] = w
	}
	w.callers++
	return w
}

func (s *Server) forget(key orderKey, w *waiting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.callers--; w.callers == 0 && s.waiting[key] == w {
		delete(s.waiting, key)
	}
}

// settle hands a result to those who wait for it. A result that nobody waits
// for any more is dropped: the same order, sent again, brings it back.
func (s *Server) settle(from agentlink.Identity, r agentlink.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiting[orderKey{to: from, id: r.OrderID}]
	if w == nil || w.settled {
		return
	}
	w.value, w.settled = r, true
	close(w.result)
}

// session gives the live session of a boot, waiting ReconnectGrace for it.
func (s *Server) session(ctx context.Context, to agentlink.Identity) (*session, error) {
	grace := time.NewTimer(s.opt.ReconnectGrace)
	defer grace.Stop()
	for {
		s.mu.Lock()
		sess, arrivals := s.sessions[to], s.arrivals
		s.mu.Unlock()
		if sess != nil && !sess.over() {
			return sess, nil
		}
		select {
		case <-arrivals:
		case <-grace.C:
			return nil, &hotspare.Error{
				Code: hotspare.CodeUnavailable, What: "the agent has no link to the appliance", Where: to.Node,
				Why: fmt.Sprintf("no session of boot %s for %s", to.BootID, s.opt.ReconnectGrace),
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (sess *session) over() bool {
	select {
	case <-sess.done:
		return true
	default:
		return false
	}
}
