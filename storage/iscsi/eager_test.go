package iscsi

import (
	"net"
	"syscall"
	"testing"
)

// pair gives an eager end of a TCP connection and the peer's.
func pair(t *testing.T, ps *places) (*eager, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	peer, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return &eager{raw: raw, places: ps}, peer
}

func placesFor(n int32) *places {
	p := &places{}
	p.free.Store(n)
	return p
}

func TestEagerReadTakesWhatIsThere(t *testing.T) {
	e, peer := pair(t, placesFor(1))
	if _, err := peer.Write([]byte("command")); err != nil {
		t.Fatal(err)
	}
	var b [16]byte
	n := 0
	for n == 0 { // the loopback delivers before Write returns, or nearly so
		e.skip = 0
		n = e.read(b[:])
	}
	if string(b[:n]) != "command" || e.misses != 0 {
		t.Fatalf("read %q, %d misses", b[:n], e.misses)
	}
	if e.places.free.Load() != 1 {
		t.Fatalf("%d places are left of one", e.places.free.Load())
	}
}

// A peer that takes its time costs one look in 255 sleeps, and one that is quick
// again is believed at once.
func TestEagerStopsLookingForASlowPeer(t *testing.T) {
	e, peer := pair(t, placesFor(1))
	looks := 0
	var b [16]byte
	for range 2000 {
		before := e.misses
		rested := e.skip > 0
		if n := e.read(b[:]); n != 0 {
			t.Fatalf("%d bytes from a silent peer", n)
		}
		if !rested {
			looks++
			if e.misses == before && before < maxMisses {
				t.Fatal("a look in vain is not counted")
			}
		}
	}
	if looks > 20 || looks < 9 {
		t.Fatalf("%d looks in 2000 sleeps", looks)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for e.misses > 0 {
		e.read(b[:])
	}
	if e.skip > 0 {
		t.Fatalf("quick again, and it still rests %d times", e.skip)
	}
}

func TestOnlySoManyAreEagerAtOnce(t *testing.T) {
	ps := placesFor(1)
	if !ps.take() || ps.take() {
		t.Fatal("one place is for one")
	}
	e, peer := pair(t, ps)
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if n := e.read(b[:]); n != 0 || e.misses != 0 {
		t.Fatalf("without a place it read %d bytes and counts %d misses", n, e.misses)
	}
	ps.give()
	if !ps.take() {
		t.Fatal("the place did not come back")
	}
}

// The end of a connection is for the ordinary read to find.
func TestEagerLeavesTheEndToTheOrdinaryRead(t *testing.T) {
	e, peer := pair(t, placesFor(1))
	peer.Close()
	var b [1]byte
	if n := e.read(b[:]); n != 0 {
		t.Fatalf("read %d bytes from a closed connection", n)
	}
	if e.places.free.Load() != 1 {
		t.Fatal("its place is lost")
	}
}
