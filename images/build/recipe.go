// Package build makes images of Debian systems from a short recipe: mmdebstrap
// installs the packages, the recipe's files, users, units and script are put in,
// what a golden image must not hold is taken out, and mke2fs makes one ext4 file
// system of it. The same recipe and the same packages give the same bytes, as long
// as no package draws secrets of its own while it is installed.
//
// The packages come from the host's own apt sources (deb822 and one-line format,
// sources.list(5)); no mirror is named here. A recipe runs code as root: only who
// is root already may build.
//
// The package leaves to others: the repository (package images).
package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"hotspare"
)

// formatVersion is the version of recipes; builderVersion is part of every
// recipe's digest: raise it when the builder makes other images of the same recipe.
const (
	formatVersion  = 1
	builderVersion = 1
)

// Recipe says what is in an image.
type Recipe struct {
	Version  int      `yaml:"version"` // of this format: 1
	Name     string   `yaml:"name"`
	Suite    string   `yaml:"suite"` // Debian release, e.g. bookworm
	Packages []string `yaml:"packages"`
	SizeMiB  int64    `yaml:"sizeMiB"` // of the file system, sparse; default: as needed, and room
	// Hostname is the image's name of itself. Empty: none, the node takes what
	// DHCP gives it.
	Hostname string `yaml:"hostname"`
	Files    []File `yaml:"files"`
	Users    []User `yaml:"users"`
	Units    Units  `yaml:"units"`
	// Before is run by sh inside the image before the packages are installed,
	// when only the essential ones are there; Setup at the end.
	Before  string `yaml:"before"`
	Setup   string `yaml:"setup"`
	Cmdline string `yaml:"cmdline"` // kernel arguments of the image

	digest string
}

// File is a file, directory or link of the image. Of Content, Link and Directory
// one is given; an empty file has none.
type File struct {
	Path      string `yaml:"path"`
	Content   string `yaml:"content"`
	Link      string `yaml:"link"`
	Directory bool   `yaml:"directory"`
	Mode      string `yaml:"mode"`  // octal; default 0644, of directories 0755
	Owner     string `yaml:"owner"` // user[:group] as the image knows them; default root:root
}

// User is a system account of the image.
type User struct {
	Name   string   `yaml:"name"`
	UID    int      `yaml:"uid"`
	Groups []string `yaml:"groups"`
	Home   string   `yaml:"home"`
	Shell  string   `yaml:"shell"`
	Keys   []string `yaml:"sshKeys"`
}

// Units says what systemd starts.
type Units struct {
	Enable  []string `yaml:"enable"`
	Disable []string `yaml:"disable"`
	Mask    []string `yaml:"mask"`
}

var (
	nameGrammar    = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	suiteGrammar   = regexp.MustCompile(`^[a-z][a-z0-9-]{1,30}$`)
	packageGrammar = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?$`)
	hostGrammar    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	userGrammar    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)
	unitGrammar    = regexp.MustCompile(`^[A-Za-z0-9@_.:\\-]+\.(service|socket|timer|target|path|mount|automount|swap|slice)$`)
	ownerGrammar   = regexp.MustCompile(`^[A-Za-z0-9_-]+(:[A-Za-z0-9_-]+)?$`)
	pathGrammar    = regexp.MustCompile(`^/[ -~]+$`)
)

const maxRecipe = 512 << 10

// Parse reads a recipe; unknown fields are errors.
func Parse(src []byte) (Recipe, error) {
	var r Recipe
	if len(src) > maxRecipe {
		return r, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the recipe is too long", Why: fmt.Sprintf("%d bytes, %d are allowed", len(src), maxRecipe), Fix: "make a package of its files"}
	}
	if err := yaml.UnmarshalWithOptions(src, &r, yaml.Strict()); err != nil {
		return r, &hotspare.Error{Code: hotspare.CodeYAML, What: "the recipe does not parse", Where: "recipe", Err: err, Fix: "correct the YAML; docs/images.md shows all fields"}
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "recipe %d\n%s", builderVersion, src))
	r.digest = hex.EncodeToString(sum[:])
	return r, r.validate()
}

// Digest tells one recipe from another.
func (r Recipe) Digest() string { return r.digest }

func (r Recipe) validate() error {
	bad := func(field, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the recipe cannot be built", Where: field, Why: why, Fix: "correct " + field}
	}
	switch {
	case r.Version != formatVersion:
		return bad("version", fmt.Sprintf("recipes of version %d are read, this is %d", formatVersion, r.Version))
	case !nameGrammar.MatchString(r.Name):
		return bad("name", fmt.Sprintf("%q is not 1-63 of a-z, 0-9, dot, dash, underscore", r.Name))
	case !suiteGrammar.MatchString(r.Suite):
		return bad("suite", fmt.Sprintf("%q is no release", r.Suite))
	case len(r.Packages) == 0:
		return bad("packages", "there are none; a system needs a kernel and an init at least")
	case r.SizeMiB < 0 || r.SizeMiB > 1<<20:
		return bad("sizeMiB", fmt.Sprintf("%d is not between 0 and 1 TiB", r.SizeMiB))
	case r.Hostname != "" && !hostGrammar.MatchString(r.Hostname):
		return bad("hostname", fmt.Sprintf("%q is none", r.Hostname))
	}
	for _, p := range r.Packages {
		if !packageGrammar.MatchString(p) {
			return bad("packages", fmt.Sprintf("%q is no package's name", p))
		}
	}
	for _, list := range [][]string{r.Units.Enable, r.Units.Disable, r.Units.Mask} {
		for _, u := range list {
			if !unitGrammar.MatchString(u) {
				return bad("units", fmt.Sprintf("%q is no unit's name", u))
			}
		}
	}
	for _, u := range r.Users {
		if err := u.validate(bad); err != nil {
			return err
		}
	}
	for _, f := range r.Files {
		if err := f.validate(bad); err != nil {
			return err
		}
	}
	return nil
}

func (u User) validate(bad func(field, why string) error) error {
	switch {
	case !userGrammar.MatchString(u.Name):
		return bad("users", fmt.Sprintf("%q is no user's name", u.Name))
	case u.UID < 0 || u.UID > 65533:
		return bad("users", fmt.Sprintf("%s: the number %d", u.Name, u.UID))
	case u.Home != "" && !cleanPath(u.Home), u.Shell != "" && !cleanPath(u.Shell):
		return bad("users", u.Name+": home and shell are absolute paths")
	}
	for _, g := range u.Groups {
		if !userGrammar.MatchString(g) {
			return bad("users", fmt.Sprintf("%q is no group's name", g))
		}
	}
	for _, k := range u.Keys {
		if strings.ContainsAny(k, "\n\r\x00") {
			return bad("users", u.Name+": a key holds a line break")
		}
	}
	return nil
}

func cleanPath(p string) bool { return pathGrammar.MatchString(p) && path.Clean(p) == p }

func (f File) validate(bad func(field, why string) error) error {
	kinds := 0
	for _, given := range []bool{f.Content != "", f.Link != "", f.Directory} {
		if given {
			kinds++
		}
	}
	switch {
	case !cleanPath(f.Path):
		return bad("files", fmt.Sprintf("%q is no clean absolute path", f.Path))
	case kinds > 1:
		return bad("files", f.Path+": of content, link and directory one is given")
	case strings.ContainsRune(f.Link, 0):
		return bad("files", f.Path+": an impossible link")
	case f.Owner != "" && !ownerGrammar.MatchString(f.Owner):
		return bad("files", fmt.Sprintf("%s: the owner %q", f.Path, f.Owner))
	}
	if _, err := f.mode(); err != nil {
		return bad("files", fmt.Sprintf("%s: the mode %q is not octal", f.Path, f.Mode))
	}
	return nil
}

func (f File) mode() (uint32, error) {
	switch {
	case f.Mode == "" && f.Directory:
		return 0o755, nil
	case f.Mode == "":
		return 0o644, nil
	}
	n, err := strconv.ParseUint(f.Mode, 8, 12)
	return uint32(n), err
}
