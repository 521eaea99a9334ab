package standby

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// index is what depmod's files say about a kernel's modules. Modules go by
// their names with underscores.
type index struct {
	file    map[string]string   // name -> path in the tree
	deps    map[string][]string // name -> names
	pre     map[string][]string // soft dependencies to load before
	builtin map[string]bool
}

// moduleName gives the name of a module's file: base name without .ko and
// compression, dashes as underscores, as the kernel itself names it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// parseIndex reads modules.dep, modules.softdep and modules.builtin (see
// depmod(8), modules.dep(5)).
func parseIndex(m metadata) (index, error) {
	ix := index{file: map[string]string{}, deps: map[string][]string{}, pre: map[string][]string{}, builtin: map[string]bool{}}
	for line := range strings.Lines(string(m.dep)) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			if file == "" {
				continue
			}
			return ix, fmt.Errorf("modules.dep: %q is not a dependency", file)
		}
		name := moduleName(file)
		ix.file[name] = path.Clean(file)
		for _, d := range strings.Fields(rest) {
			ix.deps[name] = append(ix.deps[name], moduleName(d))
		}
	}
	for line := range strings.Lines(string(m.builtin)) {
		if line = strings.TrimSpace(line); line != "" {
			ix.builtin[moduleName(line)] = true
		}
	}
	for line := range strings.Lines(string(m.softdep)) {
		words := strings.Fields(line)
		if len(words) < 3 || words[0] != "softdep" {
			continue
		}
		name, before := moduleName(words[1]), false
		for _, w := range words[2:] {
			switch {
			case strings.HasSuffix(w, ":"):
				before = w == "pre:"
			case before:
				ix.pre[name] = append(ix.pre[name], moduleName(w))
			}
		}
	}
	return ix, nil
}

// plan is the choice for one archive.
type plan struct {
	modules []string            // names, every one after all that it needs
	load    []string            // names, in order
	before  map[string][]string // name -> what must be loaded first, in order
	absent  []string            // optional and not there
}

// choose picks the wanted modules and everything they need.
func (ix index) choose(all []want) (plan, error) {
	p := plan{before: map[string][]string{}}
	in, loaded := map[string]bool{}, map[string]bool{}
	for _, w := range all {
		name := moduleName(w.name)
		if ix.file[name] == "" {
			switch {
			case ix.builtin[name]:
			case w.required:
				return p, fmt.Errorf("module %s is neither in modules.dep nor in modules.builtin", w.name)
			case !slices.Contains(p.absent, name):
				p.absent = append(p.absent, name)
			}
			continue
		}
		chain, err := ix.chain(name)
		if err != nil {
			return p, err
		}
		for _, m := range chain {
			if !in[m] {
				in[m] = true
				p.modules = append(p.modules, m)
			}
			if w.load && !loaded[m] {
				loaded[m] = true
				p.load = append(p.load, m)
			}
		}
	}
	for _, m := range p.modules {
		chain, err := ix.chain(m)
		if err != nil {
			return p, err
		}
		p.before[m] = chain[:len(chain)-1]
	}
	slices.Sort(p.absent)
	return p, nil
}

// chain gives what must be loaded for a module, itself last. A soft dependency
// that the kernel does not have is left out.
func (ix index) chain(name string) ([]string, error) {
	var order []string
	state := map[string]int{} // 1: under way, 2: done
	var visit func(m, by string) error
	visit = func(m, by string) error {
		switch {
		case state[m] == 2 || ix.file[m] == "" && ix.builtin[m]:
			return nil
		case state[m] == 1:
			return fmt.Errorf("modules.dep: %s and %s need each other", m, by)
		case ix.file[m] == "":
			return fmt.Errorf("module %s, which %s needs, is missing", m, by)
		}
		state[m] = 1
		for _, s := range ix.pre[m] {
			if ix.file[s] != "" && state[s] == 0 {
				if err := visit(s, m); err != nil {
					return err
				}
			}
		}
		for _, d := range ix.deps[m] {
			if err := visit(d, m); err != nil {
				return err
			}
		}
		state[m] = 2
		order = append(order, m)
		return nil
	}
	return order, visit(name, "")
}

// installed gives the absolute path of a module in the archive.
func (ix index) installed(version, name string) string {
	file := ix.file[name]
	if i := strings.LastIndex(file, ".ko"); i >= 0 {
		file = file[:i+3]
	}
	return "/lib/modules/" + version + "/" + file
}

// lists gives the contents of modules.load, modules.dep and modules.alias.
func (ix index) lists(version string, p plan, alias []byte) (load, dep, aliases []byte) {
	for _, m := range p.load {
		load = fmt.Appendf(load, "%s\n", ix.installed(version, m))
	}
	in := map[string]bool{}
	for _, m := range p.modules {
		in[m] = true
		dep = fmt.Appendf(dep, "%s:", ix.installed(version, m))
		for _, d := range p.before[m] {
			dep = fmt.Appendf(dep, " %s", ix.installed(version, d))
		}
		dep = append(dep, '\n')
	}
	for line := range strings.Lines(string(alias)) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == "alias" && in[moduleName(words[2])] {
			aliases = fmt.Appendf(aliases, "alias %s %s\n", words[1], moduleName(words[2]))
		}
	}
	return load, dep, aliases
}
