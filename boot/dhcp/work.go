package dhcp

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"hotspare"
	"hotspare/boot"
)

// Bounds of what is worked on at one time: batches of packets, most of which wait
// for one sync of the lease file, and packets that wait for a probe. When no worker
// comes free within workerWait, a batch is dropped; its senders ask again.
const (
	workersMost = 64
	waitingMost = 1024
	workerWait  = 100 * time.Millisecond
)

// job is a packet that waits for a worker.
type job struct {
	b    []byte
	from netip.AddrPort
}

// loop reads packets, as many as there are, and lets workers answer them, for a slow
// Director or the disk must not hold up other machines. There are as many workers as
// were ever busy at once: a new one each time would grow its stack each time.
func (s *Server) loop(ctx context.Context, c *socket, port int) error {
	jobs := make(chan []job)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(jobs)
	workers := 0
	for {
		var batch []job
		err := c.read(func(b []byte, from netip.AddrPort) {
			s.stat.received.Add(1)
			if s.admit(b) {
				batch = append(batch, job{slices.Clone(b), from})
			}
		})
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			continue
		}
		select {
		case jobs <- batch:
			continue
		default:
		}
		if workers < workersMost {
			workers++
			wg.Go(func() {
				for more := true; more; batch, more = <-jobs {
					s.work(ctx, c, batch, port, &wg)
				}
			})
		} else if !late(jobs, batch) {
			s.stat.dropped.Add(uint64(len(batch)))
		}
	}
}

// late waits a little for a worker: what comes meanwhile waits in the socket.
func late(jobs chan<- []job, batch []job) bool {
	t := time.NewTimer(workerWait)
	defer t.Stop()
	select {
	case jobs <- batch:
		return true
	case <-t.C:
		return false
	}
}

// work answers packets that came together: their leases are made durable together,
// and only then the machines are told. A packet that has to wait for a probe goes
// on by itself.
func (s *Server) work(ctx context.Context, c *socket, batch []job, port int, wg *sync.WaitGroup) {
	type told struct {
		m message
		a answer
		j job
	}
	ready := make([]told, 0, len(batch))
	for _, j := range batch {
		m, a, ok := s.packet(ctx, j, port)
		switch {
		case !ok:
		case a.later == nil:
			ready = append(ready, told{m, a, j})
		case s.waiting.Add(1) > waitingMost:
			s.waiting.Add(-1)
			s.stat.dropped.Add(1)
		default:
			wg.Go(func() {
				defer s.waiting.Add(-1)
				if a, ok := s.guard(j, func() answer { return a.later(ctx) }); ok {
					s.tell(c, m, a, j.from, port)
				}
			})
		}
	}
	for _, x := range ready {
		s.tell(c, x.m, x.a, x.j.from, port)
	}
}

// guard runs f and says whether it came to its end. A packet that makes it panic is
// counted and has no answer.
func (s *Server) guard(j job, f func() answer) (a answer, ok bool) {
	defer func() {
		if p := recover(); p != nil {
			s.stat.panics.Add(1)
			s.o.Log.Error("DHCP packet dropped: it made the server panic", "from", j.from, "panic", p)
		}
	}()
	return f(), true
}

// packet decides what one packet leads to.
func (s *Server) packet(ctx context.Context, j job, port int) (m message, a answer, ok bool) {
	a, ok = s.guard(j, func() answer {
		var err error
		if m, err = parse(j.b, s.protocol()); err != nil {
			s.stat.malformed.Add(1)
			s.o.Log.Debug("DHCP packet dropped", "from", j.from, "err", err)
			return answer{}
		}
		if s.o.Mode == Authoritative {
			return s.answer(ctx, m)
		}
		return s.answerProxy(ctx, m, j.from.Addr(), port)
	})
	return m, a, ok && m.DHCPv4 != nil
}

func (s *Server) protocol() boot.Protocol {
	if s.o.Mode == Authoritative {
		return boot.DHCP
	}
	return boot.ProxyDHCP
}

// tell sends an answer once what it says is durable, and records it.
func (s *Server) tell(c *socket, m message, a answer, from netip.AddrPort, port int) {
	s.settle(m, a)
	if a.packet != nil {
		if port == portPXE {
			a.to = destination{addr: from} // PXE 2.1: back to where it came from
		}
		if err := s.link.send(c, encode(a.packet), a.to); err != nil {
			s.stat.failed.Add(1)
			s.o.Log.Error("DHCP answer not sent", "mac", m.mac, "to", a.to.addr, "err", err)
			a.text += " (not sent)"
		} else {
			s.stat.answered.Add(1)
		}
	}
	s.record(m, s.protocol(), a)
}

// settle makes the change behind an answer durable. A change that cannot be holds
// all the same: a full disk must not keep machines from booting.
func (s *Server) settle(m message, a answer) {
	if err := a.file.commit(a.change, s.allLeases); err != nil {
		s.stat.failed.Add(1)
		s.o.Log.Error("lease not written; it holds in memory only", "mac", m.mac, "err", err)
	}
}

// record enters an answer into the machine's trace.
func (s *Server) record(m message, protocol boot.Protocol, a answer) {
	if a.text == "" {
		return
	}
	s.o.Recorder.Record(s.traced(m, protocol, a))
}

// admit says whether a packet is worth parsing.
func (s *Server) admit(b []byte) bool {
	mac, ok := sender(b)
	if !ok {
		s.stat.malformed.Add(1)
		return false
	}
	switch s.limits.admit(mac, s.o.Known, s.o.Now()) {
	case tooMany:
		if s.stat.limited.Add(1)%100 == 1 {
			s.alarm(&hotspare.Error{
				Code: hotspare.CodeDHCPRefuses, What: "DHCP packets of one machine are dropped", Where: "flood on " + s.o.Interface,
				Why: fmt.Sprintf("%s sends more than %d a second", mac, s.o.Limits.PerMachine),
				Fix: "look at that machine, or for a loop in the network",
			})
		}
		return false
	case tooForeign:
		if s.stat.unknown.Add(1)%100 == 1 {
			s.alarm(&hotspare.Error{
				Code: hotspare.CodeDHCPRefuses, What: "DHCP packets of unknown machines are dropped", Where: s.o.Interface,
				Why: fmt.Sprintf("they are more than %d a second; the last one is from %s", s.o.Limits.Unknown, mac),
				Fix: "find out on the switch who sends so many MAC addresses; nodes are served all the same",
			})
		}
		return false
	}
	return true
}
