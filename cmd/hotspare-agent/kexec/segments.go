package kexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kexec_file_load(2) has the old kernel compute a SHA-256 of everything that it
// loaded, and its purgatory compute it again on the way out, with caches of its
// own: two passes that take seconds where a processor is slow. What is loaded here
// has had its digest compared already. So on a machine with BIOS the segments are
// laid out here and given to kexec_load(2), which jumps straight into the other
// kernel. With UEFI, under lockdown, and wherever something is unusual, it is
// kexec_file_load(2), which knows all of that.

// Offsets in boot_params and in the header of a bzImage (Linux,
// Documentation/x86/boot.rst and zero-page.rst). The header stands at the same
// place in both.
const (
	atEFI         = 0x1c0 // efi_info, 32 bytes
	atRamdiskHigh = 0x0c0 // ext_ramdisk_image, ext_ramdisk_size, ext_cmd_line_ptr: 12 bytes
	atE820Entries = 0x1e8
	atSentinel    = 0x1ef
	atSetupSects  = 0x1f1
	atHeaderEnd   = 0x201 // the offset of a jump over the header, counted from the next byte
	atMagic       = 0x202
	atVersion     = 0x206
	atLoader      = 0x210
	atLoadFlags   = 0x211
	atRamdisk     = 0x218 // address, size: 8 bytes
	atCmdline     = 0x228
	atRamdiskMax  = 0x22c
	atRelocatable = 0x234
	atXLoadFlags  = 0x236
	atCmdlineSize = 0x238
	atSetupData   = 0x250
	atPreferred   = 0x258
	atInitSize    = 0x260

	paramsSize  = 4096
	headerRoom  = 0x290 // no header reaches beyond: the next field of boot_params begins
	version64   = 0x20c // the first with a 64-bit entry
	kernel64    = 1     // in xloadflags: it has one
	entry64     = 0x200 // from the kernel's beginning
	maxE820     = 128
	loaderKexec = 0xd0
)

const page = 4096

// The first page of low memory that holds parameters, command line and the way
// into the kernel; below the EBDA of every BIOS.
const (
	lowBase    = 0x90000
	lowCmdline = lowBase + page
	lowStub    = lowBase + 2*page
	lowSize    = 4 * page // the last page is the stub's stack
)

// span is a range of physical memory, end excluded.
type span struct{ from, to uint64 }

// segment is one as kexec_load takes it.
type segment struct {
	data []byte
	at   uint64
	size uint64 // of the room; zeros follow the data
}

// errUnusual leaves the loading to kexec_file_load.
var errUnusual = errors.New("it is left to kexec_file_load")

// layout places a kernel and its initramfs in memory. params are the boot_params
// of the running kernel: its memory map, its screen.
func layout(kernel, initrd, params []byte, cmdline string, ram []span) ([]segment, error) {
	if len(kernel) < headerRoom || string(kernel[atMagic:atMagic+4]) != "HdrS" || len(params) != paramsSize {
		return nil, fmt.Errorf("no kernel for x86: %w", errUnusual)
	}
	le := binary.LittleEndian
	sects := int(kernel[atSetupSects])
	if sects == 0 {
		sects = 4
	}
	body := (sects + 1) * 512
	header := atMagic + int(kernel[atHeaderEnd])
	preferred, initSize := le.Uint64(kernel[atPreferred:]), uint64(le.Uint32(kernel[atInitSize:]))
	limit := uint64(le.Uint32(kernel[atRamdiskMax:])) + 1
	switch {
	case le.Uint16(kernel[atVersion:]) < version64 || le.Uint16(kernel[atXLoadFlags:])&kernel64 == 0 || kernel[atRelocatable] == 0:
		return nil, fmt.Errorf("the kernel has no 64-bit entry: %w", errUnusual)
	case header > headerRoom || body >= len(kernel) || preferred%page != 0 || initSize > 1<<30 || preferred > 1<<30:
		return nil, fmt.Errorf("the kernel's header: %w", errUnusual)
	case len(cmdline) > int(le.Uint32(kernel[atCmdlineSize:])) || len(cmdline) >= page:
		return nil, fmt.Errorf("the command line is too long: %w", errUnusual)
	case params[atE820Entries] == 0 || params[atE820Entries] >= maxE820:
		return nil, fmt.Errorf("the memory map has more than one table: %w", errUnusual)
	}
	image := segment{data: kernel[body:], at: preferred, size: pages(max(initSize, uint64(len(kernel)-body)))}
	if !holds(ram, image.at, image.size) || !holds(ram, lowBase, lowSize) {
		return nil, fmt.Errorf("the kernel's place is no memory: %w", errUnusual)
	}
	disk := segment{data: initrd, size: pages(uint64(len(initrd)))}
	var ok bool
	if disk.at, ok = highest(ram, disk.size, image.at+image.size, limit); !ok {
		return nil, fmt.Errorf("no room for the initramfs: %w", errUnusual)
	}
	low := make([]byte, 3*page)
	copy(low, params)
	clear(low[atEFI : atEFI+32])
	clear(low[atRamdiskHigh : atRamdiskHigh+12])
	clear(low[atSetupSects:headerRoom])
	copy(low[atSetupSects:], kernel[atSetupSects:header])
	low[atSentinel], low[atLoader], low[atLoadFlags] = 0, loaderKexec, 0
	le.PutUint32(low[atRamdisk:], uint32(disk.at))
	le.PutUint32(low[atRamdisk+4:], uint32(len(initrd)))
	le.PutUint32(low[atCmdline:], lowCmdline)
	le.PutUint64(low[atSetupData:], 0)
	copy(low[lowCmdline-lowBase:], cmdline)
	copy(low[lowStub-lowBase:], stub(image.at+entry64))
	return []segment{{data: low, at: lowBase, size: lowSize}, image, disk}, nil
}

// stub is the way into the kernel: kexec jumps to it in 64-bit mode with all of
// the memory mapped to itself. The kernel's 64-bit entry asks for flat segments
// with selectors 0x10 and 0x18, and for boot_params in rsi.
func stub(entry uint64) []byte {
	const table = lowStub + 0x100
	le := binary.LittleEndian
	var b []byte
	b = append(b, 0xfa, 0xfc)                                                  // cli; cld
	b = le.AppendUint32(append(b, 0xbc), lowBase+lowSize)                      // mov esp, top
	b = le.AppendUint32(append(b, 0x0f, 0x01, 0x14, 0x25), table)              // lgdt [table]
	b = le.AppendUint32(append(b, 0xb8), 0x18)                                 // mov eax, 0x18
	b = append(b, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0)                          // mov ds, es, ss, eax
	b = append(b, 0x8e, 0xe0, 0x8e, 0xe8)                                      // mov fs, gs, eax
	b = le.AppendUint64(append(b, 0x48, 0xb8), entry)                          // mov rax, entry
	b = append(b, 0x6a, 0x10, 0x50)                                            // push 0x10; push rax
	b = le.AppendUint32(append(b, 0xbe), lowBase)                              // mov esi, boot_params
	b = append(b, 0x31, 0xed, 0x31, 0xff, 0x31, 0xdb, 0x48, 0xcb)              // xor ebp, edi, ebx; retfq
	b = append(b, make([]byte, table-lowStub-len(b))...)                       // to the table
	b = le.AppendUint64(le.AppendUint16(b, 4*8-1), table+16)                   // limit, base
	b = append(b, make([]byte, table+16-lowStub-len(b))...)                    // to its entries
	for _, d := range []uint64{0, 0, 0x00af9a000000ffff, 0x00cf92000000ffff} { // 0x10: code, 64-bit; 0x18: data
		b = le.AppendUint64(b, d)
	}
	return b
}

func pages(n uint64) uint64 { return (n + page - 1) &^ (page - 1) }

func holds(ram []span, at, size uint64) bool {
	for _, r := range ram {
		if at >= r.from && at+size <= r.to {
			return true
		}
	}
	return false
}

// highest gives the highest place of that size in memory, from from on and below
// limit.
func highest(ram []span, size, from, limit uint64) (at uint64, ok bool) {
	for _, r := range ram {
		low, high := pages(max(r.from, from)), min(r.to, limit)&^(page-1)
		if high > low && high-low >= size && high-size >= at {
			at, ok = high-size, true
		}
	}
	return at, ok
}

// memory reads the firmware's memory map as the kernel keeps it.
func memory(dir string) ([]span, error) {
	all, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return nil, err
	}
	var out []span
	for _, entry := range all {
		if readWord(filepath.Join(entry, "type")) != "System RAM" {
			continue
		}
		var s [2]uint64
		for i, name := range []string{"start", "end"} {
			text := strings.TrimPrefix(readWord(filepath.Join(entry, name)), "0x")
			if s[i], err = strconv.ParseUint(text, 16, 64); err != nil {
				return nil, fmt.Errorf("memory map: %w", err)
			}
		}
		out = append(out, span{s[0], s[1] + 1})
	}
	return out, nil
}

// loadSegments gives the kernel another one by kexec_load.
func loadSegments(kernel, initrd *os.File, cmdline string) (err error) {
	if _, efi := os.Stat("/sys/firmware/efi"); runtime.GOARCH != "amd64" || efi == nil {
		return errUnusual
	}
	params, err := os.ReadFile("/sys/kernel/boot_params/data")
	if err != nil {
		return err
	}
	ram, err := memory("/sys/firmware/memmap")
	if err != nil {
		return err
	}
	var mapped [2][]byte
	for i, f := range []*os.File{kernel, initrd} {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if mapped[i], err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Munmap(mapped[i])) }()
	}
	segments, err := layout(mapped[0], mapped[1], params, cmdline, ram)
	if err != nil {
		return err
	}
	type kexecSegment struct {
		buf     unsafe.Pointer
		bufsize uintptr
		mem     uintptr
		memsize uintptr
	}
	var list []kexecSegment
	for _, s := range segments {
		list = append(list, kexecSegment{unsafe.Pointer(unsafe.SliceData(s.data)), uintptr(len(s.data)), uintptr(s.at), uintptr(s.size)})
	}
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_LOAD, lowStub, uintptr(len(list)), uintptr(unsafe.Pointer(unsafe.SliceData(list))), 0, 0, 0)
	runtime.KeepAlive(segments)
	if errno != 0 {
		return errno
	}
	return nil
}
