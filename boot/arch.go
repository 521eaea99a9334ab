package boot

import "fmt"

// Arch is a client system architecture as option 93 carries it (RFC 4578
// section 2.1, IANA registry "Processor Architecture Types").
//
// RFC 4578 swapped 7 and 9: it calls 7 "EFI BC" and 9 "EFI x86-64", the
// registry has x86-64 at 7, and firmware sends either. Both mean amd64 here.
type Arch uint16

// The architectures that machines of this field send.
const (
	ArchBIOS      Arch = 0
	ArchUEFI32    Arch = 6
	ArchUEFI64    Arch = 7
	ArchUEFI64EBC Arch = 9
	ArchARM32     Arch = 10
	ArchARM64     Arch = 11
	ArchHTTP32    Arch = 15
	ArchHTTP64    Arch = 16
	ArchHTTPEBC   Arch = 17
	ArchHTTPARM32 Arch = 18
	ArchHTTPARM64 Arch = 19
	ArchHTTPBIOS  Arch = 20
)

// Firmware is the kind of firmware that asks.
type Firmware string

// Kinds of firmware.
const (
	FirmwareUnknown Firmware = "unknown"
	FirmwareBIOS    Firmware = "bios"
	FirmwareUEFI    Firmware = "uefi"
)

type archInfo struct {
	name     string
	firmware Firmware
	cpu      string // as Go names it: 386, amd64, arm, arm64
	http     bool   // the firmware wants a URL, not a TFTP name
}

func (a Arch) info() (archInfo, bool) {
	switch a {
	case ArchBIOS:
		return archInfo{"x86 BIOS", FirmwareBIOS, "386", false}, true
	case ArchUEFI32:
		return archInfo{"x86 UEFI", FirmwareUEFI, "386", false}, true
	case ArchUEFI64:
		return archInfo{"x86-64 UEFI", FirmwareUEFI, "amd64", false}, true
	case ArchUEFI64EBC:
		return archInfo{"x86-64 UEFI (as EBC)", FirmwareUEFI, "amd64", false}, true
	case ArchARM32:
		return archInfo{"ARM 32-bit UEFI", FirmwareUEFI, "arm", false}, true
	case ArchARM64:
		return archInfo{"ARM 64-bit UEFI", FirmwareUEFI, "arm64", false}, true
	case ArchHTTP32:
		return archInfo{"x86 UEFI HTTP", FirmwareUEFI, "386", true}, true
	case ArchHTTP64:
		return archInfo{"x86-64 UEFI HTTP", FirmwareUEFI, "amd64", true}, true
	case ArchHTTPEBC:
		return archInfo{"x86-64 UEFI HTTP (as EBC)", FirmwareUEFI, "amd64", true}, true
	case ArchHTTPARM32:
		return archInfo{"ARM 32-bit UEFI HTTP", FirmwareUEFI, "arm", true}, true
	case ArchHTTPARM64:
		return archInfo{"ARM 64-bit UEFI HTTP", FirmwareUEFI, "arm64", true}, true
	case ArchHTTPBIOS:
		return archInfo{"x86 BIOS HTTP", FirmwareBIOS, "386", true}, true
	}
	return archInfo{name: "unknown architecture", firmware: FirmwareUnknown}, false
}

// String gives name and number: "x86-64 UEFI (7)".
func (a Arch) String() string {
	i, _ := a.info()
	return fmt.Sprintf("%s (%d)", i.name, uint16(a))
}

// MarshalText gives String, for traces.
func (a Arch) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Known says whether the architecture is in the table.
func (a Arch) Known() bool { _, ok := a.info(); return ok }

// Firmware says which kind of firmware sends this architecture.
func (a Arch) Firmware() Firmware { i, _ := a.info(); return i.firmware }

// HTTP says whether the firmware boots over HTTP: it then wants a URL and the
// vendor class "HTTPClient".
func (a Arch) HTTP() bool { i, _ := a.info(); return i.http }

// CPU gives the processor in Go's words (386, amd64, arm, arm64), or "".
func (a Arch) CPU() string { i, _ := a.info(); return i.cpu }

// Runs says whether a machine that sends this architecture can run a kernel for
// cpu (amd64, x86_64, arm64, aarch64, ...). A BIOS says 0 on every x86 machine
// and does not tell 32 from 64 bits, so 0 may run amd64. An empty cpu runs
// everywhere: nothing is known against it.
func (a Arch) Runs(cpu string) bool {
	cpu = normalCPU(cpu)
	own := a.CPU()
	switch {
	case cpu == "" || cpu == own:
		return true
	case cpu == "amd64" && a.Firmware() == FirmwareBIOS:
		return true
	case cpu == "386" && own == "amd64":
		return true
	}
	return false
}

func normalCPU(cpu string) string {
	switch cpu {
	case "x86_64", "x86-64":
		return "amd64"
	case "aarch64":
		return "arm64"
	case "i386", "i686", "x86":
		return "386"
	case "armhf", "armv7l":
		return "arm"
	}
	return cpu
}
