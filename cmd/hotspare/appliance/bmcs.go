package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"hotspare"
	"hotspare/bmc"
	"hotspare/bmc/wire"
	"hotspare/haengine"
)

// bmcs is runner.Power: one queue per node's BMC, made at first use and anew
// when the node's BMC changes.
type bmcs struct {
	cfg   BMCConfig
	nodes func(name string) (*haengine.NodeState, bool)
	pass  func(node string) (hotspare.Secret, error)
	log   *slog.Logger

	mu     sync.Mutex
	queues map[string]*queue
}

type queue struct {
	*bmc.Queue
	spec haengine.BMC
	pass hotspare.Secret
}

// queue gives the node's queue and its specification.
func (b *bmcs) queue(node string) (*bmc.Queue, haengine.Node, error) {
	n, ok := b.nodes(node)
	if !ok {
		return nil, haengine.Node{}, &hotspare.Error{Code: hotspare.CodeNotFound, What: "there is no such node", Where: node, Fix: "hotspare get nodes"}
	}
	pass, err := b.pass(node)
	if err != nil {
		return nil, n.Spec, fmt.Errorf("password of the BMC of %s: %w", node, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if q := b.queues[node]; q != nil {
		if q.spec == n.Spec.BMC && q.pass.Equal(pass) {
			return q.Queue, n.Spec, nil
		}
		go b.retire(q)
		delete(b.queues, node)
	}
	spec := n.Spec.BMC
	name := fmt.Sprintf("%s (%s:%d)", node, spec.Address, spec.Port)
	driver, err := wire.New(wire.Config{
		Protocol: wire.Protocol(spec.Protocol), Host: spec.Address.String(), Port: int(spec.Port), User: spec.User, Password: pass,
		CipherSuite: spec.CipherSuite, Timeout: b.cfg.Timeout.D(), Log: b.log,
	})
	if err != nil {
		return nil, n.Spec, err
	}
	q := bmc.NewQueue(driver, bmc.QueueOptions{Name: name, Timeout: b.cfg.Timeout.D(), Settle: b.cfg.Settle.D(), Log: b.log})
	b.queues[node] = &queue{q, spec, pass}
	return q, n.Spec, nil
}

func (b *bmcs) retire(q *queue) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*b.cfg.Timeout.D())
	defer cancel()
	if err := q.Close(ctx); err != nil {
		b.log.Warn("close BMC", "bmc", q.Name(), "err", err)
	}
}

// keep ends the queues of nodes that are gone: a new node of the same name counts
// its turns anew.
func (b *bmcs) keep(known func(node string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, q := range b.queues {
		if !known(name) {
			go b.retire(q)
			delete(b.queues, name)
		}
	}
}

// close ends all queues.
func (b *bmcs) close(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, q := range b.queues {
		errs = append(errs, q.Close(ctx))
	}
	clear(b.queues)
	return errors.Join(errs...)
}

// right is the name in which commands about a node are given. The engine counts
// a node's turns: every power action and every return has a higher one than what
// it supersedes. Epochs would not do, for they count per application.
func right(turn haengine.Turn) bmc.Right { return bmc.Right{Owner: "engine", Epoch: uint64(turn)} }

// ReadPower asks the node's BMC.
func (b *bmcs) ReadPower(ctx context.Context, node string) (haengine.PowerState, error) {
	q, _, err := b.queue(node)
	if err != nil {
		return haengine.PowerUnknown, err
	}
	r, err := q.PowerState(ctx)
	if err != nil {
		return haengine.PowerUnknown, transient(err)
	}
	return powerState(r.State), nil
}

// PowerOff makes sure that the node is off and gives every read.
func (b *bmcs) PowerOff(ctx context.Context, p haengine.PowerOff) (haengine.PowerEvidence, error) {
	q, spec, err := b.queue(p.Node)
	if err != nil {
		return haengine.PowerEvidence{}, err
	}
	ev, err := bmc.Off(ctx, q, right(p.Turn), bmc.OffOptions{
		Interval: b.cfg.ReadGap.D(), Deadline: b.cfg.Deadline.D(), ExpectUUID: spec.UUID,
	})
	out := haengine.PowerEvidence{Reads: make([]haengine.PowerReading, 0, len(ev.Reads))}
	for _, r := range ev.Reads {
		out.Reads = append(out.Reads, haengine.PowerReading{State: powerState(r.State), At: r.At, Err: r.Err})
	}
	if err == nil && !ev.Proven {
		err = bmc.NewError(hotspare.CodeFenceUnproven, q.Name(), "off was not read twice", nil)
	}
	return out, transient(err)
}

func powerState(s bmc.PowerState) haengine.PowerState {
	switch s {
	case bmc.PowerOn:
		return haengine.PowerIsOn
	case bmc.PowerOff:
		return haengine.PowerIsOff
	}
	return haengine.PowerUnknown
}

// transient marks errors of a BMC that may pass, for the engine's retries.
func transient(err error) error {
	if err == nil || bmc.Permanent(err) || hotspare.CodeOf(err) == hotspare.CodeStaleEpoch {
		return err
	}
	return passing{err}
}

// passing is an error after which the same try may work in a moment.
type passing struct{ error }

func (p passing) Unwrap() error   { return p.error }
func (p passing) Transient() bool { return true }
