package boot

import (
	"fmt"
	"strconv"
	"strings"
)

// Step says which request of a boot an Entry is, or what else was seen of it.
type Step string

// The steps of a boot, from the power button to the service.
const (
	StepPower    Step = "power"    // the appliance powered the machine on
	StepDiscover Step = "discover" // DHCP
	StepRequest  Step = "request"  // DHCP
	StepInform   Step = "inform"   // DHCP
	StepDecline  Step = "decline"  // DHCP: the machine found its address in use
	StepRelease  Step = "release"  // DHCP
	StepProxy    Step = "proxy"    // PXE, to port 4011
	StepLoader   Step = "loader"   // a boot loader, over TFTP or HTTP
	StepFile     Step = "file"     // any other file
	StepScript   Step = "script"   // a script that starts something
	StepWait     Step = "wait"     // a script that says why the machine waits
	StepLocal    Step = "local"    // a script that hands it to its own disk
	StepKernel   Step = "kernel"
	StepInitrd   Step = "initrd"
	StepJoin     Step = "join"   // the join archive
	StepMark     Step = "mark"   // the agent passed a mark; Detail.Mark names it
	StepAdmit    Step = "admit"  // the agent asks to join
	StepLogin    Step = "login"  // an iSCSI log-in
	StepOrder    Step = "order"  // a step of an order that the agent carried out
	StepReport   Step = "report" // a resource of the service group changed its state
	StepService  Step = "service"
)

// The marks of an agent that the ladder knows; see docs/agent.md.
const (
	MarkInit    = "init"
	MarkAgent   = "agent"
	MarkLink    = "link"
	MarkAddress = "address"
	MarkJoined  = "joined"
	MarkClaim   = "claim"
	MarkSwitch  = "switch"
	MarkSystemd = "systemd"
	MarkOnline  = "online"

	MarkParked    = "parked"    // it joined, in standby
	MarkDiscovery = "discovery" // it told what it is; nobody has approved it
	MarkKexec     = "kexec"     // it leaves for another kernel
)

// StepOf gives the step of an artefact that is fetched.
func StepOf(a Artefact) Step {
	switch a {
	case ArtefactLoader, ArtefactGRUBEntry:
		return StepLoader
	case ArtefactScript, ArtefactGRUB, ArtefactSAN:
		return StepScript
	case ArtefactUnassigned:
		return StepWait
	case ArtefactKernel:
		return StepKernel
	case ArtefactInitrd:
		return StepInitrd
	case ArtefactJoin:
		return StepJoin
	}
	return StepFile
}

// StepOfScript gives the step of a script by what it does.
func StepOfScript(k ScriptKind) Step {
	switch k {
	case ScriptWait:
		return StepWait
	case ScriptLocal:
		return StepLocal
	}
	return StepScript
}

// dhcp says whether the step is one of DHCP's.
func (s Step) dhcp() bool {
	switch s {
	case StepDiscover, StepRequest, StepInform, StepDecline, StepRelease, StepProxy:
		return true
	}
	return false
}

// started says whether the step proves that a kernel was fetched or runs: a
// firmware that asks after it has begun anew.
func (s Step) started() bool {
	switch s {
	case StepKernel, StepInitrd, StepJoin, StepMark, StepAdmit, StepLogin, StepOrder, StepReport, StepService, StepLocal:
		return true
	}
	return false
}

// UnmarshalText reads what MarshalText wrote: the number in the last brackets.
func (a *Arch) UnmarshalText(text []byte) error {
	s := string(text)
	n, err := strconv.ParseUint(strings.TrimSuffix(s[strings.LastIndexByte(s, '(')+1:], ")"), 10, 16)
	if err != nil {
		return fmt.Errorf("architecture %.40q: want its number in brackets", s)
	}
	*a = Arch(n)
	return nil
}
