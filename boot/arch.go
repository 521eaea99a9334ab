package boot

import (
	"fmt"
	"strconv"
	"strings"
)

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
	FirmwareOther   Firmware = "other" // Open Firmware, U-Boot, ...: named, nothing to boot for it
)

type archInfo struct {
	word     string // as a configuration names it
	name     string
	firmware Firmware
	cpu      string // as Go names it: 386, amd64, arm, arm64; "" for what no kernel of ours is for
	http     bool   // the firmware wants a URL, not a TFTP name
}

// archTable is the registry as of 2025-10, by number.
var archTable = [...]archInfo{
	{"bios", "x86 BIOS", FirmwareBIOS, "386", false},
	{"pc98", "NEC PC-98", FirmwareOther, "", false},
	{"itanium", "Itanium", FirmwareOther, "", false},
	{"alpha", "DEC Alpha", FirmwareOther, "", false},
	{"arc-x86", "Arc x86", FirmwareOther, "", false},
	{"lean-client", "Intel Lean Client", FirmwareOther, "", false},
	{"uefi-x86", "x86 UEFI", FirmwareUEFI, "386", false},
	{"uefi-x64", "x86-64 UEFI", FirmwareUEFI, "amd64", false},
	{"xscale", "EFI XScale", FirmwareOther, "", false},
	{"uefi-ebc", "x86-64 UEFI (as EBC)", FirmwareUEFI, "amd64", false},
	{"uefi-arm32", "ARM 32-bit UEFI", FirmwareUEFI, "arm", false},
	{"uefi-arm64", "ARM 64-bit UEFI", FirmwareUEFI, "arm64", false},
	{"powerpc-of", "PowerPC Open Firmware", FirmwareOther, "", false},
	{"powerpc-epapr", "PowerPC ePAPR", FirmwareOther, "", false},
	{"power-opal", "POWER OPAL v3", FirmwareOther, "ppc64le", false},
	{"uefi-x86-http", "x86 UEFI HTTP", FirmwareUEFI, "386", true},
	{"uefi-x64-http", "x86-64 UEFI HTTP", FirmwareUEFI, "amd64", true},
	{"uefi-ebc-http", "x86-64 UEFI HTTP (as EBC)", FirmwareUEFI, "amd64", true},
	{"uefi-arm32-http", "ARM 32-bit UEFI HTTP", FirmwareUEFI, "arm", true},
	{"uefi-arm64-http", "ARM 64-bit UEFI HTTP", FirmwareUEFI, "arm64", true},
	{"bios-http", "x86 BIOS HTTP", FirmwareBIOS, "386", true},
	{"uboot-arm32", "ARM 32-bit U-Boot", FirmwareOther, "arm", false},
	{"uboot-arm64", "ARM 64-bit U-Boot", FirmwareOther, "arm64", false},
	{"uboot-arm32-http", "ARM 32-bit U-Boot HTTP", FirmwareOther, "arm", true},
	{"uboot-arm64-http", "ARM 64-bit U-Boot HTTP", FirmwareOther, "arm64", true},
	{"uefi-riscv32", "RISC-V 32-bit UEFI", FirmwareUEFI, "riscv", false},
	{"uefi-riscv32-http", "RISC-V 32-bit UEFI HTTP", FirmwareUEFI, "riscv", true},
	{"uefi-riscv64", "RISC-V 64-bit UEFI", FirmwareUEFI, "riscv64", false},
	{"uefi-riscv64-http", "RISC-V 64-bit UEFI HTTP", FirmwareUEFI, "riscv64", true},
	{"uefi-riscv128", "RISC-V 128-bit UEFI", FirmwareUEFI, "riscv128", false},
	{"uefi-riscv128-http", "RISC-V 128-bit UEFI HTTP", FirmwareUEFI, "riscv128", true},
	{"s390-basic", "s390 basic", FirmwareOther, "s390x", false},
	{"s390-extended", "s390 extended", FirmwareOther, "s390x", false},
	{"uefi-mips32", "MIPS 32-bit UEFI", FirmwareUEFI, "mips", false},
	{"uefi-mips64", "MIPS 64-bit UEFI", FirmwareUEFI, "mips64", false},
	{"uefi-sunway32", "Sunway 32-bit UEFI", FirmwareUEFI, "sw32", false},
	{"uefi-sunway64", "Sunway 64-bit UEFI", FirmwareUEFI, "sw64", false},
	{"uefi-loongarch32", "LoongArch 32-bit UEFI", FirmwareUEFI, "loong32", false},
	{"uefi-loongarch32-http", "LoongArch 32-bit UEFI HTTP", FirmwareUEFI, "loong32", true},
	{"uefi-loongarch64", "LoongArch 64-bit UEFI", FirmwareUEFI, "loong64", false},
	{"uefi-loongarch64-http", "LoongArch 64-bit UEFI HTTP", FirmwareUEFI, "loong64", true},
	{"rpiboot", "ARM rpiboot", FirmwareOther, "arm", false},
}

func (a Arch) info() (archInfo, bool) {
	if int(a) < len(archTable) {
		return archTable[a], true
	}
	return archInfo{name: "unknown architecture", firmware: FirmwareUnknown}, false
}

// ParseArch takes the word of an architecture as configurations write it
// (bios, uefi-x64, uefi-x64-http, uefi-arm64, ...), or its number.
func ParseArch(s string) (Arch, error) {
	for i, info := range archTable {
		if info.word == s {
			return Arch(i), nil
		}
	}
	if n, err := strconv.ParseUint(s, 10, 16); err == nil {
		return Arch(n), nil
	}
	words := make([]string, 0, len(archTable))
	for _, info := range archTable {
		if info.firmware == FirmwareBIOS || info.firmware == FirmwareUEFI {
			words = append(words, info.word)
		}
	}
	return 0, fmt.Errorf("architecture %q: want a number of option 93 or one of %s", s, strings.Join(words, ", "))
}

// Word gives the architecture as configurations write it.
func (a Arch) Word() string {
	if i, ok := a.info(); ok {
		return i.word
	}
	return strconv.Itoa(int(a))
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
