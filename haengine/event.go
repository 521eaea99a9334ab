package haengine

import (
	"time"

	"hotspare"
)

// Event is something that happened. The runner stamps each with the moment at
// which Step sees it.
type Event interface{ event() }

// PowerState is what a BMC says.
type PowerState string

// The power states. Everything in between and every strange answer is unknown.
const (
	PowerIsOn    PowerState = "on"
	PowerIsOff   PowerState = "off"
	PowerUnknown PowerState = "unknown"
)

// PowerReading is one answer of a BMC.
type PowerReading struct {
	State PowerState `json:"state"`
	At    time.Time  `json:"at,omitzero"`
	Err   string     `json:"err,omitempty"`
}

// PowerEvidence is the whole course of a power fence: every read in order. It
// proves something only when the last two reads are off (Proven).
type PowerEvidence struct {
	Reads []PowerReading `json:"reads"`
}

// Proven says whether off was read back twice in a row at the end.
func (e PowerEvidence) Proven() bool {
	n := len(e.Reads)
	return n >= 2 && e.Reads[n-1].State == PowerIsOff && e.Reads[n-2].State == PowerIsOff
}

// Revocation is the target's word that no epoch below Below can write any more:
// epoch durable, sessions closed, writes in flight landed or aborted, log-ins
// refused. Sessions counts those of data volumes that were open until then: a
// node that was released in order has none (a root stays in use until the node
// is off, and is not counted).
type Revocation struct {
	Below    Epoch     `json:"below"`
	Sessions int       `json:"sessions"`
	Drained  int       `json:"drained"`
	At       time.Time `json:"at,omitzero"`
}

// AddressProbe says whether an address answers, and who (a MAC) when it does.
type AddressProbe struct {
	Silent bool   `json:"silent"`
	By     string `json:"by,omitempty"`
}

// Resources as the operator declares them.
type (
	// NodeApplied declares or changes a node.
	NodeApplied struct{ Node Node }
	// NodeDeleted removes a node as soon as it is free.
	NodeDeleted struct{ Name string }
	// PoolApplied declares a pool.
	PoolApplied struct{ Pool Pool }
	// PoolDeleted removes a pool.
	PoolDeleted struct{ Name string }
	// AppApplied declares or changes an application. Its place is changed by the
	// next grant only; monitors and policy count at once.
	AppApplied struct{ Application Application }
	// AppDeleted stops an application in order, then forgets it.
	AppDeleted struct{ Name, By string }
	// SiteApplied sets the site's guards.
	SiteApplied struct{ Site Site }
)

// Observations.
type (
	// Tick lets time pass; everything that is missing is noticed on ticks.
	Tick struct{}

	// Sample is one result of a monitor.
	Sample struct {
		App     string        `json:"app"`
		Monitor string        `json:"monitor"`
		From    Vantage       `json:"from"`
		Epoch   Epoch         `json:"epoch,omitempty"` // of the grant that was looked at; 0: the current one
		OK      bool          `json:"ok"`
		Why     string        `json:"why,omitempty"` // when not OK: "connect: connection refused"
		Latency time.Duration `json:"latency"`
		At      time.Time     `json:"at,omitzero"` // start of the check, for display
	}

	// Heartbeat is the agent's voice. App is empty when it runs nothing. Runner
	// answers it with a lease or with a refusal (LeaseAllowed).
	Heartbeat struct {
		Node   string `json:"node"`
		BootID string `json:"bootID"`
		App    string `json:"app,omitempty"`
		Epoch  Epoch  `json:"epoch,omitempty"`
	}

	// PowerRead is an answer of a BMC that nobody ordered through an action.
	PowerRead struct {
		Node  string
		State PowerState
	}

	// Joined tells that an agent came with the one-time token of a grant.
	Joined struct {
		Node   string
		BootID string
		App    string // that the token was minted for; epochs of two applications may be equal
		Epoch  Epoch  // the token's
	}

	// Discovered tells that a node was seen, authenticated, in the discovery
	// environment: whatever it ran before this boot is gone. Facts and Copies are
	// nil when nothing was said about them.
	Discovered struct {
		Node   string
		BootID string
		Facts  *NodeFacts
		Copies []LocalCopy
	}

	// Parked tells that a node was seen, authenticated, in the standby environment,
	// and is told again whenever it connects. Whatever it ran before this boot is
	// gone. Turn is that of the ParkNode whose token it came with.
	Parked struct {
		Node   string
		BootID string
		Turn   Turn
		Kernel string // that it runs, as ImageFacts.Kernel
		Facts  *NodeFacts
		Copies []LocalCopy
	}

	// ImageSeen tells what is known about the image that a reference of
	// applications stands for now. It is told before the application that uses it,
	// and again when the reference comes to mean another image.
	ImageSeen struct{ Image ImageFacts }
	// ImageGone tells that a reference stands for nothing any more.
	ImageGone struct{ Ref string }

	// AgentReport is the agent's word about a resource of the service group;
	// with an empty Resource about the whole group.
	AgentReport struct {
		Node      string        `json:"node"`
		BootID    string        `json:"bootID"`
		App       string        `json:"app"`
		Epoch     Epoch         `json:"epoch"`
		Resource  string        `json:"resource,omitempty"`
		State     ResourceState `json:"state"`
		Exhausted bool          `json:"exhausted,omitempty"` // failed, and its local restarts are spent: conclusive
		Why       string        `json:"why,omitempty"`
	}

	// Dropped tells that the agent gave the service up by itself.
	Dropped struct {
		Node   string
		BootID string
		App    string
		Epoch  Epoch
		Why    string
	}

	// StorageSession tells that a session of one of the application's volumes
	// was opened or has ended.
	StorageSession struct {
		App   string
		Epoch Epoch
		Open  bool
	}

	// AddressAnswered tells that somebody answered on the service address.
	AddressAnswered struct{ App, By string }

	// Quarantine tells that a node is not to be trusted, e.g. because a join token
	// of its was presented twice. It is put aside unless it runs an application:
	// then the administrator is told and it is left alone.
	Quarantine struct {
		Node   string
		Code   hotspare.Code // of the notice
		Reason string
	}

	// SelfHealth tells whether the appliance itself is cut off (SAFETY S5).
	SelfHealth struct {
		Isolated bool
		Why      string
	}
)

// ResourceState is the state of a member of a service group.
type ResourceState string

// The states of a resource.
const (
	ResourceOnline  ResourceState = "online"
	ResourceRestart ResourceState = "starting" // was online; it is being started again on its node
	ResourceFailed  ResourceState = "failed"
	ResourceOffline ResourceState = "offline"
)

// Results of actions.
type (
	// Done ends an action. The field that belongs to its kind is set.
	Done struct {
		ID         ActionID       `json:"id"`
		Read       *PowerReading  `json:"read,omitempty"`       // ReadPower
		Power      *PowerEvidence `json:"power,omitempty"`      // PowerOff
		Revocation *Revocation    `json:"revocation,omitempty"` // Revoke
		Address    *AddressProbe  `json:"address,omitempty"`    // ProbeAddress
		Copy       *LocalCopy     `json:"copy,omitempty"`       // Install
	}

	// Failed ends one try of an action. The core orders it anew, under the same
	// number, when that makes sense.
	Failed struct {
		ID        ActionID
		Code      hotspare.Code
		Why       string
		Transient bool           // the same try may work in a moment
		Power     *PowerEvidence // PowerOff: what was read until then
	}
)

// Operators' commands. Refuse tells beforehand why one would be ignored.
type (
	// FailoverRequested moves an application, in order when it runs. It passes
	// the guards S6 and S11.
	// With a Way it is started in that way only.
	FailoverRequested struct {
		App, To, By string
		Way         Way
	}
	// PlannedRestart announces that the appliance will be away on purpose, for at
	// most so long: agents are given longer leases first (see RestartReady).
	PlannedRestart struct {
		For Duration
		By  string
	}
	// FreezeSet forbids effects in a scope.
	FreezeSet struct {
		Scope  Scope
		By     string
		Reason string
		Until  time.Time
	}
	// FreezeLifted ends a freeze.
	FreezeLifted struct {
		Scope Scope
		By    string
	}
	// ConfirmOff is a person's word that a node is down. With an empty Node and
	// an App it is about a grant whose node the appliance does not know.
	ConfirmOff struct{ Node, App, By string }
	// Unquarantine gives a node back to its pool and forgets its failures.
	Unquarantine struct{ Node, By string }
	// MaintenanceSet takes a free node out of its pool, or gives it back.
	MaintenanceSet struct {
		Node   string
		On     bool
		By     string
		Reason string
	}
)

// The appliance's own life.
type (
	// Restarted is the first event of every run: the monotonic clock is new,
	// every lease counts as renewed now, unfinished actions are ordered again.
	Restarted struct{}

	// EpochFloor tells that the storage knows a higher epoch of an application
	// than the state may: the higher one wins.
	EpochFloor struct {
		App   string
		Epoch Epoch
	}
)

func (NodeApplied) event()       {}
func (NodeDeleted) event()       {}
func (PoolApplied) event()       {}
func (PoolDeleted) event()       {}
func (AppApplied) event()        {}
func (AppDeleted) event()        {}
func (SiteApplied) event()       {}
func (Tick) event()              {}
func (Sample) event()            {}
func (Heartbeat) event()         {}
func (PowerRead) event()         {}
func (Joined) event()            {}
func (Discovered) event()        {}
func (Parked) event()            {}
func (ImageSeen) event()         {}
func (ImageGone) event()         {}
func (PlannedRestart) event()    {}
func (AgentReport) event()       {}
func (Dropped) event()           {}
func (StorageSession) event()    {}
func (AddressAnswered) event()   {}
func (Quarantine) event()        {}
func (SelfHealth) event()        {}
func (Done) event()              {}
func (Failed) event()            {}
func (FailoverRequested) event() {}
func (FreezeSet) event()         {}
func (FreezeLifted) event()      {}
func (ConfirmOff) event()        {}
func (Unquarantine) event()      {}
func (MaintenanceSet) event()    {}
func (Restarted) event()         {}
func (EpochFloor) event()        {}
