package iscsi_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"hotspare/storage"
)

// opcodes that the target knows, and some that it does not.
var opcodes = []byte{
	0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x16, 0x17, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x34, 0x35, 0x37, 0x41, 0x42, 0x55, 0x5a,
	0x5e, 0x5f, 0x83, 0x84, 0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9e, 0xa0, 0xa3, 0xa8, 0xaa, 0xae, 0xaf, 0xb7,
	0x04, 0x48, 0x7f, 0x9c, 0xc0, 0xff,
}

// TestInitiatorsKeepToTheirUnits lets two initiators, one who may write his
// volume and one who may only read his, send whatever comes to mind: commands
// with random fields, to units that are not there, copies and reservations that
// name the other's volume, resets. Neither sees or changes anything of the other.
func TestInitiatorsKeepToTheirUnits(t *testing.T) { // S15, S16; CVE-2020-28374
	const commands = 4000
	s := newSite(t, "orders", "web")
	writer := s.grant(grantOf("orders", 1, "n1"))
	reader := grantOf("web", 1, "n2")
	reader.ReadOnly = true
	s.grant(reader)
	fill := func(volume, mark string) []byte {
		p := bytes.Repeat([]byte(mark), 16<<20/len(mark))
		dev, err := s.store.OpenVolume(volume)
		if err != nil {
			t.Fatal(err)
		}
		defer dev.Close()
		if _, err := dev.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		return p
	}
	fill("orders", "ORDERS!!")
	web := fill("web", "WEBSITE!")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)

	a, b := s.session(writer, 1), s.session(reader, 1)
	names := [][]byte{a.naaOf(), b.naaOf()}
	done := map[byte]int{}
	// storm sends random commands in the name of the grant; theirs is the mark
	// that must never be seen.
	storm := func(i *initiator, g storage.Grant, rnd *rand.Rand, theirs string, n int) *initiator {
		for range n {
			cdb := make([]byte, 16)
			for k := range cdb {
				cdb[k] = byte(rnd.Uint32() & rnd.Uint32() & rnd.Uint32()) // few bits
			}
			cdb[0] = opcodes[rnd.IntN(len(opcodes))]
			var out []byte
			in := 0
			switch rnd.IntN(3) {
			case 0:
				out = make([]byte, []int{4, 8, 24, 76, 512, 1024, 8192}[rnd.IntN(7)])
				for k := range out {
					out[k] = byte(rnd.Uint32())
				}
			case 1:
				in = 1 + rnd.IntN(65536)
			}
			if cdb[0] == 0x83 && len(out) == 76 {
				out = copyList(byte(rnd.Uint32()), byte(rnd.IntN(4)), names[rnd.IntN(2)],
					segment{from: uint64(rnd.IntN(40000)), to: uint64(rnd.IntN(40000)), n: uint16(rnd.IntN(100))})
				cdb = copyCDB(len(out))
			}
			i.lun = 0
			if rnd.IntN(10) == 0 {
				i.lun = rnd.Uint64() & rnd.Uint64()
			}
			st, data, err := i.do(cdb, out, in)
			if err != nil { // cut, for good reasons: again
				i.nc.Close()
				i = s.session(g, 1)
				continue
			}
			done[st]++
			if bytes.Contains(data, []byte(theirs)) {
				t.Fatalf("command %x to unit %#x shows %q", cdb, i.lun, theirs)
			}
		}
		i.lun = 0
		return i
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 4 {
		a = storm(a, writer, rnd, "WEBSITE!", commands/8)
		for _, fn := range []byte{abortTaskSet, clearTaskSet, lunReset, warmReset} {
			a.manage(fn, 0, 0)
		}
		for n := 0; ; n++ { // what the reader hears is of his own making
			st, sense, err := b.do(testReady, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			if st == 0 {
				break
			}
			if n > 0 || senseText(sense)[:5] != "06/2a" {
				t.Fatalf("the reader hears of what the writer did: %#x, %x", st, sense)
			}
		}
		b = storm(b, reader, rnd, "ORDERS!!", commands/8)
	}
	t.Logf("statuses %v", done)
	if done[0] < commands/20 || done[2] < commands/20 {
		t.Errorf("of %d commands only %d succeeded and %d failed: too few to prove anything", commands, done[0], done[2])
	}
	dev, err := s.store.OpenVolume("web")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	have := make([]byte, len(web))
	if _, err := dev.ReadAt(have, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, web) {
		t.Error("the volume that nobody may write changed")
	}
	if bytes.Contains(readAll(t, s, 16<<20), []byte("WEBSITE!")) {
		t.Error("the writer copied from the other's volume")
	}
	if n := binary.BigEndian.Uint32(b.good([]byte{0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0}, nil, 255)); n != 8 {
		t.Errorf("the reader sees %d units", n/8)
	}
}
