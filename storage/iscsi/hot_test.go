package iscsi_test

import (
	"bytes"
	"fmt"
	"testing"

	"hotspare/storage/iscsi"
)

// TestManyCommandsInOneSegment sends writes and reads all at once, as an
// initiator with a deep queue does, and wants every answer: with the data, and
// with status numbers without a gap, whoever carried the commands out.
func TestManyCommandsInOneSegment(t *testing.T) {
	for _, digests := range []bool{false, true} {
		t.Run(fmt.Sprintf("digests=%v", digests), func(t *testing.T) {
			s := newSite(t, "orders")
			g := s.grant(grantOf("orders", 1, "n1"))
			i := s.dial()
			if err := i.login(g, s.iqn("orders"), false, digests); err != nil {
				t.Fatal(err)
			}
			if _, _, err := i.do([]byte{0, 0, 0, 0, 0, 0}, nil, 0); err != nil {
				t.Fatal(err)
			}
			const n = 60 // of each; within the command window
			sizes := []int{512, 4096, 4608, 8192}
			block := func(k int) []byte { return bytes.Repeat([]byte{byte(k + 1)}, sizes[k%len(sizes)]) }
			var wire []byte
			push := func(h iscsi.Header, data []byte) {
				wire = iscsi.AppendPDU(wire, &iscsi.PDU{Header: h, Data: data}, i.digests)
			}
			writes := map[uint32]int{}
			for k := range n {
				h := i.command(rw10(0x2a, k*32, len(block(k))/512), len(block(k)), false, true)
				writes[h.TaskTag()] = k
				push(h, block(k))
			}
			if _, err := i.nc.Write(wire); err != nil {
				t.Fatal(err)
			}
			next := uint32(0)
			counted := func(p *iscsi.PDU) {
				if sn := p.Header.StatSN(); next != 0 && sn != next {
					t.Fatalf("StatSN %d, expected %d", sn, next)
				}
				next = p.Header.StatSN() + 1
			}
			for range n {
				p, err := i.receive()
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := writes[p.Header.TaskTag()]; !ok || p.Header.Opcode() != iscsi.OpSCSIResponse || p.Header[3] != 0 {
					t.Fatalf("opcode %#x, status %#x for tag %d", p.Header.Opcode(), p.Header[3], p.Header.TaskTag())
				}
				delete(writes, p.Header.TaskTag())
				counted(p)
			}
			wire = nil
			reads := map[uint32]int{}
			for k := range n {
				h := i.command(rw10(0x28, k*32, len(block(k))/512), len(block(k)), true, false)
				reads[h.TaskTag()] = k
				push(h, nil)
			}
			if _, err := i.nc.Write(wire); err != nil {
				t.Fatal(err)
			}
			got := map[uint32][]byte{}
			for len(reads) > 0 {
				p, err := i.receive()
				if err != nil {
					t.Fatal(err)
				}
				tag := p.Header.TaskTag()
				k, ok := reads[tag]
				if !ok || p.Header.Opcode() != iscsi.OpDataIn {
					t.Fatalf("opcode %#x for tag %d", p.Header.Opcode(), tag)
				}
				if off := int(p.Header.Uint32(40)); off != len(got[tag]) {
					t.Fatalf("data at %d, expected %d", off, len(got[tag]))
				}
				got[tag] = append(got[tag], p.Data...)
				if p.Header.Flags()&1 == 0 {
					continue
				}
				counted(p)
				if !bytes.Equal(got[tag], block(k)) {
					t.Errorf("read %d gives other data than was written", k)
				}
				delete(reads, tag)
			}
		})
	}
}
