package group

import (
	"fmt"
	"strings"

	"hotspare"
	"hotspare/haengine"
)

// Order sorts resources so that each comes after all that it names in After;
// the listed order breaks ties.
func Order(resources []haengine.Resource) ([]haengine.Resource, error) {
	known := map[string]bool{}
	for _, r := range resources {
		if r.Name == "" || known[r.Name] {
			return nil, invalid("resource %q is listed twice or has no name", r.Name)
		}
		known[r.Name] = true
	}
	for _, r := range resources {
		for _, after := range r.After {
			if !known[after] {
				return nil, invalid("resource %q comes after %q, which does not exist", r.Name, after)
			}
		}
	}
	out := make([]haengine.Resource, 0, len(resources))
	placed := map[string]bool{}
	for len(out) < len(resources) {
		next := -1
		for i, r := range resources {
			if !placed[r.Name] && all(r.After, placed) {
				next = i
				break
			}
		}
		if next < 0 {
			return nil, invalid("the resources %s wait for each other", strings.Join(unplaced(resources, placed), ", "))
		}
		out = append(out, resources[next])
		placed[resources[next].Name] = true
	}
	return out, nil
}

func all(names []string, placed map[string]bool) bool {
	for _, n := range names {
		if !placed[n] {
			return false
		}
	}
	return true
}

func unplaced(resources []haengine.Resource, placed map[string]bool) []string {
	var out []string
	for _, r := range resources {
		if !placed[r.Name] {
			out = append(out, r.Name)
		}
	}
	return out
}

func invalid(format string, args ...any) error {
	return &hotspare.Error{
		Code: hotspare.CodeInvalid, What: "the service group cannot be ordered", Why: fmt.Sprintf(format, args...),
		Fix: "correct the application's resources",
	}
}
