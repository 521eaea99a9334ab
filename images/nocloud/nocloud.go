// Package nocloud makes the data that cloud-init's NoCloud source reads when a
// system starts: meta-data, user-data, vendor-data and network-config, as files or
// as a small vfat disk with the label CIDATA. It is pure: the same data gives the
// same bytes.
//
// The package leaves to others who gets them. User data often holds secrets: give
// it to the boot that it is for and to nobody by MAC or address.
//
// Formats: cloud-init, "NoCloud", "User data formats" and "Networking config";
// Microsoft, "FAT: General Overview of On-Disk Format", version 1.03.
package nocloud

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"hotspare"
)

// Data is what one node, running one application, is told when it starts.
type Data struct {
	// InstanceID tells cloud-init whether it was here before: another one runs
	// everything again. See ID.
	InstanceID string
	Hostname   string
	Keys       []string // SSH public keys of the default user
	// UserData and VendorData are a #cloud-config, a script (#!), MIME, or another
	// form that cloud-init knows by its first line; empty: none.
	UserData   string
	VendorData string
	// NetworkConfig is of version 1 or 2; empty: none, and cloud-init asks a card
	// of its own choice by DHCP. NoNetwork is for systems whose network is made by
	// somebody else.
	NetworkConfig string
	// Reserved are the MAC addresses of cards that the network configuration must
	// leave alone: the root lies behind them.
	Reserved []string
	// Meta is more of what user data can refer to, as ds.meta_data.hotspare.
	Meta map[string]string
}

// NoNetwork is the network-config with which cloud-init configures no card.
const NoNetwork = "version: 1\nconfig: disabled\n"

// ID gives an instance id. It stays the same as long as the application starts on
// the same node from the same image and is told the same, so that a system that was
// kept is not set up a second time; a change of any of them gives another one.
func ID(application, node string, parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return application + "." + node + "." + hex.EncodeToString(h.Sum(nil)[:6])
}

var (
	instanceGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$`)
	hostGrammar     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	macGrammar      = regexp.MustCompile(`(?i)([0-9a-f]{2}[:-]){5}[0-9a-f]{2}`)
)

// MaxPart bounds one part of the data, in bytes: all of them fit into one message
// to the node, and on the disk.
const MaxPart = 128 << 10

func (d Data) validate() error {
	bad := func(field, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the cloud-init data cannot be made", Where: field, Why: why, Fix: "correct " + field}
	}
	switch {
	case !instanceGrammar.MatchString(d.InstanceID):
		return bad("instance id", fmt.Sprintf("%q is not 1-200 of letters, digits and . _ -", d.InstanceID))
	case d.Hostname != "" && (!hostGrammar.MatchString(d.Hostname) || len(d.Hostname) > 253):
		return bad("hostname", fmt.Sprintf("%q is none", d.Hostname))
	}
	for _, k := range d.Keys {
		if strings.ContainsAny(k, "\n\r\x00") || !strings.Contains(k, " ") {
			return bad("keys", "one is not a line of a type and a key")
		}
	}
	for field, text := range map[string]string{"user data": d.UserData, "vendor data": d.VendorData} {
		if err := checkPart(text); err != nil {
			return bad(field, err.Error())
		}
	}
	if err := d.checkNetwork(); err != nil {
		return bad("network config", err.Error())
	}
	return nil
}

// checkPart sees to it that cloud-init takes a part for what it is meant to be: it
// ignores, with a warning in a log that nobody reads, what it does not know.
func checkPart(text string) error {
	switch {
	case text == "":
		return nil
	case len(text) > MaxPart:
		return fmt.Errorf("%d bytes, %d are allowed", len(text), MaxPart)
	}
	body, template := strings.CutPrefix(text, "## template: jinja\n")
	first, _, _ := strings.Cut(body, "\n")
	first = strings.TrimSuffix(first, "\r")
	switch {
	case first == "#cloud-config" && !template: // one that is none yet
		var any map[string]any
		if err := yaml.Unmarshal([]byte(text), &any); err != nil {
			return fmt.Errorf("it is no YAML: %s", position(err))
		}
		return nil
	case strings.HasPrefix(first, "#!"), strings.HasPrefix(first, "Content-Type: multipart/"), strings.HasPrefix(first, "MIME-Version:"),
		slices.Contains([]string{"#cloud-config", "#cloud-config-archive", "#cloud-boothook", "#include", "#include-once", "#part-handler"}, first):
		return nil
	}
	return fmt.Errorf("it begins neither with #cloud-config nor with #! nor as MIME")
}

// position says where YAML ends, without a word of it: it may be secret.
func position(err error) string {
	var y yaml.Error
	if errors.As(err, &y) && y.GetToken() != nil && y.GetToken().Position != nil {
		at := y.GetToken().Position
		return fmt.Sprintf("line %d, column %d", at.Line, at.Column)
	}
	return "it cannot be read"
}

func (d Data) checkNetwork() error {
	if d.NetworkConfig == "" {
		return nil
	}
	if len(d.NetworkConfig) > MaxPart {
		return fmt.Errorf("%d bytes, %d are allowed", len(d.NetworkConfig), MaxPart)
	}
	var doc struct {
		Version int `yaml:"version"`
		Network struct {
			Version int `yaml:"version"`
		} `yaml:"network"`
	}
	if err := yaml.Unmarshal([]byte(d.NetworkConfig), &doc); err != nil {
		return fmt.Errorf("it is no YAML: %s", position(err))
	}
	if v := max(doc.Version, doc.Network.Version); v != 1 && v != 2 {
		return fmt.Errorf("it is of version %d, possible are 1 and 2", v)
	}
	for _, mac := range macGrammar.FindAllString(d.NetworkConfig, -1) {
		for _, r := range d.Reserved {
			if strings.EqualFold(strings.ReplaceAll(mac, "-", ":"), r) {
				return fmt.Errorf("it configures %s, behind which the node's root lies", r)
			}
		}
	}
	return nil
}

// Seed is the data as cloud-init reads it, by file name.
type Seed map[string][]byte

// Build makes the files. user-data is always there: without it NoCloud does not
// take the source.
func Build(d Data) (Seed, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	meta := yaml.MapSlice{{Key: "instance-id", Value: quoted(d.InstanceID)}}
	if d.Hostname != "" {
		meta = append(meta, yaml.MapItem{Key: "local-hostname", Value: quoted(d.Hostname)})
	}
	if len(d.Keys) > 0 {
		meta = append(meta, yaml.MapItem{Key: "public-keys", Value: quotedAll(d.Keys)})
	}
	if len(d.Meta) > 0 {
		more := yaml.MapSlice{}
		for _, k := range slices.Sorted(maps.Keys(d.Meta)) {
			more = append(more, yaml.MapItem{Key: k, Value: quoted(d.Meta[k])})
		}
		meta = append(meta, yaml.MapItem{Key: "hotspare", Value: more})
	}
	seed := Seed{"user-data": []byte(d.UserData)}
	if d.UserData == "" {
		seed["user-data"] = []byte("#cloud-config\n{}\n")
	}
	if d.VendorData != "" {
		seed["vendor-data"] = []byte(d.VendorData)
	}
	if d.NetworkConfig != "" {
		seed["network-config"] = []byte(d.NetworkConfig)
	}
	b, err := yaml.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("nocloud: meta-data: %w", err)
	}
	seed["meta-data"] = b
	return seed, nil
}

// quoted is a text that stays one in every reader: cloud-init's follows YAML 1.1,
// where 10:20:30:40:50:10 is a number of base 60 and "on" is true.
type quoted string

// MarshalYAML gives a JSON string, which YAML reads as it is.
func (q quoted) MarshalYAML() ([]byte, error) { return json.Marshal(string(q)) }

func quotedAll(all []string) []quoted {
	out := []quoted{}
	for _, s := range all {
		out = append(out, quoted(s))
	}
	return out
}
