// Package nocloud makes the data that cloud-init's NoCloud source reads at a
// node's first boot: meta-data, user-data, vendor-data and network-config, as the
// files of an HTTP folder or as a small vfat disk with the label CIDATA. It is
// pure: the same data gives the same bytes.
//
// The package leaves to others who gets them. User data often holds secrets: serve
// it to the boot that it is for (by its token) and to nobody by MAC or address.
//
// Formats: cloud-init, "NoCloud" and "Networking config Version 2"; Microsoft,
// "FAT: General Overview of On-Disk Format", version 1.03.
package nocloud

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"

	"hotspare"
)

// Data is what one node, running one application, is told at its first boot.
type Data struct {
	// InstanceID tells cloud-init whether it was here before: another one runs
	// everything again. Take the application and the epoch of its grant.
	InstanceID string
	Hostname   string
	Keys       []string // SSH public keys of the default user
	// UserData is a #cloud-config, a script (#!), or MIME; empty: none.
	UserData   string
	VendorData string
	// Network is the network-config; none: cloud-init asks every card by DHCP.
	Network []Interface
}

// Interface is one network card.
type Interface struct {
	Name       string // it gets this name, e.g. eth0; "" keeps the kernel's
	MAC        string
	DHCP       bool
	Addresses  []netip.Prefix
	Gateway    netip.Addr
	DNS        []netip.Addr
	SearchDNS  []string
	MTU        int  // 0: the card's own
	RootDevice bool // the root lies behind it: it is never taken down
}

var (
	instanceGrammar  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	hostGrammar      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	macGrammar       = regexp.MustCompile(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`)
	interfaceGrammar = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,14}$`)
)

// maxPart bounds one part of the data, in bytes.
const maxPart = 1 << 20

func (d Data) validate() error {
	bad := func(field, why string) error {
		return &hotspare.Error{Code: hotspare.CodeInvalid, What: "the cloud-init data cannot be made", Where: field, Why: why, Fix: "correct " + field}
	}
	switch {
	case !instanceGrammar.MatchString(d.InstanceID):
		return bad("instance id", fmt.Sprintf("%q is not 1-128 of letters, digits and . _ -", d.InstanceID))
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
	seen := map[string]bool{}
	for _, n := range d.Network {
		if seen[n.MAC] {
			return bad("network", n.MAC+" stands twice")
		}
		seen[n.MAC] = true
		if err := n.validate(); err != nil {
			return bad("network", err.Error())
		}
	}
	return nil
}

// checkPart sees to it that cloud-init takes a part for what it is meant to be: it
// ignores, with a warning in a log that nobody reads, what it does not know.
func checkPart(text string) error {
	switch {
	case text == "":
		return nil
	case len(text) > maxPart:
		return fmt.Errorf("%d bytes, %d are allowed", len(text), maxPart)
	case strings.HasPrefix(text, "#cloud-config\n"), strings.HasPrefix(text, "#cloud-config\r\n"):
		var any map[string]any
		if err := yaml.Unmarshal([]byte(text), &any); err != nil {
			return fmt.Errorf("it is no YAML: %s", strings.SplitN(err.Error(), "\n", 2)[0])
		}
		return nil
	case strings.HasPrefix(text, "#!"), strings.HasPrefix(text, "Content-Type: multipart/"), strings.HasPrefix(text, "MIME-Version:"):
		return nil
	}
	return fmt.Errorf("it begins neither with #cloud-config nor with #! nor as MIME")
}

func (n Interface) validate() error {
	switch {
	case !macGrammar.MatchString(n.MAC):
		return fmt.Errorf("%q is no MAC address in lower case", n.MAC)
	case n.Name != "" && !interfaceGrammar.MatchString(n.Name):
		return fmt.Errorf("%q is no interface's name", n.Name)
	case !n.DHCP && len(n.Addresses) == 0:
		return fmt.Errorf("%s has neither DHCP nor an address", n.MAC)
	case n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535):
		return fmt.Errorf("%s: an MTU of %d", n.MAC, n.MTU)
	}
	reached := !n.Gateway.IsValid()
	for _, a := range n.Addresses {
		if !a.IsValid() {
			return fmt.Errorf("%s: an address without its prefix length", n.MAC)
		}
		reached = reached || a.Masked().Contains(n.Gateway)
	}
	if !reached {
		return fmt.Errorf("%s: the gateway %s is in none of its networks", n.MAC, n.Gateway)
	}
	for _, s := range n.SearchDNS {
		if !hostGrammar.MatchString(s) {
			return fmt.Errorf("%s: the search domain %q", n.MAC, s)
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
	seed := Seed{"user-data": []byte(d.UserData)}
	if d.UserData == "" {
		seed["user-data"] = []byte("#cloud-config\n{}\n")
	}
	if d.VendorData != "" {
		seed["vendor-data"] = []byte(d.VendorData)
	}
	parts := map[string]any{"meta-data": meta}
	if len(d.Network) > 0 {
		parts["network-config"] = network(d.Network)
	}
	for name, v := range parts {
		b, err := yaml.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("nocloud: %s: %w", name, err)
		}
		seed[name] = b
	}
	return seed, nil
}

// network gives the network-config of version 2.
func network(all []Interface) yaml.MapSlice {
	ethernets := yaml.MapSlice{}
	for i, n := range all {
		e := yaml.MapSlice{{Key: "match", Value: yaml.MapSlice{{Key: "macaddress", Value: quoted(n.MAC)}}}}
		add := func(key string, value any) { e = append(e, yaml.MapItem{Key: key, Value: value}) }
		if n.Name != "" {
			add("set-name", quoted(n.Name))
		}
		add("dhcp4", n.DHCP)
		if len(n.Addresses) > 0 {
			add("addresses", texts(n.Addresses))
		}
		if n.Gateway.IsValid() {
			to := "0.0.0.0/0"
			if n.Gateway.Is6() {
				to = "::/0"
			}
			add("routes", []yaml.MapSlice{{{Key: "to", Value: quoted(to)}, {Key: "via", Value: quoted(n.Gateway.String())}}})
		}
		if len(n.DNS)+len(n.SearchDNS) > 0 {
			add("nameservers", yaml.MapSlice{{Key: "addresses", Value: texts(n.DNS)}, {Key: "search", Value: quotedAll(n.SearchDNS)}})
		}
		if n.MTU != 0 {
			add("mtu", n.MTU)
		}
		if n.RootDevice {
			add("critical", true)
		}
		ethernets = append(ethernets, yaml.MapItem{Key: fmt.Sprintf("id%d", i), Value: e})
	}
	return yaml.MapSlice{{Key: "version", Value: 2}, {Key: "ethernets", Value: ethernets}}
}

func texts[T fmt.Stringer](all []T) []quoted {
	out := []quoted{}
	for _, v := range all {
		out = append(out, quoted(v.String()))
	}
	return out
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
