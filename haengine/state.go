package haengine

import (
	"time"

	"hotspare"
)

// StateVersion is the version of the durable state's encoding.
//
// Version 2 added ways, standby, local copies and longer leases to version 1, all of
// them absent where they are zero: a state of version 1 is read as it is, and
// written as version 2 with the first step (Restarted). An older hotspare must
// not read it: it would not know what a parked node or a local copy is.
const StateVersion = 2

const oldestVersion = 1

// State is all that the engine knows. Values reached through it are immutable:
// Step copies what it changes, so a State may be kept and read while the engine
// goes on.
type State struct {
	Durable Durable `json:"durable"`
	Soft    Soft    `json:"soft"`

	delta Delta
}

// Durable is the part of the state that is journalled BEFORE any action of the
// same step is performed, and that a restart starts from.
type Durable struct {
	Version      int                      `json:"version"`
	Site         Site                     `json:"site"`
	Nodes        map[string]*NodeState    `json:"nodes"`
	Pools        map[string]*Pool         `json:"pools"`
	Apps         map[string]*AppState     `json:"apps"`
	Floors       map[string]Epoch         `json:"floors"` // per application name, kept after its deletion: no epoch is used twice
	Failovers    map[FailoverID]*Failover `json:"failovers"`
	Freezes      map[string]*Freeze       `json:"freezes"` // by Scope.String
	Pending      map[ActionID]*Pending    `json:"pending"` // ordered, not finished
	Incidents    map[string]Stamp         `json:"incidents"`
	NextAction   ActionID                 `json:"nextAction"`
	NextFailover FailoverID               `json:"nextFailover"`
	Fences       []Stamp                  `json:"fences"`            // power fences of failures within Site.FenceWindow
	Images       map[string]*ImageFacts   `json:"images,omitempty"`  // by ImageFacts.Ref
	Times        map[string]*Measured     `json:"times,omitempty"`   // by timeKey: how long starts took
	Planned      *Planned                 `json:"planned,omitempty"` // a restart of the appliance that was announced
}

// Soft is the part of the state that is not journalled: what was seen lately.
type Soft struct {
	Now         Stamp                 `json:"now"`
	RestartedAt Instant               `json:"restartedAt"` // every lease counts as renewed then
	QuietUntil  Instant               `json:"quietUntil"`  // before it, only conclusive proofs count
	Isolated    bool                  `json:"isolated"`
	IsolatedWhy string                `json:"isolatedWhy,omitempty"`
	Storm       Stamp                 `json:"storm,omitzero"` // when many nodes were silent together last (S6)
	StormText   string                `json:"stormText,omitempty"`
	Apps        map[string]*AppSoft   `json:"apps"`
	Nodes       map[string]*NodeSoft  `json:"nodes"`
	Leases      map[string]Instant    `json:"leases"` // by leaseKey: when the leases end that heartbeats of that grant were answered with
	Pending     map[ActionID]*Pending `json:"pending"`
	Said        []Entry               `json:"-"` // what the last step has to tell, in order
}

// Site holds the guards that span applications. The zero value of each field
// means its default.
type Site struct {
	StormNodes  int      `json:"stormNodes,omitempty"`  // S6: at least this many silent nodes (3) ...
	StormShare  float64  `json:"stormShare,omitempty"`  // ... and this share of the nodes that carry something (0.5)
	FenceBudget int      `json:"fenceBudget,omitempty"` // S6: power fences of failures within FenceWindow (10)
	FenceWindow Duration `json:"fenceWindow,omitempty"` // 10m
	PowerEvery  Duration `json:"powerEvery,omitempty"`  // idle nodes' BMCs are read this often (1m)
	Grace       Duration `json:"grace,omitempty"`       // after a restart only conclusive proofs count for this long (10s)
}

// NodePhase is what a node is doing.
type NodePhase string

// The phases of a node.
const (
	NodeIdle        NodePhase = "idle"        // free, may be chosen
	NodeReserved    NodePhase = "reserved"    // chosen; nothing was ordered to run on it yet
	NodeOwned       NodePhase = "owned"       // carries a grant
	NodeFencing     NodePhase = "fencing"     // lost its grant; not yet proven off
	NodeReturning   NodePhase = "returning"   // proven off; its traces are being removed
	NodeQuarantined NodePhase = "quarantined" // failed an attempt; not chosen again until lifted
	NodeMaintenance NodePhase = "maintenance" // taken out by an operator or kept for inspection
)

// NodeState is a node and what the engine holds against or for it.
type NodeState struct {
	Spec     Node      `json:"spec"`
	Phase    NodePhase `json:"phase"`
	Since    Stamp     `json:"since"`
	Owner    string    `json:"owner,omitempty"` // application
	Epoch    Epoch     `json:"epoch,omitempty"` // of the owner's grant
	Turn     Turn      `json:"turn,omitempty"`
	BootID   string    `json:"bootID,omitempty"`
	Reason   string    `json:"reason,omitempty"`   // why it is in this phase
	Then     NodePhase `json:"then,omitempty"`     // phase after it was returned: idle (""), quarantined, maintenance
	OffProof *Evidence `json:"offProof,omitempty"` // power evidence in this phase
	Removing bool      `json:"removing,omitempty"` // deleted by an operator; goes when it is free

	Facts     *NodeFacts  `json:"facts,omitempty"`  // as its agent said last
	Park      *Park       `json:"park,omitempty"`   // its standby, ordered or reached; it has no owner by that
	Copies    []LocalCopy `json:"copies,omitempty"` // of applications on its local disks
	Listed    bool        `json:"listed,omitempty"` // an agent has said what its disks hold
	ParkFails int         `json:"parkFails,omitempty"`
	ParkAfter Stamp       `json:"parkAfter,omitzero"` // it is not put in standby before
	ParkWhy   string      `json:"parkWhy,omitempty"`  // why it is not in standby, or left it
}

// Phase is where an application stands.
type Phase string

// The phases of an application. Suspect is derived (PhaseOf), never stored.
const (
	PhaseUndecided Phase = "undecided" // declared; no grant yet
	PhaseReleasing Phase = "releasing" // the old grant ends in order (switchover, deletion)
	PhaseFencing   Phase = "fencing"   // evidence about earlier grants is awaited
	PhaseAttaching Phase = "attaching" // volumes are being exported to the new node
	PhaseStarting  Phase = "starting"  // the new node boots; its agent has not joined
	PhaseOnlining  Phase = "onlining"  // claimed; the application's own check has not passed
	PhaseRunning   Phase = "running"   // the application's own check passed
	PhaseSuspect   Phase = "suspect"   // running, and something looks wrong
	PhaseBlocked   Phase = "blocked"   // cannot go on safely; Reason and Fix say why
	PhaseDown      Phase = "down"      // failed, and nobody is eligible or a guard holds
)

// AppState is an application and its grants.
type AppState struct {
	Spec      Application   `json:"spec"`
	Phase     Phase         `json:"phase"`
	Since     Stamp         `json:"since"`
	Epoch     Epoch         `json:"epoch"`            // highest ever granted or seen
	Grant     *Grant        `json:"grant,omitempty"`  // being built or live
	Old       []Grant       `json:"old,omitempty"`    // earlier grants that need, or lately got, exclusion evidence
	Failover  FailoverID    `json:"failover"`         // the open one, or 0
	Resume    Phase         `json:"resume,omitempty"` // while blocked: the phase that goes on
	Code      hotspare.Code `json:"code,omitempty"`   // while blocked or down
	Reason    string        `json:"reason,omitempty"`
	Fix       string        `json:"fix,omitempty"`
	Hold      *Hold         `json:"hold,omitempty"` // the guard that holds a decision
	Attempts  int           `json:"attempts,omitempty"`
	Waiting   bool          `json:"waiting,omitempty"` // attempts are spent: waits for news or RetryAfter
	Revoked   Epoch         `json:"revoked"`           // the target confirmed: no epoch below this one can write
	RevokedAt Stamp         `json:"revokedAt"`
	Asked     *Asked        `json:"asked,omitempty"` // an operator's request that is not decided yet
	Removing  bool          `json:"removing,omitempty"`
	Failures  []Failure     `json:"failures,omitempty"` // nodes where it failed lately
	Ledger    []Stamp       `json:"ledger,omitempty"`   // failovers within Policy.FailoverWindow (S11)
}

// Grant is the right of one boot of one node to run the application.
type Grant struct {
	Epoch     Epoch      `json:"epoch"`
	Node      string     `json:"node"` // empty: unknown, found in the store's epochs only
	Way       Way        `json:"way"`
	From      string     `json:"from,omitempty"`   // the parked boot that it begins from; empty: the node is powered on for it
	Direct    bool       `json:"direct,omitempty"` // the boot of From is claimed as it is
	Copy      *LocalCopy `json:"copy,omitempty"`   // ways install and slot: what is started
	Lost      string     `json:"lost,omitempty"`   // the node is not what it was taken for: why
	BootID    string     `json:"bootID,omitempty"` // of the boot that joined for it, or that is claimed as it is
	Since     Stamp      `json:"since"`
	Prepared  bool       `json:"prepared,omitempty"`  // the node was proven off before its boot
	Attached  bool       `json:"attached,omitempty"`  // an Attach was ordered
	AttachEnd bool       `json:"attachEnd,omitempty"` // the volumes are exported
	Booted    bool       `json:"booted,omitempty"`    // a Boot was ordered
	BootDone  Stamp      `json:"bootDone,omitzero"`   // the power-on was confirmed
	Joined    Stamp      `json:"joined,omitzero"`     // when the agent came
	Claimed   bool       `json:"claimed,omitempty"`   // a Claim was ordered: from here on the application may run there
	ClaimedAt Stamp      `json:"claimedAt,omitzero"`
	Began     Stamp      `json:"began,omitzero"`      // when nothing stood against its start any more; zero after a restart of the appliance
	Installed bool       `json:"installed,omitempty"` // way install: the copy is on the disk
	Lease     Duration   `json:"lease,omitempty"`     // as told to the agent
	Longest   Duration   `json:"longest,omitempty"`   // longer leases that were promised for a planned restart and may still run
	LongUntil Stamp      `json:"longUntil,omitzero"`  // when the last of them is over; zero: they are still given
	Bound     Duration   `json:"bound,omitempty"`     // drop bound plus margin, as of the claim
	Exclusion *Exclusion `json:"exclusion,omitempty"` // once it is an earlier grant
}

// Exclusion gathers what is known about the end of an earlier grant.
type Exclusion struct {
	Since        Stamp      `json:"since"`
	Orderly      bool       `json:"orderly,omitempty"`     // a Release was ordered and has not failed
	Released     bool       `json:"released,omitempty"`    // the agent attested the release
	PowerFailed  string     `json:"powerFailed,omitempty"` // the power fence failed for good this time; it is retried
	Contradicted Stamp      `json:"contradicted,omitzero"` // the last sign of life after a proof
	Proof        *Evidence  `json:"proof,omitempty"`
	Void         []Evidence `json:"void,omitempty"` // proofs that were contradicted
}

// Evidence is one accepted proof.
type Evidence struct {
	Kind  EvidenceKind   `json:"kind"`
	At    Stamp          `json:"at"`
	Text  string         `json:"text"`
	Reads []PowerReading `json:"reads,omitempty"`
	By    string         `json:"by,omitempty"`
	Void  string         `json:"void,omitempty"` // what contradicted it
}

// Asked is an operator's request for a failover or switchover.
type Asked struct {
	To  string `json:"to,omitempty"`
	Way Way    `json:"way,omitempty"`
	By  string `json:"by"`
}

// Failure remembers that the application failed on a node: it is not tried
// there again before Policy.RetryAfter, and then last.
//
// A failure of a start from standby with Parked set is held against the way, not
// against the node: the node may be tried in another way at once.
type Failure struct {
	Node   string `json:"node"`
	Way    Way    `json:"way,omitempty"`
	Parked bool   `json:"parked,omitempty"`
	At     Stamp  `json:"at"`
	Why    string `json:"why"`
}

// Hold is a guard that keeps a decision from being acted on.
type Hold struct {
	Rule string `json:"rule"` // S5, S6, S9 or S11
	Text string `json:"text"`
	Lift string `json:"lift"` // what lifts it
}

// Freeze means no effects in its scope (SAFETY S9).
type Freeze struct {
	Scope  Scope     `json:"scope"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     Stamp     `json:"at"`
	Until  time.Time `json:"until,omitzero"` // zero: until it is lifted
}

// Scope is an application, a pool, or with both empty the whole site.
type Scope struct {
	App  string `json:"app,omitempty"`
	Pool string `json:"pool,omitempty"`
}

// String gives "site", "pool NAME" or "app NAME".
func (s Scope) String() string {
	switch {
	case s.App != "":
		return "app " + s.App
	case s.Pool != "":
		return "pool " + s.Pool
	}
	return "site"
}

// Entry is one line of the history that operators read.
type Entry struct {
	Stamp
	App      string        `json:"app,omitempty"`
	Node     string        `json:"node,omitempty"`
	Epoch    Epoch         `json:"epoch,omitempty"`
	Failover FailoverID    `json:"failover,omitempty"`
	Code     hotspare.Code `json:"code,omitempty"`
	Text     string        `json:"text"`
}

// AppSoft is what was seen of an application lately; it belongs to one epoch.
type AppSoft struct {
	Epoch       Epoch             `json:"epoch"`
	Since       Instant           `json:"since"`  // when these counters began
	Checks      map[string]*Check `json:"checks"` // by monitor name and vantage, "sql/appliance"
	LastGood    Stamp             `json:"lastGood"`
	Suspected   Stamp             `json:"suspected"`  // first sign of the current suspicion, or zero
	Heartbeat   Stamp             `json:"heartbeat"`  // of the current grant
	Failing     map[string]string `json:"failing"`    // by resource, "" for the whole group: what the agent says of it; not conclusive
	Restarting  Stamp             `json:"restarting"` // when the agent first said that it restarts what failed, or zero
	Conclusive  string            `json:"conclusive"`
	SessionOpen bool              `json:"sessionOpen"`
	SessionEnd  Stamp             `json:"sessionEnd"`
	Address     AddressProbe      `json:"address"` // the last probe of the service address in this grant
	AddressAt   Stamp             `json:"addressAt"`
	Warm        string            `json:"warm,omitempty"` // the parked node that is held ready while the application is suspect
}

// Check counts the samples of one monitor from one vantage.
type Check struct {
	Monitor string  `json:"monitor"`
	From    Vantage `json:"from"`
	OK      bool    `json:"ok"` // the last sample
	Why     string  `json:"why,omitempty"`
	At      Stamp   `json:"at"`
	Good    int     `json:"good"`   // in a row
	Bad     int     `json:"bad"`    // in a row
	Failed  bool    `json:"failed"` // Bad reached Failures and Good has not yet reached Successes
}

// NodeSoft is what was seen of a node lately.
type NodeSoft struct {
	Power      PowerState `json:"power"`
	PowerAt    Stamp      `json:"powerAt"`
	BMCDead    string     `json:"bmcDead,omitempty"` // the last read failed: why
	Asked      Stamp      `json:"asked"`             // when the last read was ordered
	Heard      Stamp      `json:"heard"`             // last heartbeat of any kind
	HeardBoot  string     `json:"heardBoot,omitempty"`
	Discovered string     `json:"discovered,omitempty"` // boot id seen in discovery
	SeenAt     Stamp      `json:"seenAt"`               // when it was seen there
}
