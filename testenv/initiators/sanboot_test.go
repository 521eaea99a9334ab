package initiators_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ipxeKernel is iPXE as a Linux kernel (Debian's package ipxe), which takes its
// script as an initrd.
const ipxeKernel = "/usr/lib/ipxe/ipxe.lkrn"

// TestSanboot boots a machine from a volume with iPXE. The boot sector on it
// prints another sector on the serial port and writes it to a third one, through
// the firmware's disk that iPXE makes of the volume: both ways must work. Before
// that the secrets of either side are wrong once, and iPXE must not get through.
func TestSanboot(t *testing.T) {
	greeting := []byte("this machine booted from iSCSI\r\n")
	g := startTarget(t, "", map[string]int64{"boot": 16 * mib}, "127.0.0.1:0")
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, bootDisk(t, greeting), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, g.url("boot"))
	_, port, err := net.SplitHostPort(g.opts.Listen)
	if err != nil {
		t.Fatal(err)
	}
	boot := fmt.Sprintf("sanboot iscsi:10.0.2.2::%s:0:%s", port, iqn("boot"))
	script := strings.Join([]string{"#!ipxe", "ifopen net0", "set net0/ip 10.0.2.15", "set net0/netmask 255.255.255.0",
		"set initiator-iqn iqn.2026-11.io.hotspare:ipxe",
		"set username " + chapUser, "set password not-the-secret-at-all", boot + " || echo refused by the target",
		"set password " + chapSecret, "set reverse-username " + mutualUser, "set reverse-password secret-of-an-impostor", boot + " || echo refused by iPXE",
		"set reverse-password " + mutualSecret, boot + " || echo refused for no reason", ""}, "\n")
	file := filepath.Join(dir, "script.ipxe")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	out := bootUntil(t, "written", "-kernel", ipxeKernel, "-initrd", file,
		"-netdev", "user,id=n,ipv6=off", "-device", "virtio-net-pci,netdev=n,romfile=")
	for _, want := range []string{"refused by the target", "refused by iPXE", string(greeting[:len(greeting)-2])} {
		if !strings.Contains(out, want) {
			t.Errorf("the machine did not say %q:\n%s", want, out)
		}
	}
	back := filepath.Join(dir, "back")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", g.url("boot"), back)
	b, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	if got := b[copySector*512:][:len(greeting)]; !bytes.Equal(got, greeting) {
		t.Errorf("the machine wrote %q", got)
	}
}

const (
	greetingSector = 2048
	copySector     = 4096
)

// bootDisk makes a disk whose boot sector prints the greeting, which is on
// another sector, and copies it.
func bootDisk(t *testing.T, greeting []byte) []byte {
	t.Helper()
	const origin, buffer = 0x7c00, 0x7e00
	code := []byte{
		0xfa,       // cli
		0x31, 0xc0, // xor ax,ax
		0x8e, 0xd8, // mov ds,ax
		0x8e, 0xc0, // mov es,ax
		0x8e, 0xd0, // mov ss,ax
		0xbc, 0x00, 0x7c, // mov sp,0x7c00
		0xfb,                         // sti
		0xea, 0x12, 0x7c, 0x00, 0x00, // jmp 0:0x7c12
		0x88, 0x16, 0x59, 0x7c, // mov [drive],dl
		0xbe, 0x5c, 0x7c, // mov si,read
		0xb4, 0x42, // mov ah,0x42: extended read
		0xcd, 0x13, // int 0x13
		0x72, 0x19, // jc failed
		0xbe, 0x00, 0x7e, // mov si,buffer
		0xe8, 0x1c, 0x00, // call print
		0xbe, 0x6c, 0x7c, // mov si,write
		0x8a, 0x16, 0x59, 0x7c, // mov dl,[drive]
		0xb8, 0x00, 0x43, // mov ax,0x4300: extended write
		0xcd, 0x13, // int 0x13
		0x72, 0x05, // jc failed
		0xbe, 0x7c, 0x7c, // mov si,done
		0xeb, 0x03, // jmp last
		0xbe, 0x86, 0x7c, // failed: mov si,error
		0xe8, 0x03, 0x00, // last: call print
		0xf4,       // stop: hlt
		0xeb, 0xfd, // jmp stop
		0xac,       // print: lodsb
		0x84, 0xc0, // test al,al
		0x74, 0x12, // jz return
		0x88, 0xc4, // mov ah,al
		0xba, 0xfd, 0x03, // mov dx,0x3fd: line status
		0xec,       // wait: in al,dx
		0xa8, 0x20, // test al,0x20
		0x74, 0xfb, // jz wait
		0xba, 0xf8, 0x03, // mov dx,0x3f8: the serial port
		0x88, 0xe0, // mov al,ah
		0xee,       // out dx,al
		0xeb, 0xe9, // jmp print
		0xc3,             // return: ret
		0x00, 0x00, 0x00, // drive, and padding
	}
	packet := func(sector uint64) { // of the firmware's extended read and write
		code = append(code, 16, 0, 1, 0)
		code = binary.LittleEndian.AppendUint16(code, buffer)
		code = append(code, 0, 0)
		code = binary.LittleEndian.AppendUint64(code, sector)
	}
	at := func(want int, what string) {
		if origin+len(code) != want {
			t.Fatalf("%s is at %#x, not %#x", what, origin+len(code), want)
		}
	}
	at(0x7c5c, "read")
	packet(greetingSector)
	at(0x7c6c, "write")
	packet(copySector)
	at(0x7c7c, "done")
	code = append(code, "written\r\n\x00"...)
	at(0x7c86, "error")
	code = append(code, "disk error\r\n\x00"...)
	disk := make([]byte, 16*mib)
	copy(disk, code)
	disk[510], disk[511] = 0x55, 0xaa
	copy(disk[greetingSector*512:], greeting)
	return disk
}

// bootUntil runs a machine until it prints a line with the word on its serial
// port, and gives all that it printed.
func bootUntil(t *testing.T, word string, args ...string) string {
	t.Helper()
	q := exec.Command("qemu-system-x86_64", append([]string{"-accel", "tcg", "-machine", "pc,graphics=off", "-m", "128",
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"}, args...)...)
	q.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := q.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	q.Stderr = &stderr
	if err := q.Start(); err != nil {
		t.Fatalf("QEMU does not start (package qemu-system-x86): %v", err)
	}
	late := time.AfterFunc(patience, func() { q.Process.Kill() })
	defer late.Stop()
	defer q.Wait()
	defer q.Process.Kill()
	var said strings.Builder
	for sc := bufio.NewScanner(out); sc.Scan(); {
		said.WriteString(sc.Text() + "\n")
		if strings.Contains(sc.Text(), word) {
			return said.String()
		}
	}
	t.Fatalf("the machine never printed %q:\n%s%s", word, said.String(), stderr.String())
	return ""
}
