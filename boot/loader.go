package boot

import (
	"maps"
	"slices"
	"strings"
)

// LoaderKind says what a loader runs: it decides in which language the machine
// gets its script.
type LoaderKind string

// Kinds of loader.
const (
	LoaderIPXE LoaderKind = "ipxe"
	LoaderGRUB LoaderKind = "grub"
)

// KindOf says what a loader is by its file name, which the loaders' makers fix:
// shimx64.efi, grubx64.efi and their like lead to GRUB, everything else to iPXE,
// also iPXE's own shim (snponly-shim.efi).
func KindOf(loader string) LoaderKind {
	if strings.HasPrefix(loader, "shim") || strings.HasPrefix(loader, "grub") {
		return LoaderGRUB
	}
	return LoaderIPXE
}

// Follower is the file that a loader fetches by itself, from the folder that it
// came from; "" when there is none. Debian's shim looks for grub with the same
// ending (its DEFAULT_LOADER), iPXE's shim for its own name without "-shim".
func Follower(loader string) string {
	if rest, ok := strings.CutPrefix(loader, "shim"); ok && strings.HasSuffix(rest, ".efi") {
		return "grub" + rest
	}
	if base, ok := strings.CutSuffix(loader, "-shim.efi"); ok && base != "" {
		return base + ".efi"
	}
	return ""
}

// Fits says whether firmware of an architecture can start a loader of this name:
// UEFI starts .efi files, a BIOS starts all others, and the endings x64, ia32,
// aa64 and arm of UEFI's default names tell the processor.
func Fits(loader string, a Arch) bool {
	base, efi := strings.CutSuffix(loader, ".efi")
	switch a.Firmware() {
	case FirmwareBIOS:
		return !efi
	case FirmwareUEFI:
		if !efi {
			return false
		}
	default:
		return false
	}
	for _, e := range []struct{ ending, cpu string }{{"aa64", "arm64"}, {"arm64", "arm64"}, {"x64", "amd64"}, {"ia32", "386"}} {
		if strings.HasSuffix(base, e.ending) {
			return a.CPU() == e.cpu
		}
	}
	return true
}

// DefaultLoaders is the choice for the binaries of Debian's package ipxe. The
// UEFI one is snponly.efi, which drives the NIC through the firmware: iPXE's own
// drivers hang or miss the link on several server NICs. Debian 12 has no iPXE for
// ARM: there it is GRUB, of the package grub-efi-arm64-signed, over PXE alone
// (see DefaultSecureLoaders). Nobody has a loader for 32-bit UEFI.
func DefaultLoaders() map[Arch]string {
	return map[Arch]string{
		ArchBIOS:      "undionly.kpxe",
		ArchUEFI64:    "snponly.efi",
		ArchUEFI64EBC: "snponly.efi",
		ArchHTTP64:    "snponly.efi",
		ArchHTTPEBC:   "snponly.efi",
		ArchHTTPBIOS:  "undionly.kpxe",
		ArchARM64:     "grubaa64.efi",
	}
}

// DefaultSecureLoaders is the choice for machines that boot with Secure Boot:
// Debian's shim, which Microsoft signed, and GRUB and kernel, which Debian
// signed. There is none for HTTP boot: GRUB 2.06 finds no network after it and
// stays at its prompt (seen with OVMF 2022.11), so such firmware is left to go on
// to PXE. A signed iPXE (snponly-shim.efi) can be named in its place.
func DefaultSecureLoaders() map[Arch]string {
	return map[Arch]string{
		ArchUEFI64:    "shimx64.efi",
		ArchUEFI64EBC: "shimx64.efi",
		ArchARM64:     "shimaa64.efi",
	}
}

// loader chooses the loader for a firmware: the node's own if it fits, else the
// site's for its kind of boot. note says why a node's own was passed over.
func (s Site) loader(arch Arch, a Assignment) (name, note string) {
	if a.Loader != "" {
		if Fits(a.Loader, arch) && s.serves(a.Loader) {
			return a.Loader, ""
		}
		note = "the node's own loader " + a.Loader + " is not for this firmware or not served; "
	}
	if a.SecureBoot && arch.Firmware() == FirmwareUEFI {
		return s.SecureLoaders[arch], note
	}
	return s.Loaders[arch], note
}

// LoaderFiles lists every file that is served by its own name: all loaders of the
// site, those that nodes may ask for, and what they fetch by themselves.
func (s Site) LoaderFiles() []string {
	names := map[string]bool{}
	add := func(n string) {
		for ; n != ""; n = Follower(n) {
			names[n] = true
		}
	}
	for _, n := range s.Loaders {
		add(n)
	}
	for _, n := range s.SecureLoaders {
		add(n)
	}
	for _, n := range s.MoreLoaders {
		add(n)
	}
	return slices.Sorted(maps.Keys(names))
}

func (s Site) serves(name string) bool {
	return name != "" && slices.Contains(s.LoaderFiles(), name)
}
