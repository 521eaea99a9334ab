package images

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
)

// Start is a way in which an image can be brought to run, as far as the image
// decides it. The composer maps it to the ways of the failover engine.
type Start string

const (
	// StartKernel: kernel and modules are known and the root is on the disk. It
	// can run under another initramfs: by switch_root, by kexec, over iSCSI.
	StartKernel Start = "kernel"
	// StartSAN: the disk starts by itself, by its own boot code, on a firmware of
	// Facts.Firmware. What is on it does not matter.
	StartSAN Start = "san"
	// StartRAM: kernel and initrd, or a squashfs; no volume.
	StartRAM Start = "ram"
)

// Facts is what an import found out about how the image can be started.
type Facts struct {
	Starts []Start `json:"starts"`
	// Firmware lists what the disk starts on by itself: "bios", and "uefi-" with
	// GOARCH words for every \EFI\BOOT\BOOT*.EFI of its ESP.
	Firmware []string `json:"firmware,omitempty"`
	// Loader is the boot loader on the disk: grub, systemd-boot, extlinux.
	Loader string `json:"loader,omitempty"`
	// Userland is the architecture of the root's own programs.
	Userland string `json:"userland,omitempty"`
	// Init is what the root's /sbin/init is: systemd, another path, "" when there
	// is none, or InitUnknown.
	Init string `json:"init,omitempty"`
	// CloudInit says whether the root has cloud-init: Yes, No, or "" where nobody
	// looked.
	CloudInit string `json:"cloudInit,omitempty"`
	// Notes say in sentences what is not as it may be expected.
	Notes []string `json:"notes,omitempty"`
}

// InitUnknown is the Init of a root that was not looked into: one whose file system
// cannot be read, or that an earlier version imported.
const InitUnknown = "unknown"

// What Facts say of something that is there or not.
const (
	Yes = "yes"
	No  = "no"
)

// Has says whether the image can be started in that way.
func (f Facts) Has(s Start) bool { return slices.Contains(f.Starts, s) }

// bootSector says whether the first sector holds boot code of a BIOS: the
// signature, and code that is neither empty nor the refusal that file system
// tools write there.
func bootSector(disk io.ReaderAt) bool {
	b := make([]byte, sector)
	if n, _ := disk.ReadAt(b, 0); n < len(b) || b[510] != 0x55 || b[511] != 0xaa {
		return false
	}
	if string(b[54:57]) == "FAT" || string(b[82:85]) == "FAT" { // "This is not a bootable disk"
		return false
	}
	return !bytes.Equal(b[:64], make([]byte, 64))
}

// efiLoaders gives the architectures of the removable-media loaders in an ESP
// (UEFI 2.10 section 3.5.1.1), as their PE headers tell them.
func efiLoaders(esp files) (archs []string, loader string) {
	all, err := esp.names("/EFI/BOOT")
	if err != nil {
		return nil, ""
	}
	for _, name := range all {
		if !strings.HasPrefix(name, "BOOT") || !strings.HasSuffix(name, ".EFI") {
			continue
		}
		b, err := esp.readFile("/EFI/BOOT/"+name, maxLoader)
		if err != nil {
			continue
		}
		if arch := peArch(b); arch != "" && !slices.Contains(archs, arch) {
			archs = append(archs, arch)
		}
		switch {
		case bytes.Contains(b, []byte("systemd-boot")):
			loader = "systemd-boot"
		case bytes.Contains(b, []byte("GRUB")) || bytes.Contains(b, []byte("grub")) || bytes.Contains(b, []byte("UEFI SHIM")):
			loader = "grub"
		}
	}
	slices.Sort(archs)
	return archs, loader
}

const maxLoader = 64 << 20

// peArch gives the architecture of a PE program in GOARCH words.
func peArch(b []byte) string {
	if len(b) < 0x40 || string(b[:2]) != "MZ" {
		return ""
	}
	at := int64(binary.LittleEndian.Uint32(b[0x3c:]))
	if at+6 > int64(len(b)) || string(b[at:at+4]) != "PE\x00\x00" {
		return ""
	}
	return map[uint16]string{0x8664: "amd64", 0xaa64: "arm64", 0x14c: "386", 0x1c2: "arm", 0x5064: "riscv64"}[binary.LittleEndian.Uint16(b[at+4:])]
}

// elfArch gives the architecture of an ELF program in GOARCH words.
func elfArch(b []byte) string {
	if len(b) < 20 || string(b[:4]) != "\x7fELF" {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	if b[5] == 2 {
		order = binary.BigEndian
	}
	machine := order.Uint16(b[18:])
	if machine == 21 && b[5] == 1 {
		return "ppc64le"
	}
	return map[uint16]string{62: "amd64", 183: "arm64", 3: "386", 40: "arm", 243: "riscv64", 22: "s390x"}[machine]
}

// userland looks at programs that every root has.
func userland(root files) string {
	for _, p := range []string{"/bin/sh", "/usr/bin/env", "/sbin/init", "/bin/busybox", "/init"} {
		n, _, err := root.lookup(p)
		if err != nil || !n.is(modeRegular) {
			continue
		}
		r, err := root.contents(n)
		if err != nil {
			continue
		}
		head := make([]byte, 64)
		k, err := r.ReadAt(head, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			continue
		}
		if arch := elfArch(head[:k]); arch != "" {
			return arch
		}
	}
	return ""
}

// initOf says what the root starts as its first process.
func initOf(root files) string {
	for _, p := range []string{"/sbin/init", "/init"} {
		n, real, err := root.lookup(p)
		if err != nil || !n.is(modeRegular) {
			continue
		}
		if strings.HasSuffix(real, "/systemd/systemd") {
			return "systemd"
		}
		return printable(real)
	}
	return ""
}

// observe fills in what the disk is able to do by itself.
func (s *system) observe(disk io.ReaderAt) Facts {
	var f Facts
	if bootSector(disk) {
		f.Firmware = append(f.Firmware, "bios")
	}
	for _, esp := range s.esps {
		archs, loader := efiLoaders(esp)
		for _, a := range archs {
			if w := "uefi-" + a; !slices.Contains(f.Firmware, w) {
				f.Firmware = append(f.Firmware, w)
			}
		}
		if loader != "" {
			f.Loader = loader
		}
	}
	if len(f.Firmware) > 0 {
		f.Starts = append(f.Starts, StartSAN)
	}
	if s.rootFS.fileSystem == nil {
		f.Init = InitUnknown
		return f
	}
	f.Userland, f.Init = userland(s.rootFS), initOf(s.rootFS)
	if f.CloudInit = No; s.rootFS.exists("/usr/bin/cloud-init") || s.rootFS.exists("/usr/local/bin/cloud-init") {
		f.CloudInit = Yes
	}
	if f.Loader == "" {
		for _, l := range []struct{ path, is string }{{"/boot/grub", "grub"}, {"/boot/grub2", "grub"}, {"/boot/extlinux", "extlinux"}, {"/boot/loader", "systemd-boot"}} {
			if s.rootFS.exists(l.path) && len(f.Firmware) > 0 {
				f.Loader = l.is
				break
			}
		}
	}
	return f
}
