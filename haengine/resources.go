package haengine

import (
	"fmt"
	"net/netip"
	"time"
)

// Node is a physical or lab machine as the operator declares it.
type Node struct {
	Name      string            `json:"name" yaml:"name"`
	UUID      string            `json:"uuid,omitempty" yaml:"uuid,omitempty"` // system UUID (SMBIOS), lower case
	MACs      []string          `json:"macs" yaml:"macs"`                     // lower case, colon separated; the first boots
	Pool      string            `json:"pool" yaml:"pool"`
	Arch      string            `json:"arch" yaml:"arch"` // GOARCH word: amd64, arm64
	CPUs      int               `json:"cpus" yaml:"cpus"`
	MemoryMiB int               `json:"memoryMiB" yaml:"memoryMiB"`
	DiskGiB   int               `json:"diskGiB,omitempty" yaml:"diskGiB,omitempty"`
	Disk      *LocalDisk        `json:"disk,omitempty" yaml:"disk,omitempty"` // that images may be installed on; none: none
	Labels    map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
	Approved  bool              `json:"approved" yaml:"approved"` // trust level L1: an operator vouches for it

	SecureBoot bool   `json:"secureBoot,omitempty" yaml:"secureBoot,omitempty"` // its firmware starts signed loaders only
	Loader     string `json:"loader,omitempty" yaml:"loader,omitempty"`         // file name of a boot loader of its own; empty: the site's
	HTTPS      string `json:"https,omitempty" yaml:"https,omitempty"`           // what it fetches over TLS: loader, all; empty: nothing

	CloudInit *CloudInit `json:"cloudInit,omitempty" yaml:"cloudInit,omitempty"` // for images that run cloud-init

	BMC BMC `json:"bmc" yaml:"bmc"`
}

// LocalDisk names the one local disk of a node that images may be installed on. All
// that is given must fit, and exactly one disk must: a disk is never guessed.
type LocalDisk struct {
	ID        string `json:"id,omitempty" yaml:"id,omitempty"` // stable, as the node's facts show it: wwn-..., serial-MODEL-SERIAL
	WWN       string `json:"wwn,omitempty" yaml:"wwn,omitempty"`
	Serial    string `json:"serial,omitempty" yaml:"serial,omitempty"`
	MinGiB    int    `json:"minGiB,omitempty" yaml:"minGiB,omitempty"`
	MaxGiB    int    `json:"maxGiB,omitempty" yaml:"maxGiB,omitempty"`
	Overwrite bool   `json:"overwrite,omitempty" yaml:"overwrite,omitempty"` // whatever it holds is not wanted; needs id, wwn or serial
	Slots     int    `json:"slots,omitempty" yaml:"slots,omitempty"`         // it is divided into so many, A, B, C, ...; 0: an image takes the whole disk
	SlotGiB   int    `json:"slotGiB,omitempty" yaml:"slotGiB,omitempty"`     // of each slot
}

// MaxSlots is the number of slots of a disk.
const MaxSlots = 8

// SlotNames gives the names of the disk's slots.
func (d LocalDisk) SlotNames() []string {
	var out []string
	for i := range d.Slots {
		out = append(out, string(rune('A'+i)))
	}
	return out
}

func (d LocalDisk) named() bool { return d.ID != "" || d.WWN != "" || d.Serial != "" }

func (d LocalDisk) validate(where string) error {
	switch {
	case d.MinGiB < 0 || d.MaxGiB < 0 || d.MaxGiB > 0 && d.MaxGiB < d.MinGiB:
		return invalid(where, "disk.minGiB or disk.maxGiB", "they are negative or the wrong way round", "give minGiB below maxGiB, or name the disk by its id")
	case !d.named() && d.MinGiB == 0 && d.MaxGiB == 0:
		return invalid(where, "disk", "nothing in it tells which disk is meant", "give id, wwn or serial: `hotspare describe node` shows them once the node was in discovery or standby")
	case d.Overwrite && !d.named():
		return invalid(where, "disk.overwrite", "a size alone could mean a disk with somebody's data", "name the disk by its id, wwn or serial")
	case d.Slots < 0 || d.Slots > MaxSlots:
		return invalid(where, "disk.slots", fmt.Sprintf("%d is not between 0 and %d", d.Slots, MaxSlots), "leave it out for one installation on the whole disk")
	case (d.Slots > 0) != (d.SlotGiB > 0):
		return invalid(where, "disk.slotGiB", "slots and their size belong together", "give both, or neither")
	}
	return nil
}

// BMC says how a node's management controller is reached. The password is not
// here: it is sealed in the appliance's store under the node's name.
type BMC struct {
	Protocol    string     `json:"protocol" yaml:"protocol"` // ipmi or redfish
	Address     netip.Addr `json:"address" yaml:"address"`
	Port        uint16     `json:"port,omitempty" yaml:"port,omitempty"` // 0: the protocol's own
	User        string     `json:"user" yaml:"user"`
	CipherSuite int        `json:"cipherSuite,omitempty" yaml:"cipherSuite,omitempty"` // IPMI only; 0: 17
	SharedPower bool       `json:"sharedPower,omitempty" yaml:"sharedPower,omitempty"` // dies with its host: never the only fence
}

// Pool is a named set of nodes that applications may draw from.
type Pool struct {
	Name    string   `json:"name" yaml:"name"`
	Standby *Standby `json:"standby,omitempty" yaml:"standby,omitempty"` // none: idle nodes are off
}

// Standby is how many idle nodes of a pool are kept on, with the agent in memory,
// waiting for a claim; the others are off.
type Standby struct {
	Nodes       int      `json:"nodes" yaml:"nodes"`                                 // this many, as long as there are idle ones
	Kernel      string   `json:"kernel,omitempty" yaml:"kernel,omitempty"`           // on the kernel of this image, or KernelOfAppliance; empty: of the image of the application that the node is parked for
	For         []string `json:"for,omitempty" yaml:"for,omitempty"`                 // parked for these applications, the likeliest first; empty: all that use the pool, by priority
	PowerBudget int      `json:"powerBudget,omitempty" yaml:"powerBudget,omitempty"` // at most this many nodes of the pool are on, those that carry something included; 0: no limit
	AtOnce      int      `json:"atOnce,omitempty" yaml:"atOnce,omitempty"`           // so many go to standby at the same time; 0: 2
}

// KernelOfAppliance stands in Standby.Kernel for the kernel of the appliance's host.
const KernelOfAppliance = "appliance"

func (s Standby) atOnce() int {
	if s.AtOnce == 0 {
		return 2
	}
	return s.AtOnce
}

// Application is what must stay up.
type Application struct {
	Name      string       `json:"name" yaml:"name"`
	Image     string       `json:"image" yaml:"image"` // name or name:version
	Pools     []string     `json:"pools" yaml:"pools"` // in order of preference
	Priority  int          `json:"priority" yaml:"priority"`
	Address   netip.Prefix `json:"address" yaml:"address"` // the service address with its prefix length
	Requires  Requirements `json:"requires,omitempty" yaml:"requires,omitempty"`
	Volumes   []Volume     `json:"volumes,omitempty" yaml:"volumes,omitempty"` // the root is implied: a fresh clone of the image for every grant
	Resources []Resource   `json:"resources" yaml:"resources"`                 // the service group, in order of dependency
	Monitors  []Monitor    `json:"monitors" yaml:"monitors"`
	Policy    Policy       `json:"policy,omitempty" yaml:"policy,omitempty"`
	CloudInit *CloudInit   `json:"cloudInit,omitempty" yaml:"cloudInit,omitempty"` // for an image that runs cloud-init
}

// Requirements are what a node must have to be eligible.
type Requirements struct {
	Arch      string            `json:"arch,omitempty" yaml:"arch,omitempty"` // empty: the image's
	CPUs      int               `json:"cpus,omitempty" yaml:"cpus,omitempty"`
	MemoryMiB int               `json:"memoryMiB,omitempty" yaml:"memoryMiB,omitempty"`
	DiskGiB   int               `json:"diskGiB,omitempty" yaml:"diskGiB,omitempty"`
	Labels    map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
}

// Volume follows the application from node to node.
type Volume struct {
	Name     string `json:"name" yaml:"name"`                         // unique in the application, e.g. data
	SizeMiB  int64  `json:"sizeMiB" yaml:"sizeMiB"`                   // grown, never shrunk
	Format   string `json:"format,omitempty" yaml:"format,omitempty"` // ext4: made when the volume is blank; empty: never formatted
	ReadOnly bool   `json:"readOnly,omitempty" yaml:"readOnly,omitempty"`
}

// ResourceKind is the kind of one member of a service group.
type ResourceKind string

// The kinds of resources.
const (
	ResourceMount   ResourceKind = "mount"   // Volume is mounted at Target
	ResourceAddress ResourceKind = "address" // the application's address is added and announced
	ResourceSystemd ResourceKind = "systemd" // Unit is started by the image's systemd
	ResourceProcess ResourceKind = "process" // Command is run and watched by the agent
	ResourceScript  ResourceKind = "script"  // Online, Check and Offline are run
	ResourceWitness ResourceKind = "witness" // Volume gets (node, epoch, counter) written every 100 ms with O_DIRECT
)

// Resource is one member of a service group. Volumes are resources by
// themselves: all of them are logged in before the first Resource.
type Resource struct {
	Name    string       `json:"name" yaml:"name"`
	Kind    ResourceKind `json:"kind" yaml:"kind"`
	After   []string     `json:"after,omitempty" yaml:"after,omitempty"` // names of resources that must be online first; listed order breaks ties
	Volume  string       `json:"volume,omitempty" yaml:"volume,omitempty"`
	Target  string       `json:"target,omitempty" yaml:"target,omitempty"`   // mount point in the image
	Owner   string       `json:"owner,omitempty" yaml:"owner,omitempty"`     // user[:group] of a freshly formatted mount's top folder
	Unit    string       `json:"unit,omitempty" yaml:"unit,omitempty"`       // e.g. postgresql@15-main.service
	Masks   []string     `json:"masks,omitempty" yaml:"masks,omitempty"`     // further units that must not start without a grant, e.g. postgresql.service
	Prepare []string     `json:"prepare,omitempty" yaml:"prepare,omitempty"` // command run once per online before the unit starts, e.g. to make a new database cluster
	Command []string     `json:"command,omitempty" yaml:"command,omitempty"`
	Online  []string     `json:"online,omitempty" yaml:"online,omitempty"`
	Check   []string     `json:"check,omitempty" yaml:"check,omitempty"`
	Offline []string     `json:"offline,omitempty" yaml:"offline,omitempty"`
}

// MonitorKind is the kind of a check.
type MonitorKind string

// The kinds of monitors.
const (
	MonitorHTTP      MonitorKind = "http"
	MonitorTCP       MonitorKind = "tcp"
	MonitorPostgres  MonitorKind = "postgres"  // a query with expected rows
	MonitorHeartbeat MonitorKind = "heartbeat" // the agent's own voice
)

// Vantage says from where a monitor looks. Two vantages are two independent
// channels (SAFETY S7).
type Vantage string

// The vantages.
const (
	FromAppliance Vantage = "appliance" // over the network, at the service address
	FromNode      Vantage = "node"      // by the agent, on the node itself
)

// Monitor is a check that yields observations. It never decides.
type Monitor struct {
	Name      string            `json:"name" yaml:"name"`
	Kind      MonitorKind       `json:"kind" yaml:"kind"`
	From      []Vantage         `json:"from,omitempty" yaml:"from,omitempty"` // default: appliance
	Every     Duration          `json:"every,omitempty" yaml:"every,omitempty"`
	Timeout   Duration          `json:"timeout,omitempty" yaml:"timeout,omitempty"`
	Failures  int               `json:"failures,omitempty" yaml:"failures,omitempty"`   // in a row before it counts as failed
	Successes int               `json:"successes,omitempty" yaml:"successes,omitempty"` // in a row before it counts as up again
	Port      uint16            `json:"port,omitempty" yaml:"port,omitempty"`
	URL       string            `json:"url,omitempty" yaml:"url,omitempty"`       // http: path or whole URL; the host defaults to the service address
	Expect    string            `json:"expect,omitempty" yaml:"expect,omitempty"` // http: text in the body; postgres: the first column of the first row
	Status    int               `json:"status,omitempty" yaml:"status,omitempty"` // http: default 200
	Database  string            `json:"database,omitempty" yaml:"database,omitempty"`
	User      string            `json:"user,omitempty" yaml:"user,omitempty"`
	Query     string            `json:"query,omitempty" yaml:"query,omitempty"`
	Rows      int               `json:"rows,omitempty" yaml:"rows,omitempty"` // postgres: expected number of rows; 0: any
	Options   map[string]string `json:"options,omitempty" yaml:"options,omitempty"`
}

// EvidenceKind is one way to prove that the previous node can no longer run
// the application or write its data (SAFETY S2).
type EvidenceKind string

// The kinds of exclusion evidence.
const (
	EvidencePower    EvidenceKind = "power"        // read back as off twice
	EvidenceStorage  EvidenceKind = "storage+drop" // volumes revoked, and the agent's drop bound has passed
	EvidenceIdentity EvidenceKind = "identity"     // the node is seen, authenticated, with a new boot id
	EvidencePerson   EvidenceKind = "person"       // a named operator typed the confirmation
	EvidenceRelease  EvidenceKind = "release"      // orderly: attested by the agent, seen by the target, volumes revoked
	EvidenceNone     EvidenceKind = "none"         // the application never ran before: there is nothing to exclude
)

// Policy is how an application is kept up. The zero value of each field means
// the default that Policy.WithDefaults fills in.
type Policy struct {
	Evidence       []EvidenceKind `json:"evidence,omitempty" yaml:"evidence,omitempty"`             // accepted, in order of preference; release, identity and person are always accepted
	Ways           []Way          `json:"ways,omitempty" yaml:"ways,omitempty"`                     // allowed; empty: all that write nothing to a local disk
	WayOrder       WayOrder       `json:"wayOrder,omitempty" yaml:"wayOrder,omitempty"`             // measured, or as listed in Ways (the default when they are listed)
	InstallLimit   Duration       `json:"installLimit,omitempty" yaml:"installLimit,omitempty"`     // way install: for writing the image to the disk
	TolerateOutage Duration       `json:"tolerateOutage,omitempty" yaml:"tolerateOutage,omitempty"` // of the appliance: the lease is longer
	Lease          Duration       `json:"lease,omitempty" yaml:"lease,omitempty"`                   // with evidence storage+drop: the agent drops the service when it was not renewed for this long
	DropBound      Duration       `json:"dropBound,omitempty" yaml:"dropBound,omitempty"`           // the drop itself takes at most this long after the lease ended
	Margin         Duration       `json:"margin,omitempty" yaml:"margin,omitempty"`                 // added to lease and drop bound before they count as evidence
	FenceDeadline  Duration       `json:"fenceDeadline,omitempty" yaml:"fenceDeadline,omitempty"`   // for one kind of evidence before the next one is tried
	BootDeadline   Duration       `json:"bootDeadline,omitempty" yaml:"bootDeadline,omitempty"`     // from power on to the agent's join
	OnlineDeadline Duration       `json:"onlineDeadline,omitempty" yaml:"onlineDeadline,omitempty"` // from the claim to the application's own check
	Restarts       int            `json:"restarts,omitempty" yaml:"restarts,omitempty"`             // local restarts within RestartWindow before the agent reports a failure; -1: none
	RestartWindow  Duration       `json:"restartWindow,omitempty" yaml:"restartWindow,omitempty"`
	RestartTime    Duration       `json:"restartTime,omitempty" yaml:"restartTime,omitempty"`   // the agent's local restart goes before failed checks for at most this long
	MaxFailovers   int            `json:"maxFailovers,omitempty" yaml:"maxFailovers,omitempty"` // F of SAFETY S11, within FailoverWindow
	FailoverWindow Duration       `json:"failoverWindow,omitempty" yaml:"failoverWindow,omitempty"`
	MaxAttempts    int            `json:"maxAttempts,omitempty" yaml:"maxAttempts,omitempty"` // nodes or ways tried within one failover before it waits for news
	RetryAfter     Duration       `json:"retryAfter,omitempty" yaml:"retryAfter,omitempty"`   // a node where the application failed is not tried again before this, and then last
	PreemptGap     int            `json:"preemptGap,omitempty" yaml:"preemptGap,omitempty"`   // priority distance to a victim; 0: this application never preempts
	Previous       string         `json:"previous,omitempty" yaml:"previous,omitempty"`       // return (default), keep, quarantine
}

// WayOrder says which of the possible ways is tried first.
type WayOrder string

// The orders of ways.
const (
	OrderMeasured WayOrder = "measured" // by the median of the measured times to service
	OrderListed   WayOrder = "listed"   // as Policy.Ways has them
)

// Duration is a time.Duration that is written as "1.5s" in documents.
type Duration time.Duration

// D gives the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String gives the standard notation, e.g. "1m30s".
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes the standard notation.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the standard notation; see time.ParseDuration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}
