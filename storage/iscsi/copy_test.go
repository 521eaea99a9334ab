package iscsi_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// segment of an EXTENDED COPY.
type segment struct {
	from, to uint64
	n        uint16
	source   uint16
}

// copyList builds a parameter list whose only device has the NAA name.
func copyList(id, usage byte, naa []byte, segments ...segment) []byte {
	device := make([]byte, 32)
	device[0], device[4], device[5], device[7] = 0xe4, 1, 3, byte(len(naa))
	copy(device[8:], naa)
	device[30] = 2 // blocks of 512 bytes
	b := make([]byte, 16)
	b[0], b[1] = id, usage<<3
	binary.BigEndian.PutUint16(b[2:], 32)
	binary.BigEndian.PutUint32(b[8:], uint32(28*len(segments)))
	b = append(b, device...)
	for _, s := range segments {
		d := make([]byte, 28)
		d[0], d[3] = 2, 24
		binary.BigEndian.PutUint16(d[4:], s.source)
		binary.BigEndian.PutUint16(d[10:], s.n)
		binary.BigEndian.PutUint64(d[12:], s.from)
		binary.BigEndian.PutUint64(d[20:], s.to)
		b = append(b, d...)
	}
	return b
}

func copyCDB(size int) []byte {
	c := make([]byte, 16)
	c[0] = 0x83
	binary.BigEndian.PutUint32(c[10:], uint32(size))
	return c
}

func results(action, id byte) []byte {
	return []byte{0x84, action, id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}
}

// naaOf gives the unit's NAA name, as VPD page 83h tells it.
func (i *initiator) naaOf() []byte {
	i.t.Helper()
	for d := i.good([]byte{0x12, 1, 0x83, 0, 255, 0}, nil, 255)[4:]; len(d) > 3; d = d[4+int(d[3]):] {
		if d[1]&0x3f == 3 {
			return d[4 : 4+int(d[3])]
		}
	}
	i.t.Fatal("the unit has no NAA name")
	return nil
}

func TestCopyWithinTheUnit(t *testing.T) {
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	naa := i.naaOf()
	const all = 6000 // blocks, more than one step of the copy
	for _, c := range []struct {
		name     string
		segments []segment
	}{
		{"far away", []segment{{from: 0, to: 8000, n: all}}},
		{"one block up", []segment{{from: 0, to: 1, n: all}}},
		{"one block down", []segment{{from: 1, to: 0, n: all}}},
		{"onto itself", []segment{{from: 5, to: 5, n: 100}}},
		{"one after the other", []segment{{from: 0, to: 100, n: 50}, {from: 100, to: 9000, n: 50}}},
		{"nothing", []segment{{from: 3, to: 4, n: 0}}},
	} {
		want := random(32768 * 512)
		dev, err := s.store.OpenVolume("orders")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dev.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
		for _, g := range c.segments {
			copy(want[g.to*512:], bytes.Clone(want[g.from*512:(g.from+uint64(g.n))*512]))
		}
		list := copyList(1, 2, naa, c.segments...)
		i.good(copyCDB(len(list)), list, 0)
		got := make([]byte, len(want))
		if _, err := dev.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		dev.Close()
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the copy differs", c.name)
		}
	}
}

// TestCopyReachesNoOtherUnit names another volume, in every way that a
// descriptor allows: as source, as destination, with the rights to it or not.
func TestCopyReachesNoOtherUnit(t *testing.T) { // S15; CVE-2020-28374
	s := newSite(t, "orders", "web")
	one := s.grant(grantOf("orders", 1, "n1"))
	i := s.session(one, 1)
	other := s.session(s.grant(grantOf("web", 1, "n2")), 1)
	web := bytes.Repeat([]byte("web!"), 128)
	other.good(rw10(0x2a, 0, 1), web, 0)
	naa := other.naaOf()
	uid, err := s.store.VolumeUID("web")
	if err != nil {
		t.Fatal(err)
	}
	t10 := append([]byte("HOTSPARE"), uid...)
	for name, change := range map[string]func(b []byte){
		"by NAA":                    func([]byte) {},
		"by T10 id":                 func(b []byte) { b[16+4], b[16+5], b[16+7] = 2, 1, 20; copy(b[16+8:16+28], t10) },
		"by no name":                func(b []byte) { b[16+7] = 0 },
		"as a port":                 func(b []byte) { b[16+5] = 0x13 },
		"by a logical unit":         func(b []byte) { b[16+1] = 0x40 },
		"as a null device":          func(b []byte) { b[16+1] = 0x20 },
		"as the unit that is asked": func(b []byte) { clear(b[16+4 : 16+28]) },
	} {
		list := copyList(1, 2, naa, segment{from: 0, to: 8, n: 1})
		change(list)
		t.Log(name)
		i.fails(copyCDB(len(list)), list, 0, 2, "0a/0d02")
	}
	if got := i.good(rw10(0x28, 8, 1), nil, 512); !bytes.Equal(got, make([]byte, 512)) {
		t.Error("something was copied")
	}
	if got := other.good(rw10(0x28, 8, 1), nil, 512); !bytes.Equal(got, make([]byte, 512)) {
		t.Error("something was copied there")
	}
}

func TestCopyRefusals(t *testing.T) {
	s := newSite(t, "orders", "ro")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	readOnly := grantOf("ro", 1, "n2")
	readOnly.ReadOnly = true
	ro := s.session(s.grant(readOnly), 1)
	naa := i.naaOf()
	ok := segment{from: 0, to: 8, n: 1}
	many := make([]segment, 17)
	for _, c := range []struct {
		name string
		list []byte
		want string
	}{
		{"beyond the end", copyList(1, 2, naa, segment{from: 0, to: 32768, n: 1}), "0a/0000"},
		{"from beyond the end", copyList(1, 2, naa, segment{from: 1 << 63, to: 0, n: 1}), "0a/0000"},
		{"no such device", copyList(1, 2, naa, segment{source: 1, n: 1}), "0a/0804"},
		{"too many segments", copyList(1, 2, naa, many...), "05/2608"},
		{"a reserved way to use the identifier", copyList(1, 1, naa, ok), "05/2600"},
		{"an identifier that is not to be used", copyList(1, 3, naa, ok), "05/2600"},
		{"no header", copyList(1, 2, naa, ok)[:10], "05/1a00"},
		{"cut short", copyList(1, 2, naa, ok)[:75], "05/1a00"},
		{"a name longer than its field", func() []byte { b := copyList(1, 2, naa, ok); b[16+7] = 21; return b }(), "05/2600"},
		{"inline data", func() []byte { b := copyList(1, 2, naa, ok); b[15] = 1; return append(b, 0) }(), "05/1a00"},
		{"another kind of device", func() []byte { b := copyList(1, 2, naa, ok); b[16] = 0xe0; return b }(), "05/2607"},
		{"another kind of segment", func() []byte { b := copyList(1, 2, naa, ok); b[48] = 3; return b }(), "05/2609"},
		{"a list as long as can be said", func() []byte { b := copyList(1, 2, naa, ok); b[8] = 0xff; return b }(), "05/1a00"},
	} {
		i.fails(copyCDB(len(c.list)), c.list, 0, 2, c.want)
	}
	list := copyList(1, 2, ro.naaOf(), ok)
	ro.fails(copyCDB(len(list)), list, 0, 2, "07/2700")
	i.good(copyCDB(0), nil, 0)
}

func TestCopyResults(t *testing.T) {
	s := newSite(t, "orders")
	g := s.grant(grantOf("orders", 1, "n1"))
	i, other := s.session(g, 1), s.session(g, 2)
	naa := i.naaOf()
	i.fails(results(0, 7), nil, 256, 2, "05/2400")
	list := copyList(7, 0, naa, segment{from: 0, to: 100, n: 10}, segment{from: 0, to: 200, n: 20})
	i.good(copyCDB(len(list)), list, 0)
	other.fails(results(0, 7), nil, 256, 2, "05/2400") // of one session, for that session
	if b := i.good(results(0, 7), nil, 256); b[4] != 1 || b[6] != 2 || binary.BigEndian.Uint32(b[8:]) != 30 {
		t.Errorf("copy status %x", b)
	}
	i.fails(results(0, 7), nil, 256, 2, "05/2400") // told once
	list = copyList(8, 0, naa, segment{from: 0, to: 100, n: 10}, segment{from: 0, to: 1 << 40, n: 20})
	i.fails(copyCDB(len(list)), list, 0, 2, "0a/0000")
	if b := i.good(results(0, 8), nil, 256); b[4] != 2 || b[6] != 1 || binary.BigEndian.Uint32(b[8:]) != 10 {
		t.Errorf("status of a failed copy %x", b)
	}
	for id := range 200 { // never asked for: the oldest make room
		list[0] = byte(id)
		i.fails(copyCDB(len(list)), list, 0, 2, "0a/0000")
	}
	if b := i.good(results(3, 0), nil, 256); len(b) != 46 || b[9] != 8 || b[11] != 16 {
		t.Errorf("operating parameters %x", b)
	}
}

// TestZeroesAndFills compares WRITE SAME and UNMAP with what they mean.
func TestZeroesAndFills(t *testing.T) { // SBC-3, 5.43 and 5.28
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	const blocks = 32768
	same := func(lba, n int, flags byte) []byte {
		return []byte{0x93, flags, 0, 0, 0, 0, byte(lba >> 24), byte(lba >> 16), byte(lba >> 8), byte(lba), 0, 0, byte(n >> 8), byte(n), 0, 0}
	}
	zero := make([]byte, 512)
	for _, c := range []struct {
		name     string
		cdb, out []byte
		lba, n   int
		want     []byte
	}{
		{"fill", same(3, 5000, 0), block, 3, 5000, block},
		{"zeros", same(3, 5000, 0), zero, 3, 5000, zero},
		{"unmap", same(3, 5000, 8), zero, 3, 5000, zero},
		{"unmap, but no zeros: written", same(3, 50, 8), block, 3, 50, block},
		{"without data", same(9, 50, 1), nil, 9, 50, zero},
		{"to the end", same(100, 0, 0), block, 100, blocks - 100, block},
		{"zeros to the end", same(100, 0, 0), zero, 100, blocks - 100, zero},
		{"unmapped list", []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, append([]byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 11}, 0, 0, 0, 0), 77, 11, zero},
	} {
		want := random(blocks * 512)
		writeAll(t, s, want)
		i.good(c.cdb, c.out, 0)
		copy(want[c.lba*512:], bytes.Repeat(c.want, c.n))
		if !bytes.Equal(readAll(t, s, len(want)), want) {
			t.Errorf("%s: the volume differs", c.name)
		}
	}
	for name, c := range map[string]struct {
		cdb, out []byte
		want     string
	}{
		"beyond the end":    {same(blocks-1, 2, 0), zero, "05/2100"},
		"at the end":        {same(blocks, 0, 0), zero, "05/2100"},
		"anchored":          {same(0, 1, 0x18), zero, "05/2400"},
		"with too much":     {same(0, 1, 0), make([]byte, 1024), "05/2400"},
		"unmap, cut short":  {[]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, make([]byte, 20), "05/1a00"},
		"unmap, no header":  {[]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 4, 0}, make([]byte, 4), "05/1a00"},
		"unmap, beyond end": {[]byte{0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0}, []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0, 0, 0, 1, 0, 0, 0, 0}, "05/2100"},
	} {
		t.Run(name, func(t *testing.T) { i.fails(c.cdb, c.out, 0, 2, c.want) })
	}
}

// TestBlockStatus: what was written is mapped, what was not or was given back is
// not.
func TestBlockStatus(t *testing.T) { // SBC-3, 5.4
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	i.good(rw10(0x2a, 800, 100), bytes.Repeat(block, 100), 0)
	i.good(rw10(0x2a, 8, 16), bytes.Repeat(block, 16), 0)
	i.good(append([]byte{0x42, 0, 0, 0, 0, 0, 0, 0}, 24, 0), []byte{0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 8, 0, 0, 0, 0}, 0)
	status := func(lba byte, size int) [][3]int {
		b := i.good([]byte{0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, byte(size >> 8), byte(size), 0, 0}, nil, size)
		if int(binary.BigEndian.Uint32(b))+4 < len(b) {
			t.Errorf("%d bytes are announced, %d come", binary.BigEndian.Uint32(b), len(b))
		}
		var out [][3]int
		for d := b[8:]; len(d) >= 16; d = d[16:] {
			out = append(out, [3]int{int(binary.BigEndian.Uint64(d)), int(binary.BigEndian.Uint32(d[8:])), int(d[12])})
		}
		return out
	}
	whole := [][3]int{{0, 8, 1}, {8, 8, 0}, {16, 784, 1}, {800, 104, 0}, {904, 32768 - 904, 1}}
	if got := status(0, 1024); !slices.Equal(got, whole) {
		t.Errorf("%v, not %v", got, whole)
	}
	if got := status(0, 40); !slices.Equal(got, whole[:2]) {
		t.Errorf("room for two: %v", got)
	}
	if got := status(10, 24); !slices.Equal(got, [][3]int{{10, 6, 0}}) { // where it was asked, not where the physical block begins
		t.Errorf("from block 10: %v", got)
	}
}

// TestVerifyOneBlockAgainstMany: BYTCHK 11b over more than one step, and where
// the difference is.
func TestVerifyOneBlockAgainstMany(t *testing.T) { // SBC-3, 5.32
	s := newSite(t, "orders")
	i := s.session(s.grant(grantOf("orders", 1, "n1")), 1)
	const n = 5000
	p := bytes.Repeat(block, n)
	writeAll(t, s, p)
	verify := rw10(0x2f, 0, n)
	verify[1] = 0x06
	i.good(verify, block, 0)
	const at = 4100*512 + 7
	p[at] ^= 1
	writeAll(t, s, p)
	if sense := i.fails(verify, block, 0, 2, "0e/1d00"); binary.BigEndian.Uint32(sense[3:]) != at {
		t.Errorf("the difference is said to be at %d, not %d", binary.BigEndian.Uint32(sense[3:]), at)
	}
}

func writeAll(t *testing.T, s *site, p []byte) {
	t.Helper()
	dev, err := s.store.OpenVolume("orders")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if _, err := dev.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
}

func readAll(t *testing.T, s *site, n int) []byte {
	t.Helper()
	dev, err := s.store.OpenVolume("orders")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	p := make([]byte, n)
	if _, err := dev.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}
