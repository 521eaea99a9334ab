package iscsi_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hotspare/storage/iscsi"
)

// TestNoWriteLandsAfterARevocation races eight sessions that write over the wire
// at full speed, plain commands and those whose data is asked for, with many
// revocations. Every write carries its epoch in its data; after each return of
// Revoke the volume is the next owner's, and is looked at twice.
func TestNoWriteLandsAfterARevocation(t *testing.T) { // S2.2
	rounds := 150
	if os.Getenv("HOTSPARE_TEST_FULL") != "" {
		rounds = 3000
	}
	const writers, area = 8, 64 << 10
	s := newSite(t, "orders")
	dev, err := s.store.OpenVolume("orders")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	var acked, cut atomic.Int64
	mark, seen := bytes.Repeat([]byte{0xff}, writers*area), make([]byte, writers*area)
	for epoch := uint64(1); epoch <= uint64(rounds); epoch++ {
		g := s.grant(grantOf("orders", epoch, fmt.Sprintf("n%d", epoch)))
		var started, all sync.WaitGroup
		for w := range writers {
			i := s.session(g, byte(w+1))
			started.Add(1)
			all.Go(func() {
				defer i.nc.Close()
				acked.Add(i.writeOn8(w*area/512, epoch, sync.OnceFunc(started.Done)))
				cut.Add(1)
			})
		}
		started.Wait()
		rev, err := s.exports.Revoke(context.Background(), "orders", epoch+1)
		if err != nil {
			t.Fatal(err)
		}
		if rev.Sessions != writers {
			t.Fatalf("epoch %d: %d sessions were closed, not %d", epoch, rev.Sessions, writers)
		}
		if _, err := dev.WriteAt(mark, 0); err != nil {
			t.Fatal(err)
		}
		for look := range 2 {
			if look == 1 {
				all.Wait()
			} else if epoch%8 == 0 {
				time.Sleep(time.Millisecond) // give a late write the chance to show itself
			}
			if _, err := dev.ReadAt(seen, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(seen, mark) {
				t.Fatalf("a write of epoch %d landed after its revocation", epoch)
			}
		}
	}
	t.Logf("%d revocations cut %d sessions that had %d writes acknowledged", rounds, cut.Load(), acked.Load())
	if n := int64(rounds * writers); cut.Load() != n || acked.Load() < 2*n {
		t.Fatal("the run exercised too little")
	}
}

// writeOn8 writes eight commands at a time until the session is cut, and gives
// the number of those that were acknowledged. Every fourth session writes 32 KiB
// with R2Ts, the others 4 KiB with immediate data.
func (i *initiator) writeOn8(lba int, epoch uint64, began func()) (acked int64) {
	defer began() // also when it is cut before
	p := bytes.Repeat(binary.BigEndian.AppendUint64(nil, epoch), 4096)
	for {
		if i.isid%4 == 0 {
			if st, _, err := i.do(rw10(0x2a, lba, 64), p, 0); err != nil || st != 0 {
				return acked
			}
			acked++
			began()
			continue
		}
		for k := range 8 {
			if i.send(i.command(rw10(0x2a, lba+8*k, 8), 4096, false, true), p[:4096]) != nil {
				return acked
			}
		}
		for n := 0; n < 8; {
			pdu, err := i.receive()
			if err != nil {
				return acked
			}
			if pdu.Header.Opcode() != iscsi.OpSCSIResponse {
				continue
			}
			if pdu.Header[3] != 0 {
				return acked
			}
			n++
			acked++
			began()
		}
	}
}
