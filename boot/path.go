package boot

import (
	"strconv"
	"strings"
)

// Artefact names what a boot path leads to.
type Artefact string

// The artefacts that are served over HTTP. GRUB fetches over TFTP, so those below
// /grub/, kernel, initrd and join are served there too, by the same names.
const (
	ArtefactNone       Artefact = ""
	ArtefactScript     Artefact = "script"     // /ipxe/TOKEN
	ArtefactUnassigned Artefact = "unassigned" // /ipxe/unassigned/MAC/ARCH
	ArtefactKernel     Artefact = "kernel"     // /boot/TOKEN/kernel
	ArtefactInitrd     Artefact = "initrd"     // /boot/TOKEN/initrd
	ArtefactJoin       Artefact = "join"       // /boot/TOKEN/join, once
	ArtefactRoot       Artefact = "root"       // /boot/TOKEN/root: a root that runs from memory
	ArtefactSAN        Artefact = "san"        // /boot/TOKEN/san, once: iPXE's script with the secret of the volume
	ArtefactLoader     Artefact = "loader"     // /loader/NAME, /grub/TOKEN/NAME, /grub/unassigned/MAC/ARCH/NAME
	ArtefactGRUB       Artefact = "grub"       // /grub/TOKEN/grub.cfg, /grub/unassigned/MAC/ARCH/grub.cfg
	ArtefactGRUBEntry  Artefact = "grub-entry" // /grub/grub.cfg: leads GRUB to one of the former
)

// Path is a parsed boot path. Token, MAC and Arch, or Name is set, as Artefact
// says; below /grub/ Name comes with one of the others.
type Path struct {
	Artefact Artefact
	Token    string
	MAC      MAC
	Arch     Arch
	Name     string
}

// grubConfig is the name of GRUB's configuration, in GRUB's own folder and in
// that of each boot.
const grubConfig = "grub.cfg"

// String gives the path that ParsePath understands.
func (p Path) String() string {
	switch p.Artefact {
	case ArtefactScript:
		return "/ipxe/" + p.Token
	case ArtefactUnassigned:
		return "/ipxe/" + p.unassigned()
	case ArtefactKernel, ArtefactInitrd, ArtefactRoot, ArtefactJoin, ArtefactSAN:
		return "/boot/" + p.Token + "/" + string(p.Artefact)
	case ArtefactLoader:
		if folder := p.folder(); folder != "" {
			return "/grub/" + folder + "/" + p.Name
		}
		return "/loader/" + p.Name
	case ArtefactGRUB:
		return "/grub/" + p.folder() + "/" + grubConfig
	case ArtefactGRUBEntry:
		return "/grub/" + grubConfig
	}
	return ""
}

func (p Path) unassigned() string {
	return "unassigned/" + p.MAC.Hyphens() + "/" + strconv.Itoa(int(p.Arch))
}

// folder is the one below /grub/ that a machine's files are in; "" when the path
// names none.
func (p Path) folder() string {
	switch {
	case p.Token != "":
		return p.Token
	case !p.MAC.IsZero():
		return p.unassigned()
	}
	return ""
}

// Redacted is String with the token shortened, for logs and traces.
func (p Path) Redacted() string {
	if p.Token != "" {
		p.Token = ShortToken(p.Token)
	}
	return p.String()
}

// RedactFile shortens what looks like a token in the name of a file that was
// asked for over TFTP or stands in an offer, for logs and traces.
func RedactFile(name string) string {
	part := strings.Split(name, "/")
	for i, p := range part {
		if ValidToken(p) {
			part[i] = ShortToken(p)
		}
	}
	return strings.Join(part, "/")
}

// ParsePath takes the decoded path of a URL. It knows exactly the forms that
// Path.String writes: anything else, also one more slash or a dot segment, is
// not a boot path. Firmware that doubles the leading slash is forgiven, for a
// redirect would break it (UEFI HTTP boot does not follow redirects), and so is
// shim, which doubles the last one.
func ParsePath(s string) (Path, bool) {
	if strings.HasPrefix(s, "//") {
		s = s[1:]
	}
	if i := strings.LastIndex(s, "//"); i > 0 && strings.HasPrefix(s, "/grub/") {
		s = s[:i] + s[i+1:] // shim 16 asks for FOLDER//grubx64.efi
	}
	if len(s) == 0 || len(s) > 200 || s[0] != '/' {
		return Path{}, false
	}
	part := strings.Split(s[1:], "/")
	switch {
	case len(part) == 2 && part[0] == "ipxe" && ValidToken(part[1]):
		return Path{Artefact: ArtefactScript, Token: part[1]}, true
	case len(part) == 4 && part[0] == "ipxe" && part[1] == "unassigned":
		return parseUnassigned(s, part, Path{Artefact: ArtefactUnassigned})
	case part[0] == "grub":
		return parseGRUB(s, part)
	case len(part) == 3 && part[0] == "boot" && ValidToken(part[1]):
		switch a := Artefact(part[2]); a {
		case ArtefactKernel, ArtefactInitrd, ArtefactRoot, ArtefactJoin, ArtefactSAN:
			return Path{Artefact: a, Token: part[1]}, true
		}
	case len(part) == 2 && part[0] == "loader" && ValidName(part[1]):
		return Path{Artefact: ArtefactLoader, Name: part[1]}, true
	}
	return Path{}, false
}

func parseUnassigned(s string, part []string, p Path) (Path, bool) {
	m, err := ParseMAC(part[2])
	arch, errArch := strconv.ParseUint(part[3], 10, 16)
	p.MAC, p.Arch = m, Arch(arch)
	if err != nil || errArch != nil || m.IsZero() || p.String() != s {
		return Path{}, false
	}
	return p, true
}

func parseGRUB(s string, part []string) (Path, bool) {
	name := part[len(part)-1]
	p := Path{Artefact: ArtefactLoader, Name: name}
	if name == grubConfig {
		p = Path{Artefact: ArtefactGRUB}
	}
	switch {
	case len(part) == 2 && name == grubConfig:
		return Path{Artefact: ArtefactGRUBEntry}, true
	case !ValidName(name):
	case len(part) == 3 && ValidToken(part[1]):
		p.Token = part[1]
		return p, true
	case len(part) == 5 && part[1] == "unassigned":
		return parseUnassigned(s, part, p)
	}
	return Path{}, false
}

// ValidName says whether s can name a loader: a plain file name of letters,
// digits, dot, hyphen and underscore that does not begin with a dot.
func ValidName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '.' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
