package hotspare_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest  = regexp.MustCompile("(?:([a-z0-9/-]+) )?`((?:Test|Fuzz)[A-Za-z0-9]+)`")
	namedStory = regexp.MustCompile(`(?:story|stories) ([a-z-]+(?:, [a-z-]+)*)`)
)

// TestDocumentedProofsExist: docs/safety.md names a test of a folder for every
// promise; a test that was renamed or dropped is noticed here.
func TestDocumentedProofsExist(t *testing.T) {
	b, err := os.ReadFile("docs/safety.md")
	if err != nil {
		t.Fatal(err)
	}
	ids, named := map[string]bool{}, 0
	for _, line := range strings.Split(string(b), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.HasPrefix(cells[1], " ---") || cells[1] == " id " {
			continue
		}
		id, proofs, open := strings.TrimSpace(cells[1]), cells[3], strings.TrimSpace(cells[4])
		ids[id] = true
		if strings.TrimSpace(proofs) == "" && open == "" {
			t.Errorf("%s names neither a proof nor what is missing", id)
		}
		folder := ""
		for _, m := range namedTest.FindAllStringSubmatch(proofs, -1) {
			if m[1] != "" {
				folder = m[1]
			}
			named++
			if !declares(t, folder, m[2]) {
				t.Errorf("%s: there is no %s in %s", id, m[2], folder)
			}
		}
		for _, m := range namedStory.FindAllStringSubmatch(proofs, -1) {
			for _, s := range strings.Split(m[1], ", ") {
				if _, err := os.Stat(filepath.Join("haengine", "testdata", s+".txt")); err != nil {
					t.Errorf("%s: there is no story %s", id, s)
				}
			}
		}
	}
	for _, id := range strings.Fields("S1 S2 S2a S2b S3 S4 S5 S6 S7 S8 S9 S10 S11 S12 S13 S14 S15 S16 S17 L1 L1a L2 L3 E1 E2") {
		if !ids[id] {
			t.Errorf("%s is missing", id)
		}
	}
	if named < 80 {
		t.Errorf("%d tests are named: the page was not understood", named)
	}
}

// declares says whether a test file of a folder declares the function.
func declares(t *testing.T, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil || folder == "" {
		return false
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}
