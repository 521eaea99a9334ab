package agentlink

import (
	"strings"
	"unicode/utf8"
)

// Facts are what the agent found on its node.
type Facts struct {
	UUID      string   `json:"uuid"` // /sys/class/dmi/id/product_uuid, lower case; empty where there is none
	Serial    string   `json:"serial,omitempty"`
	MACs      []string `json:"macs"` // lower case, the one that booted first
	Address   string   `json:"address,omitempty"`
	CPUs      int      `json:"cpus"`
	MemoryMiB int      `json:"memoryMiB"`
	Arch      string   `json:"arch"`   // GOARCH word
	Kernel    string   `json:"kernel"` // release, as uname -r says
	BootID    string   `json:"bootId"`

	Mode          BootMode     `json:"mode,omitempty"` // what this boot is for
	Vendor        string       `json:"vendor,omitempty"`
	Product       string       `json:"product,omitempty"`
	CPUModel      string       `json:"cpuModel,omitempty"`
	MemoryFreeMiB int          `json:"memoryFreeMiB,omitempty"` // available when the facts were read
	Firmware      Firmware     `json:"firmware,omitempty"`
	SecureBoot    bool         `json:"secureBoot,omitempty"`
	Kexec         KexecAbility `json:"kexec"`
	NICs          []NIC        `json:"nics,omitempty"`
	Disks         []Disk       `json:"disks,omitempty"` // local ones only
}

// Firmware is how the machine was started.
type Firmware string

// The firmwares.
const (
	FirmwareBIOS Firmware = "bios"
	FirmwareUEFI Firmware = "uefi"
)

// KexecAbility says whether the running kernel executes another one.
type KexecAbility struct {
	Possible   bool   `json:"possible"`
	SignedOnly bool   `json:"signedOnly,omitempty"` // lockdown: only a kernel that a key of the firmware or the kernel has signed
	Why        string `json:"why,omitempty"`        // why not, or why signed only
}

// NIC is one Ethernet port.
type NIC struct {
	Name      string `json:"name"` // the kernel's, for display
	MAC       string `json:"mac"`
	Driver    string `json:"driver,omitempty"`
	Link      bool   `json:"link"`
	SpeedMbps int    `json:"speedMbps,omitempty"` // 0: unknown
	Boot      bool   `json:"boot,omitempty"`      // the agent's own
}

// Disk is a local disk.
type Disk struct {
	Name       string `json:"name"` // the kernel's, e.g. nvme0n1; it may differ at the next boot
	ID         string `json:"id"`   // stable: "wwn-...", else "serial-MODEL-SERIAL"; empty: the disk has no identity
	WWN        string `json:"wwn,omitempty"`
	Serial     string `json:"serial,omitempty"`
	Model      string `json:"model,omitempty"`
	Bytes      int64  `json:"bytes"`
	Transport  string `json:"transport,omitempty"` // nvme, virtio, sata, sas, usb, ... as far as known
	Rotational bool   `json:"rotational,omitempty"`
	ReadOnly   bool   `json:"readOnly,omitempty"`
	Removable  bool   `json:"removable,omitempty"`
	Holds      string `json:"holds,omitempty"` // "blank", "hotspare slots", "hotspare install", else what was recognised, e.g. "gpt", "ext4", "data"
	Copies     []Copy `json:"copies,omitempty"`
}

// Copy is an image on a local disk: the local traces of an application.
type Copy struct {
	Slot    string    `json:"slot,omitempty"` // A, B, C, ...; empty: the whole disk
	State   CopyState `json:"state"`
	Active  bool      `json:"active,omitempty"`  // the slot that is to be started
	App     string    `json:"app,omitempty"`     // that it was installed for
	Epoch   uint64    `json:"epoch,omitempty"`   // of the last grant that started it
	Image   string    `json:"image,omitempty"`   // name:version
	Kernel  string    `json:"kernel,omitempty"`  // release
	Digest  string    `json:"digest,omitempty"`  // of the contents as installed, see package diskstream
	Bytes   int64     `json:"bytes,omitempty"`   // length of the contents
	Started int       `json:"started,omitempty"` // starts since it was installed
}

// CopyState is the state of a local copy.
type CopyState string

// The states of a copy. Only a ready one is started; one that was started is not
// what was installed any more, so its digest is not asked for again.
const (
	CopyEmpty    CopyState = "empty"
	CopyWriting  CopyState = "writing"
	CopyReady    CopyState = "ready"
	CopyStarted  CopyState = "started"
	CopyDisabled CopyState = "disabled" // released: nothing starts it
	CopyFailed   CopyState = "failed"   // its digest differs, or it did not come up
)

// Health is what a node's sensors say.
type Health struct {
	Temperatures []Temperature `json:"temperatures,omitempty"`
	MemoryErrors uint64        `json:"memoryErrors,omitempty"` // corrected, since the kernel started (EDAC)
	MemoryFatal  uint64        `json:"memoryFatal,omitempty"`  // not corrected
	LinksDown    []string      `json:"linksDown,omitempty"`    // network cards that are set up and have no carrier
}

// Temperature is one sensor of /sys/class/hwmon or /sys/class/thermal.
type Temperature struct {
	Name     string `json:"name"`
	MilliC   int    `json:"milliC"`
	Critical int    `json:"critical,omitempty"` // milli degrees Celsius; 0: unknown
}

// Bounds of what a node may say of itself.
const (
	maxFactText = 128
	maxFactList = 64
)

// Bounded gives the facts with every text and list cut to what the appliance is
// willing to keep and show: a node's word is a claim, not a fact.
func (f Facts) Bounded() Facts {
	for _, s := range []*string{&f.UUID, &f.Serial, &f.Address, &f.Arch, &f.Kernel, &f.BootID, &f.Vendor, &f.Product, &f.CPUModel, &f.Kexec.Why,
		(*string)(&f.Mode), (*string)(&f.Firmware)} {
		*s = cut(*s)
	}
	f.MACs = append([]string(nil), f.MACs[:min(len(f.MACs), maxFactList)]...)
	for i := range f.MACs {
		f.MACs[i] = cut(f.MACs[i])
	}
	f.NICs = append([]NIC(nil), f.NICs[:min(len(f.NICs), maxFactList)]...)
	for i := range f.NICs {
		n := &f.NICs[i]
		n.Name, n.MAC, n.Driver = cut(n.Name), cut(n.MAC), cut(n.Driver)
	}
	f.Disks = append([]Disk(nil), f.Disks[:min(len(f.Disks), maxFactList)]...)
	for i := range f.Disks {
		f.Disks[i] = f.Disks[i].bounded()
	}
	return f
}

func (d Disk) bounded() Disk {
	for _, s := range []*string{&d.Name, &d.ID, &d.WWN, &d.Serial, &d.Model, &d.Transport, &d.Holds} {
		*s = cut(*s)
	}
	d.Copies = append([]Copy(nil), d.Copies[:min(len(d.Copies), maxFactList)]...)
	for i := range d.Copies {
		c := &d.Copies[i]
		for _, s := range []*string{&c.Slot, &c.App, &c.Image, &c.Kernel, &c.Digest, (*string)(&c.State)} {
			*s = cut(*s)
		}
	}
	return d
}

// cut makes a text short and printable.
func cut(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	if len(s) <= maxFactText {
		return s
	}
	s = s[:maxFactText]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
