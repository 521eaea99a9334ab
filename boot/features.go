package boot

import "fmt"

// Features is what an iPXE says of itself in DHCP option 175 (iPXE's
// "encapsulated options", src/include/ipxe/features.h).
type Features struct {
	HTTP    bool   `json:"http,omitempty"`
	HTTPS   bool   `json:"https,omitempty"`
	TFTP    bool   `json:"tftp,omitempty"`
	ISCSI   bool   `json:"iscsi,omitempty"`
	BzImage bool   `json:"bzimage,omitempty"` // boots Linux kernels under BIOS
	EFI     bool   `json:"efi,omitempty"`     // runs EFI images
	Version string `json:"version,omitempty"` // "1.0.0", or ""
}

// ParseFeatures reads the sub-options of option 175. Unknown ones are skipped;
// a sub-option that is cut short is an error, and what was read before it is
// returned.
func ParseFeatures(b []byte) (Features, error) {
	var f Features
	for len(b) > 0 {
		code := b[0]
		if code == 0 { // padding
			b = b[1:]
			continue
		}
		if code == 255 { // end
			return f, nil
		}
		if len(b) < 2 || len(b)-2 < int(b[1]) {
			return f, fmt.Errorf("option 175: sub-option %d is cut short", code)
		}
		v := b[2 : 2+int(b[1])]
		b = b[2+int(b[1]):]
		on := len(v) == 1 && v[0] != 0
		switch code {
		case 0x11:
			f.ISCSI = on
		case 0x13:
			f.HTTP = on
		case 0x14:
			f.HTTPS = on
		case 0x15:
			f.TFTP = on
		case 0x18:
			f.BzImage = on
		case 0x24:
			f.EFI = on
		case 0xeb:
			if len(v) == 3 {
				f.Version = fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2])
			}
		}
	}
	return f, nil
}
