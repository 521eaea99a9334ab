package boot

import (
	"context"
	"net/netip"

	"hotspare"
)

// Protocol is the way a machine asked.
type Protocol string

// Protocols of network boot.
const (
	DHCP      Protocol = "dhcp"
	ProxyDHCP Protocol = "proxydhcp"
	TFTP      Protocol = "tftp"
	HTTP      Protocol = "http"
)

// Stage is how far a machine has come.
type Stage string

// Stages of a boot.
const (
	StageFirmware Stage = "firmware" // the PXE or HTTP client of the firmware or NIC
	StageIPXE     Stage = "ipxe"     // an iPXE, from ROM or loaded by us
	StageGRUB     Stage = "grub"     // a GRUB that was loaded by us
	StageSystem   Stage = "system"   // an operating system's DHCP client
)

// Request is one question of one machine, in the words of any protocol. All of
// it comes from the wire and is untrusted.
type Request struct {
	Protocol    Protocol   `json:"protocol"`
	Stage       Stage      `json:"stage,omitempty"`
	MAC         MAC        `json:"mac"`
	UUID        string     `json:"uuid,omitempty"` // of option 97, lower case with hyphens
	Arch        Arch       `json:"arch"`
	Features    Features   `json:"features"` // of option 175, when Stage is StageIPXE
	UserClass   string     `json:"userClass,omitempty"`
	VendorClass string     `json:"vendorClass,omitempty"`
	Client      netip.Addr `json:"client,omitempty"` // where the question came from
	Path        Path       `json:"-"`                // HTTP; its token is in Path.Token
	Secure      bool       `json:"secure,omitempty"` // HTTP: it came over TLS
	File        string     `json:"file,omitempty"`   // TFTP: the file asked for
}

// Kind says what is meant for a machine.
type Kind string

// Kinds of assignment.
const (
	KindNone      Kind = ""          // nothing: it waits and asks again
	KindDiscovery Kind = "discovery" // the discovery environment, without secrets
	KindStart     Kind = "start"     // a granted start under an epoch
	KindSAN       Kind = "san"       // likewise, of a disk as it is: iPXE's sanboot of the granted volume
	KindLocal     Kind = "local"     // its own disk (SAFETY S2a says who may)
)

// HTTPS says what a node fetches over TLS. It is only of use where the node's
// firmware, or its loader, trusts the appliance's boot CA.
type HTTPS string

// What is fetched over TLS.
const (
	HTTPSNone   HTTPS = ""       // nothing
	HTTPSLoader HTTPS = "loader" // what the firmware fetches by HTTP boot; its loader goes on over HTTP
	HTTPSAll    HTTPS = "all"    // everything: nothing of its boot is given out over HTTP or TFTP
)

// Assignment is what is meant for one machine now. The zero value means: an
// unknown machine.
type Assignment struct {
	Node     string // name of the node, "" when unknown
	MAC      MAC    // that it boots from, so that HTTP requests join its trace; zero if unknown
	Approved bool   // an operator approved it
	Kind     Kind
	Token    string // of this boot attempt; opens the paths below it
	Kernel   string // what is booted, for people; "" means there is none (KindSAN needs none)
	Initrd   string // likewise
	Arch     string // of the kernel: amd64, arm64; "" unknown
	Cmdline  string // kernel arguments, blank-separated
	Reason   string // why this is assigned, one sentence for people
	Epoch    uint64 // of the grant, 0 without one

	Loader     string     // the node's own loader, "" for the site's
	SecureBoot bool       // the node's firmware starts signed loaders only
	HTTPS      HTTPS      // what this node fetches over TLS
	Modes      []Firmware // KindSAN: the firmware that the disk can be booted by; none: not known
}

// Director says what is meant for a machine. It is called several times during
// one boot, by every protocol, and must answer alike and at once. Requests over
// HTTP with a token are looked up by that token (Path.Token), all others by MAC;
// whoever knows nothing of the machine gives the zero Assignment and no error.
// An error means that nothing can be said now: the machine waits and asks again.
type Director interface {
	Assign(ctx context.Context, r Request) (Assignment, error)
}

// Rule is the stable name of the rule that decided.
type Rule string

// The rules of Plan.
const (
	RuleStart        Rule = "start"
	RuleDiscovery    Rule = "discovery"
	RuleLocal        Rule = "local"
	RuleLoader       Rule = "loader"
	RuleSystem       Rule = "system"
	RuleUnknown      Rule = "unknown-machine"
	RuleUnapproved   Rule = "not-approved"
	RuleNothing      Rule = "nothing-assigned"
	RuleUndecided    Rule = "undecided"
	RuleArch         Rule = "architecture-mismatch"
	RuleFirmware     Rule = "firmware-mismatch"
	RuleNoLoader     Rule = "no-loader"
	RuleNoToken      Rule = "no-token"
	RuleToken        Rule = "token-refused"
	RuleSpent        Rule = "join-spent"
	RuleSecure       Rule = "https-only"
	RuleNoSuchFile   Rule = "no-such-file"
	RuleOptional     Rule = "optional-file"
	RuleFile         Rule = "file"
	RuleAddress      Rule = "address"
	RuleNoAddress    Rule = "no-address"
	RuleTransferred  Rule = "transferred"
	RuleTransferFail Rule = "transfer-failed"
)

// Reason says why an offer is as it is, in the words that API, console, log and
// the machine's own screen show.
type Reason struct {
	Rule Rule          `json:"rule"`
	Code hotspare.Code `json:"code,omitempty"` // set when an operator has something to do
	Text string        `json:"text"`
	Fix  string        `json:"fix,omitempty"`
}

// String gives the text, with the code before it if there is one.
func (r Reason) String() string {
	if r.Code != "" {
		return string(r.Code) + ": " + r.Text
	}
	return r.Text
}
