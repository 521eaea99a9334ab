package main

import (
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"hotspare/cmd/hotspare-agent/inventory"
	"hotspare/cmd/hotspare-agent/kexec"
	"hotspare/cmd/hotspare-agent/nic"
	"hotspare/haengine/agentlink"
)

// readFacts gathers what the node is.
func readFacts(l nic.Link, boot nic.Boot, config agentlink.BootConfig) agentlink.Facts {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	node := inventory.Reader{Root: "/"}
	f := agentlink.Facts{
		UUID:          strings.ToLower(readWord("/sys/class/dmi/id/product_uuid")),
		Serial:        readWord("/sys/class/dmi/id/product_serial"),
		Vendor:        readWord("/sys/class/dmi/id/sys_vendor"),
		Product:       readWord("/sys/class/dmi/id/product_name"),
		MACs:          nic.MACs(l.MAC),
		Address:       boot.Address.Addr().String(),
		CPUs:          runtime.NumCPU(),
		CPUModel:      node.CPUModel(),
		MemoryMiB:     meminfo("MemTotal") / 1024,
		MemoryFreeMiB: meminfo("MemAvailable") / 1024,
		Arch:          runtime.GOARCH,
		Kernel:        unix.ByteSliceToString(uts.Release[:]),
		BootID:        readWord("/proc/sys/kernel/random/boot_id"),
		Mode:          config.Mode,
		Kexec:         kexec.Ability(),
		NICs:          node.NICs(l.MAC.String()),
		Disks:         localDisks(siteOf(config.CA)),
	}
	f.Firmware, f.SecureBoot = node.Firmware()
	return f
}
