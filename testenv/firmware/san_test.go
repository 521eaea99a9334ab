package firmware

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hotspare/testenv/debian"
	"hotspare/testenv/lab"
)

// TestSanboot boots a disk as it is, which hotspare knows nothing of: its own boot
// code, its own kernel, no agent. The same disk starts on a BIOS and on UEFI.
func TestSanboot(t *testing.T) {
	if !full() {
		t.Skip("boots two machines from an opaque disk; make test-full runs it")
	}
	nodes := lab.Nodes(2)
	nodes[1].Firmware = lab.FirmwareUEFI
	w := newWorld(t, "san", "", nodes)
	for i, firmware := range []string{"BIOS", "UEFI"} {
		n := w.lab.Nodes()[i]
		t.Run(firmware, func(t *testing.T) {
			w := *w
			w.t = t
			image := "opaque-" + n.Name
			w.hotspare("image", "import", image, "--file", opaqueDisk(t, address(n).String()), "--format", "raw")
			w.addNode(n)
			begun := time.Now()
			app := "opaque-" + n.Name
			w.apply(fmt.Sprintf(`kind: application
name: %s
image: %s
pools: [%s]
priority: 50
address: %s/24
resources:
  - {name: address, kind: address}
monitors:
  - {name: page, kind: http, from: [appliance], url: /, expect: hotspare, every: 1s, timeout: 2s, failures: 2}
policy: {evidence: [power], ways: [cold-san]}
`, app, image, n.Name, address(n)))
			w.running(app, n)
			t.Logf("%s: from the order to a running application in %.1f s", firmware, time.Since(begun).Seconds())
			w.noSecretShown(app, n)
			w.fetchedOnce(n)
			w.gone(app, n)
		})
	}
}

// noSecretShown searches everything that people see for the secret of the grant.
func (w *world) noSecretShown(app string, n lab.NodeSpec) {
	w.t.Helper()
	log, err := os.ReadFile(w.site.Log())
	if err != nil {
		w.t.Fatal(err)
	}
	shown := w.console(n) + w.hotspare("explain", "boot", n.MAC) + w.hotspare("events", "--limit", "200") + string(log)
	if !strings.Contains(shown, "boots the volume iqn.") {
		w.t.Error("the machine does not say what it boots: the search proves nothing")
	}
	if strings.Contains(shown, w.secret(app+".root.e1")) {
		w.t.Error("the secret of the grant is shown")
	}
}

// secret gives the one of the live grant of a volume.
func (w *world) secret(volume string) string {
	w.t.Helper()
	c, err := w.site.Credentials(w.t.Context(), volume)
	if err != nil {
		w.t.Fatal(err)
	}
	return c.Secret
}

// fetchedOnce asks for the machine's script again, as a thief on the segment with
// its token would: nothing comes.
func (w *world) fetchedOnce(n lab.NodeSpec) {
	w.t.Helper()
	screen := w.console(n)
	_, token, ok := strings.Cut(screen, "http://10.77.0.1/ipxe/")
	if !ok || len(token) < 43 {
		w.t.Fatal("the console does not show the script's URL")
	}
	token = token[:43]
	out, err := lab.Exec(w.t.Context(), w.lab.ClientNamespace(), "curl", "-s", "-w", "%{http_code}", "http://10.77.0.1/boot/"+token+"/san").Output()
	// 410 while the attempt is live, 403 once it is over.
	if text := string(out); err != nil || strings.Contains(text, "password") || !strings.HasSuffix(text, "410") && !strings.HasSuffix(text, "403") {
		w.t.Errorf("the volume's secret was asked for again: %s, %v", out, err)
	}
}

// served is what the opaque disk says on the console when it has started.
const served = "OPAQUE DISK SERVES"

// opaqueDisk makes a disk with one FAT partition that starts by SYSLINUX under a
// BIOS and by GRUB under UEFI: a kernel and a web server in its initramfs, with
// the service's address in it.
func opaqueDisk(t *testing.T, addr string) string {
	t.Helper()
	k, err := debian.FetchKernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var a debian.Initramfs
	if err := a.Program(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	if err := a.Modules(t.Context(), k, "virtio_pci", "virtio_net"); err != nil {
		t.Fatal(err)
	}
	a.Dir("/proc")
	a.File("/www/index.html", 0o644, []byte("hotspare: an opaque disk\n"))
	a.File("/init", 0o755, []byte(`#!/sbin/busybox sh
b=/sbin/busybox
$b mount -t proc proc /proc
while read -r m; do $b insmod $m; done <`+debian.ModuleList+`
$b ip link set lo up
$b ip link set eth0 up
$b ip address add `+addr+`/24 dev eth0
$b arping -c 3 -A -I eth0 `+addr+`
echo `+served+`
$b httpd -f -h /www
`))
	dir := t.TempDir()
	initrd := filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, a.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	const args = "console=ttyS0,115200 quiet net.ifnames=0 mitigations=off panic=10"
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	syslinux := write("syslinux.cfg", "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\n  KERNEL vmlinuz\n  APPEND initrd=initrd "+args+"\n")
	grub := write("grub.cfg", "search --no-floppy --file --set=root /vmlinuz\nlinux /vmlinuz "+args+"\ninitrd /initrd\nboot\n")
	efi := filepath.Join(dir, "BOOTX64.EFI")
	tool(t, "grub-mkstandalone", "-O", "x86_64-efi", "-o", efi, "--modules=part_msdos fat search search_fs_file linux normal", "--locales=", "--fonts=", "--themes=", "boot/grub/grub.cfg="+grub)

	const start = 2048 // sector of the partition
	disk, part := filepath.Join(dir, "disk.raw"), ""
	tool(t, "truncate", "-s", "96M", disk)
	table := exec.Command("sfdisk", "-q", disk)
	table.Stdin = strings.NewReader(fmt.Sprintf("label: dos\nstart=%d, type=ef, bootable\n", start))
	if out, err := table.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	part = fmt.Sprintf("%s@@%d", disk, start*512)
	tool(t, "mkfs.fat", "-F", "32", "-h", fmt.Sprint(start), "--offset", fmt.Sprint(start), disk, fmt.Sprint(95*1024-1024))
	tool(t, "mmd", "-i", part, "::/EFI", "::/EFI/BOOT")
	for from, to := range map[string]string{k.Image: "vmlinuz", initrd: "initrd", syslinux: "syslinux.cfg", efi: "EFI/BOOT/BOOTX64.EFI"} {
		tool(t, "mcopy", "-i", part, from, "::/"+to)
	}
	tool(t, "syslinux", "--install", "--offset", fmt.Sprint(start*512), disk)
	mbr, err := os.ReadFile("/usr/lib/syslinux/mbr/mbr.bin")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.TrimRight(mbr[:min(len(mbr), 440)], "\x00"), 0); err != nil {
		t.Fatal(err)
	}
	return disk
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
