package nocloud

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"hotspare"
)

func node() Data {
	return Data{
		InstanceID: "orders-e7", Hostname: "n1.example", Keys: []string{"ssh-ed25519 AAA me: # no comment"}, UserData: "#cloud-config\npackage_update: false\n",
		VendorData: "#!/bin/sh\necho hello\n",
		Network: []Interface{
			{Name: "eth0", MAC: "52:54:00:77:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.0.11/24")}, Gateway: netip.MustParseAddr("10.77.0.1"), DNS: []netip.Addr{netip.MustParseAddr("10.77.0.1")}, SearchDNS: []string{"example"}, MTU: 9000, RootDevice: true},
			{MAC: "52:54:00:77:01:01", DHCP: true},
		},
	}
}

func TestSeed(t *testing.T) {
	seed, err := Build(node())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"meta-data": "instance-id: orders-e7\nlocal-hostname: n1.example\npublic-keys:\n- 'ssh-ed25519 AAA me: # no comment'\n",
		"network-config": `version: 2
ethernets:
  id0:
    match:
      macaddress: 52:54:00:77:00:01
    set-name: eth0
    dhcp4: false
    addresses:
    - 10.77.0.11/24
    routes:
    - to: 0.0.0.0/0
      via: 10.77.0.1
    nameservers:
      addresses:
      - 10.77.0.1
      search:
      - example
    mtu: 9000
    critical: true
  id1:
    match:
      macaddress: 52:54:00:77:01:01
    dhcp4: true
`,
	}
	for name, text := range want {
		var got, should any
		if err := yaml.Unmarshal(seed[name], &got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := yaml.Unmarshal([]byte(text), &should); err != nil {
			t.Fatal(err)
		}
		a, _ := yaml.Marshal(got)
		b, _ := yaml.Marshal(should)
		if !bytes.Equal(a, b) {
			t.Errorf("%s is\n%s", name, seed[name])
		}
	}
	if len(seed) != 4 || string(seed["vendor-data"]) != node().VendorData {
		t.Errorf("files %v", seed)
	}
	least, err := Build(Data{InstanceID: "i"})
	if err != nil || len(least) != 2 || !strings.HasPrefix(string(least["user-data"]), "#cloud-config\n") {
		t.Errorf("%v, %v", least, err)
	}
}

// YAML 1.1 readers take some unquoted MAC addresses for numbers of base 60.
func TestMACsStayTexts(t *testing.T) {
	d := node()
	d.Network = []Interface{{MAC: "10:20:30:40:50:10", DHCP: true}}
	seed, err := Build(d)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-c", "import sys,yaml; print(yaml.safe_load(sys.stdin)['ethernets']['id0']['match']['macaddress'])")
	cmd.Stdin = bytes.NewReader(seed["network-config"])
	out, err := cmd.Output()
	if err == nil && strings.TrimSpace(string(out)) != "10:20:30:40:50:10" {
		t.Errorf("another reader sees %s", out)
	}
	if !strings.Contains(string(seed["network-config"]), `"10:20:30:40:50:10"`) {
		t.Errorf("the address is not quoted: %s", seed["network-config"])
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Data){
		"no instance": func(d *Data) { d.InstanceID = "" }, "instance": func(d *Data) { d.InstanceID = "a\nb: c" }, "hostname": func(d *Data) { d.Hostname = "a b" },
		"key": func(d *Data) { d.Keys = []string{"a b\nc"} }, "user data": func(d *Data) { d.UserData = "hello" }, "YAML": func(d *Data) { d.UserData = "#cloud-config\n[" },
		"large": func(d *Data) { d.UserData = "#!" + strings.Repeat("x", 2<<20) }, "MAC": func(d *Data) { d.Network[0].MAC = "52:54:00:77:00:0G" },
		"twice": func(d *Data) { d.Network[1].MAC = d.Network[0].MAC }, "no address": func(d *Data) { d.Network[1].DHCP = false },
		"gateway": func(d *Data) { d.Network[0].Gateway = netip.MustParseAddr("10.1.1.1") }, "name": func(d *Data) { d.Network[0].Name = "a b" }, "MTU": func(d *Data) { d.Network[0].MTU = 5 },
	} {
		d := node()
		change(&d)
		if _, err := Build(d); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The disk is what other readers take for one.
func TestVFAT(t *testing.T) {
	d := node()
	d.VendorData = "#!/bin/sh\n" + strings.Repeat("# long\n", 100000)
	seed, err := Build(d)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := seed.VFAT()
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := seed.VFAT(); !bytes.Equal(disk, again) {
		t.Error("not the same twice")
	}
	file := filepath.Join(t.TempDir(), "seed.img")
	if err := os.WriteFile(file, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"fsck.vfat", "-n", file}, ""},
		{[]string{"blkid", "-p", "-o", "value", "-s", "LABEL", file}, "CIDATA\n"},
		{[]string{"blkid", "-p", "-o", "value", "-s", "TYPE", file}, "vfat\n"},
		{[]string{"mcopy", "-i", file, "::meta-data", "-"}, string(seed["meta-data"])},
		{[]string{"mcopy", "-i", file, "::user-data", "-"}, string(seed["user-data"])},
		{[]string{"mcopy", "-i", file, "::vendor-data", "-"}, string(seed["vendor-data"])},
		{[]string{"mcopy", "-i", file, "::network-config", "-"}, string(seed["network-config"])},
	} {
		out, err := exec.Command(c.args[0], c.args[1:]...).CombinedOutput()
		if err != nil || c.want != "" && string(out) != c.want {
			t.Errorf("%v: %v: %.300s", c.args, err, out)
		}
	}
	if _, err := (Seed{"a": make([]byte, 5<<20)}).VFAT(); err == nil {
		t.Error("too much fits")
	}
}

func FuzzBuild(f *testing.F) {
	f.Add("orders-e7", "n1", "#cloud-config\na: b\n", "52:54:00:77:00:01")
	f.Fuzz(func(t *testing.T, id, host, user, mac string) {
		seed, err := Build(Data{InstanceID: id, Hostname: host, UserData: user, Network: []Interface{{MAC: mac, DHCP: true}}})
		if err != nil {
			return
		}
		var meta map[string]string
		if err := yaml.Unmarshal(seed["meta-data"], &meta); err != nil || meta["instance-id"] != id || meta["local-hostname"] != host {
			t.Errorf("%q, %q: %v %v", id, host, meta, err)
		}
		if _, err := seed.VFAT(); err != nil {
			t.Error(err)
		}
	})
}
