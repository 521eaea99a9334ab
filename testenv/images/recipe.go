// Package images builds the two demo images of the lab from recipes that stand
// beside it: orders (Debian bookworm with PostgreSQL 15) and web (Debian trixie
// with nginx). Each is a whole-disk ext4 file system in a raw file, as an
// operator would bring it; nothing of hotspare is inside.
//
// The packages come from the host's own apt sources (deb822 and one-line
// format, see sources.list(5)); no mirror is named here. It leaves importing to
// package hotspare/images, and booting to the lab.
package images

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"hotspare"
)

//go:embed all:recipes
var recipes embed.FS

// builderVersion is part of every digest: raise it when the builder itself
// makes other images from the same recipe.
const builderVersion = 1

// Recipe is what recipes/NAME/recipe.yaml says.
type Recipe struct {
	Version  int      `yaml:"version"` // of this format: 1
	Name     string   `yaml:"name"`
	Suite    string   `yaml:"suite"` // Debian release, e.g. bookworm
	Packages []string `yaml:"packages"`
	SizeMiB  int64    `yaml:"sizeMiB"` // of the file system, sparse
}

// Names lists the recipes.
func Names() []string {
	entries, err := fs.ReadDir(recipes, "recipes")
	if err != nil {
		return nil // cannot happen: embedded
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != "common" {
			names = append(names, e.Name())
		}
	}
	return names
}

// Load reads one recipe; unknown names and unknown fields are errors.
func Load(name string) (Recipe, error) {
	if !slices.Contains(Names(), name) {
		return Recipe{}, &hotspare.Error{
			Code: hotspare.CodeNotFound, What: "no recipe of that name", Where: name,
			Fix: "take one of " + strings.Join(Names(), ", "),
		}
	}
	raw, err := recipes.ReadFile(path.Join("recipes", name, "recipe.yaml"))
	if err != nil {
		return Recipe{}, fmt.Errorf("read recipe %s: %w", name, err)
	}
	return parseRecipe(name, raw)
}

func parseRecipe(name string, raw []byte) (Recipe, error) {
	var r Recipe
	if err := yaml.UnmarshalWithOptions(raw, &r, yaml.Strict()); err != nil {
		return Recipe{}, &hotspare.Error{Code: hotspare.CodeYAML, What: "the recipe does not parse", Where: name, Err: err, Fix: "mend recipe.yaml"}
	}
	switch {
	case r.Version != 1:
		return Recipe{}, invalid(name, "version", "only 1 is known")
	case r.Name != name:
		return Recipe{}, invalid(name, "name", "it must be the folder's")
	case r.Suite == "" || len(r.Packages) == 0 || r.SizeMiB < 64:
		return Recipe{}, invalid(name, "suite, packages, sizeMiB", "all must be given, sizeMiB at least 64")
	}
	return r, nil
}

func invalid(recipe, field, why string) error {
	return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the recipe has a field with a value that is not allowed", Where: recipe + ": " + field, Why: why, Fix: "mend recipe.yaml"}
}

// Digest names what a recipe makes: its own files, the common ones and the
// builder's version. Packages are not in it: an image is built anew when its
// recipe changes, not when Debian does.
func Digest(name string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "builder %d\n", builderVersion)
	for _, dir := range []string{"common", name} {
		err := fs.WalkDir(recipes, path.Join("recipes", dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := recipes.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(h, "%s %d\n", p, len(b))
			h.Write(b)
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("digest of recipe %s: %w", name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// unpack writes the recipe and the common part below dir, as the hooks of
// mmdebstrap need them. Scripts are told by their first line.
func unpack(name, dir string) error {
	for _, part := range []string{"common", name} {
		root := path.Join("recipes", part)
		err := fs.WalkDir(recipes, root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			to := filepath.Join(dir, strings.TrimPrefix(p, "recipes/"))
			if d.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			b, err := recipes.ReadFile(p)
			if err != nil {
				return err
			}
			mode := fs.FileMode(0o644)
			if bytes.HasPrefix(b, []byte("#!")) {
				mode = 0o755
			}
			return os.WriteFile(to, b, mode)
		})
		if err != nil {
			return fmt.Errorf("unpack recipe %s: %w", name, err)
		}
	}
	return nil
}
