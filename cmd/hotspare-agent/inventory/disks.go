package inventory

import (
	"os"
	"path/filepath"
	"strings"

	"hotspare/haengine/agentlink"
)

const (
	blockDir    = "sys/class/block"
	sectorBytes = 512 // of /sys/class/block/*/size, whatever the disk's own
)

// pseudo are the names of block devices that are no disks.
var pseudo = []string{"loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "rbd", "drbd", "mtdblock", "bcache"}

// Disks gives the local disks.
func (r Reader) Disks() []agentlink.Disk {
	var out []agentlink.Disk
	for _, name := range r.names(blockDir) {
		if isPseudo(name) || r.word(blockDir, name, "partition") != "" {
			continue
		}
		at, err := filepath.EvalSymlinks(r.path(blockDir, name))
		if err != nil || strings.Contains(at, "/session") || strings.Contains(at, "/virtual/") {
			continue // of an iSCSI session, or a multipath head
		}
		d := r.disk(name)
		if d.Bytes > 0 {
			out = append(out, d)
		}
	}
	return out
}

func isPseudo(name string) bool {
	for _, p := range pseudo {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

func (r Reader) disk(name string) agentlink.Disk {
	at := func(parts ...string) string { return r.word(append([]string{blockDir, name}, parts...)...) }
	d := agentlink.Disk{
		Name: name, Bytes: r.number(blockDir, name, "size") * sectorBytes,
		Rotational: at("queue/rotational") == "1", ReadOnly: at("ro") == "1", Removable: at("removable") == "1",
		Model: squeeze(at("device/model")), Serial: squeeze(first(at("serial"), at("device/serial"), r.vpdSerial(name))),
		WWN: squeeze(first(at("wwid"), at("device/wwid"))),
	}
	d.Transport = r.transport(name)
	if d.Model == "" && d.Transport == "virtio" {
		d.Model = "virtio"
	}
	d.ID = stableID(d)
	return d
}

// vpdSerial reads the unit serial number that a SCSI disk gave (SPC-4, vital
// product data page 0x80: four bytes of header).
func (r Reader) vpdSerial(name string) string {
	page, err := os.ReadFile(r.path(blockDir, name, "device/vpd_pg80"))
	if err != nil || len(page) < 4 {
		return ""
	}
	return strings.TrimSpace(string(page[4:]))
}

func (r Reader) transport(name string) string {
	at, err := filepath.EvalSymlinks(r.path(blockDir, name))
	if err != nil {
		return ""
	}
	for _, t := range []struct{ part, name string }{
		{"/usb", "usb"}, {"/nvme", "nvme"}, {"/virtio", "virtio"}, {"/ata", "sata"}, {"/end_device-", "sas"}, {"/mmc", "mmc"},
	} {
		if strings.Contains(at, t.part) {
			return t.name
		}
	}
	return ""
}

// stableID is what a disk goes by: its WWN, else model and serial number. A disk
// that has neither has no identity, and nothing is ever installed to it by name.
func stableID(d agentlink.Disk) string {
	switch {
	case d.WWN != "":
		return "wwn-" + d.WWN
	case d.Serial != "" && d.Model != "":
		return "serial-" + d.Model + "-" + d.Serial
	case d.Serial != "":
		return "serial-" + d.Serial
	default:
		return ""
	}
}

// squeeze makes one word of a text: SCSI pads with blanks.
func squeeze(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == 0x7f }), "_")
}

func first(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}
