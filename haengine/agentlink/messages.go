package agentlink

import (
	"time"

	"hotspare"
	"hotspare/haengine"
)

// Kind names the message in a frame.
type Kind string

// The kinds of messages, with the direction in which each travels.
const (
	KindHello        Kind = "hello"        // node -> appliance: the first frame
	KindJoin         Kind = "join"         // node -> appliance: after Hello, without a certificate
	KindJoined       Kind = "joined"       // appliance -> node: the answer to Join
	KindWelcome      Kind = "welcome"      // appliance -> node: the answer to Hello with a certificate
	KindRefused      Kind = "refused"      // appliance -> node: the answer to either; the connection ends
	KindRenew        Kind = "renew"        // node -> appliance: a new certificate, please
	KindRenewed      Kind = "renewed"      // appliance -> node
	KindHeartbeat    Kind = "heartbeat"    // node -> appliance
	KindHeartbeatAck Kind = "heartbeatAck" // appliance -> node: carries the lease
	KindOrder        Kind = "order"        // appliance -> node
	KindResult       Kind = "result"       // node -> appliance: the answer to Order
	KindReport       Kind = "report"       // node -> appliance: a resource changed its state
	KindSample       Kind = "sample"       // node -> appliance: a monitor looked from the node
	KindProgress     Kind = "progress"     // node -> appliance: how far a long order is
	KindAnnounce     Kind = "announce"     // node -> appliance: after Hello, of a node that has no token
	KindNoted        Kind = "noted"        // appliance -> node: the answer to Announce; the connection ends
)

// Hello opens every connection.
type Hello struct {
	Software string `json:"software"` // version of the agent, for display
	Node     string `json:"node"`     // as the node's boot.json says; the certificate or the token decides
	BootID   string `json:"bootId"`   // /proc/sys/kernel/random/boot_id
}

// Join asks for a certificate.
type Join struct {
	Token string `json:"token"` // 64 hexadecimal digits, from boot.json
	Facts Facts  `json:"facts"`
	CSR   []byte `json:"csr"` // DER, PKCS #10 (RFC 2986), ECDSA P-256, made in the node's memory
}

// Joined is the certificate. The connection goes on as the node's session.
type Joined struct {
	Node        string    `json:"node"`
	Certificate []byte    `json:"certificate"` // DER
	NotAfter    time.Time `json:"notAfter"`
	ServerTime  time.Time `json:"serverTime"`
	Epoch       uint64    `json:"epoch"` // the grant that the token was minted for; 0: none
}

// Welcome greets a node that came back with its certificate.
type Welcome struct {
	ServerTime time.Time `json:"serverTime"`
}

// Refused ends a connection. The text is for the node's console.
type Refused struct {
	Code  hotspare.Code `json:"code"`
	Why   string        `json:"why"`
	Retry bool          `json:"retry"` // the same attempt may succeed later
}

// Renew asks for a certificate over the authenticated link.
type Renew struct {
	CSR []byte `json:"csr"`
}

// Renewed is the answer to Renew.
type Renewed struct {
	Certificate []byte            `json:"certificate"`
	Life        haengine.Duration `json:"life"` // from now on
}

// ResourceState is the state of one member of the service group.
type ResourceState string

// The states of a resource. Failed is a fact about the resource; whether the
// failure is conclusive stands in the Report.
const (
	ResourceOffline  ResourceState = "offline"
	ResourceStarting ResourceState = "starting"
	ResourceOnline   ResourceState = "online"
	ResourceStopping ResourceState = "stopping"
	ResourceFailed   ResourceState = "failed"
)

// Resource is the state of one resource in a heartbeat.
type Resource struct {
	Name  string                `json:"name"`
	Kind  haengine.ResourceKind `json:"kind"`
	State ResourceState         `json:"state"`
	Why   string                `json:"why,omitempty"`
}

// Phase is what the agent as a whole is doing.
type Phase string

// The phases of an agent's life.
const (
	PhaseParked    Phase = "parked"    // joined, no claim
	PhaseClaiming  Phase = "claiming"  // volumes, root, switch, systemd
	PhaseOnlining  Phase = "onlining"  // the service group comes online
	PhaseOnline    Phase = "online"    // all resources are online
	PhaseDegraded  Phase = "degraded"  // a resource has failed
	PhaseReleasing Phase = "releasing" // orderly stop
	PhaseReleased  Phase = "released"  // stopped, unmounted, address removed, logged out
	PhaseFailed    Phase = "failed"    // the claim failed; nothing is online
	PhaseDropping  Phase = "dropping"  // self-fencing
	PhaseLeaving   Phase = "leaving"   // parked, and about to execute another kernel or to end this boot
)

// Heartbeat says that the agent lives and what it carries. App is empty while
// it carries nothing; then no lease is asked for.
type Heartbeat struct {
	Seq       uint64     `json:"seq"` // counts from 1 on each connection
	Phase     Phase      `json:"phase"`
	App       string     `json:"app,omitempty"`
	Epoch     uint64     `json:"epoch,omitempty"`
	Resources []Resource `json:"resources,omitempty"`
	Metrics   Metrics    `json:"metrics"`
	Marks     []Mark     `json:"marks,omitempty"` // of this boot, in the first heartbeat of a connection and in the next after a new one

	Health    *Health  `json:"health,omitempty"`    // in the first heartbeat of a connection and in every HealthEvery-th
	Preloaded []string `json:"preloaded,omitempty"` // SHA-256 of the artefacts that are in the node's memory, while parked
}

// HealthEvery says in which heartbeats the node's health stands.
const HealthEvery = 10

// MaxMarks bounds the marks of one boot.
const MaxMarks = 32

// Mark is a point that the node has passed since its kernel started: init,
// agent, link, address, joined, claim, switch, systemd, online.
type Mark struct {
	Name     string `json:"name"`
	UpMillis int64  `json:"upMillis"` // the node's CLOCK_BOOTTIME
}

// Metrics are a few figures of the node.
type Metrics struct {
	UptimeMillis      int64   `json:"uptimeMillis"` // since the kernel started
	Load1             float64 `json:"load1"`
	MemAvailableMiB   int     `json:"memAvailableMiB"`
	AgentRSSKiB       int     `json:"agentRssKiB"`
	WitnessCounter    uint64  `json:"witnessCounter,omitempty"`
	LeaseMillisLeft   int64   `json:"leaseMillisLeft,omitempty"`
	StorageLostMillis int64   `json:"storageLostMillis,omitempty"` // 0: every session is up
}

// HeartbeatAck answers a Heartbeat. Granted renews the lease of the heartbeat's
// app and epoch until (time at which that heartbeat was sent) + Lease. Neither
// Granted nor Drop: the lease is not renewed and ends when it ends.
type HeartbeatAck struct {
	Seq     uint64            `json:"seq"`
	Granted bool              `json:"granted"`
	Drop    bool              `json:"drop"` // the grant is over: drop the service now
	Reason  string            `json:"reason,omitempty"`
	Lease   haengine.Duration `json:"lease"`
	Epoch   uint64            `json:"epoch"`             // the durable epoch of the app
	Reports uint64            `json:"reports,omitempty"` // highest Report.Seq handled on this connection; filled in by the server

	// Over tells of grants that ended: every epoch of the application below
	// the number is over. The node refuses orders of one from then on, and
	// gives up what it is doing under one. It is how a parked node learns that
	// its way was superseded.
	Over map[string]uint64 `json:"over,omitempty"`
}

// Report says that a resource changed its state. A report is sent again after
// a reconnection until a HeartbeatAck has named its number, so it may come twice.
type Report struct {
	Seq        uint64        `json:"seq"`
	App        string        `json:"app"`
	Epoch      uint64        `json:"epoch"`
	Resource   string        `json:"resource"` // empty: the service group as a whole
	State      ResourceState `json:"state"`
	Why        string        `json:"why,omitempty"`
	Conclusive bool          `json:"conclusive"`        // local restarts are exhausted, or none are allowed (SAFETY S7)
	Dropped    bool          `json:"dropped,omitempty"` // the service was dropped: address removed, group killed; a reboot follows
	UpMillis   int64         `json:"upMillis"`          // the node's CLOCK_BOOTTIME when it happened
}

// Sample is one look of a monitor from the node.
type Sample struct {
	App           string `json:"app"`
	Epoch         uint64 `json:"epoch"`
	Monitor       string `json:"monitor"`
	OK            bool   `json:"ok"`
	Why           string `json:"why,omitempty"`
	LatencyMicros int64  `json:"latencyMicros"`
	UpMillis      int64  `json:"upMillis"`
}

// Progress tells how far an order is that takes long. It is lost with the link,
// and the next one tells more.
type Progress struct {
	OrderID  string `json:"orderId"`
	Step     string `json:"step"`  // e.g. "write", "verify"
	Done     int64  `json:"done"`  // bytes
	Total    int64  `json:"total"` // bytes; 0: unknown
	Why      string `json:"why,omitempty"`
	UpMillis int64  `json:"upMillis"`
}

// Announce are the claims of a node that has no token: nobody has approved it.
// They are worth nothing but to be shown to an operator.
type Announce struct {
	Facts Facts `json:"facts"`
}

// Noted answers Announce. It gives nothing away.
type Noted struct {
	Again haengine.Duration `json:"again"` // announce again after this time
	Boot  bool              `json:"boot"`  // the node was approved: boot again, for a token
	Why   string            `json:"why,omitempty"`
}
