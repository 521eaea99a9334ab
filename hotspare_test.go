package hotspare_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"hotspare"
)

// TestSecretsDoNotPrint sends a secret through every encoder that a log, an API
// answer or an error text could use (SAFETY S17).
func TestSecretsDoNotPrint(t *testing.T) {
	const canary = "c4nary-v4lue"
	v := struct {
		Password hotspare.Secret `json:"password" yaml:"password"`
	}{hotspare.NewSecret(canary)}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%c", "%t"} {
		fmt.Fprintf(&out, verb, v)
		fmt.Fprintf(&out, verb, v.Password)
		fmt.Fprintf(&out, verb, &v)
	}
	fmt.Fprint(&out, fmt.Errorf("refused: %v", v.Password))
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "v", v, "p", v.Password)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "v", v, "p", v.Password)
	j, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(j)
	out.Write(y)
	hexed := fmt.Sprintf("%x", canary)
	if s := out.String(); strings.Contains(s, canary) || strings.Contains(s, hexed) {
		t.Fatalf("the secret printed: %s", s)
	}
	if !strings.Contains(string(j), "[secret]") {
		t.Fatalf("JSON shows no sign that a secret is set: %s", j)
	}
	if v.Password.Reveal() != canary || !v.Password.Equal(hotspare.NewSecret(canary)) || v.Password.Equal(hotspare.NewSecret("x")) {
		t.Fatal("the value is lost or compares wrongly")
	}
}

func TestErrorsTellWhatWhereWhyAndFix(t *testing.T) {
	e := &hotspare.Error{
		Code: hotspare.CodeImageBacking, What: "the qcow2 image names a backing file", Where: "orders.qcow2: header byte 8",
		Why: "it would read files of this host", Fix: "flatten it with qemu-img convert", Err: io.ErrUnexpectedEOF,
	}
	err := fmt.Errorf("import: %w", e)
	want := "import: IMG-003: the qcow2 image names a backing file (orders.qcow2: header byte 8): it would read files of this host: unexpected EOF; fix: flatten it with qemu-img convert"
	if err.Error() != want {
		t.Fatalf("got  %s\nwant %s", err, want)
	}
	card := `IMG-003: the qcow2 image names a backing file
  where orders.qcow2: header byte 8
  why   it would read files of this host
  fix   flatten it with qemu-img convert
  cause unexpected EOF
`
	if e.Card() != card {
		t.Fatalf("got\n%swant\n%s", e.Card(), card)
	}
	if hotspare.CodeOf(err) != hotspare.CodeImageBacking || !errors.Is(err, io.ErrUnexpectedEOF) ||
		!errors.Is(err, &hotspare.Error{Code: hotspare.CodeImageBacking}) || errors.Is(err, &hotspare.Error{Code: hotspare.CodeDiskFull}) {
		t.Fatal("code or cause is lost")
	}
}

// TestCodesAreUniqueAndDocumented holds codes.go against docs/errors.md.
func TestCodesAreUniqueAndDocumented(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
			code := strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`)
			if other := codes[code]; other != "" {
				t.Errorf("%s is both %s and %s", code, other, v.Names[0].Name)
			}
			codes[code] = v.Names[0].Name
		}
		return true
	})
	if len(codes) < 30 {
		t.Fatalf("only %d codes seen", len(codes))
	}
	doc, err := os.ReadFile("docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| ([A-Z]+-\d{3}) \|`).FindAllStringSubmatch(string(doc), -1) {
		documented[m[1]] = true
		if codes[m[1]] == "" {
			t.Errorf("docs/errors.md explains %s, which no longer exists", m[1])
		}
	}
	for code, name := range codes {
		if !documented[code] {
			t.Errorf("%s (%s) is missing in docs/errors.md", code, name)
		}
	}
}
