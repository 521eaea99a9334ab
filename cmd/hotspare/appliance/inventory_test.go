package appliance

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"hotspare"
	"hotspare/haengine/agentlink"
	"hotspare/ui/api"
)

// What a node told outlives the appliance's process, and a node that is off is known
// as it was; how far an order is, is forgotten with it.
func TestTheInventoryIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "inventory.json")
	log := slog.New(slog.DiscardHandler)
	v, err := openInventory(path, log)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := v.of("n1"); ok {
		t.Fatal("something is known of a node that never spoke")
	}
	v.found("n1", agentlink.Facts{CPUs: 4, Disks: []agentlink.Disk{{ID: "wwn-1", Bytes: 1 << 40, Holds: "blank"}}})
	v.healthy("n1", nil) // most heartbeats carry none
	v.healthy("n1", &agentlink.Health{MemoryErrors: 3, Temperatures: []agentlink.Temperature{{Name: "cpu\x1b[2J", MilliC: 41000}}})
	v.moves("n1", &agentlink.Progress{Step: "write", Done: 5, Total: 9})
	v.found("n2", agentlink.Facts{CPUs: 1})
	v.forget("n2")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.keep(ctx); err != nil {
		t.Fatal(err)
	}
	if v, err = openInventory(path, log); err != nil {
		t.Fatal(err)
	}
	k, ok := v.of("n1")
	if !ok || k.Facts.CPUs != 4 || len(k.Facts.Disks) != 1 || k.Health == nil || k.Health.MemoryErrors != 3 || k.Progress != nil {
		t.Errorf("after a restart: %+v", k)
	}
	if _, ok := v.of("n2"); ok {
		t.Error("a node that is gone is remembered")
	}
	var s api.NodeStatus
	inventoryView(&s, k)
	if s.Inventory == nil || s.Inventory.Disks[0].ID != "wwn-1" || s.Health == nil || s.Health.Temperatures[0].Name == "cpu\x1b[2J" || s.Busy != nil {
		t.Errorf("shown as %+v", s)
	}
	if err := os.WriteFile(path, []byte(`{"version": 9}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openInventory(path, log); hotspare.CodeOf(err) != hotspare.CodeStoreFormat {
		t.Errorf("a record of another version: %v", err)
	}
}
