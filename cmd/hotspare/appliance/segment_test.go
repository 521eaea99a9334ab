package appliance

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hotspare"
	"hotspare/boot"
	"hotspare/haengine"
)

const segmentFile = `
network:
  interface: eno2
  address: 10.77.0.1/24
  gateway: 10.77.0.254
  dhcp:
    mode: authoritative
    from: 10.77.0.100
    to: 10.77.0.199
    settings:
      domain: lab.example
      ntp: [10.77.0.123]
      options: [{code: 26, kind: uint16, value: "9000", always: true}]
    relayed:
      - prefix: 10.88.0.0/24
        from: 10.88.0.20
        to: 10.88.0.29
        relays: [192.0.2.1]
        settings: {domain: rack.example}
    reservations:
      - {node: n1, address: 10.77.0.11}
      - {node: n1, address: 10.88.0.11}
      - {node: n2, address: 10.77.0.12}
    ipv6: {address: "fd77::1/64", addresses: true}
`

func loadSegment(t *testing.T, text string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hotspare.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return LoadConfig(path)
}

// What the file says of a segment reaches the DHCP server.
func TestASegmentFromTheFile(t *testing.T) {
	c, err := loadSegment(t, segmentFile)
	if err != nil {
		t.Fatal(err)
	}
	o, err := c.Network.dhcpOptions()
	if err != nil {
		t.Fatal(err)
	}
	if o.Domain != "lab.example" || len(o.NTP) != 1 || len(o.Extra) != 1 || string(o.Extra[0].Value) != "\x23\x28" || !o.Extra[0].Always {
		t.Errorf("own network %+v", o.Subnet)
	}
	if len(o.Relayed) != 1 || o.Relayed[0].Domain != "rack.example" || len(o.Relayed[0].Relays) != 1 || o.Relayed[0].LeaseTime != o.LeaseTime || o.Relayed[0].Range.Size() != 10 {
		t.Errorf("relayed network %+v", o.Relayed)
	}
	if o.IPv6 == nil || o.IPv6.Server != netip.MustParseAddr("fd77::1") || o.IPv6.Prefix != netip.MustParsePrefix("fd77::/64") {
		t.Errorf("IPv6 %+v", o.IPv6)
	}
}

// A node has its address at the MAC address that it boots from, in each network; an
// address whose node is not there is nobody else's.
func TestAddressesOfNodes(t *testing.T) {
	c, err := loadSegment(t, segmentFile)
	if err != nil {
		t.Fatal(err)
	}
	boots, other := boot.MAC{0x52, 0x54, 0, 0x77, 0, 1}, boot.MAC{0x52, 0x54, 0, 0x77, 1, 1}
	index := &nodeIndex{nodes: func() map[string]*haengine.NodeState {
		return map[string]*haengine.NodeState{"n1": {Spec: haengine.Node{MACs: []string{boots.String(), other.String()}}}}
	}}
	r, err := newNodeAddresses(c.Network.LinkConfig, index)
	if err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]string{"10.77.0.0/24": "10.77.0.11", "10.88.0.0/24": "10.88.0.11"} {
		if a, ok := r.Reserved(boots, netip.MustParsePrefix(prefix)); !ok || a.String() != want {
			t.Errorf("in %s it has %s %v", prefix, a, ok)
		}
	}
	if a, ok := r.Reserved(other, netip.MustParsePrefix("10.77.0.0/24")); ok {
		t.Errorf("its second card has %s too", a)
	}
	if m, ok := r.Owner(netip.MustParseAddr("10.77.0.11")); !ok || m != boots {
		t.Errorf("it belongs to %s %v", m, ok)
	}
	if m, ok := r.Owner(netip.MustParseAddr("10.77.0.12")); !ok || !m.IsZero() {
		t.Errorf("the address of a node that is not there belongs to %s %v", m, ok)
	}
	if !index.known(other) || index.known(boot.MAC{2}) {
		t.Error("nodes are known by any of their cards, and nobody else")
	}
}

func TestSegmentsThatAreRefused(t *testing.T) {
	head := "network:\n  interface: eno2\n  address: 10.77.0.1/24\n  dhcp:\n    mode: authoritative\n    from: 10.77.0.100\n    to: 10.77.0.199\n"
	for name, more := range map[string]string{
		"an option of the server's own":   "    settings: {options: [{code: 51, kind: uint32, value: \"60\"}]}\n",
		"a value that is not of its kind": "    settings: {options: [{code: 26, kind: uint16, value: \"70000\"}]}\n",
		"a reservation twice":             "    reservations: [{node: a, address: 10.77.0.11}, {node: b, address: 10.77.0.11}]\n",
		"two for a node":                  "    reservations: [{node: a, address: 10.77.0.11}, {node: a, address: 10.77.0.12}]\n",
		"one of another network":          "    reservations: [{node: a, address: 192.0.2.1}]\n",
		"one for nobody":                  "    reservations: [{address: 10.77.0.11}]\n",
	} {
		if _, err := loadSegment(t, head+more); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The snippet for another server points to what the file says.
func TestSnippetFromTheFile(t *testing.T) {
	c, err := loadSegment(t, segmentFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range []string{"dnsmasq", "kea", "isc"} {
		text, err := Snippet(c, server, "")
		if err != nil || !strings.Contains(text, "10.77.0.1") || !strings.Contains(text, "snponly.efi") {
			t.Errorf("%s: %v\n%s", server, err, text)
		}
	}
	if _, err := Snippet(c, "windows", ""); hotspare.CodeOf(err) != hotspare.CodeInvalid {
		t.Errorf("%v", err)
	}
}
