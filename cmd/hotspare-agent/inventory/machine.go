package inventory

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hotspare/haengine/agentlink"
)

// Reader reads below a root: "/" but in tests.
type Reader struct{ Root string }

func (r Reader) path(parts ...string) string {
	return filepath.Join(append([]string{r.Root}, parts...)...)
}

// word gives a small file's text, or "".
func (r Reader) word(parts ...string) string {
	text, err := os.ReadFile(r.path(parts...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (r Reader) number(parts ...string) int64 {
	n, err := strconv.ParseInt(r.word(parts...), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (r Reader) names(parts ...string) []string {
	entries, err := os.ReadDir(r.path(parts...))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// CPUModel gives the processor's name.
func (r Reader) CPUModel() string {
	for line := range strings.Lines(r.word("proc/cpuinfo")) {
		name, value, ok := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name", "Model", "cpu model":
			if ok {
				return strings.Join(strings.Fields(value), " ")
			}
		}
	}
	return ""
}

const (
	efiDir  = "sys/firmware/efi"
	efiVars = efiDir + "/efivars"
	// secureBoot is the variable of the UEFI specification, section 3.3: four
	// bytes of attributes, then one of value.
	secureBoot = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
)

// Firmware says how the machine was started, and whether UEFI Secure Boot is on.
func (r Reader) Firmware() (agentlink.Firmware, bool) {
	if _, err := os.Stat(r.path(efiDir)); err != nil {
		return agentlink.FirmwareBIOS, false
	}
	if _, err := os.Stat(r.path(efiVars, secureBoot)); err != nil && r.Root == "/" {
		if unix.Mount("efivarfs", r.path(efiVars), "efivarfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "") == nil {
			defer func() { _ = unix.Unmount(r.path(efiVars), 0) }() // the image's init mounts it itself
		}
	}
	value, err := os.ReadFile(r.path(efiVars, secureBoot))
	return agentlink.FirmwareUEFI, err == nil && len(value) == 5 && value[4] == 1
}

const (
	netDir   = "sys/class/net"
	etherNet = "1" // ARPHRD_ETHER of linux/if_arp.h
)

// NICs gives the Ethernet ports that are hardware; boot is the agent's own.
func (r Reader) NICs(boot string) []agentlink.NIC {
	var out []agentlink.NIC
	for _, name := range r.names(netDir) {
		if r.word(netDir, name, "type") != etherNet {
			continue
		}
		if _, err := os.Stat(r.path(netDir, name, "device")); err != nil {
			continue // a bridge, a bond, ...
		}
		nic := agentlink.NIC{Name: name, MAC: strings.ToLower(r.word(netDir, name, "address")), Link: r.word(netDir, name, "carrier") == "1"}
		if speed := r.number(netDir, name, "speed"); speed > 0 {
			nic.SpeedMbps = int(speed)
		}
		if driver, err := filepath.EvalSymlinks(r.path(netDir, name, "device/driver")); err == nil {
			nic.Driver = filepath.Base(driver)
		}
		nic.Boot = nic.MAC == strings.ToLower(boot)
		out = append(out, nic)
	}
	return out
}

const (
	hwmonDir   = "sys/class/hwmon"
	thermalDir = "sys/class/thermal"
	edacDir    = "sys/devices/system/edac/mc"
	maxSensors = 64
)

// Health reads the sensors.
func (r Reader) Health() agentlink.Health {
	h := agentlink.Health{Temperatures: r.temperatures()}
	for _, mc := range r.names(edacDir) {
		if strings.HasPrefix(mc, "mc") {
			h.MemoryErrors += uint64(max(0, r.number(edacDir, mc, "ce_count")))
			h.MemoryFatal += uint64(max(0, r.number(edacDir, mc, "ue_count")))
		}
	}
	for _, name := range r.names(netDir) {
		if r.word(netDir, name, "type") == etherNet && r.word(netDir, name, "carrier") == "0" { // unreadable while it is down
			h.LinksDown = append(h.LinksDown, name)
		}
	}
	return h
}

func (r Reader) temperatures() []agentlink.Temperature {
	var out []agentlink.Temperature
	for _, hw := range r.names(hwmonDir) {
		chip := r.word(hwmonDir, hw, "name")
		for _, file := range r.names(hwmonDir, hw) {
			sensor, ok := strings.CutSuffix(file, "_input")
			if !ok || !strings.HasPrefix(sensor, "temp") || len(out) >= maxSensors || r.word(hwmonDir, hw, file) == "" {
				continue
			}
			name := r.word(hwmonDir, hw, sensor+"_label")
			if name == "" {
				name = sensor
			}
			out = append(out, agentlink.Temperature{
				Name: chip + " " + name, MilliC: int(r.number(hwmonDir, hw, file)), Critical: int(max(0, r.number(hwmonDir, hw, sensor+"_crit"))),
			})
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, zone := range r.names(thermalDir) {
		if strings.HasPrefix(zone, "thermal_zone") && len(out) < maxSensors && r.word(thermalDir, zone, "temp") != "" {
			out = append(out, agentlink.Temperature{
				Name: fmt.Sprintf("%s %s", zone, r.word(thermalDir, zone, "type")), MilliC: int(r.number(thermalDir, zone, "temp")),
			})
		}
	}
	return out
}
