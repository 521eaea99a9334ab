package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotspare"
)

// Images name no mirror: what they are built from is derived from the host's
// own configuration, in either format.
func TestSourcesComeFromTheHost(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sources.list", "# deb http://off/debian bookworm main\ndeb [arch=amd64 signed-by=/x] http://old/debian/ bookworm main contrib # note\ndeb-src http://src/debian bookworm main\ndeb http://back/debian bookworm-backports main\n")
	write("sources.list.d/debian.sources", "Types: deb deb-src\n# comment\nURIs: http://m/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN\n .\n x\n\nTypes: deb\nURIs: http://m/debian-security\nSuites: bookworm-security\nComponents: main\n\nEnabled: no\nTypes: deb\nURIs: http://disabled/debian\nSuites: bookworm\nComponents: main\n")
	write("sources.list.d/other.list", "deb https://vendor/apt nodistro main\ndeb https://vendor/apt vendor-bookworm main\n")
	got, err := Sources(dir, "bookworm", "trixie")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"deb http://old/debian trixie main", "deb http://m/debian trixie main", "deb http://m/debian trixie-updates main",
		"deb http://m/debian-security trixie-security main",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if _, err := Sources(dir, "sid", "trixie"); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("a host of another release: %v", err)
	}
	if _, err := Sources("/etc/apt", must(HostSuite("/etc/os-release")), "trixie"); err != nil {
		t.Errorf("this host: %v", err)
	}
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

func FuzzSources(f *testing.F) {
	f.Add("Types: deb\nURIs: http://m\nSuites: bookworm\nComponents: main\n")
	f.Add("deb [a] http://m bookworm main\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range append(parseDeb822(text), parseOneLine(text)...) {
			if strings.ContainsAny(s.uri+s.suite, " \n") {
				t.Errorf("%q gives a source with white space: %+v", text, s)
			}
		}
	})
}
