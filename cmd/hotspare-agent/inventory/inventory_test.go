package inventory

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare/haengine/agentlink"
)

// sysfs makes files and links ("-> target") below a root.
func sysfs(t *testing.T, files map[string]string) Reader {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			if err := os.MkdirAll(filepath.Join(root, to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(root, to), at); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(at, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Reader{Root: root}
}

func TestDisksHaveIdentitiesThatLast(t *testing.T) {
	at := map[string]string{
		"nvme0n1": "sys/devices/pci0/0000:01:00.0/nvme/nvme0/nvme0n1", "sda": "sys/devices/pci0/ata1/host0/target0:0:0/0:0:0:0/block/sda",
		"vda": "sys/devices/pci0/virtio1/block/vda", "sdb": "sys/devices/platform/host2/session1/target2:0:0/2:0:0:0/block/sdb",
		"loop0": "sys/devices/virtual/block/loop0", "sda1": "sys/devices/pci0/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda1",
		"dm-0": "sys/devices/virtual/block/dm-0", "sdc": "sys/devices/pci0/usb1/1-1/block/sdc", "sdd": "sys/devices/pci0/ata2/block/sdd",
	}
	files := map[string]string{
		at["nvme0n1"] + "/size": "7814037168\n", at["nvme0n1"] + "/wwid": "eui.0025385b71b0a1c2\n", at["nvme0n1"] + "/device/model": "SAMSUNG MZ  \n",
		at["nvme0n1"] + "/device/serial": "S4XF\n", at["nvme0n1"] + "/queue/rotational": "0\n",
		at["sda"] + "/size": "2048\n", at["sda"] + "/device/vpd_pg80": "\x00\x80\x00\x08 WD-1234", at["sda"] + "/device/model": "WDC  WD40/X \n", at["sda"] + "/queue/rotational": "1\n",
		at["vda"] + "/size": "4096\n", at["vda"] + "/serial": "mine\n", at["vda"] + "/ro": "1\n",
		at["sdb"] + "/size": "4096\n", at["loop0"] + "/size": "4096\n", at["dm-0"] + "/size": "4096\n",
		at["sda1"] + "/size": "1024\n", at["sda1"] + "/partition": "1\n",
		at["sdc"] + "/size": "4096\n", at["sdc"] + "/removable": "1\n", at["sdd"] + "/size": "0\n",
	}
	for name, dir := range at {
		files["sys/class/block/"+name] = "-> " + dir
	}
	got := map[string]agentlink.Disk{}
	for _, d := range sysfs(t, files).Disks() {
		got[d.Name] = d
	}
	if len(got) != 4 {
		t.Errorf("%d disks, want nvme0n1, sda, sdc and vda: %+v", len(got), got)
	}
	for name, want := range map[string]agentlink.Disk{
		"nvme0n1": {ID: "wwn-eui.0025385b71b0a1c2", Transport: "nvme", Bytes: 7814037168 * 512, Model: "SAMSUNG_MZ", Serial: "S4XF", WWN: "eui.0025385b71b0a1c2"},
		"sda":     {ID: "serial-WDC_WD40_X-WD-1234", Transport: "sata", Bytes: 2048 * 512, Model: "WDC_WD40_X", Serial: "WD-1234", Rotational: true},
		"vda":     {ID: "serial-virtio-mine", Transport: "virtio", Bytes: 4096 * 512, Model: "virtio", Serial: "mine", ReadOnly: true},
		"sdc":     {Transport: "usb", Bytes: 4096 * 512, Removable: true},
	} {
		want.Name = name
		d := got[name]
		d.Copies = nil
		if d.ID != want.ID || d.Transport != want.Transport || d.Bytes != want.Bytes || d.Model != want.Model || d.Serial != want.Serial ||
			d.WWN != want.WWN || d.Rotational != want.Rotational || d.ReadOnly != want.ReadOnly || d.Removable != want.Removable {
			t.Errorf("%s:\n%+v, want\n%+v", name, d, want)
		}
	}
}

func TestNetworkCardsThatAreHardware(t *testing.T) {
	r := sysfs(t, map[string]string{
		"sys/class/net/eth0/type": "1", "sys/class/net/eth0/address": "52:54:00:AA:00:01", "sys/class/net/eth0/carrier": "1", "sys/class/net/eth0/speed": "10000",
		"sys/class/net/eth0/device/driver": "-> sys/bus/pci/drivers/igb",
		"sys/class/net/eth1/type":          "1", "sys/class/net/eth1/address": "52:54:00:aa:00:02", "sys/class/net/eth1/carrier": "0", "sys/class/net/eth1/speed": "-1",
		"sys/class/net/eth1/device/x": "", "sys/class/net/br0/type": "1", "sys/class/net/br0/address": "52:54:00:aa:00:03", "sys/class/net/lo/type": "772",
	})
	got := r.NICs("52:54:00:aa:00:01")
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	if want := (agentlink.NIC{Name: "eth0", MAC: "52:54:00:aa:00:01", Driver: "igb", Link: true, SpeedMbps: 10000, Boot: true}); got[0] != want {
		t.Errorf("%+v, want %+v", got[0], want)
	}
	if want := (agentlink.NIC{Name: "eth1", MAC: "52:54:00:aa:00:02"}); got[1] != want {
		t.Errorf("%+v, want %+v", got[1], want)
	}
	if down := r.Health().LinksDown; len(down) != 1 || down[0] != "eth1" {
		t.Errorf("links down: %v", down)
	}
}

func TestFirmwareAndSecureBoot(t *testing.T) {
	for name, c := range map[string]struct {
		files  map[string]string
		want   agentlink.Firmware
		secure bool
	}{
		"BIOS":        {map[string]string{"sys/firmware/acpi/x": ""}, agentlink.FirmwareBIOS, false},
		"UEFI":        {map[string]string{efiVars + "/" + secureBoot: "\x06\x00\x00\x00\x00"}, agentlink.FirmwareUEFI, false},
		"Secure Boot": {map[string]string{efiVars + "/" + secureBoot: "\x06\x00\x00\x00\x01"}, agentlink.FirmwareUEFI, true},
		"no variable": {map[string]string{efiDir + "/runtime": ""}, agentlink.FirmwareUEFI, false},
	} {
		if got, secure := sysfs(t, c.files).Firmware(); got != c.want || secure != c.secure {
			t.Errorf("%s: %s, %v", name, got, secure)
		}
	}
}

func TestSensors(t *testing.T) {
	r := sysfs(t, map[string]string{
		"proc/cpuinfo":            "processor\t: 0\nmodel name\t: Intel(R)   Xeon(R) CPU\n",
		hwmonDir + "/hwmon0/name": "coretemp", hwmonDir + "/hwmon0/temp1_input": "42000", hwmonDir + "/hwmon0/temp1_label": "Package id 0", hwmonDir + "/hwmon0/temp1_crit": "100000",
		hwmonDir + "/hwmon0/fan1_input": "900", thermalDir + "/thermal_zone0/temp": "30000",
		edacDir + "/mc0/ce_count": "3", edacDir + "/mc0/ue_count": "1", edacDir + "/mc1/ce_count": "2",
	})
	h := r.Health()
	if want := (agentlink.Temperature{Name: "coretemp Package id 0", MilliC: 42000, Critical: 100000}); len(h.Temperatures) != 1 || h.Temperatures[0] != want {
		t.Errorf("temperatures: %+v", h.Temperatures)
	}
	if h.MemoryErrors != 5 || h.MemoryFatal != 1 {
		t.Errorf("memory: %+v", h)
	}
	if r.CPUModel() != "Intel(R) Xeon(R) CPU" {
		t.Errorf("processor: %q", r.CPUModel())
	}
	zones := sysfs(t, map[string]string{thermalDir + "/thermal_zone0/temp": "30000", thermalDir + "/thermal_zone0/type": "acpitz"}).Health().Temperatures
	if want := (agentlink.Temperature{Name: "thermal_zone0 acpitz", MilliC: 30000}); len(zones) != 1 || zones[0] != want {
		t.Errorf("without hwmon: %+v", zones)
	}
}
