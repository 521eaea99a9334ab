package agentlink

import (
	"fmt"
	"sync"

	"hotspare"
)

// Gate refuses the orders that an agent must not follow: those for another
// boot, and those below the highest epoch that it has seen for the application.
// It is safe for concurrent use.
type Gate struct {
	bootID string

	mu   sync.Mutex
	seen map[string]uint64
}

// NewGate makes the gate of one boot.
func NewGate(bootID string) *Gate {
	return &Gate{bootID: bootID, seen: map[string]uint64{}}
}

// Admit checks an order and remembers its epoch.
func (g *Gate) Admit(o Order) error {
	if o.BootID != g.bootID {
		return &hotspare.Error{
			Code: hotspare.CodeConflict, What: "the order is for another boot of this node", Where: "order " + o.ID,
			Why: fmt.Sprintf("it names boot %s, this is boot %s", o.BootID, g.bootID),
		}
	}
	if o.App == "" || o.Epoch == 0 {
		return nil // of no grant
	}
	epoch := o.Epoch
	if o.Drop != nil {
		epoch = max(epoch, o.Drop.Below)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if epoch < g.seen[o.App] {
		return &hotspare.Error{
			Code: hotspare.CodeStaleEpoch, What: "the order carries an epoch that is over", Where: "order " + o.ID,
			Why: fmt.Sprintf("epoch %d of %s, this node has seen %d", epoch, o.App, g.seen[o.App]),
		}
	}
	g.seen[o.App] = epoch
	return nil
}

// Saw remembers an epoch that was learnt otherwise, e.g. from a HeartbeatAck.
func (g *Gate) Saw(app string, epoch uint64) {
	if app == "" {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen[app] = max(g.seen[app], epoch)
}

// Seen gives the highest epoch seen for an application.
func (g *Gate) Seen(app string) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.seen[app]
}
