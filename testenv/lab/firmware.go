package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Firmware of a machine.
const (
	FirmwareBIOS = "bios" // SeaBIOS, and iPXE in the ROM of the NIC
	FirmwareUEFI = "uefi" // OVMF or AAVMF with its own network stack, no iPXE
)

// Architectures of a machine.
const (
	ArchAMD64 = "amd64"
	ArchARM64 = "arm64"
)

// hardwareFault says why there is no such machine, or "".
func (n NodeSpec) hardwareFault() string {
	uefi := n.Firmware == FirmwareUEFI
	switch {
	case n.Arch != ArchAMD64 && n.Arch != ArchARM64:
		return "arch must be amd64 or arm64"
	case n.Firmware != FirmwareBIOS && !uefi:
		return "firmware must be bios or uefi"
	case n.Arch == ArchARM64 && !uefi:
		return "an arm64 machine has UEFI"
	case !uefi && (n.SecureBoot || n.HTTPBoot || n.TrustCA != ""):
		return "only UEFI has Secure Boot and boots over HTTP"
	case n.Arch == ArchARM64 && n.SecureBoot:
		return "there are no keys for Secure Boot on arm64 here"
	case n.DiskMiB < 0:
		return "a disk of less than nothing"
	}
	return ""
}

// hardware is what a machine's processor and firmware need of QEMU.
type hardware struct {
	qemu     string // program; "" is the lab's
	pkg      string // that brings what is missing
	code     string // firmware volume with the code; "" for SeaBIOS
	vars     string // template of the machine's own variables
	machine  []string
	firmware []string
}

// hardwareOf describes a node's machine. The files are those of Debian's packages
// ovmf and qemu-efi-aarch64.
func hardwareOf(n NodeSpec, accel string) hardware {
	cpuAccel := []string{"-accel", "tcg,thread=multi,tb-size=128", "-cpu", emulatedCPU}
	if accel == "kvm" {
		cpuAccel = []string{"-accel", "kvm", "-cpu", "host"}
	}
	switch {
	case n.Arch == ArchARM64:
		return hardware{
			qemu: "qemu-system-aarch64", pkg: "qemu-system-arm qemu-efi-aarch64",
			code: "/usr/share/AAVMF/AAVMF_CODE.fd", vars: "/usr/share/AAVMF/AAVMF_VARS.fd",
			// Another architecture is emulated, whatever the host's can do.
			machine: []string{"-machine", "virt", "-accel", "tcg,thread=multi,tb-size=128", "-cpu", "cortex-a57"},
		}
	case n.Firmware != FirmwareUEFI:
		return hardware{machine: append([]string{"-machine", "pc,graphics=off"}, cpuAccel...)}
	case n.SecureBoot:
		return hardware{
			pkg: "ovmf", code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", vars: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
			// The variables with the keys are writable in system management mode only.
			machine:  append([]string{"-machine", "q35,smm=on,graphics=off"}, cpuAccel...),
			firmware: []string{"-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"},
		}
	}
	return hardware{
		pkg: "ovmf", code: "/usr/share/OVMF/OVMF_CODE_4M.fd", vars: "/usr/share/OVMF/OVMF_VARS_4M.fd",
		machine: append([]string{"-machine", "q35,graphics=off"}, cpuAccel...),
	}
}

// firmwareArgs are the machine's firmware and NIC. A UEFI machine has variables
// of its own, a copy made at its first power on.
func (m *machine) firmwareArgs(h hardware) []string {
	nic := "virtio-net-pci,id=nic0,netdev=net0,mac=" + m.node.MAC + ",bootindex=1"
	if h.code == "" {
		// Without disable-legacy the device has another id than the ROM names, and
		// SeaBIOS skips the ROM.
		return []string{"-device", nic + ",disable-legacy=on,romfile=" + m.rom}
	}
	args := []string{
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + h.code,
		"-drive", "if=pflash,unit=1,format=raw,file=" + m.varsFile(),
		// The firmware's own driver and PXE client: no iPXE in a ROM.
		"-device", nic + ",romfile=",
		// It would wait 66 s for IPv6 before it tries IPv4.
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n",
	}
	if m.node.HTTPBoot {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n")
	}
	if m.node.TrustCA != "" {
		args = append(args, "-fw_cfg", "name=etc/edk2/https/cacerts,file="+m.node.TrustCA)
	}
	return append(args, h.firmware...)
}

func (m *machine) varsFile() string { return filepath.Join(m.dir, "vars.fd") }
func (m *machine) diskFile() string { return filepath.Join(m.dir, "disk.raw") }

// diskArgs is the machine's local disk, after the NIC in the boot order.
func (m *machine) diskArgs() []string {
	if m.node.DiskMiB == 0 {
		return nil
	}
	return []string{
		"-drive", "if=none,id=disk0,format=raw,discard=unmap,file=" + m.diskFile(),
		"-device", "virtio-blk-pci,drive=disk0,bootindex=2,serial=DISK-" + m.node.Name,
	}
}

// prepareFiles makes what the machine keeps over power cycles: variables, disk.
func (m *machine) prepareFiles(h hardware) error {
	if h.vars != "" {
		if _, err := os.Stat(m.varsFile()); errors.Is(err, fs.ErrNotExist) {
			b, err := os.ReadFile(h.vars)
			if err == nil {
				err = os.WriteFile(m.varsFile(), b, 0o600)
			}
			if err != nil {
				return fmt.Errorf("variables of the firmware: %w", err)
			}
		}
	}
	if m.node.DiskMiB > 0 {
		f, err := os.OpenFile(m.diskFile(), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("local disk: %w", err)
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || info.Size() < int64(m.node.DiskMiB)<<20 {
			return errors.Join(err, f.Truncate(int64(m.node.DiskMiB)<<20))
		}
	}
	return nil
}

// args is the machine's hardware. Its NIC is the first that it boots from, and
// without a local disk the only one.
func (m *machine) args(paused bool) []string {
	h := hardwareOf(m.node, m.accel)
	args := append([]string{"-name", m.marker()}, h.machine...)
	args = append(args,
		"-smp", strconv.Itoa(m.node.CPUs), "-m", strconv.Itoa(m.node.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none",
		"-uuid", m.node.UUID,
		"-smbios", "type=1,manufacturer=hotspare,product=lab-node,uuid="+m.node.UUID+",serial="+m.node.Serial,
		"-netdev", "tap,id=net0,ifname="+tapName(m.node.Name)+",script=no,downscript=no",
	)
	args = append(args, m.firmwareArgs(h)...)
	args = append(args, m.diskArgs()...)
	args = append(args,
		"-device", "virtio-rng-pci",
		"-chardev", "file,id=serial0,path="+filepath.Join(m.dir, "serial.log")+",append=on", "-serial", "chardev:serial0",
		"-qmp", "unix:"+m.socket()+",server=on,wait=off",
		"-pidfile", m.pidFile(),
	)
	if paused {
		args = append(args, "-S")
	}
	return args
}
