package api

import (
	"net/netip"
	"time"

	"hotspare/boot"
	"hotspare/haengine"
)

// Snapshot is everything that the console and `hotspare get` show, as of one
// moment.
type Snapshot struct {
	At           time.Time     `json:"at"`
	Site         Site          `json:"site"`
	Pools        []Pool        `json:"pools"`
	Nodes        []Node        `json:"nodes"`
	Images       []Image       `json:"images"`
	Volumes      []Volume      `json:"volumes"`
	Applications []Application `json:"applications"`
	Failovers    []Failover    `json:"failovers"` // newest first
}

// Site is the state of the appliance itself.
type Site struct {
	Verdict string   `json:"verdict"` // one sentence, e.g. "2 applications run, 2 nodes are spare"
	Holds   []string `json:"holds,omitempty"`
	Version string   `json:"version"`
}

// Pool is a pool with the number of its nodes by phase.
type Pool struct {
	haengine.Pool
	Nodes int `json:"nodes"`
	Idle  int `json:"idle"`
}

// Node is a node as declared, with what is known of it.
type Node struct {
	haengine.Node
	Status NodeStatus `json:"status"`
}

// NodeStatus is what the appliance knows of a node.
type NodeStatus struct {
	Phase       string     `json:"phase"` // idle, reserved, owned, fencing, returning, quarantined
	Reason      string     `json:"reason,omitempty"`
	Power       string     `json:"power"` // on, off, unknown: as last read
	Application string     `json:"application,omitempty"`
	Epoch       uint64     `json:"epoch,omitempty"`
	BootID      string     `json:"bootId,omitempty"`
	Address     netip.Addr `json:"address,omitzero"` // of its DHCP lease
	Linked      bool       `json:"linked"`           // the agent is connected
	LastSeen    *time.Time `json:"lastSeen,omitempty"`
	Standby     *Parking   `json:"standby,omitempty"` // it waits, or is on its way to waiting

	Copies      []LocalCopy   `json:"copies,omitempty"`      // images of applications on its local disks
	Inventory   *MachineFacts `json:"inventory,omitempty"`   // what its agent found when it joined last
	InventoryAt *time.Time    `json:"inventoryAt,omitempty"` // when that was
	Health      *NodeHealth   `json:"health,omitempty"`      // what its sensors said last
	Busy        *NodeWork     `json:"busy,omitempty"`        // a long order that it carries out
}

// LocalCopy is an image of an application on a local disk.
type LocalCopy struct {
	Application string `json:"application"`
	Image       string `json:"image"` // name:version
	Disk        string `json:"disk,omitempty"`
	Slot        string `json:"slot,omitempty"`
	State       string `json:"state"` // writing, ready, started, disabled, failed
	Epoch       uint64 `json:"epoch,omitempty"`
}

// NodeHealth is what the sensors of a node say.
type NodeHealth struct {
	At           time.Time         `json:"at"`
	Temperatures []NodeTemperature `json:"temperatures,omitempty"`
	MemoryErrors uint64            `json:"memoryErrors"` // corrected, since its kernel started
	MemoryFatal  uint64            `json:"memoryFatal"`  // not corrected
	LinksDown    []string          `json:"linksDown,omitempty"`
}

// NodeTemperature is one sensor.
type NodeTemperature struct {
	Name     string `json:"name"`
	MilliC   int    `json:"milliC"`
	Critical int    `json:"critical,omitempty"` // 0: unknown
}

// NodeWork is how far a node is with a long order, such as an installation.
type NodeWork struct {
	Step  string `json:"step"`
	Done  int64  `json:"done"`  // bytes
	Total int64  `json:"total"` // bytes; 0: unknown
}

// The states of a node's standby.
const (
	StandbyBooting = "booting"
	StandbyParked  = "parked"
)

// Parking is a node's standby.
type Parking struct {
	State  string     `json:"state"`            // booting, parked
	For    []string   `json:"for,omitempty"`    // applications, the likeliest first
	Image  string     `json:"image,omitempty"`  // whose kernel it runs
	Kernel string     `json:"kernel,omitempty"` // identity of that kernel and its modules
	Since  *time.Time `json:"since,omitempty"`
	Loaded []string   `json:"loaded,omitempty"` // images that it has ready
	Why    string     `json:"why,omitempty"`    // why the last preload failed
}

// Image is an image version in the repository.
type Image struct {
	Name         string    `json:"name"`
	Version      string    `json:"version"`
	Digest       string    `json:"digest"`       // SHA-256 of the raw disk contents
	SourceSHA256 string    `json:"sourceSha256"` // of the file as it was given
	SizeBytes    int64     `json:"sizeBytes"`
	Arch         string    `json:"arch"`
	OS           string    `json:"os,omitempty"`
	Kernel       string    `json:"kernel,omitempty"`
	Created      time.Time `json:"created"`

	Volume    string     `json:"volume,omitempty"`    // none: it runs from memory
	Origin    string     `json:"origin,omitempty"`    // a URL, an OCI reference, a recipe
	Starts    []string   `json:"starts,omitempty"`    // kernel, san, ram
	Firmware  []string   `json:"firmware,omitempty"`  // on which the disk starts by itself
	Init      string     `json:"init,omitempty"`      // none: the image is one process; unknown: nobody looked
	CloudInit string     `json:"cloudInit,omitempty"` // yes, no; none: nobody looked
	Signer    string     `json:"signer,omitempty"`
	Notes     []string   `json:"notes,omitempty"`  // what is not as it may be expected
	Tested    *ImageTest `json:"tested,omitempty"` // the last test-boot
}

// Volume is a volume of the store with its export.
type Volume struct {
	Name       string       `json:"name"`
	SizeBytes  int64        `json:"sizeBytes"`
	Allocated  int64        `json:"allocatedBytes"`
	Parent     string       `json:"parent,omitempty"`
	Snapshot   bool         `json:"snapshot,omitempty"`
	ReadOnly   bool         `json:"readOnly,omitempty"`
	Stopped    *Problem     `json:"stopped,omitempty"` // why it serves nobody any more
	Epoch      uint64       `json:"epoch,omitempty"`   // durable: nothing below it is admitted
	Target     string       `json:"target,omitempty"`
	Sessions   []Session    `json:"sessions,omitempty"`
	WritesOps  uint64       `json:"writes,omitempty"`
	ReadsOps   uint64       `json:"reads,omitempty"`
	LastWrite  *time.Time   `json:"lastWrite,omitempty"`
	LastFlush  *time.Time   `json:"lastFlush,omitempty"`
	Activity   *VolumeStats `json:"activity,omitempty"` // none: no command since the start
	Created    time.Time    `json:"created"`
	GrantNode  string       `json:"grantNode,omitempty"`
	GrantEpoch uint64       `json:"grantEpoch,omitempty"`
}

// VolumeStats is what a volume did since the appliance started, and does now.
type VolumeStats struct {
	Read    CommandStats `json:"read"`
	Write   CommandStats `json:"write"`
	Flush   CommandStats `json:"flush"`
	Discard CommandStats `json:"discard"`
	// InFlight commands are under way now; Queue was the mean of them lately.
	InFlight int64   `json:"inFlight"`
	Queue    float64 `json:"queue"`
}

// CommandStats counts one kind of command. Latencies are from the session's gate
// to the device's answer; a quantile is up to a quarter above the truth.
type CommandStats struct {
	Count          uint64  `json:"count"`
	Bytes          uint64  `json:"bytes,omitempty"`
	PerSecond      float64 `json:"perSecond"`      // lately
	BytesPerSecond float64 `json:"bytesPerSecond"` // lately
	P50Micros      float64 `json:"p50Micros"`
	P99Micros      float64 `json:"p99Micros"`
	MaxMicros      float64 `json:"maxMicros"`
}

// Session is one iSCSI session on a volume.
type Session struct {
	Initiator string     `json:"initiator"`
	Address   string     `json:"address"`
	Node      string     `json:"node,omitempty"`
	Epoch     uint64     `json:"epoch"`
	Since     time.Time  `json:"since"`
	LastWrite *time.Time `json:"lastWrite,omitempty"`
	InFlight  int64      `json:"inFlight"`
}

// Application is an application as declared, with its state.
type Application struct {
	haengine.Application
	Status ApplicationStatus `json:"status"`
}

// ApplicationStatus is where an application is and how it is.
type ApplicationStatus struct {
	Phase    string     `json:"phase"` // placing, fencing, attaching, starting, onlining, running, suspect, releasing, blocked, down
	Reason   string     `json:"reason,omitempty"`
	Node     string     `json:"node,omitempty"`
	Epoch    uint64     `json:"epoch,omitempty"`
	Way      string     `json:"way,omitempty"`
	Evidence string     `json:"evidence,omitempty"` // that excluded the previous node
	Proven   string     `json:"proven,omitempty"`   // "one runner" or "one writer, one runner after the drop bound"
	Since    *time.Time `json:"since,omitempty"`
	Failover string     `json:"failover,omitempty"` // the running one, else the last one
	Frozen   string     `json:"frozen,omitempty"`   // by whom, why and until when
	Checks   []Check    `json:"checks,omitempty"`
}

// Check is the last word of one monitor from one vantage.
type Check struct {
	Monitor string     `json:"monitor"`
	Vantage string     `json:"vantage"`
	OK      bool       `json:"ok"`
	Why     string     `json:"why,omitempty"`
	At      *time.Time `json:"at,omitempty"`
}

// Failover is the record of one hand-over.
type Failover struct {
	ID          string             `json:"id"`
	Application string             `json:"application"`
	Cause       string             `json:"cause"`
	From        string             `json:"from,omitempty"`
	To          string             `json:"to,omitempty"`
	Epoch       uint64             `json:"epoch"`
	Way         string             `json:"way,omitempty"`
	Evidence    string             `json:"evidence,omitempty"`
	Outcome     string             `json:"outcome"` // running, succeeded, blocked, waiting, aborted
	Reason      string             `json:"reason,omitempty"`
	StartedAt   time.Time          `json:"startedAt"`
	EndedAt     *time.Time         `json:"endedAt,omitempty"`
	Seconds     map[string]float64 `json:"seconds,omitempty"` // detect, fence, provision, boot, online, total
	Steps       []Step             `json:"steps,omitempty"`
	Candidates  []Candidate        `json:"candidates,omitempty"`
}

// Step is one row of a failover's timeline.
type Step struct {
	At    time.Time `json:"at"`
	After float64   `json:"afterSeconds"` // since the failover began
	Name  string    `json:"name"`
	Text  string    `json:"text"`
}

// Candidate is a node with every rule that it passed or failed.
type Candidate struct {
	Node     string `json:"node"`
	Eligible bool   `json:"eligible"`
	Rank     int    `json:"rank,omitempty"`
	Rules    []Rule `json:"rules"`
	Nearest  string `json:"nearest,omitempty"` // the nearest counterfactual: "112 MiB short"
}

// Rule is one rule and its verdict.
type Rule struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"`
}

// Explanation answers "why?" for one subject.
type Explanation struct {
	Subject    string      `json:"subject"` // application orders, failover 3, boot 52:54:00:77:00:01
	Verdict    string      `json:"verdict"`
	Rows       []Row       `json:"rows"`
	Candidates []Candidate `json:"candidates,omitempty"`

	Boots []boot.Ladder `json:"boots,omitempty"` // of a boot: the newest first
}

// Row is one line of an explanation.
type Row struct {
	At   string `json:"at,omitempty"` // time or offset as text
	Name string `json:"name"`
	Text string `json:"text"`
}

// Event is one entry of the history.
type Event struct {
	ID      uint64    `json:"id"`
	At      time.Time `json:"at"`
	Kind    string    `json:"kind"`
	Subject string    `json:"subject,omitempty"`
	Code    string    `json:"code,omitempty"`
	Text    string    `json:"text"`
}

// Applied says what became of one document.
type Applied struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Result string `json:"result"` // created, configured, unchanged
}

// ImageImport asks for an image to be taken into the repository. File is a path
// on the appliance.
type ImageImport struct {
	Name    string `json:"name" minLength:"1" doc:"name of the image"`
	Version string `json:"version,omitempty" doc:"default: the first 12 digits of its digest"`
	File    string `json:"file" minLength:"1" doc:"absolute path on the appliance"`
	Format  string `json:"format,omitempty" enum:"raw,qcow2,auto" doc:"fixed at import and never probed again"`
	SHA256  string `json:"sha256,omitempty" doc:"of the file; recorded when left out"`
	Cmdline string `json:"cmdline,omitempty" doc:"further kernel arguments of this image"`
}
