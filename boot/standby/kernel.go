package standby

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Kernel is a kernel that an environment can be built of.
type Kernel struct {
	Version string
	Origin  string // where it is from, for people: "host", or an image's name
	Image   string // file of the kernel
	Config  string // file of its .config; "" goes by the version
	// ModulesTar, ModulesDir and ModulesDigest are those of Request.
	ModulesTar, ModulesDir, ModulesDigest string
}

// HostOrigin is the Origin of kernels of the appliance's host.
const HostOrigin = "host"

// HostKernels gives the kernels that the host's packages have installed below
// root ("/" but in tests): boot/vmlinuz-VERSION with lib/modules/VERSION, the
// newest first. One without modules is left out.
func HostKernels(ctx context.Context, root string) ([]Kernel, error) {
	files, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	var out []Kernel
	for _, file := range files {
		version := strings.TrimPrefix(filepath.Base(file), "vmlinuz-")
		if !versionGrammar.MatchString(version) {
			continue
		}
		modules := filepath.Join(root, "lib/modules", version)
		if _, err := os.Stat(filepath.Join(modules, "modules.dep")); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, cannot(modules, "the kernel's modules cannot be read", "", err)
		}
		k := Kernel{Version: version, Origin: HostOrigin, Image: file, ModulesDir: modules}
		// Reading all modules takes seconds, and packages change their times.
		if k.ModulesDigest, err = stamp(ctx, modules); err != nil {
			return nil, cannot(modules, "the kernel's modules cannot be read", "", err)
		}
		if config := filepath.Join(root, "boot", "config-"+version); exists(config) {
			k.Config = config
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b Kernel) int { return compareVersions(b.Version, a.Version) })
	return out, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// compareVersions orders versions as people do: numbers by value, "6.1.0-9"
// before "6.1.0-10".
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, ra := leadingNumber(a)
		nb, rb := leadingNumber(b)
		switch {
		case na >= 0 && nb >= 0 && na != nb:
			return na - nb
		case na >= 0 && nb >= 0:
			a, b = ra, rb
		case a[0] != b[0]:
			return int(a[0]) - int(b[0])
		default:
			a, b = a[1:], b[1:]
		}
	}
	return len(a) - len(b)
}

func leadingNumber(s string) (int, string) {
	end := 0
	for end < len(s) && end < 9 && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == 0 {
		return -1, s
	}
	n, _ := strconv.Atoi(s[:end])
	return n, s[end:]
}

// Need is an application's wish for the kernel that its nodes are parked on.
type Need struct {
	App      string
	Kernel   string // version that its image has modules for
	Priority int    // of the application; higher first
}

// ChooseKernel gives the kernel to park a pool on: the one with which the
// application of the highest priority can be started by a switch, and among equal
// ones that of the most applications. Where no need can be met it is the first of
// the available ones. why says it in words.
func ChooseKernel(needs []Need, available []Kernel) (k Kernel, why string, err error) {
	if len(available) == 0 {
		return Kernel{}, "", cannot("kernel", "the host has no kernel with its modules, and no image was named",
			"install a kernel package (linux-image-amd64) on the appliance, or park the pool on an image's kernel", nil)
	}
	type vote struct{ priority, apps int }
	votes, names := map[string]vote{}, map[string][]string{}
	for _, n := range needs {
		v, ok := votes[n.Kernel]
		if !ok || n.Priority > v.priority {
			v.priority = n.Priority
		}
		v.apps++
		votes[n.Kernel] = v
		names[n.Kernel] = append(names[n.Kernel], n.App)
	}
	best := -1
	for i, k := range available {
		v, needed := votes[k.Version]
		if !needed {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		w := votes[available[best].Version]
		if v.priority > w.priority || v.priority == w.priority && v.apps > w.apps {
			best = i
		}
	}
	if best < 0 {
		return available[0], fmt.Sprintf("%s (%s): no application needs a kernel that is at hand", available[0].Version, available[0].Origin), nil
	}
	k = available[best]
	apps := names[k.Version]
	slices.Sort(apps)
	return k, fmt.Sprintf("%s (%s): %s can start there by a switch", k.Version, k.Origin, strings.Join(apps, ", ")), nil
}
