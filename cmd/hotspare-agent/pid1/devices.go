package pid1

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The files of the initramfs that say which module a device needs, and what must
// be loaded before a module; boot/standby writes both.
const (
	ModulesAlias = "/hotspare/modules.alias"
	ModulesDep   = "/hotspare/modules.dep"
)

// maxRounds bounds how often the devices are looked through: a driver brings up
// a bus with devices that need drivers of their own.
const maxRounds = 4

// alias is one line of modules.alias.
type alias struct{ pattern, module string }

// drivers knows the modules of the initramfs by what asks for them.
type drivers struct {
	aliases []alias
	file    map[string]string   // module -> path
	before  map[string][]string // module -> paths to load first
}

// LoadForDevices loads the modules for the devices that the kernel has found, as
// udev would by their modalias.
func LoadForDevices(buses, aliasList, depList string) (loaded int, failures []error) {
	d, err := readDrivers(aliasList, depList)
	if err != nil {
		return 0, []error{err}
	}
	if len(d.aliases) == 0 {
		return 0, nil
	}
	tried := map[string]bool{}
	for range maxRounds {
		before := loaded
		for _, module := range d.wanted(d.modaliases(buses)) {
			for _, file := range append(d.before[module], d.file[module]) {
				if tried[file] {
					continue
				}
				tried[file] = true
				switch err := loadModule(file); {
				case err == nil:
					loaded++
				case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENODEV):
				default:
					failures = append(failures, fmt.Errorf("module %s: %w", file, err))
				}
			}
		}
		if loaded == before {
			break
		}
	}
	return loaded, failures
}

// Load loads modules by name with what they need, as far as the initramfs has
// them; one that it does not have may be built into the kernel.
func Load(names ...string) error {
	d, err := readDrivers(ModulesAlias, ModulesDep)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if d.file[name] == "" {
			continue
		}
		for _, file := range append(d.before[name], d.file[name]) {
			if err := loadModule(file); err != nil && !errors.Is(err, unix.EEXIST) {
				errs = append(errs, fmt.Errorf("module %s: %w", file, err))
			}
		}
	}
	return errors.Join(errs...)
}

func readDrivers(aliasList, depList string) (drivers, error) {
	aliases, err := os.ReadFile(aliasList)
	if err != nil {
		return drivers{}, err
	}
	deps, err := os.ReadFile(depList)
	if err != nil {
		return drivers{}, err
	}
	return parseDrivers(string(aliases), string(deps)), nil
}

func parseDrivers(aliases, deps string) drivers {
	d := drivers{file: map[string]string{}, before: map[string][]string{}}
	for line := range strings.Lines(deps) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		name := strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
		d.file[name], d.before[name] = file, strings.Fields(rest)
	}
	for line := range strings.Lines(aliases) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == "alias" && d.file[words[2]] != "" {
			d.aliases = append(d.aliases, alias{pattern: words[1], module: words[2]})
		}
	}
	return d
}

// wanted gives the modules whose alias fits one of the names.
func (d drivers) wanted(names map[string]bool) []string {
	var out []string
	seen := map[string]bool{}
	for _, a := range d.aliases {
		if seen[a.module] {
			continue
		}
		prefix, _, _ := strings.Cut(a.pattern, "*")
		prefix, _, _ = strings.Cut(prefix, "[")
		prefix, _, _ = strings.Cut(prefix, "?")
		for name := range names {
			if !strings.HasPrefix(name, prefix) {
				continue
			}
			if ok, err := path.Match(a.pattern, name); err == nil && ok {
				seen[a.module] = true
				out = append(out, a.module)
				break
			}
		}
	}
	return out
}

// modaliases gives the names by which devices ask for drivers: those on the
// buses that an alias of the drivers names ("pci:...", "acpi*:..."). Looking
// through all of /sys takes a slow machine most of a second.
func (d drivers) modaliases(buses string) map[string]bool {
	names := map[string]bool{}
	seen := map[string]bool{}
	for _, a := range d.aliases {
		bus, _, _ := strings.Cut(a.pattern, ":")
		bus = strings.TrimRight(bus, "*")
		if seen[bus] {
			continue
		}
		seen[bus] = true
		devices, err := os.ReadDir(filepath.Join(buses, bus, "devices"))
		if err != nil {
			continue // the kernel has no such bus
		}
		for _, dev := range devices {
			if text, err := os.ReadFile(filepath.Join(buses, bus, "devices", dev.Name(), "modalias")); err == nil {
				names[strings.TrimSpace(string(text))] = true
			}
		}
	}
	delete(names, "")
	return names
}
