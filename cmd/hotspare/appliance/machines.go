package appliance

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"hotspare"
	"hotspare/bmc"
	"hotspare/boot"
	"hotspare/haengine/agentlink"
)

// machine is something that asked to boot and is no node. All of it is the
// machine's own word.
type machine struct {
	MAC       boot.MAC         `json:"mac"` // that it was heard under first; its name
	MACs      []boot.MAC       `json:"macs"`
	UUID      string           `json:"uuid,omitempty"`
	Firmware  string           `json:"firmware,omitempty"` // as DHCP says
	Address   netip.Addr       `json:"address,omitzero"`
	First     time.Time        `json:"first"`
	Last      time.Time        `json:"last"`
	Announced time.Time        `json:"announced,omitzero"` // when it told its facts last
	Facts     *agentlink.Facts `json:"facts,omitempty"`
	Ignored   string           `json:"ignored,omitempty"` // by whom
}

// maxMachines bounds the list. A machine that told its facts is kept before one
// that only asked, and one that an operator has ignored before both: forgetting
// it would undo a decision.
const maxMachines = 512

// machines keeps what is known of machines that are no nodes.
type machines struct {
	path string
	now  func() time.Time
	log  *slog.Logger

	mu      sync.Mutex
	all     map[boot.MAC]*machine
	changed uint64
}

const machinesVersion = 1

type machinesFile struct {
	Version  int        `json:"version"`
	Machines []*machine `json:"machines"`
}

func openMachines(path string, log *slog.Logger) (*machines, error) {
	m := &machines{path: path, now: time.Now, log: log, all: map[boot.MAC]*machine{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("machines: %w", err)
	}
	var f machinesFile
	if err := json.Unmarshal(b, &f); err != nil || f.Version != machinesVersion {
		return nil, &hotspare.Error{
			Code: hotspare.CodeStoreFormat, What: "the record of discovered machines cannot be read", Where: path, Err: err,
			Fix: "move the file away: machines are discovered anew, those that were ignored too",
		}
	}
	for _, x := range f.Machines {
		m.all[x.MAC] = x
	}
	return m, nil
}

// save writes the file; the caller holds mu.
func (m *machines) save() error {
	f := machinesFile{Version: machinesVersion, Machines: []*machine{}}
	for _, x := range m.all {
		f.Machines = append(f.Machines, x)
	}
	slices.SortFunc(f.Machines, func(a, b *machine) int { return slices.Compare(a.MAC[:], b.MAC[:]) })
	b, err := json.Marshal(f)
	if err == nil {
		err = writeFile(m.path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("machines: %w", err)
	}
	return nil
}

// keep writes what changed, every minute and at the end. What an operator decided
// is written at once.
func (m *machines) keep(ctx context.Context) error {
	return keepSaved(ctx, m.log, "discovered machines", m.changes, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.save()
	})
}

func (m *machines) changes() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// of gives the record of a machine, a new one if there is room; mu is held.
func (m *machines) of(mac boot.MAC) *machine {
	if x := m.byMAC(mac); x != nil {
		return x
	}
	if mac.IsZero() || len(m.all) >= maxMachines && !m.evict() {
		return nil
	}
	x := &machine{MAC: mac, MACs: []boot.MAC{mac}, First: m.now()}
	m.all[mac] = x
	return x
}

func (m *machines) byMAC(mac boot.MAC) *machine {
	if x := m.all[mac]; x != nil {
		return x
	}
	for _, x := range m.all {
		if slices.Contains(x.MACs, mac) {
			return x
		}
	}
	return nil
}

// evict makes room: the least told, and of those the one silent for longest.
func (m *machines) evict() bool {
	var victim *machine
	for _, x := range m.all {
		if x.Ignored != "" {
			continue
		}
		if victim == nil || x.Announced.IsZero() && !victim.Announced.IsZero() ||
			x.Announced.IsZero() == victim.Announced.IsZero() && x.Last.Before(victim.Last) {
			victim = x
		}
	}
	if victim == nil {
		return false
	}
	delete(m.all, victim.MAC)
	return true
}

// seen notes a request of a machine that is no node, and gives what is known of
// it; ok is false when there is no room.
func (m *machines) seen(r boot.Request) (known machine, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.of(r.MAC)
	if x == nil {
		return machine{}, false
	}
	x.Last = m.now()
	if r.UUID != "" {
		x.UUID = boot.Plain(r.UUID)
	}
	if r.Protocol != boot.HTTP && r.Stage != boot.StageSystem {
		x.Firmware = r.Arch.String()
	}
	if r.Client.IsValid() && !r.Client.IsUnspecified() {
		x.Address = r.Client
	}
	m.changed++
	return *x, true
}

// announced takes a machine's facts under the MAC address that its lease has, or
// else the first that it claims.
func (m *machines) announced(mac boot.MAC, from netip.Addr, f agentlink.Facts) (known machine, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.of(mac)
	if x == nil {
		return machine{}, false
	}
	x.Last, x.Announced, x.Address, x.Facts = m.now(), m.now(), from, &f
	if f.UUID != "" {
		x.UUID = boot.Plain(f.UUID)
	}
	x.MACs = []boot.MAC{x.MAC}
	for _, s := range f.MACs {
		if c, err := boot.ParseMAC(s); err == nil && !c.IsZero() && !slices.Contains(x.MACs, c) && len(x.MACs) < 32 && m.byMAC(c) == nil {
			x.MACs = append(x.MACs, c)
		}
	}
	m.changed++
	return *x, true
}

// find gives the machine that an operator names by MAC address or UUID.
func (m *machines) find(name string) (machine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.named(name); x != nil {
		return *x, nil
	}
	return machine{}, noMachine(name)
}

func (m *machines) named(name string) *machine {
	if mac, err := boot.ParseMAC(name); err == nil {
		return m.byMAC(mac)
	}
	for _, x := range m.all {
		if x.UUID != "" && bmc.SameUUID(x.UUID, name) {
			return x
		}
	}
	return nil
}

func noMachine(name string) error {
	return &hotspare.Error{
		Code: hotspare.CodeNotFound, What: "there is no such machine", Where: boot.Plain(name),
		Fix: "hotspare get machines lists those that asked to boot and are no nodes; name one by MAC address or UUID",
	}
}

// ignore records an operator's decision, by "" takes it back.
func (m *machines) ignore(name, by string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.named(name)
	if x == nil {
		return noMachine(name)
	}
	x.Ignored = by
	m.changed++
	return m.save()
}

// forget removes a machine. One that asks again is discovered anew.
func (m *machines) forget(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.named(name)
	if x == nil {
		return noMachine(name)
	}
	delete(m.all, x.MAC)
	m.changed++
	return m.save()
}

// list gives all machines, the one that was heard last first.
func (m *machines) list() []machine {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]machine, 0, len(m.all))
	for _, x := range m.all {
		out = append(out, *x)
	}
	slices.SortFunc(out, func(a, b machine) int {
		return cmp.Or(b.Last.Compare(a.Last), slices.Compare(a.MAC[:], b.MAC[:]))
	})
	return out
}
