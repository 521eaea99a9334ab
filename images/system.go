package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"hotspare"
)

const (
	maxKernel    = 256 << 20
	maxConfig    = 4 << 20
	maxOSRelease = 64 << 10
	maxModule    = 256 << 20
)

// system is what inspect finds on a disk.
type system struct {
	root    fsID
	rootFS  files   // of nothing when no root was found that can be read
	boot    files   // a separate /boot, or of nothing
	esps    []files // EFI system partitions
	subvol  string  // of a btrfs: where the root is; "" is the default one
	release OSRelease
}

// noKernel makes the error of an image whose kernel or modules are not found.
func noKernel(where, why string, err error) error {
	return &hotspare.Error{Code: hotspare.CodeImageKernel, What: "no usable kernel was found in the image", Where: where, Why: why,
		Fix: "install a kernel package in the image, or give --kernel and --modules", Err: err}
}

// section is the part of a disk that a slot covers.
func section(disk io.ReaderAt, s slot) io.ReaderAt { return io.NewSectionReader(disk, s.off, s.size) }

// openFS opens a file system of a kind that can be read.
func openFS(kind string, r io.ReaderAt, size int64) (fileSystem, error) {
	switch kind {
	case "ext4":
		return openExt4(r, size)
	case "xfs":
		return openXFS(r, size)
	case "btrfs":
		return openBtrfs(r, size)
	}
	return nil, fs.ErrInvalid
}

var repairHint = map[string]string{"ext4": "e2fsck -fy", "xfs": "xfs_repair", "btrfs": "btrfs check"}

// findSystem looks for the root file system: the first one with an os-release.
// With given set (kernel and modules come from elsewhere) a root that cannot be
// read will do.
func findSystem(disk io.ReaderAt, size int64, given bool) (system, error) {
	var sys, other system
	slots, err := partitions(disk, size)
	if err != nil {
		return sys, err
	}
	var found []string
	for _, s := range slots {
		if s.esp {
			if esp, err := openFAT(section(disk, s), s.size); err == nil {
				sys.esps = append(sys.esps, files{esp})
			}
		}
		id := identify(disk, s)
		if id.kind == "" {
			continue
		}
		found = append(found, fmt.Sprintf("%s: %s", s, id.kind))
		if repairHint[id.kind] == "" {
			continue
		}
		if other.root.kind == "" {
			other.root = id
		}
		fsys, err := openFS(id.kind, section(disk, s), s.size)
		if err == nil {
			err = sys.take(id, files{fsys})
		}
		if hotspare.CodeOf(err) != "" {
			return sys, err
		}
		if err != nil && !given {
			return sys, noKernel(s.String(), fmt.Sprintf("its %s file system cannot be read; %s may help", id.kind, repairHint[id.kind]), err)
		}
	}
	switch {
	case sys.rootFS.fileSystem != nil:
		return sys, nil
	case given && other.root.kind != "":
		other.esps = sys.esps
		return other, nil
	case len(found) == 0:
		return sys, noKernel("", "no partition holds a file system that is known (ext4, xfs, btrfs)", nil)
	default:
		return sys, noKernel(strings.Join(found, ", "), "no file system with an /etc/os-release; kernels inside LVM and LUKS cannot be read", nil)
	}
}

// take notes a file system as the root if it is one, as /boot if it holds
// kernels.
func (s *system) take(id fsID, fsys files) error {
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := fsys.readFile(p, maxOSRelease)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if s.rootFS.fileSystem == nil {
			s.root, s.rootFS, s.release = id, fsys, parseOSRelease(b)
		}
		return nil
	}
	if b, ok := fsys.fileSystem.(*btrfsFS); ok && b.name == "" && s.rootFS.fileSystem == nil {
		for _, name := range []string{"root", "@", "@rootfs"} { // of Fedora, of Debian and Ubuntu, of Debian
			sub, err := b.in(name)
			if err != nil {
				return err
			}
			if sub == nil {
				continue
			}
			if err := s.take(id, files{sub}); err != nil || s.rootFS.fileSystem != nil {
				s.subvol = name
				return err
			}
		}
	}
	if s.boot.fileSystem != nil {
		return nil
	}
	names, err := fsys.names("/")
	if err != nil {
		return err
	}
	if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "vmlinuz-") }) {
		s.boot = fsys
	}
	return nil
}

// foundKernel is a kernel inside the image.
type foundKernel struct {
	version string
	fs      files
	path    string // on fs
	source  string // as seen from the root
}

// kernel chooses among the kernels that have modules: the one that /vmlinuz or
// /boot/vmlinuz points at, else the newest.
func (s system) kernel() (foundKernel, error) {
	var all []foundKernel
	var without []string
	for _, place := range []struct {
		fs  files
		dir string
	}{{s.rootFS, "/boot"}, {s.boot, "/"}, {s.rootFS, "/usr/lib/modules"}} {
		if place.fs.fileSystem == nil {
			continue
		}
		names, err := place.fs.names(place.dir)
		if err != nil {
			return foundKernel{}, noKernel(place.dir, "", err)
		}
		for _, name := range names {
			version, ok := strings.CutPrefix(name, "vmlinuz-")
			if place.dir == "/usr/lib/modules" { // where Fedora and its kin keep it
				version, name = name, name+"/vmlinuz"
				ok = place.fs.exists(place.dir + "/" + name)
			}
			if !ok || !versionGrammar.MatchString(version) || slices.ContainsFunc(all, func(k foundKernel) bool { return k.version == version }) {
				continue
			}
			n, _, err := s.rootFS.lookup("/lib/modules/" + version + "/modules.dep")
			if err != nil || !n.is(modeRegular) {
				without = append(without, version)
				continue
			}
			source := path.Join(place.dir, name)
			if place.fs == s.boot {
				source = "/boot/" + name
			}
			all = append(all, foundKernel{version, place.fs, path.Join(place.dir, name), source})
		}
	}
	if len(all) == 0 {
		if len(without) > 0 {
			return foundKernel{}, noKernel("/boot/vmlinuz-"+without[0], "/lib/modules/"+without[0]+"/modules.dep is missing (run depmod in the image)", nil)
		}
		return foundKernel{}, noKernel("/boot", "there is no vmlinuz-VERSION", nil)
	}
	for _, link := range []string{"/vmlinuz", "/boot/vmlinuz"} {
		if _, target, err := s.rootFS.lookup(link); err == nil {
			if i := slices.IndexFunc(all, func(k foundKernel) bool { return k.source == target }); i >= 0 {
				return all[i], nil
			}
		}
	}
	return slices.MaxFunc(all, func(a, b foundKernel) int { return compareVersions(a.version, b.version) }), nil
}

// takeKernel fills the image's kernel, architecture, config and modules: those
// that the request gives, the rest from the disk.
func (r *Repository) takeKernel(ctx context.Context, img *Image, sys system, req ImportRequest) error {
	var data []byte
	if req.Kernel != "" {
		b, err := readGiven(req.Kernel, maxKernel)
		if err != nil {
			return err
		}
		data, img.Kernel.Source = b, "given"
	} else {
		if sys.rootFS.fileSystem == nil {
			return noKernel("", "the modules are given and the kernel is not", nil)
		}
		found, err := sys.kernel()
		if err != nil {
			return err
		}
		if data, err = found.fs.readFile(found.path, maxKernel); err != nil {
			return noKernel(found.source, "", err)
		}
		img.Kernel.Version, img.Kernel.Source = found.version, found.source
		for _, name := range []string{"config-" + found.version, "config"} {
			config, err := found.fs.readFile(path.Join(path.Dir(found.path), name), maxConfig)
			if err != nil {
				continue
			}
			if img.Kernel.Config, err = r.putBlob(bytes.NewReader(config)); err != nil {
				return err
			}
			break
		}
	}
	info := inspectKernel(data)
	switch {
	case info.arch == "":
		return noKernel(img.Kernel.Source, "the file is not a kernel that is known (x86 bzImage, arm64 Image, EFI zboot)", nil)
	case img.Kernel.Version == "" && info.version != "":
		img.Kernel.Version = info.version
	case img.Kernel.Version == "" && req.Modules != "":
		img.Kernel.Version = path.Base(path.Clean(req.Modules))
	case info.version != "" && info.version != img.Kernel.Version:
		return noKernel(img.Kernel.Source, "the file is the kernel "+printable(info.version)+", not the one of its name: its modules would not load", nil)
	}
	if !versionGrammar.MatchString(img.Kernel.Version) {
		return noKernel(img.Kernel.Source, "the file does not tell its version; name the modules directory by it", nil)
	}
	img.Arch = info.arch
	var err error
	if img.Kernel.Blob, err = r.putBlob(bytes.NewReader(data)); err != nil {
		return err
	}
	img.Modules, err = r.takeModules(ctx, sys, img.Kernel.Version, req.Modules)
	return err
}

// readGiven reads a file that the operator named.
func readGiven(name string, limit int64) ([]byte, error) {
	f, size, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the file is too large", Where: name,
			Why: fmt.Sprintf("%d bytes, at most %d are read", size, limit), Fix: "check that it is the right file"}
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("images: read %s: %w", name, err)
	}
	return b, nil
}
