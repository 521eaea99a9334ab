// Package bmc speaks about the management controllers of nodes: what a power
// state is, what counts as proof that a node is off, and in which order
// commands reach one controller.
//
// It holds the contract (Driver), one serialised queue per BMC (Queue), the
// two operations that fencing and starting are made of (Off, On), the boot order
// that keeps a firmware from its disk (BootNetworkFirst), a staged check for
// operators (Probe) and the errors with their mends. The wire is left
// to the child package wire (IPMI and Redfish over bmclib), the decision whom
// to fence to the engine.
//
// It follows IPMI v2.0 rev. 1.1 (chassis commands, section 28) and DMTF
// DSP0266/DSP2046 (ComputerSystem.PowerState, Reset) in their words only: of
// all states that a BMC may report, On and Off are the only two that mean
// anything here. PoweringOff, Paused, an unknown text or a silent BMC are
// PowerUnknown and prove nothing. There is no Cycle and no Reset: off, read and
// on are enough, and a replay of them does no harm.
package bmc

import (
	"context"
	"strings"
	"time"
)

// PowerState is what a BMC says about its machine.
type PowerState uint8

// The zero value is PowerUnknown: a state that nobody read is not a state.
const (
	PowerUnknown PowerState = iota // silent, in transition, or a word we do not know
	PowerOn
	PowerOff
)

// String gives "unknown", "on" or "off".
func (s PowerState) String() string {
	switch s {
	case PowerOn:
		return "on"
	case PowerOff:
		return "off"
	default:
		return "unknown"
	}
}

// MarshalText gives the word of String, for journals and the API.
func (s PowerState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes "on" and "off"; everything else is PowerUnknown.
func (s *PowerState) UnmarshalText(b []byte) error {
	*s = ParsePowerState(string(b))
	return nil
}

// ParsePowerState reads a bare word ("on", "Off"). Anything else, such as
// "PoweringOff", is PowerUnknown.
func ParsePowerState(word string) PowerState {
	switch strings.ToLower(strings.TrimSpace(word)) {
	case "on":
		return PowerOn
	case "off":
		return PowerOff
	default:
		return PowerUnknown
	}
}

// Driver is one BMC on the wire. Package wire implements it; a Queue is the
// only caller it should have. Calls are made one at a time, each with a
// deadline in its context, and return an error of this package's codes.
type Driver interface {
	// PowerState asks the BMC. PowerUnknown with a nil error means that it
	// answered something that is neither on nor off.
	PowerState(ctx context.Context) (PowerState, error)
	// PowerOff cuts the power at once, without asking the operating system.
	// A nil error means that the BMC accepted the command, no more.
	PowerOff(ctx context.Context) error
	// PowerOn switches on. A nil error means accepted, no more.
	PowerOn(ctx context.Context) error
	// SetNextBootPXE makes the next boot, and only that one, a network boot. uefi
	// says that the firmware is known to be UEFI: asked for a legacy start, it may
	// pass over the request.
	SetNextBootPXE(ctx context.Context, uefi bool) error
	// SetNetworkFirst makes every boot a network boot, until something else is
	// asked for: SetNextBootPXE takes the same place. uefi says that the firmware
	// is known to be UEFI. A nil error means accepted, no more: BootOrder tells.
	SetNetworkFirst(ctx context.Context, uefi bool) error
	// BootOrder reads what the BMC has been asked to boot from.
	BootOrder(ctx context.Context) (BootOrder, error)
	// SystemUUID gives the machine's UUID as the BMC knows it, in RFC 4122
	// text form, lower case.
	SystemUUID(ctx context.Context) (string, error)
	// Close ends sessions that the driver holds. No call follows.
	Close(ctx context.Context) error
}

// Right says in whose name a command is given: an application (or another
// owner of the node, such as "operator") and the epoch of its grant. Epochs
// count per owner, so two rights compare only when their owners are the same.
type Right struct {
	Owner string `json:"owner"`
	Epoch uint64 `json:"epoch"`
}

// Reading is one look at the power state.
type Reading struct {
	State PowerState    `json:"state"`
	At    time.Time     `json:"at"`              // when the question was put
	Took  time.Duration `json:"took"`            // until the answer, in nanoseconds
	Err   string        `json:"error,omitempty"` // why State is unknown, if it failed
}
