package bmcsim

import "time"

// Fault is a way to misbehave. Fields combine.
type Fault struct {
	// Dead answers nothing, neither IPMI nor Redfish.
	Dead bool
	// DiesWithHost is Dead while the machine has no power: a BMC that is fed by
	// its host.
	DiesWithHost bool
	// WrongPassword refuses the right password.
	WrongPassword bool
	// LyingOff accepts power off, leaves the machine running and reports off
	// from then on, until power on.
	LyingOff bool
	// LyingSuccess accepts power and boot commands and does nothing.
	LyingSuccess bool
	// Refuse answers every power command with an error: completion code D5h,
	// HTTP 409.
	Refuse bool
	// KeepsBootOrder accepts every boot order and keeps the one that it has.
	KeepsBootOrder bool
	// ForgetsBootOrder takes a boot order for every start back once the machine was
	// switched on under it.
	ForgetsBootOrder bool
	// OnceOnly knows no boot order for every start: Redfish does not list it and
	// answers 400, IPMI makes one for the next start of it.
	OnceOnly bool
	// ExpireBootFlags drops boot flags that were set by IPMI that long before the
	// machine is switched on, as real BMCs do after 60 s, unless they were told not
	// to (IPMI v2.0 table 28-14, parameter 3, bit 3).
	ExpireBootFlags time.Duration
	// Stall delays every answer.
	Stall time.Duration
	// StaleState reports the power state as it was that long ago.
	StaleState time.Duration
	// SlowPower lets that much time pass between the acceptance of a power
	// command and its execution.
	SlowPower time.Duration
	// POSTDelay is handed to the machine (POSTDelayer).
	POSTDelay time.Duration
}

// Stats count what a BMC has seen.
type Stats struct {
	Offs, Ons, Softs, Cycles int // commands that were received
	MachineOffs, MachineOns  int // times that the machine was really switched
}
