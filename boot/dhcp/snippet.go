package dhcp

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"hotspare"
	"hotspare/boot"
)

// Snippets are the servers that Snippet writes for.
func Snippets() []string { return []string{"dnsmasq", "kea", "isc"} }

// Snippet writes what another DHCP server's configuration needs so that its
// machines boot here (mode off): dnsmasq, kea or isc. Firmware gets its loader by
// name; the iPXE that it loads is sent to our PXE boot service on port 4011 (PXE
// 2.1 section 2.2.3), for what an iPXE boots is decided, and its token minted, when
// it asks. No snippet carries a secret.
func Snippet(server string, site boot.Site) (string, error) {
	rules, err := snippetRules(site)
	if err != nil {
		return "", err
	}
	switch server {
	case "dnsmasq":
		return snippetDnsmasq(site, rules), nil
	case "kea":
		return snippetKea(site, rules)
	case "isc":
		return snippetISC(site, rules), nil
	}
	return "", &hotspare.Error{
		Code: hotspare.CodeInvalid, What: fmt.Sprintf("there is no snippet for %q", server), Fix: "name one of " + strings.Join(Snippets(), ", "),
	}
}

// snippetRule is what firmware of one architecture boots.
type snippetRule struct {
	arch boot.Arch
	file string // a name, or a URL
}

// snippetRules asks the plan, so that the other server says what ours would say.
func snippetRules(site boot.Site) ([]snippetRule, error) {
	if !site.Server.Is4() {
		return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the snippet has no server to point to", Why: fmt.Sprintf("%q is no IPv4 address", site.Server), Fix: "configure the segment's address"}
	}
	var out []snippetRule
	for _, arch := range slices.Sorted(maps.Keys(site.Loaders)) {
		offer, _ := site.Plan(boot.Request{Protocol: boot.DHCP, Stage: boot.StageFirmware, Arch: arch}, boot.Assignment{})
		if offer.Kind != boot.OfferFile && offer.Kind != boot.OfferURL {
			continue
		}
		if strings.ContainsAny(offer.BootFile, "\"',;\\\n ") {
			return nil, &hotspare.Error{Code: hotspare.CodeInvalid, What: "the name of a loader cannot be written into a snippet", Where: offer.BootFile, Fix: "use letters, digits, dot, hyphen and underscore"}
		}
		out = append(out, snippetRule{arch, offer.BootFile})
	}
	return out, nil
}

// menuItem is the type of our boot service in the PXE menu, one of those that are
// free for vendors.
const menuItem = 0x8000

// menu is option 43 (PXE 2.1 section 2.4.1): a menu of one item that is taken at
// once, to be had from our boot service and from nobody else.
func menu(site boot.Site) []byte {
	const title = "hotspare"
	b := []byte{6, 1, 7} // neither broadcast nor multicast, only the servers named
	b = append(b, 8, 7)
	b = binary.BigEndian.AppendUint16(b, menuItem)
	b = append(append(b, 1), site.Server.AsSlice()...)
	b = append(b, 9, byte(3+len(title)))
	b = binary.BigEndian.AppendUint16(b, menuItem)
	b = append(append(b, byte(len(title))), title...)
	b = append(append(b, 10, byte(1+len(title)), 0), title...) // no waiting
	return append(b, 255)
}

func colons(b []byte) string {
	s := make([]string, 0, len(b))
	for _, x := range b {
		s = append(s, hex.EncodeToString([]byte{x}))
	}
	return strings.Join(s, ":")
}

func snippetDnsmasq(site boot.Site, rules []snippetRule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# dnsmasq: boot through hotspare at %s (a file in /etc/dnsmasq.d)\n", site.Server)
	b.WriteString("dhcp-userclass=set:hs-ipxe,iPXE\ndhcp-vendorclass=set:hs-http,HTTPClient\n")
	for _, r := range rules {
		fmt.Fprintf(&b, "# %s\ndhcp-match=set:hs-arch%d,option:client-arch,%d\n", r.arch, r.arch, r.arch)
		if r.arch.HTTP() {
			fmt.Fprintf(&b, "dhcp-boot=tag:!hs-ipxe,tag:hs-arch%d,%s\n", r.arch, r.file)
		} else {
			fmt.Fprintf(&b, "dhcp-boot=tag:!hs-ipxe,tag:hs-arch%d,%s,,%s\n", r.arch, r.file, site.Server)
		}
	}
	b.WriteString("# UEFI HTTP boot takes an offer for one only with the class\ndhcp-option-force=tag:!hs-ipxe,tag:hs-http,60,HTTPClient\n")
	fmt.Fprintf(&b, "# iPXE asks %s on port 4011 what to boot\n", site.Server)
	fmt.Fprintf(&b, "dhcp-option-force=tag:hs-ipxe,60,PXEClient\ndhcp-option-force=tag:hs-ipxe,43,%s\n", colons(menu(site)))
	return b.String()
}

// keaClass is an entry of Kea's client-classes.
type keaClass struct {
	Name       string      `json:"name"`
	Test       string      `json:"test"`
	NextServer string      `json:"next-server,omitempty"`
	File       string      `json:"boot-file-name,omitempty"`
	Defs       []keaDef    `json:"option-def,omitempty"`
	Options    []keaOption `json:"option-data,omitempty"`
}

type keaDef struct {
	Name string `json:"name"`
	Code int    `json:"code"`
	Type string `json:"type"`
}

type keaOption struct {
	Name   string `json:"name"`
	Data   string `json:"data"`
	CSV    *bool  `json:"csv-format,omitempty"`
	Always bool   `json:"always-send"`
}

func snippetKea(site boot.Site, rules []snippetRule) (string, error) {
	raw := false
	classes := []keaClass{{
		Name: "hotspare-ipxe", Test: "option[77].hex == 'iPXE' or substring(option[77].hex,1,4) == 'iPXE'", NextServer: site.Server.String(),
		Defs: []keaDef{{"vendor-encapsulated-options", 43, "binary"}},
		Options: []keaOption{
			{Name: "vendor-class-identifier", Data: "PXEClient", Always: true},
			{Name: "vendor-encapsulated-options", Data: hex.EncodeToString(menu(site)), CSV: &raw, Always: true},
		},
	}}
	for _, r := range rules {
		c := keaClass{
			Name: fmt.Sprintf("hotspare-arch%d", r.arch), NextServer: site.Server.String(), File: r.file,
			Test: fmt.Sprintf("not member('hotspare-ipxe') and option[93].hex == 0x%04x", uint16(r.arch)),
		}
		if r.arch.HTTP() {
			c.Options = []keaOption{{Name: "vendor-class-identifier", Data: "HTTPClient", Always: true}}
		}
		classes = append(classes, c)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "// Kea: boot through hotspare at %s. Add these classes to \"Dhcp4\"; leave out\n// next-server and boot-file-name of subnets and reservations, which would win.\n\"client-classes\": ", site.Server)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(classes); err != nil {
		return "", fmt.Errorf("write the snippet for Kea: %w", err)
	}
	return b.String(), nil
}

func snippetISC(site boot.Site, rules []snippetRule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# ISC dhcpd: boot through hotspare at %s (in /etc/dhcp/dhcpd.conf, outside the subnets)\n", site.Server)
	b.WriteString("option hotspare-arch code 93 = unsigned integer 16;\n")
	fmt.Fprintf(&b, "if exists user-class and (option user-class = \"iPXE\" or substring(option user-class, 1, 4) = \"iPXE\") {\n")
	fmt.Fprintf(&b, "  # iPXE asks %s on port 4011 what to boot\n  next-server %s;\n  option vendor-class-identifier \"PXEClient\";\n  option vendor-encapsulated-options %s;\n}", site.Server, site.Server, colons(menu(site)))
	for _, r := range rules {
		fmt.Fprintf(&b, " elsif option hotspare-arch = %d {\n  # %s\n", r.arch, r.arch)
		if r.arch.HTTP() {
			b.WriteString("  option vendor-class-identifier \"HTTPClient\";\n")
		}
		fmt.Fprintf(&b, "  next-server %s;\n  filename \"%s\";\n}", site.Server, r.file)
	}
	b.WriteString("\n")
	return b.String()
}
