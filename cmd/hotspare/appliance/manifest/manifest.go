// Package manifest reads the YAML documents that operators write: the resources
// of `hotspare apply -f` and the appliance's own configuration. It is strict:
// an unknown field, a duplicate key or a value of the wrong type is refused with
// file, line, column and, where one is near, the field that was meant.
//
// A resource document names its kind and holds the fields of that kind beside
// it:
//
//	kind: node
//	name: n1
//	macs: ["52:54:00:77:00:01"]
//
// Several documents stand in one file, separated by "---" (YAML 1.2, section
// 9.2). Whether the values make sense together is not decided here.
package manifest

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"hotspare"
	"hotspare/haengine"
)

// Document is one resource. Exactly one of Pool, Node and Application is set.
type Document struct {
	Kind        string // pool, node, application
	Source      string // "nodes.yaml:12", where the document begins
	Pool        *haengine.Pool
	Node        *haengine.Node
	BMCPassword hotspare.Secret // of Node, if the document holds one
	Application *haengine.Application
	CloudInit   CloudInit // of Node or Application: the texts that the document holds
}

// CloudInit are the texts of a cloudInit block. They may hold secrets, so the value
// types do not carry them.
type CloudInit struct{ UserData, VendorData, NetworkConfig hotspare.Secret }

// Texts gives the fields in the order of haengine.CloudInit.Texts.
func (c *CloudInit) Texts() []*hotspare.Secret {
	return []*hotspare.Secret{&c.UserData, &c.VendorData, &c.NetworkConfig}
}

// Block gives the cloudInit block of the resource, or nil.
func (d Document) Block() *haengine.CloudInit {
	switch {
	case d.Node != nil:
		return d.Node.CloudInit
	case d.Application != nil:
		return d.Application.CloudInit
	}
	return nil
}

// takeTexts moves the texts out of the value type; references stay.
func (d *Document) takeTexts() {
	block := d.Block()
	if block == nil {
		return
	}
	secrets := d.CloudInit.Texts()
	for i, text := range block.Texts() {
		if *text != "" && !strings.HasPrefix(*text, haengine.SealedPrefix) {
			*secrets[i], *text = hotspare.NewSecret(*text), ""
		}
	}
}

// Name gives the resource's name.
func (d Document) Name() string {
	switch {
	case d.Pool != nil:
		return d.Pool.Name
	case d.Node != nil:
		return d.Node.Name
	case d.Application != nil:
		return d.Application.Name
	}
	return ""
}

type header struct {
	Kind string `yaml:"kind"`
}

type poolDocument struct {
	Kind          string `yaml:"kind"`
	haengine.Pool `yaml:",inline"`
}

type applicationDocument struct {
	Kind                 string `yaml:"kind"`
	haengine.Application `yaml:",inline"`
}

type nodeDocument struct {
	Kind          string `yaml:"kind"`
	haengine.Node `yaml:",inline"`
}

// bmcSecret is the one field of a node document that the value type must not
// carry.
type bmcSecret struct {
	BMC struct {
		Password hotspare.Secret `yaml:"password"`
	} `yaml:"bmc"`
}

// Parse reads all documents of src; name stands in error texts. It returns the
// first error as a *hotspare.Error with code CFG-001 or CFG-002.
func Parse(name string, src []byte) (docs []Document, err error) {
	defer indigestible(name, &err)
	file, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, fault(name, 1, err, nil)
	}
	for _, node := range file.Docs {
		if node.Body == nil || node.Body.Type() == ast.NullType {
			continue
		}
		d, err := document(name, node)
		if err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	if len(docs) == 0 {
		return nil, &hotspare.Error{
			Code: hotspare.CodeYAML, What: "the file holds no resource", Where: name,
			Fix: "write at least one document with kind, name and the fields of that kind",
		}
	}
	return docs, nil
}

// indigestible turns a panic of the YAML library into an error. It panics on
// some tagged collections, e.g. `monitors: !x 00` (found by FuzzParse).
func indigestible(name string, err *error) {
	if p := recover(); p != nil {
		*err = &hotspare.Error{
			Code: hotspare.CodeYAML, What: "the document cannot be read", Where: name,
			Why: fmt.Sprint(p), Fix: "remove tags such as !x and write plain values",
		}
	}
}

func document(name string, node *ast.DocumentNode) (Document, error) {
	line := firstLine(node)
	d := Document{Source: fmt.Sprintf("%s:%d", name, line)}
	var h header
	if err := yaml.NodeToValue(node.Body, &h); err != nil {
		return d, fault(name, line, err, nil)
	}
	d.Kind = strings.ToLower(h.Kind)
	var into any
	switch d.Kind {
	case "pool":
		into = &poolDocument{}
	case "node":
		into = &nodeDocument{}
	case "application":
		into = &applicationDocument{}
	default:
		return d, unknownKind(d.Source, h.Kind)
	}
	if d.Kind == "node" {
		var secret bmcSecret
		if err := yaml.NodeToValue(node.Body, &secret); err != nil {
			return d, fault(name, line, err, nil)
		}
		d.BMCPassword = secret.BMC.Password
		without(node.Body, "bmc", "password")
	}
	if err := yaml.NodeToValue(node.Body, into, yaml.Strict()); err != nil {
		return d, fault(name, line, err, into)
	}
	switch v := into.(type) {
	case *poolDocument:
		d.Pool = &v.Pool
	case *nodeDocument:
		d.Node = &v.Node
	case *applicationDocument:
		d.Application = &v.Application
	}
	d.takeTexts()
	if d.Name() == "" {
		return d, &hotspare.Error{
			Code: hotspare.CodeInvalid, What: "the " + d.Kind + " has no name", Where: d.Source,
			Fix: "add a line `name: …`",
		}
	}
	return d, nil
}

// without removes the key at path from a mapping.
func without(node ast.Node, path ...string) {
	m, ok := node.(*ast.MappingNode)
	if !ok {
		return
	}
	for i, v := range m.Values {
		if v.Key.GetToken().Value != path[0] {
			continue
		}
		if len(path) == 1 {
			m.Values = append(m.Values[:i], m.Values[i+1:]...)
		} else {
			without(v.Value, path[1:]...)
		}
		return
	}
}

func unknownKind(where, kind string) error {
	e := &hotspare.Error{
		Code: hotspare.CodeYAML, What: fmt.Sprintf("unknown kind %q", kind), Where: where,
		Fix: "use one of pool, node, application",
	}
	if kind == "" {
		e.What = "the document has no kind"
	} else if s := nearest(kind, []string{"pool", "node", "application"}); s != "" {
		e.Fix = fmt.Sprintf("did you mean %q?", s)
	}
	return e
}

// Decode reads a single strict document into v, which is a pointer to a struct
// with yaml tags.
func Decode(name string, src []byte, v any) (err error) {
	defer indigestible(name, &err)
	if err := yaml.UnmarshalWithOptions(src, v, yaml.Strict()); err != nil {
		return fault(name, 1, err, v)
	}
	return nil
}

func firstLine(node *ast.DocumentNode) int {
	line := 1
	if t := node.Body.GetToken(); t != nil {
		line = t.Position.Line
	}
	// A mapping's own token is its first colon or key; both stand on the line
	// of the first key.
	return line
}

// fault turns an error of the YAML library into one that names the place and,
// for an unknown field, the nearest known one.
func fault(name string, line int, err error, into any) error {
	e := &hotspare.Error{Code: hotspare.CodeYAML, Where: fmt.Sprintf("%s:%d", name, line)}
	var ye yaml.Error
	if !errors.As(err, &ye) {
		e.Code, e.What = hotspare.CodeInvalid, "a value cannot be read"
		e.Why = err.Error() // about the operator's own text: nothing private
		e.Fix = "correct the value in this document"
		return e
	}
	if t := ye.GetToken(); t != nil && t.Position != nil {
		e.Where = fmt.Sprintf("%s:%d:%d", name, t.Position.Line, t.Position.Column)
	}
	e.What = ye.GetMessage()
	e.Fix = "correct this line"
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) && into != nil {
		field := unknown.Token.Value
		e.What = fmt.Sprintf("unknown field %q", field)
		known := fields(reflect.TypeOf(into), map[reflect.Type]bool{})
		if s := nearest(field, known); s != "" {
			e.Fix = fmt.Sprintf("did you mean %q?", s)
		} else {
			e.Fix = "remove the line; the fields are listed in docs/resources.md"
		}
	}
	return e
}

// fields lists the yaml names of all fields in t and the types below it.
func fields(t reflect.Type, seen map[reflect.Type]bool) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || seen[t] {
		return nil
	}
	seen[t] = true
	var names []string
	for i := range t.NumField() {
		f := t.Field(i)
		tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if tag != "" {
			names = append(names, tag)
		}
		names = append(names, fields(f.Type, seen)...)
	}
	return names
}

// nearest gives the known word with the smallest edit distance to word, if that
// is at most a third of the word's length (and at least one).
func nearest(word string, known []string) string {
	best, bestAt := "", max(1, len(word)/3)+1
	for _, k := range known {
		if d := distance(strings.ToLower(word), strings.ToLower(k)); d < bestAt {
			best, bestAt = k, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = min(row[j]+1, row[j-1]+1, cost)
		}
	}
	return row[len(b)]
}
