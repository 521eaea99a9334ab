// Package runner drives the engine's pure core: an event goes into
// haengine.Step, the new state is journalled, then its actions are performed
// and their results come back as events.
//
// Step runs in one goroutine; actions run concurrently, each under a deadline
// and cancelled when the core withdraws them. The runner decides nothing: it
// retries nothing by itself and hides no failure. What acts is behind the small
// interfaces below, which the appliance implements; they serialise per node and
// refuse an epoch lower than one they have seen.
//
// Machine is the same without goroutines, clocks or deadlines: the simulator
// (testenv/sim) drives it step by step.
package runner

import (
	"context"
	"net/netip"
	"time"

	"hotspare/haengine"
)

// Power reads and fences through a node's BMC. A PowerOff that returns without
// error still proves something only when its evidence does.
type Power interface {
	ReadPower(ctx context.Context, node string) (haengine.PowerState, error)
	PowerOff(ctx context.Context, p haengine.PowerOff) (haengine.PowerEvidence, error)
}

// Booter starts nodes and takes them back. Boot leaves a node alone that has
// joined for the same epoch already; with a BootID it powers nothing on, but has
// that parked boot execute the image's kernel. Park boots a node into standby.
// Return removes the node's assignments when its BMC queue is drained.
type Booter interface {
	Boot(ctx context.Context, b haengine.Boot) error
	CancelBoot(ctx context.Context, c haengine.CancelBoot) error
	Return(ctx context.Context, r haengine.ReturnNode) error
	Park(ctx context.Context, p haengine.ParkNode) error
}

// Volumes exports and revokes an application's volumes.
type Volumes interface {
	Attach(ctx context.Context, a haengine.Attach) error
	Revoke(ctx context.Context, r haengine.Revoke) (haengine.Revocation, error)
	DeleteRoot(ctx context.Context, d haengine.DeleteRoot) error
}

// Agents gives orders to the agents. Both return when the agent answered; an agent
// of another boot than the order's refuses (not transient).
type Agents interface {
	Claim(ctx context.Context, c haengine.Claim) error
	Release(ctx context.Context, r haengine.Release) error
}

// Preparer gives orders to nodes that carry nothing yet: none of them starts an
// application. An agent of another boot than the order's refuses.
type Preparer interface {
	Install(ctx context.Context, i haengine.Install) (haengine.LocalCopy, error)
	Preload(ctx context.Context, p haengine.Preload) error
	DisableCopies(ctx context.Context, d haengine.DisableCopies) error
}

// Prober asks whether a service address is silent; who (a MAC) when it is not.
type Prober interface {
	AddressSilent(ctx context.Context, app string, addr netip.Prefix) (silent bool, by string, err error)
}

// Notifier tells the administrator.
type Notifier interface {
	Notify(ctx context.Context, n haengine.Notice) error
}

// Journal keeps the durable state. Save returns only when the delta would
// survive a loss of power. After an error of Save the state in memory is ahead
// of the journal and the process must not act any more.
type Journal interface {
	Save(ctx context.Context, d haengine.Delta) error
	Load(ctx context.Context) (haengine.Durable, error)
}

// Clock gives the appliance's time. Now is monotonic; a suspended host must not
// stop it (CLOCK_BOOTTIME).
type Clock interface {
	Now() haengine.Instant
	Wall() time.Time
	Tick() (ticks <-chan time.Time, stop func())
}

// Transient marks an error of the interfaces above after which the same try may
// work in a moment: a busy BMC, a lost connection. errors.As finds it.
type Transient interface{ Transient() bool }
