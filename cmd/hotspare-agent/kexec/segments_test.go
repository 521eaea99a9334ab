package kexec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bzImage makes the header of a kernel of protocol 2.15 with a body of one page.
func bzImage(change func([]byte)) []byte {
	b := make([]byte, 2*512+page)
	le := binary.LittleEndian
	b[atSetupSects], b[atHeaderEnd], b[atRelocatable] = 1, 0x6a, 1
	copy(b[atMagic:], "HdrS")
	le.PutUint16(b[atVersion:], 0x20f)
	le.PutUint16(b[atXLoadFlags:], 0x7f)
	le.PutUint32(b[atRamdiskMax:], 0x7fffffff)
	le.PutUint32(b[atCmdlineSize:], 2047)
	le.PutUint64(b[atPreferred:], 16<<20)
	le.PutUint32(b[atInitSize:], 50<<20)
	le.PutUint64(b[atSetupData:], 0xdead)
	copy(b[2*512:], "the body")
	if change != nil {
		change(b)
	}
	return b
}

func bootParams() []byte {
	b := bytes.Repeat([]byte{0xee}, paramsSize)
	b[atE820Entries] = 5
	return b
}

func machine(end uint64) []span { return []span{{0, 0x9fc00}, {1 << 20, end}} }

func TestAKernelIsLaidOut(t *testing.T) {
	initrd := []byte(strings.Repeat("initrd", 1000))
	all, err := layout(bzImage(nil), initrd, bootParams(), "console=ttyS0", machine(512<<20))
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	low, image, disk := all[0], all[1], all[2]
	le := binary.LittleEndian
	if image.at != 16<<20 || image.size != 50<<20 || !bytes.HasPrefix(image.data, []byte("the body")) {
		t.Errorf("the kernel is at %#x in %#x", image.at, image.size)
	}
	if disk.at+disk.size != 512<<20 || disk.size != 2*page || !bytes.Equal(disk.data, initrd) {
		t.Errorf("the initramfs is at %#x in %#x", disk.at, disk.size)
	}
	p := low.data
	if low.at != lowBase || uint64(le.Uint32(p[atRamdisk:])) != disk.at || int(le.Uint32(p[atRamdisk+4:])) != len(initrd) ||
		le.Uint32(p[atCmdline:]) != lowCmdline || le.Uint64(p[atSetupData:]) != 0 || p[atSentinel] != 0 || p[atLoader] != loaderKexec {
		t.Errorf("the parameters: %x", p[:headerRoom])
	}
	// The memory map and the screen are the running kernel's, its own header and
	// what UEFI left are not.
	if p[0] != 0xee || p[0x2d0] != 0xee || p[atE820Entries] != 5 || !bytes.Equal(p[atEFI:atEFI+32], make([]byte, 32)) || p[headerRoom-1] != 0 {
		t.Errorf("the parameters: %x", p[:0x300])
	}
	if text, _, _ := bytes.Cut(p[page:], []byte{0}); string(text) != "console=ttyS0" {
		t.Errorf("the command line is %q", text)
	}
	for i, a := range all {
		if a.at%page != 0 || a.size%page != 0 || uint64(len(a.data)) > a.size {
			t.Errorf("segment %d: %d bytes at %#x in %#x", i, len(a.data), a.at, a.size)
		}
	}
}

func TestWhatIsUnusualIsLeftToTheKernel(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		kernel  func([]byte)
		params  func([]byte)
		cmdline string
		ram     []span
	}{
		"no kernel":               {kernel: func(b []byte) { b[atMagic] = 'x' }},
		"no 64-bit entry":         {kernel: func(b []byte) { b[atXLoadFlags] = 0 }},
		"an old protocol":         {kernel: func(b []byte) { le.PutUint16(b[atVersion:], 0x20b) }},
		"not relocatable":         {kernel: func(b []byte) { b[atRelocatable] = 0 }},
		"no body":                 {kernel: func(b []byte) { b[atSetupSects] = 64 }},
		"a header without an end": {kernel: func(b []byte) { b[atHeaderEnd] = 0xff }},
		"a place far away":        {kernel: func(b []byte) { le.PutUint64(b[atPreferred:], 1<<40) }},
		"a place inside a page":   {kernel: func(b []byte) { le.PutUint64(b[atPreferred:], 1<<24+1) }},
		"a long command line":     {cmdline: strings.Repeat("x", 2048)},
		"a long memory map":       {params: func(b []byte) { b[atE820Entries] = 128 }},
		"no memory map":           {params: func(b []byte) { b[atE820Entries] = 0 }},
		"little memory":           {ram: machine(60 << 20)},
		"no room for the initrd":  {ram: machine(66 << 20)},
		"no low memory":           {ram: []span{{0, 0x90000}, {1 << 20, 1 << 29}}},
	} {
		params, ram := bootParams(), machine(512<<20)
		if c.params != nil {
			c.params(params)
		}
		if c.ram != nil {
			ram = c.ram
		}
		if got, err := layout(bzImage(c.kernel), []byte("initrd"), params, c.cmdline, ram); !errors.Is(err, errUnusual) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := layout([]byte("short"), nil, bootParams(), "", machine(1<<29)); !errors.Is(err, errUnusual) {
		t.Errorf("a stub of a kernel: %v", err)
	}
}

func TestTheMemoryMapIsTheFirmwares(t *testing.T) {
	dir := t.TempDir()
	for name, e := range map[string][3]string{"0": {"0x0", "0x9fbff", "System RAM"}, "1": {"0x9fc00", "0x9ffff", "Reserved"}, "2": {"0x100000", "0x1fffffff", "System RAM"}} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for i, file := range []string{"start", "end", "type"} {
			if err := os.WriteFile(filepath.Join(dir, name, file), []byte(e[i]+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := memory(dir)
	if err != nil || len(got) != 2 || got[0] != (span{0, 0x9fc00}) || got[1] != (span{1 << 20, 512 << 20}) {
		t.Errorf("%v, %v", got, err)
	}
}

// Whatever the kernel's file holds, its segments lie in memory and apart.
func FuzzLayout(f *testing.F) {
	f.Add(bzImage(nil), 512)
	f.Fuzz(func(t *testing.T, kernel []byte, mib int) {
		ram := machine(uint64(max(2, min(mib, 1<<20))) << 20)
		all, err := layout(kernel, make([]byte, 5000), bootParams(), "quiet", ram)
		if err != nil {
			return
		}
		for i, a := range all {
			if !holds(ram, a.at, a.size) || uint64(len(a.data)) > a.size {
				t.Errorf("segment %d is outside: %#x %#x", i, a.at, a.size)
			}
			for _, b := range all[:i] {
				if a.at < b.at+b.size && b.at < a.at+a.size {
					t.Errorf("segments overlap: %#x %#x, %#x %#x", a.at, a.size, b.at, b.size)
				}
			}
		}
	})
}
