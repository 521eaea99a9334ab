package appliance

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/haengine/agentlink/server"
	"hotspare/haengine/runner"
	"hotspare/images"
)

// agents is runner.Agents, and turns what nodes say over the link into events.
type agents struct {
	cfg      Config
	attempts *attempts
	boots    *boots
	volumes  *volumes
	images   *images.Repository
	seeds    seeds
	log      *slog.Logger

	inventory *inventory

	link    *server.Server // set before anything is served
	engine  *runner.Runner // likewise
	ladders *ladders       // what is seen of boots

	approved func(node string) bool // set before anything is served
}

// orderID gives the same action the same order, so that an agent that carried it
// out already answers with its result.
func orderID(o haengine.Order) string {
	return fmt.Sprintf("%s-e%d-a%d", o.App, o.Epoch, o.ID)
}

// Claim orders the joined agent to become the application and waits for its
// word.
func (a *agents) Claim(ctx context.Context, c haengine.Claim) error {
	img, err := a.image(c)
	if err != nil {
		return err
	}
	logins, err := a.volumes.logins(c, a.cfg.portal(a.nearby(c.Node)))
	if err != nil {
		return err
	}
	root, err := a.rootOf(ctx, c, img)
	if err != nil {
		return err
	}
	seed, err := a.seeds.of(ctx, c.Spec, c.Node, img)
	if err != nil {
		return err
	}
	policy := c.Spec.Policy.WithDefaults()
	if c.Lease > 0 { // what evidence counts on
		policy.Lease = c.Lease
	}
	err = a.send(ctx, c.Order, c.BootID, agentlink.Order{Claim: &agentlink.Claim{
		Application: c.Spec,
		Image:       root,
		Volumes:     logins,
		Seed:        seed,
		Lease:       agentlink.LeasePolicy{Lease: policy.Lease, DropBound: policy.DropBound},
	}})
	if root.RAM != nil && !runner.IsTransient(err) { // the node has its root, or goes without
		err = errors.Join(err, a.attempts.endRoot(c.Node))
	}
	return err
}

// image gives the image that the node was booted with: a version imported since
// must not meet the kernel of an older one.
func (a *agents) image(c haengine.Claim) (images.Image, error) {
	if x, ok := a.attempts.byNode(c.Node); ok && x.App == c.App && x.Epoch == c.Epoch {
		return a.images.Resolve(x.Image)
	}
	switch { // claimed as it is: it was not booted for this grant
	case c.Copy != nil:
		return a.images.Resolve(c.Copy.Image)
	case !c.Way.NeedsVolume():
		return a.images.Resolve(c.Spec.Image)
	}
	return a.volumes.rootImage(c.App, c.Epoch, c.Spec.Image)
}

// rootOf says what the root of a claim is: a volume, a copy on a local disk, or an
// archive that the node reads into its memory.
func (a *agents) rootOf(ctx context.Context, c haengine.Claim, img images.Image) (agentlink.Image, error) {
	out := claimed(img)
	if out.Process = img.Facts.Init == ""; img.Facts.Init == images.InitUnknown {
		out.Process = runsAlone(c.Spec)
	}
	switch {
	case c.Way.NeedsVolume():
	case c.Way == haengine.WayRAM:
		root, ok := rootFile(img)
		if !ok {
			return out, noRoot(img)
		}
		n, ok := a.boots.nodes(c.Node)
		if !ok {
			return out, noNode(c.Node)
		}
		x, err := a.attempts.streams(forRoot, n.Spec, img.Ref()) // the claim outlives this process, and so does its token
		if err != nil {
			return out, err
		}
		art := a.boots.artefact(x, boot.ArtefactRoot, root, a.nearby(c.Node))
		out.Root, out.RAM = agentlink.RootInRAM, &art
	case c.Copy == nil || c.Copy.Disk == "":
		return out, &hotspare.Error{Code: hotspare.CodeDiskChoice, What: "the claim names no copy on a local disk", Where: c.Node, Fix: "nothing: it is started in another way"}
	default:
		// What the copy has to be is the appliance's word, not the disk's.
		src, err := a.boots.disks.source(ctx, img)
		if err != nil {
			return out, err
		}
		out.Root = agentlink.RootOnDisk
		if c.Copy.Slot != "" {
			out.Root = agentlink.RootInSlot
		}
		out.Local = &agentlink.Local{Disk: agentlink.DiskSelector{ID: c.Copy.Disk}, Slot: c.Copy.Slot, Digest: src.digest}
	}
	return out, nil
}

// runsAlone says whether an application needs no init: where nobody looked into the
// image, its service group tells.
func runsAlone(app haengine.Application) bool {
	has := func(k haengine.ResourceKind) bool {
		return slices.ContainsFunc(app.Resources, func(r haengine.Resource) bool { return r.Kind == k })
	}
	return has(haengine.ResourceProcess) && !has(haengine.ResourceSystemd)
}

// claimed gives what the agent must know of an image.
func claimed(img images.Image) agentlink.Image {
	return agentlink.Image{
		RootFS: img.RootFS, RootPartition: img.RootPartition, RootSubvolume: img.RootSubvolume, Kernel: img.Kernel.Version,
	}
}

// Release orders an orderly stop and waits for its attestation.
func (a *agents) Release(ctx context.Context, r haengine.Release) error {
	return a.send(ctx, r.Order, r.BootID, agentlink.Order{Release: &agentlink.Release{Why: "the application moves"}})
}

// nearby gives the link over which a node's agent has come; without a session the
// first one.
func (a *agents) nearby(node string) LinkConfig {
	for _, s := range a.link.Sessions() {
		if s.Node != node {
			continue
		}
		if from, err := netip.ParseAddrPort(s.Remote); err == nil {
			return a.cfg.Network.toward(from.Addr())
		}
	}
	return a.cfg.Network.links()[0]
}

func (a *agents) send(ctx context.Context, h haengine.Order, bootID string, o agentlink.Order) error {
	_, err := a.ask(ctx, h, bootID, o)
	return err
}

// ask gives an order to a boot of a node and waits for its answer.
func (a *agents) ask(ctx context.Context, h haengine.Order, bootID string, o agentlink.Order) (agentlink.Result, error) {
	o.ID, o.BootID, o.App, o.Epoch = orderID(h), bootID, h.App, uint64(h.Epoch)
	res, err := a.link.Send(ctx, h.Node, bootID, o)
	if o.Install != nil {
		a.inventory.moves(h.Node, nil)
	}
	if err != nil {
		if hotspare.CodeOf(err) == hotspare.CodeUnavailable {
			return res, passing{err}
		}
		return res, err
	}
	for _, s := range res.Steps {
		a.log.DebugContext(ctx, "agent step", "node", h.Node, "order", o.ID, "step", s.Name, "ok", s.OK, "ms", s.Millis, "why", s.Why)
	}
	if o.Claim != nil {
		a.ladders.result(h.Node, bootID, res)
	}
	return res, res.Err()
}

// Redeem spends a join token.
func (a *agents) Redeem(_ context.Context, hash [sha256.Size]byte, facts agentlink.Facts) (server.Identity, error) {
	x, err := a.attempts.redeem(hash, facts, a.approved)
	if x.Node == "" {
		x.Node = a.attempts.owner(hash)
	}
	a.ladders.redeemed(x.Node, facts, err)
	if err != nil {
		return server.Identity{}, err
	}
	return server.Identity{Node: x.Node, Epoch: uint64(x.Epoch)}, nil
}

// Joined tells the engine of a node that came for a grant.
func (a *agents) Joined(ctx context.Context, s server.Session) {
	a.log.InfoContext(ctx, "node connected", "node", s.Node, "boot", s.BootID, "from", s.Remote, "resumed", s.Resumed)
	a.ladders.joined(s)
	if !s.Resumed {
		a.inventory.found(s.Node, s.Facts)
	}
	// A resumed session is told too: the appliance may have died between the join
	// and its journal. The engine ignores what it knows.
	x, ok := a.attempts.byNode(s.Node)
	if !ok || x.BootID != s.BootID {
		return // of a start that was taken back: its heartbeats are answered with a drop
	}
	if x.Mode == forStandby {
		a.parked(ctx, x, s)
		return
	}
	a.submit(ctx, haengine.Joined{Node: s.Node, BootID: s.BootID, App: x.App, Epoch: x.Epoch})
}

// Gone is logged only: silence is measured by the heartbeats that are missing.
func (a *agents) Gone(ctx context.Context, s server.Session, why string) {
	a.log.InfoContext(ctx, "node disconnected", "node", s.Node, "boot", s.BootID, "why", why)
}

// Heartbeat passes the beat through the engine and answers with its lease.
func (a *agents) Heartbeat(ctx context.Context, s server.Session, h agentlink.Heartbeat) agentlink.HeartbeatAck {
	a.ladders.beat(s, h)
	a.inventory.healthy(s.Node, h.Health)
	beat := haengine.Heartbeat{Node: s.Node, BootID: s.BootID, App: h.App, Epoch: haengine.Epoch(h.Epoch)}
	if known := a.known(beat.App, beat.Epoch); beat.Epoch > known {
		// Every epoch is durable in the exports before a node hears of it: this
		// one was never granted.
		a.log.ErrorContext(ctx, "a node claims an epoch that was never granted", "node", s.Node, "app", h.App, "epoch", h.Epoch, "known", known)
		return agentlink.HeartbeatAck{Drop: true, Reason: fmt.Sprintf("epoch %d of %s was never granted", h.Epoch, h.App), Epoch: uint64(known)}
	}
	lease, err := a.engine.Heartbeat(ctx, beat)
	if err != nil {
		// No word of the engine is no lease, and no order to drop either: the
		// lease runs out by itself when this goes on.
		return agentlink.HeartbeatAck{Reason: "the engine does not answer: " + err.Error()}
	}
	ack := agentlink.HeartbeatAck{
		Granted: lease.Granted, Drop: h.App != "" && !lease.Granted, Reason: lease.Reason.Text, Lease: lease.Duration, Epoch: uint64(lease.Epoch),
	}
	if h.App == "" {
		ack.Over = a.over()
	}
	return ack
}

// over tells a node that waits which epochs have ended, so that it refuses an
// order of one that comes late (SAFETY: the performer refuses a lower epoch).
func (a *agents) over() map[string]uint64 {
	apps := a.engine.Snapshot().Durable.Apps
	out := make(map[string]uint64, len(apps))
	for name, app := range apps {
		out[name] = uint64(app.Epoch)
	}
	return out
}

// Report passes the agent's word about its service group on.
func (a *agents) Report(ctx context.Context, s server.Session, r agentlink.Report) {
	a.ladders.report(s, r)
	if r.Dropped {
		a.submit(ctx, haengine.Dropped{Node: s.Node, BootID: s.BootID, App: r.App, Epoch: haengine.Epoch(r.Epoch), Why: r.Why})
		return
	}
	var state haengine.ResourceState
	switch r.State {
	case agentlink.ResourceOnline:
		state = haengine.ResourceOnline
	case agentlink.ResourceFailed:
		state = haengine.ResourceFailed
	case agentlink.ResourceOffline:
		state = haengine.ResourceOffline
	case agentlink.ResourceStarting:
		state = haengine.ResourceRestart
	default:
		return // on its way: no state to judge by
	}
	a.submit(ctx, haengine.AgentReport{
		Node: s.Node, BootID: s.BootID, App: r.App, Epoch: haengine.Epoch(r.Epoch),
		Resource: r.Resource, State: state, Exhausted: r.Conclusive && state == haengine.ResourceFailed, Why: r.Why,
	})
}

// known gives the highest epoch that the engine knows of an application, and if
// that is below the claimed one, the highest that the storage knows too: only an
// engine that lags behind its storage has it look through all volumes.
func (a *agents) known(app string, claimed haengine.Epoch) haengine.Epoch {
	if app == "" {
		return 0
	}
	var known haengine.Epoch
	if s := a.engine.Snapshot().Durable.Apps[app]; s != nil {
		known = s.Epoch
	}
	if known < claimed {
		known = max(known, a.volumes.floor(app))
	}
	return known
}

// progress notes how far a node is with a long order.
func (a *agents) progress(_ context.Context, s server.Session, p agentlink.Progress) {
	a.inventory.moves(s.Node, &p)
}

// Sample passes one look from the node on, if the node holds the grant.
func (a *agents) Sample(ctx context.Context, s server.Session, m agentlink.Sample) {
	app := a.engine.Snapshot().Durable.Apps[m.App]
	if app == nil || app.Grant == nil || app.Grant.Node != s.Node || app.Grant.BootID != s.BootID {
		return
	}
	a.submit(ctx, haengine.Sample{
		App: m.App, Monitor: m.Monitor, From: haengine.FromNode, Epoch: haengine.Epoch(m.Epoch), OK: m.OK, Why: m.Why,
		Latency: time.Duration(m.LatencyMicros) * time.Microsecond, At: time.Now(),
	})
}

func (a *agents) submit(ctx context.Context, e haengine.Event) {
	if err := a.engine.Submit(ctx, e); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "event lost", "event", fmt.Sprintf("%T", e), "err", err)
	}
}
