package haengine_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare/testenv/sim"
)

var rewrite = flag.Bool("rewrite", false, "write the traces of testdata/*.txt anew; commit only what you understand")

// TestStories runs the scripts of testdata: lines above "----" are told to a
// simulated world (sim.Story names the verbs), lines below are what the engine
// says and does about it.
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("stories: %d, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(t, string(b))
			if *rewrite {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(b) {
				t.Errorf("the story goes otherwise now (see it with -rewrite and git diff): first difference:\n%s", difference(string(b), got))
			}
		})
	}
}

// tell runs a script and gives it back with the trace that came of it.
func tell(t *testing.T, text string) string {
	t.Helper()
	var out strings.Builder
	story := sim.NewStory()
	for _, block := range strings.Split(strings.TrimRight(text, "\n"), "\n\n") {
		var trace []string
		for _, line := range strings.Split(block, "\n") {
			if line == "----" {
				break
			}
			out.WriteString(line + "\n")
			if strings.HasPrefix(line, "#") {
				continue
			}
			more, err := story.Do(line)
			trace = append(trace, more...)
			if err != nil {
				t.Errorf("%s\n%s", err, strings.Join(trace, "\n"))
				break
			}
		}
		if len(trace) > 0 {
			out.WriteString("----\n" + strings.Join(trace, "\n") + "\n")
		}
		out.WriteString("\n")
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return "want " + w[i] + "\ngot  " + g[i]
		}
	}
	return "one is longer"
}
