package firmware

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/lab"
)

// TestARM boots an arm64 machine by UEFI PXE and GRUB to an application of one
// process: another architecture's loader, kernel, agent and image.
func TestARM(t *testing.T) {
	if !full() {
		t.Skip("emulates an arm64 machine; make test-full runs it")
	}
	pkgs := fetchARM(t)
	loaders := t.TempDir()
	copyFile(t, filepath.Join(pkgs, "usr/lib/shim/shimaa64.efi.signed"), filepath.Join(loaders, "shimaa64.efi"))
	copyFile(t, filepath.Join(pkgs, "usr/lib/grub/arm64-efi-signed/grubnetaa64.efi.signed"), filepath.Join(loaders, "grubaa64.efi"))
	nodes := lab.Nodes(1)
	nodes[0].Arch, nodes[0].MemoryMiB = lab.ArchARM64, 1024
	w := newWorld(t, "arm", loaders, nodes)
	n := w.lab.Nodes()[0]
	w.hotspare("image", "import", "tiny", "--file", armDisk(t, pkgs), "--format", "raw", "--cmdline", "console=ttyAMA0")
	w.addNode(n)
	begun := time.Now()
	w.apply(fmt.Sprintf(`kind: application
name: tiny
image: tiny
pools: [%s]
priority: 50
address: %s/24
requires: {arch: arm64}
resources:
  - {name: address, kind: address}
  - {name: server, kind: process, after: [address], command: [/bin/busybox, httpd, -f, -h, /www]}
monitors:
  - {name: page, kind: http, from: [appliance], url: /, expect: hotspare, every: 1s, timeout: 2s, failures: 2}
  - {name: agent, kind: heartbeat, every: 1s, timeout: 8s}
policy: {evidence: [power], bootDeadline: 8m}
`, n.Name, address(n)))
	w.running("tiny", n)
	t.Logf("arm64: from the order to a running application in %.1f s", time.Since(begun).Seconds())
	trace := w.hotspare("explain", "boot", n.MAC)
	for _, want := range []string{"ARM 64-bit UEFI (11)", "grubaa64.efi over TFTP"} {
		if !strings.Contains(trace, want) {
			t.Errorf("the boot trace does not show %q:\n%s", want, trace)
		}
	}
}

// armDisk is an ext4 with a kernel of Debian for arm64 and one program.
func armDisk(t *testing.T, pkgs string) string {
	t.Helper()
	root := t.TempDir()
	tool(t, "cp", "-a", filepath.Join(pkgs, "boot"), filepath.Join(pkgs, "lib"), root)
	for _, d := range []string{"bin", "etc", "www", "proc", "sys", "dev", "run", "tmp", "var"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := filepath.Glob(filepath.Join(pkgs, "*bin", "busybox"))
	if err != nil || len(busybox) == 0 {
		busybox, _ = filepath.Glob(filepath.Join(pkgs, "usr", "bin", "busybox"))
	}
	if len(busybox) != 1 {
		t.Fatalf("busybox is in none of the packages: %v", busybox)
	}
	copyFile(t, busybox[0], filepath.Join(root, "bin/busybox"))
	for name, text := range map[string]string{"etc/os-release": "ID=debian\nPRETTY_NAME=\"Debian for arm64\"\n", "www/index.html": "hotspare: on arm64\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	versions, err := os.ReadDir(filepath.Join(root, "lib/modules"))
	if err != nil || len(versions) != 1 {
		t.Fatalf("modules: %v %v", versions, err)
	}
	tool(t, "depmod", "-b", root, versions[0].Name())
	disk := filepath.Join(t.TempDir(), "disk.raw")
	tool(t, "truncate", "-s", "512M", disk)
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", root, disk)
	return disk
}

// fetchARM unpacks Debian's packages for arm64 from the host's own sources. Apt
// gets folders of its own: the host stays what it is.
func fetchARM(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(cache, "hotspare", "test-arm64")
	root := filepath.Join(dir, "root")
	if _, err := os.Stat(root); err == nil {
		return root
	}
	apt := filepath.Join(dir, "apt")
	for _, d := range []string{"state", "cache/archives/partial", "lists/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(apt, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := fmt.Sprintf(`Dir::State "%[1]s/state"; Dir::State::status "%[1]s/status"; Dir::State::lists "%[1]s/lists"; Dir::Cache "%[1]s/cache";
APT::Architecture "arm64"; APT::Architectures {"arm64";}; APT::Sandbox::User "root";
`, apt)
	for file, text := range map[string]string{"apt.conf": conf, "status": ""} {
		if err := os.WriteFile(filepath.Join(apt, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	run := func(args ...string) string {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = filepath.Join(apt, "debs")
		cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(apt, "apt.conf"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	run("apt-get", "update")
	_, kernel, _ := strings.Cut(run("apt-cache", "depends", "--important", "linux-image-cloud-arm64"), "Depends: ")
	kernel, _, _ = strings.Cut(kernel, "\n")
	run("apt-get", "download", strings.TrimSpace(kernel), "busybox-static", "shim-signed", "grub-efi-arm64-signed")
	debs, err := filepath.Glob(filepath.Join(apt, "debs", "*.deb"))
	if err != nil || len(debs) != 4 {
		t.Fatalf("apt-get download left %v", debs)
	}
	unpacked := filepath.Join(dir, fmt.Sprintf("root.%d", os.Getpid()))
	for _, deb := range debs {
		run("dpkg", "-x", deb, unpacked)
	}
	if err := os.Rename(unpacked, root); err != nil {
		t.Fatal(err)
	}
	return root
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
