package main_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare"
	"hotspare/haengine"
	"hotspare/haengine/agentlink"
	"hotspare/images/build"
	"hotspare/images/nocloud"
)

// A Debian as it is, with cloud-init. %s is more of the set-up.
const cloudRecipe = `
version: 1
name: cloud
suite: bookworm
packages: [systemd, systemd-sysv, udev, dbus, iproute2, kmod, e2fsprogs, cloud-init]
units: {mask: [apt-daily.timer, apt-daily-upgrade.timer, serial-getty@ttyS0.service, getty@tty1.service]}
setup: |
  %s
`

// cloudImage builds the disk, or finds it in the cache.
func cloudImage(t *testing.T, more string) string {
	t.Helper()
	recipe, err := build.Parse([]byte(fmt.Sprintf(cloudRecipe, more)))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("../../out/cache/images")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "cloud-"+recipe.Digest()[:16]+".raw")
	if _, err := os.Stat(disk); err == nil {
		return disk
	}
	work := t.TempDir()
	t.Cleanup(func() { _ = build.Remove(work) })
	if _, err := build.Build(t.Context(), recipe, filepath.Join(work, "disk.raw"), build.Options{Work: work, Out: os.Stderr}); err != nil {
		t.Fatal(err)
	}
	command(t, "", "cp", "--sparse=always", filepath.Join(work, "disk.raw"), disk+".new")
	if err := os.Rename(disk+".new", disk); err != nil {
		t.Fatal(err)
	}
	return disk
}

// cloudClaim is the claim of an application whose one resource looks at what
// cloud-init did, and fails if it has not: then the claim fails.
func cloudClaim(t *testing.T, d *disks) agentlink.Order {
	t.Helper()
	seed, err := nocloud.Build(nocloud.Data{
		InstanceID: nocloud.ID("web", "n1", "digest"), Hostname: "n1", NetworkConfig: nocloud.NoNetwork, Meta: map[string]string{"address": serviceAddr + "/24"},
		UserData: `## template: jinja
#cloud-config
write_files:
  - path: /etc/told
    permissions: "0600"
    content: "at {{ ds.meta_data.hotspare.address }}"
runcmd:
  - [sh, -c, "echo ran > /etc/ran"]
`,
	})
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]hotspare.Secret{}
	for name, text := range seed {
		secrets[name] = hotspare.NewSecret(string(text))
	}
	check := strings.Join([]string{
		"set -e", "exec 2>&1", "set -x",
		`test "$(cat /etc/told)" = "at 10.77.0.50/24"`, // written by the first stage, from a template
		`test "$(cat /etc/ran)" = ran`,                 // by the last
		"test -e /var/lib/cloud/instance/boot-finished",
		`test "$(cat /var/lib/cloud/data/instance-id)" = ` + nocloud.ID("web", "n1", "digest"),
		`test "$(cat /proc/sys/kernel/hostname)" = n1`,
		"ip -4 -o addr show scope global | grep -q 10.77.0.100/", // the agent's card is as it was
		"! ls /etc/netplan/*cloud-init* /etc/network/interfaces.d/*cloud-init* /etc/systemd/network/*cloud-init* /run/systemd/network/*cloud-init*",
		"findmnt -no FSTYPE /var/lib/cloud/seed/nocloud | grep -qx tmpfs",
	}, "\n")
	app := haengine.Application{
		Name: "web", Address: netip.MustParsePrefix(serviceAddr + "/24"),
		Resources: []haengine.Resource{
			{Name: "address", Kind: haengine.ResourceAddress},
			{Name: "told", Kind: haengine.ResourceScript, Online: []string{"/bin/sh", "-c", check}, Offline: []string{"/bin/true"}},
		},
	}
	return agentlink.Order{ID: "claim-7", App: "web", Epoch: 7, Claim: &agentlink.Claim{
		Application: app, Image: agentlink.Image{RootFS: "ext4"}, Seed: secrets,
		Volumes: []agentlink.Volume{d.grant(t, "root", agentlink.RootVolume, "", 7)},
		Lease:   agentlink.LeasePolicy{Lease: haengine.Duration(60 * time.Second), DropBound: haengine.Duration(5 * time.Second)},
	}}
}

// A stock Debian is set up by its own cloud-init with what came over the link, and
// the service group comes online after that.
func TestCloudInitSetsTheImageUp(t *testing.T) {
	full(t)
	disk := cloudImage(t, "true") // outside: the packages come over the network
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a, d := newAppliance(t), serveDisks(t)
	d.fill(t, "root", disk)
	env := buildEnvironment(t)
	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeStart, 0xab)))
	s := a.awaitJoin(t, m)
	o := cloudClaim(t, d)
	o.BootID = s.BootID
	a.must(t, s, o)
}

// An image whose cloud-init would not listen fails the start, and says so: the
// application would run with what the image happens to hold.
func TestAnImageThatDoesNotRunCloudInitIsTold(t *testing.T) {
	full(t)
	disk := cloudImage(t, "touch /etc/cloud/cloud-init.disabled") // outside: the packages come over the network
	if !inNamespace(t) {
		return
	}
	serveDHCP(t)
	a, d := newAppliance(t), serveDisks(t)
	d.fill(t, "root", disk)
	env := buildEnvironment(t)
	m := bootNode(t, env.kernel, env.initrd(t, joinArchive(t, a.ca.PEM(), agentlink.ModeStart, 0xab)))
	s := a.awaitJoin(t, m)
	o := cloudClaim(t, d)
	o.BootID = s.BootID
	r := a.order(t, s, o)
	if r.OK || r.Code != hotspare.CodeOnlineFailed || !strings.Contains(r.Why, "does not run cloud-init") {
		t.Errorf("result %+v", r)
	}
}
