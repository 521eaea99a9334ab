package iscsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

func (i *initiator) vpd(page byte) []byte {
	i.t.Helper()
	b := i.good([]byte{0x12, 1, page, 4, 0, 0}, nil, 1024)
	if len(b) < 4 || b[0] != 0 || b[1] != page || int(binary.BigEndian.Uint16(b[2:])) != len(b)-4 {
		i.t.Fatalf("VPD page %02xh: %x", page, b)
	}
	return b
}

// TestVitalProductData: every page that is announced is there, says its length,
// and what it says is what the commands then do.
func TestVitalProductData(t *testing.T) { // SPC-4, 7.8; SBC-3, 6.6
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	pages := i.vpd(0)[4:]
	if !slices.Equal(pages, []byte{0x00, 0x80, 0x83, 0x8f, 0xb0, 0xb1, 0xb2}) {
		t.Fatalf("pages %x", pages)
	}
	for _, p := range pages {
		whole := i.vpd(p)
		for _, n := range []int{1, 4, len(whole) - 1} { // cut to the allocation length, the length field is not
			if got := i.good([]byte{0x12, 1, p, 0, byte(n), 0}, nil, 1024); !bytes.Equal(got, whole[:n]) {
				t.Errorf("page %02xh cut to %d: %x", p, n, got)
			}
		}
	}
	i.fails([]byte{0x12, 1, 0xb7, 0, 255, 0}, nil, 255, 2, "05/2400")
	i.fails([]byte{0x12, 0, 0x83, 0, 255, 0}, nil, 255, 2, "05/2400")

	if uid, err := s.store.VolumeUID("orders"); err != nil || string(i.vpd(0x80)[4:]) != uid {
		t.Errorf("serial number %q: %v", i.vpd(0x80)[4:], err)
	}
	if naa := i.naaOf(); len(naa) != 8 || naa[0]>>4 != 3 {
		t.Errorf("NAA name %x", naa)
	}
	limits := i.vpd(0xb0)
	if limits[4]&1 != 0 || binary.BigEndian.Uint16(limits[6:]) != 8 || binary.BigEndian.Uint32(limits[28:]) != 8 {
		t.Errorf("block limits %x", limits)
	}
	same := binary.BigEndian.Uint64(limits[36:])
	compare, longest := int(limits[5]), int(binary.BigEndian.Uint32(limits[8:]))
	at := func(op byte, n int) []byte {
		c := make([]byte, 16)
		c[0] = op
		binary.BigEndian.PutUint32(c[10:], uint32(n))
		return c
	}
	i.good(at(0x93, min(int(same), 32768)), make([]byte, 512), 0)
	i.good(at(0x88, longest), nil, longest*512)
	i.fails(at(0x88, longest+1), nil, 512, 2, "05/2100") // the volume is no longer than that
	both := make([]byte, 2*512*compare)
	i.good([]byte{0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(compare), 0, 0}, both, 0)
	i.fails([]byte{0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(compare + 1), 0, 0}, append(both, make([]byte, 1024)...), 0, 2, "05/2400")

	if b := i.vpd(0xb1); binary.BigEndian.Uint16(b[4:]) != 1 {
		t.Errorf("it rotates: %x", b)
	}
	if b := i.vpd(0xb2); b[5] != 0xe4 || b[6] != 2 {
		t.Errorf("provisioning %x", b)
	}
	kinds := []uint16{}
	for d := i.vpd(0x8f)[4:]; len(d) > 0; {
		n := int(binary.BigEndian.Uint16(d[2:]))
		if n%4 != 0 || 4+n > len(d) {
			t.Fatalf("third party copy: %x", d)
		}
		kinds, d = append(kinds, binary.BigEndian.Uint16(d)), d[4+n:]
	}
	if !slices.Equal(kinds, []uint16{0x0001, 0x0004, 0x0008, 0x000c, 0x8001}) {
		t.Errorf("third party copy: %x", kinds)
	}
}

// TestModePages: the write cache is on, and can be neither switched off nor
// anything else changed but the write protection.
func TestModePages(t *testing.T) { // SPC-4, 7.5; SBC-3, 6.5
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	sense := func(page byte) []byte { return i.good([]byte{0x1a, 0x08, page, 0, 255, 0}, nil, 255)[4:] }
	caching, control := sense(0x08), sense(0x0a)
	if len(caching) != 20 || caching[2] != 0x04 {
		t.Fatalf("caching page %x", caching)
	}
	if mask := sense(0x48); mask[2] != 0 {
		t.Errorf("changeable bits of the caching page %x", mask)
	}
	selects := func(page []byte) ([]byte, []byte) {
		list := append(make([]byte, 4), page...)
		return []byte{0x15, 0x10, 0, 0, byte(len(list)), 0}, list
	}
	off := bytes.Clone(caching)
	off[2] = 0
	cdb, list := selects(off)
	i.fails(cdb, list, 0, 2, "05/2600")
	for _, on := range []byte{0x08, 0} {
		protect := bytes.Clone(control)
		protect[4] = on
		cdb, list = selects(protect)
		i.good(cdb, list, 0)
		if head := i.good([]byte{0x1a, 0x08, 0x3f, 0, 255, 0}, nil, 255); head[2]&0x80 != 0 != (on != 0) {
			t.Errorf("WP is %#x, SWP %#x", head[2], on)
		}
		if on != 0 {
			i.fails(rw10(0x2a, 0, 1), block, 0, 2, "07/2700")
		} else {
			i.good(rw10(0x2a, 0, 1), block, 0)
		}
	}
	i.fails([]byte{0x1a, 0x08, 0x01, 0, 255, 0}, nil, 255, 2, "05/2400")
	i.fails([]byte{0x1a, 0x08, 0xc8, 0, 255, 0}, nil, 255, 2, "05/3900")
}
