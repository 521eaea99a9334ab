package images

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"strings"
)

// kernelInfo is what a kernel file says of itself.
type kernelInfo struct {
	arch    string // "" when the file is no kernel that is known
	version string // "" when the format does not tell
}

// inspectKernel reads the header of a kernel: x86 bzImage, arm64 Image (also
// gzip-compressed, as Debian has it), EFI zboot.
func inspectKernel(b []byte) kernelInfo {
	le := binary.LittleEndian
	switch {
	case len(b) > 0x250 && string(b[0x202:0x206]) == "HdrS" && b[0x1fe] == 0x55 && b[0x1ff] == 0xaa:
		info := kernelInfo{arch: "386"}
		if le.Uint16(b[0x206:]) >= 0x20c && le.Uint16(b[0x236:])&1 != 0 { // XLF_KERNEL_64
			info.arch = "amd64"
		}
		if p := int(le.Uint16(b[0x20e:])); p != 0 && p+0x200 < len(b) {
			text := b[p+0x200 : min(p+0x300, len(b))]
			if end := bytes.IndexByte(text, 0); end > 0 {
				info.version, _, _ = strings.Cut(string(text[:end]), " ")
			}
		}
		return info
	case len(b) > 64 && string(b[56:60]) == "ARM\x64":
		return kernelInfo{arch: "arm64"}
	case len(b) > 64 && string(b[:2]) == "MZ" && string(b[4:8]) == "zimg":
		pe := int64(le.Uint32(b[0x3c:]))
		if pe+6 > int64(len(b)) {
			return kernelInfo{}
		}
		return kernelInfo{arch: map[uint16]string{0x8664: "amd64", 0xaa64: "arm64"}[le.Uint16(b[pe+4:])]}
	case bytes.HasPrefix(b, []byte("\x1f\x8b")):
		zr, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return kernelInfo{}
		}
		head := make([]byte, 4096)
		n, _ := io.ReadFull(zr, head)
		if bytes.HasPrefix(head[:n], []byte("\x1f\x8b")) {
			return kernelInfo{}
		}
		return inspectKernel(head[:n])
	}
	return kernelInfo{}
}

// compareVersions orders versions as people read them: digits by their number,
// the rest by its bytes. 6.1.0-9 is before 6.1.0-10.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		var ta, tb string
		ta, a = versionPart(a)
		tb, b = versionPart(b)
		if isDigit(ta[0]) && isDigit(tb[0]) {
			ta, tb = strings.TrimLeft(ta, "0"), strings.TrimLeft(tb, "0")
			if len(ta) != len(tb) {
				return len(ta) - len(tb)
			}
		}
		if c := strings.Compare(ta, tb); c != 0 {
			return c
		}
	}
	return len(a) - len(b)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// versionPart cuts the leading run of digits or of other characters off s.
func versionPart(s string) (part, rest string) {
	i := 1
	for i < len(s) && isDigit(s[i]) == isDigit(s[0]) {
		i++
	}
	return s[:i], s[i:]
}

// parseOSRelease reads os-release(5).
func parseOSRelease(b []byte) OSRelease {
	var r OSRelease
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		value = printable(value)
		switch key {
		case "ID":
			r.ID = value
		case "VERSION_ID":
			r.VersionID = value
		case "PRETTY_NAME":
			r.PrettyName = value
		}
	}
	return r
}

// printable keeps text of an image from controlling a terminal or a log.
func printable(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == 0xfffd {
			return -1
		}
		return c
	}, s)
	return s[:min(len(s), 128)]
}
