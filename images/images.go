// Package images keeps golden systems: what an operator imports once and every
// node boots from later.
//
// An import takes a disk (raw, qcow2, vmdk, vhd, vhdx), a root file system (tar,
// squashfs) or a kernel with an initrd, compressed or not; checks it before
// anything reads it as a disk; writes its contents to a read-only volume of the
// volume store (through Disks, which the caller adapts); finds the root file
// system, the kernel and its modules inside, and what the disk could start from
// by itself; and records all of it under a name and a version. The format is
// decided once, at import, and never probed again. Contents are addressed by
// their digest (DigestTree), so two versions with the same contents share one
// volume. Channels are names that lead to a version and remember the versions
// before it.
//
// The package leaves to others: where volumes live (storage/cow), who may use an
// image and whether it is in use, how files come from elsewhere (images/fetch),
// how images are made (images/build), and the initramfs (boot/standby), which
// takes the kernel and the modules from here by path.
//
// Formats followed: qcow2 (QEMU docs/interop/qcow2.txt, versions 2 and 3), the
// heads of VMDK, VHD and VHDX, GPT (UEFI 2.10 section 5), MBR, FAT, ext2/3/4
// (Linux Documentation/filesystems/ext4), XFS version 5, btrfs, the x86 boot
// protocol (Documentation/arch/x86/boot.rst) and the arm64 one
// (Documentation/arch/arm64/booting.rst) for the kernel's version and
// architecture, os-release(5), minisign signatures.
package images

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"hotspare"
)

// Disks is where disk contents go: the volume store.
type Disks interface {
	// Create makes an empty, writable volume of size bytes that reads as
	// zeros. An existing one of that name is an error.
	Create(ctx context.Context, name string, size int64) (Disk, error)
	// Delete removes a volume, sealed or not. If there is none, the error is
	// fs.ErrNotExist or carries hotspare.CodeNotFound; both count as done.
	Delete(ctx context.Context, name string) error
}

// Disk is one volume while an import fills it.
type Disk interface {
	WriteAt(p []byte, off int64) (int, error)
	Flush() error
	// Seal flushes and makes the volume read-only for good.
	Seal(ctx context.Context) error
	Close() error
}

// Image is one imported version. Paths of files are absolute and inside the
// repository's directory; they stay valid until the image is deleted.
type Image struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// Digest is the content address, in hex: of the raw disk contents, of a
	// squashfs file, or of kernel and initrd. DigestKind says how it is made:
	// DigestTree; "sha256" and "sha256-boot" of images without a volume; "" is
	// the plain SHA-256 of a disk that an earlier version imported.
	Digest     string `json:"digest"`
	DigestKind string `json:"digestKind,omitempty"`
	// SourceSHA256 is the SHA-256 of the file as it was given, what sha256sum
	// prints for it.
	SourceSHA256 string    `json:"sourceSha256"`
	Origin       string    `json:"origin,omitempty"` // where it came from: a URL, an OCI reference, a recipe
	Signer       Signer    `json:"signer,omitzero"`
	Format       Format    `json:"format"`
	SizeBytes    int64     `json:"sizeBytes"` // size of the disk
	DataBytes    int64     `json:"dataBytes"` // bytes written, zeros left out
	Volume       string    `json:"volume"`    // name in the volume store; "" is an image that runs from memory
	Arch         string    `json:"arch"`      // GOARCH words: amd64, arm64
	OSRelease    OSRelease `json:"osRelease"`
	Kernel       Kernel    `json:"kernel"`
	Modules      Blob      `json:"modules"`         // tar.zst, names relative to lib/modules/<version>
	ModulesPath  string    `json:"-"`               // file of Modules
	Initrd       Blob      `json:"initrd,omitzero"` // only when it was given
	InitrdPath   string    `json:"-"`               // file of Initrd
	Root         Blob      `json:"root,omitzero"`   // squashfs of the root
	RootPath     string    `json:"-"`               // file of Root
	Facts        Facts     `json:"facts,omitzero"`
	// RootPartition is the number of the root's partition; 0 is a file system on
	// the whole disk.
	RootPartition int               `json:"rootPartition"`
	RootFS        string            `json:"rootFs"`                  // ext4 (also for ext2 and ext3), xfs, btrfs, squashfs
	RootUUID      string            `json:"rootUuid"`                // of the file system
	RootSubvolume string            `json:"rootSubvolume,omitempty"` // of a btrfs; "" is the default one
	Cmdline       string            `json:"cmdline"`                 // more kernel arguments
	Labels        map[string]string `json:"labels,omitempty"`        // free
	Tested        Test              `json:"tested,omitzero"`         // the last test-boot
	Created       time.Time         `json:"created"`
}

// blobs lists the files of an image.
func (i Image) blobs() []Blob {
	return []Blob{i.Kernel.Blob, i.Kernel.Config, i.Modules, i.Initrd, i.Root}
}

// Ref gives "name:version".
func (i Image) Ref() string { return i.Name + ":" + i.Version }

// OSRelease is what the image says of itself in /etc/os-release, for display.
type OSRelease struct {
	ID         string `json:"id"`
	VersionID  string `json:"versionId"`
	PrettyName string `json:"prettyName"`
}

// Kernel is the kernel of an image.
type Kernel struct {
	Version string `json:"version"` // as in lib/modules/<version>
	Source  string `json:"source"`  // where it was found inside the image, or "given"
	Blob
	Path       string `json:"-"` // its file in the repository
	Config     Blob   `json:"config,omitzero"`
	ConfigPath string `json:"-"` // file of Config, "" when the image has none
}

// Blob is a file of the repository, addressed by its contents.
type Blob struct {
	Digest string `json:"digest"` // SHA-256 in hex
	Size   int64  `json:"size"`
}

// ImportRequest says what to import. Name is needed, and Path, Layers, or Kernel
// and Initrd; everything that is not given is found in the disk.
type ImportRequest struct {
	Name    string
	Version string // default: the first 12 hex digits of Digest
	Path    string // a regular file; compressed with gzip, xz, zstd or bzip2, or not
	// Layers are tar archives, each over the ones before it, as OCI images have
	// them. Their digests were checked; SHA256 is that of the manifest.
	Layers []string
	Format Format // default: decided once from the file's bytes
	// SHA256 of the file in hex, verified before anything is read from it. If
	// it is empty, the digest is recorded.
	SHA256 string
	// Signature is the contents of the file's .minisig. It must be of a trusted
	// key and is verified before anything is read from the file.
	Signature []byte
	// Kernel, Initrd and Modules are files (Modules: the directory
	// lib/modules/<version>) to take instead of what the disk holds.
	Kernel, Initrd, Modules string
	Cmdline                 string
	Labels                  map[string]string
	Origin                  string     // recorded
	DiskSize                int64      // of the disk that is made of a tar; 0: as large as needed
	Tell                    func(Step) // hears how far it is, from several goroutines; may be nil
}

var (
	nameGrammar    = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	versionGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,62}$`)
	sha256Grammar  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	cmdlineGrammar = regexp.MustCompile(`^[ -~]*$`)
)

func (r ImportRequest) validate() error {
	bad := func(field, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the image cannot be imported",
			Where: field, Why: why, Fix: "correct " + field}
	}
	switch {
	case !nameGrammar.MatchString(r.Name):
		return bad("name", fmt.Sprintf("%q is not 1-63 of a-z, 0-9, dot, dash, underscore", r.Name))
	case r.Version != "" && !versionGrammar.MatchString(r.Version):
		return bad("version", fmt.Sprintf("%q is not 1-63 of letters, digits and . _ + ~ -", r.Version))
	case r.Path == "" && len(r.Layers) == 0 && (r.Kernel == "" || r.Initrd == ""):
		return bad("path", "no file is named, and no kernel with an initrd")
	case r.Path != "" && len(r.Layers) > 0:
		return bad("path", "a file and layers are named")
	case r.Format != "" && !slices.Contains(Formats(), r.Format):
		return bad("format", fmt.Sprintf("%q is none of %v", r.Format, Formats()))
	case r.DiskSize < 0 || r.DiskSize%sector != 0:
		return bad("size", "it is not a whole number of 512-byte sectors")
	case len(r.Layers) > 0 && r.SHA256 == "":
		return bad("sha256", "layers come without the digest of their manifest")
	case r.SHA256 != "" && !sha256Grammar.MatchString(r.SHA256):
		return bad("sha256", "it is not 64 lower-case hex digits")
	case len(r.Cmdline) > 1024 || !cmdlineGrammar.MatchString(r.Cmdline):
		return bad("cmdline", "it is longer than 1024 characters or not printable ASCII")
	}
	return nil
}
