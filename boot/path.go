package boot

import (
	"strconv"
	"strings"
)

// Artefact names what a boot path leads to.
type Artefact string

// The artefacts that are served over HTTP.
const (
	ArtefactNone       Artefact = ""
	ArtefactScript     Artefact = "script"     // /ipxe/TOKEN
	ArtefactUnassigned Artefact = "unassigned" // /ipxe/unassigned/MAC/ARCH
	ArtefactKernel     Artefact = "kernel"     // /boot/TOKEN/kernel
	ArtefactInitrd     Artefact = "initrd"     // /boot/TOKEN/initrd
	ArtefactJoin       Artefact = "join"       // /boot/TOKEN/join, once
	ArtefactLoader     Artefact = "loader"     // /loader/NAME
)

// Path is a parsed boot path. Token, MAC and Arch, or Name is set, as Artefact
// says.
type Path struct {
	Artefact Artefact
	Token    string
	MAC      MAC
	Arch     Arch
	Name     string
}

// String gives the path that ParsePath understands.
func (p Path) String() string {
	switch p.Artefact {
	case ArtefactScript:
		return "/ipxe/" + p.Token
	case ArtefactUnassigned:
		return "/ipxe/unassigned/" + p.MAC.Hyphens() + "/" + strconv.Itoa(int(p.Arch))
	case ArtefactKernel, ArtefactInitrd, ArtefactJoin:
		return "/boot/" + p.Token + "/" + string(p.Artefact)
	case ArtefactLoader:
		return "/loader/" + p.Name
	}
	return ""
}

// Redacted is String with the token shortened, for logs and traces.
func (p Path) Redacted() string {
	p.Token = ShortToken(p.Token)
	return p.String()
}

// ParsePath takes the decoded path of a URL. It knows exactly the forms that
// Path.String writes: anything else, also one more slash or a dot segment, is
// not a boot path. Firmware that doubles the leading slash is forgiven, for a
// redirect would break it (UEFI HTTP boot does not follow redirects).
func ParsePath(s string) (Path, bool) {
	if strings.HasPrefix(s, "//") {
		s = s[1:]
	}
	if len(s) == 0 || len(s) > 200 || s[0] != '/' {
		return Path{}, false
	}
	part := strings.Split(s[1:], "/")
	switch {
	case len(part) == 2 && part[0] == "ipxe" && ValidToken(part[1]):
		return Path{Artefact: ArtefactScript, Token: part[1]}, true
	case len(part) == 4 && part[0] == "ipxe" && part[1] == "unassigned":
		m, err := ParseMAC(part[2])
		arch, errArch := strconv.ParseUint(part[3], 10, 16)
		p := Path{Artefact: ArtefactUnassigned, MAC: m, Arch: Arch(arch)}
		if err != nil || errArch != nil || p.String() != s {
			return Path{}, false
		}
		return p, true
	case len(part) == 3 && part[0] == "boot" && ValidToken(part[1]):
		switch a := Artefact(part[2]); a {
		case ArtefactKernel, ArtefactInitrd, ArtefactJoin:
			return Path{Artefact: a, Token: part[1]}, true
		}
	case len(part) == 2 && part[0] == "loader" && ValidName(part[1]):
		return Path{Artefact: ArtefactLoader, Name: part[1]}, true
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
