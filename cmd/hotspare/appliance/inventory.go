package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"hotspare"
	"hotspare/haengine/agentlink"
)

// inventory keeps what the agents of approved nodes found on them, and how their
// sensors are, also while a node is off.
type inventory struct {
	path string
	now  func() time.Time
	log  *slog.Logger

	mu      sync.Mutex
	all     map[string]known
	changed uint64
}

// known is what one node told.
type known struct {
	At       time.Time         `json:"at"`
	Facts    agentlink.Facts   `json:"facts"`
	Health   *agentlink.Health `json:"health,omitempty"`
	HealthAt time.Time         `json:"healthAt,omitzero"`

	Progress *agentlink.Progress `json:"-"` // of the order that is under way
}

const inventoryVersion = 1

type inventoryFile struct {
	Version int              `json:"version"`
	Nodes   map[string]known `json:"nodes"`
}

func openInventory(path string, log *slog.Logger) (*inventory, error) {
	v := &inventory{path: path, now: time.Now, log: log, all: map[string]known{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	var f inventoryFile
	if err := json.Unmarshal(b, &f); err != nil || f.Version != inventoryVersion || f.Nodes == nil {
		return nil, &hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: "the inventory of the nodes cannot be read", Where: path, Err: err,
			Fix: "move the file away: each node tells what it has at its next boot",
		}
	}
	v.all = f.Nodes
	return v, nil
}

// found takes what an agent found when it joined.
func (v *inventory) found(node string, f agentlink.Facts) {
	v.edit(node, func(k *known) { k.Facts, k.At, k.Progress = f.Bounded(), v.now(), nil })
}

// healthy takes what a node's sensors say.
func (v *inventory) healthy(node string, h *agentlink.Health) {
	if h != nil {
		v.edit(node, func(k *known) { k.Health, k.HealthAt = h, v.now() })
	}
}

// moves takes how far a long order is; an order that ended has none.
func (v *inventory) moves(node string, p *agentlink.Progress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := v.all[node]
	k.Progress = p
	v.all[node] = k
}

func (v *inventory) edit(node string, change func(*known)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := v.all[node]
	change(&k)
	v.all[node] = k
	v.changed++
}

// of gives what is known of a node; ok is false when it never told anything.
func (v *inventory) of(node string) (k known, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k, ok = v.all[node]
	return k, ok
}

// forget drops a node that is gone.
func (v *inventory) forget(node string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.all, node)
	v.changed++
}

// keep writes what changed, every minute and at the end.
func (v *inventory) keep(ctx context.Context) error {
	return keepSaved(ctx, v.log, "inventory", v.changes, func() error {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.save()
	})
}

func (v *inventory) changes() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.changed
}

// save writes the file; the caller holds mu.
func (v *inventory) save() error {
	b, err := json.Marshal(inventoryFile{Version: inventoryVersion, Nodes: v.all})
	if err != nil {
		return err
	}
	return writeFile(v.path, b, 0o600)
}
