package agentlink

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"hotspare"
)

// Artefact is a file that the node fetches by HTTP. The URL needs no trust: the
// digest came over the link.
type Artefact struct {
	URL    string `json:"url"`
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
	Bytes  int64  `json:"bytes"`
}

// MaxArtefact bounds one artefact in bytes: it is kept in the node's memory.
const MaxArtefact = 1 << 30

// Preload makes a parked node keep artefacts in its memory, so that a later
// Kexec or Claim need not fetch them. It executes nothing of them (SAFETY S8).
// Artefacts that it does not name are dropped from memory. It needs no
// application; its Result comes when all are there.
type Preload struct {
	Artefacts []Artefact `json:"artefacts"` // at most MaxPreload; none: drop all
}

// MaxPreload is the number of artefacts in one Preload.
const MaxPreload = 8

// Kexec makes a parked node execute another kernel. Its Result comes before the
// node leaves; then the link ends and the new kernel joins as another boot. It
// carries application and epoch when the boot is for a grant, and neither when
// the node changes its standby environment. It is refused when the node carries
// anything.
type Kexec struct {
	Kernel  Artefact `json:"kernel"`
	Initrd  Artefact `json:"initrd"`
	Cmdline string   `json:"cmdline"` // BOOTIF is added when it is not there
	// Join is the archive of standby.JoinArchive with the new boot's
	// boot.json. It is put behind the initrd in memory, and nowhere else.
	Join hotspare.Secret `json:"join"`
}

// maxCmdline is the kernel's COMMAND_LINE_SIZE on x86, with its zero.
const maxCmdline = 2048

// DiskSelector says which local disk is meant. All that is set must fit, and
// exactly one disk must: none or two are refused.
type DiskSelector struct {
	ID       string `json:"id,omitempty"` // Disk.ID
	WWN      string `json:"wwn,omitempty"`
	Serial   string `json:"serial,omitempty"`
	MinBytes int64  `json:"minBytes,omitempty"`
	MaxBytes int64  `json:"maxBytes,omitempty"`
}

// Consent says what of a disk may be overwritten.
type Consent string

// The consents.
const (
	ConsentBlank     Consent = ""          // a blank disk, and what hotspare itself wrote
	ConsentOverwrite Consent = "overwrite" // whatever is on the disk; the selector must name its ID, WWN or serial number
)

// Source is the contents of a disk as a stream of package diskstream.
type Source struct {
	URL    string `json:"url"`    // GET; "?from=BYTES" continues at an offset of the contents
	Digest string `json:"digest"` // diskstream's digest of the contents, 64 hexadecimal digits
	Bytes  int64  `json:"bytes"`  // length of the contents
}

// SlotLayout is how a disk is divided. The first installation of a disk makes
// it; later ones must ask for the same.
type SlotLayout struct {
	Slots     []string `json:"slots"` // e.g. A, B, C
	SlotBytes int64    `json:"slotBytes"`
}

// MaxSlots is the number of slots of a disk.
const MaxSlots = 8

// Install writes an image to a local disk: the whole disk, or one slot of it.
// The Result comes when the contents were read back and have the digest. It
// names an application when it is part of a grant; one for later, of a node that
// is parked, names the application too, and epoch 0.
type Install struct {
	Disk    DiskSelector `json:"disk"`
	Consent Consent      `json:"consent,omitempty"`
	Source  Source       `json:"source"`
	Layout  *SlotLayout  `json:"layout,omitempty"` // nil: the whole disk
	Slot    string       `json:"slot,omitempty"`   // with Layout; empty: the node takes one that is free, or the application's oldest
	Image   string       `json:"image"`            // name:version, for the disk's own record
	Kernel  string       `json:"kernel,omitempty"` // release, for the disk's own record

	// Of a whole disk: so many bytes at the start of the contents are kept in the
	// disk's record, and zeros stand in their place, so that no firmware ever starts
	// the copy by itself (SAFETY S2a). What was in that partition table comes here,
	// for the kernel of a start.
	Head       int64       `json:"head,omitempty"`
	Partitions []Partition `json:"partitions,omitempty"`
}

// MaxHead bounds Install.Head in bytes.
const MaxHead = 64 << 10

// MaxPartitions bounds Install.Partitions.
const MaxPartitions = 128

// Partition is a part of the contents of a disk.
type Partition struct {
	Number int   `json:"number"`
	Offset int64 `json:"offset"` // bytes from the start of the contents
	Bytes  int64 `json:"bytes"`
}

// Installed says where an installation went.
type Installed struct {
	Disk string `json:"disk"` // Disk.ID
	Slot string `json:"slot,omitempty"`
}

// Wipe takes the local traces of applications off a node's disks: with Erase the
// contents are discarded or overwritten, otherwise the copies are disabled, so
// that neither hotspare nor the firmware starts them. It is refused while the
// node carries an application.
type Wipe struct {
	Disk  DiskSelector `json:"disk,omitzero"`   // zero: every disk that holds a copy of hotspare's
	Slots []string     `json:"slots,omitempty"` // none: all
	Apps  []string     `json:"apps,omitempty"`  // only copies of these applications; none: of all
	Erase bool         `json:"erase,omitempty"`
}

// RootSource says what an image's root is.
type RootSource string

// The sources of a root.
const (
	RootOnVolume RootSource = ""     // the volume RootVolume
	RootInRAM    RootSource = "ram"  // a squashfs or cpio archive in memory, written to a tmpfs
	RootInSlot   RootSource = "slot" // a slot of a local disk, whose digest is verified before its first start
	RootOnDisk   RootSource = "disk" // a whole local disk that holds an installation
)

// Local names the local copy that a claim starts.
type Local struct {
	Disk   DiskSelector `json:"disk"`
	Slot   string       `json:"slot,omitempty"`
	Digest string       `json:"digest"` // that the copy must have been installed with
}

func (a Artefact) validate(what string) error {
	if err := checkURL(a.URL); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := checkDigest(a.SHA256); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if a.Bytes <= 0 || a.Bytes > MaxArtefact {
		return fmt.Errorf("%s: %d bytes, possible are 1 to %d", what, a.Bytes, MaxArtefact)
	}
	return nil
}

func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("URL %q is not http or https", text)
	}
	return nil
}

func checkDigest(text string) error {
	if b, err := hex.DecodeString(text); err != nil || len(b) != 32 {
		return fmt.Errorf("%q is no SHA-256", text)
	}
	return nil
}

func (p Preload) validate() error {
	if len(p.Artefacts) > MaxPreload {
		return fmt.Errorf("%d artefacts, possible are %d", len(p.Artefacts), MaxPreload)
	}
	for _, a := range p.Artefacts {
		if err := a.validate("artefact"); err != nil {
			return err
		}
	}
	return nil
}

func (k Kexec) validate() error {
	if err := errors.Join(k.Kernel.validate("kernel"), k.Initrd.validate("initrd")); err != nil {
		return err
	}
	if len(k.Cmdline) >= maxCmdline || strings.ContainsAny(k.Cmdline, "\x00\n") {
		return fmt.Errorf("the command line is too long or holds a line's end")
	}
	if k.Join.IsZero() {
		return errors.New("no join archive: the new boot could not join")
	}
	return nil
}

func (s DiskSelector) named() bool { return s.ID != "" || s.WWN != "" || s.Serial != "" }

func (s DiskSelector) validate() error {
	if !s.named() && s.MinBytes <= 0 && s.MaxBytes <= 0 {
		return errors.New("the disk is not described: an id, a WWN, a serial number or a size is needed")
	}
	return nil
}

// Fits says whether a disk is what the selector describes.
func (s DiskSelector) Fits(d Disk) bool {
	switch {
	case s.ID != "" && s.ID != d.ID, s.WWN != "" && s.WWN != d.WWN, s.Serial != "" && s.Serial != d.Serial:
		return false
	case s.MinBytes > 0 && d.Bytes < s.MinBytes, s.MaxBytes > 0 && d.Bytes > s.MaxBytes:
		return false
	}
	return true
}

func (i Install) validate() error {
	if err := errors.Join(i.Disk.validate(), checkURL(i.Source.URL), checkDigest(i.Source.Digest)); err != nil {
		return err
	}
	switch {
	case i.Source.Bytes <= 0:
		return errors.New("the source is empty")
	case i.Consent != ConsentBlank && i.Consent != ConsentOverwrite:
		return fmt.Errorf("consent %q", i.Consent)
	case i.Consent == ConsentOverwrite && !i.Disk.named():
		return errors.New("a disk that may hold foreign data must be named by its id, WWN or serial number")
	case i.Layout == nil && i.Slot != "":
		return errors.New("a slot needs a layout")
	case i.Head < 0 || i.Head > min(MaxHead, i.Source.Bytes) || i.Head%512 != 0:
		return fmt.Errorf("a head of %d bytes", i.Head)
	case i.Layout != nil && (i.Head != 0 || len(i.Partitions) != 0):
		return errors.New("only a whole disk has a head and partitions of its own")
	}
	if i.Layout == nil {
		return validatePartitions(i.Partitions, i.Source.Bytes)
	}
	if err := i.Layout.validate(); err != nil {
		return err
	}
	if i.Slot == "" {
		if i.Source.Bytes > i.Layout.SlotBytes {
			return fmt.Errorf("%d bytes do not fit into a slot of %d", i.Source.Bytes, i.Layout.SlotBytes)
		}
		return nil
	}
	for _, s := range i.Layout.Slots {
		if s == i.Slot {
			if i.Source.Bytes > i.Layout.SlotBytes {
				return fmt.Errorf("%d bytes do not fit into a slot of %d", i.Source.Bytes, i.Layout.SlotBytes)
			}
			return nil
		}
	}
	return fmt.Errorf("the layout has no slot %q", i.Slot)
}

func validatePartitions(all []Partition, bytes int64) error {
	if len(all) > MaxPartitions {
		return fmt.Errorf("%d partitions, possible are %d", len(all), MaxPartitions)
	}
	for _, p := range all {
		if p.Number < 1 || p.Number > 255 || p.Offset < 512 || p.Bytes <= 0 || p.Offset%512 != 0 || p.Bytes%512 != 0 || p.Offset > bytes-p.Bytes {
			return fmt.Errorf("partition %d: %d bytes at %d of %d", p.Number, p.Bytes, p.Offset, bytes)
		}
	}
	return nil
}

func (l SlotLayout) validate() error {
	if len(l.Slots) == 0 || len(l.Slots) > MaxSlots || l.SlotBytes <= 0 {
		return fmt.Errorf("%d slots of %d bytes; possible are 1 to %d", len(l.Slots), l.SlotBytes, MaxSlots)
	}
	seen := map[string]bool{}
	for _, s := range l.Slots {
		if s == "" || len(s) > 16 || seen[s] || strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("slot name %q", s)
		}
		seen[s] = true
	}
	return nil
}

func (w Wipe) validate() error {
	if w.Disk == (DiskSelector{}) {
		return nil
	}
	return w.Disk.validate()
}

// validate checks that the image has what its root needs.
func (i Image) validate() error {
	// It becomes a mount option.
	if len(i.RootSubvolume) > 255 || strings.ContainsAny(i.RootSubvolume, ",\x00\n") {
		return fmt.Errorf("the subvolume %q cannot be named in a mount option", i.RootSubvolume)
	}
	switch i.Root {
	case RootOnVolume:
	case RootInRAM:
		if i.RAM == nil {
			return errors.New("a root in memory needs its artefact")
		}
		return i.RAM.validate("root")
	case RootInSlot, RootOnDisk:
		if i.Local == nil {
			return errors.New("a root on a local disk needs to name the copy")
		}
		if (i.Root == RootInSlot) != (i.Local.Slot != "") {
			return fmt.Errorf("root %q and slot %q do not fit", i.Root, i.Local.Slot)
		}
		return errors.Join(i.Local.Disk.validate(), checkDigest(i.Local.Digest))
	default:
		return fmt.Errorf("root %q", i.Root)
	}
	return nil
}
