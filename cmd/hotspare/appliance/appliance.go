// Package appliance is the whole process behind `hotspare serve`. It is the one
// place that knows every package: it opens the stores, starts the services and
// holds the small adapters that fit them together, one file for each interface.
// It decides nothing: what moves where is haengine's, what boots is boot's, who
// may write is storage's.
//
// Parts start in the order of their needs and stop in the reverse one. A start
// heals what a killed process left: the stores replay their logs, unfinished
// actions are ordered again under their own numbers, and where the engine and the
// store disagree about an epoch, the higher one wins.
package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/boot/dhcp"
	"hotspare/haengine"
	"hotspare/haengine/agentlink/server"
	"hotspare/haengine/runner"
	"hotspare/haengine/store"
	"hotspare/images"
	"hotspare/storage"
	"hotspare/storage/cow"
)

// stopBound is how long each part may take to stop. All of them together must
// stay well below an agent's lease, or a restart of the appliance would end what
// the nodes run.
const stopBound = 1500 * time.Millisecond

// Options of an Appliance. Config must have passed Validate.
type Options struct {
	Config  Config
	Version string
	Log     *slog.Logger // nil: silent
}

// Appliance is a running appliance.
type Appliance struct {
	cfg     Config
	version string
	log     *slog.Logger
	parts   *lifecycle

	store     *cow.Store
	exports   *storage.Exports
	images    *images.Repository
	state     *store.Store
	engine    *runner.Runner
	volumes   *volumes
	attempts  *attempts
	bmcs      *bmcs
	boots     *boots
	agents    *agents
	link      *server.Server
	dhcp      dhcpLinks // those where it is on
	network   *network  // what is told of the links
	bootCA    *bootCA
	httpsPort uint16 // of HTTPS boot; 0: not served
	recorder  *boot.Recorder
	ladders   *ladders
	machines  *machines // that are no nodes

	inventory *inventory // of nodes
	finder    *discovery
	floors    []haengine.EpochFloor // found by reconcile, told to the engine first
	tasks     *tasks
	scrubs    *scrubs
	notices   chan cow.Notice // of the store, to be recorded
	rates     rates
	seeds     seeds
	applying  sync.Mutex // of documents, and of what they leave behind
}

// Run serves until ctx ends or a part fails.
func Run(ctx context.Context, o Options) error {
	a, err := Start(ctx, o)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		a.log.Info("stopping", "why", context.Cause(ctx))
		a.leave(context.WithoutCancel(ctx))
		return a.Stop()
	case err := <-a.parts.failed:
		return errors.Join(err, a.Stop())
	}
}

// Start brings everything up. After an error nothing is left running.
func Start(ctx context.Context, o Options) (*Appliance, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &Appliance{cfg: o.Config, version: o.Version, log: o.Log, parts: newLifecycle(o.Log), recorder: boot.NewRecorder(0, 0), network: newNetwork(), notices: make(chan cow.Notice, noticeRoom)}
	if err := a.setup(ctx); err != nil {
		return nil, errors.Join(err, a.parts.stop(stopBound))
	}
	a.log.Info("hotspare serves", "version", a.version, "links", a.cfg.Network.served(), "api", a.cfg.API, "socket", a.cfg.Socket)
	return a, nil
}

// Stop takes everything down. Running nodes keep their disks: their sessions
// wait for the next start.
func (a *Appliance) Stop() error { return a.parts.stop(stopBound) }

// setup is one straight list: each step needs the ones before it.
func (a *Appliance) setup(ctx context.Context) error {
	for _, l := range a.cfg.Network.links() {
		if _, err := net.InterfaceByName(l.Interface); err != nil {
			return &hotspare.Error{
				Code: hotspare.CodeNoInterface, What: "the interface to serve does not exist", Where: l.Interface, Err: err,
				Fix: "ip -br link lists the interfaces; correct network.interface",
			}
		}
	}
	if err := os.MkdirAll(a.cfg.State, 0o700); err != nil {
		return fmt.Errorf("state folder: %w", err)
	}
	for _, step := range []func(context.Context) error{
		a.openStorage, a.openImages, a.openEngine, a.openLink, a.reconcile,
		a.serveTarget, a.serveBoot, a.serveStorekeeping, a.serveAPI, a.serveEngine,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (a *Appliance) openStorage(ctx context.Context) error {
	var err error
	a.store, err = cow.Open(ctx, a.storeFolder(), cow.Options{Notify: a.notice, Log: a.log.With("part", "storage")})
	if err != nil {
		return err
	}
	a.parts.onStop("volumes", func(context.Context) error { return a.store.Close() })
	a.exports, err = storage.OpenExports(filepath.Join(a.cfg.State, "exports.db"), storage.Options{Volumes: a.store, Log: a.log.With("part", "exports")})
	if err != nil {
		return err
	}
	a.parts.onStop("exports", func(context.Context) error { return a.exports.Close() })
	return nil
}

func (a *Appliance) openImages(ctx context.Context) error {
	if err := a.dropBuilds(); err != nil {
		a.log.WarnContext(ctx, "the appliance starts all the same", "err", err)
	}
	var err error
	o := a.cfg.Images.repository()
	o.Disks, o.Log = goldenDisks{a.store, func(volume string) { a.scrubs.letGo(volume) }}, a.log.With("part", "images")
	a.images, err = images.Open(ctx, filepath.Join(a.cfg.State, "images"), o)
	if err != nil {
		return err
	}
	a.parts.onStop("images", func(context.Context) error { return a.images.Close() })
	for _, p := range a.images.Problems() {
		a.log.Warn("an image cannot be used", "err", p)
	}
	a.volumes = &volumes{store: a.store, exports: a.exports, images: a.images, log: a.log.With("part", "storage")}
	return nil
}

// openEngine opens the engine's state and makes its runner with every adapter;
// nothing runs yet.
func (a *Appliance) openEngine(ctx context.Context) error {
	var err error
	a.state, err = store.Open(filepath.Join(a.cfg.State, "engine"), store.Options{Log: a.log.With("part", "store")})
	if err != nil {
		return err
	}
	a.parts.onStop("engine store", func(context.Context) error { return a.state.Close() })
	if a.attempts, err = openAttempts(filepath.Join(a.cfg.State, "boots.json")); err != nil {
		return err
	}
	a.bmcs = &bmcs{
		cfg: a.cfg.BMC, nodes: a.node, log: a.log.With("part", "bmc"), queues: map[string]*queue{},
		pass: func(node string) (hotspare.Secret, error) {
			return a.state.Secret(context.Background(), secretOf(node))
		},
	}
	a.parts.onStop("BMCs", a.bmcs.close)
	a.ladders = newLadders(a.recorder, a.node, a.log.With("part", "boot"))
	traces := filepath.Join(a.cfg.State, "boot-traces.json")
	a.ladders.load(traces)
	a.parts.run("boot traces", a.ladders.keep(traces))
	host, err := openHostEnvironment(a.cfg, filepath.Join(a.cfg.State, "initramfs"))
	if err != nil {
		return err
	}
	if err := a.openDiscovery(host); err != nil {
		return err
	}
	a.boots = &boots{
		cfg: a.cfg, host: host, attempts: a.attempts, bmcs: a.bmcs, images: a.images, cache: filepath.Join(a.cfg.State, "initramfs"),
		nodes: a.node, byMAC: a.nodeByMAC, volumes: a.volumes, ladders: a.ladders, finder: a.finder, log: a.log.With("part", "boot"),
	}
	if a.inventory, err = openInventory(filepath.Join(a.cfg.State, "inventory.json"), a.log.With("part", "agents")); err != nil {
		return err
	}
	a.boots.inventory = a.inventory
	a.parts.run("inventory", a.inventory.keep)
	if a.boots.disks, err = openDiskStreams(&diskStreams{
		store: a.store, token: a.attempts.byToken, find: a.images.Resolve, approved: a.boots.approved, tell: a.recorder.Record, log: a.log.With("part", "disks"),
		path: filepath.Join(a.cfg.State, "disk-digests.json"),
	}); err != nil {
		return err
	}
	a.seeds = seeds{texts: a.state, state: func() haengine.State { return a.engine.Snapshot() }}
	a.agents = &agents{cfg: a.cfg, seeds: a.seeds, attempts: a.attempts, boots: a.boots, inventory: a.inventory, volumes: a.volumes, images: a.images, ladders: a.ladders, log: a.log.With("part", "agents")}
	a.engine, err = runner.New(ctx, runner.Options{
		Journal: a.state, Power: a.bmcs, Booter: a.boots, Volumes: a.volumes, Agents: a.agents, Preparer: preparer{a.boots},
		Prober: prober{link: a.cfg.Network.interfaceOf, wait: 300 * time.Millisecond}, Notifier: notifier{a.log.With("part", "notify")},
		Log: a.log.With("part", "engine"),
	})
	if err != nil {
		return err
	}
	if err := a.attempts.only(func(node string) bool { _, ok := a.node(node); return ok }); err != nil {
		return err
	}
	if err := a.seeds.drop(ctx); err != nil {
		return err
	}
	a.boots.ask, a.boots.grant = a.agents.ask, a.grantOf
	a.agents.engine, a.agents.approved, a.boots.send, a.boots.nearby = a.engine, a.boots.approved, a.agents.send, a.agents.nearby
	return nil
}

// notifier writes notices to the log, which reaches the administrator through
// the journal of the host.
type notifier struct{ log *slog.Logger }

func (n notifier) Notify(ctx context.Context, x haengine.Notice) error {
	n.log.WarnContext(ctx, x.Text, "incident", x.Incident, "app", x.App, "node", x.Node, "code", x.Code, "fix", x.Fix, "resolved", x.Resolved)
	return nil
}

func (a *Appliance) openLink(ctx context.Context) error {
	dir := filepath.Join(a.cfg.State, "ca")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("CA: %w", err)
	}
	ca, err := server.EnsureCA(dir)
	if err != nil {
		return err
	}
	a.boots.ca, a.finder.ca = ca.PEM, ca.PEM
	ln, err := a.listenOnLinks(ctx, a.cfg.link)
	if err != nil {
		return err
	}
	a.parts.onStop("agents' port", closeOnce(ln)) // for a start that fails before Serve takes it over
	a.openBootCA()
	a.link, err = server.New(server.Options{
		Listener: ln, CA: ca, Tokens: a.agents, Handler: a.agents, Announced: a.finder.announced, Log: a.log.With("part", "link"),
		Progress: a.agents.progress,
		Reused: func(ctx context.Context, r server.Reuse) {
			a.compromised(ctx, a.attempts.owner(r.TokenHash), "its join token was presented twice, the second time from "+r.Remote)
		},
	})
	if err != nil {
		return err
	}
	a.agents.link = a.link
	return nil
}

// reconcile lets the higher epoch win wherever the engine's state and the
// storage's disagree, before anything is served.
func (a *Appliance) reconcile(ctx context.Context) error {
	for name, app := range a.engine.Snapshot().Durable.Apps {
		for _, volume := range a.volumes.of(name) {
			if _, ok := rootEpoch(name, volume); ok {
				continue // a root belongs to one epoch; its own revocation ends it
			}
			if err := a.exports.SetEpochAtLeast(ctx, volume, uint64(lowestLive(app))); err != nil {
				return err
			}
		}
		if floor := a.volumes.floor(name); floor > app.Epoch {
			a.log.Warn("the storage knows a later epoch than the engine: the higher one wins", "app", name, "engine", app.Epoch, "storage", floor)
			a.floors = append(a.floors, haengine.EpochFloor{App: name, Epoch: floor})
		}
	}
	return nil
}

// lowestLive gives the lowest epoch of an application that may still write: its
// grant's, or that of an earlier grant that is being released in order and must
// flush and unmount first.
func lowestLive(app *haengine.AppState) haengine.Epoch {
	low := app.Epoch
	if app.Grant != nil {
		low = app.Grant.Epoch
	}
	for _, g := range app.Old {
		if x := g.Exclusion; x != nil && x.Orderly && !x.Released {
			low = min(low, g.Epoch)
		}
	}
	return low
}

// grantOf gives the live grant of an application, or nil.
func (a *Appliance) grantOf(app string) *haengine.Grant {
	if s := a.engine.Snapshot().Durable.Apps[app]; s != nil {
		return s.Grant
	}
	return nil
}

// node and nodeByMAC look a node up in the engine's state.
func (a *Appliance) node(name string) (*haengine.NodeState, bool) {
	n := a.engine.Snapshot().Durable.Nodes[name]
	return n, n != nil
}

func (a *Appliance) nodeByMAC(m boot.MAC) (*haengine.NodeState, bool) {
	for _, n := range a.engine.Snapshot().Durable.Nodes {
		for _, s := range n.Spec.MACs {
			if mac, err := boot.ParseMAC(s); err == nil && mac == m {
				return n, true
			}
		}
	}
	return nil, false
}

// taken turns a bind error into one that names the holder of the port.
func (a *Appliance) taken(err error, network string, at netip.AddrPort) error {
	port := at.Port()
	if err == nil || hotspare.CodeOf(err) != "" || !isInUse(err) {
		return err
	}
	e := &hotspare.Error{
		Code: hotspare.CodePortTaken, What: fmt.Sprintf("port %d/%s is taken", port, network), Where: at.Addr().String(), Err: err,
		Fix: "stop the service that holds it, or give hotspare another port",
	}
	if who, herr := dhcp.PortHolder(network, port); herr == nil && who != "" {
		e.Why = "held by " + who
	}
	return e
}

// apiToken reads the token of the API, or draws one at the first start.
func (a *Appliance) apiToken() (hotspare.Secret, error) {
	path := filepath.Join(a.cfg.State, "api.token")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b = []byte(strings.ToLower(rand.Text()+rand.Text()) + "\n")
		err = writeFile(path, b, 0o600)
	}
	if err != nil {
		return hotspare.Secret{}, fmt.Errorf("API token: %w", err)
	}
	if t := strings.TrimSpace(string(b)); len(t) >= 32 {
		return hotspare.NewSecret(t), nil
	}
	return hotspare.Secret{}, &hotspare.Error{
		Code: hotspare.CodeInvalid, What: "the API token is too short", Where: path, Why: "an empty or short token must not open the API",
		Fix: "remove the file: a new token is drawn at the next start",
	}
}
