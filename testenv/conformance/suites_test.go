package conformance_test

// skips are the tests that iscsi-test-cu may skip, and why each is right to be
// skipped. docs/iscsi.md lists the same.
var skips = map[string]string{
	"PreventAllow.Simple":           removable,
	"PreventAllow.Eject":            removable,
	"PreventAllow.ITNexusLoss":      removable,
	"PreventAllow.Logout":           removable,
	"PreventAllow.WarmReset":        removable,
	"PreventAllow.ColdReset":        removable,
	"PreventAllow.LUNReset":         removable,
	"PreventAllow.2ITNexuses":       removable,
	"StartStopUnit.Simple":          removable,
	"Sanitize.BlockErase":           sanitize,
	"Sanitize.BlockEraseReserved":   sanitize,
	"Sanitize.CryptoErase":          sanitize,
	"Sanitize.CryptoEraseReserved":  sanitize,
	"Sanitize.ExitFailureMode":      sanitize,
	"Sanitize.InvalidServiceAction": sanitize,
	"Sanitize.Overwrite":            sanitize,
	"Sanitize.OverwriteReserved":    sanitize,
	"Sanitize.Readonly":             sanitize,
	"Sanitize.Reservations":         sanitize,
	"Sanitize.Reset":                sanitize,
	"WriteAtomic16.Simple":          atomic,
	"WriteAtomic16.BeyondEol":       atomic,
	"WriteAtomic16.ZeroBlocks":      atomic,
	"WriteAtomic16.WriteProtect":    atomic,
	"WriteAtomic16.DpoFua":          atomic,
	"WriteAtomic16.VPD":             atomic,
}

const (
	removable = "a volume is no removable medium"
	sanitize  = "snapshots keep what a command of the initiator must not be able to erase"
	atomic    = "a write that a power loss interrupts may land in part"
)

// faults are the tests that fail by the test program's own fault, and the
// paragraph of the standard that docs/iscsi.md quotes to prove it.
var faults = map[string]string{
	"GetLBAStatus.UnmapSingle":  "LBA status descriptor relationships",
	"WriteSame10.UnmapUntilEnd": "WRITE SAME (10) command",
}

// mandatory are the suites in which nothing may be skipped.
var mandatory = []string{
	"CompareAndWrite", "Unmap", "WriteSame10", "WriteSame16", "Verify10", "Verify12", "Verify16", "OrWrite", "iSCSITMF", "MultipathIO",
	"PrinReadKeys", "PrinServiceactionRange", "PrinReportCapabilities", "ProutRegister", "ProutReserve", "ProutClear", "ProutPreempt",
}

// Least numbers that a run must have seen: one that exercised less proves
// nothing.
const (
	allTests  = 230
	leastPass = 190
)
