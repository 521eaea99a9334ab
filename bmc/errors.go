package bmc

import (
	"errors"

	"hotspare"
)

// The kinds of failure, for errors.Is. Each matches every error of its code.
var (
	ErrUnreachable = &hotspare.Error{Code: hotspare.CodeBMCUnreachable}
	ErrPassword    = &hotspare.Error{Code: hotspare.CodeBMCPassword}
	ErrPrivilege   = &hotspare.Error{Code: hotspare.CodeBMCPrivilege}
	ErrTool        = &hotspare.Error{Code: hotspare.CodeBMCTool}
	ErrRefused     = &hotspare.Error{Code: hotspare.CodeBMCRefused}
	ErrWrongNode   = &hotspare.Error{Code: hotspare.CodeBMCWrongNode}
	ErrBootOrder   = &hotspare.Error{Code: hotspare.CodeBMCBootOrder}
	ErrStaleEpoch  = &hotspare.Error{Code: hotspare.CodeStaleEpoch}
	ErrUnproven    = &hotspare.Error{Code: hotspare.CodeFenceUnproven}
)

// NewError gives the error of a BMC code with its text and mend. where names
// the BMC ("10.78.0.11:623"), why says what the BMC or the tool said, err is
// the private cause and may be nil.
func NewError(code hotspare.Code, where, why string, err error) *hotspare.Error {
	what, fix := texts(code)
	return &hotspare.Error{Code: code, What: what, Where: where, Why: why, Fix: fix, Err: err}
}

func texts(code hotspare.Code) (what, fix string) {
	switch code {
	case hotspare.CodeBMCUnreachable:
		return "the BMC does not answer",
			"check the BMC's address, cable and VLAN, and that IPMI over LAN (UDP 623) or Redfish (TCP 443) is enabled in it; by hand: ipmitool -I lanplus -C 17 -H HOST -U USER -E chassis power status"
	case hotspare.CodeBMCPassword:
		return "the BMC refuses the user or the password",
			"correct the BMC credentials of the node; no further attempt is made by itself, because many BMCs lock the user out"
	case hotspare.CodeBMCPrivilege:
		return "the BMC user may not do this",
			"give the user the Administrator privilege for LAN access in the BMC (IPMI sessions are opened at that level), or the role Operator or Administrator in Redfish"
	case hotspare.CodeBMCTool:
		return "the program ipmitool is missing",
			"apt-get install ipmitool"
	case hotspare.CodeBMCWrongNode:
		return "the BMC belongs to another machine",
			"compare the UUID printed here with the node's (dmidecode -s system-uuid) and correct the BMC address of the node; nothing was switched"
	case hotspare.CodeBMCBootOrder:
		return "the BMC does not keep the machine's boot order",
			"update the firmware of the BMC and of the machine, or give the node's bmc section its other protocol (ipmi, redfish); what the BMC shows: ipmitool -I lanplus -C 17 -H HOST -U USER -E chassis bootparam get 5; until it is mended use ways that put nothing on this machine's disk"
	default:
		return "the BMC answered with an error",
			"read what it says; a machine in transition needs a moment, a BMC that goes on like this a reset of the BMC itself"
	}
}

// Permanent says whether trying again cannot help before an operator has
// mended something: wrong password, missing privilege, missing tool, wrong
// machine, a boot order that is not kept. A repeated wrong password can lock the user out of the BMC.
func Permanent(err error) bool {
	return errors.Is(err, ErrPassword) || errors.Is(err, ErrPrivilege) ||
		errors.Is(err, ErrTool) || errors.Is(err, ErrWrongNode) || errors.Is(err, ErrBootOrder) || errors.Is(err, ErrStaleEpoch)
}
