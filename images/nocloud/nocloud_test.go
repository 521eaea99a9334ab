package nocloud

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/goccy/go-yaml"

	"hotspare"
)

func node() Data {
	return Data{
		InstanceID: "orders.n1.7", Hostname: "n1.example", Keys: []string{"ssh-ed25519 AAA me: # no comment"}, UserData: "#cloud-config\npackage_update: false\n",
		VendorData: "#!/bin/sh\necho hello\n", NetworkConfig: "version: 2\nethernets:\n  back: {match: {macaddress: '52:54:00:77:01:01'}, dhcp4: true}\n",
		Reserved: []string{"52:54:00:77:00:01"}, Meta: map[string]string{"address": "10.77.0.50/24", "application": "on"},
	}
}

func TestSeed(t *testing.T) {
	seed, err := Build(node())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"meta-data": `instance-id: "orders.n1.7"
local-hostname: "n1.example"
public-keys:
- "ssh-ed25519 AAA me: # no comment"
hotspare:
  address: "10.77.0.50/24"
  application: "on"
`,
		"user-data": node().UserData, "vendor-data": node().VendorData, "network-config": node().NetworkConfig,
	}
	for name, text := range want {
		if string(seed[name]) != text {
			t.Errorf("%s is\n%s", name, seed[name])
		}
	}
	if len(seed) != 4 {
		t.Errorf("files %v", seed)
	}
	least, err := Build(Data{InstanceID: "i"})
	if err != nil || len(least) != 2 || !strings.HasPrefix(string(least["user-data"]), "#cloud-config\n") {
		t.Errorf("%v, %v", least, err)
	}
}

// A system that is kept is set up once; whatever changes for it sets it up anew.
func TestInstanceIDs(t *testing.T) {
	id := ID("orders", "n1", "digest", "#cloud-config\n", "")
	if again := ID("orders", "n1", "digest", "#cloud-config\n", ""); again != id {
		t.Errorf("%s and %s", id, again)
	}
	for name, other := range map[string]string{
		"another node": ID("orders", "n2", "digest", "#cloud-config\n", ""), "another image": ID("orders", "n1", "digest2", "#cloud-config\n", ""),
		"other user data": ID("orders", "n1", "digest", "#cloud-config\na: b\n", ""), "the same words elsewhere": ID("orders", "n1", "digest", "", "#cloud-config\n"),
	} {
		if other == id {
			t.Errorf("%s keeps the id %s", name, id)
		}
	}
	if _, err := Build(Data{InstanceID: ID(strings.Repeat("a", 63), strings.Repeat("n", 63), "x")}); err != nil {
		t.Error(err)
	}
}

func TestFormsOfUserData(t *testing.T) {
	for _, text := range []string{
		"", "#!/bin/sh\ntrue\n", "#cloud-config\r\na: b\r\n", "## template: jinja\n#cloud-config\nhostname: {{ ds.meta_data.hotspare.node }}\n",
		"## template: jinja\n#!/bin/sh\n", "#include\nhttp://10.0.0.1/x\n", "#cloud-config-archive\n- a\n", "Content-Type: multipart/mixed; boundary=x\n", "#cloud-boothook\n#!/bin/sh\n",
	} {
		d := node()
		d.UserData = text
		if _, err := Build(d); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for name, change := range map[string]func(*Data){
		"no instance": func(d *Data) { d.InstanceID = "" }, "instance": func(d *Data) { d.InstanceID = "a\nb: c" }, "hostname": func(d *Data) { d.Hostname = "a b" },
		"key": func(d *Data) { d.Keys = []string{"a b\nc"} }, "user data": func(d *Data) { d.UserData = "hello" }, "YAML": func(d *Data) { d.UserData = "#cloud-config\n[" },
		"nearly": func(d *Data) { d.UserData = "#cloud-configuration\na: b\n" }, "vendor data": func(d *Data) { d.VendorData = "a: b\n" },
		"large": func(d *Data) { d.UserData = "#!" + strings.Repeat("x", MaxPart) }, "network YAML": func(d *Data) { d.NetworkConfig = "version: [" },
		"network version": func(d *Data) { d.NetworkConfig = "ethernets: {}\n" }, "network size": func(d *Data) { d.NetworkConfig += strings.Repeat("# x\n", MaxPart) },
		"the root's card": func(d *Data) { d.NetworkConfig = strings.Replace(d.NetworkConfig, "01:01", "00:01", 1) },
		"the root's card again": func(d *Data) {
			d.NetworkConfig, d.Reserved = "network: {version: 1, x: 52-54-00-AA-00-01}\n", []string{"52:54:00:aa:00:01"}
		},
	} {
		d := node()
		change(&d)
		if _, err := Build(d); hotspare.CodeOf(err) != hotspare.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What cannot be read may hold a password: the error shows nothing of it.
func TestErrorsShowNothingOfTheData(t *testing.T) {
	d := node()
	d.UserData = "#cloud-config\npassword: 'tops3cret\n"
	_, err := Build(d)
	if e, ok := errors.AsType[*hotspare.Error](err); !ok || strings.Contains(e.Card()+err.Error(), "tops3cret") || !strings.Contains(e.Why, "line 2") {
		t.Errorf("%v", err)
	}
}

// The disk is what other readers take for one.
func TestVFAT(t *testing.T) {
	d := node()
	d.VendorData = "#!/bin/sh\n" + strings.Repeat("# long\n", 18000)
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
	f.Add("orders.n1.7", "n1", "#cloud-config\na: b\n", "version: 2\n", "on")
	f.Fuzz(func(t *testing.T, id, host, user, network, word string) {
		seed, err := Build(Data{InstanceID: id, Hostname: host, UserData: user, NetworkConfig: network, Meta: map[string]string{"word": word}})
		if err != nil {
			return
		}
		var meta struct {
			ID   string            `yaml:"instance-id"`
			Host string            `yaml:"local-hostname"`
			More map[string]string `yaml:"hotspare"`
		}
		if err := yaml.Unmarshal(seed["meta-data"], &meta); err != nil || meta.ID != id || meta.Host != host || utf8.ValidString(word) && meta.More["word"] != word {
			t.Errorf("%q, %q, %q: %+v %v", id, host, word, meta, err)
		}
		if _, err := seed.VFAT(); err != nil {
			t.Error(err)
		}
	})
}
