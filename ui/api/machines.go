package api

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// Discoverer shows the machines that asked to boot and are no approved nodes, and
// makes nodes of them. A machine is named by MAC address or UUID.
type Discoverer interface {
	Machines(ctx context.Context) ([]Machine, error)
	Machine(ctx context.Context, name string) (Machine, error)
	ApproveMachine(ctx context.Context, name string, in Approval, by string) (Applied, error)
	IgnoreMachine(ctx context.Context, name, by string, undo bool) error
	ForgetMachine(ctx context.Context, name, by string) error
}

// Machine is a machine that is no approved node. All but the times is its own
// word, and proves nothing.
type Machine struct {
	ID        string        `json:"id"`    // the MAC address that it was heard under first
	State     string        `json:"state"` // waiting, discovered, ignored
	Node      string        `json:"node,omitempty" doc:"a node that has one of its MAC addresses and is not approved"`
	MACs      []string      `json:"macs"`
	UUID      string        `json:"uuid,omitempty"`
	Firmware  string        `json:"firmware,omitempty"`
	Address   netip.Addr    `json:"address,omitzero"`
	FirstSeen time.Time     `json:"firstSeen"`
	LastSeen  time.Time     `json:"lastSeen"`
	IgnoredBy string        `json:"ignoredBy,omitempty"`
	Facts     *MachineFacts `json:"facts,omitempty" doc:"claimed, not trusted"`
}

// MachineFacts is what a machine in the discovery environment says of itself.
type MachineFacts struct {
	Vendor     string        `json:"vendor,omitempty"`
	Product    string        `json:"product,omitempty"`
	Serial     string        `json:"serial,omitempty"`
	CPUModel   string        `json:"cpuModel,omitempty"`
	CPUs       int           `json:"cpus"`
	MemoryMiB  int           `json:"memoryMiB"`
	Arch       string        `json:"arch,omitempty"`
	Kernel     string        `json:"kernel,omitempty"`
	Firmware   string        `json:"firmware,omitempty"`
	SecureBoot bool          `json:"secureBoot,omitempty"`
	Disks      []MachineDisk `json:"disks,omitempty"`
	NICs       []MachineNIC  `json:"nics,omitempty"`
}

// MachineDisk is a local disk.
type MachineDisk struct {
	ID    string `json:"id,omitempty"`
	Name  string `json:"name"`
	Model string `json:"model,omitempty"`
	Bytes int64  `json:"bytes"`
	Holds string `json:"holds,omitempty"`
}

// MachineNIC is a network card.
type MachineNIC struct {
	Name      string `json:"name"`
	MAC       string `json:"mac"`
	Driver    string `json:"driver,omitempty"`
	Link      bool   `json:"link"`
	SpeedMbps int    `json:"speedMbps,omitempty"`
}

// Approval makes a node of a machine. What is left out is taken from what the
// machine says.
type Approval struct {
	Name      string            `json:"name" minLength:"1" doc:"of the node"`
	Pool      string            `json:"pool" minLength:"1"`
	Arch      string            `json:"arch,omitempty"`
	CPUs      int               `json:"cpus,omitempty" minimum:"0"`
	MemoryMiB int               `json:"memoryMiB,omitempty" minimum:"0"`
	Labels    map[string]string `json:"labels,omitempty"`
	BMC       ApprovalBMC       `json:"bmc"`
	DryRun    bool              `json:"dryRun,omitempty" doc:"check only"`
}

// ApprovalBMC is how the machine is powered on and off, as in a node document.
// The password is sealed and never shown again.
type ApprovalBMC struct {
	Protocol    string `json:"protocol,omitempty" enum:"ipmi,redfish"`
	Address     string `json:"address" minLength:"1"`
	Port        uint16 `json:"port,omitempty"`
	User        string `json:"user,omitempty"`
	Password    string `json:"password,omitempty"`
	CipherSuite int    `json:"cipherSuite,omitempty"`
	SharedPower bool   `json:"sharedPower,omitempty"`
}

// String keeps the password out of logs.
func (ApprovalBMC) String() string { return "[BMC]" }

// GoString keeps it out of %#v.
func (ApprovalBMC) GoString() string { return "[BMC]" }

type machineOrder struct {
	Name string `path:"name"`
	operator
}

type approveInput struct {
	Name string `path:"name"`
	Body Approval
	operator
}

// registerMachines comes before the general routes of the same shape: the first
// that fits is taken.
func (r routes) registerMachines(h huma.API) {
	const one = "/api/v1/machines/{name}"
	get(h, "list-machines", "/api/v1/machines", "Machines that asked to boot and are no approved nodes", func(ctx context.Context, _ *struct{}) (*body[[]Machine], error) {
		all, err := r.Discoverer.Machines(ctx)
		if err != nil {
			return nil, problem(err)
		}
		return &body[[]Machine]{all}, nil
	})
	get(h, "get-machine", one, "One of them, by MAC address or UUID", func(ctx context.Context, in *named) (*body[Machine], error) {
		m, err := r.Discoverer.Machine(ctx, segment(in.Name))
		if err != nil {
			return nil, problem(err)
		}
		return &body[Machine]{m}, nil
	})
	huma.Register(h, huma.Operation{OperationID: "approve-machine", Method: http.MethodPost, Path: one + "/actions/approve", Summary: "Make an approved node of a machine", DefaultStatus: http.StatusCreated},
		func(ctx context.Context, in *approveInput) (*body[Applied], error) {
			out, err := r.Discoverer.ApproveMachine(ctx, segment(in.Name), in.Body, in.By)
			if err != nil {
				return nil, problem(err)
			}
			return &body[Applied]{out}, nil
		})
	order := func(verb, summary string, do func(ctx context.Context, name, by string) error) {
		huma.Register(h, huma.Operation{OperationID: verb + "-machine", Method: http.MethodPost, Path: one + "/actions/" + verb, Summary: summary},
			func(ctx context.Context, in *machineOrder) (*body[Accepted], error) {
				if err := do(ctx, segment(in.Name), in.By); err != nil {
					return nil, problem(err)
				}
				return &body[Accepted]{Accepted{Text: verb + " of machine " + segment(in.Name) + " done"}}, nil
			})
	}
	order("ignore", "Give a machine nothing but a text, and do not show it as new", func(ctx context.Context, name, by string) error {
		return r.Discoverer.IgnoreMachine(ctx, name, by, false)
	})
	order("unignore", "Take an ignore back", func(ctx context.Context, name, by string) error {
		return r.Discoverer.IgnoreMachine(ctx, name, by, true)
	})
	huma.Register(h, huma.Operation{OperationID: "forget-machine", Method: http.MethodDelete, Path: one, Summary: "Remove a machine from the list until it asks again", DefaultStatus: http.StatusNoContent},
		func(ctx context.Context, in *machineOrder) (*struct{}, error) {
			if err := r.Discoverer.ForgetMachine(ctx, segment(in.Name), in.By); err != nil {
				return nil, problem(err)
			}
			return nil, nil
		})
}
