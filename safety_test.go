package hotspare_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// promises are the ids that docs/safety.md has a row for.
var promises = strings.Fields("S1 S2 S2a S2b S3 S4 S5 S6 S7 S8 S9 S10 S11 S12 S13 S14 S15 S16 S17 L1 L1a L2 L3 E1 E2")

// namedTest is a test in backticks with the word before it, which is a package
// below the module (the root is called hotspare) unless it is missing or ends a
// clause: the package is then that of the last test in the same cell.
var namedTest = regexp.MustCompile("(?:([A-Za-z0-9_./-]+) )?`((?:Test|Fuzz)[A-Z]\\w*)`")

// TestSafetyNamesTestsThatExist holds docs/safety.md against the tests: each one
// that it names in a table exists in the package that stands before it, each one
// that it names in its text exists somewhere, and every promise has a row.
func TestSafetyNamesTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile("docs/safety.md")
	if err != nil {
		t.Fatal(err)
	}
	have := testFunctions(t)
	anywhere := map[string]bool{}
	for _, names := range have {
		for name := range names {
			anywhere[name] = true
		}
	}
	named, rows := 0, []string{}
	for i, line := range strings.Split(string(doc), "\n") {
		cells := strings.Split(line, "|")
		inTable := len(cells) > 2
		if inTable {
			for id := range strings.SplitSeq(cells[1], ",") {
				rows = append(rows, strings.TrimSpace(id))
			}
		}
		for _, cell := range cells {
			where := ""
			for _, m := range namedTest.FindAllStringSubmatch(cell, -1) {
				named++
				if m[1] != "" {
					where = m[1]
				}
				switch {
				case !inTable && !anywhere[m[2]]:
					t.Errorf("docs/safety.md:%d: there is no test %s", i+1, m[2])
				case inTable && where == "":
					t.Errorf("docs/safety.md:%d: no package stands before %s", i+1, m[2])
				case inTable && have[where] == nil:
					t.Errorf("docs/safety.md:%d: there are no tests in %q, which stands before %s", i+1, where, m[2])
				case inTable && !have[where][m[2]]:
					t.Errorf("docs/safety.md:%d: %s has no test %s", i+1, where, m[2])
				}
			}
		}
	}
	if named < 200 {
		t.Errorf("only %d named tests were found: the check proves little", named)
	}
	for _, id := range promises {
		if !slices.Contains(rows, id) {
			t.Errorf("docs/safety.md has no row for %s", id)
		}
	}
}

// testFunctions gives the tests and fuzz targets of every package by its path
// below the module.
func testFunctions(t *testing.T) map[string]map[string]bool {
	t.Helper()
	files := map[string][]string{}
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "out" || d.Name() == "testdata"):
			return filepath.SkipDir
		case strings.HasSuffix(path, "_test.go"):
			pkg := filepath.ToSlash(filepath.Dir(path))
			if pkg == "." {
				pkg = "hotspare"
			}
			files[pkg] = append(files[pkg], path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]map[string]bool{}
	for pkg, names := range files {
		have[pkg] = map[string]bool{}
		for _, name := range names {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && isTest(fn) {
					have[pkg][fn.Name.Name] = true
				}
			}
		}
	}
	return have
}

// isTest says whether go test would run fn: a function of one *testing.T or,
// for a fuzz target, *testing.F.
func isTest(fn *ast.FuncDecl) bool {
	if fn.Recv != nil || len(fn.Type.Params.List) != 1 {
		return false
	}
	want := "T"
	if strings.HasPrefix(fn.Name.Name, "Fuzz") {
		want = "F"
	} else if !strings.HasPrefix(fn.Name.Name, "Test") {
		return false
	}
	star, ok := fn.Type.Params.List[0].Type.(*ast.StarExpr)
	if !ok {
		return false
	}
	sel, ok := star.X.(*ast.SelectorExpr)
	return ok && sel.Sel.Name == want
}
