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
)

// Hello opens every connection.
type Hello struct {
	Software string `json:"software"` // version of the agent, for display
	Node     string `json:"node"`     // as the node's boot.json says; the certificate or the token decides
	BootID   string `json:"bootId"`   // /proc/sys/kernel/random/boot_id
}

// Facts are what the agent found on its node.
type Facts struct {
	UUID      string   `json:"uuid"` // /sys/class/dmi/id/product_uuid, lower case; empty where there is none
	Serial    string   `json:"serial,omitempty"`
	MACs      []string `json:"macs"` // lower case, the one that booted first
	Address   string   `json:"address,omitempty"`
	CPUs      int      `json:"cpus"`
	MemoryMiB int      `json:"memoryMiB"`
	Arch      string   `json:"arch"` // GOARCH word
	Kernel    string   `json:"kernel"`
	BootID    string   `json:"bootId"`
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
