package build

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"hotspare"
)

// source is one suite of one archive of the host's apt configuration.
type source struct {
	uri, suite string
	components []string
}

// Sources gives one-line apt entries of the wanted Debian suite, made from the
// host's own: an entry for the host's release, its updates or its security
// archive becomes one for the wanted release. Archives of others are left out.
func Sources(aptDir, hostSuite, want string) ([]string, error) {
	all, err := readSources(aptDir)
	if err != nil {
		return nil, err
	}
	var lines []string
	seen := map[string]bool{}
	for _, s := range all {
		rest, ok := suiteRest(s.suite, hostSuite)
		if !ok || !contains(s.components, "main") {
			continue
		}
		line := "deb " + s.uri + " " + want + rest + " main"
		if !seen[line] {
			seen[line] = true
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return nil, &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "the host's apt configuration names no Debian archive", Where: aptDir,
			Why: "images are built from the host's own sources for " + hostSuite, Fix: "add Debian's main archive to the host's apt sources",
		}
	}
	return lines, nil
}

// suiteRest gives what follows the release in a suite's name: "", "-updates"
// or "-security". Backports and the like are not taken.
func suiteRest(suite, host string) (string, bool) {
	for _, release := range []string{host, "stable"} {
		if rest, ok := strings.CutPrefix(suite, release); ok {
			switch rest {
			case "", "-updates", "-security":
				return rest, true
			}
		}
	}
	return "", false
}

func contains(list []string, want string) bool {
	for _, s := range list {
		if s == want {
			return true
		}
	}
	return false
}

func readSources(aptDir string) ([]source, error) {
	files := []string{filepath.Join(aptDir, "sources.list")}
	for _, glob := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(aptDir, "sources.list.d", glob))
		if err != nil {
			return nil, err
		}
		sort.Strings(more)
		files = append(files, more...)
	}
	var all []source
	for _, f := range files {
		b, err := os.ReadFile(f)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		if strings.HasSuffix(f, ".sources") {
			all = append(all, parseDeb822(string(b))...)
		} else {
			all = append(all, parseOneLine(string(b))...)
		}
	}
	return all, nil
}

var optionsOfLine = regexp.MustCompile(`\[[^\]]*\]`)

// parseOneLine reads "deb [options] uri suite component..." lines.
func parseOneLine(text string) []source {
	var all []source
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(optionsOfLine.ReplaceAllString(line, " "))
		if len(f) >= 4 && f[0] == "deb" {
			all = append(all, source{strings.TrimSuffix(f[1], "/"), f[2], f[3:]})
		}
	}
	return all
}

// parseDeb822 reads stanzas of fields; a line that starts with white space goes
// on the field before it.
func parseDeb822(text string) []source {
	var all []source
	for _, stanza := range strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n\n") {
		fields := map[string]string{}
		key := ""
		for _, line := range strings.Split(stanza, "\n") {
			if strings.HasPrefix(line, "#") {
				continue
			}
			if line != "" && (line[0] == ' ' || line[0] == '\t') {
				fields[key] += " " + strings.TrimSpace(line)
				continue
			}
			if k, v, ok := strings.Cut(line, ":"); ok {
				key = strings.ToLower(strings.TrimSpace(k))
				fields[key] = strings.TrimSpace(v)
			}
		}
		if !contains(strings.Fields(fields["types"]), "deb") || strings.EqualFold(fields["enabled"], "no") {
			continue
		}
		for _, uri := range strings.Fields(fields["uris"]) {
			for _, suite := range strings.Fields(fields["suites"]) {
				all = append(all, source{strings.TrimSuffix(uri, "/"), suite, strings.Fields(fields["components"])})
			}
		}
	}
	return all
}

// HostSuite reads the host's release from os-release(5).
func HostSuite(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read the host's release: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "VERSION_CODENAME="); ok {
			return strings.Trim(v, `"`), nil
		}
	}
	return "", &hotspare.Error{Code: hotspare.CodeInvalid, What: "the host's release is unknown", Where: file, Why: "no VERSION_CODENAME", Fix: "build on Debian"}
}

// AptOptions are the host's own settings that decide whether a download works:
// proxies and the check of dates (a snapshot mirror is older than allowed).
func AptOptions() []string {
	out, err := exec.Command("apt-config", "dump").Output()
	if err != nil {
		return nil
	}
	var opts []string
	for _, line := range strings.Split(string(out), "\n") {
		key, _, _ := strings.Cut(line, " ")
		switch {
		case key == "Acquire::Check-Valid-Until", key == "Acquire::Check-Date", key == "Acquire::Retries",
			strings.HasPrefix(key, "Acquire::http::"), strings.HasPrefix(key, "Acquire::https::"):
			if !strings.HasSuffix(line, `"";`) {
				opts = append(opts, strings.TrimSuffix(line, ";"))
			}
		}
	}
	return opts
}
